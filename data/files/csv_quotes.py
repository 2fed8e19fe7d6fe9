"""Whether quotes and line breaks in a csv or tsv file mean what they seem to: no row is lost, no cell is cut.

check_line_breaks   lines are counted against rows; a cell that has swallowed rows is an error
check_swallowed     the same for some rows of a stream
check_quotes        text behind a closing quote is announced; spaced_quotes counts quotes behind a space
"""

import codecs
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from mmap import mmap
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..text.problems import brief
from ..text.spelling import number
from .csv_hints import LINE_BREAK

logger = logging.getLogger(__name__)


def _count_lines(file: str) -> int:
    """Lines that hold more than white space."""
    with fsspec.open(file, "rb", compression="infer") as opened:
        return sum(1 for line in opened if line.strip())


def check_line_breaks(task: str, file: str, content: bytes | mmap, rows: Dataset, parsing: dict[str, Any]) -> None:
    """Count lines against rows, and look into cells of several lines: one of them may have swallowed rows."""
    broken = _cells_with_breaks(rows)
    if "quoting" not in parsing and (suspected := [found for found in broken if parsing["delimiter"] in found[2]]):
        closed = _well_closed(file, content, suspected, parsing)
        _check_swallowed(task, file, rows, parsing, suspected, closed)
    if broken:
        row, place, longest = max(broken, key=lambda found: len(found[2]))
        logger.info(
            f"{task}: {len(broken)} cells of {file} hold several lines; the longest, row {row + 1}, column "
            f"{brief(rows.column_names[place])}, has {len(LINE_BREAK.split(longest))} lines and {len(longest)} "
            "characters"
        )
    announce_lost_lines(task, file, len(rows), _lines_within(broken), parsing)


def _lines_within(broken: list[tuple[int, int, str]]) -> int:
    """How many more lines than rows these cells make, but for blank ones."""
    return sum(len([line for line in LINE_BREAK.split(cell)[1:-1] if line.strip()]) + 1 for *_, cell in broken)


def announce_lost_lines(task: str, file: str, rows: int, within: int, parsing: dict[str, Any]) -> None:
    """Tell of lines that give no row; `within` lines go on with a cell."""
    if "://" not in file and not (parsing.get("encoding") or "").lower().startswith(("utf-16", "utf_16", "utf-32")):
        header = 0 if parsing.get("header", "infer") is None or parsing.get("column_names") else 1
        if (missing := _count_lines(file) - within - header - rows) > 0:
            logger.info(f"{task}: {missing} lines of {file} give no row ({rows} rows)")


def check_swallowed(task: str, file: str, rows: Dataset, parsing: dict[str, Any], first: int) -> int:
    """
    Look into the cells of several lines among some rows of a stream, of which the first one has this number.

    Returns how many more lines than rows these cells make.
    """
    broken = _cells_with_breaks(rows)
    if "quoting" not in parsing and (suspected := [found for found in broken if parsing["delimiter"] in found[2]]):
        _check_swallowed(task, file, rows, parsing, suspected, [True] * len(suspected), first)
    return _lines_within(broken)


def _cells_with_breaks(rows: Dataset) -> list[tuple[int, int, str]]:
    """Row, place of the column and text of each cell that holds a line break, in the order of the file."""
    found = []
    for place, name in enumerate(rows.column_names):
        column = rows.data.column(name)
        mask = pc.or_(pc.match_substring(column, "\n"), pc.match_substring(column, "\r"))
        if pc.any(mask).as_py():
            mask = mask.fill_null(False)
            numbers = np.flatnonzero(mask.to_numpy()).tolist()
            found += [(row, place, cell) for row, cell in zip(numbers, column.filter(mask).to_pylist(), strict=True)]
    return sorted(found)


def _check_swallowed(
    task: str,
    file: str,
    rows: Dataset,
    parsing: dict[str, Any],
    suspected: list[tuple[int, int, str]],
    closed: Iterable[bool],
    first: int = 0,
) -> None:
    """Refuse a cell that holds line breaks and the delimiter, unless it is clearly one text in quotes.

    Clearly: the closing quote ends the cell, and its lines neither hold values of other columns in their places nor,
    where no column repeats a value, the fields of a row throughout. No prose holds tabs.
    """
    delimiter = parsing["delimiter"]
    known = _known_columns(rows, suspected, delimiter)
    for (row, place, cell), is_closed in zip(suspected, closed, strict=True):
        if is_closed and delimiter != "\t" and not _looks_like_rows(cell, place, known, delimiter):
            continue
        raise ValueError(
            f"{file}, row {first + row + 1}: the cell of column {brief(rows.column_names[place])} holds "
            f"{len(LINE_BREAK.split(cell))} lines and {brief(delimiter)} in them. They look like rows that a quote at "
            f"its start has swallowed: {brief(cell[:60])}... If quotes are part of the text, add `quoting: 3` to "
            f"tasks.{task}.dataset; if the cell is one text, add `quoting: 0`."
        )


class _Known:
    """The values of a column, to recognise a cell of it: one that is there already, or a number among numbers."""

    def __init__(self, cells: pa.ChunkedArray, wanted: set[str]) -> None:
        found = cells.filter(pc.is_in(cells, value_set=pa.array(sorted(wanted), cells.type)))
        self.values = set(found.unique().to_pylist())
        self.repeats = pc.count_distinct(cells).as_py() < 0.9 * len(cells)
        sample = cells.slice(0, 10_000).drop_null().unique().to_pylist()[:100]
        self.numbers = sum(number(cell) is not None for cell in sample) > len(sample) / 2

    def has(self, text: str) -> bool:
        return bool(text.strip()) and (text in self.values or (self.numbers and number(text) is not None))


def _known_columns(rows: Dataset, suspected: list[tuple[int, int, str]], delimiter: str) -> list[_Known]:
    """What is known of each column; of its values only those that a suspected cell holds are looked for."""
    wanted: list[set[str]] = [set() for _ in rows.column_names]
    for _, place, cell in suspected:
        for other, text in _row_cells(cell, place, len(wanted), delimiter):
            wanted[other].add(text)
    return [_Known(rows.data.column(name), own) for name, own in zip(rows.column_names, wanted, strict=True)]


def _looks_like_rows(cell: str, place: int, known: list[_Known], delimiter: str) -> bool:
    if any(known[other].has(text) for other, text in _row_cells(cell, place, len(known), delimiter)):
        return True
    first, *inner, _ = LINE_BREAK.split(cell)
    # Three lines that fit by chance are few; a shorter text may well have one comma in each line.
    fits = first.count(delimiter) == len(known) - 1 - place and len(inner) >= 3
    return (
        fits
        and all(line.count(delimiter) == len(known) - 1 for line in inner)
        and not any(column.repeats for column in known)
    )


def _row_cells(cell: str, place: int, width: int, delimiter: str) -> Iterator[tuple[int, str]]:
    """The whole cells, with their columns' places, that the lines of a cell would be as rows."""
    first, *inner, last = LINE_BREAK.split(cell)
    if len(found := first.split(delimiter)) == width - place:
        yield from enumerate(found[1:], start=place + 1)
    for line in inner:
        if len(found := line.split(delimiter)) == width:
            yield from enumerate(found)
    if len(found := last.split(delimiter)) <= width:
        yield from enumerate(found[:-1])


def _is_utf8(parsing: dict[str, Any]) -> bool:
    """Whether the bytes of the file can be searched as they are."""
    return (parsing.get("encoding") or "utf-8-sig").lower().replace("_", "-") in ("utf-8", "utf-8-sig", "utf8")


def _well_closed(
    file: str, content: bytes | mmap, suspected: list[tuple[int, int, str]], parsing: dict[str, Any]
) -> Iterator[bool]:
    """
    Whether each cell stands in the file in quotes that a delimiter or the end of the line follows.

    A file in UTF-8 is searched where it lies on the disk; one in another encoding is read as a whole.
    """
    quote = parsing.get("quotechar") or '"'
    if parsing.get("escapechar") or parsing.get("doublequote") is False:
        yield from (True for _ in suspected)
        return
    encoding, errors = parsing.get("encoding") or "utf-8", parsing.get("encoding_errors") or "strict"
    text: Any = content
    if not len(content) or errors != "strict" or not _is_utf8(parsing):
        with fsspec.open(file, "rt", compression="infer", encoding=encoding, errors=errors, newline="") as opened:
            text = opened.read()
    is_text, position = isinstance(text, str), 0
    ends = ["", "\r", "\n", parsing["delimiter"]]
    ends = ends if is_text else [end.encode()[:1] for end in ends]
    for *_, cell in suspected:
        quoted = quote + cell.replace(quote, quote * 2) + quote
        quoted = quoted if is_text else quoted.encode()
        found = text.find(quoted, position)
        position = found + len(quoted) if found >= 0 else position
        yield found >= 0 and text[position : position + 1] in ends


def _as_text(found: str | bytes) -> str:
    return found if isinstance(found, str) else found.decode("utf-8", "replace")


def check_quotes(task: str, file: str, content: bytes | mmap, parsing: dict[str, Any]) -> None:
    """Tell of text behind a closing quote, with the option that mends it.

    It comes of a quote within the cell that was not doubled: `"say \\"hi\\" twice"` and `"great" they said` lose
    quotes. (A quote behind a space, as in `, "good"`, encloses nothing and stays in the cell: `spaced_quotes`.)

    A file in UTF-8 is searched where it lies on the disk; one in another encoding is read as a whole.
    """
    quote = parsing.get("quotechar") or '"'
    if parsing.get("quoting") == 3 or parsing.get("escapechar"):
        return
    before, end = re.escape(quote), re.escape(parsing["delimiter"]) + r"\r\n"
    space = " *" if parsing.get("skipinitialspace") else ""
    pattern = rf"(?:\A|(?<=[{end}])){space}{before}([^{before}]*(?:{before}{before}[^{before}]*)*){before}([^{end}]*)"
    if _is_utf8(parsing) and pattern.isascii():
        found = re.compile(pattern.encode()).finditer(memoryview(content)[3 * (content[:3] == codecs.BOM_UTF8) :])
    else:
        text = bytes(content).decode(
            parsing.get("encoding") or "utf-8-sig", parsing.get("encoding_errors") or "strict"
        )
        found = re.compile(pattern).finditer(text)
    wrong, escaped, first = 0, False, ""
    for cell in found:
        if _as_text(cell[2]).strip():
            wrong, escaped = wrong + 1, escaped or _as_text(cell[1]).endswith("\\")
            first = first or _as_text(cell[0])[:60]
    if wrong:
        remedy = "add `escapechar: '\\'`" if escaped else "add `quoting: 3`"
        logger.info(
            f"{task}: in {wrong} cells of {file} text follows a closing quote, first in {brief(first)}: such quotes "
            f"are lost. If quotes are part of the text, {remedy} to tasks.{task}.dataset"
        )


def spaced_quotes(rows: Dataset, parsing: dict[str, Any]) -> Counter[str]:
    """By column, how many cells keep quotes behind a space; none where that is how they should be read."""
    quote, kept = re.escape(parsing.get("quotechar") or '"'), Counter[str]()
    if parsing.get("quoting") != 3 and not parsing.get("escapechar") and not parsing.get("skipinitialspace"):
        for name in rows.column_names:
            column = rows.data.column(name)
            kept[name] = pc.sum(pc.match_substring_regex(column, rf"^ +{quote}.*{quote} *$")).as_py() or 0
    return +kept


def announce_spaced_quotes(task: str, file: str, kept: Counter[str]) -> None:
    """Tell of cells that keep quotes behind a space."""
    if kept:
        logger.info(
            f"{task}: {kept.total()} cells of {file} keep quotes behind a space, first in column "
            f"{brief(next(iter(kept)))}: add "
            f"`skipinitialspace: true` to tasks.{task}.dataset if the quotes enclose these cells"
        )


__all__ = [
    "announce_lost_lines",
    "announce_spaced_quotes",
    "check_line_breaks",
    "check_quotes",
    "check_swallowed",
    "spaced_quotes",
]
