"""What is confused, counted sparse: against scikit-learn's full matrices, and small with many classes."""

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix, precision_recall_fscore_support

from multitask_sentence.training.report import confusion
from multitask_sentence.training.report.confusion import (
    count_confusion,
    matrix_of,
    most_confused,
    read_confusion,
    worst_classes,
)
from multitask_sentence.training.report.plots import draw_confusion
from multitask_sentence.training.run.output_folder import write_json


def random_classes(rows: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    references = generator.integers(num_labels, size=rows)
    predictions = np.where(generator.random(rows) < 0.5, references, generator.integers(num_labels, size=rows))
    return predictions, references


def test_pairs_and_classes_are_counted():
    found = count_confusion(np.array([0, 2, 2, 0]), np.array([0, 2, 0, 0]), 3)
    assert found == {
        "rows": 4,
        "labelled": [3, 0, 1],
        "predicted": [2, 0, 2],
        "right": [2, 0, 1],
        "precision": [1.0, 0.0, 0.5],
        "recall": [0.6667, 0.0, 1.0],
        "f1": [0.8, 0.0, 0.6667],
        "confused": [[0, 2, 1]],
        "not_listed": 0,
    }


def test_counts_are_those_of_scikit_learn():
    predictions, references = random_classes(300, 9)
    found = count_confusion(predictions, references, 9)
    matrix = confusion_matrix(references, predictions, labels=range(9))
    np.testing.assert_array_equal(matrix_of(found, list(range(9))), matrix)
    np.testing.assert_array_equal(matrix_of(found, [7, 2]), matrix[np.ix_([7, 2], [7, 2])])
    assert read_confusion({"labels": list("abcdefghi"), "matrix": matrix.tolist(), "split": "test"}) == {
        **found,
        "split": "test",
    }
    *scores, _ = precision_recall_fscore_support(references, predictions, labels=range(9), zero_division=0)
    for name, expected in zip(("precision", "recall", "f1"), scores, strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_multi_label_counts_are_those_of_scikit_learn():
    generator = np.random.default_rng(4)
    predictions, references = generator.integers(0, 2, (2, 50, 5))
    found = count_confusion(predictions, references, 5)
    matrix = multilabel_confusion_matrix(references, predictions)
    assert found["right"] == matrix[:, 1, 1].tolist()
    assert found["labelled"] == references.sum(axis=0).tolist()
    assert found["predicted"] == predictions.sum(axis=0).tolist()
    assert "confused" not in found
    assert read_confusion({"matrix": matrix.tolist(), "split": "validation"}) == {**found, "split": "validation"}


def test_a_prediction_is_needed_for_every_row():
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        count_confusion([0], [0, 1], 2)


def test_pairs_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confusion, "MOST_PAIRS", 1)
    found = count_confusion(np.array([1, 1, 2, 0]), np.array([0, 0, 0, 2]), 3)
    assert (found["confused"], found["not_listed"]) == ([[0, 1, 2]], 2)
    assert found["predicted"] == [1, 2, 1]


def test_worst_and_most_confused_classes():
    # Class 0: 2 of 3 right; class 1: none labelled, twice predicted; class 2: wrong once; class 3: right.
    found = count_confusion(np.array([0, 0, 1, 1, 3]), np.array([0, 0, 0, 2, 3]), 4)
    assert worst_classes(found, 5) == [2, 0, 3], "a class without a row has no F1 to be proud or ashamed of"
    assert most_confused(found, 2) == [0, 1]


@pytest.mark.usefixtures("drawn_pictures")
def test_10_000_classes_stay_below_two_seconds_and_a_megabyte(tmp_path: Path):
    labels = [f"class {number}" for number in range(10_000)]
    predictions, references = random_classes(10_000, 10_000)
    few = read_confusion(count_confusion([0, 1], [0, 1], 2))
    draw_confusion(tmp_path / "warm.png", "warm", labels[:2], few)  # imports are not what is timed
    started = time.process_time()
    found = count_confusion(predictions, references, 10_000)
    write_json(tmp_path / "results.json", {"confusion": {"topic": found}, "tasks": {"topic": {"labels": labels}}})
    counted = time.process_time() - started
    draw_confusion(tmp_path / "many.png", "topic", labels, read_confusion(found))
    drawn = time.process_time() - started - counted
    assert (tmp_path / "results.json").stat().st_size < 1_000_000
    assert (tmp_path / "many.png").stat().st_size < 500_000
    assert counted < 2
    assert drawn < 5, "alone it takes half a second"
