"""Rows of several tasks to one padded batch in which every distinct sentence stands once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from ..tasks_multitask import TaskConfig
from .rows.canonical import LABEL_PREFIX, TEACHER_PREFIX

COUNTED = ("labels", "teacher_targets")  # what of a batch is no input of the model, and what rows are counted by


def sentence_id(sentence: str) -> int:
    """A number of 64 bits that is the same on every process, which Python's own `hash` is not."""
    return int.from_bytes(blake2b(sentence.encode(), digest_size=8).digest(), "little", signed=True)


def label_tensor(task: TaskConfig, labels: list[Any]) -> torch.Tensor:
    """A task's labels: class numbers `(rows,)`, multi-hot `(rows, num_labels)`, or scores `(rows,)`."""
    if task.kind.is_multi_label:
        return torch.tensor(labels, dtype=torch.float).reshape(-1, len(task.labels))
    return torch.tensor(labels, dtype=torch.long if task.kind.has_labels else torch.float)


def column_tensor(task: TaskConfig, labels: pa.ChunkedArray) -> torch.Tensor:
    """The same as `label_tensor`, from a column without nulls: thousands of labels are too many for Python lists."""
    labels = labels.combine_chunks()
    if task.kind.is_multi_label:
        flags = labels.flatten().to_numpy(zero_copy_only=False)
        return torch.tensor(flags, dtype=torch.float).reshape(-1, len(task.labels))
    return torch.tensor(
        labels.to_numpy(zero_copy_only=False), dtype=torch.long if task.kind.has_labels else torch.float
    )


def sentence_ids(rows: list[list[str]]) -> torch.Tensor:
    """A contrastive task's labels: the `sentence_id` of every sentence of every row, `(rows, 2 + negatives)`."""
    ids = [[sentence_id(sentence) for sentence in row] for row in rows]
    return torch.tensor(ids, dtype=torch.long) if ids else torch.empty(0, 2, dtype=torch.long)


def count_rows(batches: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How many rows of collated batches have labels, by task, and how many have targets, where there are any."""
    return {
        kind: {task: sum(len(batch[kind][task]) for batch in batches) for task in batches[0][kind]}
        for kind in COUNTED
        if batches and kind in batches[0]
    }


@dataclass
class MultiTaskCollator:
    """
    Collate rows of the canonical columns `sentences` and `label_<task>`.

    Args:
        tokenizer: of the backbone.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        max_length: longest sentence in tokens.
        targets: by task, what makes targets of the cells of a column `teacher_<task>`; see training/distillation.

    Returns a dictionary with

    - `input_ids`, `attention_mask` of shape `(sentences, sequence)`: every distinct sentence of the batch once;
    - `task_rows`: by task, where its sentences stand: `(rows,)`, or `(rows, 2)` for pairs, or `(rows, 2 + negatives)`;
    - `labels`: by task: class numbers `(rows,)`, multi-hot `(rows, num_labels)`, or scores `(rows,)`; for contrastive
      tasks `(rows, 2 + negatives)`, the `sentence_id` of every sentence of a row;
    - `teacher_targets`, where there are targets: by task, those of the rows that a teacher answered.

    Every task is there, with zero rows where none of the batch is labelled for it. A task with teachers also has the
    rows that only they answered: `labels` belong to the first of its rows, `teacher_targets` to the last.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: dict[str, TaskConfig]
    max_length: int
    targets: Mapping[str, Callable[[list[Any]], torch.Tensor]] = field(default_factory=dict)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        places: dict[str, int] = {}
        for row in rows:
            for sentence in row["sentences"]:
                places.setdefault(sentence, len(places))
        tokens = self.tokenizer(
            list(places), padding=True, truncation=True, max_length=self.max_length, return_token_type_ids=False
        )
        # By numpy: return_tensors="pt" takes twice as long as everything else here.
        batch: dict[str, Any] = {
            name: torch.from_numpy(np.array(tokens[name], dtype=np.int64)) for name in ("input_ids", "attention_mask")
        }
        batch["task_rows"], batch["labels"] = {}, {}
        if self.targets:
            batch["teacher_targets"] = {}
        for task, settings in self.tasks.items():
            labelled = [row for row in rows if row.get(LABEL_PREFIX + task) is not None]
            answered_only = []
            if task in self.targets:
                is_answered = [row for row in labelled if row.get(TEACHER_PREFIX + task) is not None]
                labelled = [row for row in labelled if row.get(TEACHER_PREFIX + task) is None] + is_answered
                answered_only = [
                    row
                    for row in rows
                    if row.get(TEACHER_PREFIX + task) is not None and row.get(LABEL_PREFIX + task) is None
                ]
                cells = [row[TEACHER_PREFIX + task] for row in (*is_answered, *answered_only)]
                batch["teacher_targets"][task] = self.targets[task](cells)
            task_rows = [[places[sentence] for sentence in row["sentences"]] for row in (*labelled, *answered_only)]
            if not settings.pair:
                batch["task_rows"][task] = torch.tensor([row[0] for row in task_rows], dtype=torch.long)  # (rows,)
            elif task_rows:
                batch["task_rows"][task] = torch.tensor(task_rows)  # (rows, sentences of a row)
            else:
                batch["task_rows"][task] = torch.empty(0, 2, dtype=torch.long)
            if settings.kind.has_label_column:
                batch["labels"][task] = label_tensor(settings, [row[LABEL_PREFIX + task] for row in labelled])
            else:
                batch["labels"][task] = sentence_ids([row["sentences"] for row in labelled])
        return batch
