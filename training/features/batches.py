"""Training batches of cached vectors: the rows that the mixture draws, without tokens and without work for each row.

sentence_windows     the sentences of canonical data sets, window by window
FeatureDataset       a batch of rows to pooled vectors, task rows and labels, all by indexing arrays
describe_features    how many sentences a run has, and how many of them the cache holds
"""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from ...data.collation import column_tensor, label_tensor, sentence_ids
from ...data.rows.canonical import LABEL_PREFIX, is_labelled, labels_of
from ...tasks_multitask import TaskConfig
from .cache import FeatureCache, text_hashes

ROWS_PER_WINDOW = 16384


def sentence_windows(sets: Sequence[datasets.Dataset]) -> Iterator[list[str]]:
    """All sentences of the rows of data sets with a column `sentences`, in order, some thousand at a time."""
    for dataset in sets:
        for window in dataset.select_columns("sentences").with_format(None).iter(ROWS_PER_WINDOW):
            yield [sentence for row in window["sentences"] for sentence in row]


def describe_features(cache: FeatureCache, sets: Sequence[datasets.Dataset]) -> str:
    """One line for the settings of a run."""
    hashes = np.unique(np.concatenate([text_hashes(window) for window in sentence_windows(sets)]))
    known = int((cache.find(hashes) >= 0).sum())
    return f"{len(hashes):,} sentences, {known:,} known, folder {cache.folder}"


class FeatureDataset(Dataset):
    """
    Rows of several data sets under one running index, as in `MixtureDataset`, fetched as whole batches.

    `__getitems__` gives what `MultiTaskCollator` gives for the same rows, with `pooled` `(sentences, hidden)` in place
    of tokens. A row number of -1 (`FILLER_ROW`) carries no label.

    Args:
        sets: data sets in canonical columns.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        cache: holds the sentences of the sets.
        places: where they stand in it, in the order of `sentence_windows(sets)`.
    """

    def __init__(
        self,
        sets: Sequence[datasets.Dataset],
        tasks: dict[str, TaskConfig],
        cache: FeatureCache,
        places: np.ndarray,
    ):
        self.tasks = tasks
        self.cache = cache
        self.num_rows = sum(map(len, sets))
        # By task: for each row where its label stands (-1: not labelled), and for each label its sentences' places.
        self.number = {task: np.full(self.num_rows + 1, -1) for task in tasks}  # the last one is that of row -1
        self.places = {task: np.empty((0, 2 if settings.pair else 1), np.int64) for task, settings in tasks.items()}
        self.labels = {task: self._labels(settings, []) for task, settings in tasks.items()}
        first_row = first_sentence = 0
        for dataset in sets:
            width = len(dataset.with_format(None)[0]["sentences"])
            set_places = places[first_sentence : first_sentence + len(dataset) * width].reshape(len(dataset), width)
            for task, settings in tasks.items():
                if LABEL_PREFIX + task not in dataset.column_names:
                    continue
                labelled = np.flatnonzero(is_labelled(dataset, task))
                self.number[task][first_row + labelled] = len(self.labels[task]) + np.arange(len(labelled))
                found = set_places[labelled] if settings.pair else set_places[labelled, :1]
                self.places[task] = np.concatenate([self.places[task], found]) if len(self.labels[task]) else found
                if settings.kind.has_label_column:
                    values = column_tensor(settings, labels_of(dataset, task).drop_null())
                else:
                    values = sentence_ids(dataset.with_format(None).select(labelled)["sentences"][:])
                self.labels[task] = torch.cat([self.labels[task], values]) if len(self.labels[task]) else values
            first_row += len(dataset)
            first_sentence += len(dataset) * width

    @staticmethod
    def _labels(settings: TaskConfig, values: list[Any]) -> torch.Tensor:
        has_labels = settings.kind.has_label_column
        return label_tensor(settings, values) if has_labels else sentence_ids(values)

    def __len__(self) -> int:
        return self.num_rows

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        numbers = {task: number[rows] for task, number in self.number.items()}
        numbers = {task: number[number >= 0] for task, number in numbers.items()}
        places = {task: self.places[task][number] for task, number in numbers.items()}  # (rows, sentences of a row)
        # Equal sentences of a batch stand at one place, as losses over pairs expect.
        distinct, inverse = np.unique(
            np.concatenate([found.ravel() for found in places.values()]), return_inverse=True
        )
        batch: dict[str, Any] = {"pooled": self.cache.gather(distinct), "task_rows": {}, "labels": {}}
        start = 0
        for task, settings in self.tasks.items():
            stop = start + places[task].size
            task_rows = torch.from_numpy(inverse[start:stop])
            batch["task_rows"][task] = task_rows.view(places[task].shape) if settings.pair else task_rows
            batch["labels"][task] = self.labels[task][numbers[task]]
            start = stop
        return batch


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """The collate function of batches that are complete already."""
    return batch
