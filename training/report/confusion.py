"""What a classification task confuses, counted by class and by pair of classes, never as a full matrix.

    count_confusion   rows by class and the pairs that were confused, with precision, recall and F1: for results.json
    count_confusions  the same for every task, from what it answered
    read_confusion    the same from results.json, also where an earlier run has left a full matrix in it
    worst_classes     the classes with the lowest F1
    most_confused     the classes with most errors, in their order
    most_wrong        the tasks with most errors
    matrix_of         the full matrix of a few classes, to draw

With 10,000 classes a matrix has 100 million cells, of which 10,000 rows fill 10,000 at most.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...tasks_multitask import TaskConfig

MOST_PAIRS = 10_000  # confused pairs of classes that are listed, the frequent ones first
DIGITS = 4  # of precision, recall and F1


def _by_class(labelled: np.ndarray, predicted: np.ndarray, right: np.ndarray) -> dict[str, list]:
    """Counts and scores of every class; a score with nothing to divide by is 0, as in the macro metrics."""
    numerators = {"precision": right, "recall": right, "f1": 2 * right}
    denominators = {"precision": predicted, "recall": labelled, "f1": labelled + predicted}
    counts = {"labelled": labelled, "predicted": predicted, "right": right}
    scores = {name: numerators[name] / np.maximum(denominators[name], 1) for name in numerators}
    return {
        **{name: found.astype(int).tolist() for name, found in counts.items()},
        **{name: found.round(DIGITS).tolist() for name, found in scores.items()},
    }


def _pairs(classes: np.ndarray, guesses: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """The pairs of different classes, most rows first, and how many rows the pairs have that are not listed."""
    is_wrong = classes != guesses
    found = np.stack([classes, guesses, rows], axis=1)[is_wrong]  # (pairs, 3)
    found = found[np.argsort(-found[:, 2], kind="stable")]
    return {"confused": found[:MOST_PAIRS].tolist(), "not_listed": int(found[MOST_PAIRS:, 2].sum())}


def count_confusion(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> dict[str, Any]:
    """
    What a classification task confuses, ready for results.json.

    Args:
        predictions: class numbers `(rows,)`, or for a multi-label task 0 and 1 `(rows, num_labels)`.
        references: the same, as labelled.
        num_labels: how many classes there are.

    Returns:
        `rows`; by class, in the order of their numbers: `labelled`, `predicted` and `right` rows, `precision`,
        `recall` and `f1`; and for class numbers `confused`, `[labelled class, predicted class, rows]` of up to 10,000
        pairs with most rows first, and `not_listed`, the rows of pairs beyond these.

    Raises:
        ValueError: there is no row, or the two differ in length.
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    if not len(references) or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references. Give one of each for every row."
        )
    if references.ndim == 2:
        both = np.logical_and(predictions, references)
        counts = _by_class(*(np.count_nonzero(found, axis=0) for found in (references, predictions, both)))
        return {"rows": len(references), **counts}
    right = predictions[predictions == references]
    counts = [np.bincount(found, minlength=num_labels) for found in (references, predictions, right)]
    pairs, rows = np.unique(references.astype(np.int64) * num_labels + predictions, return_counts=True)
    return {"rows": len(references), **_by_class(*counts), **_pairs(*np.divmod(pairs, num_labels), rows)}


def count_confusions(
    tasks: Mapping[str, TaskConfig], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """
    What every classification task confuses, for results.json, counted on the last split that has rows of it.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        answers: by split and task, the `TaskAnswers`.
    """
    return {
        task: {"split": split, **count_confusion(found.predictions, found.references, len(labels))}
        for split, by_task in answers.items()
        for task, found in by_task.items()
        if (labels := tasks[task].labels)
    }


def read_confusion(counted: dict[str, Any]) -> dict[str, Any]:
    """What `count_confusion` gave, from an entry of results.json; older ones hold a full `matrix` instead."""
    split = {"split": counted.get("split", "test")}
    if "matrix" not in counted:
        return {**counted, **split}
    matrix = np.asarray(counted["matrix"])
    if matrix.ndim == 3:  # (labels, 2, 2): [[true negatives, false positives], [false negatives, true positives]]
        by_class = _by_class(matrix[:, 1].sum(axis=1), matrix[:, :, 1].sum(axis=1), matrix[:, 1, 1])
        return {"rows": int(matrix[0].sum()), **by_class, **split}
    classes, guesses = matrix.nonzero()
    by_class = _by_class(matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal())
    return {
        "rows": int(matrix.sum()),
        **by_class,
        **_pairs(classes, guesses, matrix[classes, guesses]),
        **split,
    }


def worst_classes(counted: dict[str, Any], most: int) -> list[int]:
    """Numbers of the classes with the lowest F1 among those that any row is labelled with, lowest first."""
    labelled, f1 = np.array(counted["labelled"]), np.array(counted["f1"])
    order = np.argsort(f1, kind="stable")
    return order[labelled[order] > 0][:most].tolist()


def most_wrong(counted: dict[str, dict[str, Any]], most: int) -> list[str]:
    """The tasks with the smallest share of labels that were found, in their order."""
    shares = {task: sum(found["right"]) / max(sum(found["labelled"]), 1) for task, found in counted.items()}
    chosen = sorted(shares, key=shares.__getitem__)[:most]
    return [task for task in counted if task in chosen]


def most_confused(counted: dict[str, Any], most: int) -> list[int]:
    """Numbers of the classes with most errors, missed rows and false alarms together, ascending."""
    labelled, predicted, right = (np.array(counted[name]) for name in ("labelled", "predicted", "right"))
    errors = labelled + predicted - 2 * right
    return sorted(np.argsort(-errors, kind="stable")[:most].tolist())


def matrix_of(counted: dict[str, Any], classes: list[int]) -> np.ndarray:
    """`(classes, classes)`: rows of one class that were predicted as another, of some classes only."""
    place = {number: index for index, number in enumerate(classes)}
    matrix = np.diag([counted["right"][number] for number in classes])
    for labelled, predicted, rows in counted["confused"]:
        if labelled in place and predicted in place:
            matrix[place[labelled], place[predicted]] = rows
    return matrix


__all__ = ["count_confusion", "matrix_of", "most_confused", "most_wrong", "read_confusion", "worst_classes"]
