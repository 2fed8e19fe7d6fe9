"""The view of one head as a plain sequence classifier."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from multitask_sentence import MultiTaskModel

SENTENCES = ["the cat sat on the mat .", "a good film", "bad market news today !"]


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path) -> str:
    tiny_model.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def open_view(folder: str, **kwargs):
    return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, **kwargs)


@pytest.mark.parametrize(
    ("task", "labels"),
    [("mood", torch.tensor([0, 2, 1])), ("tags", torch.eye(4)[:3]), ("rating", torch.tensor([0.5, -1.0, 2.0]))],
)
def test_view_gives_the_logits_and_the_loss_of_its_task(
    tiny_model: MultiTaskModel, folder: str, task: str, labels: torch.Tensor
) -> None:
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    expected = tiny_model(**inputs, task=task).logits[task]
    output = open_view(folder, head=task)(**inputs, labels=labels)
    torch.testing.assert_close(output.logits.view_as(expected), expected, rtol=0, atol=0)
    loss = {
        "mood": lambda: F.cross_entropy(expected, labels),
        "tags": lambda: F.binary_cross_entropy_with_logits(expected, labels),
        "rating": lambda: F.mse_loss(expected, labels),
    }[task]()
    torch.testing.assert_close(output.loss, loss)


def test_view_takes_the_word_that_configurations_use_as_well(folder: str, tmp_path: Path) -> None:
    view = open_view(folder, task="tags")
    assert view.config.task == "tags"
    view.save_pretrained(tmp_path / "view")
    assert open_view(str(tmp_path / "view"), head="mood").config.task == "mood"


def test_view_carries_the_labels_of_its_task(folder: str) -> None:
    config = open_view(folder, task="mood").config
    assert config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    assert config.problem_type == "single_label_classification"


def test_saved_view_remembers_its_task_and_still_opens_as_the_whole_model(
    tiny_model: MultiTaskModel, folder: str, tmp_path: Path
) -> None:
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    view = open_view(folder, task="mood")
    view.save_pretrained(tmp_path / "view")
    again = open_view(str(tmp_path / "view"))
    assert again.task == "mood"
    assert torch.equal(again(**inputs).logits, view(**inputs).logits)
    whole = AutoModel.from_pretrained(tmp_path / "view", trust_remote_code=True)
    expected, found = tiny_model(**inputs), whole(**inputs)
    assert torch.equal(found.sentence_embedding, expected.sentence_embedding)
    assert all(torch.equal(found.logits[task], expected.logits[task]) for task in expected.logits)


def test_view_without_a_task_takes_the_only_one_or_names_the_choices(
    tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "many")
    with pytest.raises(ValueError, match=r"No task was named.*There are: mood, tags, rating"):
        open_view(str(tmp_path / "many"))
    tiny_model.remove_task("tags")
    tiny_model.remove_task("rating")
    tiny_model.save_pretrained(tmp_path / "one")
    assert open_view(str(tmp_path / "one")).task == "mood"


def test_view_shows_other_names_for_the_labels_and_keeps_them(folder: str, tmp_path: Path) -> None:
    names = {0: "bad", 1: "so so", 2: "good"}
    view = open_view(folder, task="mood", id2label=names)
    assert view.config.id2label == names
    assert view.config.label2id == {"bad": 0, "so so": 1, "good": 2}
    view.save_pretrained(tmp_path / "view")
    assert open_view(str(tmp_path / "view")).config.id2label == names
    assert open_view(folder, task="mood", num_labels=3).config.id2label == {0: "negative", 1: "neutral", 2: "positive"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_labels": 5}, "asks for 5 labels, but task 'mood' has 3: negative, neutral, positive"),
        ({"id2label": {0: "bad", 1: "good"}}, "asks for 2 labels, but task 'mood' has 3"),
        ({"id2label": {0: "positive", 1: "neutral", 2: "negative"}}, "keep what they mean"),
    ],
)
def test_view_refuses_labels_that_contradict_its_task(folder: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_view(folder, task="mood", **given)


def test_saved_view_opens_for_another_task_with_its_own_labels(folder: str, tmp_path: Path) -> None:
    open_view(folder, task="mood").save_pretrained(tmp_path / "view")
    view = open_view(str(tmp_path / "view"), task="tags")
    assert list(view.config.id2label.values()) == ["animal", "place", "money", "time"]


def test_other_names_of_a_saved_view_are_those_of_its_own_task(tiny_backbone: str, tmp_path: Path) -> None:
    tasks = {
        name: {"problem_type": "single_label_classification", "labels": ["no", "yes"]} for name in ("mood", "spam")
    }
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(tmp_path / "model")
    open_view(str(tmp_path / "model"), head="mood", id2label={0: "nein", 1: "ja"}).save_pretrained(tmp_path / "view")
    shown = {head: open_view(str(tmp_path / "view"), head=head).config.id2label for head in ("mood", "spam")}
    assert shown == {"mood": {0: "nein", 1: "ja"}, "spam": {0: "no", 1: "yes"}}
    assert open_view(str(tmp_path / "view")).config.id2label == {0: "nein", 1: "ja"}
    other = open_view(str(tmp_path / "view"), head="spam", id2label={0: "non", 1: "oui"})
    assert other.config.id2label == {0: "non", 1: "oui"}


@pytest.mark.parametrize("names", [None, {0: "bad", 1: "so so", 2: "good"}])
def test_saved_view_follows_its_task_when_that_changes(folder: str, tmp_path: Path, names: dict | None) -> None:
    open_view(folder, task="mood", **({"id2label": names} if names else {})).save_pretrained(tmp_path / "view")
    model = MultiTaskModel.from_pretrained(tmp_path / "view")
    model.add_labels("mood", ["mixed"])
    model.save_pretrained(tmp_path / "added")
    view = open_view(str(tmp_path / "added"))
    expected = [*(names or {0: "negative", 1: "neutral", 2: "positive"}).values(), "mixed"]
    assert (view.task, list(view.config.id2label.values())) == ("mood", expected)
    assert view.config.label2id["mixed"] == 3
    for task in ("mood", "rating"):
        model.remove_task(task)
    model.save_pretrained(tmp_path / "removed")
    view = open_view(str(tmp_path / "removed"))
    assert (view.task, len(view.config.id2label)) == ("tags", 4)


@pytest.mark.parametrize("task", ["moood", "entails", "similarity"])
def test_view_refuses_an_unknown_task_and_one_that_reads_pairs(folder: str, task: str) -> None:
    with pytest.raises(ValueError, match=f"There is no task '{task}' of this kind"):
        open_view(folder, task=task)


def test_text_classification_pipeline_answers_as_predict_does(tiny_model: MultiTaskModel, folder: str) -> None:
    classify = pipeline("text-classification", model=folder, trust_remote_code=True, model_kwargs={"head": "mood"})
    expected = tiny_model.predict(SENTENCES, tasks="mood")["mood"]
    answers = classify(SENTENCES)
    assert [answer["label"] for answer in answers] == expected["labels"]
    assert [answer["score"] for answer in answers] == pytest.approx(
        expected["probabilities"].max(axis=1).tolist(), abs=1e-6
    )


def test_gradient_of_the_view_reaches_the_backbone(tiny_model: MultiTaskModel, folder: str) -> None:
    view = open_view(folder, task="mood").train()
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    view(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    gradients = [parameter.grad for parameter in view.multitask.backbone.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_saved_folder_names_every_class_and_carries_its_code(folder: str) -> None:
    config = json.loads((Path(folder) / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    for reference in [*config["auto_map"].values(), config["custom_pipelines"]["multitask"]["impl"]]:
        assert (Path(folder) / f"{reference.split('.')[0]}.py").is_file()
