"""One file, or one split of a data set, as it was loaded: its columns by name, and which of its rows count.

A column's name may lead into nested cells (`data.text`), several columns may make up one text, and `where` may leave
rows out. Rows that are left out stay in place as empty cells, so that a message names the row of the file.
"""

import datetime
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, List

from ...checks_multitask import suggest
from ..cache.arrays import BATCH_ROWS
from ..text.half_characters import read_bytes
from ..text.problems import CellError, brief, shorten
from ..text.spelling import is_empty, show_names

SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "valid", "dev", "val"], "test": ["test"]}
MAX_SHOWN = 10  # values or columns that a message lists


def attempt(
    task: str, shown: dict[str, Any], load: Callable[[], Any], hint: Callable[[BaseException], str] | None = None
) -> Any:
    """Call a function of `datasets` or pandas; any failure becomes one readable error, with a hint."""
    try:
        return load()
    except Exception as error:  # Hub, file system, parsers and builders each raise their own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if "corresponds to no data" in str(cause) or isinstance(cause, StopIteration):
            mended = hint(cause) if hint is not None else ""
            reason = "it holds no rows." + (mended or " Add rows, or take the split out of the recipe.")
        else:
            reason = f"{type(cause).__name__}: {shorten((str(cause).strip().splitlines() or [''])[0])}"
            if hint is not None and (mended := hint(cause)):
                reason = reason.removesuffix(".") + "." + mended
        raise ValueError(f"Task {task!r}: could not load {shown}: {reason}") from error


def encoding_hint(task: str, file: str, cause: BaseException) -> str:
    """Where a file is not in UTF-8: the line of the recipe that names the encoding it is probably in."""
    if not isinstance(cause, UnicodeDecodeError):
        return ""
    sample = read_bytes(file)[: 1 << 20]
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        # Windows has letters and quotes where latin-1 has control characters.
        encoding = "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"
    return (
        f" The file is not in UTF-8: add `encoding: {encoding}` to tasks.{task}.dataset, or the name of the encoding "
        "that it was saved in (such as cp1252, cp1251, gb18030, shift_jis, utf-16)."
    )


def format_hint(task: str, sample: bytes) -> str:
    """Where the beginning of a file shows that it has another format: what to write, or what it is."""
    for beginning, name in ((b"PAR1", "Parquet"), (b"SQLite format 3", "SQLite")):
        if sample.startswith(beginning):
            return f" This is a {name} file: write `path: {name.lower()}` in tasks.{task}.dataset."
    if sample.startswith(b"PK\x03\x04") and b"xl/" in sample:
        return f" This is an Excel file: write `path: xlsx` in tasks.{task}.dataset."
    if sample.startswith(b"version https://git-lfs"):
        return " This is a pointer to a file in Git LFS, not the file: get it with `git lfs pull`."
    text = sample.removeprefix(b"\xef\xbb\xbf").lstrip()[:100].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return " This is a web page or XML, not a table: get the file itself, or write its rows as csv or jsonl."
    if re.match(rb'\{\s*"|\[\s*\{', text):
        return f" This looks like JSON: write `path: json` in tasks.{task}.dataset."
    return ""


def one_file(file: str) -> dict[str, Any]:
    """The arguments of `load_dataset` that name a file, of whose path no character is a pattern.

    `datasets` knows a local file that it has read by path and time. Here its size counts, too, in the name.
    """
    if "://" in file:
        return {"data_files": {"train": [file]}}
    status = os.stat(file)
    path = re.sub(r"([*?[])", r"[\1]", file)
    return {"data_files": {"train": [path]}, "name": f"{status.st_size}-{status.st_mtime_ns}"}


def plain_text(cell: Any) -> str | None:
    """A cell as the text that a recipe would write for it; None for an empty cell."""
    if is_empty(cell):
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _follow(cell: Any, parts: list[str]) -> Any:
    """What stands in a cell below a dotted name; None if nothing does.

    A part is a key, a place in a list, or `key=value` for the first such entry of a list. Keys and values may hold
    dots themselves.
    """
    if not parts:
        return cell
    if isinstance(cell, list) and parts[0].isdigit():
        return _follow(cell[int(parts[0])], parts[1:]) if int(parts[0]) < len(cell) else None
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if isinstance(cell, dict) and name in cell:
            return _follow(cell[name], parts[length:])
        if isinstance(cell, list) and "=" in name:
            key, _, value = name.partition("=")
            for item in cell:
                if isinstance(item, dict) and plain_text(item.get(key)) == value:
                    return _follow(item, parts[length:])
    return None


def _feature_below(feature: Any, parts: list[str]) -> Any:
    """The type of what stands below a dotted name, where `_follow` finds the cells; None if nothing does."""
    if not parts:
        return feature
    inner = feature.feature if isinstance(feature, List | LargeList) else None
    if inner is not None and parts[0].isdigit():
        return _feature_below(inner, parts[1:])
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if isinstance(feature, dict) and name in feature:
            return _feature_below(feature[name], parts[length:])
        is_entry = inner is not None and "=" in name and length < len(parts)
        if is_entry and (found := _feature_below(inner, parts[length:])) is not None:
            return found
    return None


def class_names(cell: Any, names: list[str]) -> Any:
    """ClassLabel ids as names, in lists, too; -1 is how the Hub writes a hidden label. Other numbers stay."""
    if isinstance(cell, list):
        return [class_names(item, names) for item in cell]
    if cell == -1:
        return None
    return names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else cell


def _dotted_names(name: str, cell: Any) -> Iterator[str]:
    """The dotted names that lead to the values of a nested cell."""
    if isinstance(cell, dict):
        for key, value in cell.items():
            yield from _dotted_names(f"{name}.{key}", value)
    elif isinstance(cell, list) and cell and isinstance(cell[0], dict | list):
        # Label Studio names each control of a page; their order is not fixed.
        named = [item for item in cell if isinstance(item, dict) and item.get("from_name")]
        for item in named:
            yield from _dotted_names(f"{name}.from_name={item['from_name']}", item)
        if not named:
            yield from _dotted_names(f"{name}.0", cell[0])
    else:
        yield name


def roots_of(name: str, columns: Sequence[str]) -> list[str]:
    """The columns that a name may lead into, the longest one first: names may hold dots themselves."""
    parts = name.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return [root for root in beginnings if root in columns]


def _joined(cells: tuple[Any, ...]) -> Any:
    """The texts of several columns with a space between them, without the empty ones; None if all are empty."""
    texts = [cell for cell in cells if not is_empty(cell)]
    if not all(isinstance(text, str) for text in texts):
        return list(cells)  # no sentence: the error about it shows the cells
    return " ".join(text.strip() for text in texts) or None


class Cells(Sequence):
    """The cells of a column: read some rows at a time, anew whenever somebody goes through them.

    Args:
        length: number of rows.
        read: gives the cells from one row up to another.
    """

    def __init__(self, length: int, read: Callable[[int, int], list[Any]]):
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(self._length)
            return self._read(start, max(start, stop))[::step]
        return self._read(place, place + 1)[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length, BATCH_ROWS):
            yield from self._read(start, min(start + BATCH_ROWS, self._length))


@dataclass
class Part:
    """A file, or a split of a data set, as it was loaded; `where` is its name in messages.

    `hint` gives, for a missing column, the line of the recipe that mends it, if it knows one. `decimal` and
    `thousands` are the marks in the numbers of a CSV file. `kept` says which rows count, None for all; the others have
    empty cells in every column.
    """

    where: str
    rows: Dataset
    all_text: bool = False  # a CSV file: every cell is text, so that a column of numbers has to be recognised
    hint: Callable[[str], str] | None = None
    decimal: str = "."
    thousands: str | None = None
    kept: np.ndarray | None = None
    is_piece: bool = False  # some rows of a file, in which a dotted name may lead nowhere

    @property
    def left_out(self) -> int:
        """How many rows a `where` has left out."""
        return 0 if self.kept is None else int((~self.kept).sum())

    def column(self, task: str, key: str, name: str | list[str]) -> Cells:
        """The cells of a column, or of several ones joined with a space; `key` is their place below `columns`."""
        if isinstance(name, list):
            columns = [self.column(task, key, one) for one in name]
            return Cells(
                len(self.rows),
                lambda start, stop: [
                    _joined(cells) for cells in zip(*(own[start:stop] for own in columns), strict=True)
                ],
            )
        return self.kept_cells(self._cells(task, f"columns.{key}", name))

    def kept_cells(self, cells: Cells) -> Cells:
        """The cells of the rows that count, and empty ones for the others."""
        kept = self.kept
        if kept is None:
            return cells
        return Cells(
            len(cells),
            lambda start, stop: [
                cell if is_kept else None
                for cell, is_kept in zip(cells[start:stop], kept[start:stop].tolist(), strict=True)
            ],
        )

    def class_names(self, name: str) -> list[str] | None:
        """The names of a ClassLabel column, or of a list of them, which a dotted name may lead to."""
        parts = name.split(".")
        for root in roots_of(name, self.rows.column_names):
            feature = _feature_below(self.rows.features[root], parts[root.count(".") + 1 :])
            feature = getattr(feature, "feature", feature)
            if isinstance(feature, ClassLabel):
                return feature.names
        return None

    def cells(self, column: str) -> Cells:
        """The cells of a column that is there, whichever rows count."""
        return self._cells("", "", column)

    def group_cells(self, task: str, name: str) -> Cells:
        """The cells of the column whose values keep rows together when some are set aside."""
        return self._cells(task, "group", name)

    def check_texts(self, task: str, key: str, name: str) -> None:
        """Refuse a column of lists or objects where sentences should be, and say how each is read."""
        feature = self.rows.features.get(name)
        if not isinstance(feature, dict | List | LargeList):
            return
        cell = next((cell for cell in self._cells(task, f"columns.{key}", name) if cell), None)
        if isinstance(feature, dict):
            remedy = f"Name what it holds: {', '.join(list(_dotted_names(name, cell))[:MAX_SHOWN])}."
        else:
            remedy = (
                f"If each text in it is a sentence of its own, add `explode: {name}` to tasks.{task}.dataset; if it "
                "holds the words of one sentence, join them in the file."
            )
        kind = "objects" if isinstance(feature, dict) else "lists"
        raise ValueError(
            f"{self.where}: column {brief(name)} of task {task!r} holds {kind}, like {str(cell)[:60]}, where "
            f"sentences should be. {remedy}"
        )

    def keep_where(self, task: str, conditions: dict[str, Any]) -> None:
        """Leave out the rows whose columns hold none of the wanted values; both are compared as text."""
        kept = np.ones(len(self.rows), bool) if self.kept is None else self.kept
        for column, wanted in conditions.items():
            texts = {plain_text(value) for value in (wanted if isinstance(wanted, list) else [wanted])}
            cells: Any = self._cells(task, f"where.{column}", column)
            if names := self.class_names(column):
                cells = (class_names(cell, names) for cell in cells)
            kept = kept & np.fromiter((plain_text(cell) in texts for cell in cells), bool, len(self.rows))
        self.kept = kept

    def values(self, column: str) -> list[str]:
        """The first different values of a column, for a message."""
        found = dict.fromkeys(brief(plain_text(cell)) for cell in self.cells(column))
        return list(found)[:MAX_SHOWN]

    def score_cell(self, cell: Any) -> Any:
        """A cell with a number as this file writes it, as Python writes it."""
        if not isinstance(cell, str) or (self.decimal == "." and self.thousands is None):
            return cell
        text = cell.strip().replace(self.thousands or "", "")
        if self.decimal != "." and "." in text:
            raise CellError(
                f"found {brief(cell)}, which has a point, where numbers are written with `decimal: "
                f"{brief(self.decimal)}`.",
                "Correct the row, or say what the point means with `thousands: '.'`.",
            )
        return text.replace(self.decimal, ".")

    def explode(self, task: str, column: str) -> None:
        """Make a row of every text of a list column; the other columns are repeated."""
        lists = self._cells(task, "dataset.explode", column)
        wrong = next((cell for cell in lists if not isinstance(cell, list | None)), None)
        if wrong is not None:
            raise ValueError(
                f"{self.where}: column {brief(column)} holds {brief(wrong)} and no list, so "
                f"tasks.{task}.dataset.explode has nothing to take apart. Leave it out."
            )
        parents = [row for row, texts in enumerate(lists) for _ in texts or []]
        texts = [text for texts in lists for text in texts or []]
        rows = self.rows.select(parents)
        rows = rows.remove_columns(column) if column in rows.column_names else rows
        self.rows = rows.add_column(column, texts)  # by a dotted name, too
        self.where += f" (rows counted after {brief(column)} was exploded)"

    def _cells(self, task: str, setting: str, name: str) -> Cells:
        def of_column(column: str) -> Cells:
            rows = self.rows.select_columns(column)
            return Cells(len(rows), lambda start, stop: rows[start:stop][column])

        parts = name.split(".")
        for root in roots_of(name, self.rows.column_names):
            if root == name:
                return of_column(name)
            outer, inner = of_column(root), parts[root.count(".") + 1 :]
            cells = Cells(
                len(outer),
                lambda start, stop, outer=outer, inner=inner: [_follow(cell, inner) for cell in outer[start:stop]],
            )
            if self.is_piece or any(cell is not None for cell in cells) or not len(cells):
                return cells
        names = self._names()
        mended = self.hint(name) if self.hint else ""
        raise ValueError(
            f"{self.where}: task {task!r} needs a column {brief(name)}, which is missing."
            f"{'' if mended else self._nearest(name, names)} Columns: {show_names(names)}. "
            f"Correct tasks.{task}.{setting}.{mended}"
        )

    def _names(self) -> list[str]:
        """All columns, those inside nested cells by their dotted names, as the first filled cell has them."""
        names: dict[str, None] = {}
        for column in self.rows.column_names:
            cell = next((cell for cell in self.rows[column][:MAX_SHOWN] if cell), None)
            names |= dict.fromkeys(_dotted_names(column, cell))
        return list(names)

    def _nearest(self, name: str, names: list[str]) -> str:
        """The column that was probably meant: one with this name inside a nested cell, else one spelt alike."""
        inside = [own for own in names if name in own.split(".") or f"from_name={name}" in own.split(".")]
        chosen = next((own for own in inside if own.endswith(("choices", name))), inside[0] if inside else None)
        return f" Did you mean {brief(chosen)}?" if chosen else suggest(name, names)


__all__ = [
    "SPLIT_NAMES",
    "Cells",
    "Part",
    "attempt",
    "class_names",
    "encoding_hint",
    "format_hint",
    "one_file",
    "plain_text",
    "roots_of",
]
