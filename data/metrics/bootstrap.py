"""The bootstrap: how sure a score is, and a difference between two models' scores on the same rows.

    score_interval      the interval of a model's score, from rows that are drawn anew a thousand times
    paired_interval     the interval of the difference, each time of the same rows
    resampled_scores    a metric of every resample at once, from how often each row was drawn

A resample is not written out row by row: every metric follows from the number of times that each row was drawn, so
that a thousand of them are a few matrix products (metrics/counted.py).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..metrics import METRIC_MODULES

RESAMPLES = 1000
CONFIDENCE = 95  # per cent
# Draws that are counted at once: bounds memory to some arrays of so many float64.
COUNTS_AT_ONCE = 2_000_000


def resampled_scores(
    metric: str, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray | None, **options: Any
) -> np.ndarray:
    """
    One metric of many resamples.

    Args:
        metric: any that a task can list.
        counts: `(resamples, rows)`, how often each row was drawn.
        predictions: one for each row, as the metric's module takes them.
        references: the same; `None` for metrics of ranks.
        **options: further arguments of the module's `compute`, e.g. the `labels` of `f1`.

    Returns:
        `(resamples,)`: what the module gives for the rows that were drawn, NaN where it is undefined.
    """
    arrays = (predictions,) if references is None else (predictions, references)
    return METRIC_MODULES[metric].counted(np.asarray(counts, dtype=np.float64), *arrays, **options)


def _draws(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, `(some resamples, rows)` at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        drawn = generator.integers(num_rows, size=(min(at_once, resamples - start), num_rows))
        yield np.stack([np.bincount(rows, minlength=num_rows) for rows in drawn])


def _middle(values: np.ndarray) -> tuple[float, float] | None:
    """Both ends of the middle 95 % of what is defined; `None` where nothing is."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    outside = (100 - CONFIDENCE) / 2
    low, high = np.percentile(values, [outside, 100 - outside])
    return float(low), float(high)


def score_interval(
    metric: str,
    predictions: np.ndarray,
    references: np.ndarray | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> tuple[float, float] | None:
    """
    The 95 % percentile interval of a model's score (Efron and Tibshirani 1993, chapter 13).

    It says how much the score depends on the choice of the rows, and nothing about other seeds or training rows.
    Arguments, and what comes back, are as those of `paired_interval`.
    """
    drawn = _draws(len(predictions), resamples, seed)
    return _middle(
        np.concatenate([resampled_scores(metric, counts, predictions, references, **options) for counts in drawn])
    )


def paired_interval(
    metric: str,
    first: np.ndarray,
    second: np.ndarray,
    references: np.ndarray | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> tuple[float, float] | None:
    """
    The 95 % percentile interval of the first model's score minus the second's, each resample the same rows for both.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; paired as in Koehn 2004, "Statistical
    Significance Tests for Machine Translation Evaluation". It says how much the difference depends on the choice of
    the rows, and nothing about other seeds or training rows.

    Args:
        metric: any that a task can list.
        first: the first model's predictions, one for each row, as the metric's module takes them.
        second: the second model's, of the same rows in the same order.
        references: what is right; `None` for metrics of ranks.
        resamples: how often the rows are drawn anew.
        seed: of the draws.
        **options: further arguments of the module's `compute`, e.g. the `labels` of `f1`.

    Returns:
        Both ends; `None` where the metric is undefined in every resample. Single undefined resamples are left out.

    Raises:
        ValueError: the models did not predict the same number of rows, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} predictions. Give one of each model for every row.")
    differences = np.concatenate(
        [
            resampled_scores(metric, counts, first, references, **options)
            - resampled_scores(metric, counts, second, references, **options)
            for counts in _draws(len(first), resamples, seed)
        ]
    )
    return _middle(differences)


__all__ = ["paired_interval", "resampled_scores", "score_interval"]
