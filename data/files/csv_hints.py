"""What mends a csv or tsv file that cannot be read, or lacks a column: a line for the recipe, at the end of an error.

failure_hint    the file cannot be parsed
fields_hint     a row has more fields than the header
column_hint     a column is missing
quoting_hint    quotes enclose what they should not
"""

import csv
import re
from typing import Any

import fsspec
from datasets import Dataset

from ...checks_multitask import suggest
from ..text.problems import brief
from .parts import encoding_hint, format_hint

DELIMITERS = (";", "\t", "|", ",")
LINE_BREAK = re.compile(r"\r\n|\r|\n")
MOST_LINES_ABOVE = 10  # that may stand above the header


def sample_of(file: str) -> bytes:
    """The beginning of a file, unpacked."""
    with fsspec.open(file, "rb", compression="infer") as opened:
        return opened.read(1 << 20)


def failure_hint(task: str, file: str, parsing: dict[str, Any], wanted: list[str], cause: BaseException) -> str:
    """The line of the recipe that probably mends a file that cannot be parsed."""
    try:
        sample = sample_of(file)
    except OSError:
        return ""
    if hint := format_hint(task, sample):
        return hint
    if hint := encoding_hint(task, file, cause):
        return hint
    if type(cause).__name__ == "EmptyDataError":
        return " The file is empty. Add rows, or take the split out of the recipe."
    if "inside string" in str(cause) or "unexpected end of data" in str(cause):
        return f" A quote at the start of a cell is never closed.{quoting_hint(task)}"
    if "fields" in str(cause):
        header = LINE_BREAK.split(sample.decode(parsing.get("encoding") or "utf-8", errors="replace"))[0]
        return fields_hint(task, header.split(parsing["delimiter"]), wanted, parsing, sample)
    return ""


def quoting_hint(task: str) -> str:
    return (
        f" If quotes are part of the text, add `quoting: 3` to tasks.{task}.dataset; if they enclose cells, close "
        "each of them, and write a quote inside as two."
    )


def fields_hint(task: str, names: list[str], wanted: list[str], parsing: dict[str, Any], sample: bytes) -> str:
    """What to do where a row has more fields than the header."""
    lines = [line for line in _first_lines(parsing, sample) if line.strip()]
    if hint := format_hint(task, sample) or _header_hint(task, wanted, parsing, _first_lines(parsing, sample)):
        return hint
    if hint := _delimiter_hint(task, names, parsing):
        return hint
    if len(lines) > 1 and all(line.endswith(parsing["delimiter"]) for line in lines[1:]):
        return f" Every row ends with a delimiter: add `index_col: false` to tasks.{task}.dataset."
    quoted = (parsing.get("quotechar") or '"').encode() in sample
    if quoted and b'\\"' in sample and not parsing.get("escapechar"):
        return f" Quotes within cells are written with a backslash: add `escapechar: '\\'` to tasks.{task}.dataset."
    return " Put text that holds the delimiter into double quotes, or correct the header." + (
        quoting_hint(task) if quoted else ""
    )


def _delimiter_hint(task: str, names: list[str], parsing: dict[str, Any]) -> str:
    """Where a header of one column holds another delimiter: the line of the recipe that names it."""
    others = [mark for mark in (*DELIMITERS, "~", "^", ":") if mark != parsing["delimiter"] and mark in names[0]]
    if len(names) > 1 or not others:
        return ""
    mark = _mark(others[0])
    return f" The header holds {mark}: add `delimiter: {mark}` to tasks.{task}.dataset."


def _first_lines(parsing: dict[str, Any], sample: bytes) -> list[str]:
    text = sample.decode(parsing.get("encoding") or "utf-8-sig", errors="replace")
    return LINE_BREAK.split(text)[: MOST_LINES_ABOVE + 1]


def _header_hint(task: str, wanted: list[str], parsing: dict[str, Any], lines: list[str]) -> str:
    """Where the header stands below other lines (a title, `sep=;`): how many of them to skip."""
    if {"skiprows", "header", "column_names", "comment"} & parsing.keys():
        return ""
    own = [parsing["delimiter"]] if len(parsing["delimiter"]) == 1 else []  # others are patterns
    for delimiter in dict.fromkeys([*own, *DELIMITERS]):
        for place, line in enumerate(lines[1:], start=1):
            if len(line) > csv.field_size_limit():  # no header is so long
                continue
            cells = next(csv.reader([line], delimiter=delimiter), [])
            if len(cells) > 1 and set(wanted) & {cell.strip() for cell in cells}:
                mark = "" if delimiter == parsing["delimiter"] else f" and `delimiter: {_mark(delimiter)}`"
                return (
                    f" The header seems to be line {place + 1}: add `skiprows: {place}`{mark} to tasks.{task}.dataset."
                )
    return ""


def _mark(delimiter: str) -> str:
    return {"\t": '"\\t"'}.get(delimiter, f"'{delimiter}'")


def column_hint(
    task: str, file: str, rows: Dataset, parsing: dict[str, Any], columns: dict[str, Any], missing: str
) -> str:
    """What to add to the recipe where a column is missing: another delimiter, or names for a file without a header."""
    names = rows.column_names
    if any(LINE_BREAK.search(name) for name in names):
        return f" A quote in the header encloses several lines.{quoting_hint(task)}"
    sample = sample_of(file)
    if hint := format_hint(task, sample):
        return hint
    if names[0].startswith("__label__"):
        return f" The lines start with fastText's labels: write `path: fasttext` in tasks.{task}.dataset."
    if missing in [name.strip() for name in names]:
        return f" A space stands before the column's name: add `skipinitialspace: true` to tasks.{task}.dataset."
    if hint := _header_hint(task, [missing], parsing, _first_lines(parsing, sample)):
        return hint
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
        reason = f"The first line looks like a row, for {brief(repeated)} stands in further rows"
    return f" {reason}: add `column_names: [{', '.join(found)}]` to tasks.{task}.dataset."


__all__ = ["LINE_BREAK", "column_hint", "failure_hint", "fields_hint", "sample_of"]
