"""Files and folders that appear whole or not at all: nobody sees half of one, and an older one stays until then."""

import errno
import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.little_room import little_room
from multitask_sentence import MultiTaskModel, staging_multitask
from multitask_sentence.data.cache import locks
from multitask_sentence.staging_multitask import (
    UNFINISHED,
    as_disk_error,
    check_moved,
    in_place,
    is_same_folder,
    staged,
    sync,
    write_whole,
)
from multitask_sentence.training.run import output_folder
from multitask_sentence.training.run.output_folder import put_folder


class Killed(BaseException):
    """What nothing catches, as a signal that ends the process."""


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_file_is_the_older_one_until_the_newer_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_whole(tmp_path / "card.md", "older")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(staging_multitask.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(tmp_path / "card.md", "newer")
    assert contents(tmp_path) == {"card.md": "older"}
    write_whole(tmp_path / "card.md", "newer")
    assert contents(tmp_path) == {"card.md": "newer"}


def test_folder_keeps_its_files_where_writing_new_ones_fails(tmp_path: Path):
    (tmp_path / "config.json").write_text("older")
    with pytest.raises(OSError, match="No space left"), staged(tmp_path) as folder:
        Path(folder, "config.json").write_text("newer")
        raise OSError("No space left on device")
    assert contents(tmp_path) == {"config.json": "older"}


def test_new_files_replace_those_of_the_same_name_and_weights_of_the_same_model(tmp_path: Path):
    kept = {"notes.txt": "mine", "onnx/model.onnx": "graph", "model.fp16.safetensors": "another variant"}
    older = {"config.json": "older", "model-00001-of-00002.safetensors": "", "model.safetensors.index.json": "{}"}
    (tmp_path / "onnx").mkdir()
    for name, text in {**kept, **older}.items():
        (tmp_path / name).write_text(text)
    with staged(tmp_path) as folder:
        Path(folder, "1_Pooling").mkdir()
        for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
            Path(folder, name).write_text("newer")
        assert contents(tmp_path)["config.json"] == "older"
    new = dict.fromkeys(("config.json", "model.safetensors", "1_Pooling/config.json"), "newer")
    assert contents(tmp_path) == {**kept, **new}


def test_what_opens_a_folder_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(
        staging_multitask.os, "replace", lambda *paths: [moved.append(os.path.basename(paths[1])), replace(*paths)]
    )
    with staged(tmp_path) as folder:
        for name in ("config.json", "model.safetensors", "a.py", "tokenizer.json"):
            Path(folder, name).touch()
    assert moved == ["a.py", "model.safetensors", "tokenizer.json", "config.json"]


def test_model_whose_files_were_moved_by_half_is_refused_until_the_others_follow(
    tiny_model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, moved, replace = tmp_path / "saved", [], os.replace
    tiny_model.save_pretrained(folder)
    with monkeypatch.context() as patched:

        def stop_half_way(*paths: str) -> None:
            moved.append(paths)
            if len(moved) > 20:
                raise Killed
            replace(*paths)

        patched.setattr(staging_multitask.os, "replace", stop_half_way)
        with pytest.raises(Killed):
            tiny_model.save_pretrained(folder)
    with pytest.raises(OSError, match="saving was interrupted, so that files of the model before may stand") as caught:
        MultiTaskModel.from_pretrained(folder)
    assert os.system(str(caught.value).rsplit("place: ", 1)[1]) == 0, "the remedy can be copied"
    assert MultiTaskModel.from_pretrained(folder).config.tasks == tiny_model.config.tasks
    assert not (folder / UNFINISHED).exists()


def test_failed_save_after_an_interrupted_one_leaves_the_whole_model_that_was_to_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    older = dict.fromkeys(("a.py", "config.json", "model.safetensors", "model-00001-of-00002.safetensors"), "older")
    for name, text in older.items():
        (tmp_path / name).write_text(text)
    replace = os.replace

    def stop(*paths: str) -> None:
        if os.path.basename(paths[1]) == "model.safetensors":
            raise Killed
        replace(*paths)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(staging_multitask.os, "replace", stop)
        with staged(tmp_path) as folder:
            for name in ("a.py", "config.json", "model.safetensors"):
                Path(folder, name).write_text("newer")
    with pytest.raises(OSError, match="saving was interrupted"):
        check_moved(tmp_path)
    with pytest.raises(OSError, match="No space left"), staged(tmp_path) as folder:
        Path(folder, "a.py").write_text("newest")
        raise OSError("No space left on device")
    check_moved(tmp_path)
    assert contents(tmp_path) == dict.fromkeys(("a.py", "config.json", "model.safetensors"), "newer")


@pytest.mark.parametrize("stopped", ["remove", "replace"])
@pytest.mark.parametrize(("before", "after"), [({}, {"max_shard_size": "20KB"}), ({"max_shard_size": "20KB"}, {})])
def test_older_weights_of_another_sharding_are_never_opened_with_the_newer_settings(
    tiny_model: MultiTaskModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
    after: dict[str, str],
    stopped: str,
):
    folder = tmp_path / "saved here"
    tiny_model.save_pretrained(folder, **before)
    calls = {"remove": os.remove, "replace": os.replace}

    def stop(*paths: str) -> None:
        if os.path.basename(paths[-1]).startswith(("model.safetensors", "model-00002-of-")):
            raise Killed
        calls[stopped](*paths)

    tiny_model.heads["mood"].layers[-1].bias.data += 1
    with monkeypatch.context() as patched:
        patched.setattr(staging_multitask.os, stopped, stop)
        with pytest.raises(Killed):
            tiny_model.save_pretrained(folder, **after)
    try:
        opened = MultiTaskModel.from_pretrained(folder)
    except OSError as error:
        assert os.system(str(error).rsplit("place: ", 1)[1]) == 0, "the remedy can be copied"
        opened = MultiTaskModel.from_pretrained(folder, verify=True)
    assert torch.equal(opened.heads["mood"].layers[-1].bias, tiny_model.heads["mood"].layers[-1].bias)


def test_model_that_was_killed_before_all_was_written_leaves_the_older_one(
    tiny_model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny_model.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(staging_multitask.shutil, "rmtree", lambda *args, **options: None)  # nothing is cleared away
        patched.setattr(MultiTaskModel, "_save_companions", lambda *args: (_ for _ in ()).throw(Killed))
        tiny_model.config.normalize = not tiny_model.config.normalize
        with pytest.raises(Killed):
            tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / UNFINISHED / "model.safetensors").is_file(), "premise"
    assert (tmp_path / "config.json").read_text() == before
    MultiTaskModel.from_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)  # in spite of what was left
    assert json.loads((tmp_path / "config.json").read_text())["normalize"] == tiny_model.config.normalize
    assert not (tmp_path / UNFINISHED).exists()


@little_room(4096)
def test_disk_without_room_is_an_error_of_the_disk_whatever_library_writes(tiny_model: MultiTaskModel, tmp_path: Path):
    large = {"weight": torch.zeros(10_000)}
    for name, write in {
        "safetensors": lambda: save_file(large, tmp_path / "file"),
        "torch": lambda: torch.save(large, tmp_path / "file"),
        "tokenizers": lambda: tiny_model.tokenizer.backend_tokenizer.save(str(tmp_path / "file")),
    }.items():
        with pytest.raises(OSError, match=r"not everything could be written \(.*Make room on the disk"):
            with as_disk_error(tmp_path):
                write()
            pytest.fail(f"{name} wrote it: the premise")
    with pytest.raises(OSError, match="File too large"):
        tiny_model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())
    with pytest.raises(ValueError, match="mine"), as_disk_error(tmp_path):
        raise ValueError("mine")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_folder_takes_the_place_of_an_older_one(can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not can_exchange:
        monkeypatch.setattr(output_folder, "_exchange", lambda first, second: False)
    for number in (1, 2):
        made = tmp_path / UNFINISHED / "checkpoint-3"
        made.mkdir(parents=True)
        (made / f"{number}.txt").write_text(str(number))
        assert in_place(made) == str(tmp_path / "checkpoint-3")
        put_folder(made, tmp_path / "checkpoint-3")
        assert contents(tmp_path) == {f"checkpoint-3/{number}.txt": str(number)}


def test_adapter_in_something_unfinished_names_its_base_as_seen_from_its_place(tiny_backbone: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    tasks = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path / "run" / UNFINISHED / "checkpoint-3")
    put_folder(tmp_path / "run" / UNFINISHED / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    opened = MultiTaskModel.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert (opened.encode("the cat sat") == model.encode("the cat sat")).all()


def test_folder_is_the_same_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to("base")
    monkeypatch.setattr(os.path, "realpath", os.path.abspath)  # as of a path in other letters on macOS
    assert is_same_folder(tmp_path / "link", tmp_path / "base")
    assert not is_same_folder(tmp_path / "link", tmp_path)
    assert not is_same_folder(tmp_path / "base", tmp_path / "missing")


def test_system_that_opens_no_folders_is_not_asked_to_bring_them_to_the_disk(tmp_path: Path, monkeypatch):
    folder = str(tmp_path)  # pathlib is for one system from its import on

    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(PermissionError):
            sync(folder)
        patched.setattr(os, "name", "nt")
        sync(folder)


def test_what_needs_locks_names_the_system_that_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(ImportError, match="lock files as Linux and macOS do, and this is"):
        importlib.reload(locks)
