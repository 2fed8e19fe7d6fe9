"""What a task was trained on: class means and one covariance of its training embeddings, and the scale of distances.

has_scope     whether a task can have one
sample_rows   of each set so many training rows that the statistics are sure
fit_scopes    a `Scope` beside the head of each task of a model
fit_scope     the buffers of a task's `Scope`
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf

from ...data.rows.sets import LabelledSet
from ...data.rows.streamed import StreamedRows
from ...modeling_multitask import MultiTaskModel
from ...scope_multitask import NUM_QUANTILES, Scope, scope_centres
from ...tasks_multitask import TaskConfig
from ..evaluation.scores import Evaluation

MOST_ROWS = 20_000  # of a set that are embedded once more; of fewer than that all
LEAST_ROWS = 100  # validation rows that a scale of percentiles is read from


def has_scope(task: TaskConfig) -> bool:
    """Whether a task can know what it was trained on."""
    return task.kind.has_labels and not task.pair


def sample_rows(sets: Sequence[LabelledSet], tasks: Sequence[str], seed: int) -> list[LabelledSet]:
    """The training rows that these tasks' statistics are made of, of each set at most 20,000."""
    sampled = []
    for which, entry in enumerate(sets):
        if "train" not in entry.splits or not set(tasks) & set(entry.tasks):
            continue
        rows = entry.splits["train"]
        if len(rows) > MOST_ROWS:
            rows = rows.select(np.sort(np.random.default_rng([seed, which]).permutation(len(rows))[:MOST_ROWS]))
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


__all__ = ["LEAST_ROWS", "fit_scope", "fit_scopes", "has_scope", "sample_rows"]
