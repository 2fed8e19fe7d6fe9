"""What an adapter's base has to be: found by whoever opens the model, and of the same vocabulary."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from peft import LoraConfig
from transformers import PreTrainedModel

from multitask_sentence import MultiTaskModel
from multitask_sentence.train import main
from multitask_sentence.training.report import publish

TASKS = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}
LORA = {"r": 3, "target_modules": ["query", "value"]}
NOBODY_ELSE = r"trained on the folder {base}, which nobody else has.*model\.merge_adapter\(\)"


@pytest.fixture
def model(tiny_backbone: str) -> MultiTaskModel:
    """With an adapter on a folder."""
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    return model.eval()


@pytest.fixture(autouse=True)
def asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have gone to the Hub."""
    asked: list[str] = []
    monkeypatch.setattr(publish, "check_can_push", lambda repo_id, token=None: asked.append(repo_id))
    monkeypatch.setattr(PreTrainedModel, "push_to_hub", lambda model, repo_id, **options: asked.append(repo_id))
    return asked


def test_push_of_an_adapter_on_a_folder_is_refused_and_merging_it_helps(
    model: MultiTaskModel, tiny_backbone: str, tmp_path: Path, asked_of_the_hub: list[str]
) -> None:
    message = NOBODY_ELSE.format(base=tiny_backbone)
    with pytest.raises(ValueError, match=message):
        model.push_to_hub("team/mine")
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="team/mine")
    assert not (tmp_path / "mine").exists()
    assert asked_of_the_hub == []
    model.merge_adapter()
    model.push_to_hub("team/mine")
    assert asked_of_the_hub == ["team/mine"]


def test_push_of_an_adapter_on_a_base_of_the_hub_is_not_refused(
    model: MultiTaskModel, asked_of_the_hub: list[str]
) -> None:
    model.config.base_name_or_path = "team/base"
    model.push_to_hub("team/mine")
    assert asked_of_the_hub == ["team/mine"]


@pytest.mark.parametrize("base", ["as saved", "/nowhere/base"])
def test_push_of_a_folder_with_an_adapter_on_another_folder_is_refused(
    model: MultiTaskModel, tmp_path: Path, asked_of_the_hub: list[str], base: str
) -> None:
    model.save_pretrained(tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    config = json.loads(path.read_text())
    if base != "as saved":
        path.write_text(json.dumps({**config, "base_name_or_path": base}))
    with pytest.raises(
        ValueError, match=r"mine holds an adapter that was trained on the folder \S+, which nobody else"
    ):
        publish.push_folder(tmp_path / "mine", "team/mine")
    assert asked_of_the_hub == []


def test_remedy_that_a_refused_push_names_works(model: MultiTaskModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "mine")
    expected = model.encode("the cat sat")
    merged = MultiTaskModel.from_pretrained(tmp_path / "mine")
    merged.merge_adapter()
    merged.save_pretrained(tmp_path / "other")
    assert json.loads((tmp_path / "other" / "config.json").read_text())["base_name_or_path"] is None
    np.testing.assert_allclose(
        MultiTaskModel.from_pretrained(tmp_path / "other").encode("the cat sat"), expected, atol=1e-5
    )


def test_recipe_that_continues_a_folder_with_an_adapter_to_push_is_refused_at_start(
    model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.merge_adapter()
    model.save_pretrained(tmp_path / "mine")
    (tmp_path / "train.csv").write_text("text,mood\na cat,negative\na dog,positive\n")
    mood = {
        **TASKS["mood"],
        "dataset": {"path": "csv", "data_files": {"train": "train.csv"}},
        "columns": {"sentence": "text", "label": "mood"},
    }
    training = {"output_dir": str(tmp_path / "run"), "push_to_hub": True, "hub_model_id": "team/mine", "use_cpu": True}
    recipe = {
        "continue_from": str(tmp_path / "mine"),
        "peft": {**LORA, "save": "adapter"},
        "tasks": {"mood": mood},
        "training": training,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / "recipe.yaml")])
    with pytest.raises(
        SystemExit, match=r"peft\.save is 'adapter', but continue_from is the folder \S+mine, where no"
    ):
        main()


@pytest.mark.parametrize("resized", ["before", "after"])
def test_adapter_on_a_resized_vocabulary_is_refused_at_saving_and_both_remedies_work(
    tiny_backbone: str, tmp_path: Path, resized: str
) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    if resized == "before":
        model.resize_token_embeddings(107)
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    if resized == "after":
        model.resize_token_embeddings(107)
    with pytest.raises(
        ValueError, match=r"resized to 107 rows, but the adapter's base \S+ has 99, .*merge_adapter\(\)"
    ):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    expected = model.eval().encode("the cat sat")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    opened = MultiTaskModel.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(opened.encode("the cat sat"), expected, atol=1e-5)
    opened.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    opened.eval().save_pretrained(tmp_path / "again")
    again = MultiTaskModel.from_pretrained(tmp_path / "again")
    assert again.config.vocab_size == 107
    assert np.array_equal(again.encode("the cat sat"), opened.encode("the cat sat"))


@pytest.mark.parametrize(("base", "place"), [("base", "base/lora"), (".models/base", ".")])
def test_base_is_found_wherever_it_lies_as_seen_from_the_adapter(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, place: str
) -> None:
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS).save_pretrained(tmp_path / base)
    model = MultiTaskModel.from_pretrained(tmp_path / base)
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False))
    model.eval().save_pretrained(tmp_path / place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = MultiTaskModel.from_pretrained(tmp_path / place)
    assert np.array_equal(opened.encode("the cat sat"), model.encode("the cat sat"))


def test_base_given_by_a_relative_path_is_found_after_the_process_went_elsewhere(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_backbone).parent)
    model = MultiTaskModel.from_backbone(Path(tiny_backbone).name, tasks=TASKS)
    monkeypatch.chdir(tmp_path)
    model.add_adapter(LoraConfig(**LORA))
    assert model.config.base_name_or_path == tiny_backbone


def test_adapter_in_a_subfolder_finds_its_base_and_is_a_base_itself(
    model: MultiTaskModel, tiny_backbone: str, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "runs" / "mine")
    opened = MultiTaskModel.from_pretrained(tmp_path / "runs", subfolder="mine")
    assert np.array_equal(opened.encode("the cat sat"), model.encode("the cat sat"))
    opened.merge_adapter()
    opened.add_adapter(LoraConfig(**LORA))
    assert opened.config.base_name_or_path == str(tmp_path / "runs" / "mine")
