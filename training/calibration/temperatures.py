"""Temperatures: logits are divided by them, so that a probability of 0.8 is right in 8 of 10 rows.

    fit_temperature    the one of a single-label task
    fit_temperatures   one for each label of a multi-label task
    moved_thresholds   thresholds that give the same labels afterwards

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, softmax

LEAST_ROWS = 100  # of fewer, the error of one parameter is as large as what it mends
LEAST_OF_BOTH = 10  # rows that a label of a multi-label task applies to, and as many that it does not apply to
LOWEST, HIGHEST = 0.05, 20.0
# Beyond this logit float32 has few probabilities left below 1, and a threshold there would stand among equal ones.
LARGEST_THRESHOLD = 10.0


def _root(slope: Callable[[float], float], lowest: float) -> float | None:
    """
    The temperature at which the slope of the negative log-likelihood is 0; `None` where only chance is better.

    The likelihood is concave in `1 / temperature`, so that its slope has one root at most.
    """
    if not slope(1 / HIGHEST) < 0:  # nor where logits are NaN
        return None
    if slope(1 / lowest) <= 0:
        return lowest
    return float(1 / brentq(slope, 1 / HIGHEST, 1 / lowest, rtol=1e-6))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """
    The temperature with the least negative log-likelihood of `softmax(logits / temperature)`.

    One further row with a label drawn at random is counted in, as Platt (1999) does for two classes. Rows that are all
    right would else ask for a temperature of 0.

    Args:
        logits: `(rows, num_labels)`, of validation data.
        labels: `(rows,)`, class numbers.

    Returns a number from 0.05 to 20, or `None`: there are fewer than 100 rows, or chance alone does better.
    """
    rows = len(labels)
    if rows < LEAST_ROWS:
        return None
    logits = logits - logits.max(axis=-1, keepdims=True)
    right = logits[np.arange(rows), labels].mean(dtype=np.float64)
    right = (rows * right + logits.mean(dtype=np.float64)) / (rows + 1)

    def slope(inverse: float) -> float:
        """Of the negative log-likelihood: the expected logit minus that of the right class."""
        expected = (softmax(logits * np.float32(inverse), axis=-1) * logits).sum(axis=-1)
        return float(expected.mean(dtype=np.float64) - right)

    return _root(slope, LOWEST)


def fit_temperatures(logits: np.ndarray, labels: np.ndarray, thresholds: list[float]) -> list[float] | None:
    """
    As `fit_temperature`, for `sigmoid(logits / temperature)` of every label by itself.

    A label keeps the temperature 1 where chance does better, or fewer than 10 rows have it or lack it.

    Args:
        logits: `(rows, num_labels)`, of validation data.
        labels: `(rows, num_labels)`, 0 or 1.
        thresholds: `(num_labels,)`, of the probabilities as they are. No temperature takes one to where float32 knows
            only the probability 1.

    Returns `None` where no label can be calibrated.
    """
    rows, counts = len(labels), labels.sum(axis=0)
    found: list[float | None] = []
    for column, threshold in enumerate(thresholds):
        if rows < LEAST_ROWS or not LEAST_OF_BOTH <= counts[column] <= rows - LEAST_OF_BOTH:
            found.append(None)
            continue
        values = logits[:, column].astype(np.float64)
        targets = (rows * labels[:, column] + 0.5) / (rows + 1)

        def slope(inverse: float, values: np.ndarray = values, targets: np.ndarray = targets) -> float:
            return float((values * (expit(inverse * values) - targets)).mean())

        lowest = min(1.0, max(LOWEST, abs(float(logit(threshold))) / LARGEST_THRESHOLD))
        found.append(_root(slope, lowest))
    if not any(found):
        return None
    return [temperature or 1.0 for temperature in found]


def moved_thresholds(thresholds: list[float], temperatures: list[float]) -> list[float]:
    """The thresholds of `sigmoid(logits / temperature)` that give the labels of `thresholds` of `sigmoid(logits)`."""
    return expit(logit(np.array(thresholds)) / np.array(temperatures)).tolist()


__all__ = ["fit_temperature", "fit_temperatures", "moved_thresholds"]
