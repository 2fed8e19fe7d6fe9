"""The losses of the five problem types, each summed over its rows.

The Trainer divides the sum by the number of labelled rows of the whole optimizer step, so that cross-entropy, BCE and
MSE do not depend on how a step is cut into micro-batches and processes. CoSENT and multiple negatives ranking (in
contrastive.py) compare the rows of one micro-batch with each other and do depend on it: more rows together mean more
pairs, or more negatives. Multiple negatives ranking takes in the rows of all processes, CoSENT those of its own.

Weights and smoothing (`loss_options`) are part of a task's loss, in training as in evaluation. With class weights it
stays a mean over rows, `sum(weight * loss) / rows`, where torch's own `mean` divides by the sum of the weights: so the
rows of a step can be cut in any way here too. Balanced weights are 1 on average over the training rows, and there the
two agree; given weights scale the loss by their average.

A regression task's values come in the units of its labels. Their error counts in units of the training targets'
deviation, so that it is about 1 at the start whether scores go from 0 to 1 or from 0 to 100.

With zero rows every loss is an exact zero that is still connected to the logits, never NaN.
"""

import torch
import torch.nn.functional as F

from ...tasks_multitask import TaskConfig
from .contrastive import multiple_negatives_ranking


def _weights(weights: list[float] | str | None, logits: torch.Tensor) -> torch.Tensor | None:
    if isinstance(weights, str):
        raise ValueError(
            f"{weights} weights need training rows to count: MultiTaskTrainer puts numbers in their place."
        )
    return None if weights is None else logits.new_tensor(weights)


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: list[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """
    Cross-entropy, summed over rows.

    Args:
        logits: `(rows, num_labels)`.
        labels: `(rows,)` class numbers.
        class_weights: what a row of each class counts (1 by default).
        label_smoothing: the share of the target that goes to all classes alike (Szegedy et al. 2015, arXiv 1512.00567,
            section 7); a class's part of it is weighted with that class's weight.
    """
    weights = _weights(class_weights, logits)
    return F.cross_entropy(logits, labels, weight=weights, label_smoothing=label_smoothing, reduction="sum")


def binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, pos_weight: list[float] | None = None
) -> torch.Tensor:
    """
    BCE, mean over labels, summed over rows.

    Args:
        logits: `(rows, num_labels)`.
        labels: `(rows, num_labels)`, multi-hot.
        pos_weight: for each label, how many times a row that has it counts (1 by default).
    """
    weights = _weights(pos_weight, logits)
    summed = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum")
    return summed / labels.shape[1]


def mse(values: torch.Tensor, labels: torch.Tensor, deviation: float = 1.0) -> torch.Tensor:
    """Squared error of `(rows,)` values in units of the targets' `deviation`, summed over rows."""
    return F.mse_loss(values, labels, reduction="sum") / deviation**2


def cosent(cosines: torch.Tensor, scores: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """
    CoSENT: a pair with a higher score should have a higher cosine. Value times rows.

    `log(1 + sum exp((cos_j - cos_i) / temperature))` over all pairs of rows with `score_i > score_j`
    (Su 2022, "CoSENT", https://kexue.fm/archives/8847). Only the order of the scores matters.

    Args:
        cosines: `(rows,)`.
        scores: `(rows,)`, any scale.
        temperature: what differences of cosines are divided by.
    """
    differences = (1 / temperature) * (cosines[None, :] - cosines[:, None])  # (rows, rows): cos_j - cos_i
    differences = differences[scores[:, None] > scores[None, :]]
    zero = differences.new_zeros(1)
    return torch.logsumexp(torch.cat([zero, differences]), dim=0) * len(scores)


def cosine_mse(cosines: torch.Tensor, scores: torch.Tensor, score_range: tuple[float, float]) -> torch.Tensor:
    """Squared error of `(rows,)` cosines with scores, their range scaled to 0..1, summed over rows."""
    low, high = score_range
    return F.mse_loss(cosines, (scores - low) / (high - low), reduction="sum")


def task_loss(
    task: TaskConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    gather: bool = False,
) -> torch.Tensor:
    """
    One task's loss, summed over its rows, in float32.

    Args:
        task: its settings; `loss_options` go to the loss.
        logits: what the model gives for the task: `(rows, num_labels)`, or `(rows,)` values or cosines.
        labels: class numbers, multi-hot, or scores; for contrastive tasks the sentences' ids, which are read only
            where rows are gathered.
        embeddings: `(sentences, embedding_dim)` of the batch.
        rows: where the task's sentences stand in the batch.
        gather: whether a contrastive task takes in the rows of all processes, which must then all come here.
    """
    logits, options = logits.float(), task.loss_options
    if task.loss == "cross_entropy":
        return cross_entropy(logits, labels, **options)
    if task.loss == "binary_cross_entropy":
        return binary_cross_entropy(logits, labels, **options)
    if task.loss == "mse":
        return mse(logits, labels, task.target_scale[1])
    if task.loss == "cosent":
        return cosent(logits, labels, **options)
    if task.loss == "cosine_mse":
        return cosine_mse(logits, labels, task.score_range)
    return multiple_negatives_ranking(embeddings.float(), rows, sentence_ids=labels if gather else None, **options)
