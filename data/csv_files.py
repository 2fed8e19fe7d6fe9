"""Reading csv and tsv files: every cell as text, no row lost to a stray quote, and no option without effect."""

import csv
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from datasets import BuilderConfig, Dataset, Features, Value, load_dataset
from datasets.packaged_modules.csv.csv import CsvConfig

from ..checks_multitask import suggest
from .labels import number
from .parts import Part, attempt, no_pattern

# Empty cells are null; the words NA, None and null stay words, which pandas by itself turns into nothing.
CSV_DEFAULTS = {"keep_default_na": False, "na_values": [""]}
DELIMITERS = (";", "\t", "|", ",")
LINE_BREAK = re.compile(r"\r\n|\r|\n")

CSV_TYPES = (
    *("dtype", "dtype_backend", "converters", "features", "true_values", "false_values", "float_precision"),
    *("parse_dates", "date_format", "date_parser", "dayfirst", "cache_dates", "low_memory"),
)
# pandas has them no more, or not for files that are read in chunks.
_GONE = ("prefix", "mangle_dupe_cols", "error_bad_lines", "warn_bad_lines", "verbose", "skipfooter")
CSV_OPTIONS = tuple(
    sorted(
        {option.name for option in fields(CsvConfig)}
        - {option.name for option in fields(BuilderConfig)}
        - {*CSV_TYPES, *_GONE}
    )
)


def check_csv_options(task: str, options: dict[str, Any], scores: bool) -> dict[str, Any]:
    """The options with one name for each; `scores` says whether some task reads numbers from the file.

    Raises:
        ValueError: an option that changes types, a mark of numbers that is no single character or that nothing reads.
    """
    where = f"tasks.{task}.dataset"
    for key in options:
        if key in CSV_TYPES:
            raise ValueError(
                f"{where}.{key} has no effect: every column is read as text, and scores are made numbers later. Take "
                "it out; `decimal` and `thousands` say how scores are written, tasks.NAME.labels which classes exist."
            )
    options = {key: value for key, value in options.items() if value is not None or key == "header"}
    for short, long in (("sep", "delimiter"), ("names", "column_names")):
        if short in options:
            if long in options and options[long] != options[short]:
                raise ValueError(f"{where}: {short} and {long} say the same thing. Give one of them.")
            options[long] = options.pop(short)
    for key in ("decimal", "thousands"):
        mark = options.get(key)
        if mark is None or (key == "decimal" and mark == "."):
            continue
        if not scores:
            raise ValueError(
                f"{where}.{key} has no effect: no regression or similarity task reads scores from this file, and "
                "label names stay as they are written. Take it out."
            )
        if not isinstance(mark, str) or len(mark) != 1:
            raise ValueError(f"{where}.{key} should be one character, like ','. Found {mark!r}.")
        if mark == options.get("thousands" if key == "decimal" else "decimal", "." if key == "thousands" else None):
            raise ValueError(f"{where}: decimal and thousands are both {mark!r}. Say both, as two characters.")
    if isinstance(options.get("header"), list):
        raise ValueError(f"{where}.header should be one row. Found {options['header']!r}.")
    if "dialect" in options:
        if options["dialect"] not in csv.list_dialects():
            raise ValueError(f"{where}.dialect should be one of {csv.list_dialects()}. Found {options['dialect']!r}.")
        dialect = csv.get_dialect(options.pop("dialect"))
        options |= {key: getattr(dialect, key) for key in ("delimiter", "quotechar", "doublequote", "escapechar")}
        options |= {"skipinitialspace": dialect.skipinitialspace, "quoting": dialect.quoting}
    return options


def read_csv(task: str, file: str, options: dict[str, Any], columns: dict[str, Any], notes: list[str]) -> Part:
    """Load one csv or tsv file.

    Args:
        task: a name for messages.
        file: path or address.
        options: what `check_csv_options` returned.
        columns: the task's own, for the hint at a missing one.
        notes: what a person should know of the file is added here.

    Raises:
        ValueError: the file cannot be read as a table, or a stray quote swallows rows.
    """
    marks = {key: options[key] for key in ("decimal", "thousands") if options.get(key) is not None}
    parsing = CSV_DEFAULTS | {key: value for key, value in options.items() if key not in marks}
    hint = partial(_failure_hint, task, file, parsing)
    shown = {"path": file} | options
    head = attempt(task, shown, partial(_read_head, file, parsing), hint)
    names = [str(column) for column in head.columns]
    if "index_col" not in parsing and not isinstance(head.index, pd.RangeIndex):
        raise ValueError(
            f"{file}, row 1: the row has more fields than the header ({names})."
            f"{_fields_hint(task, names, parsing, _sample(file))}"
        )
    if "header" in parsing and parsing["header"] is None and not parsing.get("column_names"):
        parsing["column_names"] = names  # pandas' own are numbers, for which it would guess types
    _check_header(task, file, head, parsing)
    load = partial(
        load_dataset,
        "csv",
        data_files={"train": [no_pattern(file)]},
        features=Features(dict.fromkeys(names, Value("string"))),
        **parsing,
    )
    rows = attempt(task, shown, load, hint)["train"]
    _check_line_breaks(task, file, rows, parsing, notes)
    return Part(file, rows, all_text=True, hint=partial(_column_hint, task, rows, parsing, columns), **marks)


def _read_head(file: str, parsing: dict[str, Any]) -> pd.DataFrame:
    """The columns' names, and the first row as text."""
    known = {key: value for key, value in parsing.items() if key in CSV_OPTIONS}
    return pd.read_csv(
        file, **CsvConfig(**known).pd_read_csv_kwargs | {"nrows": 1, "chunksize": None, "dtype": object}
    )


def _check_header(task: str, file: str, head: pd.DataFrame, parsing: dict[str, Any]) -> None:
    """Refuse `column_names` for a file whose first line is a header: it would be read as a row."""
    names = [str(name).strip().casefold() for name in head.columns]
    if parsing.get("column_names") and len(head) and parsing.get("header", "infer") in ("infer", None):
        first = [str(cell).strip().casefold() for cell in head.iloc[0]]
        if sorted(first) == sorted(names):
            raise ValueError(
                f"{file}: the first line is a header ({list(head.iloc[0])}), which column_names makes a row. Take "
                f"column_names out of tasks.{task}.dataset, or add `header: 0` to replace the header."
            )


def _sample(file: str) -> bytes:
    with fsspec.open(file, "rb", compression="infer") as opened:
        return opened.read(1 << 20)


def _failure_hint(task: str, file: str, parsing: dict[str, Any], cause: BaseException) -> str:
    """The line of the recipe that probably mends a file that cannot be parsed."""
    where = f"tasks.{task}.dataset"
    try:
        sample = _sample(file)
    except OSError:
        return ""
    if sample.startswith(b"PK\x03\x04") and (file.endswith(".xlsx") or b"xl/" in sample):
        return f" This is an Excel file: write `path: xlsx` in {where}."
    if sample.startswith(b"PAR1"):
        return f" This is a Parquet file: write `path: parquet` in {where}."
    if isinstance(cause, UnicodeError):
        if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
            encoding = "utf-16"
        else:
            # Windows has letters and quotes where latin-1 has control characters.
            encoding = "cp1252" if re.search(rb"[\x80-\x9f]", sample) else "latin-1"
        return (
            f" The file is not in UTF-8: add `encoding: {encoding}` to {where}, or the name of the encoding that it "
            "was saved in (such as cp1252, cp1251, gb18030, shift_jis, utf-16)."
        )
    if "inside string" in str(cause) or "unexpected end of data" in str(cause):
        return f" A quote at the start of a cell is never closed.{_quoting_hint(task)}"
    if "fields" in str(cause):
        header = LINE_BREAK.split(sample.decode(parsing.get("encoding") or "utf-8", errors="replace"))[0]
        return _fields_hint(task, header.split(parsing["delimiter"]), parsing, sample)
    return ""


def _quoting_hint(task: str) -> str:
    return (
        f" If quotes are part of the text, add `quoting: 3` to tasks.{task}.dataset; if they enclose cells, close "
        "each of them, and write a quote inside as two."
    )


def _fields_hint(task: str, names: list[str], parsing: dict[str, Any], sample: bytes) -> str:
    """What to do where a row has more fields than the header."""
    if hint := _delimiter_hint(task, names, parsing):
        return hint
    quoted = (parsing.get("quotechar") or '"').encode() in sample
    return " Put text that holds the delimiter into double quotes, or correct the header." + (
        _quoting_hint(task) if quoted else ""
    )


def _delimiter_hint(task: str, names: list[str], parsing: dict[str, Any]) -> str:
    """Where a header of one column holds another delimiter: the line of the recipe that names it."""
    others = [mark for mark in DELIMITERS if mark != parsing["delimiter"] and mark in names[0]]
    if len(names) > 1 or not others:
        return ""
    mark = {"\t": '"\\t"'}.get(others[0], f"'{others[0]}'")
    return f" The header holds {mark}: add `delimiter: {mark}` to tasks.{task}.dataset."


def _column_hint(task: str, rows: Dataset, parsing: dict[str, Any], columns: dict[str, Any], missing: str) -> str:
    """What to add to the recipe where a column is missing: another delimiter, or names for a file without a header."""
    names = rows.column_names
    if any(LINE_BREAK.search(name) for name in names):
        return f" A quote in the header encloses several lines.{_quoting_hint(task)}"
    if hint := _delimiter_hint(task, names, parsing):
        return hint
    if parsing.get("column_names") or len(names) < 2:
        return ""
    # The longest column is the text; with two columns, the other one is the label.
    lengths = [sum(len(cell or "") for cell in rows[name][:100]) for name in names]
    longest = max(range(len(names)), key=lengths.__getitem__)
    text = next((value for key, value in columns.items() if key != "label" and isinstance(value, str)), "text")
    label = columns.get("label")
    found = [f"column{place}" for place in range(1, len(names) + 1)]
    found[longest] = text
    if len(names) == 2 and isinstance(label, str):
        found[1 - longest] = label
    repeated = next((name for name in names if name in rows[name][:100]), None)
    if repeated is None and suggest(missing, names):
        return ""
    reason = "If the first line is a row and no header"
    if repeated is not None:
        reason = f"The first line looks like a row, for {repeated!r} stands in further rows"
    return f" {reason}: add `column_names: [{', '.join(found)}]` to tasks.{task}.dataset."


def _count_lines(file: str) -> int:
    """Lines that hold more than white space."""
    with fsspec.open(file, "rb", compression="infer") as opened:
        return sum(1 for line in opened if line.strip())


def _check_line_breaks(task: str, file: str, rows: Dataset, parsing: dict[str, Any], notes: list[str]) -> None:
    """Count lines against rows, and look into cells of several lines: one of them may have swallowed rows."""
    broken = _cells_with_breaks(rows)
    within = sum(len([line for line in LINE_BREAK.split(cell)[1:-1] if line.strip()]) + 1 for *_, cell in broken)
    if broken and "quoting" not in parsing:
        _check_swallowed(task, file, rows, parsing, broken)
    if broken:
        row, place, longest = max(broken, key=lambda found: len(found[2]))
        notes.append(
            f"{task}: {len(broken)} cells of {file} hold several lines; the longest, row {row + 1}, column "
            f"{rows.column_names[place]!r}, has {len(LINE_BREAK.split(longest))} lines and {len(longest)} characters"
        )
    if "://" not in file and not (parsing.get("encoding") or "").lower().startswith(("utf-16", "utf_16", "utf-32")):
        header = 0 if parsing.get("header", "infer") is None or parsing.get("column_names") else 1
        if (missing := _count_lines(file) - within - header - len(rows)) > 0:
            notes.append(f"{task}: {missing} lines of {file} give no row ({len(rows)} rows)")


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
    task: str, file: str, rows: Dataset, parsing: dict[str, Any], broken: list[tuple[int, int, str]]
) -> None:
    """Refuse a cell that holds line breaks and the delimiter, unless it is clearly one text in quotes.

    Clearly: the closing quote ends the cell, and its lines neither hold values of other columns in their places nor,
    where no column repeats a value, the fields of a row throughout. No prose holds tabs.
    """
    delimiter = parsing["delimiter"]
    suspected = [found for found in broken if delimiter in found[2]]
    if not suspected:
        return
    known = [_Known(rows[name][:]) for name in rows.column_names]
    for (row, place, cell), closed in zip(suspected, _well_closed(file, suspected, parsing, delimiter), strict=True):
        if closed and delimiter != "\t" and not _looks_like_rows(cell, place, known, delimiter):
            continue
        raise ValueError(
            f"{file}, row {row + 1}: the cell of column {rows.column_names[place]!r} holds "
            f"{len(LINE_BREAK.split(cell))} lines and {delimiter!r} in them. They look like rows that a quote at its "
            f"start has swallowed: {cell[:60]!r}... If quotes are part of the text, add `quoting: 3` to tasks.{task}."
            "dataset; if the cell is one text, add `quoting: 0`."
        )


class _Known:
    """The values of a column, to recognise a cell of it: one that is there already, or a number among numbers."""

    def __init__(self, cells: list[str | None]) -> None:
        self.values = {cell for cell in cells if cell is not None}
        self.repeats = len(self.values) < 0.9 * len(cells)
        sample = list(self.values)[:100]
        self.numbers = sum(number(cell) is not None for cell in sample) > len(sample) / 2

    def has(self, text: str) -> bool:
        return bool(text.strip()) and (text in self.values or (self.numbers and number(text) is not None))


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


def _well_closed(
    file: str, suspected: list[tuple[int, int, str]], parsing: dict[str, Any], delimiter: str
) -> Iterator[bool]:
    """Whether each cell stands in the file in quotes that a delimiter or the end of the line follows."""
    quote = parsing.get("quotechar") or '"'
    if parsing.get("escapechar") or parsing.get("doublequote") is False:
        yield from (True for _ in suspected)
        return
    encoding, errors = parsing.get("encoding") or "utf-8", parsing.get("encoding_errors") or "strict"
    with fsspec.open(file, "rt", compression="infer", encoding=encoding, errors=errors, newline="") as opened:
        text = opened.read()
    position = 0
    for *_, cell in suspected:
        quoted = quote + cell.replace(quote, quote * 2) + quote
        found = text.find(quoted, position)
        position = found + len(quoted) if found >= 0 else position
        yield found >= 0 and text[position : position + 1] in ("", "\r", "\n", delimiter)


__all__ = ["CSV_DEFAULTS", "CSV_OPTIONS", "CSV_TYPES", "check_csv_options", "read_csv"]
