"""The paired bootstrap: how sure a difference between two models' scores on the same rows is.

    paired_interval     the interval of the difference, from rows that are drawn anew a thousand times
    resampled_scores    a metric of every resample at once, from how often each row was drawn

A resample is not written out row by row: every metric follows from the number of times that each row was drawn, so
that a thousand of them are a few matrix products. The numbers are those of the metric's own module in metrics.py.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csr_array

RESAMPLES = 1000
CONFIDENCE = 95  # per cent
# Draws that are counted at once: bounds memory to some arrays of so many float64.
COUNTS_AT_ONCE = 2_000_000


def _indicators(classes: np.ndarray, num_classes: int) -> csr_array:
    """Class numbers `(rows,)`, or 0 and 1, to sparse `(rows, classes)`: thousands of classes are nearly all 0."""
    if classes.ndim == 2:
        return csr_array(classes, dtype=np.float64)
    rows = np.arange(len(classes) + 1)
    return csr_array((np.ones(len(classes)), classes, rows), shape=(len(classes), num_classes))


def _tables(
    counts: np.ndarray, predictions: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By resample and class, `(resamples, classes)`: rows that are predicted rightly, predicted, and labelled so."""
    num_classes = int(max(predictions.max(), references.max())) + 1
    predicted, labelled = (_indicators(classes, num_classes) for classes in (predictions, references))
    found = [predicted.multiply(labelled), predicted, labelled]
    return tuple(counts @ indicators for indicators in found)


def _divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return numerators / np.where(denominators > 0, denominators, np.inf)


def _accuracy(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right = predictions == references
    right = right.all(axis=1) if right.ndim == 2 else right
    return counts @ right.astype(np.float64) / counts.sum(axis=1)


def _macro_f1(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, predicted, labelled = _tables(counts, predictions, references)
    f1 = _divide(2 * right, predicted + labelled)  # (resamples, classes)
    if predictions.ndim == 2:
        return f1.mean(axis=1)
    return f1.sum(axis=1) / np.count_nonzero(predicted + labelled, axis=1)


def _micro_f1(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, predicted, labelled = (table.sum(axis=1) for table in _tables(counts, predictions, references))
    return _divide(2 * right, predicted + labelled)


def _macro_recall(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, _, labelled = _tables(counts, predictions, references)
    return _divide(right, labelled).sum(axis=1) / np.count_nonzero(labelled, axis=1)


def _mcc(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"."""
    right, predicted, labelled = _tables(counts, predictions, references)
    total = counts.sum(axis=1)
    covariance = right.sum(axis=1) * total - (predicted * labelled).sum(axis=1)
    spreads = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (labelled**2).sum(axis=1))
    return _divide(covariance, np.sqrt(spreads))


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each row's rank in each resample, `(resamples, rows)`; equal values share their mean rank."""
    distinct, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(len(distinct)))
    tied = np.add.reduceat(counts[:, order], starts, axis=1)  # (resamples, distinct values)
    return (tied.cumsum(axis=1) - (tied - 1) / 2)[:, places]


def _correlations(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlations of values `(rows,)` or `(resamples, rows)`; NaN where a side is constant."""
    is_drawn, total = counts > 0, counts.sum(axis=1)
    is_constant = np.zeros(len(counts), dtype=bool)
    centred = []
    for values in (first, second):
        values = np.broadcast_to(values, counts.shape)
        highest = np.where(is_drawn, values, -np.inf).max(axis=1)
        lowest = np.where(is_drawn, values, np.inf).min(axis=1)
        is_constant |= highest == lowest
        centred.append(values - ((counts * values).sum(axis=1) / total)[:, None])
    first, second = centred
    spreads = (counts * first**2).sum(axis=1) * (counts * second**2).sum(axis=1)
    spreads[is_constant] = np.nan
    return (counts * first * second).sum(axis=1) / np.sqrt(spreads)


def _pearson(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _correlations(counts, predictions, references)


def _spearman(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _correlations(counts, _ranks(counts, predictions), _ranks(counts, references))


def _mse(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return counts @ (predictions - references) ** 2 / counts.sum(axis=1)


def _mae(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return counts @ np.abs(predictions - references) / counts.sum(axis=1)


def _mrr(counts: np.ndarray, ranks: np.ndarray, _: None) -> np.ndarray:
    return counts @ (1 / ranks) / counts.sum(axis=1)


def _accuracy_at_1(counts: np.ndarray, ranks: np.ndarray, _: None) -> np.ndarray:
    return counts @ (ranks == 1).astype(np.float64) / counts.sum(axis=1)


RESAMPLED_METRICS: dict[str, Callable[..., np.ndarray]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "macro_recall": _macro_recall,
    "mcc": _mcc,
    "spearman": _spearman,
    "pearson": _pearson,
    "mse": _mse,
    "mae": _mae,
    "cosine_spearman": _spearman,
    "accuracy_at_1": _accuracy_at_1,
    "mrr": _mrr,
}


def resampled_scores(
    metric: str, counts: np.ndarray, predictions: np.ndarray, references: np.ndarray | None
) -> np.ndarray:
    """
    One metric of many resamples.

    Args:
        metric: a key of `RESAMPLED_METRICS`: any that a task can list.
        counts: `(resamples, rows)`, how often each row was drawn.
        predictions: one for each row, as the metric's module in metrics.py takes them.
        references: the same; `None` for metrics of ranks.

    Returns:
        `(resamples,)`: what the module gives for the rows that were drawn, NaN where it is undefined.
    """
    return RESAMPLED_METRICS[metric](np.asarray(counts, dtype=np.float64), predictions, references)


def _draws(num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, `(some resamples, rows)` at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        drawn = generator.integers(num_rows, size=(min(at_once, resamples - start), num_rows))
        yield np.stack([np.bincount(rows, minlength=num_rows) for rows in drawn])


def paired_interval(
    metric: str,
    first: np.ndarray,
    second: np.ndarray,
    references: np.ndarray | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """
    The 95 % percentile interval of the first model's score minus the second's, each resample the same rows for both.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; paired as in Koehn 2004, "Statistical
    Significance Tests for Machine Translation Evaluation". It says how much the difference depends on the choice of
    the rows, and nothing about other seeds or training rows.

    Args:
        metric: a key of `RESAMPLED_METRICS`.
        first: the first model's predictions, one for each row, as the metric's module takes them.
        second: the second model's, of the same rows in the same order.
        references: what is right; `None` for metrics of ranks.
        resamples: how often the rows are drawn anew.
        seed: of the draws.

    Returns:
        Both ends; `None` where the metric is undefined in every resample. Single undefined resamples are left out.

    Raises:
        ValueError: the models did not predict the same number of rows, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} predictions. Give one of each model for every row.")
    differences = np.concatenate(
        [
            resampled_scores(metric, counts, first, references) - resampled_scores(metric, counts, second, references)
            for counts in _draws(len(first), resamples, seed)
        ]
    )
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return None
    outside = (100 - CONFIDENCE) / 2
    low, high = np.percentile(differences, [outside, 100 - outside])
    return float(low), float(high)


__all__ = ["RESAMPLED_METRICS", "paired_interval", "resampled_scores"]
