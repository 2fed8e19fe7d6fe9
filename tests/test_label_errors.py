"""Labels that are likely wrong, in the report of a run."""

import numpy as np
import pyarrow as pa
import pytest

from multitask_sentence.reporting.label_errors import find_label_errors
from multitask_sentence.reporting.rows import TaskRows, task_rows
from multitask_sentence.tasks_multitask import complete_task

pytest.importorskip("cleanlab")

LABELS = np.array(["a", "b", "c"])
NONE = np.empty(0, np.int64)


def rows_of(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, dict[str, TaskRows]]:
    """Test rows of a task: class numbers, or 0 and 1 of each label, with what the model gives them."""
    if labels.ndim == 2:
        kind, names = "multi_label_classification", LABELS[: labels.shape[1]]
        sides = [[list(names[row]) for row in side] for side in (labels.astype(bool), probabilities > 0.5)]
    else:
        kind, names = "single_label_classification", LABELS
        sides = [names[labels], names[probabilities.argmax(axis=1)]]
    table = pa.table(
        {
            "split": ["test"] * len(labels),
            "text": [f"text {place}" for place in range(len(labels))],
            "label": pa.array(sides[0], pa.list_(pa.string()) if labels.ndim == 2 else None),
            "prediction": pa.array(sides[1], pa.list_(pa.string()) if labels.ndim == 2 else None),
            "probabilities": list(probabilities.astype(np.float32)),
        }
    )
    return {"kind": task_rows("kind", complete_task("kind", {"problem_type": kind, "labels": list(names)}), table)}


def sure_of(right: np.ndarray) -> np.ndarray:
    return np.eye(3)[right] * 0.9 + 0.1 / 3


def test_label_errors_are_the_rows_that_were_mislabelled() -> None:
    right = np.random.default_rng(0).integers(0, 3, 60)
    given = right.copy()
    given[[7, 11]] = (given[[7, 11]] + 1) % 3
    rows = rows_of(given, sure_of(right))
    (found,) = find_label_errors(rows, NONE)
    assert {row["text"] for row in found["rows"]} == {("text 7",), ("text 11",)} and found["likely"] == 2
    assert found["rows"][0]["of_prediction"] > 0.9 > 0.1 > found["rows"][0]["of_label"]
    (found,) = find_label_errors(rows, rows["kind"]["test"].hashes[[7]])  # a row that the model was trained on
    assert [row["text"] for row in found["rows"]] == [("text 11",)] and found["count"] == 59


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        pytest.param(np.array([1] * 20), None, id="one class, which is not the first"),
        pytest.param(np.array([0] * 20), None, id="the first class alone"),
        pytest.param(np.array([2]), None, id="one row"),
        pytest.param(np.array([[0, 1, 0]] * 20), None, id="the same labels everywhere"),
        pytest.param(np.array([[0, 0, 0]] * 20), None, id="no label anywhere"),
        pytest.param(np.array([[0, 1, 0], [1, 1, 1]] * 10), 4, id="a label that every row has"),
        pytest.param(np.array([[0, 0, 0], [0, 0, 1]] * 10), 4, id="one label that differs"),
        pytest.param(np.array([[0], [1]] * 10), 4, id="a task of one label"),
    ],
)
def test_labels_that_do_not_differ_are_no_error_of_the_page(labels: np.ndarray, wrong: int | None) -> None:
    given, probabilities = labels.copy(), sure_of(labels) if labels.ndim == 1 else 0.1 + 0.8 * labels
    if wrong is not None:  # the model is sure of the other answer where a label can be missing
        given[wrong] = labels[wrong + 1]
    (found,) = find_label_errors(rows_of(given, probabilities), NONE)
    assert [row["text"] for row in found["rows"]] == ([] if wrong is None else [(f"text {wrong}",)])
    assert found["reason"] == ("all rows are labelled alike" if wrong is None else None)
    assert (found["count"], found["likely"]) == (len(labels), int(wrong is not None))
