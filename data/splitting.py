"""Rows that are set aside for validation and test: chosen by a hash of their text, not by their place in the file.

    check_split_settings   a task's `validation_split`, `test_split` and `group`, before any data is loaded
    check_splits           the same against the splits that the data has
    split_rows             which rows train, validate and test

What holds: a text's place, between 0 and 1, is a hash of the seed and the text (`row_key`: whatever its case and white
space, a pair in either order). Places below `validation_split` are validation, those above `1 - test_split` test. This
rule looks at no other row. It gives the same answer in a larger file, in another order, in another file and for other
tasks. A second rule then moves the few texts next to a limit that balance the classes (`_balance`):

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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..checks_multitask import is_number
from .parts import Part, plain_text
from .problems import brief
from .sources import TaskSource
from .texts import hash_of, row_hash

logger = logging.getLogger(__name__)

TOLERANCE = 0.02  # of what is due: of 1,000 texts of a class it may be 980 to 1,020, so that fewer of them move


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
    if source.validation_split is None and "validation" not in parts and require_train:
        raise ValueError(
            f"Task {task!r}: no validation split: add data_files.validation or `validation_split: 0.1` under "
            f"tasks.{task}."
        )


def _group_value(cell: Any) -> str | None:
    """A group's value as text (7, 7.0 and "7" are one), None for an empty cell."""
    return None if isinstance(cell, float) and math.isnan(cell) else plain_text(cell)


def _labels_of_units(labels: Sequence[Any], rows_of: Sequence[Sequence[int]]) -> dict[int, list[Any]]:
    """By unit that is labelled for a task, its rows' labels: scores, or all class ids that stand there."""
    found = {}
    for unit, rows in enumerate(rows_of):
        known = [labels[row] for row in rows if labels[row] is not None]
        if known and isinstance(known[0], list):
            found[unit] = sorted({index for flags in known for index, flag in enumerate(flags) if flag})
        elif known:
            found[unit] = sorted(set(known))
    return found


def _strata(labels: dict[int, list[Any]]) -> dict[int, int]:
    """By unit the class that it is balanced for: the rarest of its labels (-1: none applies), or a tenth of scores."""
    if any(isinstance(label, float) for found in labels.values() for label in found):
        scores = [found[0] for found in labels.values()]
        edges = np.quantile(scores, np.arange(0.1, 0.95, 0.1))
        return dict(zip(labels, np.searchsorted(edges, scores).tolist(), strict=True))
    counts = Counter(label for found in labels.values() for label in found)
    return {unit: min(found, key=lambda label: (counts[label], label), default=-1) for unit, found in labels.items()}


def _range(count: int, share: float) -> tuple[int, int]:
    """How few and how many of a class may be set aside: the share, rounded down and up, and `TOLERANCE` more."""
    due = round(share * count, 9)
    more = int(TOLERANCE * due)
    return math.floor(due) - more, math.ceil(due) + more


def _balance(units: Sequence[int], strata: Mapping[int, int], share: float, chosen: set[int]) -> None:
    """Move the units next to the limit into or out of `chosen` until every class, and all together, give their share.

    `units` can be moved, and stand nearest to the end that is set aside first; `strata` are of all that shares count.
    """
    ranges = {stratum: _range(count, share) for stratum, count in Counter(strata.values()).items()}
    least, most = _range(len(strata), share)
    held = Counter(strata[unit] for unit in units if unit in chosen)

    def take(unit: int) -> None:
        chosen.add(unit)
        held[strata[unit]] += 1

    def release(unit: int) -> None:
        chosen.remove(unit)
        held[strata[unit]] -= 1

    for unit in units:
        if unit not in chosen and held[strata[unit]] < ranges[strata[unit]][0]:
            take(unit)
    for unit in reversed(units):
        if unit in chosen and held[strata[unit]] > ranges[strata[unit]][1]:
            release(unit)
    total = held.total()
    for unit in units:
        if unit not in chosen and total < least and held[strata[unit]] < ranges[strata[unit]][1]:
            take(unit)
            total += 1
    for unit in reversed(units):
        if unit in chosen and total > most and held[strata[unit]] > ranges[strata[unit]][0]:
            release(unit)
            total -= 1


def _balance_groups(units: Sequence[int], sizes: Mapping[int, int], share: float, chosen: set[int]) -> None:
    """As `_balance`, for the number of rows. Groups differ in size: each move brings it nearer to the share."""
    count = sum(sizes.values())
    due, (least, most) = share * count, _range(count, share)
    held = sum(sizes[unit] for unit in units if unit in chosen)
    for unit in reversed(units):
        if held > most and unit in chosen and abs(held - sizes[unit] - due) < abs(held - due):
            chosen.remove(unit)
            held -= sizes[unit]
    for unit in units:
        if held < least and unit not in chosen and abs(held + sizes[unit] - due) < abs(held - due):
            chosen.add(unit)
            held += sizes[unit]
    if not chosen and units:
        chosen.add(min(units, key=lambda unit: sizes[unit]))


def _classes(labels: Mapping[str, dict[int, list[Any]]], share: float) -> list[tuple[set[int], int]]:
    """Of each task all its units, and those of each of its classes, with how many have to be set aside at least."""
    classes = []
    for found in labels.values():
        members: dict[int, set[int]] = defaultdict(set)
        for unit, own in found.items():
            for label in own:
                if not isinstance(label, float):
                    members[label].add(unit)
        classes.append((set(found), 1))
        classes += [(units, _range(len(units), share)[0]) for units in members.values()]
    return classes


def _spread(
    classes: Sequence[tuple[set[int], int]], units: Sequence[int], held: set[int], gone: set[int], chosen: set[int]
) -> None:
    """Move units into or out of `chosen` where a class would have nothing to be measured or nothing to be learnt on.

    `held` are units of this split that were settled before, `gone` are those of all splits but train.
    """
    rank = {unit: place for place, unit in enumerate(units)}

    def is_last(unit: int) -> bool:
        return any(unit in members and not members - gone - chosen - {unit} for members, _ in classes)

    for members, least in classes:
        if least and members.isdisjoint(held) and members.isdisjoint(chosen):
            near = sorted(members & rank.keys(), key=rank.__getitem__)
            chosen.update(islice((unit for unit in near if not is_last(unit)), 1))
    for members, _ in classes:
        if not members - gone - chosen:
            chosen.difference_update(sorted(members & chosen, key=rank.__getitem__)[-1:])


def split_rows(
    hashes: Sequence[int],
    labels: Mapping[str, Sequence[Any]],
    shares: Mapping[str, float],
    seed: int,
    groups: Sequence[Any] | None = None,
    known: Mapping[int, str] | None = None,
) -> dict[str, list[int]]:
    """
    Choose the rows to set aside; the module's docstring says by which rule, and what it promises.

    Args:
        hashes: by row its `row_hash`.
        labels: by task, in the recipe's order, the rows' labels as in the canonical columns (`None`: not labelled).
        shares: of `validation`, `test` or both, between 0 and 1.
        seed: another seed gives another split.
        groups: by row a value; rows of one value go to one side, and the shares are of rows, met as nearly as whole
            groups can. Classes are not balanced then. An empty value makes a group of its own (for each text).
        known: by `row_hash` the split where a row has been, and where it stays; of several, training wins.

    Returns:
        By split, `train` included, the numbers of its rows, ascending.
    """
    rows_by_key: dict[str, list[int]] = defaultdict(list)
    for row, own in enumerate(hashes):
        cell = None if groups is None else _group_value(groups[row])
        rows_by_key[f"text {own}" if cell is None else f"group {cell}"].append(row)
    place = {key: (hash_of(f"{seed} {key}") + 2**63) / 2**64 for key in rows_by_key}
    keys = sorted(rows_by_key, key=lambda key: (place[key], key))
    rows_of = [rows_by_key[key] for key in keys]  # from here on, a text or a group is its number in this order

    sides: list[str | None] = []
    for rows in rows_of:
        found = {known.get(hashes[row]) for row in rows} if known else set()
        sides.append(next((split for split in ("train", *shares) if split in found), None))
    labels_of = {task: _labels_of_units(own, rows_of) for task, own in labels.items()}
    free = [unit for unit, side in enumerate(sides) if side is None]
    sizes = {unit: len(rows_of[unit]) for unit in free}
    strata, rest = [], free
    for found in labels_of.values():
        strata.append(_strata({unit: found[unit] for unit in rest if unit in found}))
        rest = [unit for unit in rest if unit not in found]
    for split, share in shares.items():
        units = [unit for unit, side in enumerate(sides) if side is None]
        distance = {unit: place[keys[unit]] for unit in units}
        if split == "test":  # from the other end, so that a test_split does not change what validates
            units.reverse()
            distance = {unit: 1 - own for unit, own in distance.items()}
        chosen = {unit for unit in units if distance[unit] < share}
        if groups is not None:
            _balance_groups(units, sizes, share, chosen)
        else:
            for own in strata:
                _balance([unit for unit in units if unit in own], own, share, chosen)
        held = {unit for unit, side in enumerate(sides) if side == split}
        gone = {unit for unit, side in enumerate(sides) if side not in (None, "train")}
        _spread(_classes(labels_of, share), units, held, gone, chosen)
        sides = [split if unit in chosen else side for unit, side in enumerate(sides)]
    found_rows: dict[str, list[int]] = {split: [] for split in ("train", *shares)}
    for side, rows in zip(sides, rows_of, strict=True):
        found_rows[side or "train"] += rows
    return {split: sorted(rows) for split, rows in found_rows.items()}


def set_aside(
    sources: Sequence[TaskSource],
    columns: dict[str, dict[str, list[Any]]],
    seed: int,
    known: dict[int, str],
) -> None:
    """
    Move what `validation_split` and `test_split` ask for out of the train columns, in place.

    Args:
        sources: tasks that read the same rows.
        columns: canonical columns by split; of the train split also `group`, which is taken out, where that is set.
        seed: another seed gives another split.
        known: as of `split_rows`; the rows of these tasks are added to it.

    Raises:
        ValueError: a split would have no labelled row of a task.
    """
    source, train = sources[0], columns["train"]
    asked = {"validation": source.validation_split, "test": source.test_split}
    shares = {split: share for split, share in asked.items() if share is not None}
    groups = train.pop("group", None)
    if not shares:
        return
    hashes = [row_hash(sentences) for sentences in train["sentences"]]
    labels = {own.name: train[f"label_{own.name}"] for own in sources}
    rows_of = split_rows(hashes, labels, shares, seed, groups, known)
    settled, total = sum(own in known for own in hashes), len(hashes)
    for split, rows in rows_of.items():
        known.update((hashes[row], split) for row in rows if hashes[row] not in known)
        columns[split] = {name: [values[row] for row in rows] for name, values in train.items()}
        for own in sources:
            if all(label is None for label in columns[split][f"label_{own.name}"]):
                key = f"{'test' if split == 'test' else 'validation'}_split"
                why = f", {settled} of which are settled by a run or a data set before," if settled else ""
                why += f" in {len(set(map(_group_value, groups)))} groups" if groups is not None else ""
                raise ValueError(
                    f"Task {brief(own.name)}: {key} {shares.get(split, shares.get('validation'))} of {total} "
                    f"rows{why} leaves no labelled row for {split}. Change tasks.{own.name}.{key}, or add rows."
                )
    tasks = ", ".join(own.name for own in sources)
    how = f"whole groups of {brief(source.group)}" if groups is not None else "stratified"
    for split, share in shares.items():
        logger.info(
            f"{tasks}: no {split} split; {100 * share:g} % of the training rows ({len(rows_of[split])} of {total}) "
            f"set aside, {how}, seed {seed}"
        )
    if settled:
        logger.info(
            f"{tasks}: {settled} of {total} rows stay on the side where the model that this run goes on from, or "
            "another data set of this run, has them"
        )


__all__ = ["check_split_settings", "check_splits", "set_aside", "split_rows"]
