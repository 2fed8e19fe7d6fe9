"""Rows that are set aside for validation and test: chosen by a hash of their text, not by their place in the file.

    check_split_settings   a task's `validation_split`, `test_split` and `group`, before any data is loaded
    check_splits           the same against the splits that the data has
    split_rows             which rows train, validate and test

What holds: a text's place, between 0 and 1, is a hash of the seed and the text (`row_key`: whatever its case and white
space, a pair in either order). Places below `validation_split` are validation, those above `1 - test_split` test. This
rule looks at no other row. It gives the same answer in a larger file, in another order, in another file and for other
tasks. A second rule then moves the few texts next to a limit that balance the classes (strata.py):

* Texts are balanced for the first task of the recipe that labels them. Each class gives its share, rounded up or down,
  and so do all together; where 50 texts or more are due, it may be 2 % more or fewer. A task that is added or removed
  after it moves nothing.
* For every task, a class that would give nothing although a whole text of it is due gives one, and no class gives all.
* What was settled before stays: by the model that a run goes on from, by an earlier set of the same run.

Balancing is all that can be disturbed: of the texts set aside, 2 to 3 % are trained on when a file grows by a tenth, 3
to 7 % when it doubles, and 1 to 8 % when the first task is another (random labels, 160 to 5,000 texts, 10 and 20 % set
aside). Going on from a model moves none.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ...checks_multitask import is_number
from ..cache.arrays import BATCH_ROWS
from ..files.parts import Part, plain_text
from ..rows.canonical import LABEL_PREFIX
from ..rows.sides import SIDES, UNSETTLED, Sides
from ..sources.task_source import TaskSource
from ..text.problems import brief
from ..text.sameness import hash_of, row_hashes
from .strata import LabelsOfUnits, balance, balance_groups, spread

logger = logging.getLogger(__name__)


def check_split_settings(source: TaskSource) -> None:
    """
    Refuse shares and a group column that cannot be.

    Raises:
        ValueError: a share is not between 0 and 1, the shares leave nothing to train on, or `group` is no column's
            name or has nothing to act on.
    """
    task = source.name
    shares = {"validation_split": source.validation_split, "test_split": source.test_split}
    for key, share in shares.items():
        if share is not None and not (is_number(share) and 0 < share < 1):
            raise ValueError(f"tasks.{task}.{key} should be above 0 and below 1. Found {brief(share)}.")
    if None not in shares.values() and sum(shares.values()) >= 1:
        raise ValueError(
            f"tasks.{task}: validation_split {source.validation_split} and test_split {source.test_split} leave no "
            "row for training. Their sum should be below 1."
        )
    if source.group is None:
        return
    if not isinstance(source.group, str) or not source.group:
        raise ValueError(f"tasks.{task}.group should be the name of a column. Found {brief(source.group)}.")
    if set(shares.values()) == {None}:
        raise ValueError(
            f"tasks.{task}.group keeps the rows of a group on one side when rows are set aside, but none are. Add "
            f"tasks.{task}.validation_split or test_split, or remove group."
        )


def check_splits(sources: Sequence[TaskSource], parts: Mapping[str, Sequence[Part]], require_train: bool) -> None:
    """
    Check the splits that the data of some tasks has.

    Raises:
        ValueError: a train or validation split is missing, or one is there and should be set aside as well.
    """
    source = sources[0]
    task = source.name
    check_split_settings(source)
    if "train" not in parts and require_train:
        raise ValueError(
            f"Task {task!r}: no train split (found: {list(parts)}). Add tasks.{task}.dataset.data_files.train, or "
            f"name the data set's own split under tasks.{task}.dataset.splits."
        )
    for split, share in (("validation", source.validation_split), ("test", source.test_split)):
        if share is not None and split in parts:
            raise ValueError(
                f"Task {task!r}: there is a {split} split ({parts[split][0].where}) and a {split}_split of "
                f"{share}. Remove tasks.{task}.{split}_split, or take {split} out of tasks.{task}.dataset."
            )
        if share is not None and "train" not in parts:
            raise ValueError(
                f"Task {task!r}: {split}_split: {share} sets training rows aside, but the splits are {list(parts)}. "
                f"Remove tasks.{task}.{split}_split, or add tasks.{task}.dataset.data_files.train."
            )
    if source.validation_split is None and "validation" not in parts and require_train:
        raise ValueError(
            f"Task {task!r}: no validation split: add data_files.validation or `validation_split: 0.1` under "
            f"tasks.{task}."
        )


def group_value(cell: Any) -> str | None:
    """A group's value as text (7, 7.0 and "7" are one), None for an empty cell."""
    return None if isinstance(cell, float) and math.isnan(cell) else plain_text(cell)


def _places(hashes: np.ndarray, seed: int, groups: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """The place of every unit (a text, or a group) from 0 to 1, ascending, and every row's unit."""
    if groups is None:
        distinct = np.sort(hashes)
        distinct = distinct[np.diff(distinct, prepend=distinct[:1] - 1) != 0]
        unit_of = np.empty(len(hashes), np.int32)
        for start in range(0, len(hashes), BATCH_ROWS):
            unit_of[start : start + BATCH_ROWS] = np.searchsorted(distinct, hashes[start : start + BATCH_ROWS])
        keys: Sequence[str] = _TextKeys(distinct)
    else:
        number_of: dict[str, int] = {}
        values = map(group_value, groups)
        found = (f"text {own}" if cell is None else f"group {cell}" for own, cell in zip(hashes, values, strict=True))
        unit_of = np.fromiter((number_of.setdefault(key, len(number_of)) for key in found), np.int32, len(hashes))
        keys = list(number_of)
    place = np.fromiter(((hash_of(f"{seed} {key}") + 2**63) / 2**64 for key in keys), float, len(keys))
    order = np.argsort(place, kind="stable")
    place = place[order]
    for start in np.flatnonzero(place[1:] == place[:-1]).tolist():  # equal places, which are rare, go by their keys
        stop = int(np.searchsorted(place, place[start], side="right"))
        order[start:stop] = sorted(order[start:stop].tolist(), key=keys.__getitem__)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return place, number[unit_of]


class _TextKeys(Sequence):
    """What texts with these hashes are called among the units, made when asked for."""

    def __init__(self, hashes: np.ndarray):
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def __getitem__(self, place: int) -> str:
        return f"text {self.hashes[place]}"


def split_rows(
    hashes: np.ndarray,
    labels: Mapping[str, pa.ChunkedArray],
    shares: Mapping[str, float],
    seed: int,
    groups: Sequence[Any] | None = None,
    known: Sides | None = None,
) -> np.ndarray:
    """
    Choose the rows to set aside; the module's docstring says by which rule, and what it promises.

    Args:
        hashes: by row its `row_hash`, `(rows,)`.
        labels: by task, in the recipe's order, the rows' labels as in the canonical columns (null: not labelled).
        shares: of `validation`, `test` or both, between 0 and 1.
        seed: another seed gives another split.
        groups: by row a value; rows of one value go to one side, and the shares are of rows, met as nearly as whole
            groups can. Classes are not balanced then. An empty value makes a group of its own (for each text).
        known: the split where rows have been, and where they stay; of several, training wins.

    Returns:
        `(rows,)`: by row the place of its split in `SIDES`.
    """
    place, unit_of = _places(hashes, seed, groups)  # from here on, a text or a group is its number in this order
    count = len(place)
    sides = np.full(count, UNSETTLED, np.int8)
    if known is not None:
        found = known.find(hashes)
        for split in ("test", "validation", "train"):
            if split == "train" or split in shares:
                sides[unit_of[found == SIDES.index(split)]] = SIDES.index(split)
    labels_of = [LabelsOfUnits.read(own, unit_of, count) for own in labels.values()]
    free = sides == UNSETTLED
    strata, rest = [], free.copy()
    for found in labels_of:
        strata.append(found.strata(found.labelled & rest))
        rest &= ~found.labelled
    for split, share in shares.items():
        units, number = np.flatnonzero(sides == UNSETTLED), SIDES.index(split)
        distance = place
        if split == "test":  # from the other end, so that a test_split does not change what validates
            units, distance = units[::-1], 1 - place
        chosen = np.zeros(count, bool)
        chosen[units] = distance[units] < share
        if groups is not None:
            balance_groups(units, np.where(free, np.bincount(unit_of, minlength=count), 0), share, chosen)
        else:
            for own in strata:
                balance(units[own[units] > -2], own, share, chosen)
        gone = (sides != UNSETTLED) & (sides != SIDES.index("train"))
        spread(labels_of, share, units, sides == number, gone, chosen)
        sides[chosen] = number
    sides[sides == UNSETTLED] = SIDES.index("train")
    return sides[unit_of]


def set_aside(
    sources: Sequence[TaskSource],
    rows: Dataset,
    groups: Sequence[Any] | None,
    seed: int,
    known: Sides,
) -> np.ndarray | None:
    """
    Choose what `validation_split` and `test_split` ask for among the training rows.

    Args:
        sources: tasks that read the same rows.
        rows: the training rows, in canonical columns.
        groups: by row, the cells of the column `group`, where that is set.
        seed: another seed gives another split.
        known: where rows have been, and where they stay.

    Returns:
        `(rows,)`: by row the place of its split in `SIDES`; `None` where nothing is set aside.

    Raises:
        ValueError: a split would have no labelled row of a task.
    """
    source, total = sources[0], len(rows)
    asked = {"validation": source.validation_split, "test": source.test_split}
    shares = {split: share for split, share in asked.items() if share is not None}
    if not shares:
        return None
    hashes = row_hashes(rows)
    labels = {own.name: rows.data.column(LABEL_PREFIX + own.name) for own in sources}
    sides = split_rows(hashes, labels, shares, seed, groups, known)
    settled = int((known.find(hashes) != UNSETTLED).sum())
    for split in ("train", *shares):
        of_split = sides == SIDES.index(split)
        for own in sources:
            if not (of_split & pc.is_valid(labels[own.name]).to_numpy(zero_copy_only=False)).any():
                key = f"{'test' if split == 'test' else 'validation'}_split"
                why = f", {settled} of which are settled by a run or a data set before," if settled else ""
                why += f" in {len(set(map(group_value, groups)))} groups" if groups is not None else ""
                raise ValueError(
                    f"Task {brief(own.name)}: {key} {shares.get(split, shares.get('validation'))} of {total} "
                    f"rows{why} leaves no labelled row for {split}. Change tasks.{own.name}.{key}, or add rows."
                )
    tasks = ", ".join(own.name for own in sources)
    how = f"whole groups of {brief(source.group)}" if groups is not None else "stratified"
    for split, share in shares.items():
        count = int((sides == SIDES.index(split)).sum())
        logger.info(
            f"{tasks}: no {split} split; {100 * share:g} % of the training rows ({count} of {total}) "
            f"set aside, {how}, seed {seed}"
        )
    if settled:
        logger.info(
            f"{tasks}: {settled} of {total} rows stay on the side where the model that this run goes on from, or "
            "another data set of this run, has them"
        )
    return sides


__all__ = ["check_split_settings", "check_splits", "group_value", "set_aside", "split_rows"]
