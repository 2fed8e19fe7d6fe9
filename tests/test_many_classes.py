"""Thousands of classes, a hundred tasks: what could grow with their square does not."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import f1_score, matthews_corrcoef

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.data.metrics import compute_metric
from multitask_sentence.data.metrics.bootstrap import paired_interval
from multitask_sentence.data.sampling.sampler import FILLER_ROW, MixtureDataset
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.card import model_card
from multitask_sentence.training.evaluation import scores as evaluation
from multitask_sentence.training.evaluation.scores import answer_task, task_scores
from multitask_sentence.training.report.confusion import count_confusion
from multitask_sentence.training.report.plots import draw_training
from multitask_sentence.training.report.results import write_json

MANY = 10_000
SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def seconds(function: Callable[[], Any]) -> float:
    """Of a processor, which other processes do not lengthen."""
    started = time.process_time()
    function()
    return time.process_time() - started


def random_classes(rows: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    references = generator.integers(num_labels, size=rows)
    predictions = np.where(generator.random(rows) < 0.5, references, generator.integers(num_labels, size=rows))
    return predictions, references


# ---- settings and metrics ----


def test_settings_of_40_000_labels_are_checked_in_a_moment():
    labels = [f"class {number}" for number in range(4 * MANY)]
    weights = dict.fromkeys(labels, 2.0)
    task = {"problem_type": SINGLE, "labels": labels, "loss_options": {"class_weights": weights}}
    assert seconds(lambda: complete_task("topic", task)) < 5
    with pytest.raises(ValueError, match="lists 'class 7' more than once"):
        complete_task("topic", {**task, "labels": [*labels, "class 7"]})


@pytest.mark.parametrize("num_labels", [2, 7])
def test_mcc_from_counts_is_that_of_scikit_learn(num_labels):
    predictions, references = random_classes(200, num_labels)
    expected = matthews_corrcoef(references, predictions)
    assert compute_metric("mcc", predictions, references)["mcc"] == pytest.approx(expected, abs=1e-12)


def test_metrics_of_10_000_classes_take_a_moment():
    predictions, references = random_classes(MANY, MANY)
    for metric in ("accuracy", "macro_f1", "macro_recall", "micro_f1", "mcc"):
        assert seconds(lambda metric=metric: compute_metric(metric, predictions, references)) < 5, metric
    assert seconds(lambda: paired_interval("macro_f1", predictions, references, references, resamples=100)) < 20


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "micro_f1"])
def test_metric_of_arrays_is_that_of_lists(metric):
    generator = np.random.default_rng(2)
    for predictions, references in (generator.integers(0, 2, (2, 50, 4)), random_classes(50, 5)):
        found = compute_metric(metric, predictions.astype(np.uint8), references)
        assert found == compute_metric(metric, predictions.tolist(), references.tolist())


def test_arrays_that_no_metric_takes_are_refused():
    with pytest.raises(ValueError, match="should hold at least one row"):
        compute_metric("accuracy", np.array([]), np.array([]))
    with pytest.raises(ValueError, match=r"should have one shape\. Found \(3,\) and \(2,\)"):
        compute_metric("accuracy", np.arange(3), np.arange(2))
    with pytest.raises(ValueError, match="should hold classes, which are whole numbers"):
        compute_metric("accuracy", np.array([0.5, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="Multi-label rows should hold one 0 or 1 for every label"):
        compute_metric("macro_f1", np.array([[0, 2]]), np.array([[0, 1]]))


# ---- evaluation ----


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_2_000_rows_of_5_000_classes_are_measured_without_lists(tiny_backbone, monkeypatch, problem_type):
    settings = {"problem_type": problem_type, "labels": [f"class {number}" for number in range(5_000)]}
    settings["metrics"] = ["macro_f1", "accuracy"]
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"topic": settings})
    if problem_type == MULTI:
        model.config.change_task("topic", thresholds=[0.51] * 5_000)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2_000, 32, generator=generator)
    rows, labels = torch.arange(2_000)[:, None], torch.randint(5_000, (2_000,), generator=generator)
    if problem_type == MULTI:
        labels = torch.nn.functional.one_hot(labels, 5_000).float()
    model.heads["topic"].layers[-1].weight.data *= 30

    lists: list[Any] = []
    monkeypatch.setattr(evaluation, "compute_metric", lambda *given: lists.append(given) or compute_metric(*given))
    answers = answer_task(model, "topic", embeddings, rows, labels, batch_size=64, with_probabilities=True)
    found = task_scores(model.config.tasks["topic"], answers)
    assert lists
    assert all(isinstance(given, np.ndarray) for _, *arrays in lists for given in arrays)
    assert answers.probabilities.shape == answers.classes.shape == (2_000, evaluation.MOST_PROBABLE)
    with torch.no_grad():
        logits = model.heads["topic"](embeddings)
    expected = (logits.sigmoid() >= 0.51).int() if problem_type == MULTI else logits.argmax(dim=1)
    np.testing.assert_array_equal(answers.predictions, expected)
    sparse = csr_array if problem_type == MULTI else np.asarray  # dense, scikit-learn takes ten seconds
    assert found["macro_f1"] == pytest.approx(
        f1_score(*map(sparse, (labels, expected)), average="macro", zero_division=0)
    )


# ---- a hundred tasks ----


def test_rows_of_a_batch_are_those_read_one_by_one():
    sets = [helpers.make_rows(["sentiment", "tags"], 9, seed=1), helpers.make_rows(["sentiment"], 5, seed=2)]
    dataset = MixtureDataset(sets)
    indices = [13, 0, FILLER_ROW, 8, 9, 0]
    assert dataset.__getitems__(indices) == [dataset[index] for index in indices]


@pytest.mark.usefixtures("drawn_pictures")
def test_a_hundred_tasks_have_ten_pictures_and_curves_without_names(tmp_path, monkeypatch):
    tasks = {f"t{number}": complete_task("t", {"problem_type": SINGLE, "labels": ["a", "b"]}) for number in range(100)}
    wrong = {"t7", "t23", "t24", "t40", "t41", "t42", "t50", "t51", "t52", "t99"}
    right = np.array([0, 1, 1, 0])
    counted = {task: count_confusion(1 - right if task in wrong else right, right, 2) for task in tasks}
    drawn: list[str] = []
    monkeypatch.setattr(model_card, "draw_confusion", lambda path, task, *rest: drawn.append(task))
    settings = {name: task.to_dict() for name, task in tasks.items()}
    results = {"steps": 0, "history": [], "confusion": counted, "tasks": settings}
    assert set(model_card.draw_pictures(tmp_path, results, tasks).values()) == {
        f"confusion_{task}.png" for task in wrong
    }
    assert set(drawn) == wrong

    history = [{"step": step, "loss": 50.0, **{f"loss_{task}": 0.5 for task in tasks}} for step in (1, 2, 3)]
    assert draw_training(tmp_path / "training.png", history, tasks)
    assert (tmp_path / "training.png").stat().st_size < 200_000


def test_results_are_written_with_lists_on_one_line(tmp_path):
    content = {"a": {"b": [1, 2.5, None], "empty": {}, "none": []}, "history": [{"step": 1}, {"step": 2, "loss": "x"}]}
    write_json(tmp_path / "results.json", {**content, "nan": float("nan")})
    text = (tmp_path / "results.json").read_text()
    assert json.loads(text) == {**content, "nan": None}
    assert '    "b": [1, 2.5, null],\n' in text
    assert '  "history": [\n    {\n      "step": 1\n    },\n' in text
