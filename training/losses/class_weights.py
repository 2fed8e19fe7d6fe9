"""Class imbalance: `balanced` and `sqrt_balanced` among loss options become numbers, counted from training rows."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset

from ...data.rows.canonical import is_labelled, label_counts, labels_of
from ...problem_types_multitask import COUNTED_WEIGHTS
from ...tasks_multitask import TaskConfig

logger = logging.getLogger(__name__)


def balanced_class_weights(counts: np.ndarray, power: float = 1.0) -> np.ndarray:
    """
    Weights in proportion to `counts ** -power`, 1 on average over the rows.

    The power 1 gives `rows / (classes * rows of the class)`, by which every class counts alike, as in scikit-learn's
    `class_weight="balanced"` (King and Zeng 2001, "Logistic Regression in Rare Events Data"). The power 1/2 gives the
    square root of inverse frequency (Mahajan et al. 2018, arXiv 1805.00932, section 2.2, where rows are drawn so).
    """
    return counts.sum() / ((counts ** (1 - power)).sum() * counts**power)


def balanced_pos_weight(counts: np.ndarray, num_rows: int, power: float = 1.0) -> np.ndarray:
    """
    `(rows without the label / rows with it) ** power`.

    With the power 1 both count alike in sum, as `torch.nn.BCEWithLogitsLoss` advises.
    """
    return ((num_rows - counts) / counts) ** power


def resolve_balanced(tasks: dict[str, TaskConfig], training_rows: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """
    The numbers that `balanced` and `sqrt_balanced` stand for.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        training_rows: by task, its training rows.

    Returns:
        By task its `loss_options`, with numbers in the place of the name.

    Raises:
        ValueError: a class or label is on none of a task's training rows, or a label on all of them.
    """
    resolved = {}
    for task, rows in training_rows.items():
        options = tasks[task].loss_options
        key = next((key for key, value in options.items() if isinstance(value, str)), None)
        if key is None:
            continue
        name, power = options[key], COUNTED_WEIGHTS[options[key]]
        where, names = f"tasks.{task}.loss_options.{key}", np.array(tasks[task].labels)
        num_rows, counts = int(is_labelled(rows, task).sum()), label_counts(labels_of(rows, task), len(names))
        is_class = key == "class_weights"
        for extreme, what in ((0, "no training row has"), (num_rows, "every training row has")):
            found = names[counts == extreme]
            if len(found):
                raise ValueError(
                    f"{where}: {name} needs training rows with and without each label, but {what} "
                    f"{', '.join(map(repr, found.tolist()))}. Add rows, take the label out, or give numbers."
                )
        weights = balanced_class_weights(counts, power) if is_class else balanced_pos_weight(counts, num_rows, power)
        resolved[task] = {"loss_options": {**options, key: weights.tolist()}}
        shown = ", ".join(f"{label} {weight:.4g}" for label, weight in zip(names, weights, strict=True))
        logger.info(f"{task}: {name} {key}, from {num_rows} training rows: {shown}")
    return resolved
