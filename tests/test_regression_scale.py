"""Regression in the units of the labels: whatever they are, a task learns alike, and its neighbours do not notice."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.configuration_multitask import MultiTaskConfig
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.evaluation.scores import Evaluation
from multitask_sentence.training.losses import scale as loss_scale
from multitask_sentence.training.losses.losses import mse

SENTENCES = ["word1 word2", "word90 word3 word4", "word44"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone") / "bert")


def in_units(labelled_set: LabelledSet, factor: float, shift: float) -> LabelledSet:
    """The same rows with ratings of another scale."""

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        rating = row["label_rating"]
        return {**row, "label_rating": None if rating is None else factor * rating + shift}

    return LabelledSet(labelled_set.tasks, {split: rows.map(convert) for split, rows in labelled_set.splits.items()})


def rated_set(**counts: int) -> LabelledSet:
    return helpers.make_set(["sentiment", "rating"], {"rating": 0.7}, **counts)


def train(backbone: Path, folder: Path, labelled_set: LabelledSet, **kwargs: Any) -> Any:
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ("sentiment", "rating")), [labelled_set], folder, **kwargs
    )
    trainer.train()
    return trainer


# ---- training ----


def test_labels_in_other_units_train_the_same_weights_and_give_the_same_values_in_those_units(backbone, tmp_path):
    labelled_set = rated_set(train=48, validation=20)
    # Not AdamW, which blows the last bits of gradients that are 0 in truth (those of key biases) up to whole steps.
    options = {"num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.02}
    plain = train(backbone, tmp_path / "plain", labelled_set, **options)
    scaled = train(backbone, tmp_path / "scaled", in_units(labelled_set, 250.0, 4000.0), **options)

    weights = scaled.model.state_dict()
    for name, expected in plain.model.state_dict().items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    values = plain.model.predict(SENTENCES, tasks="rating")["rating"]["values"]
    in_other_units = scaled.model.predict(SENTENCES, tasks="rating")["rating"]["values"]
    np.testing.assert_allclose(in_other_units, 4000 + 250 * values, atol=0.5)


def test_scores_from_2_to_98_are_learnt(backbone, tmp_path):
    labelled_set = in_units(rated_set(train=160, validation=40), 48.0, 50.0)
    trainer = train(
        backbone, tmp_path, labelled_set, num_train_epochs=12, learning_rate=3e-3, per_device_train_batch_size=16
    )
    rows = [row for row in labelled_set.splits["train"] if row["label_rating"] is not None]
    labels = np.array([row["label_rating"] for row in rows])
    values = trainer.model.predict([row["sentences"][0] for row in rows], tasks="rating")["rating"]["values"]
    assert labels.std() > 20, "premise"
    assert np.abs(values - labels).mean() < 8


def test_scale_is_that_of_the_labelled_rows_that_training_draws_from(backbone, tmp_path, caplog):
    labelled_set = in_units(rated_set(train=60, validation=20), 10.0, 70.0)
    model = helpers.make_model(backbone, ("sentiment", "rating"))
    settings = model.config.tasks["rating"]
    assert (settings.target_mean, settings.target_deviation) == (None, None), "premise: the head is new"
    options = {"mixture": {"max_rows": {"rating": 25}}}
    trainer = helpers.make_trainer(model, [labelled_set], tmp_path, options)
    drawn = trainer.train_dataset.sets[0]["label_rating"][:]
    drawn = [rating for rating in drawn if rating is not None]
    assert 5 < len(drawn) < 25, "premise: capped, and not all labelled"
    settings = model.config.tasks["rating"]
    assert settings.target_mean == pytest.approx(np.mean(drawn), rel=1e-12)
    assert settings.target_deviation == pytest.approx(np.std(drawn), rel=1e-12)
    announced = [line for line in caplog.messages if line.startswith("rating: targets are standardised")]
    assert len(announced) == 1
    assert f"{len(drawn)} training rows" in announced[0]


@pytest.mark.parametrize("ratings", [[0.1] * 8, [1987.0]])
def test_equal_targets_and_a_single_one_have_their_value_as_mean_and_deviation_1(backbone, tmp_path, ratings, caplog):
    rows = Dataset.from_dict({"sentences": [[f"word{n}"] for n in range(len(ratings))], "label_rating": ratings})
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ("rating",)), [LabelledSet(["rating"], {"train": rows})], tmp_path
    )
    settings = trainer.tasks["rating"]
    assert (settings.target_mean, settings.target_deviation) == (ratings[0], 1.0)
    assert any("there is nothing to learn" in line for line in caplog.messages)
    trainer.train()
    assert np.isfinite(trainer.model.predict("word1")["rating"]["values"])


def test_a_task_that_was_trained_before_keeps_its_scale(backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ("sentiment", "rating")), [in_units(rated_set(train=20), 10.0, 70.0)], tmp_path
    )
    trainer.model.save_pretrained(tmp_path / "saved")
    saved = trainer.tasks["rating"]
    reopened = MultiTaskModel.from_pretrained(tmp_path / "saved")
    again = helpers.make_trainer(reopened, [in_units(rated_set(train=20), 3.0, -7.0)], tmp_path)
    for key in ("target_mean", "target_deviation"):
        assert getattr(again.tasks["rating"], key) == getattr(saved, key)


# ---- models of before ----


def test_a_model_without_a_scale_opens_with_0_and_1_and_gives_what_its_head_gives(backbone, tmp_path):
    helpers.make_model(backbone, ("rating",)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for key in ("target_mean", "target_deviation"):  # as older code has saved it
        del config["tasks"]["rating"][key]
    file.write_text(json.dumps(config))
    model = MultiTaskModel.from_pretrained(tmp_path)
    settings = model.config.tasks["rating"]
    assert (settings.target_mean, settings.target_deviation) == (0.0, 1.0)
    inputs = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        expected = model.heads["rating"](output.sentence_embedding)
    torch.testing.assert_close(output.logits["rating"], expected, rtol=0, atol=0)
    trainer = helpers.make_trainer(model, [in_units(rated_set(train=20), 10.0, 70.0)], tmp_path)
    assert trainer.tasks["rating"].target_deviation == 1.0


def test_configuration_in_python_keeps_what_is_given():
    task = {"problem_type": "regression", "target_mean": 50, "target_deviation": 20}
    config = MultiTaskConfig(tasks={"rating": task})
    assert config.tasks["rating"].target_mean == 50.0
    assert complete_task("rating", {**task, "target_mean": None, "target_deviation": None}).target_mean is None


# ---- every door ----


@pytest.fixture(scope="module")
def saved(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaled")
    model = helpers.make_model(backbone, ("sentiment", "rating"))
    model.config.change_task("rating", target_mean=2010.0, target_deviation=5.0)
    model.save_pretrained(folder)
    return folder


def test_every_door_gives_values_in_the_units_of_the_labels(saved):
    model = AutoModel.from_pretrained(saved, trust_remote_code=True)
    inputs = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        standardised = model.heads["rating"](output.sentence_embedding).numpy()
    expected = 2010 + 5 * standardised
    assert np.abs(standardised).max() > 0.01, "premise"

    view = AutoModelForSequenceClassification.from_pretrained(saved, task="rating", trust_remote_code=True)
    with torch.no_grad():
        answers = {
            "forward": output.logits["rating"].numpy(),
            "predict": model.predict(SENTENCES)["rating"]["values"],
            "one head": view(**inputs).logits[:, 0].numpy(),
        }
    multitask = pipeline("multitask", model=str(saved), trust_remote_code=True)
    answers["pipeline"] = [row["rating"]["value"] for row in multitask(SENTENCES)]
    classify = pipeline(
        "text-classification", model=str(saved), trust_remote_code=True, model_kwargs={"head": "rating"}
    )
    answers["text-classification"] = [row["score"] for row in classify(SENTENCES)]
    for door, values in answers.items():
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-3, err_msg=door)


def test_one_head_view_has_the_loss_of_standardised_values(saved):
    view = AutoModelForSequenceClassification.from_pretrained(saved, task="rating", trust_remote_code=True)
    inputs = view.multitask.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    labels = torch.tensor([2000.0, 2010.0, 2020.0])
    output = view(**inputs, labels=labels)
    expected = (((output.logits[:, 0] - labels) / 5) ** 2).mean()
    torch.testing.assert_close(output.loss, expected)


def test_half_precision_keeps_years_apart(saved):
    full = MultiTaskModel.from_pretrained(saved)
    half = MultiTaskModel.from_pretrained(saved, dtype=torch.bfloat16)
    expected = full.predict(SENTENCES)["rating"]["values"]
    values = half.predict(SENTENCES)["rating"]["values"]
    assert np.ptp(expected) < 8, "premise: the next bfloat16 number after 2010 is 2016 or 2024"
    np.testing.assert_allclose(values, expected, rtol=0, atol=0.5)


def test_metrics_have_the_units_of_the_labels_and_the_loss_has_none(saved, tmp_path):
    model = MultiTaskModel.from_pretrained(saved)
    model.config.change_task("rating", metrics=["spearman", "mse", "mae"])
    labelled_set = in_units(rated_set(train=20, validation=30), 5.0, 2010.0)
    trainer = helpers.make_trainer(model, [labelled_set], tmp_path)
    scores = trainer.evaluate()
    evaluation = Evaluation([labelled_set], model.config.tasks, "validation")
    sentences = [evaluation.sentences[row] for row in evaluation.rows["rating"][:, 0]]
    errors = model.predict(sentences, tasks="rating")["rating"]["values"] - evaluation.labels["rating"].numpy()
    assert scores["eval_rating_mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert scores["eval_rating_mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
    assert scores["eval_rating_loss"] == pytest.approx((errors**2).mean() / 25, rel=1e-4)


def test_mse_counts_in_units_of_the_deviation():
    values, labels = torch.tensor([10.0, 40.0]), torch.tensor([30.0, 30.0])
    assert mse(values, labels, deviation=20.0).item() == pytest.approx(1 + 0.25)


# ---- one loss that dwarfs the others ----


def test_dwarfing_names_task_factor_and_remedy():
    warning = loss_scale.dwarfing({"a": 0.5, "score": 600.0, "b": 2.0, "idle": 0.0}, {"score": 1.0}, steps=10)
    assert "the weighted loss of score was 300 times that of every other task" in warning
    assert "Lower tasks.score.loss_weight, which is 1: with 0.003 it would be level with b" in warning


@pytest.mark.parametrize("losses", [{"a": 0.5, "b": 9.0}, {"a": 0.0, "b": 1e6}, {"a": 1e6}])
def test_usual_differences_and_single_tasks_are_no_dwarfing(losses):
    assert loss_scale.dwarfing(losses, dict.fromkeys(losses, 1.0), steps=10) is None


@pytest.mark.parametrize(
    ("weight", "balancing", "expected"), [(1e4, None, 1), (1.0, None, 0), (1e4, "dwa", 0)], ids=str
)
def test_training_warns_once_of_a_loss_that_dwarfs_the_others(
    backbone, tmp_path, monkeypatch, weight, balancing, expected
):
    warnings: list[str] = []
    monkeypatch.setattr(loss_scale.logger, "warning", warnings.append)
    model = helpers.make_model(backbone, ("sentiment", "rating"))
    model.config.change_task("rating", loss_weight=weight)
    trainer = helpers.make_trainer(
        model,
        [rated_set(train=48)],
        tmp_path,
        {"balancing": balancing},
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
    )
    trainer.train()
    assert len(warnings) == expected
    assert all("tasks.rating.loss_weight, which is 10000" in warning for warning in warnings)
