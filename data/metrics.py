"""Per-task metrics: `evaluate` modules of our own, which need no network.

`METRIC_MODULES` maps each metric's public name to its module, and `compute_metric` computes one in memory:

>>> compute_metric("accuracy", predictions=[0, 2, 1, 1], references=[0, 2, 2, 1])
{'accuracy': 0.75}

The modules are ordinary `evaluate.Metric`s: `Accuracy().compute(...)`, `add_batch` and `evaluate.combine` all work.
Where one takes classes or multi-label rows, it sees from the first row which of the two it is given. `positive_ranks`
turns the embeddings of a contrastive set into the ranks that `accuracy_at_1` and `mrr` are computed from.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.sparse import csr_array
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    recall_score,
)

# Class numbers are float64 too: encoding to int64, `evaluate` would silently truncate a probability of 0.7 to class 0.
NUMBERS = Features({"predictions": Value("float64"), "references": Value("float64")})
INDICATORS = Features({"predictions": List(Value("float64")), "references": List(Value("float64"))})
RANKS = Features({"predictions": Value("float64")})
# Of several options `evaluate` takes the first that the first row fits.
CLASSES_OR_INDICATORS = [INDICATORS, NUMBERS]

# In float32 a score of 0.2 is 0.2000000030, which would fall out of a lower fifth that ends at 0.2.
SCORE_TOLERANCE = 1e-6
# Equal vectors may differ by a rounding error within one matrix product, by the block that they fall into.
TIE_TOLERANCE = 1e-9


def _normalise(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def positive_ranks(
    anchors: np.ndarray,
    candidates: np.ndarray,
    positive_index: np.ndarray | Sequence[int],
    chunk_size: int = 1024,
    left_out: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """
    Rank each anchor's positive among all candidates by cosine: what `accuracy_at_1` and `mrr` are computed from.

    Ties count against us: the rank is 1 plus the number of other candidates whose cosine is at least the positive's
    (within 1e-9; NaN counts as a tie). An embedding that maps all sentences to one vector thus ranks last, not first.
    For the same reason candidates must be distinct sentences: a second copy of the positive pushes it to rank 2. Where
    anchors share a positive, list it once and let the `positive_index` of each point at it.

    Args:
        anchors: `(rows, dim)`, normalised or not; a zero vector has cosine 0 with everything.
        candidates: `(candidates, dim)`, normalised or not.
        positive_index: `(rows,)`, the place of each anchor's positive in `candidates`, counted from 0.
        chunk_size: anchors compared at once; memory is bounded by one `(chunk_size, candidates)` float64 matrix.
        left_out: for each anchor, the places of candidates that its positive is not compared with: answers that are
            right as well, or the anchor's own sentence.

    Returns:
        `(rows,)` int64 ranks, from 1 (best) to the number of candidates.

    Raises:
        ValueError: the shapes do not fit together, or `positive_index` points outside them, or `chunk_size` < 1.

    Example:
        >>> candidates = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> positive_ranks(np.array([[2.0, 0.1], [1.0, 0.9]]), candidates, positive_index=[0, 1])
        array([1, 3])
    """
    anchors, candidates, positive_index = np.asarray(anchors), np.asarray(candidates), np.asarray(positive_index)
    if anchors.ndim != 2 or candidates.ndim != 2 or anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            "Parameters `anchors` and `candidates` should be (rows, dim) and (candidates, dim) with the same dim. "
            f"Found {anchors.shape} and {candidates.shape}."
        )
    if positive_index.shape != (len(anchors),) or ((positive_index < 0) | (positive_index >= len(candidates))).any():
        raise ValueError(
            f"Parameter `positive_index` should hold, for each of {len(anchors)} anchors, a place among "
            f"{len(candidates)} candidates, counted from 0. Found shape {positive_index.shape} and values from "
            f"{positive_index.min(initial=0)} to {positive_index.max(initial=0)}."
        )
    if chunk_size < 1:
        raise ValueError(f"Parameter `chunk_size` should be at least 1. Found {chunk_size}.")
    candidates = _normalise(candidates)
    ranks = np.empty(len(anchors), dtype=np.int64)
    for start in range(0, len(anchors), chunk_size):
        chunk = slice(start, start + chunk_size)
        cosines = _normalise(anchors[chunk]) @ candidates.T  # (chunk, candidates)
        positives = np.take_along_axis(cosines, positive_index[chunk, None], axis=1)  # (chunk, 1)
        # Counting those below leaves the positive itself in the rank, and NaN, which is below nothing.
        is_below = cosines < positives - TIE_TOLERANCE
        for row, places in enumerate(left_out[chunk] if left_out is not None else ()):
            is_below[row, places] = True
        ranks[chunk] = len(candidates) - np.count_nonzero(is_below, axis=1)
    return ranks


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


def _whole(name: str, values: Sequence, what: str) -> np.ndarray:
    array = np.asarray(values)
    fractions = array[array != np.rint(array)]
    if fractions.size:
        raise ValueError(f"Parameter `{name}` should hold {what}, which are whole numbers. Found {fractions[0]}.")
    return array.astype(np.int64)


def _indicators(predictions: Sequence, references: Sequence) -> tuple[csr_array, csr_array]:
    """Both as sparse 0/1 indicators `(rows, labels)`: of thousands of labels a row has a few."""
    lengths = {len(row) for rows in (predictions, references) for row in rows}
    strangers: set[float] = set()
    for rows in (predictions, references):
        values = np.concatenate(rows)
        strangers.update(np.unique(values[(values != 0) & (values != 1)]).tolist())
    if len(lengths) > 1 or strangers:
        raise ValueError(
            f"Multi-label rows should hold one 0 or 1 for every label. Found rows of {sorted(lengths)[:5]} "
            f"values, and values other than 0 and 1: {sorted(strangers)[:5]}. "
            "Compare probabilities with their thresholds, and turn lists of labels into indicators."
        )
    sides = [np.asarray(rows, dtype=np.int8) for rows in (predictions, references)]
    return tuple(sides) if lengths == {1} else tuple(map(csr_array, sides))  # scikit-learn takes no sparse column


def _classes(predictions: Sequence, references: Sequence) -> tuple[Any, Any]:
    """Both as class numbers `(rows,)` or as 0/1 indicators `(rows, labels)`."""
    if np.ndim(references[0]) == 1:
        return _indicators(predictions, references)
    return _whole("predictions", predictions, "classes"), _whole("references", references, "classes")


def _f1(predictions: list, references: list, average: str) -> float:
    predictions, references = _classes(predictions, references)
    # A matrix of one column is a binary task to scikit-learn, which would average over "no" and "yes": ask for "yes".
    labels = [1] if references.shape[1:] == (1,) else None
    return float(f1_score(references, predictions, labels=labels, average=average, zero_division=0))


def _correlation(correlate: Callable, predictions: list, references: list) -> float:
    """NaN where a side is constant (a single row always is), which scipy warns of or refuses."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return float("nan")
    return float(correlate(predictions, references).statistic)


def _ranks(predictions: list) -> np.ndarray:
    ranks = _whole("predictions", predictions, "ranks")
    if ranks.min() < 1:
        raise ValueError(f"Parameter `predictions` should hold ranks, which count from 1. Found {ranks.min()}.")
    return ranks


class _Metric(evaluate.Metric):
    """What all modules share: the docstring is the description, and missing or empty input is refused in words."""

    row_features: Features | list[Features] = NUMBERS

    def _info(self) -> evaluate.MetricInfo:
        docstring = inspect.getdoc(type(self))
        summary = docstring.split("\n\n")[0]
        return evaluate.MetricInfo(summary, citation="", features=self.row_features, inputs_description=docstring)

    def check_rows(self, given: dict[str, Sequence | None]) -> None:
        """Raise a ValueError for what is missing or empty."""
        for name, rows in given.items():
            if rows is None or len(rows) == 0:
                raise ValueError(
                    f"Parameter `{name}` of {type(self).__name__} should hold at least one row. Found {rows!r}."
                )

    def add_batch(self, *, predictions: Sequence | None = None, references: Sequence | None = None, **kwargs) -> None:
        """Add rows; see the metric for their form."""
        given = {"predictions": predictions, "references": references}
        self.check_rows({name: given[name] for name in self._feature_names()})
        super().add_batch(predictions=predictions, references=references, **kwargs)


class Accuracy(_Metric):
    """
    Share of rows whose class is right; of multi-label rows, the share whose labels are all right (subset accuracy).

    Args:
        predictions, references: class numbers `(rows,)`, or for multi-label 0/1 indicators `(rows, labels)`.

    Returns:
        `accuracy`, 0 to 1. Source: scikit-learn, `sklearn.metrics.accuracy_score`.
    """

    row_features = CLASSES_OR_INDICATORS

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        predictions, references = _classes(predictions, references)
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(_Metric):
    """
    F1 of each class, averaged with equal weight.

    The average is over the classes present in references or predictions; one that only the predictions hold counts
    as 0. Multi-label: over all label columns; one without a 1 on either side counts as 0.

    Args:
        predictions, references: class numbers `(rows,)`, or for multi-label 0/1 indicators `(rows, labels)`.

    Returns:
        `macro_f1`, 0 to 1. Source: scikit-learn, `sklearn.metrics.f1_score`, average="macro", zero_division=0.
    """

    row_features = CLASSES_OR_INDICATORS

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"macro_f1": _f1(predictions, references, "macro")}


class MicroF1(_Metric):
    """
    F1 of all decisions counted together; with one class per row it equals accuracy.

    Args:
        predictions, references: class numbers `(rows,)`, or for multi-label 0/1 indicators `(rows, labels)`.

    Returns:
        `micro_f1`, 0 to 1; 0 where multi-label rows hold no 1 at all. Source: scikit-learn,
        `sklearn.metrics.f1_score`, average="micro", zero_division=0.
    """

    row_features = CLASSES_OR_INDICATORS

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"micro_f1": _f1(predictions, references, "micro")}


class MacroRecall(_Metric):
    """
    Recall of each class, averaged with equal weight over the classes present in the references.

    Args:
        predictions, references: class numbers `(rows,)`.

    Returns:
        `macro_recall`, 0 to 1, the measure of TweetEval's sentiment set (arXiv 2010.12421). Source: scikit-learn,
        `sklearn.metrics.recall_score`, average="macro".
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        predictions, references = _classes(predictions, references)
        present = np.unique(references)
        return {"macro_recall": float(recall_score(references, predictions, labels=present, average="macro"))}


class MCC(_Metric):
    """
    Matthews correlation coefficient, of two or more classes.

    It is computed from the counts of the classes: scikit-learn's own counts all pairs of classes.

    Args:
        predictions, references: class numbers `(rows,)`.

    Returns:
        `mcc`, -1 to 1; 0 where a side holds one class only. Source: Gorodkin 2004, "Comparing two K-category
        assignments by a K-category correlation coefficient", as in `sklearn.metrics.matthews_corrcoef`.
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        predictions, references = _classes(predictions, references)
        _, numbers = np.unique([predictions, references], return_inverse=True)
        predicted, labelled = numbers.reshape(2, -1)
        counts = [np.bincount(side, minlength=numbers.max() + 1).astype(float) for side in (predicted, labelled)]
        total = float(len(labelled))
        covariance = np.count_nonzero(predicted == labelled) * total - counts[0] @ counts[1]
        spreads = [total**2 - count @ count for count in counts]
        return {"mcc": float(covariance / math.sqrt(math.prod(spreads))) if all(spreads) else 0.0}


class Spearman(_Metric):
    """
    Spearman rank correlation; equal values share their mean rank.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `spearman`, -1 to 1; NaN, being undefined, where a side is constant. Source: scipy, `scipy.stats.spearmanr`.
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"spearman": _correlation(spearmanr, predictions, references)}


class Pearson(_Metric):
    """
    Pearson linear correlation.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `pearson`, -1 to 1; NaN, being undefined, where a side is constant. Source: scipy, `scipy.stats.pearsonr`.
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"pearson": _correlation(pearsonr, predictions, references)}


class MSE(_Metric):
    """
    Mean squared error.

    Args:
        predictions, references: numbers `(rows,)`; scikit-learn refuses NaN with a ValueError.

    Returns:
        `mse`, 0 or more. Source: scikit-learn, `sklearn.metrics.mean_squared_error`.
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"mse": float(mean_squared_error(references, predictions))}


class MAE(_Metric):
    """
    Mean absolute error.

    Args:
        predictions, references: numbers `(rows,)`; scikit-learn refuses NaN with a ValueError.

    Returns:
        `mae`, 0 or more. Source: scikit-learn, `sklearn.metrics.mean_absolute_error`.
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"mae": float(mean_absolute_error(references, predictions))}


class CosineSpearman(_Metric):
    """
    Spearman rank correlation of the embeddings' cosines with graded scores, as usual for sentence similarity.

    Args:
        predictions: cosines `(rows,)`.
        references: graded scores `(rows,)`, of any range.

    Returns:
        `cosine_spearman`, -1 to 1; NaN, being undefined, where a side is constant. Sources: SentEval, arXiv
        1803.05449; Reimers et al. 2016, "Task-Oriented Intrinsic Evaluation of Semantic Textual Similarity".
    """

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"cosine_spearman": _correlation(spearmanr, predictions, references)}


class MeanCosine(_Metric):
    """
    Mean cosine of the related and of the unrelated pairs: how far apart the embeddings keep the two.

    Related pairs have a score in the upper fifth of the range (of 0 to 5: at least 4), unrelated ones in the lower
    fifth (at most 1). Those between count for neither.

    Args:
        predictions: cosines `(rows,)`.
        references: graded scores `(rows,)`.
        score_range: lowest and highest possible score. None takes those found in the references: right for any scale
            that the rows make full use of. Give it where they do not, or where splits are compared.

    Returns:
        `mean_cosine_related` and `mean_cosine_unrelated`, -1 to 1; NaN where there is no such pair, and where
        `score_range` is None and all scores are equal.

    Raises:
        ValueError: `score_range` is not from low to high, or a score lies outside it.
    """

    def _compute(
        self, predictions: list, references: list, score_range: tuple[float, float] | None = None
    ) -> dict[str, float]:
        cosines, scores = np.asarray(predictions), np.asarray(references)
        least, most = low, high = scores.min(), scores.max()
        if score_range is not None:
            low, high = score_range
        tolerance = SCORE_TOLERANCE * (high - low)
        if score_range is not None and not (low < high and low - tolerance <= least and most <= high + tolerance):
            raise ValueError(
                f"Parameter `score_range` should be (low, high) and hold every score. Found ({low}, {high}), "
                f"and scores from {least} to {most}. Give the range of the data set's own scores."
            )
        fifth = (high - low) / 5 + tolerance
        groups = {"related": scores >= high - fifth, "unrelated": scores <= low + fifth}
        return {
            f"mean_cosine_{group}": float(cosines[rows].mean()) if low < high and rows.any() else float("nan")
            for group, rows in groups.items()
        }


class AccuracyAt1(_Metric):
    """
    Share of anchors whose positive ranks first among all candidates of the set.

    Args:
        predictions: ranks `(rows,)` counted from 1, as `positive_ranks` gives them. There are no references.

    Returns:
        `accuracy_at_1`, 0 to 1.
    """

    row_features = RANKS

    def _compute(self, predictions: list) -> dict[str, float]:
        return {"accuracy_at_1": float((_ranks(predictions) == 1).mean())}


class MRR(_Metric):
    """
    Mean reciprocal rank of the positives among all candidates of the set, without a cut-off.

    Args:
        predictions: ranks `(rows,)` counted from 1, as `positive_ranks` gives them. There are no references.

    Returns:
        `mrr`, above 0 to 1. Source: Voorhees 1999, "The TREC-8 Question Answering Track Report".
    """

    row_features = RANKS

    def _compute(self, predictions: list) -> dict[str, float]:
        return {"mrr": float((1 / _ranks(predictions)).mean())}


METRIC_MODULES: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "macro_f1": MacroF1,
    "micro_f1": MicroF1,
    "macro_recall": MacroRecall,
    "mcc": MCC,
    "spearman": Spearman,
    "pearson": Pearson,
    "mse": MSE,
    "mae": MAE,
    "cosine_spearman": CosineSpearman,
    "mean_cosine_related": MeanCosine,
    "mean_cosine_unrelated": MeanCosine,
    "accuracy_at_1": AccuracyAt1,
    "mrr": MRR,
}

__all__ = [
    "METRIC_MODULES",
    "compute_metric",
    "positive_ranks",
    *sorted({module.__name__ for module in METRIC_MODULES.values()}),
]
