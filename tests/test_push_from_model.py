"""What `model.push_to_hub` takes along from where the model was opened: only what is of its weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig
from test_python_training import COLUMNS, make_arguments, make_data, make_model
from transformers import PreTrainedModel

from helpers.hub_server import TOKEN, File, HubServer
from multitask_sentence import MultiTaskModel, MultiTaskTrainer
from multitask_sentence.staging_multitask import files_of

PAPERS = {
    "README.md": "The card of the run. ![Scores](scores.png)",
    "results.json": "{}",
    "recipe.yaml": "tasks: {}",
    "row_hashes.parquet": "8 bytes a row",
}


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path) -> Path:
    """What a run leaves."""
    folder = tmp_path / "mine"
    tiny_model.save_pretrained(folder)
    for name, text in {**PAPERS, "scores.png": "a picture"}.items():
        (folder / name).write_text(text)
    return folder


def pushed(hub: HubServer, repo_id: str) -> dict[str, bytes]:
    return {name: file.content for name, file in hub.repositories[repo_id].branches["main"][-1].files.items()}


@pytest.mark.parametrize("is_on_the_hub", [False, True])
def test_card_and_results_go_along_until_the_weights_change(
    folder: Path, nearby: HubServer, caplog: pytest.LogCaptureFixture, is_on_the_hub: bool
) -> None:
    source = str(folder)
    if is_on_the_hub:
        MultiTaskModel.from_pretrained(folder).push_to_hub("team/source")
        source = "team/source"
    model = MultiTaskModel.from_pretrained(source)
    model.push_to_hub("team/same")
    assert {"scores.png", *PAPERS} <= set(found := pushed(nearby, "team/same"))
    assert found["README.md"].decode() == PAPERS["README.md"]
    assert "stay behind" not in caplog.text
    model.heads["mood"].layers[-1].bias.data += 1
    model.push_to_hub("team/other")
    found = pushed(nearby, "team/other")
    assert not {"scores.png", *PAPERS} - {"README.md"} & set(found)
    assert "The card of the run" not in found["README.md"].decode()
    assert f"{source}: README.md and results belong to other weights than those that are pushed" in caplog.text


@pytest.mark.parametrize("record", ["{}", "[]", "{", json.dumps({"weights": None})])
def test_damaged_record_of_an_export_does_not_end_a_push(
    folder: Path, nearby: HubServer, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "export.json").write_text(record)
    MultiTaskModel.from_pretrained(folder).push_to_hub("team/mine")
    assert "onnx/export.json" not in pushed(nearby, "team/mine")
    assert "onnx was exported from other weights than those that are pushed, or its export.json is da" in caplog.text


def test_tokenizer_is_read_at_the_commit_of_the_weights(
    folder: Path, nearby: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    MultiTaskModel.from_pretrained(folder).push_to_hub("team/mine")
    commits, read_weights = nearby.repositories["team/mine"].branches["main"], PreTrainedModel.from_pretrained.__func__
    damaged = {**commits[-1].files, "tokenizer.json": File(b"{", is_large=False)}

    def read_and_change(cls: type, *args: Any, **kwargs: Any) -> Any:
        found = read_weights(cls, *args, **kwargs)
        nearby.repositories["team/mine"].add("main", "Damage the tokenizer", damaged)
        return found

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(read_and_change))
    model = MultiTaskModel.from_pretrained("team/mine")
    assert (
        model.tokenizer("the cat")["input_ids"]
        == MultiTaskModel.from_pretrained(folder).tokenizer("the cat")["input_ids"]
    )


def test_folder_is_saved_whole_where_the_push_fails(
    folder: Path, tmp_path: Path, nearby: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "README.md").write_text("mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HfHubHTTPError):
        model.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id="team/copy")
    opened = MultiTaskModel.from_pretrained(tmp_path / "copy", verify=True)
    assert np.array_equal(opened.encode("the cat sat"), model.encode("the cat sat"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id="team/copy")
    assert {"model.safetensors", "tokenizer.json", "manifest.json", *PAPERS} <= set(pushed(nearby, "team/copy"))
    assert (tmp_path / "copy" / "README.md").read_text() == "mine"
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    model.config.base_name_or_path = "team/copy"
    model.save_pretrained(tmp_path / "adapter", push_to_hub=True, repo_id="team/adapter")
    written = {"adapter/adapter_model.safetensors", "config_sentence_transformers.json", "model.safetensors"}
    assert written <= set(pushed(nearby, "team/adapter"))


def test_trainer_pushes_each_folder_once_and_only_what_opens_it(
    tiny_backbone: str, nearby: HubServer, tmp_path: Path
) -> None:
    arguments = make_arguments(
        tmp_path / "run", num_train_epochs=1, push_to_hub=True, hub_model_id="team/mine", hub_private_repo=True
    )
    data = {split: {"mood": make_data(verb)["mood"]} for split, verb in (("train", "ran"), ("validation", "sang"))}
    columns = {"mood": COLUMNS["mood"]}
    model = make_model(tiny_backbone, "mood")
    trainer = MultiTaskTrainer(model, arguments, data["train"], data["validation"], columns=columns)
    trainer.train()
    assert len(nearby.repositories["team/mine"].branches["main"]) == 1, "premise: training pushes nothing"
    assert (tmp_path / "run" / "best" / "mood" / "model.safetensors").is_file(), "premise"
    trainer.save_model(str(tmp_path / "run" / "final"))
    assert set(pushed(nearby, "team/mine")) - {".gitattributes"} == {
        name for name in files_of(tmp_path / "run" / "final") if name != "training_args.bin"
    }
    assert not (tmp_path / "run" / "model.safetensors").exists(), "saved where it was asked for alone"
    url = trainer.push_to_hub()
    commits = nearby.repositories["team/mine"].branches["main"]
    assert [commit.message for commit in commits[1:]] == ["Model save", "End of training"]
    assert url is not None and url.endswith(commits[-1].oid) and nearby.repositories["team/mine"].private
    files = set(pushed(nearby, "team/mine"))
    assert {"model.safetensors", "README.md", "modeling_multitask.py"} <= files
    assert not [name for name in files if name.startswith(("best/", "final/", "checkpoint-")) or name.endswith(".bin")]
    opened = MultiTaskModel.from_pretrained("team/mine", verify=True)
    assert (opened.encode("the cat") == model.cpu().encode("the cat")).all()
    with pytest.raises(ValueError, match="blocking=False"):
        trainer.push_to_hub(blocking=False)
