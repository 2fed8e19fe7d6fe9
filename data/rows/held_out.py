"""Training rows that stand in a validation or test split as well, of their own task or of another.

    held_out_sentences  every sentence of the validation and test splits, as keys
    announce_held_out   tells which tasks' training rows another task is measured on
    announce_trained_on tells which rows a model is measured on that it was trained on in a run before
    drop_held_out       takes such rows out of the training splits

Data sets borrow from each other: a pair of one task's test split may be a training pair of another, with a label that
says nearly the same. Each set alone is clean, and the model that learns from both is measured on what it has seen.
A row counts where it stands there whole, a pair in either order. That two rows share one sentence of a pair is common
within official splits, and no reason to leave one out.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from ..cache.arrays import batches
from ..text.sameness import among, distinct, row_hashes, text_key
from .canonical import is_labelled
from .row_hashes import ROW_HASHES_FILE
from .sets import LabelledSet, LoadedTasks

logger = logging.getLogger(__name__)


def _held_out_splits(loaded: LoadedTasks) -> Iterator[tuple[LabelledSet, str, Dataset]]:
    for labelled_set in loaded.sets:
        for split, rows in labelled_set.splits.items():
            if split != "train":
                yield labelled_set, split, rows


def held_out_sentences(loaded: LoadedTasks) -> set[str]:
    """The keys of all sentences that a model is measured on."""
    return {
        text_key(sentence)
        for _, _, rows in _held_out_splits(loaded)
        for batch in batches(rows, ["sentences"])
        for row in batch["sentences"].to_pylist()
        for sentence in row
    }


@dataclass
class _HeldOut:
    """
    The rows of all validation and test splits.

    Attributes:
        hashes: `(rows,)`, ascending.
        sets: `(rows,)`: the number of the set that each of them belongs to, ascending among equal hashes.
    """

    hashes: np.ndarray
    sets: np.ndarray

    @classmethod
    def read(cls, loaded: LoadedTasks) -> "_HeldOut":
        hashes, sets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, labelled_set in enumerate(loaded.sets):
            own = [row_hashes(rows) for split, rows in labelled_set.splits.items() if split != "train"]
            if own:
                hashes.append(distinct(np.sort(np.concatenate(own))))
                sets.append(np.full(len(hashes[-1]), number))
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        return cls(joined[order], np.concatenate(sets)[order])

    def find(self, train: Dataset) -> np.ndarray:
        """`(rows,)`: which training rows stand in any validation or test split."""
        return among(row_hashes(train), self.hashes)

    def sets_of(self, hashes: np.ndarray) -> Iterator[list[int]]:
        """Of each row that stands there the numbers of the sets that hold it."""
        starts, stops = (np.searchsorted(self.hashes, hashes, side=side).tolist() for side in ("left", "right"))
        for start, stop in zip(starts, stops, strict=True):
            yield self.sets[start:stop].tolist()


def _counts_by_task(loaded: LoadedTasks, held_out: _HeldOut, train: Dataset, found: np.ndarray) -> dict[str, int]:
    """By task how many of the training rows that were found it is measured on; tasks in the order of these rows."""
    counts: dict[str, int] = {}
    for numbers in held_out.sets_of(row_hashes(train)[found]):
        for task in dict.fromkeys(task for number in numbers for task in loaded.sets[number].tasks):
            counts[task] = counts.get(task, 0) + 1
    return counts


def announce_held_out(loaded: LoadedTasks) -> None:
    """Tell which tasks have training rows that tasks of another set are measured on."""
    held_out = _HeldOut.read(loaded)
    for labelled_set in loaded.sets:
        train = labelled_set.splits["train"]
        for task, count in _counts_by_task(loaded, held_out, train, held_out.find(train)).items():
            if task in labelled_set.tasks:
                continue
            logger.info(
                f"{', '.join(labelled_set.tasks)}: {count} of {len(train)} training rows stand in the validation or "
                f"test split of {task}, whose scores may be flattering. `drop_held_out: true` in the recipe leaves "
                "such rows out."
            )


def announce_trained_on(loaded: LoadedTasks) -> None:
    """Tell which validation and test rows are training rows of the model that the run goes on from."""
    earlier = loaded.earlier
    if earlier is None:
        return
    if not earlier.is_complete:
        logger.info(
            f"{earlier.name} does not say (all of) what it was trained on, because there is no {ROW_HASHES_FILE} with "
            "it or with a model before it. Validation and test rows may be among its training rows."
        )
    trained = earlier.of_split("train")
    for labelled_set, split, rows in _held_out_splits(loaded):
        count = int(among(row_hashes(rows), trained).sum())
        if count:
            logger.info(
                f"{', '.join(labelled_set.tasks)}: {count} of {len(rows)} {split} rows were training rows of "
                f"{earlier.name}, whose scores there are flattering. Measure it on other rows, or take these out."
            )


def drop_held_out(loaded: LoadedTasks) -> None:
    """
    Take training rows out that stand in a validation or test split of any task, and tell how many.

    Raises:
        ValueError: no training row with a label is left for a task.
    """
    held_out = _HeldOut.read(loaded)
    for labelled_set in loaded.sets:
        train = labelled_set.splits["train"]
        found = held_out.find(train)
        if not found.any():
            continue
        measured, kept = _counts_by_task(loaded, held_out, train, found), np.flatnonzero(~found)
        labelled_set.splits["train"] = train.select(kept)
        for task in labelled_set.tasks:
            if not is_labelled(train, task)[kept].any():
                raise ValueError(
                    f"Task {task!r}: drop_held_out leaves no labelled training row, as all of them stand in a "
                    "validation or test split. Correct the splits, or leave drop_held_out out of the recipe."
                )
        logger.info(
            f"{', '.join(labelled_set.tasks)}: {len(train) - len(kept)} of {len(train)} training rows stand in a "
            f"validation or test split ({', '.join(measured)}) and are left out"
        )


__all__ = ["announce_held_out", "announce_trained_on", "drop_held_out", "held_out_sentences"]
