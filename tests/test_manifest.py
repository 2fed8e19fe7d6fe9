"""Whether a saved folder is still what was saved: what opening notices, and what only `doctor --verify` looks at."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from multitask_sentence import MultiTaskModel, manifest_multitask
from multitask_sentence.commands import doctor
from multitask_sentence.manifest_multitask import MANIFEST_FILE, find_changes, read_manifest, sha256_of
from multitask_sentence.runtime.record import hash_file
from multitask_sentence.training.report.publish import push_folder

TASKS = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}


@pytest.fixture(scope="module")
def saved(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("manifest") / "saved"
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, max_length=20).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "saved")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(manifest_multitask.logger, "warning", found.append)
    return found


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run_doctor(*argv: str) -> int | str:
    with pytest.raises(SystemExit) as exited:
        doctor.main(list(argv))
    return exited.value.code


def test_manifest_lists_every_file_with_its_size_and_hash(saved: Path) -> None:
    files = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()} - {MANIFEST_FILE}
    assert {"model.safetensors", "modeling_multitask.py", "tokenizer.json", "1_Pooling/config.json"} <= files
    listed = read_manifest(saved)
    assert listed.keys() == files
    for name, entry in listed.items():
        assert (entry["bytes"], entry["sha256"]) == ((saved / name).stat().st_size, sha256_of(saved / name))
    assert find_changes(saved) == {}


def test_folder_opens_on_python_3_10(folder: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    monkeypatch.delattr(hashlib, "file_digest")  # of Python 3.11
    assert MultiTaskModel.from_pretrained(folder).config.max_length == 20
    assert sha256_of(folder / "config.json") == hash_file(folder / "config.json") == expected
    assert warnings == []


def test_bit_that_flipped_in_the_weights_is_found_where_it_is_asked_for(folder: Path, warnings: list[str]) -> None:
    flip_bit(folder / "model.safetensors")
    MultiTaskModel.from_pretrained(folder)  # opening looks at sizes only
    assert warnings == []
    message = "saved: model.safetensors is not what was saved: its sha256 is another. Take it from where"
    for kind, options in ((MultiTaskModel, {}), (AutoModel, {"trust_remote_code": True})):
        with pytest.raises(OSError, match=message):
            kind.from_pretrained(folder, verify=True, **options)


@pytest.mark.parametrize("name", ["saving_multitask.py", "manifest_multitask.py"])
def test_code_that_is_not_what_was_saved_is_refused(name: str, folder: Path) -> None:
    flip_bit(folder / name)
    with pytest.raises(OSError, match=f"{name} is not what was saved: its sha256 is another"):
        MultiTaskModel.from_pretrained(folder)


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "one_more": torch.ones(5)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"model\.safetensors has \d+ bytes, not the \d+ that were saved\. Take it from"):
        MultiTaskModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_changed_settings_are_warned_of(name: str, folder: Path, warnings: list[str]) -> None:
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace('"max_length": 20', '"max_length": 19').replace('"cat"', '"dog"'))
    MultiTaskModel.from_pretrained(folder)
    (warning,) = warnings
    assert f"saved: {name} is not what was saved: its sha256 is another. Take it" in warning
    assert f"If it was changed on purpose: multitask-sentence doctor {folder} --seal" in warning


def test_edited_card_and_added_files_are_no_change(folder: Path, warnings: list[str]) -> None:
    (folder / "README.md").write_text("Mine")
    run_doctor(str(folder), "--seal")
    (folder / "README.md").write_text("Mine, edited")
    (folder / "notes.txt").write_text("Monday")
    MultiTaskModel.from_pretrained(folder, verify=True)
    assert (find_changes(folder), warnings) == ({}, [])


def test_folder_of_an_earlier_version_opens_without_a_word(folder: Path, warnings: list[str]) -> None:
    (folder / MANIFEST_FILE).unlink()
    MultiTaskModel.from_pretrained(folder, verify=True)
    assert warnings == []


def test_damaged_manifest_is_an_error_that_says_how_to_write_it(folder: Path) -> None:
    whole = (folder / MANIFEST_FILE).read_text()
    flipped, newer = whole.replace('"bytes": ', '"bytes": 1', 1), whole.replace('_version": 1', '_version": 2')
    for text in ("{", "[]", flipped, newer):
        (folder / MANIFEST_FILE).write_text(text)
        with pytest.raises(OSError, match=r"manifest\.json is damaged, or was written by a newer .* --seal"):
            MultiTaskModel.from_pretrained(folder)


def test_saving_again_renews_what_it_writes_and_keeps_the_rest(folder: Path, tiny_backbone: str) -> None:
    (folder / "results.json").write_text("{}")
    run_doctor(str(folder), "--seal")
    before = read_manifest(folder)
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, pooling="max").save_pretrained(folder)
    after = read_manifest(folder)
    assert after["results.json"] == before["results.json"]
    assert after["config.json"] != before["config.json"]
    assert find_changes(folder) == {}


def test_folder_saved_again_with_other_sharding_opens(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    for options in ({}, {"max_shard_size": "20KB"}, {}):
        model.save_pretrained(tmp_path, **options)
        assert (tmp_path / "model.safetensors.index.json").is_file() == bool(options), "premise"
        MultiTaskModel.from_pretrained(tmp_path, verify=True)


def test_adapter_folder_is_listed_too(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path)
    flip_bit(tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(OSError, match=r"adapter/adapter_model\.safetensors is not what was saved"):
        MultiTaskModel.from_pretrained(tmp_path, verify=True)


def test_folder_that_sentence_transformers_saved_opens_without_a_word(
    folder: Path, tmp_path: Path, warnings: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    model.max_seq_length = 7
    model.encode(["the cat sat"])
    model.save_pretrained(str(tmp_path / "again"))
    MultiTaskModel.from_pretrained(tmp_path / "again")
    assert warnings == []


def test_doctor_names_every_file_that_is_not_what_was_saved(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert run_doctor(str(folder), "--verify") == 0
    count = len(read_manifest(folder))
    flip_bit(folder / "model.safetensors")
    (folder / "modules.json").unlink()
    (folder / "notes.txt").write_text("Monday")
    capsys.readouterr()
    assert run_doctor(str(folder), "--verify") == 1
    assert capsys.readouterr().out.splitlines() == [
        "model.safetensors is not what was saved: its sha256 is another",
        "modules.json is missing",
        "notes.txt was added (no error)",
        f"{count - 2} of {count} files are what was saved.",
    ]
    assert run_doctor(str(folder), "--seal") == 0
    assert run_doctor(str(folder), "--verify") == 0
    (folder / MANIFEST_FILE).unlink()
    assert "has no manifest.json, so nothing is known of what was saved" in str(run_doctor(str(folder), "--verify"))


def test_remedy_for_a_repository_of_the_hub_is_not_to_write_into_the_cache(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "models--team--mine" / "snapshots" / ("0" * 39 + "1"))
    remedy = "hf download team/mine --local-dir FOLDER && multitask-sentence doctor FOLDER --seal, and push FOLDER"
    flip_bit(folder / "saving_multitask.py")
    with pytest.raises(OSError, match=remedy):
        MultiTaskModel.from_pretrained(folder)
    (folder / MANIFEST_FILE).write_text("{")
    with pytest.raises(OSError, match=remedy):
        read_manifest(folder)
    (folder / MANIFEST_FILE).unlink()
    assert remedy in str(run_doctor(str(folder), "--verify"))
    refused = str(run_doctor("team/mine", "--seal", "--revision", "0" * 40))
    assert "--seal writes into a folder of this machine, and team/mine is none. Download it, seal that" in refused


def test_damaged_weights_are_not_pushed(folder: Path) -> None:
    flip_bit(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not what was saved: .* so nothing was pushed"):
        push_folder(folder, "team/model")


def test_folder_with_a_damaged_manifest_is_saved_to_with_a_warning(folder: Path, warnings: list[str]) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    (folder / MANIFEST_FILE).write_text("{")
    model.save_pretrained(folder)
    assert any("manifest.json is damaged" in line and "is written anew" in line for line in warnings)
    assert "model.safetensors" in read_manifest(folder)
    MultiTaskModel.from_pretrained(folder, verify=True)
