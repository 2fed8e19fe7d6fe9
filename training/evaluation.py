"""Measuring a model on a split: every distinct sentence is embedded once, then each task reads its own rows.

Evaluation          a split's sentences, and for each task its rows and labels
task_predictions    what a task's metrics are computed from
task_scores         loss and metrics of one task from embeddings
choose_thresholds   multi-label thresholds by F1, on validation data
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.metrics import precision_recall_curve

from ..configuration_multitask import LABELLED_PROBLEM_TYPES
from ..data.collation import LABEL_PREFIX
from ..data.metrics import compute_metric, positive_ranks
from ..inference_multitask import evaluating
from ..modeling_multitask import MultiTaskModel
from .losses import task_loss
from .plots import confusion_matrix_of


class Evaluation:
    """
    One split of all tasks, ready to be measured as often as needed.

    Args:
        sets: labelled sets with a `splits` dictionary of datasets in canonical columns.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        split: `train`, `validation` or `test`.

    Attributes:
        sentences: the distinct sentences of the split.
        rows: by task, `(rows, sentences of a row)` places in `sentences`.
        labels: by task, class numbers, multi-hot rows or scores. Tasks without a labelled row are not there.
    """

    def __init__(self, sets: Sequence[Any], tasks: dict[str, dict[str, Any]], split: str):
        places: dict[str, int] = {}
        self.rows: dict[str, torch.Tensor] = {}
        self.labels: dict[str, torch.Tensor] = {}
        for labelled_set in sets:
            if split not in labelled_set.splits:
                continue
            columns = labelled_set.splits[split].with_format(None)[:]
            for row in columns["sentences"]:
                for sentence in row:
                    places.setdefault(sentence, len(places))
            rows = [[places[sentence] for sentence in row] for row in columns["sentences"]]
            for task in labelled_set.tasks:
                labels = columns[LABEL_PREFIX + task]
                labelled = [index for index, label in enumerate(labels) if label is not None]
                if task in tasks and labelled:
                    is_class = tasks[task]["problem_type"] == "single_label_classification"
                    self.rows[task] = torch.tensor([rows[index] for index in labelled])
                    self.labels[task] = torch.tensor(
                        [labels[index] for index in labelled], dtype=torch.long if is_class else torch.float
                    )
        self.sentences = list(places)
        self.rows = {task: self.rows[task] for task in tasks if task in self.rows}


@torch.no_grad()
def task_logits(
    model: MultiTaskModel, task: str, embeddings: torch.Tensor, rows: torch.Tensor, batch_size: int
) -> list[torch.Tensor]:
    """One task's float32 logits in batches of rows, from `embeddings (sentences, dim)` and `rows (rows, k)`."""
    is_pair = model.config.tasks[task]["pair"]
    logits = []
    with evaluating(model):
        for batch in rows.split(batch_size):
            chosen, places = batch.unique(return_inverse=True)
            places = (places if is_pair else places[:, 0]).to(model.device)
            chosen = embeddings[chosen].to(model.device, model.dtype)
            logits.append(model.task_logits(chosen, task, {task: places})[task].float().cpu())
    return logits


def decisions(settings: dict[str, Any], logits: torch.Tensor) -> list:
    """Class numbers `(rows,)`, or for a multi-label task rows of 0 and 1 by its thresholds."""
    if settings["problem_type"] == "multi_label_classification":
        return (logits.sigmoid() >= torch.tensor(settings["thresholds"])).int().tolist()
    return logits.argmax(dim=-1).tolist()


def never_negatives(anchors: Sequence[int], positives: Sequence[int], candidates: Sequence[int]) -> list[list[int]]:
    """
    For each row, the candidates that are no wrong answer to its anchor, beside its own positive: the anchor's sentence
    itself, and positives of other rows with the same anchor. The loss takes none of them as a negative either.

    Args:
        anchors: each row's anchor, the number of a sentence.
        positives: each row's positive, a place in `candidates`.
        candidates: numbers of sentences.
    """
    place_of = {sentence: place for place, sentence in enumerate(candidates)}
    answers: dict[int, set[int]] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        answers.setdefault(anchor, {place_of[anchor]} if anchor in place_of else set()).add(positive)
    return [sorted(answers[anchor] - {positive}) for anchor, positive in zip(anchors, positives, strict=True)]


def task_predictions(
    settings: dict[str, Any],
    logits: torch.Tensor,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[list, list | None]:
    """
    Predictions and references of every row, as the metrics take them: class numbers, rows of 0 and 1 by the task's
    thresholds, values or cosines with their labels; ranks without references for a contrastive task.

    Args:
        settings: the task's entry in `MultiTaskConfig.tasks`.
        logits: of all rows, as `task_logits` gives them.
        embeddings: `(sentences, embedding_dim)`, as `model.embed` gives them.
        rows: `(rows, sentences of a row)`, places in `embeddings`.
        labels: `(rows,)` or `(rows, num_labels)`.
    """
    if settings["problem_type"] in LABELLED_PROBLEM_TYPES:
        return decisions(settings, logits), labels.int().tolist()
    if settings["problem_type"] == "contrastive":
        distinct, places = rows[:, 1:].unique(return_inverse=True)
        positives = places[:, 0].tolist()
        left_out = never_negatives(rows[:, 0].tolist(), positives, distinct.tolist())
        anchors = embeddings[rows[:, 0]].numpy()
        return positive_ranks(anchors, embeddings[distinct].numpy(), positives, left_out=left_out).tolist(), None
    return logits.tolist(), labels.tolist()


def task_confusion(
    model: MultiTaskModel, task: str, embeddings: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor
) -> dict[str, Any]:
    """What a classification task confuses, see `confusion_matrix_of`; arguments as for `task_scores`."""
    settings = model.config.tasks[task]
    logits = torch.cat(task_logits(model, task, embeddings, rows, batch_size=8192))
    return confusion_matrix_of(decisions(settings, logits), labels.int().tolist(), settings["labels"])


def task_scores(
    model: MultiTaskModel,
    task: str,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int = 64,
) -> dict[str, float]:
    """
    Loss and metrics of one task.

    Args:
        model: the model that gave the embeddings.
        task: the task's name.
        embeddings: `(sentences, embedding_dim)`, as `model.embed` gives them.
        rows: `(rows, sentences of a row)`, places in `embeddings`.
        labels: `(rows,)` or `(rows, num_labels)`.
        batch_size: rows that losses over pairs compare with each other.

    Returns:
        `loss` (the mean over rows), the metrics that the task's settings list, and for similarity also the mean
        cosines of related and unrelated pairs.
    """
    settings = model.config.tasks[task]
    logits = task_logits(model, task, embeddings, rows, batch_size)
    loss = 0.0
    for batch_logits, batch_rows, batch_labels in zip(
        logits, rows.split(batch_size), labels.split(batch_size), strict=True
    ):
        loss += task_loss(settings, batch_logits, batch_labels, embeddings, batch_rows).item()
    scores = {"loss": loss / len(rows)}

    predictions, references = task_predictions(settings, torch.cat(logits), embeddings, rows, labels)
    for metric in settings["metrics"]:
        scores.update(compute_metric(metric, predictions, references))
    if settings["problem_type"] == "similarity":
        low, high = settings["score_range"]
        score_range = (min(low, *references), max(high, *references))  # a split may reach beyond the training scores
        scores.update(compute_metric("mean_cosine_related", predictions, references, score_range=score_range))
    return scores


def combined_score(tasks: dict[str, dict[str, Any]], scores: dict[str, dict[str, float]]) -> float:
    """Mean of the tasks' primary metrics (the first that each lists); one that is undefined (NaN) counts as 0."""
    primary = [scores[task][tasks[task]["metrics"][0]] for task in scores]
    return sum(0.0 if math.isnan(score) else score for score in primary) / len(primary)


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """
    For each label the threshold with the best F1: a label is predicted where its probability reaches it.

    It stands halfway between the lowest probability that should reach it and the next lower one (or 0), because the
    same row's probability differs in the last bits from batch to batch.

    Args:
        probabilities: `(rows, num_labels)`, of validation data.
        labels: `(rows, num_labels)`, 0 or 1. A label that no row has keeps 0.5.
    """
    thresholds = []
    for column in range(labels.shape[1]):
        if not labels[:, column].any():
            thresholds.append(0.5)
            continue
        precision, recall, candidates = precision_recall_curve(labels[:, column], probabilities[:, column])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        next_lower = candidates[best - 1] if best else 0.0
        thresholds.append((float(candidates[best]) + float(next_lower)) / 2)
    return thresholds
