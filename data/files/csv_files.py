"""Reading csv and tsv files: every cell as text, no row lost to a stray quote, and no option without effect."""

import csv
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from mmap import mmap
from typing import Any

import pandas as pd
from datasets import BuilderConfig, Dataset, Features, Value, load_dataset
from datasets.packaged_modules.csv.csv import CsvConfig

from ..text.half_characters import HALVES, count_halves, encoding_errors_for, map_bytes
from ..text.problems import brief
from ..text.spelling import show_names
from .csv_hints import column_hint, failure_hint, fields_hint, sample_of
from .csv_quotes import (
    announce_lost_lines,
    announce_spaced_quotes,
    check_line_breaks,
    check_quotes,
    check_swallowed,
    spaced_quotes,
)
from .parts import Part, attempt, one_file
from .streams import Stream

logger = logging.getLogger(__name__)

# Empty cells are null; the words NA, None and null stay words, which pandas by itself turns into nothing.
CSV_DEFAULTS = {"keep_default_na": False, "na_values": [""]}

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
            raise ValueError(f"{where}.{key} should be one character, like ','. Found {brief(mark)}.")
        if mark == options.get("thousands" if key == "decimal" else "decimal", "." if key == "thousands" else None):
            raise ValueError(f"{where}: decimal and thousands are both {brief(mark)}. Say both, as two characters.")
    if isinstance(options.get("header"), list):
        raise ValueError(f"{where}.header should be one row. Found {brief(options['header'])}.")
    if options.get("encoding_errors") in ("surrogatepass", "surrogateescape"):
        raise ValueError(
            f"{where}.encoding_errors: {options['encoding_errors']} gives halves of characters, which no model reads. "
            "Take it out, and they are read as U+FFFD and counted, or write replace."
        )
    if "dialect" in options:
        if options["dialect"] not in csv.list_dialects():
            raise ValueError(
                f"{where}.dialect should be one of {csv.list_dialects()}. Found {brief(options['dialect'])}."
            )
        dialect = csv.get_dialect(options.pop("dialect"))
        options |= {key: getattr(dialect, key) for key in ("delimiter", "quotechar", "doublequote", "escapechar")}
        options |= {"skipinitialspace": dialect.skipinitialspace, "quoting": dialect.quoting}
    return options


@dataclass
class _Opened:
    """
    A csv file whose header was read.

    Attributes:
        parsing: the options that `datasets` takes.
        content: its bytes, empty for an address.
        head: names of columns and the first row.
        shown: what an error shows.
        used: the names of the task's columns.
        hint: gives what mends a failure.
        load: what `load_dataset` gives for its rows; takes `streaming`.
    """

    parsing: dict[str, Any]
    content: bytes | mmap
    head: pd.DataFrame
    shown: dict[str, Any]
    used: list[str]
    hint: Callable[[BaseException], str]
    load: Callable[..., Any]

    @property
    def holds_halves(self) -> bool:
        return self.parsing.get("encoding_errors") == HALVES


def _marks(options: dict[str, Any]) -> dict[str, str]:
    return {key: options[key] for key in ("decimal", "thousands") if options.get(key) is not None}


def _open_csv(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> _Opened:
    """Look at the header of a file; see `read_csv`."""
    marks = _marks(options)
    parsing = CSV_DEFAULTS | {key: value for key, value in options.items() if key not in marks}
    used = sorted({name for own in columns.values() for name in (own if isinstance(own, list) else [own])})
    hint = partial(failure_hint, task, file, parsing, used)
    shown = {"path": file} | options
    content = b"" if "://" in file else attempt(task, shown, partial(map_bytes, file), hint)
    errors = encoding_errors_for(content, parsing.get("encoding") or "utf-8")
    if errors != "strict" and parsing.get("encoding_errors") in (None, "strict"):
        parsing["encoding_errors"] = errors
    head = attempt(task, shown, partial(_read_head, file, parsing), hint)
    names = [str(column) for column in head.columns]
    if "index_col" not in parsing and not isinstance(head.index, pd.RangeIndex):
        raise ValueError(
            f"{file}, row 1: the row has more fields than the header ({show_names(names)})."
            f"{fields_hint(task, names, used, parsing, sample_of(file))}"
        )
    if "header" in parsing and parsing["header"] is None and not parsing.get("column_names"):
        parsing["column_names"] = names  # pandas' own are numbers, for which it would guess types
    _check_header(task, file, head, parsing)
    load = partial(
        load_dataset,
        "csv",
        **one_file(file),
        features=Features(dict.fromkeys(names, Value("string"))),
        **parsing,
    )
    return _Opened(parsing, content, head, shown, used, hint, load)


def read_csv(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load one csv or tsv file.

    Args:
        task: a name for messages.
        file: path or address.
        options: what `check_csv_options` returned.
        columns: the task's own, for the hint at a missing one.

    Raises:
        ValueError: the file cannot be read as a table, or a stray quote swallows rows.
    """
    opened = _open_csv(task, file, options, columns)
    rows, parsing = attempt(task, opened.shown, opened.load, opened.hint)["train"], opened.parsing
    check_line_breaks(task, file, opened.content, rows, parsing)
    check_quotes(task, file, opened.content, parsing)
    announce_spaced_quotes(task, file, spaced_quotes(rows, parsing))
    _announce_twice(task, file, opened.head, opened.used)
    if opened.holds_halves:
        count_halves(task, file, rows)
    hint = partial(column_hint, task, file, rows, parsing, columns)
    return Part(file, rows, all_text=True, hint=hint, **_marks(options))


def stream_csv(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Stream:
    """
    The same file as a stream. Its quotes are looked at as the counted pass goes by.

    A cell that holds line breaks is judged by its own lines and by the rows near it, not by all of the file.
    """
    opened = _open_csv(task, file, options, columns)
    parsing, spaced, within = opened.parsing, Counter[str](), 0

    def look(rows: Dataset, first: int) -> None:
        nonlocal within
        within += check_swallowed(task, file, rows, parsing, first)
        spaced.update(spaced_quotes(rows, parsing))

    def finish(count: int) -> None:
        check_quotes(task, file, opened.content, parsing)
        announce_spaced_quotes(task, file, spaced)
        announce_lost_lines(task, file, count, within, parsing)
        _announce_twice(task, file, opened.head, opened.used)

    head = Dataset.from_dict({str(name): cells.tolist() for name, cells in opened.head.items()})
    hint = partial(column_hint, task, file, head, parsing, columns)
    return Stream(
        task,
        file,
        attempt(task, opened.shown, partial(opened.load, streaming=True), opened.hint)["train"],
        {"all_text": True, "hint": hint} | _marks(options),
        opened.hint,
        look,
        finish,
    )


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
                f"{file}: the first line is a header ({show_names(list(head.iloc[0]))}), which column_names makes a "
                f"row. Take column_names out of tasks.{task}.dataset, or add `header: 0` to replace the header."
            )


def _announce_twice(task: str, file: str, head: pd.DataFrame, used: list[str]) -> None:
    """Tell of a column of the task whose name stands in the header twice: pandas calls the second `name.1`."""
    for name in used:
        if {name, f"{name}.1"} <= set(head.columns):
            logger.info(
                f"{task}: {file} has two columns {brief(name)}; the first is read. The second goes by the name "
                f"'{name}.1' under tasks.{task}.columns"
            )


__all__ = ["CSV_DEFAULTS", "CSV_OPTIONS", "CSV_TYPES", "check_csv_options", "read_csv", "stream_csv"]
