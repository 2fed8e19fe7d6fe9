"""Class imbalance: `balanced` in a task's loss options becomes numbers, counted from its training rows."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from ...data.rows.canonical import is_labelled, label_counts, labels_of
from ...tasks_multitask import TaskConfig

logger = logging.getLogger(__name__)


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """
    `rows / (classes * rows of the class)`: every class counts alike, and the average over rows is 1.

    As in scikit-learn's `class_weight="balanced"` (King and Zeng 2001, "Logistic Regression in Rare Events Data").
    """
    return counts.sum() / (len(counts) * counts)


def balanced_pos_weight(counts: np.ndarray, num_rows: int) -> np.ndarray:
    """`rows without the label / rows with it`: both count alike in sum (as `torch.nn.BCEWithLogitsLoss` advises)."""
    return (num_rows - counts) / counts


def resolve_balanced(tasks: dict[str, TaskConfig], training_rows: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """
    The numbers that `balanced` stands for.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        training_rows: by task, its training rows.

    Returns:
        By task its `loss_options`, with numbers in the place of `balanced`.

    Raises:
        ValueError: a class or label is on none of a task's training rows, or a label on all of them.
    """
    resolved = {}
    for task, rows in training_rows.items():
        options = tasks[task].loss_options
        key = next((key for key, value in options.items() if value == "balanced"), None)
        if key is None:
            continue
        where, names = f"tasks.{task}.loss_options.{key}", np.array(tasks[task].labels)
        num_rows, counts = int(is_labelled(rows, task).sum()), label_counts(labels_of(rows, task), len(names))
        is_class = key == "class_weights"
        for extreme, what in ((0, "no training row has"), (num_rows, "every training row has")):
            found = names[counts == extreme]
            if len(found):
                raise ValueError(
                    f"{where}: balanced needs training rows with and without each label, but {what} "
                    f"{', '.join(map(repr, found.tolist()))}. Add rows, take the label out, or give numbers."
                )
        weights = balanced_class_weights(counts) if is_class else balanced_pos_weight(counts, num_rows)
        resolved[task] = {"loss_options": {**options, key: weights.tolist()}}
        shown = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True))
        logger.info(f"{task}: balanced {key}, from {num_rows} training rows: {shown}")
    return resolved
