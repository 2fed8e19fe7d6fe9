"""Values of a regression teacher, in the units of the task that learns from them.

values_of   what answers say of each row: a value, or the cosine of two embeddings
fit_line    slope and intercept that bring cosines or values to a task's values
units_of    whether values are meant in the task's units
line_of     the line that a teacher's answers need, if they need one
"""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from ...data.rows.canonical import LABEL_PREFIX, labels_of
from ..features.cache import FeatureCache
from .teachers import Teacher

logger = logging.get_logger(__name__)


def values_of(answers: torch.Tensor) -> torch.Tensor:
    """A teacher's values `(rows, 1, 1)`, or the cosines of its embeddings `(rows, 2, dim)`: `(rows,)`."""
    return answers[:, 0, 0] if answers.shape[1] == 1 else (answers[:, 0] * answers[:, 1]).sum(dim=-1)


def fit_line(answers: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """
    Slope and intercept, by least squares, that bring a teacher's cosines or values to the values of a task.

    Args:
        answers, values: `(rows,)`, of the labelled training rows.
    """
    if len(answers) < 2 or np.ptp(answers) == 0:
        return 0.0, float(values.mean())
    slope, intercept = np.polyfit(answers, values, 1)
    return float(slope), float(intercept)


def units_of(answers: np.ndarray, values: np.ndarray) -> str:
    """
    Whether a teacher's values are meant in a task's units: `same`, `other` (shares for points, logits) or `unknown`.

    They are in other units where a straight line takes more than half of the labels' variance from the mean squared
    error, and leaves less than half. Answers that are merely poor never fulfil both: the line leaves more.

    Args:
        answers, values: `(rows,)`, of the labelled training rows.
    """
    if len(values) < 3 or np.ptp(values) == 0:
        return "same"
    slope, intercept = fit_line(answers, values)
    error = np.square(answers - values).mean()
    error_of_line = np.square(slope * answers + intercept - values).sum() / (len(values) - 2)
    half = values.var() / 2
    if error - error_of_line <= half:
        return "same"
    return "other" if error_of_line < half else "unknown"


def line_of(
    task: str,
    teacher: Teacher,
    cache: FeatureCache,
    train_sets: Sequence[Dataset],
    numbers: Sequence[np.ndarray],
    places: Sequence[np.ndarray],
) -> tuple[float, float] | None:
    """
    `fit_line` over the task's labelled rows, where the teacher gives cosines, or values in other units.

    Raises:
        ValueError: there are cosines, and no labelled row to fit them to.
    """
    answers, values = [np.empty(0)], [np.empty(0)]
    for rows, own, found in zip(train_sets, numbers, places, strict=True):
        if LABEL_PREFIX + task in rows.column_names and len(own):
            labels = labels_of(rows, task).to_numpy()[own]  # null is NaN
            labelled = ~np.isnan(labels)
            given = cache.gather(found[labelled].ravel()).view(labelled.sum(), -1, cache.hidden_size)
            answers.append(values_of(given).double().numpy())
            values.append(labels[labelled])
    answers, values = np.concatenate(answers), np.concatenate(values)
    if teacher.compares and not len(values):
        raise ValueError(
            f"distillation.teachers.{task}: no labelled training row of task {task!r} is left to bring the cosines of "
            f"{teacher.name} to its values, because all stand in a validation or test split. Correct the splits, or "
            "give another kind of teacher."
        )
    if teacher.compares:
        return fit_line(answers, values)
    units = units_of(answers, values)
    if units == "unknown":
        logger.warning(
            f"distillation: the values of {teacher.name} hardly fit the labels of task {task!r}: on the labelled rows "
            f"they are {answers.mean():.4g} in the mean, and the labels {values.mean():.4g}. Give a teacher that was "
            "trained on values of this kind."
        )
    if units != "other":
        return None
    slope, intercept = fit_line(answers, values)
    logger.info(
        f"distillation: the values of {teacher.name} are in other units than those of task {task!r}. A straight line "
        f"through the labelled rows brings them there: {slope:.4g} * value {intercept:+.4g}."
    )
    return slope, intercept


__all__ = ["fit_line", "line_of", "units_of", "values_of"]
