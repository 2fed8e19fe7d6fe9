"""What a task learns from its teachers, each loss summed over its rows, as those of the labels are.

The Trainer mixes them: `share * (mean over labelled rows) + (1 - share) * (mean over answered rows)`. Where the same
rows have a label and an answer, that has the gradient of the mixed target `share * label + (1 - share) * answer`, in
which born-again multi-task networks (Clark et al. 2019, arXiv 1907.04829, section 3.2) put it: cross-entropy and BCE
are linear in their targets, and squared errors differ by what does not depend on the student. A row without a label
counts in the second mean alone.

Class weights, label smoothing and `pos_weight` belong to the label. A teacher that was trained with them answers
accordingly already, and a student that answers as its teacher does has nothing to learn from it.

With zero rows every loss is an exact zero that is still connected to what it is computed from, never NaN.
"""

from typing import Any

import torch
import torch.nn.functional as F

from ...tasks_multitask import TaskConfig
from ..losses.losses import cosent, mse

DIVERGENCE_TEMPERATURE = 0.05  # what cosines are divided by, as in multiple negatives ranking


def soft_cross_entropy(logits: torch.Tensor, probabilities: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    Cross-entropy with a teacher's probabilities, times the square of the temperature, summed over rows.

    Dividing logits by a temperature makes gradients smaller by about its square (Hinton et al. 2015, arXiv 1503.02531,
    section 2), hence the factor. Averages of several teachers' probabilities are the targets of MT-DNN's distillation
    (Liu et al. 2019, arXiv 1904.09482, section 3).

    Args:
        logits: the student's, `(rows, num_labels)`.
        probabilities: the teacher's at the same temperature, `(rows, num_labels)`.
        temperature: above 0.
    """
    return F.cross_entropy(logits / temperature, probabilities, reduction="sum") * temperature**2


def soft_binary_cross_entropy(
    logits: torch.Tensor, probabilities: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """
    BCE with a teacher's probabilities, times the square of the temperature, mean over labels, summed over rows.

    Args:
        logits: the student's, `(rows, num_labels)`.
        probabilities: the teacher's at the same temperature, `(rows, num_labels)`.
        temperature: above 0; see `soft_cross_entropy`.
    """
    summed = F.binary_cross_entropy_with_logits(logits / temperature, probabilities, reduction="sum")
    return summed * temperature**2 / logits.shape[1]


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    """Of each row's first sentence with each of its others: `(rows, sentences, dim)` gives `(rows, sentences - 1)`."""
    return (vectors[:, :1] * vectors[:, 1:]).sum(dim=-1)


def cosine_distillation(vectors: torch.Tensor, teacher_vectors: torch.Tensor) -> torch.Tensor:
    """
    Squared error of the student's cosines with the teacher's, mean over a row's cosines, summed over rows.

    Of each row's own sentences alone; Tung and Mori 2019 (arXiv 1907.09682, section 3) do it for all of a batch.

    Args:
        vectors: the student's, of length 1: `(rows, sentences of a row, embedding_dim)`.
        teacher_vectors: `(rows, sentences of a row, dim)`, of length 1.
    """
    student, teacher = _cosines(vectors), _cosines(teacher_vectors)
    return F.mse_loss(student, teacher, reduction="sum") / student.shape[1]


def cosent_distillation(vectors: torch.Tensor, teacher_vectors: torch.Tensor) -> torch.Tensor:
    """
    CoSENT (see `losses.cosent`) with the teacher's cosines as scores. Value times rows; arguments as above.

    Only the order of the cosines is learnt, of those that stand in one micro-batch. A student that equals its teacher
    still has a gradient, which pulls the cosines apart.
    """
    student, teacher = _cosines(vectors), _cosines(teacher_vectors)
    return cosent(student.flatten(), teacher.flatten()) / student.shape[1]


def similarity_divergence(
    vectors: torch.Tensor,
    teacher_vectors: torch.Tensor,
    rows: torch.Tensor,
    temperature: float = DIVERGENCE_TEMPERATURE,
) -> torch.Tensor:
    """
    How the student's neighbourhoods differ from the teacher's: for each distinct sentence, the divergence
    `KL(teacher || student)` between the distributions that a softmax makes of its cosines with all others, divided by
    the temperature (Fang et al. 2021, arXiv 2101.04731, section 3.2, where the others come from a queue). Mean over
    sentences, times rows.

    The others are those of one micro-batch, so the value depends on it.

    Args:
        vectors, teacher_vectors: as above.
        rows: where the sentences stand in the batch, `(rows, sentences of a row)`: equal numbers are equal sentences.
        temperature: what cosines are divided by.
    """
    distinct, inverse = rows.flatten().unique(return_inverse=True)
    if len(distinct) < 2:
        return vectors.sum() * 0
    first = torch.empty_like(distinct).scatter_(0, inverse, torch.arange(len(inverse), device=rows.device))
    itself = torch.eye(len(distinct), dtype=torch.bool, device=rows.device)

    def log_distribution(found: torch.Tensor) -> torch.Tensor:
        chosen = found.flatten(0, 1)[first]  # (sentences, dim)
        return (chosen @ chosen.T / temperature).masked_fill(itself, -1e4).log_softmax(dim=-1)

    divergence = F.kl_div(
        log_distribution(vectors), log_distribution(teacher_vectors), reduction="sum", log_target=True
    )
    return divergence * (len(rows) / len(distinct))


def teacher_loss(
    task: TaskConfig,
    distillation: Any,
    logits: torch.Tensor,
    targets: torch.Tensor,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """
    What one task learns from its teachers, summed over its answered rows, in float32.

    Args:
        task: its settings.
        distillation: the `Distillation` in force.
        logits: what the model gives for the task: `(rows, num_labels)`, or `(rows,)` values or cosines.
        targets: what `SoftTargets` gives for the rows.
        embeddings: `(sentences, embedding_dim)` of the batch.
        rows: where the task's sentences stand in the batch.
    """
    logits = logits.float()
    if task.kind.is_multi_label:
        return soft_binary_cross_entropy(logits, targets, distillation.temperature)
    if task.kind.has_labels:
        return soft_cross_entropy(logits, targets, distillation.temperature)
    if task.kind.has_head:
        return mse(logits, targets, task.target_scale[1])
    vectors = F.normalize(embeddings.float(), dim=-1)[rows]  # (rows, sentences of a row, embedding_dim)
    if distillation.similarity_loss == "cosent":
        return cosent_distillation(vectors, targets)
    if distillation.similarity_loss == "divergence":
        return similarity_divergence(vectors, targets, rows)
    return cosine_distillation(vectors, targets)


__all__ = [
    "cosent_distillation",
    "cosine_distillation",
    "similarity_divergence",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "teacher_loss",
]
