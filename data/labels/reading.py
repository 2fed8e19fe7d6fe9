"""Label names, and what a loss reads of them: class ids, 0/1 lists, scores.

A reader (`class_reader`, `multi_label_reader`, `flags_reader`, `score_reader`) is a function from what one cell holds
to a label, or to None for a row that is not labelled. What it cannot read it raises as a CellError, without a
position; `read_cells` and `Coded.read` note file and row. What a cell holds is told by cells.py.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...checks_multitask import suggest
from ..text.problems import CellError, Problems, brief
from ..text.spelling import clean, is_empty, number, quoted, show_names, spell, whole_number

Reader = Callable[[Any], Any]
ClassOf = Callable[[str], str | None]  # from a name in the data to the class that the recipe says it means

MOST_REMEMBERED = 100_000  # cells whose reading is remembered: scores may all be different
FLAGS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}


class Marks(NamedTuple):
    """The names that a cell gives, and those that it names as not applying (a mapping's zeros)."""

    on: tuple[str, ...]
    off: tuple[str, ...] = ()


def read_cells(where: str, cells: Iterable[Any], read: Reader, problems: Problems) -> Iterator[Any]:
    """Apply a reader to a column. Where it raises a CellError, the row is noted in `problems` and its label None."""
    known: dict[Any, Any] = {}  # what text was read as: a column of labels has few distinct ones
    for row, cell in enumerate(cells):
        hashable = isinstance(cell, str)
        if hashable and cell in known:
            found = known[cell]
        else:
            try:
                found = read(cell)
            except CellError as error:
                found = error
            if hashable and len(known) < MOST_REMEMBERED:
                known[cell] = found
        if isinstance(found, CellError):
            problems.add(where, row, found)
            found = None
        yield found


@dataclass
class Coded:
    """
    A column of few different values.

    Attributes:
        codes: `(rows,)`, int32: of each row the place of its value, -1 for none.
        values: the different values, in the order in which they come first.
    """

    codes: np.ndarray
    values: list[Any]

    @classmethod
    def of(cls, cells: Iterable[Any], count: int) -> "Coded":
        """From `count` values that can be hashed, None for none."""
        places: dict[Any, int] = {}
        codes = (-1 if cell is None else places.setdefault(cell, len(places)) for cell in cells)
        return cls(np.fromiter(codes, np.int32, count), list(places))

    def counts(self) -> Counter[Any]:
        """How many rows have each value."""
        found = np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))
        return Counter(dict(zip(self.values, found.tolist(), strict=True)))

    def rows_of(self, values: Collection[Any]) -> list[int]:
        """The rows that have one of these values, ascending."""
        places = [place for place, value in enumerate(self.values) if value in values]
        return np.flatnonzero(np.isin(self.codes, places)).tolist()

    def read(self, where: str, read: Reader, problems: Problems) -> "Coded":
        """What a reader makes of the values, as `read_cells` does it."""
        found: list[Any] = []
        errors: dict[int, CellError] = {}
        for place, value in enumerate(self.values):
            try:
                found.append(read(value))
            except CellError as error:
                errors[place] = error
                found.append(None)
        for row in np.flatnonzero(np.isin(self.codes, list(errors))).tolist() if errors else ():
            problems.add(where, row, errors[int(self.codes[row])])
        kept = [place for place, value in enumerate(found) if value is not None]
        places = np.full(len(found) + 1, -1, np.int32)  # the last one is that of -1
        places[kept] = np.arange(len(kept))
        return Coded(places[self.codes], [found[place] for place in kept])

    def array(self, kind: pa.DataType) -> pa.DictionaryArray:
        """The values as Arrow holds them, null for none."""
        codes = pa.array(self.codes, mask=self.codes < 0)
        return pa.DictionaryArray.from_arrays(codes, pa.array(self.values, kind))


def sort_names(names: Iterable[str]) -> list[str]:
    """Names in id order: by number if all are whole numbers, else by alphabet."""
    names = sorted(names)
    if all(re.fullmatch(r"-?\d{1,100}(\.0+)?", name, re.ASCII) for name in names):
        names.sort(key=lambda name: int(name.partition(".")[0]))
    return names


def check_names(task: str, names: list[Any], least: int) -> list[str]:
    """The label list as text, refused if it has duplicates or fewer than `least` labels."""
    names = [str(name).lower() if isinstance(name, bool) else str(name).strip() for name in names]
    double = sorted(name for name, count in Counter(map(clean, names)).items() if count > 1)
    if double or "" in map(clean, names):
        raise ValueError(
            f"Task {task!r}: the labels {show_names(names)} hold {double or 'an empty name'}"
            f"{' twice' if double else ''}. Give each class its own name under tasks.{task}.labels."
        )
    if len(names) < least:
        raise ValueError(
            f"Task {task!r}: found {len(names)} label(s) {show_names(names)}; there is nothing to tell apart. A "
            f"classification task needs at least {least}: correct tasks.{task}.labels or tasks.{task}.columns.label."
        )
    return names


def vector(on: Sequence[str], length: int) -> list[float] | None:
    """The 0/1 list that a cell's entries are, if they are one of that length."""
    if len(on) != length or not all(name in FLAGS for name in on):
        return None
    return [FLAGS[name] for name in on]


def _joined_by(name: str, known: Iterable[str]) -> str | None:
    """The separator that takes a name apart into known ones."""
    known = set(known)
    for separator in (", ", ",", "; ", ";", "|", "#", "/", "+", "&", "\t", "\n", " "):
        parts = [clean(part) for part in name.split(separator)]
        are_ids = all(part.isdecimal() and int(part[:9]) < len(known) for part in parts)
        if len(parts) > 1 and (known.issuperset(parts) or are_ids or vector(parts, len(known)) is not None):
            return separator
    return None


def _unknown(task: str, name: str, names: list[str], multi_label: bool) -> str:
    """What is told of a name that is no label."""
    text = f"label {name if whole_number(name) == name else brief(name)} is not a label of task {task!r}."
    if separator := _joined_by(name, names):
        text += f" It holds labels with {separator!r} between them: write tasks.{task}.label_separator: "
        text += quoted(separator)
        return text + ("." if multi_label else f" and tasks.{task}.problem_type: multi_label_classification.")
    if name.lower() in ("yes", "no", "on", "off") and {"true", "false"} & set(names):
        return f"{text} YAML reads an unquoted yes or no as true or false: quote it."
    return text + suggest(name, names)


def _finder(task: str, names: list[str], multi_label: bool) -> Callable[[str], int]:
    """A function from a name to its class id: by name, else as a number by number, else by position in the list."""
    ids = {clean(name): index for index, name in enumerate(names)}
    plain = Counter(map(whole_number, ids))
    by_number = {value: index for name, index in ids.items() if plain[value := whole_number(name)] == 1}
    # A list with a number among its names is never indexed: in ["1", "2", "3"] the cell 0 is a mistake, not "1".
    by_position = all(value is None or not math.isfinite(value) for value in map(number, ids))

    def find(name: str) -> int:
        if name in ids:
            return ids[name]
        value = whole_number(name)
        if value is not None and value in by_number:
            return by_number[value]
        if value is not None and by_position and 0 <= int(value) < len(names):
            return int(value)
        if name in ("true", "false") and by_position and len(names) == 2 and not multi_label:
            return int(name == "true")
        raise CellError(
            lambda: _unknown(task, name, names, multi_label),
            f"Known labels: {show_names(names)}. Correct the row, say with tasks.{task}.label_map which label it "
            f"means, or list the label under tasks.{task}.labels.",
        )

    return find


def class_reader(task: str, names: list[str], class_of: ClassOf) -> Reader:
    """Marks to class id. Whole numbers index into `names` unless these hold numbers themselves."""
    find = _finder(task, names, multi_label=False)

    def read(marks: Marks | None) -> int | None:
        name = None if marks is None else class_of(marks.on[0])
        return None if name is None else find(name)

    return read


def multi_label_reader(task: str, names: list[str], class_of: ClassOf, vectors: bool | None) -> Reader:
    """Marks to a 0/1 list as long as `names`; without any name all zeros (labelled, none applies).

    `vectors`: the cells of this column are 0/1 lists (True), ids or names (False), or some could be either (None).
    """
    find = _finder(task, names, multi_label=True)

    def read(marks: Marks | None) -> list[float] | None:
        if marks is None:
            return None
        on = marks.on
        if vectors is not False and (flags := vector(on, len(names))) is not None:
            if vectors:
                return flags
            raise CellError(
                f"the labels {show_names(on)} of task {task!r} can be read in two ways: as a row of zeros and ones, "
                f"one for each of the {len(names)} labels, or as ids of labels. Other rows cannot be zeros and ones.",
                f"Correct the rows of another length. If all are ids, say what they mean: tasks.{task}.label_map: "
                f"{{0: {names[0]}, ...}}.",
            )
        if len(set(on)) < len(on):
            raise CellError(
                f"the labels {show_names(on)} of task {task!r} hold one twice.",
                "List each label that applies once, as a name or an id; a row of zeros and ones is read from separate "
                f"columns, named under tasks.{task}.columns.label, or where every row has one for each of the "
                f"{len(names)} labels.",
            )
        found = [name for name in map(class_of, on) if name is not None]
        if on and not found and not marks.off:
            return None
        ids = {find(name) for name in found}
        flags = [0.0] * len(names)
        for index in ids:
            flags[index] = 1.0
        return flags

    return read


def flags_reader(task: str, columns: list[str], missing_labels: Iterable[str]) -> Reader:
    """The cells of several 0/1 columns to a 0/1 list; all empty means not labelled."""
    missing = set(missing_labels)

    def read(cells: tuple[Any, ...]) -> list[float] | None:
        empty = [is_empty(cell) or spell(cell) in missing for cell in cells]
        if all(empty):
            return None
        row = []
        for column, cell in zip(columns, cells, strict=True):
            value = number(cell)
            text = spell(cell).lower() if value is None or not value.is_integer() else str(int(value))
            if text not in FLAGS:
                raise CellError(
                    f"column {brief(column)} holds {brief(cell)} where multi-label task {task!r} needs 0 or 1.",
                    "Correct the row; if it is not labelled, leave all of its label columns empty.",
                )
            row.append(FLAGS[text])
        return row

    return read


def _score_remedy(task: str, cell: Any, csv_file: bool) -> str:
    """What to do about a text that is no number."""
    text = cell.strip() if isinstance(cell, str) else ""
    if csv_file and re.fullmatch(r"[-+]?\d+(\.\d{3})*,\d+", text):
        thousands = " and `thousands: '.'`" if "." in text else ""
        return f"If the comma is a decimal comma, add `decimal: ','`{thousands} to tasks.{task}.dataset."
    if csv_file and re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        return f"If the comma separates thousands, add `thousands: ','` to tasks.{task}.dataset."
    if re.search(r"\d", text) and not re.search(r"[^\W\d_]", text):
        return "Write it as a plain number: with a point, with - for minus, and without %, currency or other signs."
    return (
        f"Correct the row, leave the cell empty if the row is not labelled, write tasks.{task}.missing_labels "
        f"for what means so, or name another column under tasks.{task}.columns.label."
    )


def score_reader(
    task: str, missing_labels: Iterable[str], score_cell: Callable[[Any], Any], csv_file: bool = False
) -> Reader:
    """Cell to a finite float; `score_cell` gives a number as Python writes it, `csv_file` is for the remedy."""
    missing = set(missing_labels)

    def read(cell: Any) -> float | None:
        if is_empty(cell) or (missing and spell(cell) in missing):
            return None
        value = number(score_cell(cell))
        if value is None or not math.isfinite(value):
            raise CellError(
                f"found {brief(cell)} where task {task!r} needs a number as its score.",
                _score_remedy(task, cell, csv_file),
            )
        return value

    return read
