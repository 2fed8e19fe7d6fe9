"""The paired bootstrap: resampled scores are those of the metrics' modules, and the interval that of a known case."""

import time

import numpy as np
import pytest

from multitask_sentence.data.metrics import compute_metric
from multitask_sentence.data.metrics.bootstrap import paired_interval, resampled_scores
from multitask_sentence.problem_types_multitask import PROBLEM_TYPES

ROWS = 23


def draw_rows(metric: str, problem_type: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Predictions and references with everything that is special: ties, absent classes, rows without any label."""
    if metric in ("mrr", "accuracy_at_1"):
        return generator.integers(1, 9, ROWS), None
    if problem_type == "multi_label_classification":
        return tuple(generator.integers(0, 2, (2, ROWS, 4)) * [1, 1, 1, 0])  # the last label never occurs
    if problem_type == "single_label_classification":
        references = generator.choice([0, 1, 2, 4], ROWS)  # class 3 is only ever predicted
        return np.where(generator.random(ROWS) < 0.5, references, generator.integers(0, 5, ROWS)), references
    references = generator.integers(0, 5, ROWS).astype(float)
    return np.round(references + generator.normal(size=ROWS)), references


@pytest.mark.parametrize(
    ("metric", "problem_type"), [(metric, name) for name, kind in PROBLEM_TYPES.items() for metric in kind.metrics]
)
def test_resampled_score_is_that_of_the_module_on_the_rows_that_were_drawn(metric: str, problem_type: str):
    generator = np.random.default_rng(5)
    predictions, references = draw_rows(metric, problem_type, generator)
    counts = np.stack([np.bincount(generator.integers(ROWS, size=ROWS), minlength=ROWS) for _ in range(40)])
    counts[0] = np.eye(ROWS, dtype=int)[3] * ROWS  # one row all the time: correlations are undefined
    options = {"labels": [0, 3]} if metric == "f1" else {}
    found = resampled_scores(metric, counts, predictions, references, **options)
    for score, drawn in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(ROWS), drawn)
        expected = compute_metric(
            metric, predictions[rows].tolist(), None if references is None else references[rows].tolist(), **options
        )
        assert score == pytest.approx(expected[metric], abs=1e-12, nan_ok=True)
    assert np.isnan(found[0]) == (metric in ("pearson", "spearman", "cosine_spearman"))


def test_interval_of_chosen_classes_is_that_of_their_f1():
    generator = np.random.default_rng(8)
    first, second, references = generator.integers(0, 3, (3, 60))
    counts = np.stack([np.bincount(generator.integers(60, size=60), minlength=60) for _ in range(20)])
    found = resampled_scores("f1", counts, first, references, labels=[1, 2])
    for score, drawn in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(60), drawn)
        expected = compute_metric("f1", first[rows], references[rows], labels=[1, 2])["f1"]
        assert score == pytest.approx(expected, abs=1e-12)
    low, high = paired_interval("f1", first, second, references, labels=[1])
    assert paired_interval("f1", first, first, references, labels=[1]) == (0.0, 0.0), "both sides count these classes"
    assert low < high and (low, high) != paired_interval("f1", first, second, references, labels=[2])


def test_one_label_only_counts_its_yes():
    predictions, references = np.array([[1], [0], [1]]), np.array([[1], [0], [0]])
    counts = np.ones((1, 3))
    for metric in ("macro_f1", "micro_f1"):
        (found,) = resampled_scores(metric, counts, predictions, references)
        assert found == pytest.approx(compute_metric(metric, predictions.tolist(), references.tolist())[metric])


def test_interval_is_that_of_the_binomial_distribution_where_one_model_is_always_right():
    # 64 of 100 rows are right: the difference is binomial with standard deviation sqrt(0.64 * 0.36 / 100) = 0.048.
    references = np.ones(100, dtype=int)
    second = (np.arange(100) < 64).astype(int)
    low, high = paired_interval("accuracy", references, second, references, resamples=4000)
    assert low == pytest.approx(0.36 - 1.96 * 0.048, abs=0.011)
    assert high == pytest.approx(0.36 + 1.96 * 0.048, abs=0.011)


def test_interval_is_paired():
    # Both are wrong in the same 30 rows, and the second in one more: each resample differs by 0, 1, 2 ... of 100 rows.
    # Drawn for each model by itself, the difference would have a standard deviation of 0.065.
    references, first = np.ones(100, dtype=int), (np.arange(100) < 70).astype(int)
    second = (np.arange(100) < 69).astype(int)
    low, high = paired_interval("accuracy", first, second, references)
    assert low == 0.0
    assert 0.02 <= high <= 0.04


def test_interval_follows_from_the_seed_and_not_from_how_many_are_counted_at_once(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(0)
    first, second, references = generator.normal(size=(3, 50))
    found = paired_interval("spearman", first, second, references, seed=3)
    assert paired_interval("spearman", first, second, references, seed=3) == found
    assert paired_interval("spearman", first, second, references, seed=4) != found
    monkeypatch.setattr("multitask_sentence.data.metrics.bootstrap.COUNTS_AT_ONCE", 120)
    assert paired_interval("spearman", first, second, references, seed=3) == found


def test_interval_is_none_where_the_metric_is_never_defined():
    constant = np.zeros(5)
    assert paired_interval("spearman", np.arange(5.0), np.arange(5.0), constant) is None
    assert paired_interval("pearson", constant, np.arange(5.0), np.arange(5.0)) is None


def test_models_with_different_rows_are_refused():
    with pytest.raises(ValueError, match="5 and 4 predictions"):
        paired_interval("accuracy", np.zeros(5), np.zeros(4), np.zeros(5))


def test_a_thousand_resamples_of_12000_rows_take_seconds():
    generator = np.random.default_rng(0)
    first, second, references = generator.normal(size=(3, 12_000))
    started = time.process_time()
    paired_interval("spearman", first, second, references)
    assert time.process_time() - started < 60
