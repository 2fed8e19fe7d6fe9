"""The losses of the five problem types, each summed over its rows.

The Trainer divides the sum by the number of labelled rows of the whole optimizer step, so that cross-entropy, BCE and
MSE do not depend on how a step is cut into micro-batches and processes. CoSENT and multiple negatives ranking compare
the rows of one micro-batch with each other and do depend on it: more rows together mean more pairs, or more negatives.

With zero rows every loss is an exact zero that is still connected to the logits, never NaN.
"""

from typing import Any

import torch
import torch.nn.functional as F

SCALE = 20.0  # of cosines in CoSENT and in multiple negatives ranking: the inverse of the temperature 0.05


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `(rows, num_labels)` logits with `(rows,)` class numbers, summed over rows."""
    return F.cross_entropy(logits, labels, reduction="sum")


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """BCE of `(rows, num_labels)` logits with a multi-hot matrix: mean over labels, summed over rows."""
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / labels.shape[1]


def mse(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Squared error of `(rows,)` values, summed over rows."""
    return F.mse_loss(values, labels, reduction="sum")


def cosent(cosines: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    CoSENT: a pair with a higher score should have a higher cosine. Value times rows.

    `log(1 + sum exp(20 (cos_j - cos_i)))` over all pairs of rows with `score_i > score_j`
    (Su 2022, "CoSENT", https://kexue.fm/archives/8847). Only the order of the scores matters.

    Args:
        cosines: `(rows,)`.
        scores: `(rows,)`, any scale.
    """
    differences = SCALE * (cosines[None, :] - cosines[:, None])  # (rows, rows): cos_j - cos_i
    differences = differences[scores[:, None] > scores[None, :]]
    zero = differences.new_zeros(1)
    return torch.logsumexp(torch.cat([zero, differences]), dim=0) * len(scores)


def cosine_mse(cosines: torch.Tensor, scores: torch.Tensor, score_range: tuple[float, float]) -> torch.Tensor:
    """Squared error of `(rows,)` cosines with scores, their range scaled to 0..1, summed over rows."""
    low, high = score_range
    return F.mse_loss(cosines, (scores - low) / (high - low), reduction="sum")


def multiple_negatives_ranking(embeddings: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """
    InfoNCE with in-batch negatives: each anchor should find its own positive among all positives and negatives of the
    batch (Henderson et al. 2017, arXiv 1705.00652, section 4.4). Cross-entropy summed over rows.

    A candidate that is the anchor itself, the same sentence as the positive, or the same sentence as another positive
    of the same anchor in the batch is no negative and left out, wherever it stands.

    Args:
        embeddings: `(sentences, embedding_dim)`, any length.
        rows: `(rows, 2 + negatives)`: where the anchor, the positive and its hard negatives stand.
    """
    num_rows = rows.shape[0]
    embeddings = F.normalize(embeddings, dim=-1)
    anchors, positives = rows[:, 0], rows[:, 1]
    candidates = rows[:, 1:].T.reshape(-1)  # (candidates,): all positives first, then all negatives
    logits = SCALE * embeddings[anchors] @ embeddings[candidates].T  # (rows, candidates)

    is_positive = (positives[:, None] == candidates[None, :]).float()  # (rows, candidates)
    same_anchor = (anchors[:, None] == anchors[None, :]).float()  # (rows, rows)
    no_negative = (same_anchor @ is_positive > 0) | (candidates[None, :] == anchors[:, None])
    targets = torch.arange(num_rows, device=rows.device)
    no_negative[targets, targets] = False
    return F.cross_entropy(logits.masked_fill(no_negative, float("-inf")), targets, reduction="sum")


def task_loss(
    settings: dict[str, Any],
    logits: torch.Tensor,
    labels: torch.Tensor,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """
    One task's loss, summed over its rows, in float32.

    Args:
        settings: the task's entry in `MultiTaskConfig.tasks`.
        logits: what the model gives for the task: `(rows, num_labels)`, or `(rows,)` values or cosines.
        labels: class numbers, multi-hot, or scores.
        embeddings: `(sentences, embedding_dim)` of the batch.
        rows: where the task's sentences stand in the batch.
    """
    logits = logits.float()
    if settings["loss"] == "cross_entropy":
        return cross_entropy(logits, labels)
    if settings["loss"] == "binary_cross_entropy":
        return binary_cross_entropy(logits, labels)
    if settings["loss"] == "mse":
        return mse(logits, labels)
    if settings["loss"] == "cosent":
        return cosent(logits, labels)
    if settings["loss"] == "cosine_mse":
        return cosine_mse(logits, labels, settings["score_range"])
    return multiple_negatives_ranking(embeddings.float(), rows)
