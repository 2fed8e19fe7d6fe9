"""How far probabilities are from what comes true.

    count_forecasts      probabilities and what came true, in 15 bins
    calibration_error    the expected calibration error
    brier_score          the mean squared error
    describe_forecasts   all of it, for results.json

A forecast is, of a single-label task, the probability of the label that is given; of a multi-label task, that of every
label of every row. Counts of batches add up.
"""

from typing import Any

import numpy as np

NUM_BINS = 15  # as in Guo et al. 2017
DIGITS = 6


def _bins(forecasts: np.ndarray, outcomes: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """`(15, 4)`: forecasts, their sum, how many came true, and the sum of the squared errors."""
    bins = np.minimum(np.nan_to_num(forecasts * NUM_BINS).astype(int), NUM_BINS - 1)
    columns = (None, forecasts, outcomes, squares)
    return np.stack([np.bincount(bins, weights, minlength=NUM_BINS) for weights in columns], axis=1)


def count_forecasts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Count forecasts in 15 bins of equal width.

    Args:
        probabilities: `(rows, num_labels)`.
        labels: class numbers `(rows,)`, or for a multi-label task 0 and 1 `(rows, num_labels)`.

    Returns `(15, 4)`: forecasts, their sum, how many came true, and the sum of the squared errors. With class numbers,
    the error of a row is `sum((probabilities - one_hot)**2)`.
    """
    probabilities = probabilities.astype(np.float64)
    if labels.ndim == 2:
        forecasts, outcomes = probabilities.ravel(), labels.ravel().astype(np.float64)
        return _bins(forecasts, outcomes, (forecasts - outcomes) ** 2)
    rows = np.arange(len(labels))
    squares = (probabilities**2).sum(axis=-1) - 2 * probabilities[rows, labels] + 1
    best = probabilities.argmax(axis=-1)
    return _bins(probabilities[rows, best], best == labels, squares)


def calibration_error(bins: np.ndarray) -> float:
    """
    The expected calibration error: the mean over forecasts of how far apart their bin's mean forecast and the share
    that came true are (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def brier_score(bins: np.ndarray) -> float:
    """The mean squared error of the forecasts, of a single-label task summed over classes (Brier 1950): 0 to 2."""
    return float(bins[:, 3].sum() / bins[:, 0].sum())


def describe_forecasts(bins: np.ndarray) -> dict[str, Any]:
    """
    What `count_forecasts` gave, as JSON holds it.

    Returns `expected_calibration_error`, `brier_score`, and by bin from low to high `forecasts`, `mean_forecast` and
    `came_true`, a share; both are `None` in an empty bin.
    """
    counts = bins[:, 0].astype(int).tolist()
    mean_forecast, came_true = (
        [round(total / count, DIGITS) if count else None for total, count in zip(column, counts, strict=True)]
        for column in bins[:, 1:3].T.tolist()
    )
    return {
        "expected_calibration_error": round(calibration_error(bins), DIGITS),
        "brier_score": round(brier_score(bins), DIGITS),
        "forecasts": counts,
        "mean_forecast": mean_forecast,
        "came_true": came_true,
    }


__all__ = ["NUM_BINS", "brier_score", "calibration_error", "count_forecasts", "describe_forecasts"]
