"""Measuring a model on a split: every distinct sentence is embedded once, then each task reads its own rows.

Evaluation          a split's sentences, and for each task its rows and labels
TaskAnswers         what a model answers for one task's rows, beside what is right
answer_task         the same from embeddings, batch by batch
task_scores         loss and metrics of one task from its answers
metric_scores       its metrics, from predictions and what is right
choose_thresholds   multi-label thresholds by F1, on validation data
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import precision_recall_curve

from ...data.collation import column_tensor
from ...data.files.parts import Cells
from ...data.metrics import compute_metric, positive_ranks
from ...data.rows.canonical import is_labelled, labels_of, sentences_of
from ...heads_multitask import calibrated, confidences
from ...heads_multitask import task_logits as head_logits
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ...turns_multitask import evaluating
from ..losses.losses import task_loss
from .reliability import count_forecasts

# Of a task with more labels, only the highest probabilities of a row are kept.
ALL_PROBABILITIES = 100
MOST_PROBABLE = 10


class Evaluation:
    """
    One split of all tasks, ready to be measured as often as needed.

    Args:
        sets: labelled sets with a `splits` dictionary of datasets in canonical columns.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        split: `train`, `validation` or `test`.

    Attributes:
        sentences: the distinct sentences of the split, as Arrow holds them.
        rows: by task, `(rows, sentences of a row)` places in `sentences`.
        labels: by task, class numbers, multi-hot rows or scores. Tasks without a labelled row are not there.
    """

    def __init__(self, sets: Sequence[Any], tasks: dict[str, TaskConfig], split: str):
        self.rows: dict[str, torch.Tensor] = {}
        self.labels: dict[str, torch.Tensor] = {}
        measured = [(entry.tasks, entry.splits[split]) for entry in sets if split in entry.splits]
        texts = [chunk.flatten() for _, rows in measured for chunk in sentences_of(rows).chunks]
        coded = pa.chunked_array(texts, pa.string()).dictionary_encode().combine_chunks()
        distinct = coded.dictionary  # in the order in which they come first
        places, start = coded.indices.to_numpy(), 0
        for names, dataset in measured:
            stop = start + sum(len(chunk.flatten()) for chunk in sentences_of(dataset).chunks)
            rows = torch.from_numpy(places[start:stop].astype(np.int64)).view(len(dataset), -1)
            start = stop  # rows: (rows, sentences of a row)
            for task in names:
                labelled = is_labelled(dataset, task)
                if task in tasks and labelled.any():
                    self.rows[task] = rows[torch.from_numpy(labelled)]
                    self.labels[task] = column_tensor(tasks[task], labels_of(dataset, task).drop_null())
        self.sentences = Cells(len(distinct), lambda start, stop: distinct.slice(start, stop - start).to_pylist())
        self.rows = {task: self.rows[task] for task in tasks if task in self.rows}


@dataclass
class TaskAnswers:
    """
    What a model answers for a task's rows of a split.

    Attributes:
        rows: `(rows, sentences of a row)`, places in the split's sentences.
        predictions: one for each row as the metrics take them: class numbers, 0 and 1 by the task's thresholds
            `(rows, num_labels)`, values or cosines; for a contrastive task the ranks of the positives.
        references: what is right, in the same form; `None` for a contrastive task.
        loss: the mean over rows.
        classes: of a classification task, `(rows, k)`: the classes whose probabilities are given.
        probabilities: `(rows, k)`, of these classes.
        forecasts: of a classification task, `(2, bins, 4)`: what `count_forecasts` gives before and after calibration.
        confidences: of a classification task, `(rows,)`: how sure it is of each row.
        is_near: what `near_enough` gives of the rows.
    """

    rows: torch.Tensor
    predictions: np.ndarray
    references: np.ndarray | None
    loss: float
    classes: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    forecasts: np.ndarray | None = None
    confidences: np.ndarray | None = None
    is_near: np.ndarray | None = None

    @property
    def is_wrong(self) -> np.ndarray:
        """Of a classification task, `(rows,)`: whether the label, or any label of a multi-label row, is wrong."""
        differs = self.predictions != self.references
        return differs.any(axis=1) if differs.ndim == 2 else differs


@torch.no_grad()
def task_logits(
    model: MultiTaskModel, task: str, embeddings: torch.Tensor, rows: torch.Tensor, batch_size: int
) -> Iterator[torch.Tensor]:
    """One task's float32 logits in batches of rows, from `embeddings (sentences, dim)` and `rows (rows, k)`."""
    is_pair = model.config.tasks[task].pair
    # Only the head: going through all parts of the model for each of a hundred tasks takes longer than answering.
    with evaluating(model.heads[task]) if task in model.heads else nullcontext():
        for batch in rows.split(batch_size):
            chosen, places = batch.unique(return_inverse=True)
            places = (places if is_pair else places[:, 0]).to(model.device)
            chosen = embeddings[chosen].to(model.device, model.dtype)
            yield head_logits(model, chosen, [task], {task: places})[task].float().cpu()


def probabilities_of(task: TaskConfig, logits: torch.Tensor) -> torch.Tensor:
    """The probabilities that logits `(rows, num_labels)` of a classification task stand for."""
    return logits.sigmoid() if task.kind.is_multi_label else logits.softmax(dim=-1)


def decisions(task: TaskConfig, logits: torch.Tensor) -> np.ndarray:
    """
    What the metrics take as predictions, from `logits (rows, num_labels)` or `(rows,)`.

    Class numbers `(rows,)`; for a multi-label task 0 and 1 `(rows, num_labels)` by its thresholds; else the values.
    """
    if task.kind.is_multi_label:
        return (calibrated(task, logits).sigmoid() >= torch.tensor(task.thresholds)).to(torch.uint8).numpy()
    if task.kind.has_labels:
        return logits.argmax(dim=-1).numpy()
    return logits.double().numpy()


def task_confidences(task: TaskConfig, logits: torch.Tensor) -> torch.Tensor:
    """How sure a classification task is of each row `(rows,)`, from its logits `(rows, num_labels)`."""
    chosen = torch.from_numpy(decisions(task, logits)).bool() if task.kind.is_multi_label else None
    return confidences(task, probabilities_of(task, calibrated(task, logits)), chosen)


@torch.no_grad()
def near_enough(model: MultiTaskModel, task: str, embeddings: torch.Tensor, rows: torch.Tensor) -> np.ndarray | None:
    """
    Of a task that abstains out of its scope, `(rows,)`: whether a row is in it. No row is, where the task does not
    know its scope. `None` for any other task.
    """
    abstain = model.config.tasks[task].abstain
    if abstain is None or abstain.out_of_scope is None:
        return None
    if (scope := model.heads[task].scope) is None:
        return np.zeros(len(rows), dtype=bool)
    parts = (scope(embeddings[places].to(model.device, model.dtype)) for places in rows[:, 0].split(8192))
    return (torch.cat(list(parts)) <= abstain.out_of_scope).cpu().numpy()


def _most_probable(task: TaskConfig, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities `(rows, k)`: of all labels in their order, or of many labels the highest."""
    probabilities = probabilities_of(task, calibrated(task, logits))
    if probabilities.shape[1] <= ALL_PROBABILITIES:
        classes = torch.arange(probabilities.shape[1]).expand_as(probabilities)
    else:
        probabilities, classes = probabilities.topk(MOST_PROBABLE, dim=-1)
    return classes.int().numpy(), probabilities.numpy()


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


def positive_ranks_of(embeddings: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """`(rows,)`: where each anchor's positive ranks among all candidates of a contrastive task, from 1."""
    distinct, places = rows[:, 1:].unique(return_inverse=True)
    positives = places[:, 0].tolist()
    left_out = never_negatives(rows[:, 0].tolist(), positives, distinct.tolist())
    return positive_ranks(embeddings[rows[:, 0]].numpy(), embeddings[distinct].numpy(), positives, left_out=left_out)


def answer_task(
    model: MultiTaskModel,
    task: str,
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int = 64,
    with_probabilities: bool = False,
) -> TaskAnswers:
    """
    What a model answers for one task's rows.

    Args:
        model: the model that gave the embeddings.
        task: the task's name.
        embeddings: `(sentences, embedding_dim)`, as `model.embed` gives them.
        rows: `(rows, sentences of a row)`, places in `embeddings`.
        labels: `(rows,)` or `(rows, num_labels)`.
        batch_size: rows that losses over pairs compare with each other.
        with_probabilities: whether a classification task's probabilities are kept: of all labels, or of a task with
            more than `ALL_PROBABILITIES` labels the `MOST_PROBABLE` highest of each row; and counted as forecasts.
    """
    settings = model.config.tasks[task]
    loss, found, probable, forecasts, sure = 0.0, [], [], [], []
    for logits, batch_rows, batch_labels in zip(
        task_logits(model, task, embeddings, rows, batch_size),
        rows.split(batch_size),
        labels.split(batch_size),
        strict=True,
    ):
        distinct, places = batch_rows.unique(return_inverse=True)  # losses over pairs look at all that they are given
        loss += task_loss(settings, logits, batch_labels, embeddings[distinct], places).item()
        found.append(decisions(settings, logits))
        if with_probabilities and settings.kind.has_labels:
            probable.append(_most_probable(settings, logits))
            both = (probabilities_of(settings, values).numpy() for values in (logits, calibrated(settings, logits)))
            sure.append(task_confidences(settings, logits).numpy())
            forecasts.append(np.stack([count_forecasts(values, batch_labels.numpy()) for values in both]))
    predictions, references = np.concatenate(found), labels.double().numpy()
    if settings.kind.has_labels:
        references = labels.to(torch.uint8 if labels.dim() == 2 else torch.long).numpy()
    elif not settings.kind.has_label_column:
        predictions, references = positive_ranks_of(embeddings, rows), None
    classes, probabilities = map(np.concatenate, zip(*probable, strict=True)) if probable else (None, None)
    answers = TaskAnswers(rows, predictions, references, loss / len(rows), classes, probabilities)
    if forecasts:
        answers.forecasts, answers.confidences = np.sum(forecasts, axis=0), np.concatenate(sure)
        answers.is_near = near_enough(model, task, embeddings, rows)
    return answers


def metric_options(task: TaskConfig, metric: str) -> dict[str, Any]:
    """What a metric of a task needs beside its rows: for `f1` the numbers of the classes that count."""
    return {"labels": [task.labels.index(label) for label in task.f1_labels]} if metric == "f1" else {}


def metric_scores(task: TaskConfig, predictions: np.ndarray, references: np.ndarray | None) -> dict[str, float]:
    """The metrics that a task lists, by name."""
    scores = {}
    for metric in task.metrics:
        scores.update(compute_metric(metric, predictions, references, **metric_options(task, metric)))
    return scores


def task_scores(task: TaskConfig, answers: TaskAnswers) -> dict[str, float]:
    """
    Loss and metrics of one task, from what `answer_task` gave.

    Returns:
        `loss` (the mean over rows), the metrics that the task's settings list, and for similarity also the mean
        cosines of related and unrelated pairs.
    """
    scores = {"loss": answers.loss, **metric_scores(task, answers.predictions, answers.references)}
    if task.kind.has_score_range:
        low, high = task.score_range
        # A split may reach beyond the training scores.
        score_range = (min(low, answers.references.min()), max(high, answers.references.max()))
        scores.update(
            compute_metric("mean_cosine_related", answers.predictions, answers.references, score_range=score_range)
        )
    return scores


def combined_score(tasks: dict[str, TaskConfig], scores: dict[str, dict[str, float]]) -> float:
    """Mean of the primary metrics (the first that each lists); one that is undefined (NaN) counts as 0."""
    primary = [scores[task][tasks[task].primary_metric] for task in scores]
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
