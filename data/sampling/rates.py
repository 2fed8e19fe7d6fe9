"""How many rows an epoch takes from each set: the sampling rules.

An epoch holds as many rows as all sets together, unless a number is asked for, and the rule deals them to the sets:

    proportional  rate ~ size: every row once
    sqrt          rate ~ size^(1/2)
    temperature   rate ~ size^(1/T): T = 1 is proportional, 2 is sqrt, and a large T nears uniform
    uniform       the same rate for every set
    rates         the rates that are given

Rates of `size^(1/T)` are the temperature-scaled mixing of Raffel et al. 2020 (T5, arXiv 1910.10683, section 3.5.2).
"""

import math
from collections.abc import Sequence

import numpy as np

SAMPLINGS = ("proportional", "uniform", "sqrt", "temperature", "rates")


def set_weights(
    sizes: Sequence[int], sampling: str, temperature: float | None = None, rates: Sequence[float] | None = None
) -> list[float]:
    """What the rates of the sets are proportional to: `sizes` are rows, `sampling` is one of `SAMPLINGS`."""
    if sampling == "proportional":
        return list(sizes)
    if sampling == "rates":
        return list(rates)
    exponent = {"uniform": 0.0, "sqrt": 0.5, "temperature": 1 / (temperature or 1.0)}[sampling]
    largest = max(sizes, default=1)  # as a share of it, no power of a size overflows
    return [math.exp(exponent * math.log(size / largest)) for size in sizes]


def deal_rows(total: int, weights: Sequence[float]) -> list[int]:
    """
    Cut `total` rows into shares in proportion to the weights, by the largest remainders: they add up exactly.

    A share may be 0 where its weight is small.
    """
    quotas = np.array([total * weight / sum(weights) for weight in weights]).round(9)
    shares = np.floor(quotas).astype(int)
    left = total - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:left]] += 1
    return shares.tolist()


__all__ = ["SAMPLINGS", "deal_rows", "set_weights"]
