"""Reading Excel files, SQLite files and SQL data bases through pandas."""

import logging
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pandas as pd
from datasets import Dataset

from ..text.half_characters import HALVES, count_halves
from ..text.problems import brief
from ..text.spelling import show_names
from .parts import Part, attempt

logger = logging.getLogger(__name__)


def read_excel(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load one sheet of an Excel file: the first, or `sheet_name`. A reader as formats.py describes it."""
    sheet = options.get("sheet_name", 0)
    settings = {"keep_default_na": False, "na_values": [""], "dtype": object} | options
    shown = {"path": file} | options

    def load() -> tuple[list[str], Any]:
        with pd.ExcelFile(file) as book:
            return [str(name) for name in book.sheet_names], pd.read_excel(book, **settings)

    sheets, frame = attempt(task, shown, load, _frame_hint)
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"tasks.{task}.dataset.sheet_name should name one sheet. Found {sheet!r}.")
    if "sheet_name" not in options and len(sheets) > 1:
        logger.info(
            f"{task}: of the sheets {show_names(sheets)} in {file}, only the first is read; another one is read with "
            f"`sheet_name: ...` in tasks.{task}.dataset"
        )
    where = file if sheet == 0 else f"{file}, sheet {sheet!r}"
    return Part(where, _from_frame(where, frame), hint=partial(_excel_hint, task, file, sheet, sheets))


def _excel_hint(task: str, file: str, sheet: Any, sheets: list[str], missing: str) -> str:
    """Where a column is missing: the sheet, or the row of the sheet, in which its name stands."""
    with pd.ExcelFile(file) as book:
        for own in dict.fromkeys([sheets[sheet] if isinstance(sheet, int) else sheet, *sheets]):
            head = pd.read_excel(book, own, header=None, nrows=20, dtype=str)
            rows = [row for row, cells in enumerate(head.to_numpy().tolist()) if missing in cells]
            if rows:
                options = [f"sheet_name: {own}"] if len(sheets) > 1 else []
                options += [f"header: {rows[0]}"] if rows[0] else []
                return (
                    f" It stands in row {rows[0] + 1} of sheet {brief(own)}: add `{', '.join(options)}` to "
                    f"tasks.{task}.dataset."
                )
    return ""


def read_sqlite(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """The rows that `sql`, a query or a table's name, gives in an SQLite file, which is opened for reading only."""
    query = _query(task, options)

    def load() -> pd.DataFrame:
        with closing(sqlite3.connect(f"{Path(file).as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = lambda content: content.decode("utf-8", HALVES)
            return pd.read_sql(query, connection, dtype_backend="numpy_nullable")

    part = _from_query(task, file, query, load)
    count_halves(task, part.where, part.rows)
    return part


def read_sql(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """The rows that `sql` gives in a data base; `file` is its SQLAlchemy address, or `$NAME` of a variable with one.

    Raises:
        ValueError: the address holds a password, which would be published with the recipe.
    """
    query, address = _query(task, options), file
    if address.startswith("$"):
        if address[1:] not in os.environ:
            raise ValueError(f"tasks.{task}.dataset.con: the environment has no variable {address[1:]}. Set it.")
        address = os.environ[address[1:]]
    elif re.match(r"[^/]*//[^/@]*:[^/@]*@", address):
        raise ValueError(
            f"tasks.{task}.dataset.con holds a password, which would be published with the recipe. Put the address "
            "into an environment variable and write its name: `con: $DATABASE_ADDRESS`."
        )
    load = partial(pd.read_sql, query, address, dtype_backend="numpy_nullable")
    return _from_query(task, re.sub(r"//.*@", "//", file), query, load)


def _query(task: str, options: dict[str, Any]) -> str:
    query = options.get("sql")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(
            f"tasks.{task}.dataset.sql should be a query, like `SELECT text, label FROM reviews`, or a table's name. "
            f"Found {brief(query)}."
        )
    return query if " " in query.strip() else f'SELECT * FROM "{query.strip()}"'


def _from_query(task: str, file: str, query: str, load: Callable[[], pd.DataFrame]) -> Part:
    where = f"{file}, {query}"
    return Part(where, _from_frame(where, attempt(task, {"path": file, "sql": query}, load, _frame_hint)))


def _frame_hint(cause: BaseException) -> str:
    """Where pandas lacks a package: the extra that brings it; where a file is no workbook, that it is none."""
    if isinstance(cause, BadZipFile):
        return " The file is no whole .xlsx workbook. Save it anew."
    if "format cannot be determined" in str(cause):
        return " The file is no Excel file, whatever its name says. If it is text, write `path: csv` or `path: tsv`."
    extra = next((extra for extra in ("openpyxl", "sqlalchemy") if extra in str(cause).lower()), None)
    if not isinstance(cause, ImportError) or extra is None:
        return ""
    return f" Install it: pip install -e '.[{ {'openpyxl': 'excel', 'sqlalchemy': 'sql'}[extra] }]'."


def _from_frame(where: str, frame: pd.DataFrame) -> Dataset:
    """A table of any cells: numbers stay numbers; a column of several types, or of dates, becomes text."""
    if not len(frame):
        raise ValueError(f"{where}: it holds no rows. Add rows, or take the split out of the recipe.")
    if not frame.columns.is_unique:
        double = brief(str(frame.columns[frame.columns.duplicated()][0]))
        raise ValueError(f"{where}: two columns are called {double}. Give one another name with `AS`.")
    columns = {}
    for name in frame.columns:
        cells = [None if pd.isna(cell) else cell for cell in frame[name].tolist()]
        types = {type(cell) for cell in cells if cell is not None}
        if types not in ({bool}, {str}) and not types <= {int, float}:
            cells = [None if cell is None else str(cell) for cell in cells]
        columns[str(name)] = cells
    return Dataset.from_dict(columns)


__all__ = ["read_excel", "read_sql", "read_sqlite"]
