"""The metrics as `evaluate` modules, which need no network: `Accuracy().compute(...)`, `add_batch` and
`evaluate.combine` all work.

A module checks its rows and leaves the arithmetic to `counted`, a function of counted.py, with every row counted once.
Where one takes classes or multi-label rows, it sees from the first row which of the two it is given.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, List, Value

from . import counted

# Class numbers are float64 too: encoding to int64, `evaluate` would silently truncate a probability of 0.7 to class 0.
NUMBERS = Features({"predictions": Value("float64"), "references": Value("float64")})
INDICATORS = Features({"predictions": List(Value("float64")), "references": List(Value("float64"))})
RANKS = Features({"predictions": Value("float64")})
# Of several options `evaluate` takes the first that the first row fits.
CLASSES_OR_INDICATORS = [INDICATORS, NUMBERS]

# In float32 a score of 0.2 is 0.2000000030, which would fall out of a lower fifth that ends at 0.2.
SCORE_TOLERANCE = 1e-6


def _whole(name: str, values: Sequence, what: str) -> np.ndarray:
    array = np.asarray(values)
    fractions = array[array != np.rint(array)]
    if fractions.size:
        raise ValueError(f"Parameter `{name}` should hold {what}, which are whole numbers. Found {fractions[0]}.")
    return array.astype(np.int64)


def _indicators(predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Both as 0/1 indicators `(rows, labels)`."""
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
    return tuple(np.asarray(rows, dtype=np.int8) for rows in (predictions, references))


def _classes(predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Both as class numbers `(rows,)` or as 0/1 indicators `(rows, labels)`."""
    if np.ndim(references[0]) == 1:
        return _indicators(predictions, references)
    return _whole("predictions", predictions, "classes"), _whole("references", references, "classes")


def _numbers(predictions: Sequence, references: Sequence) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)


def _ranks(predictions: Sequence) -> tuple[np.ndarray]:
    ranks = _whole("predictions", predictions, "ranks")
    if ranks.min() < 1:
        raise ValueError(f"Parameter `predictions` should hold ranks, which count from 1. Found {ranks.min()}.")
    return (ranks,)


class _Metric(evaluate.Metric):
    """What all modules share: the docstring is the description, and missing or empty input is refused in words."""

    row_features: Features | list[Features] = NUMBERS
    metric: ClassVar[str]  # the public name
    counted: ClassVar[Callable[..., np.ndarray]]  # of counted.py
    read: ClassVar[Callable[..., tuple[np.ndarray, ...]]] = staticmethod(_numbers)  # rows to checked arrays

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

    def _compute(
        self, *, predictions: Sequence, references: Sequence | None = None, **options: Any
    ) -> dict[str, float]:
        arrays = self.read(predictions) if references is None else self.read(predictions, references)
        (score,) = self.counted(np.ones((1, len(predictions))), *arrays, **options)
        return {self.metric: float(score)}


class Accuracy(_Metric):
    """
    Share of rows whose class is right; of multi-label rows, the share whose labels are all right (subset accuracy).

    Args:
        predictions, references: class numbers `(rows,)`, or for multi-label 0/1 indicators `(rows, labels)`.

    Returns:
        `accuracy`, 0 to 1. Source: scikit-learn, `sklearn.metrics.accuracy_score`.
    """

    row_features = CLASSES_OR_INDICATORS
    metric, counted = "accuracy", staticmethod(counted.accuracy)
    read = staticmethod(_classes)


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
    metric, counted = "macro_f1", staticmethod(counted.macro_f1)
    read = staticmethod(_classes)


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
    metric, counted = "micro_f1", staticmethod(counted.micro_f1)
    read = staticmethod(_classes)


class F1(_Metric):
    """
    F1 of chosen classes, averaged with equal weight: of one class, that class's F1.

    A chosen class that is on neither side counts as 0; rows of other classes count as wrong where they are taken for a
    chosen one.

    Args:
        predictions, references: class numbers `(rows,)`, or for multi-label 0/1 indicators `(rows, labels)`.
        labels: the numbers of the chosen classes.

    Returns:
        `f1`, 0 to 1. With one class the measure of SemEval-2018 task 3 (irony, Van Hee et al. 2018, aclanthology
        S18-1005), with `against` and `favor` that of SemEval-2016 task 6 (stance, Mohammad et al. 2016, aclanthology
        S16-1003); both in TweetEval (arXiv 2010.12421). Source: scikit-learn, `sklearn.metrics.f1_score`, labels=...,
        average="macro", zero_division=0.

    Raises:
        ValueError: `labels` names no class, or one twice.
    """

    row_features = CLASSES_OR_INDICATORS
    metric = "f1"
    read = staticmethod(_classes)

    @staticmethod
    def counted(
        counts: np.ndarray, predictions: np.ndarray, references: np.ndarray, labels: Sequence[int] = ()
    ) -> np.ndarray:
        """See `counted.f1_of_classes`."""
        if not len(labels) or len(set(labels)) < len(labels):
            raise ValueError(f"Parameter `labels` should hold the numbers of one or more classes. Found {labels!r}.")
        return counted.f1_of_classes(counts, predictions, references, labels)


class MacroRecall(_Metric):
    """
    Recall of each class, averaged with equal weight over the classes present in the references.

    Args:
        predictions, references: class numbers `(rows,)`.

    Returns:
        `macro_recall`, 0 to 1, the measure of TweetEval's sentiment set (arXiv 2010.12421). Source: scikit-learn,
        `sklearn.metrics.balanced_accuracy_score`; `recall_score` with average="macro" is the same, but counts a class
        that only the predictions hold as 0.
    """

    metric, counted = "macro_recall", staticmethod(counted.macro_recall)
    read = staticmethod(_classes)


class MCC(_Metric):
    """
    Matthews correlation coefficient, of two or more classes.

    Args:
        predictions, references: class numbers `(rows,)`.

    Returns:
        `mcc`, -1 to 1; 0 where a side holds one class only. Source: Gorodkin 2004, "Comparing two K-category
        assignments by a K-category correlation coefficient", as in `sklearn.metrics.matthews_corrcoef`.
    """

    metric, counted = "mcc", staticmethod(counted.mcc)
    read = staticmethod(_classes)


class Spearman(_Metric):
    """
    Spearman rank correlation; equal values share their mean rank.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `spearman`, -1 to 1; NaN, being undefined, where a side is constant. Source: scipy, `scipy.stats.spearmanr`.
    """

    metric, counted = "spearman", staticmethod(counted.spearman)


class Pearson(_Metric):
    """
    Pearson linear correlation.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `pearson`, -1 to 1; NaN, being undefined, where a side is constant. Source: scipy, `scipy.stats.pearsonr`.
    """

    metric, counted = "pearson", staticmethod(counted.pearson)


class MSE(_Metric):
    """
    Mean squared error.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `mse`, 0 or more; NaN where a number is. Source: scikit-learn, `sklearn.metrics.mean_squared_error`.
    """

    metric, counted = "mse", staticmethod(counted.mse)


class MAE(_Metric):
    """
    Mean absolute error.

    Args:
        predictions, references: numbers `(rows,)`.

    Returns:
        `mae`, 0 or more; NaN where a number is. Source: scikit-learn, `sklearn.metrics.mean_absolute_error`.
    """

    metric, counted = "mae", staticmethod(counted.mae)


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

    metric, counted = "cosine_spearman", staticmethod(counted.spearman)


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
        self, *, predictions: Sequence, references: Sequence, score_range: tuple[float, float] | None = None
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
    metric, counted = "accuracy_at_1", staticmethod(counted.accuracy_at_1)
    read = staticmethod(_ranks)


class MRR(_Metric):
    """
    Mean reciprocal rank of the positives among all candidates of the set, without a cut-off.

    Args:
        predictions: ranks `(rows,)` counted from 1, as `positive_ranks` gives them. There are no references.

    Returns:
        `mrr`, above 0 to 1. Source: Voorhees 1999, "The TREC-8 Question Answering Track Report".
    """

    row_features = RANKS
    metric, counted = "mrr", staticmethod(counted.mrr)
    read = staticmethod(_ranks)


METRIC_MODULES: dict[str, type[_Metric]] = {
    module.metric: module
    for module in (
        *(Accuracy, MacroF1, MicroF1, F1, MacroRecall, MCC),
        *(Spearman, Pearson, MSE, MAE, CosineSpearman, AccuracyAt1, MRR),
    )
} | dict.fromkeys(("mean_cosine_related", "mean_cosine_unrelated"), MeanCosine)

__all__ = ["METRIC_MODULES", *sorted({module.__name__ for module in METRIC_MODULES.values()})]
