"""Per-task metrics.

    counted.py    each metric once, as a function of how often each row counts
    modules.py    the `evaluate` modules, with docstrings that give definitions and sources
    ranks.py      `positive_ranks`: what `accuracy_at_1` and `mrr` are computed from

`METRIC_MODULES` maps each metric's public name to its module, and `compute_metric` computes one in memory:

>>> compute_metric("accuracy", predictions=[0, 2, 1, 1], references=[0, 2, 2, 1])
{'accuracy': 0.75}
"""

import difflib
from collections.abc import Sequence

import numpy as np

from .modules import METRIC_MODULES
from .ranks import positive_ranks


def compute_metric(name: str, predictions: Sequence, references: Sequence | None = None, **kwargs) -> dict[str, float]:
    """
    Compute one metric by its public name, in memory: several processes may do so at once, without lock files.

    Args:
        name: a key of `METRIC_MODULES`.
        predictions: one entry per row, in the form that the metric's module describes. Arrays stay arrays, so that
            millions of them are no lists of Python's.
        references: what is right, in the same form; `accuracy_at_1` and `mrr` have none.
        **kwargs: further arguments of the module's `compute`, e.g. `score_range`.

    Returns:
        Public names to Python floats. `name` is always among them; a module that gives two metrics returns both.

    Raises:
        ValueError: the metric is unknown, the input is empty, or its rows are not what the metric takes.
    """
    if name not in METRIC_MODULES:
        nearest = difflib.get_close_matches(name, METRIC_MODULES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"Parameter `name` should be a known metric. Found {name!r}; the nearest is {nearest!r}. "
            f"Known metrics: {sorted(METRIC_MODULES)}."
        )
    module = METRIC_MODULES[name](keep_in_memory=True)
    if not isinstance(predictions, np.ndarray):
        return module.compute(predictions=predictions, references=references, **kwargs)
    given = {key: {"predictions": predictions, "references": references}[key] for key in module._feature_names()}
    module.check_rows(given)
    if len({array.shape for array in given.values()}) > 1:
        raise ValueError(
            f"Parameters `predictions` and `references` should have one shape. Found {predictions.shape} and "
            f"{references.shape}."
        )
    return module._compute(**given, **kwargs)


__all__ = ["METRIC_MODULES", "compute_metric", "positive_ranks"]
