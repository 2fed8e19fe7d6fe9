"""Label cells as they stand in a file, turned into what a loss reads.

A reader (`class_reader`, `multi_label_reader`, `flags_reader`, `score_reader`) is a function from one cell to a label,
or to None for an empty cell (not labelled). What it cannot read it raises as a ValueError without a position;
`read_cells` adds file and row. Cells of CSV files are text, so "1" and "1.0" count as the number 1 wherever they are
no label's name.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

Reader = Callable[[Any], Any]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ` Did you mean 'x'?` if a known name is close, else nothing."""
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[close[0]]!r}?" if close else ""


def is_empty(cell: Any) -> bool:
    """None and text of nothing but whitespace."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def number(cell: Any) -> float | None:
    """The number that a cell holds, which may be NaN or infinite; None for a bool and for other text."""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return float(cell)
    if isinstance(cell, str) and "_" not in cell:  # float("1_000") is 1000.0 in Python, a typing error in a table
        try:
            return float(cell)
        except ValueError:
            return None
    return None


def whole_number(cell: Any) -> int | None:
    """`number` where it is whole: 1, 1.0, "1" and "1.0" give 1, as pandas writes class ids beside empty cells."""
    value = number(cell)
    return int(value) if value is not None and value.is_integer() else None


def read_cells(where: str, cells: Iterable[Any], read: Reader) -> list[Any]:
    """Apply a reader to a column; its ValueError comes out with `where` and the 1-based row before it."""
    labels = []
    for row, cell in enumerate(cells, start=1):
        try:
            labels.append(read(cell))
        except ValueError as error:
            raise ValueError(f"{where}, row {row}: {error}") from None
    return labels


def class_cell(task: str, cell: Any, names: Iterable[str] = ()) -> str | int | None:
    """One class as a name or a whole number, None if empty; a fraction which is no label's name is an error."""
    if is_empty(cell):
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, str):
        cell = cell.strip()
    elif not isinstance(cell, int | float):
        raise ValueError(
            f"found {type(cell).__name__} {cell!r} where task {task!r} needs one label, a name or a number. Correct "
            f"the row, or write tasks.{task}.problem_type: multi_label_classification if a row has several labels."
        )
    if str(cell) in names:
        return str(cell)
    value = number(cell)
    if isinstance(cell, float) and not math.isfinite(cell):
        raise ValueError(f"{cell} is no label of task {task!r}. Leave the cell empty if the row is not labelled.")
    if value is not None and math.isfinite(value) and not value.is_integer():
        raise ValueError(
            f"found {cell!r}: a score column for a classification task. Write tasks.{task}.problem_type: regression, "
            f"or list the classes under tasks.{task}.labels."
        )
    return cell if isinstance(cell, str) else int(cell)


def multi_label_cell(task: str, cell: Any, names: Iterable[str] = ()) -> list[str | int] | None:
    """The labels of one row: a list of names or ids, or text with `|` between them (`|` alone: none applies)."""
    if is_empty(cell):
        return None
    if isinstance(cell, str):
        cell = [part for part in cell.split("|") if part.strip()]
    if not isinstance(cell, list | tuple):
        raise ValueError(
            f"found {type(cell).__name__} {cell!r} where multi-label task {task!r} needs a list of labels, or text "
            f"with '|' between the labels. Correct the row, or name several 0/1 columns as tasks.{task}.columns.label."
        )
    found = [None if isinstance(item, bool) else class_cell(task, item, names) for item in cell]
    if None in found:
        raise ValueError(f"the labels {cell!r} of task {task!r} hold an empty or true/false entry. List names or ids.")
    if len(set(found)) < len(found):
        raise ValueError(
            f"the labels {cell!r} of task {task!r} hold one twice. List each label that applies once, as a name or an "
            f"id; a row of zeros and ones is read from separate columns, named under tasks.{task}.columns.label."
        )
    return found


def infer_names(cells: Iterable[str | int]) -> list[str]:
    """Label names in id order: the distinct cells, by number if all are whole numbers, else by alphabet."""
    distinct = set(cells)
    if distinct and all(whole_number(cell) is not None for cell in distinct):
        return [str(value) for value in sorted({whole_number(cell) for cell in distinct})]
    return sorted({str(cell) for cell in distinct})


def check_names(task: str, names: list[Any], least: int) -> list[str]:
    """The label list as text, refused if it has duplicates or fewer than `least` labels."""
    names = [str(name).lower() if isinstance(name, bool) else str(name).strip() for name in names]
    double = sorted({name for name in names if names.count(name) > 1})
    if double or "" in names:
        raise ValueError(
            f"Task {task!r}: the labels {names} hold {double or 'an empty name'}{' twice' if double else ''}. "
            f"Give each class its own name under tasks.{task}.labels."
        )
    if len(names) < least:
        raise ValueError(
            f"Task {task!r}: found {len(names)} label(s) {names}; there is nothing to tell apart. A classification "
            f"task needs at least {least}: correct tasks.{task}.labels or tasks.{task}.columns.label."
        )
    return names


def _finder(task: str, names: list[str]) -> Callable[[str | int], int]:
    """A function from a cell to its class id: by name, else by position in the list."""
    ids = {name: index for index, name in enumerate(names)}
    # A list with a number among its names is never indexed: in ["1", "2", "3"] the cell 0 is a mistake, not "1".
    by_position = all(whole_number(name) is None for name in names)

    def find(cell: str | int) -> int:
        value = whole_number(cell)
        if str(cell) in ids:
            return ids[str(cell)]
        if value is not None and str(value) in ids:
            return ids[str(value)]
        if value is not None and by_position and 0 <= value < len(names):
            return value
        if cell in ("true", "false") and by_position and len(names) == 2:
            return int(cell == "true")
        quoted = str(cell).lower() in ("yes", "no", "on", "off") and {"true", "false"} & set(names)
        yaml = " YAML reads an unquoted yes or no as true or false: quote it." if quoted else ""
        raise ValueError(
            f"label {cell!r} is not a label of task {task!r}.{nearest(str(cell), names)} Known labels: {names}.{yaml} "
            f"Correct the row, or list the label under tasks.{task}.labels."
        )

    return find


def class_reader(task: str, names: list[str]) -> Reader:
    """Cell to class id. Whole numbers index into `names` unless these hold numbers themselves."""
    find, known = _finder(task, names), set(names)

    def read(cell: Any) -> int | None:
        label = class_cell(task, cell, known)
        return None if label is None else find(label)

    return read


def multi_label_reader(task: str, names: list[str]) -> Reader:
    """Cell to a 0/1 list as long as `names`; an empty list is all zeros (labelled, none applies)."""
    find, known = _finder(task, names), set(names)

    def read(cell: Any) -> list[float] | None:
        labels = multi_label_cell(task, cell, known)
        if labels is None:
            return None
        ids = {find(label) for label in labels}
        return [float(index in ids) for index in range(len(names))]

    return read


def flags_reader(task: str, columns: list[str]) -> Reader:
    """The cells of several 0/1 columns to a 0/1 list; all empty means not labelled."""
    flags = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}

    def read(cells: tuple[Any, ...]) -> list[float] | None:
        if all(is_empty(cell) for cell in cells):
            return None
        row = []
        for column, cell in zip(columns, cells, strict=True):
            value = whole_number(cell)
            text = str(cell).strip().lower() if value is None else str(value)
            if text not in flags:
                raise ValueError(
                    f"column {column!r} holds {cell!r} where multi-label task {task!r} needs 0 or 1. Correct the row; "
                    "if it is not labelled, leave all of its label columns empty."
                )
            row.append(flags[text])
        return row

    return read


def score_reader(task: str) -> Reader:
    """Cell to a finite float."""

    def read(cell: Any) -> float | None:
        if is_empty(cell):
            return None
        value = number(cell)
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"found {cell!r} where task {task!r} needs a number as its score. Correct the row, leave the cell "
                f"empty if the row is not labelled, or name another column under tasks.{task}.columns.label."
            )
        return value

    return read
