"""What stands on the backbone: pooling, projection and the task heads.

POOLING_FUNCTIONS  token states to one vector
Projection         the pooled vector to the sentence embedding
MultiTaskHead      sentence embedding, or a pair of them, to a task's logits
choose_head        the one that answers as a plain classifier
TaskHeads          the model's part: adding and removing tasks
task_logits        logits by task
calibrated         logits as probabilities are made of them
confidences        how sure a task is of each row
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.activations import ACT2FN

from .answers_multitask import check_tasks, head_names
from .checks_multitask import suggest
from .configuration_multitask import POOLINGS, MultiTaskConfig
from .scope_multitask import Scope, scope_centres
from .tasks_multitask import TaskConfig, complete_task, extend_labels
from .turns_multitask import changes_model


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Average over unmasked tokens: `(batch, sequence, hidden)` and `(batch, sequence)` give `(batch, hidden)`."""
    mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)  # (batch, sequence, 1)
    # Sums of many tokens are too large for float16.
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    means = (hidden_states * mask).sum(dim=1, dtype=dtype) / mask.sum(dim=1, dtype=dtype).clamp(min=1)
    return means.to(hidden_states.dtype)


def cls_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """First unmasked token: `(batch, sequence, hidden)` and `(batch, sequence)` give `(batch, hidden)`."""
    first = attention_mask.to(torch.long).argmax(dim=1)  # (batch,)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]


def max_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Largest value of each unit over unmasked tokens: `(batch, sequence, hidden)` gives `(batch, hidden)`."""
    masked = attention_mask.unsqueeze(-1) == 0  # (batch, sequence, 1)
    return hidden_states.masked_fill(masked, torch.finfo(hidden_states.dtype).min).amax(dim=1)


POOLING_FUNCTIONS = dict(zip(POOLINGS, (mean_pool, cls_pool, max_pool), strict=True))


class Projection(nn.Module):
    """Dense layer from the pooled vector to the sentence embedding: `(batch, hidden)` to `(batch, embedding_dim)`."""

    def __init__(self, config: MultiTaskConfig):
        super().__init__()
        projection = config.projection
        hidden_size = config.backbone_config.hidden_size
        self.linear = nn.Linear(hidden_size, projection.out_features, bias=projection.bias)
        self.activation = ACT2FN[projection.activation]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(pooled))


class MultiTaskHead(nn.Module):
    """
    Sentence embedding to a task's logits: linear, or an MLP with `hidden_dims`.

    A pair of sentences enters as `concat(u, v, |u - v|)` (Sentence-BERT, arXiv 1908.10084, section 3). Dropout stands
    before the last layer.

    Args of `forward`:
        embeddings: `(rows, embedding_dim)`, or `(rows, 2, embedding_dim)` for pairs.

    Returns `(rows, num_labels)`, or `(rows,)` for regression: standardised values, see `TaskConfig.target_scale`.
    """

    def __init__(self, embedding_dim: int, task: TaskConfig):
        super().__init__()
        self.pair = task.pair
        self.is_value = not task.kind.has_labels
        size = 3 * embedding_dim if self.pair else embedding_dim
        layers: list[nn.Module] = []
        for hidden_dim in task.head.hidden_dims:
            layers += [nn.Linear(size, hidden_dim), ACT2FN[task.head.activation]]
            size = hidden_dim
        layers += [
            nn.Dropout(task.head.dropout),
            nn.Linear(size, 1 if self.is_value else len(task.labels)),
        ]
        self.layers = nn.Sequential(*layers)
        self.scope = Scope(embedding_dim, scope_centres(task)) if task.out_of_scope else None

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.pair:
            u, v = embeddings.unbind(dim=1)  # (rows, embedding_dim) each
            embeddings = torch.cat([u, v, (u - v).abs()], dim=-1)  # (rows, 3 * embedding_dim)
        logits = self.layers(embeddings)  # (rows, num_labels)
        return logits.squeeze(-1) if self.is_value else logits


def choose_head(config: MultiTaskConfig) -> str:
    """
    The task whose head answers as a plain classifier: `config.task`, or the only one that can.

    Raises:
        ValueError: that task is unknown or reads pairs, or none was named where several can answer.
    """
    fitting = [name for name, task in config.tasks.items() if task.kind.has_head and not task.pair]
    if config.task is None and len(fitting) == 1:
        return fitting[0]
    if config.task not in fitting:
        found = "No task was named" if config.task is None else f"There is no task {config.task!r} of this kind"
        raise ValueError(
            f"{found}.{suggest(config.task, fitting)} Name one that classifies single sentences, as in "
            f"from_pretrained(..., head={fitting[0] if fitting else 'name'!r}). There are: "
            f"{', '.join(fitting) or 'none'}."
        )
    return config.task


def labels_to_show(config: MultiTaskConfig) -> list[str]:
    """
    The labels of the head that `config.task` chose, or the other names that `id2label` gives them.

    Raises:
        ValueError: `num_labels` or `id2label` contradicts the task's labels.
    """
    labels = config.tasks[config.task].labels or [config.task]
    stored = [task.labels or [name] for name, task in config.tasks.items()]
    stored += [names for name, names in (config.shown_labels or {}).items() if name != config.task]
    given = config.id2label and [config.id2label.get(index) for index in range(len(config.id2label))]
    if not given or given in stored:  # nothing, or what a saved view of some task has stored
        return labels
    if len(given) != len(labels):
        raise ValueError(
            f"num_labels or id2label asks for {len(given)} labels, but task {config.task!r} has {len(labels)}: "
            f"{', '.join(labels)}. Leave them out, or give id2label as many names."
        )
    if given == [f"LABEL_{index}" for index in range(len(labels))]:  # num_labels, which is right
        return labels
    moved = [name for index, name in enumerate(given) if name in labels and labels[index] != name]
    if None in given or moved:
        raise ValueError(
            f"id2label is {config.id2label}, but task {config.task!r} was trained on {dict(enumerate(labels))}. "
            "Names may be others, but ids run from 0 and keep what they mean."
        )
    return given


class TaskHeads:
    """The tasks of a model with `config` and `heads`: adding and removing them."""

    @changes_model
    def add_task(self, name: str, task: TaskConfig | dict[str, Any]) -> None:
        """
        Add a task with a new head; every other output stays bit-identical.

        Args:
            name: an identifier that no task has yet.
            task: its settings, a `TaskConfig` or a mapping.
        """
        if name in self.config.tasks:
            raise ValueError(f"There is a task {name!r} already. Remove it first, or choose another name.")
        task = complete_task(name, task, is_new=True)
        if task.kind.has_head:
            with torch.device("cpu"):  # whatever the default is
                head = MultiTaskHead(self.config.embedding_dim, task).float()
            head.apply(self._init_weights)
            self.heads[name] = head.to(self._input_device, self.dtype).train(self.training)
        self.config.tasks = {**self.config.tasks, name: task}

    @changes_model
    def remove_task(self, name: str) -> None:
        """Remove a task and its head; every other output stays bit-identical."""
        self._check_tasks([name])
        self.config.tasks = {task: settings for task, settings in self.config.tasks.items() if task != name}
        if name in self.heads:
            del self.heads[name]
        if self.config.task == name:
            self.config.task = self.config.shown_labels = self.config.problem_type = None
            self.config.id2label = self.config.label2id = None

    @changes_model
    def add_labels(self, name: str, labels: list[str]) -> None:
        """
        Append labels to those of a classification task.

        The ones it has keep their ids and their weights, bit for bit, with thresholds and weights in the loss; the new
        rows of the last layer are random, so that the task has to be trained on. Every other task stays as it is.

        Args:
            name: the task's name.
            labels: names that the task does not have yet.

        Raises:
            ValueError: there is no such task, it has no labels, or has one of these already.
        """
        self._check_tasks([name])
        task = extend_labels(name, self.config.tasks[name], labels)
        layers = self.heads[name].layers
        old = layers[-1]
        wider = nn.Linear(old.in_features, len(task.labels), device=old.weight.device, dtype=old.weight.dtype)
        self._init_weights(wider)
        with torch.no_grad():
            wider.weight[: old.out_features] = old.weight
            wider.bias[: old.out_features] = old.bias
        layers[-1] = wider.requires_grad_(old.weight.requires_grad).train(old.training)
        self.heads[name].scope = None
        self.config.tasks = {**self.config.tasks, name: task}
        if self.config.task == name and self.config.id2label:  # what a view of the task shows
            self.config.show_labels([*self.config.id2label.values(), *task.labels[old.out_features :]])

    @changes_model
    def _set_scope(self, name: str, fitted: Mapping[str, torch.Tensor] | None) -> None:
        """Put the statistics of a task's training rows beside its head, or take them away."""
        task = self.config.change_task(name, out_of_scope=fitted is not None)
        scope = None
        if fitted is not None:
            scope = Scope(self.config.embedding_dim, scope_centres(task))
            scope.load_state_dict(fitted)
            scope = scope.to(self.heads[name].layers[-1].weight.device).train(self.training)
        self.heads[name].scope = scope

    def _check_tasks(self, names: Iterable[str]) -> None:
        check_tasks(self.config.tasks, names)

    def _heads_to_answer(self, head: str | Sequence[str] | None) -> list[str]:
        """
        The tasks that `head` names, `None` for all of one sentence and `"embedding"` for none.

        Raises:
            TypeError: this is neither a name nor a list of names.
            ValueError: there is no such task.
        """
        if head is None:
            return [name for name, task in self.config.tasks.items() if not task.pair]
        names = [] if isinstance(head, str) and head == "embedding" else head_names(head, self.config.tasks)
        self._check_tasks(names)
        return names


def task_logits(
    model: nn.Module,
    embedding: torch.Tensor,
    heads: Sequence[str],
    task_rows: Mapping[str, torch.Tensor | None] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Logits by task from embeddings that were not normalised.

    Args:
        model: a [`MultiTaskModel`].
        embedding: `(batch, embedding_dim)`.
        heads: names of the tasks, in the order of the answer.
        task_rows: which rows of the batch each task reads, as for `forward`; all, of a task that is not named.

    Raises:
        ValueError: a task compares two sentences, and `task_rows` does not say which.
    """
    logits = {}
    for name in heads:
        rows = (task_rows or {}).get(name)
        if rows is None and model.config.tasks[name].pair:
            raise ValueError(
                f"Task {name!r} compares two sentences. Say which rows of the batch belong together: "
                f"task_rows={{{name!r}: tensor of shape (pairs, 2)}}, or use model.predict."
            )
        # Of a model on several devices, the embedding may be on another one than its inputs.
        chosen = (
            embedding if rows is None else embedding[rows.to(embedding.device)]
        )  # (rows, [sentences,] embedding_dim)
        if name in model.heads:
            logits[name] = _in_units(model.config.tasks[name], model.heads[name](chosen))
        else:
            logits[name] = F.cosine_similarity(chosen[:, 0], chosen[:, 1], dim=-1)  # (rows,)
    return logits


def _in_units(task: TaskConfig, logits: torch.Tensor) -> torch.Tensor:
    """A regression task's values in the units of its labels, never in half precision: it has no room for years."""
    mean, deviation = task.target_scale
    if (mean, deviation) == (0.0, 1.0):
        return logits
    return mean + deviation * logits.to(torch.promote_types(logits.dtype, torch.float32))


def calibrated(task: TaskConfig, logits: torch.Tensor) -> torch.Tensor:
    """Logits `(rows, num_labels)` divided by the task's temperatures, where it has any."""
    if not task.temperatures:
        return logits
    return logits / torch.tensor(task.temperatures, dtype=logits.dtype, device=logits.device)


def confidences(task: TaskConfig, probabilities: torch.Tensor, chosen: torch.Tensor | None = None) -> torch.Tensor:
    """
    How sure a classification task is of each row, `(rows,)`: see `AbstainConfig`.

    Args:
        task: its settings.
        probabilities: `(rows, num_labels)`.
        chosen: of a multi-label task, `(rows, num_labels)`: whether the label was given.
    """
    if not task.kind.is_multi_label:
        return probabilities.amax(dim=-1)
    return torch.where(chosen, probabilities, 1 - probabilities).amin(dim=-1)


__all__ = [
    "POOLING_FUNCTIONS",
    "MultiTaskHead",
    "Projection",
    "TaskHeads",
    "calibrated",
    "choose_head",
    "cls_pool",
    "confidences",
    "labels_to_show",
    "max_pool",
    "mean_pool",
    "task_logits",
]
