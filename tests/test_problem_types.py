"""The table of problem types, and that whatever computes something by a name of it knows exactly these names."""

import dataclasses

import pytest

from multitask_sentence.data.metrics import METRIC_MODULES
from multitask_sentence.problem_types_multitask import LOSSES, METRICS, PROBLEM_TYPES, find_problem_type


def test_problem_types_are_known_by_these_names() -> None:
    assert list(PROBLEM_TYPES) == [
        "single_label_classification",
        "multi_label_classification",
        "regression",
        "similarity",
        "contrastive",
    ]
    assert {name for name, kind in PROBLEM_TYPES.items() if kind.has_head} == {
        "single_label_classification",
        "multi_label_classification",
        "regression",
    }
    assert {name for name, kind in PROBLEM_TYPES.items() if kind.has_labels} == {
        "single_label_classification",
        "multi_label_classification",
    }
    assert {name for name, kind in PROBLEM_TYPES.items() if kind.is_always_pair} == {"similarity", "contrastive"}
    assert {name for name, kind in PROBLEM_TYPES.items() if not kind.has_label_column} == {"contrastive"}
    assert {name for name, kind in PROBLEM_TYPES.items() if kind.has_scores} == {"regression", "similarity"}
    assert {name for name, kind in PROBLEM_TYPES.items() if kind.hub_task[0] == "sentence-similarity"} == {
        "similarity",
        "contrastive",
    }


def test_losses_and_metrics_are_those_that_the_problem_types_list() -> None:
    assert set(LOSSES) == {loss for kind in PROBLEM_TYPES.values() for loss in kind.losses}
    assert set(METRICS) == {metric for kind in PROBLEM_TYPES.values() for metric in kind.metrics}


def test_losses_that_compare_rows_are_those_over_pairs() -> None:
    assert {name for name, loss in LOSSES.items() if loss.compares_rows} == {"cosent", "multiple_negatives_ranking"}


def test_metrics_go_by_the_names_of_the_hub() -> None:
    assert {name: (metric.hub_name, metric.hub_arguments) for name, metric in METRICS.items() if metric.hub_name} == {
        "macro_f1": ("f1", {"average": "macro"}),
        "micro_f1": ("f1", {"average": "micro"}),
        "macro_recall": ("recall", {"average": "macro"}),
        "mcc": ("matthews_correlation", None),
        "spearman": ("spearmanr", None),
        "pearson": ("pearsonr", None),
        "cosine_spearman": ("spearmanr", None),
    }


def test_every_metric_that_a_task_can_list_is_computed_and_resampled() -> None:
    assert set(METRICS) == set(METRIC_MODULES) - {"mean_cosine_related", "mean_cosine_unrelated"}


def test_problem_type_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROBLEM_TYPES["regression"].losses = ("mae",)


@pytest.mark.parametrize("found", ["regresion", None, ["regression"], {"regression": 1}])
def test_unknown_problem_type_names_the_known_ones(found: object) -> None:
    with pytest.raises(ValueError, match=r"^tasks.a.problem_type is .*should be one of single_label_classification, "):
        find_problem_type("tasks.a.problem_type", found)
    assert find_problem_type("tasks.a.problem_type", "regression") is PROBLEM_TYPES["regression"]
