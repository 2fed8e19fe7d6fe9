"""From logits to answers, in numpy."""

from typing import Any

import numpy as np

from ..tasks_multitask import TaskConfig


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors `(..., size)` with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(np.float32(0), -logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _calibrated(task: TaskConfig, logits: np.ndarray) -> np.ndarray:
    """Logits `(rows, num_labels)` divided by the task's temperatures, where it has any."""
    return logits / np.array(task.temperatures, dtype=np.float32) if task.temperatures else logits


def _confidences(probabilities: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    """How sure a task is of each row, `(rows,)`: see `AbstainConfig`."""
    if chosen is None:
        return probabilities.max(axis=-1)
    return np.where(chosen, probabilities, 1 - probabilities).min(axis=-1)


def answer(task: TaskConfig, logits: np.ndarray, least_confidence: float | None) -> dict[str, Any]:
    """
    One task's answers, as `predict` gives them, from its logits `(rows, num_labels)` or `(rows,)`.

    A row whose confidence is lower than `least_confidence` has the label `None`.
    """
    if not task.kind.has_labels:
        return {"values" if task.kind.has_head else "scores": logits}
    labels, chosen = task.labels, None
    names: list[Any]
    if task.kind.is_multi_label:
        probabilities = _sigmoid(_calibrated(task, logits))
        names = [[] for _ in range(len(logits))]
        chosen = probabilities >= np.array(task.thresholds, dtype=np.float32)
        for row, label in zip(*chosen.nonzero(), strict=True):  # of thousands of labels a row has a few
            names[row].append(labels[label])
    else:
        probabilities = _softmax(logits)
        names = [labels[best] for best in probabilities.argmax(axis=-1)]
        if task.temperatures:  # only now: two that differ in their last bits may become equal
            probabilities = _softmax(_calibrated(task, logits))
    if least_confidence is not None:
        is_given = _confidences(probabilities, chosen) >= least_confidence
        names = [label if given else None for label, given in zip(names, is_given, strict=True)]
    return {"labels": names, "probabilities": probabilities}
