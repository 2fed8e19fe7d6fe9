"""From which confidence on to answer, so that a stated share of the answers is wrong at most.

    risk_bound           the highest share of errors that a count of errors leaves room for
    choose_confidence    the confidence from which the bound stays within a risk
    risk_coverage        the share of errors by the share of rows that are answered

Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural Networks" (arXiv 1705.08500).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

CERTAINTY = 0.95  # with which the promise holds
# The shares of rows that may be answered. They are fixed before a row is looked at, and share the room for chance.
COVERAGES = np.arange(1, 21) / 20
CURVE_POINTS = 50
DIGITS = 6


@dataclass(frozen=True)
class Chosen:
    """
    What `choose_confidence` found.

    Attributes:
        confidence: answer from here on; `None` where no share of rows keeps within the risk.
        coverage: the share of validation rows that are answered, 0 for none.
        risk: the share of errors among them; `None` for none.
        lowest_risk: the lowest risk that could have been promised.
    """

    confidence: float | None
    coverage: float
    risk: float | None
    lowest_risk: float


def risk_bound(errors: np.ndarray | int, rows: np.ndarray | int, certainty: float = CERTAINTY) -> np.ndarray:
    """
    The upper end of the exact one-sided binomial interval (Clopper and Pearson 1934): the risk at which as few errors
    as these among `rows` have the probability `1 - certainty`. Lemma 3.1 of Geifman and El-Yaniv 2017 takes the same.
    """
    errors, rows = np.asarray(errors), np.asarray(rows)
    bound = beta.ppf(certainty, errors + 1, np.maximum(rows - errors, 1))
    return np.where(errors < rows, bound, 1.0)


def choose_confidence(confidences: np.ndarray, is_wrong: np.ndarray, risk: float) -> Chosen:
    """
    The lowest confidence from which on the share of errors is within `risk`, with 95 % certainty.

    The most confident 5 %, 10 %, ... 100 % of the rows are candidates. Each has an exact binomial bound at `1 - 0.05 /
    20`, so that all 20 hold together with 95 % certainty (Bonferroni), and whichever is chosen does. The certainty is
    that of a draw of validation rows like those to come, that did not choose the model.

    Args:
        confidences: `(rows,)`, of validation data.
        is_wrong: `(rows,)`, whether the answer is wrong.
        risk: the largest share of errors among answers, above 0 and below 1.
    """
    if not len(confidences):
        return Chosen(confidence=None, coverage=0.0, risk=None, lowest_risk=1.0)
    order = np.argsort(-confidences, kind="stable")
    ordered, errors = confidences[order].astype(np.float64), np.cumsum(is_wrong[order])
    sizes = np.unique(np.maximum(np.ceil(COVERAGES * len(ordered) - 1e-9).astype(int), 1))
    # Rows that are as confident as the last one come along.
    sizes = np.unique(np.searchsorted(-ordered, -ordered[sizes - 1], side="right"))
    bounds = risk_bound(errors[sizes - 1], sizes, 1 - (1 - CERTAINTY) / len(COVERAGES))
    lowest = float(bounds.min())
    within = sizes[bounds <= risk]
    if not len(within):
        return Chosen(confidence=None, coverage=0.0, risk=None, lowest_risk=lowest)
    size = int(within.max())
    # Halfway to the next row: a probability differs in its last bits from batch to batch.
    following = ordered[size] if size < len(ordered) else 0.0
    return Chosen(
        confidence=float(ordered[size - 1] + following) / 2,
        coverage=size / len(ordered),
        risk=float(errors[size - 1] / size),
        lowest_risk=lowest,
    )


def risk_coverage(confidences: np.ndarray, is_wrong: np.ndarray, rows: int | None = None) -> dict[str, list[float]]:
    """
    The risk-coverage curve (El-Yaniv and Wiener 2010) at up to 50 points.

    Args:
        confidences: of the rows that may be answered.
        is_wrong: whether the answer is wrong.
        rows: how many rows there are in all, by default these.

    Returns `coverage`, shares of all rows, the most confident first, and `risk`, the share of errors among them.
    """
    if not len(confidences):
        return {"coverage": [], "risk": []}
    order = np.argsort(-confidences, kind="stable")
    errors = np.cumsum(is_wrong[order])
    sizes = np.unique(np.ceil(np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS * len(order) - 1e-9).astype(int))
    return {
        "coverage": (sizes / (rows or len(order))).round(DIGITS).tolist(),
        "risk": (errors[sizes - 1] / sizes).round(DIGITS).tolist(),
    }


def describe_answered(
    confidences: np.ndarray, is_wrong: np.ndarray, confidence: float | None, is_near: np.ndarray | None = None
) -> dict[str, Any]:
    """
    How many of the rows are answered from a confidence on, how many of the answers are wrong, and their share. Rows
    out of scope, which `is_near` tells where there are any, are not answered.
    """
    answered = confidences >= confidence if confidence is not None else np.zeros(len(confidences), dtype=bool)
    if is_near is not None:
        answered &= is_near
    rows, errors = int(answered.sum()), int(is_wrong[answered].sum())
    return {
        "rows": len(confidences),
        "answered": rows,
        "wrong": errors,
        "coverage": round(rows / len(confidences), DIGITS),
        "risk": round(errors / rows, DIGITS) if rows else None,
    }


__all__ = ["CERTAINTY", "Chosen", "choose_confidence", "describe_answered", "risk_bound", "risk_coverage"]
