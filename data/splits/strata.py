"""Which of the texts or groups next to a limit are moved, so that rows set aside have every class in its share.

    LabelsOfUnits    what texts or groups are labelled with for one task, and the classes that they are balanced for
    balance          moves texts until every class gives its share
    balance_groups   moves groups until their rows do
    spread           moves what leaves a class without a row to learn or to measure

A unit is a text or a group: a number, ascending with the unit's place between 0 and 1. splitting.py has the rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TOLERANCE = 0.02  # of what is due: of 1,000 texts of a class it may be 980 to 1,020, so that fewer of them move


@dataclass
class LabelsOfUnits:
    """
    What the units are labelled with for one task.

    Attributes:
        labelled: `(units,)`: whether any row of the unit is.
        units: `(pairs,)`, ascending: one entry for each unit and different label of it.
        classes: `(pairs,)`: the label's number; ascending within a unit. `None` for scores.
        scores: `(pairs,)`, for scores in place of classes.
    """

    labelled: np.ndarray
    units: np.ndarray
    classes: np.ndarray | None
    scores: np.ndarray | None = None

    @classmethod
    def read(cls, column: pa.ChunkedArray, unit_of: np.ndarray, count: int) -> "LabelsOfUnits":
        """From the rows' labels as in the canonical columns, and each row's unit."""
        given = unit_of[pc.is_valid(column).to_numpy(zero_copy_only=False)]
        labelled = np.zeros(count, bool)
        labelled[given] = True
        column = column.drop_null()
        if pa.types.is_floating(column.type):
            scores = column.to_numpy()
            order = np.lexsort((scores, given))
            given, scores = given[order], scores[order]
            is_new = np.diff(given, prepend=-1) != 0
            return cls(labelled, given[is_new], None, scores[is_new])  # a unit goes by its lowest score
        if pa.types.is_list(column.type):
            units, classes, start = [given[:0]], [given[:0]], 0
            for chunk in filter(len, column.chunks):
                flags = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
                rows, found = np.nonzero(flags)
                units.append(given[start + rows])
                classes.append(found)
                start += len(chunk)
            given, classes = np.concatenate(units), np.concatenate(classes)
        else:
            classes = column.to_numpy()
        width = int(classes.max(initial=0)) + 1
        pairs = given.astype(np.int64) * width
        pairs += classes
        pairs.sort()
        pairs = pairs[np.diff(pairs, prepend=-1) != 0]
        return cls(labelled, (pairs // width).astype(np.int32), (pairs % width).astype(np.int32))

    def strata(self, among: np.ndarray) -> np.ndarray:
        """By unit the class that it is balanced for: the rarest of its labels, or a tenth of scores; -2 for no unit
        of `among`, and -1 where none applies."""
        strata = np.where(among, np.int32(-1), np.int32(-2))
        chosen = among[self.units]
        units = self.units[chosen]
        if self.classes is None:
            scores = self.scores[chosen]
            if len(scores):
                edges = np.quantile(scores, np.arange(0.1, 0.95, 0.1))
                strata[units] = np.searchsorted(edges, scores)
            return strata
        classes = self.classes[chosen]
        counts = np.bincount(classes)
        order = np.lexsort((classes, counts[classes], units))
        units, classes = units[order], classes[order]
        is_first = np.diff(units, prepend=-1) != 0
        strata[units[is_first]] = classes[is_first]
        return strata


def _range(count: int, share: float) -> tuple[int, int]:
    """How few and how many of a class may be set aside: the share, rounded down and up, and `TOLERANCE` more."""
    due = round(share * count, 9)
    more = int(TOLERANCE * due)
    return math.floor(due) - more, math.ceil(due) + more


def _first_of_each(strata: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Of units in order, given their strata: whether each is among the first `most[stratum]` of its stratum."""
    order = np.argsort(strata, kind="stable")
    ordered = strata[order]
    starts = np.searchsorted(ordered, ordered)  # where each one's stratum begins
    is_among = np.empty(len(strata), bool)
    is_among[order] = np.arange(len(strata)) - starts < most[ordered]
    return is_among


def balance(units: np.ndarray, strata: np.ndarray, share: float, chosen: np.ndarray) -> None:
    """Move the units next to the limit into or out of `chosen` until every class, and all together, give their share.

    `units` can be moved, and stand nearest to the end that is set aside first; `strata` are of all that shares count.
    """
    counts = np.bincount(strata[strata > -2] + 1)
    ranges = np.array([_range(int(count), share) for count in counts]).reshape(-1, 2)
    least, most = _range(int(counts.sum()), share)
    own = strata[units] + 1

    def held() -> np.ndarray:
        return np.bincount(own[chosen[units]], minlength=len(counts))

    def move(is_chosen: bool, room: np.ndarray, total: int | None = None) -> None:
        """Release chosen units from the far end, or take others from the near one: up to `room` of each stratum."""
        places = np.flatnonzero(chosen[units] == is_chosen)
        places = places[::-1] if is_chosen else places
        places = places[_first_of_each(own[places], room.clip(min=0))][:total]
        chosen[units[places]] = not is_chosen

    move(False, ranges[:, 0] - held())
    move(True, held() - ranges[:, 1])
    move(False, ranges[:, 1] - held(), max(0, least - int(held().sum())))
    move(True, held() - ranges[:, 0], max(0, int(held().sum()) - most))


def balance_groups(units: np.ndarray, sizes: np.ndarray, share: float, chosen: np.ndarray) -> None:
    """As `balance`, for the number of rows. Groups differ in size: each move brings it nearer to the share."""
    units, size_of = units.tolist(), sizes.tolist()
    count = int(sizes.sum())
    due, (least, most) = share * count, _range(count, share)
    held = sum(size_of[unit] for unit in units if chosen[unit])
    for unit in reversed(units):
        if held > most and chosen[unit] and abs(held - size_of[unit] - due) < abs(held - due):
            chosen[unit] = False
            held -= size_of[unit]
    for unit in units:
        if held < least and not chosen[unit] and abs(held + size_of[unit] - due) < abs(held - due):
            chosen[unit] = True
            held += size_of[unit]
    if not chosen.any() and units:
        chosen[min(units, key=size_of.__getitem__)] = True


class _Classes:
    """Of every task all its units, and those of each of its classes, with how many have to be set aside at least.

    A class is a number over all tasks; `members` are its units, `of_unit` the classes of a unit.
    """

    def __init__(self, labels: Sequence[LabelsOfUnits], share: float, count: int):
        units, classes, self.least = [], [], []
        for found in labels:
            labelled = np.flatnonzero(found.labelled)
            units.append(labelled)
            classes.append(np.full(len(labelled), len(self.least)))
            self.least.append(1)
            if found.classes is not None:
                # In the order in which units name them: where two classes want one unit, the first wins.
                _, first, inverse, counts = np.unique(
                    found.classes, return_index=True, return_inverse=True, return_counts=True
                )
                rank = np.argsort(np.argsort(first))
                units.append(found.units)
                classes.append(rank[inverse] + len(self.least))
                self.least += [_range(int(number), share)[0] for number in counts[np.argsort(first)]]
        self.units, self.classes = np.concatenate(units), np.concatenate(classes)
        by_class = np.argsort(self.classes, kind="stable")
        self._members = self.units[by_class]
        self._starts = np.searchsorted(self.classes[by_class], np.arange(len(self.least) + 1))
        by_unit = np.argsort(self.units, kind="stable")
        self._classes_of = self.classes[by_unit]
        self._unit_starts = np.searchsorted(self.units[by_unit], np.arange(count + 1))

    def __len__(self) -> int:
        return len(self.least)

    def members(self, number: int) -> np.ndarray:
        return self._members[self._starts[number] : self._starts[number + 1]]

    def of_unit(self, unit: int) -> np.ndarray:
        return self._classes_of[self._unit_starts[unit] : self._unit_starts[unit + 1]]

    def counts(self, are_counted: np.ndarray) -> np.ndarray:
        """How many members of each class are counted."""
        return np.bincount(self.classes[are_counted[self.units]], minlength=len(self))


def _is_spread(
    labels: Sequence[LabelsOfUnits], share: float, held: np.ndarray, gone: np.ndarray, chosen: np.ndarray
) -> bool:
    """Whether every class has a unit to learn, and one to measure where a whole one is due: as most often."""
    set_aside, left = held | chosen, ~(gone | chosen)
    for found in labels:
        if not (set_aside & found.labelled).any() or not (left & found.labelled).any():
            return False
        if found.classes is None:
            continue
        counts = np.bincount(found.classes)
        measured = np.bincount(found.classes[set_aside[found.units]], minlength=len(counts))
        learnt = np.bincount(found.classes[left[found.units]], minlength=len(counts))
        due = np.array([count > 0 and _range(int(count), share)[0] > 0 for count in counts], bool)
        if (due & (measured == 0)).any() or ((counts > 0) & (learnt == 0)).any():
            return False
    return True


def spread(
    labels: Sequence[LabelsOfUnits],
    share: float,
    units: np.ndarray,
    held: np.ndarray,
    gone: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """Move units into or out of `chosen` where a class would have nothing to be measured or nothing to be learnt on.

    `held` are units of this split that were settled before, `gone` are those of all splits but train.
    """
    if _is_spread(labels, share, held, gone, chosen):
        return
    classes = _Classes(labels, share, len(chosen))
    rank = np.full(len(chosen), len(chosen))  # of units that can be moved
    rank[units] = np.arange(len(units))
    set_aside, left = classes.counts(held | chosen), classes.counts(~(gone | chosen))

    def move(unit: int, into: bool) -> None:
        chosen[unit] = into
        own = classes.of_unit(unit)
        set_aside[own] += 1 if into else -1
        if not gone[unit]:
            left[own] -= 1 if into else -1

    def is_last(unit: int) -> bool:
        own = classes.of_unit(unit)
        return bool((left[own] - (not (gone[unit] or chosen[unit])) <= 0).any())

    for number in range(len(classes)):
        if classes.least[number] and not set_aside[number]:
            near = classes.members(number)
            near = near[rank[near] < len(chosen)]
            found = next((unit for unit in near[np.argsort(rank[near])].tolist() if not is_last(unit)), None)
            if found is not None:
                move(found, True)
    for number in range(len(classes)):
        if not left[number]:
            own = classes.members(number)
            own = own[chosen[own]]
            if len(own):
                move(int(own[np.argmax(rank[own])]), False)


__all__ = ["LabelsOfUnits", "balance", "balance_groups", "spread"]
