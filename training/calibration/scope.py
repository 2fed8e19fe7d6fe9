"""What a task was trained on: class means and one covariance of its training embeddings, and the scale of distances.

has_scope          whether a task can have one
abstains_by_scope  whether a task gives no label out of its scope
sample_rows        of each set so many training rows that the statistics are sure
fit_scopes         a `Scope` beside the head of each task of a model
fit_scope          the buffers of a task's `Scope`
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from sklearn.covariance import ledoit_wolf

from ...data.rows.canonical import is_labelled, labels_of
from ...data.rows.sets import LabelledSet
from ...data.rows.streamed import StreamedRows
from ...modeling_multitask import MultiTaskModel
from ...scope_multitask import NUM_QUANTILES, Scope, scope_centres
from ...tasks_multitask import TaskConfig
from ..evaluation.scores import Evaluation

MOST_ROWS = 20_000  # of a set that are embedded once more; of fewer than that all
LEAST_OF_CLASS = 100  # of these, where a class has so many and there is room
LEAST_ROWS = 100  # validation rows that a scale of percentiles is read from


def has_scope(task: TaskConfig) -> bool:
    """Whether a task can know what it was trained on."""
    return task.kind.has_labels and not task.pair


def abstains_by_scope(task: TaskConfig) -> bool:
    """Whether a task gives no label to what is out of its scope, and so has to know it."""
    return task.abstain is not None and task.abstain.out_of_scope is not None


def _classes_of(rows: Dataset, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their classes; of a multi-label task a row for each of its labels, and a class of those without any."""
    places, labels = np.flatnonzero(is_labelled(rows, task)), labels_of(rows, task).drop_null()
    if not pa.types.is_list(labels.type):
        return places, labels.to_numpy()
    flags = np.concatenate([chunk.flatten().to_numpy() for chunk in labels.chunks]).reshape(len(places), -1) > 0
    member, classes = np.column_stack([flags, ~flags.any(axis=1)]).nonzero()
    return places[member], classes


def _choose_rows(rows: Dataset, tasks: Sequence[str], generator: np.random.Generator) -> np.ndarray:
    """
    At most `MOST_ROWS` rows that are labelled for a task, ascending. They are drawn at random: `LEAST_OF_CLASS` of
    each class of each task before all others, and of those as many of each task.
    """
    turn = np.empty(len(rows), np.int64)
    turn[generator.permutation(len(rows))] = np.arange(len(rows))  # in which a row is drawn
    in_class, in_task = np.full(len(rows), LEAST_OF_CLASS), np.full(len(rows), len(rows))  # how many come before it
    for task in tasks:
        own = np.flatnonzero(is_labelled(rows, task))
        own = own[turn[own].argsort()]
        in_task[own] = np.minimum(in_task[own], np.arange(len(own)))
        members, classes = _classes_of(rows, task)
        by_class = np.lexsort((turn[members], classes))
        members, classes = members[by_class], classes[by_class]
        np.minimum.at(in_class, members, np.arange(len(members)) - np.searchsorted(classes, classes))
    labelled = np.flatnonzero(in_task < len(rows))
    return np.sort(labelled[np.lexsort((in_task[labelled], in_class[labelled]))[:MOST_ROWS]])


def sample_rows(sets: Sequence[LabelledSet], tasks: Sequence[str], seed: int) -> list[LabelledSet]:
    """
    The training rows that these tasks' statistics are made of, of each set at most 20,000: of each class of each task
    100 where it has so many, and of the rest as many for each task, however few rows of the set are labelled for it.
    """
    sampled = []
    for which, entry in enumerate(sets):
        if "train" not in entry.splits or not set(tasks) & set(entry.tasks):
            continue
        rows = entry.splits["train"]
        if len(rows) > MOST_ROWS:
            own = [task for task in entry.tasks if task in tasks]
            rows = rows.select(_choose_rows(rows, own, np.random.default_rng([seed, which])))
        if entry.texts is not None:
            rows = StreamedRows(rows, entry.texts).read_all()
        sampled.append(LabelledSet([task for task in entry.tasks if task in tasks], {"train": rows}))
    return sampled


def _unit(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.double(), dim=-1).numpy()


def fit_scope(
    task: TaskConfig, embeddings: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """
    The buffers of a task's `Scope`.

    The covariance within classes is shrunk towards a multiple of the identity (Ledoit and Wolf 2004), because there
    may be fewer rows than dimensions. The scale of distances comes from rows that were not trained on, where there are
    100 or more: rows that were are nearer to their class's mean than those to come.

    Args:
        task: its settings.
        embeddings: `(rows, embedding_dim)`, of training rows.
        labels: class numbers `(rows,)`, or of a multi-label task 0 and 1 `(rows, num_labels)`.
        held_out: `(rows, embedding_dim)`, of validation rows.
    """
    units = _unit(embeddings)
    centre = units.mean(axis=0)
    units = units - centre
    if labels.dim() == 2:
        member = torch.cat([labels > 0, ~(labels > 0).any(dim=1, keepdim=True)], dim=1).numpy()
    else:
        member = torch.nn.functional.one_hot(labels, len(task.labels)).bool().numpy()  # (rows, centres)
    counts = member.sum(axis=0)
    means = member.T.astype(np.float64) @ units / np.maximum(counts, 1)[:, None]  # (centres, embedding_dim)
    means[counts == 0] = means[counts.argmax()]  # a class without rows has no mean of its own
    rows, classes = member.nonzero()
    covariance, _ = ledoit_wolf(units[rows] - means[classes], assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    # Where nothing varies, as of a projection to fewer dimensions, no distance is known.
    values = np.maximum(values, max(values[-1] * 1e-6, 1e-12))
    whitening = vectors / np.sqrt(values)
    scope = Scope(units.shape[1], scope_centres(task))
    fitted = {"centre": centre, "whitening": whitening, "means": means @ whitening}
    found = {name: torch.from_numpy(np.ascontiguousarray(value)).float() for name, value in fitted.items()}
    scope.load_state_dict({**found, "quantiles": scope.quantiles})
    of_scale = held_out if held_out is not None and len(held_out) >= LEAST_ROWS else embeddings
    distances = scope.distances(of_scale).double().numpy()
    quantiles = np.quantile(distances, np.linspace(0, 1, NUM_QUANTILES))
    return {**found, "quantiles": torch.from_numpy(quantiles).float()}


def fit_scopes(
    model: MultiTaskModel,
    train: Evaluation,
    embeddings: torch.Tensor,
    held_out: Evaluation,
    held_out_embeddings: torch.Tensor,
) -> list[str]:
    """
    Put a `Scope` beside the head of each task with training rows; their names.

    Args:
        model: the model that gave the embeddings.
        train: sampled training rows, of tasks that can have a scope.
        embeddings: `(sentences, embedding_dim)`, of their sentences.
        held_out: validation rows.
        held_out_embeddings: the same of theirs.
    """
    for name, rows in train.rows.items():
        own = held_out.rows.get(name)
        scale = None if own is None else held_out_embeddings[own[:, 0]]
        task = model.config.tasks[name]
        model._set_scope(name, fit_scope(task, embeddings[rows[:, 0]], train.labels[name], scale))
    return list(train.rows)


__all__ = ["LEAST_ROWS", "abstains_by_scope", "fit_scope", "fit_scopes", "has_scope", "sample_rows"]
