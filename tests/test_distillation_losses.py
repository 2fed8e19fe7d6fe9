"""What a task learns from its teachers: each loss against its formula, and nothing to learn from an equal."""

import math

import pytest
import torch
import torch.nn.functional as F

from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.distillation.losses import (
    cosent_distillation,
    cosine_distillation,
    similarity_divergence,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    teacher_loss,
)
from multitask_sentence.training.distillation.settings import Distillation
from multitask_sentence.training.losses.losses import cosent, cross_entropy, mse

TEACHERS = {"mood": ()}
LABELS = ["bad", "fair", "good"]


def unit_vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def logits(rows: int = 5, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))


def test_soft_cross_entropy_is_that_of_the_softened_distributions_times_the_squared_temperature():
    student, teacher = logits(seed=1), (logits(seed=2) / 4).softmax(dim=-1)
    expected = -(teacher * (student / 4).log_softmax(dim=-1)).sum() * 16
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 4.0), expected)


def test_temperature_leaves_the_size_of_gradients_about_the_same():
    teacher = logits(seed=2)

    def length(temperature: float) -> float:
        student = logits(seed=1).requires_grad_()
        soft_cross_entropy(student, (teacher / temperature).softmax(dim=-1), temperature).backward()
        return student.grad.norm().item()

    assert 0.4 < length(20.0) / length(5.0) < 2.5


def test_soft_binary_cross_entropy_is_the_mean_over_labels():
    student, teacher = logits(seed=1), (logits(seed=2) / 2).sigmoid()
    odds = (student / 2).sigmoid()
    expected = -(teacher * odds.log() + (1 - teacher) * (1 - odds).log()).sum() * 4 / 3
    torch.testing.assert_close(soft_binary_cross_entropy(student, teacher, 2.0), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixing_losses_has_the_gradient_of_the_mixed_target(share):
    # Clark et al. 2019 mix the targets; the Trainer mixes the losses.
    labels, teacher = torch.tensor([0, 2, 1, 1, 0]), logits(seed=2).softmax(dim=-1)
    student, other = (logits(seed=1).requires_grad_() for _ in range(2))
    (share * cross_entropy(student, labels) + (1 - share) * soft_cross_entropy(student, teacher)).backward()
    mixed = share * F.one_hot(labels, 3) + (1 - share) * teacher
    (-(mixed * other.log_softmax(dim=-1)).sum()).backward()
    torch.testing.assert_close(student.grad, other.grad)
    values, targets, answers = (logits(seed=seed)[:, 0] for seed in (3, 4, 5))
    value, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    (share * mse(value, targets, 2.0) + (1 - share) * mse(value, answers, 2.0)).backward()
    mse(other, share * targets + (1 - share) * answers, 2.0).backward()
    torch.testing.assert_close(value.grad, other.grad)


def test_cosine_distillation_is_the_squared_error_of_each_rows_cosines():
    student, teacher = unit_vectors(4, 3, 6, seed=1), unit_vectors(4, 3, 9, seed=2)
    expected = 0.0
    for row in range(4):
        errors = [student[row, 0] @ student[row, k] - teacher[row, 0] @ teacher[row, k] for k in (1, 2)]
        expected += sum(error.item() ** 2 for error in errors) / 2
    assert cosine_distillation(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_cosent_distillation_takes_the_teachers_cosines_as_scores():
    student, teacher = unit_vectors(6, 2, 5, seed=1), unit_vectors(6, 2, 8, seed=2)
    cosines = [(vectors[:, 0] * vectors[:, 1]).sum(dim=-1) for vectors in (student, teacher)]
    torch.testing.assert_close(cosent_distillation(student, teacher), cosent(*cosines))


def test_divergence_compares_each_sentence_with_all_other_distinct_ones():
    rows = torch.tensor([[0, 1], [2, 0]])  # sentence 0 stands in both rows
    student, teacher = unit_vectors(3, 5, seed=1), unit_vectors(3, 7, seed=2)
    expected = 0.0
    for one in range(3):
        others = [other for other in range(3) if other != one]
        found = [(vectors[one] @ vectors[others].T / 0.05).softmax(dim=-1) for vectors in (student, teacher)]
        expected += (found[1] * (found[1] / found[0]).log()).sum().item()
    assert similarity_divergence(student[rows], teacher[rows], rows).item() == pytest.approx(
        expected * 2 / 3, rel=1e-4
    )


@pytest.mark.parametrize("loss", ["soft_cross_entropy", "soft_bce", "mse", "cosine_mse", "divergence"])
def test_student_that_equals_its_teacher_has_nothing_to_learn(loss):
    student = logits().requires_grad_()
    vectors = unit_vectors(4, 2, 6).requires_grad_()
    rows = torch.arange(8).view(4, 2)
    value = {
        "soft_cross_entropy": lambda: soft_cross_entropy(student, (student.detach() / 3).softmax(dim=-1), 3.0),
        "soft_bce": lambda: soft_binary_cross_entropy(student, (student.detach() / 3).sigmoid(), 3.0),
        "mse": lambda: mse(student[:, 0], student[:, 0].detach()),
        "cosine_mse": lambda: cosine_distillation(vectors, vectors.detach()),
        "divergence": lambda: similarity_divergence(vectors, vectors.detach(), rows),
    }[loss]()
    value.backward()
    found = vectors.grad if student.grad is None else student.grad
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=2e-6)


def test_class_weights_and_smoothing_do_not_touch_the_teachers_part():
    settings = complete_task(
        "mood",
        {
            "problem_type": "single_label_classification",
            "labels": LABELS,
            "loss_options": {"class_weights": [9, 1, 1], "label_smoothing": 0.3},
        },
    )
    student, targets = logits(seed=1), logits(seed=2).softmax(dim=-1)
    found = teacher_loss(settings, Distillation(TEACHERS), student, targets, torch.zeros(5, 4), torch.arange(5))
    torch.testing.assert_close(found, soft_cross_entropy(student, targets))


def test_regression_counts_errors_in_units_of_the_targets_deviation():
    task = {"problem_type": "regression", "target_mean": 50.0, "target_deviation": 10.0}
    settings = complete_task("rating", task)
    values, targets = torch.tensor([40.0, 60.0]), torch.tensor([50.0, 55.0])
    found = teacher_loss(settings, Distillation({"rating": ()}), values, targets, torch.zeros(2, 4), torch.arange(2))
    assert found.item() == pytest.approx((10**2 + 5**2) / 10**2)


@pytest.mark.parametrize("similarity_loss", ["cosine_mse", "cosent", "divergence"])
def test_no_answered_row_is_a_zero_that_touches_the_embeddings(similarity_loss):
    settings = complete_task("pairs", {"problem_type": "similarity"})
    embeddings = torch.randn(3, 4, requires_grad=True)
    rows, targets = torch.empty(0, 2, dtype=torch.long), torch.empty(0, 2, 1)
    distillation = Distillation({"pairs": ()}, similarity_loss=similarity_loss)
    found = teacher_loss(settings, distillation, embeddings.sum(dim=-1)[:0], targets, embeddings, rows)
    found.backward()
    assert found.item() == 0
    assert torch.equal(embeddings.grad, torch.zeros(3, 4))


def test_label_share_grows_linearly_from_the_first_step_to_the_last():
    annealing = Distillation(TEACHERS)
    assert [annealing.label_share(step, 5) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert annealing.label_share(0, 1) == 0.0
    assert math.isclose(Distillation(TEACHERS, schedule=0.4).label_share(3, 5), 0.4)
