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
from collections import Counter
from collections.abc import Iterator

from datasets import Dataset

from .collation import LABEL_PREFIX
from .loading import LabelledSet, LoadedTasks
from .row_hashes import ROW_HASHES_FILE
from .texts import row_hash, row_key, text_key

logger = logging.getLogger(__name__)

RowKey = tuple[str, ...]


def _row_keys(rows: Dataset) -> Iterator[RowKey]:
    return map(row_key, rows["sentences"])


def _held_out_splits(loaded: LoadedTasks) -> Iterator[tuple[LabelledSet, str, Dataset]]:
    for labelled_set in loaded.sets:
        for split, rows in labelled_set.splits.items():
            if split != "train":
                yield labelled_set, split, rows


def held_out_sentences(loaded: LoadedTasks) -> set[str]:
    """The keys of all sentences that a model is measured on."""
    return {
        text_key(sentence) for _, _, rows in _held_out_splits(loaded) for row in rows["sentences"] for sentence in row
    }


def _found_in(loaded: LoadedTasks) -> dict[RowKey, list[str]]:
    """By row of the validation and test splits, the tasks that are measured on it."""
    found: dict[RowKey, list[str]] = {}
    for labelled_set, _, rows in _held_out_splits(loaded):
        for key in _row_keys(rows):
            tasks = found.setdefault(key, [])
            tasks.extend(task for task in labelled_set.tasks if task not in tasks)
    return found


def announce_held_out(loaded: LoadedTasks) -> None:
    """Tell which tasks have training rows that tasks of another set are measured on."""
    found_in = _found_in(loaded)
    for labelled_set in loaded.sets:
        train = labelled_set.splits["train"]
        counts = Counter(task for key in _row_keys(train) for task in found_in.get(key, []))
        for task, count in counts.items():
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
        count = sum(row_hash(sentences) in trained for sentences in rows["sentences"]) if trained else 0
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
    found_in = _found_in(loaded)
    for labelled_set in loaded.sets:
        train = labelled_set.splits["train"]
        kept, measured = [], {}
        for row, key in enumerate(_row_keys(train)):
            if key in found_in:
                measured |= dict.fromkeys(found_in[key])
            else:
                kept.append(row)
        if len(kept) == len(train):
            continue
        labelled_set.splits["train"] = rest = train.select(kept)
        for task in labelled_set.tasks:
            if all(label is None for label in rest[LABEL_PREFIX + task]):
                raise ValueError(
                    f"Task {task!r}: drop_held_out leaves no labelled training row, as all of them stand in a "
                    "validation or test split. Correct the splits, or leave drop_held_out out of the recipe."
                )
        logger.info(
            f"{', '.join(labelled_set.tasks)}: {len(train) - len(kept)} of {len(train)} training rows stand in a "
            f"validation or test split ({', '.join(measured)}) and are left out"
        )


__all__ = ["announce_held_out", "announce_trained_on", "drop_held_out", "held_out_sentences"]
