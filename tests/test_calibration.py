"""Calibrated probabilities at every door, without another label, loss, embedding or logit; and how they come about."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import expit, softmax
from transformers import pipeline

from helpers import trainer as helpers
from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.modeling_multitask import MultiTaskForSequenceClassification
from multitask_sentence.training.calibration.settling import settle_task
from multitask_sentence.training.report.abstention import describe_abstention
from multitask_sentence.training.report.calibration import describe_calibration, format_calibration
from multitask_sentence.training.trainer import MultiTaskTrainer

SENTENCES = ["the cat sat on the mat", "a dog ran", "good film", "", "bad news today"]
TEMPERATURES = {"mood": [2.5], "tags": [0.5, 1.0, 2.0, 4.0], "entails": [0.25]}


def logits_of(model: MultiTaskModel, sentences: list[str]) -> dict[str, np.ndarray]:
    inputs = model.tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        return {task: found.numpy() for task, found in model(**inputs).logits.items()}


def sharpen(model: MultiTaskModel, sentences: list[str]) -> MultiTaskModel:
    """Give the logits of every head the mean 0 and the deviation 3; in a new model they are all near 0."""
    for task, logits in logits_of(model, sentences).items():
        if logits.ndim == 2:
            last, factor = model.heads[task].layers[-1], 3 / torch.tensor(logits.std(axis=0))
            last.bias.data = factor * (last.bias.data - torch.tensor(logits.mean(axis=0)))
            last.weight.data *= factor[:, None]
    return model


@pytest.fixture
def calibrated_model(tiny_model: MultiTaskModel) -> MultiTaskModel:
    sharpen(tiny_model, SENTENCES)
    for task, temperatures in TEMPERATURES.items():
        tiny_model.config.change_task(task, temperatures=temperatures)
    return tiny_model


def test_predict_divides_logits_by_the_temperatures(calibrated_model: MultiTaskModel) -> None:
    logits, found = logits_of(calibrated_model, SENTENCES), calibrated_model.predict(SENTENCES)
    for task, probability in (("mood", lambda values: softmax(values, axis=-1)), ("tags", expit)):
        expected = probability(logits[task] / np.array(TEMPERATURES[task]))
        np.testing.assert_allclose(found[task]["probabilities"], expected, atol=1e-5)
        assert not np.allclose(found[task]["probabilities"], probability(logits[task]), atol=1e-2)


def test_temperatures_leave_labels_logits_and_embeddings_as_they_are(tiny_model: MultiTaskModel) -> None:
    logits, before = logits_of(tiny_model, SENTENCES), tiny_model.predict(SENTENCES, embeddings=True)
    for task, temperatures in TEMPERATURES.items():
        tiny_model.config.change_task(task, temperatures=temperatures)
    after = tiny_model.predict(SENTENCES, embeddings=True)
    np.testing.assert_array_equal(after["embedding"], before["embedding"])
    np.testing.assert_array_equal(after["rating"]["values"], before["rating"]["values"])
    assert after["mood"]["labels"] == before["mood"]["labels"]
    assert after["tags"]["labels"] == before["tags"]["labels"]  # the thresholds are 0.5, which no temperature moves
    for task, found in logits_of(tiny_model, SENTENCES).items():
        np.testing.assert_array_equal(found, logits[task])


@pytest.mark.parametrize("task", ["mood", "tags"])
def test_sequence_classification_gives_the_same_probabilities_and_the_loss_of_before(
    tiny_model: MultiTaskModel, task: str, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "before")
    tiny_model.config.change_task(task, temperatures=TEMPERATURES[task])
    tiny_model.save_pretrained(tmp_path / "after")
    inputs = tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    labels = torch.tensor([0, 1, 2, 1, 0]) if task == "mood" else torch.ones(5, 4)
    found = {}
    for name in ("before", "after"):
        view = MultiTaskForSequenceClassification.from_pretrained(tmp_path / name, head=task)
        with torch.no_grad():
            found[name] = view(**inputs, labels=labels)
    assert torch.equal(found["after"].loss, found["before"].loss)
    expected = found["before"].logits / torch.tensor(TEMPERATURES[task])
    torch.testing.assert_close(found["after"].logits, expected, rtol=0, atol=0)


def test_pipelines_give_calibrated_scores(calibrated_model: MultiTaskModel, tmp_path: Path) -> None:
    calibrated_model.save_pretrained(tmp_path)
    expected = calibrated_model.predict(SENTENCES, "mood", as_list=True)
    view = MultiTaskForSequenceClassification.from_pretrained(tmp_path, head="mood")
    classify = pipeline("text-classification", model=view, tokenizer=calibrated_model.tokenizer, top_k=None)
    for row, wanted in zip(classify(SENTENCES), expected, strict=True):
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(wanted["mood"]["scores"], abs=1e-5)
    answers = pipeline("multitask", model=calibrated_model)(SENTENCES, head="mood")
    assert [answer["mood"] for answer in answers] == [wanted["mood"] for wanted in expected]


def test_temperatures_are_saved_with_the_model_and_only_where_there_are_any(
    calibrated_model: MultiTaskModel, tmp_path: Path
) -> None:
    calibrated_model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["tasks"]
    assert {task: settings["temperatures"] for task, settings in saved.items() if "temperatures" in settings} == (
        TEMPERATURES
    )
    again = MultiTaskModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        again.predict(SENTENCES)["mood"]["probabilities"], calibrated_model.predict(SENTENCES)["mood"]["probabilities"]
    )


@pytest.mark.parametrize(
    ("task", "temperatures", "message"),
    [
        ("mood", [1.0, 2.0], r"tasks\.mood\.temperatures is \[1\.0, 2\.0\], but should hold 1 number above 0"),
        ("tags", [1.0], r"tasks\.tags\.temperatures is \[1\.0\], but should hold 4 numbers above 0"),
        ("mood", [0.0], r"tasks\.mood\.temperatures is \[0\.0\]"),
        ("rating", [1.0], r"tasks\.rating\.temperatures has no meaning for problem_type regression"),
    ],
)
def test_wrong_temperatures_are_refused(
    all_tasks: dict[str, Any], task: str, temperatures: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(tasks={task: {**all_tasks[task], "temperatures": temperatures}})


def test_added_label_has_the_temperature_1(calibrated_model: MultiTaskModel) -> None:
    calibrated_model.add_labels("tags", ["weather"])
    calibrated_model.add_labels("mood", ["mixed"])
    assert calibrated_model.config.tasks["tags"].temperatures == [*TEMPERATURES["tags"], 1.0]
    assert calibrated_model.config.tasks["mood"].temperatures == TEMPERATURES["mood"]


# Settling


def multi_label_rows(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two labels that are three times as large as they should be, one of them seldom right from 0.5 on."""
    random = np.random.default_rng(3)
    true = random.normal(loc=[0.0, -1.5], scale=1.0, size=(rows, 2))
    labels = random.random((rows, 2)) < expit(true)
    return torch.tensor(3 * true, dtype=torch.float32), torch.tensor(labels, dtype=torch.float32)


def test_settling_moves_thresholds_so_that_no_label_changes() -> None:
    task = MultiTaskConfig(tasks={"tags": {"problem_type": "multi_label_classification", "labels": ["a", "b"]}}).tasks[
        "tags"
    ]
    logits, labels = multi_label_rows(4000)
    plain, why_not = settle_task(task, logits, labels, "none")
    assert plain["temperatures"] == [] and why_not == "the recipe says calibration: none"
    settled, why_not = settle_task(task, logits, labels)
    assert why_not is None
    assert settled["temperatures"] == pytest.approx([3, 3], rel=0.1)
    assert settled["thresholds"][1] > 2 * plain["thresholds"][1]
    chosen = (logits / torch.tensor(settled["temperatures"])).sigmoid() >= torch.tensor(settled["thresholds"])
    assert torch.equal(chosen, logits.sigmoid() >= torch.tensor(plain["thresholds"]))


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
def test_too_few_validation_rows_are_named(problem_type: str) -> None:
    task = MultiTaskConfig(tasks={"topic": {"problem_type": problem_type, "labels": ["a", "b"]}}).tasks["topic"]
    logits, labels = multi_label_rows(99)
    labels = labels if task.kind.is_multi_label else labels[:, 0].long()
    changes, why_not = settle_task(task, logits, labels)
    assert changes["temperatures"] == []
    assert why_not == "it has 99 validation rows, and 100 are needed"


def test_undefined_logits_are_left_out() -> None:
    task = MultiTaskConfig(tasks={"topic": {"problem_type": "single_label_classification", "labels": ["a", "b"]}})
    changes, why_not = settle_task(task.tasks["topic"], torch.full((200, 2), torch.nan), torch.arange(200) % 2)
    assert changes["temperatures"] == [] and "no better than chance" in why_not


@pytest.fixture
def trainer(tmp_path: Path) -> MultiTaskTrainer:
    """One whose labels are drawn from the model's own probabilities at the temperatures 3 and 0.5."""
    names = ["sentiment", "tags"]
    model = helpers.make_model(helpers.make_backbone(tmp_path / "backbone"), tuple(names))
    sharpen(model, helpers.make_sentences(100, 0))
    random = np.random.default_rng(4)

    def rows(count: int, seed: int) -> Dataset:
        sentences = helpers.make_sentences(count, seed)
        logits = logits_of(model, sentences)
        return Dataset.from_dict(
            {
                "sentences": [[sentence] for sentence in sentences],
                "label_sentiment": [random.choice(3, p=row) for row in softmax(logits["sentiment"] / 3, axis=-1)],
                "label_tags": (random.random((count, 2)) < expit(logits["tags"] / 0.5)).astype(float).tolist(),
            }
        )

    data = LabelledSet(names, {"train": rows(4, 1), "validation": rows(1500, 2), "test": rows(1500, 3)})
    return helpers.make_trainer(model, [data], tmp_path / "run")


def test_calibrating_finds_the_temperatures_and_keeps_every_score(trainer: MultiTaskTrainer) -> None:
    trainer.choose_thresholds()
    before, _ = trainer.evaluate_and_answer("test", "test")
    assert trainer.calibrate() == {}
    after, answers = trainer.evaluate_and_answer("test", "test")
    scores = [name for name in before if not name.endswith(("runtime", "per_second"))]
    assert {name: after[name] for name in scores} == {name: before[name] for name in scores}
    tasks = trainer.model.config.tasks
    assert tasks["sentiment"].temperatures == pytest.approx([3], rel=0.15)
    assert tasks["tags"].temperatures == pytest.approx([0.5, 0.5], rel=0.25)

    found = describe_calibration(trainer.tasks, {"test": answers}, {})
    assert set(found) == {"sentiment", "tags"}
    assert found["sentiment"]["temperatures"] == tasks["sentiment"].temperatures
    for task in found:
        for name, share in (("expected_calibration_error", 0.5), ("brier_score", 1)):
            assert found[task]["after"][name] < share * found[task]["before"][name]
    assert sum(found["sentiment"]["after"]["forecasts"]) == 1500
    assert sum(found["tags"]["after"]["forecasts"]) == 3000


def test_thresholds_that_are_chosen_alone_say_that_temperatures_are_given_up(
    trainer: MultiTaskTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trainer.choose_thresholds()
    assert "temperatures" not in caplog.text
    trainer.tasks["tags"] = trainer.model.config.change_task("tags", temperatures=[0.5, 0.5])
    trainer.choose_thresholds()
    assert trainer.tasks["tags"].temperatures == []
    assert (
        "tags: temperatures are given up, because thresholds are chosen alone. `calibrate` chooses both" in caplog.text
    )


def test_calibrating_chooses_the_confidence_that_keeps_a_risk(trainer: MultiTaskTrainer) -> None:
    trainer.tasks["sentiment"] = trainer.model.config.change_task("sentiment", abstain={"risk": 0.35})
    trainer.tasks["tags"] = trainer.model.config.change_task("tags", abstain={"risk": 0.001})
    trainer.calibrate()
    assert trainer.model.config.tasks["tags"].abstain.confidence is None
    answers = {split: trainer.evaluate_and_answer(split, split)[1] for split in ("validation", "test")}
    found = describe_abstention(trainer.tasks, answers)
    validation, test = (found["sentiment"]["splits"][split] for split in ("validation", "test"))
    assert found["sentiment"]["confidence"] == trainer.model.config.tasks["sentiment"].abstain.confidence > 0.5
    assert validation["coverage"] in (np.arange(1, 21) / 20).round(6), "one of the candidates"
    assert 0.2 < validation["coverage"] < 0.95
    assert validation["risk"] < 0.35 and test["risk"] < 0.35
    everything = found["sentiment"]["curve"]["risk"][-1]
    assert everything > 0.35, "else there is nothing to abstain from"
    given = trainer.model.predict(trainer.evaluations["test"].sentences, "sentiment")["sentiment"]["labels"]
    assert sum(label is not None for label in given) == test["answered"]


def test_forecasts_before_are_those_of_no_temperature(trainer: MultiTaskTrainer) -> None:
    _, uncalibrated = trainer.evaluate_and_answer("test", "test")
    np.testing.assert_array_equal(uncalibrated["sentiment"].forecasts[0], uncalibrated["sentiment"].forecasts[1])
    trainer.calibrate()
    _, answers = trainer.evaluate_and_answer("test", "test")
    np.testing.assert_array_equal(answers["sentiment"].forecasts[0], uncalibrated["sentiment"].forecasts[0])


def test_calibrating_again_does_not_divide_twice(trainer: MultiTaskTrainer) -> None:
    trainer.calibrate()
    first = {name: task.to_dict() for name, task in trainer.model.config.tasks.items()}
    trainer.calibrate()
    assert {name: task.to_dict() for name, task in trainer.model.config.tasks.items()} == first
    assert trainer.calibrate(calibration="none").keys() == {"sentiment", "tags"}
    assert trainer.model.config.tasks["sentiment"].temperatures == []


def test_table_shows_both_sides_and_names_what_was_left_out() -> None:
    side = {"expected_calibration_error": 0.25, "brier_score": 0.5}
    after = {"expected_calibration_error": 0.125, "brier_score": 0.375}
    entry = {"split": "test", "temperatures": [], "before": side, "after": None, "left_out": "it has 3 rows"}
    text = format_calibration(
        {"mood": {**entry, "temperatures": [0.5, 2.0], "after": after, "left_out": None}, "topic": entry}
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows[2] == ["mood", "test", "0.50", "to", "2.00", "0.2500", "0.1250", "0.5000", "0.3750"]
    assert rows[3] == ["topic", "test", "none", "0.2500", "-", "0.5000", "-"]
    assert text.endswith("topic is not calibrated: it has 3 rows.")
    many = {f"task{number}": entry for number in range(12)}
    assert "task8, task9 and 2 more are not calibrated, each because it has 3 rows." in format_calibration(many)
