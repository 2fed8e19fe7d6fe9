"""Each loss against a plain loop or an example worked by hand, its zero over no rows, and sentence-transformers."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from multitask_sentence.problem_types_multitask import PROBLEM_TYPES
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training.losses.losses import (
    binary_cross_entropy,
    cosent,
    cosine_mse,
    cross_entropy,
    mse,
    multiple_negatives_ranking,
    task_loss,
)

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "cosent", "cosine_mse", "multiple_negatives_ranking")


def cosine(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)


def ranking_loop(embeddings: torch.Tensor, rows: list[list[int]], scale: float = 20) -> float:
    """Multiple negatives ranking, sentence by sentence; equal numbers are equal sentences."""
    vectors = embeddings.tolist()
    candidates = [row[column] for column in range(1, len(rows[0])) for row in rows]
    positives_of = {anchor: {row[1] for row in rows if row[0] == anchor} for anchor, *_ in rows}
    total = 0.0
    for anchor, positive, *_ in rows:
        negatives = [c for c in candidates if c != anchor and c not in positives_of[anchor]]
        own, *others = (math.exp(scale * cosine(vectors[anchor], vectors[c])) for c in [positive, *negatives])
        total -= math.log(own / (own + sum(others)))
    return total


def test_cross_entropy_sums_minus_log_probabilities():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        expected -= math.log(math.exp(row[label]) / sum(map(math.exp, row)))
    assert cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_binary_cross_entropy_is_the_mean_over_labels_summed_over_rows():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    expected = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        probability = 1 / (1 + math.exp(-logit))
        expected -= math.log(probability if label else 1 - probability) / 3
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_mse_sums_squared_errors():
    assert mse(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([3.0, 2.0, 0.0])).item() == 5.0


def test_cosent_of_two_misordered_pairs_is_the_worked_example():
    cosines, scores = torch.tensor([0.9, 0.1]), torch.tensor([0.0, 1.0])
    assert cosent(cosines, scores).item() == pytest.approx(2 * math.log(1 + math.exp(20 * 0.8)), rel=1e-6)


def test_cosent_equals_the_double_loop():
    torch.manual_seed(0)
    cosines, scores = torch.rand(7) * 0.4, torch.tensor([0.0, 3, 1, 1, 5, 2, 3])
    total = 1.0
    for i, j in itertools.permutations(range(7), 2):
        if scores[i] > scores[j]:
            total += math.exp(20 * (cosines[j] - cosines[i]).item())
    assert cosent(cosines, scores).item() == pytest.approx(7 * math.log(total), rel=1e-5)


def test_cosent_sees_only_the_order_of_the_scores():
    torch.manual_seed(0)
    cosines, scores = torch.rand(6), torch.tensor([0.0, 1, 1, 2, 4, 5])
    torch.testing.assert_close(cosent(cosines, scores), cosent(cosines, scores.exp() * 7 - 3), rtol=0, atol=0)
    assert cosent(cosines, scores) != cosent(cosines, -scores)


@pytest.mark.parametrize("scores", [[2.0], [2.0, 2.0, 2.0]])
def test_cosent_without_an_order_is_zero_with_zero_gradient(scores):
    cosines = torch.rand(len(scores), requires_grad=True)
    loss = cosent(cosines, torch.tensor(scores))
    loss.backward()
    assert loss.item() == 0.0
    assert cosines.grad.tolist() == [0.0] * len(scores)


def test_cosine_mse_scales_the_score_range_to_0_and_1():
    cosines, scores = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([5.0, 5.0, 1.0])
    assert cosine_mse(cosines, scores, (1.0, 5.0)).item() == pytest.approx(0.5**2 + 0.25**2)


def test_multiple_negatives_ranking_of_two_orthogonal_pairs_is_the_worked_example():
    # Each anchor has cosine 1 with its positive and 0 with the other one; lengths do not matter.
    embeddings = torch.tensor([[2.0, 0], [0.5, 0], [0, 3.0], [0, 1.0]])
    loss = multiple_negatives_ranking(embeddings, torch.tensor([[0, 1], [2, 3]]))
    assert loss.item() == pytest.approx(2 * math.log(1 + math.exp(-20)), abs=1e-7)
    swapped = multiple_negatives_ranking(embeddings, torch.tensor([[0, 3], [2, 1]]))
    assert swapped.item() == pytest.approx(2 * math.log(1 + math.exp(20)), rel=1e-6)


RANKING_ROWS = pytest.mark.parametrize(
    "rows",
    [
        pytest.param([[0, 1], [2, 3], [4, 5]], id="distinct"),
        pytest.param([[0, 1, 6], [2, 3, 7], [4, 5, 8]], id="hard negatives"),
        pytest.param([[0, 1, 6, 7], [2, 3, 8, 1], [4, 5, 9, 0]], id="hard negatives from other rows"),
        pytest.param([[0, 1], [0, 1], [2, 3]], id="the same row twice"),
        pytest.param([[0, 1], [0, 2], [3, 4]], id="two positives of one anchor"),
        pytest.param([[0, 1], [0, 2], [3, 2]], id="a positive of the same anchor stands in another anchor's row"),
        pytest.param([[0, 1, 5], [0, 2, 6], [3, 4, 2]], id="a positive of the same anchor as a hard negative"),
        pytest.param([[0, 1], [2, 1], [3, 4]], id="two anchors share a positive"),
        pytest.param([[0, 1], [1, 0], [2, 3]], id="the anchor is another row's positive"),
        pytest.param([[0, 1, 1], [2, 3, 2]], id="hard negatives that are positive or anchor"),
    ],
)


@RANKING_ROWS
def test_multiple_negatives_ranking_equals_the_loop_that_leaves_out_false_negatives(rows):
    torch.manual_seed(0)
    embeddings = torch.rand(10, 6, dtype=torch.float64)
    loss = multiple_negatives_ranking(embeddings, torch.tensor(rows))
    assert loss.item() == pytest.approx(ranking_loop(embeddings, rows), rel=1e-9)


@RANKING_ROWS
def test_symmetric_ranking_is_the_mean_of_both_directions_and_its_temperature_divides(rows):
    torch.manual_seed(0)
    embeddings = torch.rand(10, 6, dtype=torch.float64)
    loss = multiple_negatives_ranking(embeddings, torch.tensor(rows), temperature=0.1, symmetric=True)
    swapped = [[positive, anchor] for anchor, positive, *_ in rows]  # hard negatives are no candidates there
    expected = (ranking_loop(embeddings, rows, 10) + ranking_loop(embeddings, swapped, 10)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_false_negatives_get_no_gradient_from_the_rows_they_are_false_for():
    torch.manual_seed(0)
    embeddings = torch.randn(5, 4, requires_grad=True)
    # 0 goes with 1 and with 2, and 3 with 4: the row (0, 1) must not see 2, nor (0, 2) see 1.
    rows = torch.tensor([[0, 1], [0, 2]])
    for loss in (multiple_negatives_ranking(embeddings, rows), multiple_negatives_ranking(embeddings, rows[[0, 0]])):
        assert loss.item() == 0.0
        assert not torch.autograd.grad(loss, embeddings)[0].any()


@pytest.mark.parametrize("symmetric", [False, True])
def test_gathering_on_one_process_changes_nothing(symmetric):
    torch.manual_seed(0)
    embeddings, rows = torch.randn(6, 4, requires_grad=True), torch.tensor([[0, 1, 4], [2, 3, 5], [0, 3, 1]])
    alone = multiple_negatives_ranking(embeddings, rows, symmetric=symmetric)
    gathered = multiple_negatives_ranking(embeddings, rows, symmetric=symmetric, sentence_ids=rows * 7 - 20)
    torch.testing.assert_close(gathered, alone, rtol=0, atol=0)
    (expected,), (found,) = (torch.autograd.grad(loss, embeddings) for loss in (alone, gathered))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_hard_negatives_raise_the_ranking_loss():
    torch.manual_seed(0)
    embeddings, rows = torch.randn(6, 4), torch.tensor([[0, 1, 4], [2, 3, 5]])
    assert multiple_negatives_ranking(embeddings, rows) > multiple_negatives_ranking(embeddings, rows[:, :2])


def test_ranking_without_any_negative_is_zero_with_zero_gradient():
    embeddings = torch.randn(2, 4, requires_grad=True)
    loss = multiple_negatives_ranking(embeddings, torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == 0.0
    assert not embeddings.grad.any()


def inputs_of(loss: str, num_rows: int, embeddings: torch.Tensor, weight: torch.Tensor) -> dict:
    """Arguments of `task_loss` whose logits depend on embeddings and, where the loss has a head, on a weight."""
    is_pair = loss in ("cosent", "cosine_mse", "multiple_negatives_ranking")
    rows = torch.arange(2 * num_rows).reshape(num_rows, 2) if is_pair else torch.arange(num_rows)
    labels = torch.arange(num_rows, dtype=torch.float)
    if is_pair:
        logits = F.cosine_similarity(embeddings[rows][:, 0], embeddings[rows][:, 1], dim=-1)
    else:
        logits = embeddings[rows] @ weight  # (rows, 3)
        if loss == "mse":
            logits = logits[:, 0]
        elif loss == "cross_entropy":
            labels = labels.long()
        else:
            labels = torch.ones(num_rows, 3)
    problem_type = next(name for name, kind in PROBLEM_TYPES.items() if loss in kind.losses)
    settings = {"labels": ["a", "b", "c"]} if PROBLEM_TYPES[problem_type].has_labels else {}
    settings |= {"score_range": [0.0, 5.0]} if PROBLEM_TYPES[problem_type].has_score_range else {}
    task = TaskConfig(problem_type=problem_type, loss=loss, **settings)
    return {"task": task, "logits": logits, "labels": labels, "embeddings": embeddings, "rows": rows}


@pytest.mark.parametrize("loss", LOSSES)
def test_task_loss_without_rows_is_an_exact_zero_with_zero_gradients(loss):
    embeddings, weight = torch.randn(4, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    value = task_loss(**inputs_of(loss, 0, embeddings, weight))
    value.backward()
    assert value.shape == ()
    assert value.item() == 0.0
    reached = [embeddings] if loss in LOSSES[3:] else [embeddings, weight]
    for tensor in reached:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_task_loss_with_rows_has_finite_gradients_that_are_not_all_zero(loss):
    torch.manual_seed(0)
    embeddings, weight = torch.randn(6, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    value = task_loss(**inputs_of(loss, 3, embeddings, weight))
    value.backward()
    assert value > 0
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.any()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("cross_entropy", lambda given: cross_entropy(given["logits"], given["labels"])),
        ("binary_cross_entropy", lambda given: binary_cross_entropy(given["logits"], given["labels"])),
        ("mse", lambda given: mse(given["logits"], given["labels"])),
        ("cosent", lambda given: cosent(given["logits"], given["labels"])),
        ("cosine_mse", lambda given: cosine_mse(given["logits"], given["labels"], (0.0, 5.0))),
        ("multiple_negatives_ranking", lambda given: multiple_negatives_ranking(given["embeddings"], given["rows"])),
    ],
)
def test_task_loss_takes_the_loss_that_the_settings_name(loss, expected):
    torch.manual_seed(0)
    given = inputs_of(loss, 3, torch.randn(6, 5), torch.randn(5, 3))
    torch.testing.assert_close(task_loss(**given), expected(given), rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_task_loss_of_half_precision_is_computed_in_float32(loss):
    torch.manual_seed(0)
    half = inputs_of(loss, 3, torch.randn(6, 5).bfloat16(), torch.randn(5, 3).bfloat16())
    value = task_loss(**half)
    full = task_loss(**{**half, "logits": half["logits"].float(), "embeddings": half["embeddings"].float()})
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, full, rtol=0, atol=0)


def test_cosent_agrees_with_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    u, v, scores = torch.randn(9, 8), torch.randn(9, 8), torch.randint(0, 5, (9,)).float()
    theirs = losses.CoSENTLoss(model=None).compute_loss_from_embeddings([u, v], scores)
    torch.testing.assert_close(cosent(F.cosine_similarity(u, v), scores) / 9, theirs)


@pytest.mark.parametrize("num_columns", [2, 3, 4])
def test_multiple_negatives_ranking_agrees_with_sentence_transformers(num_columns):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    embeddings = torch.randn(num_columns * 5, 8)
    theirs = losses.MultipleNegativesRankingLoss(model=None)
    theirs = theirs.compute_loss_from_embeddings(list(embeddings.split(5)), None)
    ours = multiple_negatives_ranking(embeddings, torch.arange(num_columns * 5).reshape(num_columns, 5).T) / 5
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_symmetric_ranking_agrees_with_sentence_transformers(temperature):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    embeddings = torch.randn(10, 8)
    theirs = losses.MultipleNegativesRankingLoss(
        model=None,
        scale=1 / temperature,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    theirs = theirs.compute_loss_from_embeddings(list(embeddings.split(5)), None)
    rows = torch.arange(10).reshape(2, 5).T
    ours = multiple_negatives_ranking(embeddings, rows, temperature=temperature, symmetric=True) / 5
    torch.testing.assert_close(ours, theirs)
