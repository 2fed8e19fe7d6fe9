"""The metrics against scikit-learn and scipy, against examples worked by hand, and in evaluate's own ways of use."""

import doctest
import math
import socket
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from multitask_sentence.data import metrics as metrics_module
from multitask_sentence.data.metrics import METRIC_MODULES, compute_metric, positive_ranks, ranks
from multitask_sentence.data.metrics.modules import (
    MCC,
    MRR,
    MSE,
    Accuracy,
    AccuracyAt1,
    CosineSpearman,
    MacroF1,
    MacroRecall,
    MeanCosine,
    MicroF1,
    Pearson,
    Spearman,
)

CLASS_METRICS = ["accuracy", "macro_f1", "micro_f1", "macro_recall", "mcc"]
MULTI_LABEL_METRICS = ["accuracy", "macro_f1", "micro_f1"]
CORRELATIONS = ["spearman", "pearson", "cosine_spearman"]
RANK_METRICS = ["accuracy_at_1", "mrr"]


def compute_one(name: str, predictions, references=None, **kwargs) -> float:
    return compute_metric(name, predictions, references, **kwargs)[name]


def example_input(name: str) -> dict[str, list]:
    if name in RANK_METRICS:
        return {"predictions": [1, 2]}
    if name == "f1":
        return {"predictions": [0, 1, 1], "references": [0, 1, 0], "labels": [1]}
    return {"predictions": [0, 1, 1], "references": [0, 1, 0]}


# Every metric


@pytest.mark.parametrize("name", sorted(METRIC_MODULES))
def test_result_holds_the_public_name_and_plain_floats(name):
    result = compute_metric(name, **example_input(name))
    assert name in result
    assert {type(value) for value in result.values()} == {float}
    assert set(result) <= set(METRIC_MODULES)


@pytest.mark.parametrize("name", sorted(METRIC_MODULES))
def test_module_describes_itself(name):
    module = METRIC_MODULES[name](keep_in_memory=True)
    assert f"`{name}`" in module.inputs_description
    assert "predictions" in module.inputs_description
    assert module.description in module.inputs_description


@pytest.mark.parametrize("name", sorted(METRIC_MODULES))
def test_empty_input_is_refused(name):
    for column in example_input(name).keys() - {"labels"}:
        with pytest.raises(ValueError, match=rf"`{column}` of .* should hold at least one row\. Found \[\]"):
            compute_metric(name, **{**example_input(name), column: []})


def test_missing_references_are_named():
    with pytest.raises(ValueError, match=r"`references` of MacroF1 should hold at least one row\. Found None"):
        compute_metric("macro_f1", predictions=[0, 1])


def test_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match=r"predictions \(2\) and references \(3\)"):
        compute_metric("accuracy", [0, 1], [0, 1, 1])


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("macro_f", "macro_f1"), ("spearmann", "spearman"), ("mean_mrr", "mrr")]
)
def test_unknown_metric_names_the_nearest_and_the_known_ones(wrong, nearest):
    with pytest.raises(ValueError, match=f"Found '{wrong}'; the nearest is '{nearest}'. Known metrics: .*") as error:
        compute_metric(wrong, [0], [0])
    assert all(f"'{name}'" in str(error.value).split("Known metrics")[1] for name in METRIC_MODULES)


@pytest.mark.parametrize("module", [metrics_module, ranks])
def test_doctests_show_what_is_returned(module):
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


# Ways of use that evaluate offers


def test_direct_instantiation_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name, metric in METRIC_MODULES.items():
        assert name in metric(keep_in_memory=True).compute(**example_input(name))


def test_combine_gives_every_metric_of_class_numbers():
    combined = evaluate.combine([Accuracy(keep_in_memory=True), MacroF1(keep_in_memory=True)])
    assert combined.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0]) == {
        "accuracy": 0.75,
        "macro_f1": pytest.approx((0.8 + 2 / 3) / 2),
    }


def test_combine_gives_every_metric_of_multi_label_rows():
    combined = evaluate.combine([metric(keep_in_memory=True) for metric in (Accuracy, MacroF1, MicroF1)])
    assert combined.compute(predictions=[[1, 0], [1, 1]], references=[[1, 0], [0, 1]]) == {
        "accuracy": 0.5,
        "macro_f1": pytest.approx((2 / 3 + 1) / 2),
        "micro_f1": pytest.approx(0.8),
    }


def test_combine_gives_both_rank_metrics_without_references():
    combined = evaluate.combine([AccuracyAt1(keep_in_memory=True), MRR(keep_in_memory=True)])
    assert combined.compute(predictions=[1, 2]) == {"accuracy_at_1": 0.5, "mrr": 0.75}


def test_combine_gives_all_similarity_metrics_without_prefix():
    combined = evaluate.combine([metric(keep_in_memory=True) for metric in (CosineSpearman, MeanCosine)])
    assert combined.compute(predictions=[0.1, 0.5, 0.9], references=[0.0, 2.0, 5.0]) == {
        "cosine_spearman": pytest.approx(1.0),
        "mean_cosine_related": 0.9,
        "mean_cosine_unrelated": 0.1,
    }


def test_batches_added_one_by_one_equal_one_call(tmp_path):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 2, (2, 12, 3))
    metric = MacroF1(cache_dir=str(tmp_path))
    for start in range(0, 12, 5):
        metric.add_batch(predictions=predictions[start : start + 5], references=references[start : start + 5])
    assert metric.compute() == compute_metric("macro_f1", predictions, references)


def test_one_module_takes_class_numbers_after_multi_label_rows():
    metric = Accuracy(keep_in_memory=True)
    assert metric.compute(predictions=[[1, 0]], references=[[1, 0]]) == {"accuracy": 1.0}
    assert metric.compute(predictions=[2, 0], references=[2, 1]) == {"accuracy": 0.5}


def test_compute_metric_writes_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))
    opened = []
    monkeypatch.setattr(evaluate.module, "FileLock", opened.append)
    compute_metric("accuracy", [0, 1], [0, 1])
    assert [path for path in Path(tmp_path).rglob("*") if path.is_file()] == []
    assert opened == []


# Classes


def sklearn_class_metric(name: str, predictions: np.ndarray, references: np.ndarray) -> float:
    return {
        "accuracy": lambda: sklearn_metrics.accuracy_score(references, predictions),
        "macro_f1": lambda: sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0),
        "micro_f1": lambda: sklearn_metrics.f1_score(references, predictions, average="micro", zero_division=0),
        "macro_recall": lambda: sklearn_metrics.balanced_accuracy_score(references, predictions),
        "mcc": lambda: sklearn_metrics.matthews_corrcoef(references, predictions),
    }[name]()


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_class_metric_equals_scikit_learn(name):
    rng = np.random.default_rng(1)
    references = rng.choice(5, size=200, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    predictions = np.where(rng.random(200) < 0.6, references, rng.integers(0, 5, 200))
    assert compute_one(name, predictions, references) == pytest.approx(
        sklearn_class_metric(name, predictions, references), rel=1e-12
    )


@pytest.mark.parametrize("name", MULTI_LABEL_METRICS)
def test_multi_label_metric_equals_scikit_learn(name):
    rng = np.random.default_rng(2)
    references = rng.random((100, 4)) < [0.5, 0.3, 0.2, 0.05]
    predictions = references ^ (rng.random((100, 4)) < 0.2)
    predictions, references = predictions.astype(int), references.astype(int)
    assert compute_one(name, predictions, references) == pytest.approx(
        sklearn_class_metric(name, predictions, references), rel=1e-12
    )
    assert compute_one(name, predictions.tolist(), references.tolist()) == compute_one(name, predictions, references)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # References 0 0 0 1, predictions 0 0 2 1: F1 of 0 is 2*2/(2*2+1) = 0.8, of 1 is 1, of 2 is 0.
        ("accuracy", 0.75),
        ("macro_f1", (0.8 + 1 + 0) / 3),
        ("micro_f1", 0.75),
        # Recall of 0 is 2/3, of 1 is 1; 2 is absent from the references.
        ("macro_recall", (2 / 3 + 1) / 2),
        # (c s - sum t p) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)) with c = 3, s = 4, t = 3 1 0, p = 2 1 1.
        ("mcc", (3 * 4 - (3 * 2 + 1 * 1)) / math.sqrt((16 - 6) * (16 - 10))),
    ],
)
def test_class_metric_by_hand_with_a_class_that_only_predictions_hold(name, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_one(name, [0, 0, 2, 1], [0, 0, 0, 1]) == pytest.approx(expected)


# Classes 0 1 2: none, against, favor. Against: predicted 3 times, labelled 3 times, 2 of them right: 4 / 6. Favor:
# predicted 2 times, labelled once, right once: 2 / 3. Rows of "none" count only where they are taken for one of these.
STANCES = {"predictions": [1, 1, 1, 2, 2, 0, 0], "references": [1, 1, 0, 2, 0, 0, 1]}


@pytest.mark.parametrize(
    ("labels", "expected"), [([1], 4 / 6), ([2], 2 / 3), ([1, 2], 2 / 3), ([3], 0.0), ([1, 3], 1 / 3)]
)
def test_f1_of_chosen_classes_by_hand(labels, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_one("f1", **STANCES, labels=labels) == pytest.approx(expected)


@pytest.mark.parametrize("labels", [[0], [3], [1, 2], [4, 0, 2], [0, 1, 2, 3, 4]])
def test_f1_of_chosen_classes_equals_scikit_learn(labels):
    rng = np.random.default_rng(6)
    references = rng.choice(5, size=300, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    predictions = np.where(rng.random(300) < 0.6, references, rng.integers(0, 5, 300))
    rows = rng.random((2, 100, 5)) < 0.3
    for found, right in ((predictions, references), rows.astype(int)):
        expected = sklearn_metrics.f1_score(right, found, labels=labels, average="macro", zero_division=0)
        assert compute_one("f1", found, right, labels=labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("labels", [[], [1, 1]])
def test_f1_of_no_class_or_of_one_twice_is_refused(labels):
    with pytest.raises(ValueError, match="should hold the numbers of one or more classes"):
        compute_metric("f1", [0, 1], [0, 1], labels=labels)


@pytest.mark.parametrize("name", [*CORRELATIONS, "mse", "mae"])
def test_a_prediction_that_is_no_number_leaves_the_metric_undefined(name):
    assert math.isnan(compute_one(name, [0.1, float("nan"), 0.3], [1.0, 2.0, 3.0]))


def test_macro_recall_and_macro_f1_count_a_class_that_is_never_predicted_as_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_one("macro_recall", [0, 0, 0], [0, 0, 1]) == 0.5
        assert compute_one("macro_f1", [0, 0, 0], [0, 0, 1]) == pytest.approx(0.8 / 2)


def test_mcc_of_a_single_class_is_zero_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_one("mcc", [1, 1], [1, 1]) == 0.0
        assert compute_one("mcc", [1, 1], [1, 0]) == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Columns: 1 true positive; 1 true positive and 1 false positive; nothing on either side.
        ("accuracy", 0.5),
        ("macro_f1", (1 + 2 / 3 + 0) / 3),
        ("micro_f1", 2 * 2 / (2 * 2 + 1)),
    ],
)
def test_multi_label_metric_by_hand_with_an_absent_label(name, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_one(name, [[1, 1, 0], [0, 1, 0]], [[1, 0, 0], [0, 1, 0]]) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "expected"), [("accuracy", 0.75), ("macro_f1", 2 / 3), ("micro_f1", 2 / 3)])
def test_multi_label_with_one_label_scores_that_label_alone(name, expected):
    # "Yes" has F1 2/3; read as two classes, "no" with its 0.8 would be averaged in.
    assert compute_one(name, [[1], [0], [0], [0]], [[1], [1], [0], [0]]) == pytest.approx(expected)


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_probabilities_given_for_classes_are_refused(name):
    with pytest.raises(ValueError, match=r"`predictions` should hold classes, which are whole numbers\. Found 0\.7"):
        compute_metric(name, [1, 0.7], [1, 1])


@pytest.mark.parametrize("name", MULTI_LABEL_METRICS)
@pytest.mark.parametrize(
    ("predictions", "references", "found"),
    [
        ([[0.7, 0.1]], [[1, 0]], r"0 and 1: \[0\.1, 0\.7\]"),
        ([[1, 0], [1, 0]], [[1, 0], [2, 0]], r"0 and 1: \[2\.0\]"),
        ([[0], [0, 1]], [[0], [0, 1]], r"rows of \[1, 2\] values"),
        ([[0, 1, 0]], [[0, 1]], r"rows of \[2, 3\] values"),
    ],
)
def test_multi_label_rows_that_are_no_indicators_are_refused(name, predictions, references, found):
    with pytest.raises(ValueError, match=f"one 0 or 1 for every label. Found .*{found}"):
        compute_metric(name, predictions, references)


@pytest.mark.parametrize("metric", [MacroRecall, MCC, Spearman, Pearson, MSE, CosineSpearman, MeanCosine, MRR])
def test_metric_without_multi_label_form_refuses_rows_of_labels(metric):
    columns = {"predictions": [[1, 0], [0, 1]]}
    if metric is not MRR:
        columns["references"] = [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match="match the expected format"):
        metric(keep_in_memory=True).compute(**columns)


def test_class_numbers_against_multi_label_rows_are_refused():
    with pytest.raises(ValueError, match="match the expected format"):
        compute_metric("accuracy", [1, 0], [[1, 0], [0, 1]])


# Numbers


@pytest.mark.parametrize("name", [*CORRELATIONS, "mse", "mae"])
def test_number_metric_equals_scipy_or_scikit_learn(name):
    rng = np.random.default_rng(3)
    references = rng.integers(0, 6, 300).astype(float)  # with ties, as graded scores have them
    predictions = np.exp(references + rng.normal(size=300))
    expected = {
        "spearman": stats.spearmanr(predictions, references).statistic,
        "cosine_spearman": stats.spearmanr(predictions, references).statistic,
        "pearson": stats.pearsonr(predictions, references).statistic,
        "mse": sklearn_metrics.mean_squared_error(references, predictions),
        "mae": sklearn_metrics.mean_absolute_error(references, predictions),
    }
    assert compute_one(name, predictions, references) == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Predictions 1 2 9, references 0 3 2, so ranks 1 2 3 and 1 3 2: 1 - 6 * (0 + 1 + 1) / (3 * 8).
        ("spearman", 0.5),
        ("cosine_spearman", 0.5),
        # Deviations -3 -2 5 and -5/3 4/3 1/3: product 4, squares 38 and 14/3.
        ("pearson", 4 / math.sqrt(38 * 14 / 3)),
        ("mse", (1 + 1 + 49) / 3),
        ("mae", (1 + 1 + 7) / 3),
    ],
)
def test_number_metric_by_hand(name, expected):
    assert compute_one(name, [1, 2, 9], [0, 3, 2]) == pytest.approx(expected)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize(
    ("predictions", "references"),
    [([0.1, 0.1, 0.1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([0.3], [2.0])],
    ids=["predictions", "references", "one row"],
)
def test_correlation_of_constant_input_is_nan_without_warning(name, predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(compute_one(name, predictions, references))


# Mean cosines


def mean_cosines(predictions, references, **kwargs) -> tuple[float, float]:
    result = compute_metric("mean_cosine_related", predictions, references, **kwargs)
    return result["mean_cosine_related"], result["mean_cosine_unrelated"]


def test_mean_cosine_takes_the_fifths_with_their_bounds():
    cosines, scores = [0.9, 0.7, 0.5, 0.4, 0.3, 0.1], [5.0, 4.0, 3.9, 1.1, 1.0, 0.0]
    assert mean_cosines(cosines, scores, score_range=(0.0, 5.0)) == pytest.approx((0.8, 0.2))


def test_mean_cosine_keeps_scores_on_the_bound_after_float32():
    scores = np.array([1.0, 0.8, 0.5, 0.2, 0.0], dtype=np.float32)
    assert float(scores[3]) > 0.2, "premise: float32 puts this score above the bound"
    assert mean_cosines([0.9, 0.7, 0.5, 0.3, 0.1], scores, score_range=(0.0, 1.0)) == pytest.approx((0.8, 0.2))


@pytest.mark.parametrize("scale", [0.2, 1.0, 20.0])
def test_mean_cosine_without_a_range_takes_that_of_the_references(scale):
    scores = scale * np.array([5.0, 4.0, 3.0, 1.0, 0.0]) - 7.0
    assert mean_cosines([0.9, 0.7, 0.5, 0.3, 0.1], scores) == pytest.approx((0.8, 0.2))


def test_mean_cosine_of_a_group_without_pairs_is_nan_without_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        related, unrelated = mean_cosines([0.9, 0.5], [5.0, 3.0], score_range=(0.0, 5.0))
        assert related == 0.9
        assert math.isnan(unrelated)
        assert all(math.isnan(value) for value in mean_cosines([0.9, 0.5], [3.0, 3.0]))


@pytest.mark.parametrize("score_range", [(0.0, 1.0), (4.0, 5.0), (5.0, 0.0)])
def test_score_range_that_does_not_hold_the_scores_is_refused(score_range):
    low, high = score_range
    with pytest.raises(ValueError, match=rf"Found \({low}, {high}\), and scores from 3.0 to 4.5"):
        mean_cosines([0.9, 0.5], [3.0, 4.5], score_range=score_range)


def test_score_range_without_width_is_refused():
    with pytest.raises(ValueError, match=r"Found \(3.0, 3.0\), and scores from 3.0 to 3.0"):
        mean_cosines([0.9, 0.5], [3.0, 3.0], score_range=(3.0, 3.0))


# Ranks


def test_accuracy_at_1_and_mrr_by_hand():
    assert compute_one("accuracy_at_1", [1, 2, 4, 1]) == 0.5
    assert compute_one("mrr", [1, 2, 4, 1]) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1) / 4)


@pytest.mark.parametrize("name", RANK_METRICS)
@pytest.mark.parametrize(("ranks", "found"), [([1, 0], "Found 0"), ([1, 1.5], "Found 1.5")])
def test_what_is_no_rank_is_refused(name, ranks, found):
    with pytest.raises(ValueError, match=f"should hold ranks, which .* {found}"):
        compute_metric(name, ranks)


def test_positive_ranks_by_hand_use_cosine_not_dot_product():
    anchors = np.array([[1.0, 0.0], [0.0, 3.0], [1.0, 0.2]])
    candidates = np.array([[0.5, 0.0], [9.0, 9.0], [0.0, 0.1]])
    # The cosines fall from candidate 0 over 1 to 2 for the first and third anchor, and the other way for the second.
    assert positive_ranks(anchors, candidates, [0, 2, 2]).tolist() == [1, 1, 3]
    assert positive_ranks(anchors, candidates, [1, 1, 0]).tolist() == [2, 2, 1]


def test_ties_count_against_the_positive():
    same = np.ones((4, 3))
    assert positive_ranks(same, same, range(4)).tolist() == [4, 4, 4, 4]


def test_equal_vectors_tie_wherever_they_stand():
    rng = np.random.default_rng(4)
    candidates = np.repeat(rng.normal(size=(1, 37)), 1001, axis=0).astype(np.float32)
    anchors = rng.normal(size=(29, 37)).astype(np.float32)
    assert set(positive_ranks(anchors, candidates, rng.integers(0, 1001, 29), chunk_size=7)) == {1001}


def test_nan_and_zero_vectors_rank_last():
    candidates = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    anchors = np.array([[np.nan, 0.0], [0.0, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert positive_ranks(anchors, candidates, [0, 1]).tolist() == [3, 3]


def test_positive_ranks_leave_out_other_right_answers():
    same = np.ones((3, 2))
    left_out = [[1], [], [0, 1]]
    for chunk_size in (1, 2, 3):
        assert positive_ranks(same, same, [0, 1, 2], chunk_size, left_out).tolist() == [2, 3, 1]


@pytest.mark.parametrize("chunk_size", [1, 7, 99, 100, 1000])
def test_positive_ranks_do_not_depend_on_the_chunk_size(chunk_size):
    rng = np.random.default_rng(5)
    candidates = rng.normal(size=(130, 16)).astype(np.float32)
    positive_index = rng.integers(0, 130, 100)
    anchors = candidates[positive_index] + 2 * rng.normal(size=(100, 16)).astype(np.float32)
    cosines = sklearn_metrics.pairwise.cosine_similarity(anchors.astype(np.float64), candidates.astype(np.float64))
    order = np.argsort(-cosines, axis=1)
    expected = 1 + np.argmax(order == positive_index[:, None], axis=1)
    assert len(set(expected.tolist())) > 10, "premise: the positives do not all rank first"
    assert positive_ranks(anchors, candidates, positive_index, chunk_size=chunk_size).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("anchors", "candidates", "positive_index", "chunk_size", "message"),
    [
        ((2, 3), (4, 5), [0, 1], 8, r"same dim. Found \(2, 3\) and \(4, 5\)"),
        ((3,), (4, 3), [0], 8, r"same dim. Found \(3,\) and \(4, 3\)"),
        ((2, 3), (4, 3), [0], 8, r"2 anchors, .* Found shape \(1,\)"),
        ((2, 3), (4, 3), [0, 4], 8, "4 candidates, .* values from 0 to 4"),
        ((2, 3), (4, 3), [-1, 0], 8, "4 candidates, .* values from -1 to 0"),
        ((2, 3), (4, 3), [0, 1], -1, "`chunk_size` should be at least 1. Found -1"),
    ],
)
def test_positive_ranks_refuse_what_does_not_fit(anchors, candidates, positive_index, chunk_size, message):
    with pytest.raises(ValueError, match=message):
        positive_ranks(np.ones(anchors), np.ones(candidates), positive_index, chunk_size=chunk_size)
