"""Every metric once, as a function of how often each row counts.

Each function takes `counts (draws, rows)`, predictions and references, and gives `(draws,)` scores: one row of ones is
the score of the rows as they are, and a thousand rows of drawn numbers are a thousand resamples in a few matrix
products. The `evaluate` modules (modules.py) call them with the first, the bootstrap with the second. What predictions
and references look like, and where a formula comes from, stands with the modules.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array


def _sides(predictions: np.ndarray, references: np.ndarray) -> tuple[csr_array, csr_array]:
    """Class numbers `(rows,)` or 0 and 1 to sparse `(rows, classes)`: thousands of classes are nearly all 0."""
    if predictions.ndim == 2:
        return tuple(csr_array(side, dtype=np.float64) for side in (predictions, references))
    present, columns = np.unique([predictions, references], return_inverse=True)
    starts = np.arange(len(predictions) + 1)
    shape = (len(predictions), len(present))
    return tuple(csr_array((np.ones(len(side)), side, starts), shape=shape) for side in columns.reshape(2, -1))


def _tables(
    counts: np.ndarray, predictions: np.ndarray, references: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By draw and class, `(draws, classes)`: rows that are predicted rightly, predicted, and labelled so."""
    predicted, labelled = _sides(predictions, references)
    found = [predicted.multiply(labelled), predicted, labelled]
    return tuple(counts @ indicators for indicators in found)


def _divide(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return numerators / np.where(denominators > 0, denominators, np.inf)


def _mean(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return counts @ values.astype(np.float64) / counts.sum(axis=1)


def accuracy(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right = predictions == references
    return _mean(counts, right.all(axis=1) if right.ndim == 2 else right)


def macro_f1(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, predicted, labelled = _tables(counts, predictions, references)
    f1 = _divide(2 * right, predicted + labelled)  # (draws, classes)
    if predictions.ndim == 2:
        return f1.mean(axis=1)
    return f1.sum(axis=1) / np.count_nonzero(predicted + labelled, axis=1)


def micro_f1(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, predicted, labelled = (table.sum(axis=1) for table in _tables(counts, predictions, references))
    return _divide(2 * right, predicted + labelled)


def f1_of_classes(
    counts: np.ndarray, predictions: np.ndarray, references: np.ndarray, labels: Sequence[int]
) -> np.ndarray:
    if predictions.ndim == 2:
        chosen = predictions[:, labels], references[:, labels]
    else:
        chosen = predictions[:, None] == labels, references[:, None] == labels  # (rows, chosen classes)
    return macro_f1(counts, *chosen)


def macro_recall(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, _, labelled = _tables(counts, predictions, references)
    return _divide(right, labelled).sum(axis=1) / np.count_nonzero(labelled, axis=1)


def mcc(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    right, predicted, labelled = _tables(counts, predictions, references)
    total = counts.sum(axis=1)
    covariance = right.sum(axis=1) * total - (predicted * labelled).sum(axis=1)
    spreads = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (labelled**2).sum(axis=1))
    return _divide(covariance, np.sqrt(spreads))


def _ranks(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each row's rank in each draw, `(draws, rows)`; equal values share their mean rank, and NaN has none."""
    distinct, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(len(distinct)))
    tied = np.add.reduceat(counts[:, order], starts, axis=1)  # (draws, distinct values)
    return np.where(np.isnan(values), np.nan, (tied.cumsum(axis=1) - (tied - 1) / 2)[:, places])


def _correlations(counts: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlations of values `(rows,)` or `(draws, rows)`; NaN where a side is constant."""
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


def pearson(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _correlations(counts, predictions, references)


def spearman(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _correlations(counts, _ranks(counts, predictions), _ranks(counts, references))


def mse(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _mean(counts, (predictions - references) ** 2)


def mae(counts: np.ndarray, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    return _mean(counts, np.abs(predictions - references))


def mrr(counts: np.ndarray, ranks: np.ndarray, _: None = None) -> np.ndarray:
    return _mean(counts, 1 / ranks)


def accuracy_at_1(counts: np.ndarray, ranks: np.ndarray, _: None = None) -> np.ndarray:
    return _mean(counts, ranks == 1)
