"""The problem types a task can have, and what each of them means: one record for each, which everything else reads.

    PROBLEM_TYPES      by name, a `ProblemType`
    LOSSES             by name, a `Loss`: its options, and whether it compares the rows of a batch
    METRICS            by name, a `Metric`: which way is better, and what the Hub calls it
    find_problem_type  the record of a name that a user wrote, or an error that names the known ones

A new problem type is a record here. What computes its loss and its metrics stands in
training/losses/losses.py and data/metrics/. This file travels with every saved model.
"""

from dataclasses import dataclass
from typing import Any

from .checks_multitask import check_choice


@dataclass(frozen=True)
class Loss:
    """
    A loss as a recipe may name it; the functions in training/ compute it and have the defaults of its options.

    Attributes:
        options: what `loss_options` may say.
        compares_rows: whether it compares the rows of a batch with each other, so that several must stand together.
    """

    options: tuple[str, ...] = ()
    compares_rows: bool = False


@dataclass(frozen=True)
class Metric:
    """
    A metric as a recipe may name it; data/metrics/ computes it.

    Attributes:
        is_error: smaller is better, so that it cannot choose the best checkpoint.
        hub_name: the Hub's own name (hf.co/metrics), `None` where it is the same.
        hub_arguments: further arguments that the Hub's name needs.
    """

    is_error: bool = False
    hub_name: str | None = None
    hub_arguments: dict[str, str] | None = None


@dataclass(frozen=True)
class ProblemType:
    """
    What a task of this type reads, gives and learns from.

    Attributes:
        columns: the sentence columns of a row, each form that they may have.
        losses: the first is the default.
        metrics: the first is the default, and the primary metric.
        settings: the keys of a task's settings that only some types know.
        hub_task: tag and name of what the Hub calls such a task.
        least_labels: how many label names there must be at least.
        has_label_column: whether a row has a label of its own; without one, the pairs themselves are what is right.
        has_scores: whether the label is a number.
    """

    columns: tuple[tuple[str, ...], ...]
    losses: tuple[str, ...]
    metrics: tuple[str, ...]
    settings: tuple[str, ...]
    hub_task: tuple[str, str]
    least_labels: int = 0
    has_label_column: bool = True
    has_scores: bool = False

    @property
    def has_head(self) -> bool:
        """Whether a head of its own answers it; the other types compare two embeddings."""
        return "head" in self.settings

    @property
    def has_labels(self) -> bool:
        """Whether its answers are label names."""
        return "labels" in self.settings

    @property
    def is_multi_label(self) -> bool:
        """Whether a row may have any number of the labels, each decided by a threshold of its own."""
        return "thresholds" in self.settings

    @property
    def has_target_scale(self) -> bool:
        """Whether the head gives one number, in units of the training targets' deviation."""
        return "target_mean" in self.settings

    @property
    def has_score_range(self) -> bool:
        """Whether the cosine of two sentences is compared with a score."""
        return "score_range" in self.settings

    @property
    def is_always_pair(self) -> bool:
        """Whether every row holds several sentences; else a task says so with `pair`."""
        return all(len(form) > 1 for form in self.columns)


LOSSES = {
    "cross_entropy": Loss(options=("class_weights", "label_smoothing")),
    "binary_cross_entropy": Loss(options=("pos_weight",)),
    "mse": Loss(),
    "cosent": Loss(options=("temperature",), compares_rows=True),
    "cosine_mse": Loss(),
    "multiple_negatives_ranking": Loss(options=("temperature", "symmetric"), compares_rows=True),
}
# Weights of labels that are counted on training rows, and the power of a label's inverse frequency that they follow.
COUNTED_WEIGHTS = {"balanced": 1.0, "sqrt_balanced": 0.5}

METRICS = {
    "accuracy": Metric(),
    "macro_f1": Metric(hub_name="f1", hub_arguments={"average": "macro"}),
    "f1": Metric(hub_arguments={"average": "macro"}),  # of the classes that a task lists under f1_labels
    "micro_f1": Metric(hub_name="f1", hub_arguments={"average": "micro"}),
    "macro_recall": Metric(hub_name="recall", hub_arguments={"average": "macro"}),
    "mcc": Metric(hub_name="matthews_correlation"),
    "spearman": Metric(hub_name="spearmanr"),
    "pearson": Metric(hub_name="pearsonr"),
    "mse": Metric(is_error=True),
    "mae": Metric(is_error=True),
    "cosine_spearman": Metric(hub_name="spearmanr"),
    "mrr": Metric(),
    "accuracy_at_1": Metric(),
}

_ONE_OR_TWO = (("sentence",), ("sentence1", "sentence2"))
_CLASSIFICATION = ("text-classification", "Text Classification")  # so the Hub counts a regression on text as well
_SIMILARITY = ("sentence-similarity", "Sentence Similarity")

PROBLEM_TYPES = {
    "single_label_classification": ProblemType(
        columns=_ONE_OR_TWO,
        losses=("cross_entropy",),
        metrics=("accuracy", "macro_f1", "macro_recall", "micro_f1", "f1", "mcc"),
        settings=("labels", "head", "f1_labels", "temperatures", "abstain", "out_of_scope"),
        hub_task=_CLASSIFICATION,
        least_labels=2,
    ),
    "multi_label_classification": ProblemType(
        columns=_ONE_OR_TWO,
        losses=("binary_cross_entropy",),
        metrics=("macro_f1", "micro_f1", "f1", "accuracy"),
        settings=("labels", "head", "f1_labels", "thresholds", "temperatures", "abstain", "out_of_scope"),
        hub_task=_CLASSIFICATION,
        least_labels=1,
    ),
    "regression": ProblemType(
        columns=_ONE_OR_TWO,
        losses=("mse",),
        metrics=("spearman", "pearson", "mse", "mae"),
        settings=("head", "target_mean", "target_deviation"),
        hub_task=_CLASSIFICATION,
        has_scores=True,
    ),
    "similarity": ProblemType(
        columns=(("sentence1", "sentence2"),),
        losses=("cosent", "cosine_mse"),
        metrics=("cosine_spearman",),
        settings=("score_range",),
        hub_task=_SIMILARITY,
        has_scores=True,
    ),
    "contrastive": ProblemType(
        columns=(("anchor", "positive"), ("anchor", "positive", "negative")),
        losses=("multiple_negatives_ranking",),
        metrics=("mrr", "accuracy_at_1"),
        settings=(),
        hub_task=_SIMILARITY,
        has_label_column=False,
    ),
}


def find_problem_type(where: str, name: Any) -> ProblemType:
    """The record of a problem type's name; a ValueError that names the known ones for any other value."""
    check_choice(where, name, tuple(PROBLEM_TYPES))
    return PROBLEM_TYPES[name]
