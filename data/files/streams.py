"""A file, or a split of a data set on the Hub, that is read from its first row on and never kept.

Stream        gives its rows as parts, 10,000 at a time
CountedPart   what is known of a stream once all of it was read: numbers in place of texts
StandIns      what stands in place of the cells of a text column
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.table import InMemoryTable

from ..cache.arrays import BATCH_ROWS
from ..text.half_characters import without_halves
from ..text.problems import brief
from ..text.spelling import is_empty, number
from .parts import Cells, Part, attempt, roots_of

MOST_DIFFERENT = 1_000  # cells that are no text and stand in memory; a message shows ten


class ParquetRows:
    """
    A Parquet file on this machine, in the shape of an `IterableDataset`, of which some rows at a time stand in memory.

    `datasets` keeps all that was read of such a file until its end, and its threads may keep Python from ending
    (apache/arrow#45214).

    Args:
        file: its path.
        columns: those to read; `None` for all.
    """

    def __init__(self, file: str, columns: list[str] | None = None):
        self.file, self.columns = file, columns
        with pq.ParquetFile(file) as opened:
            found = Features.from_arrow_schema(opened.schema_arrow)
        self.features = Features({name: kind for name, kind in found.items() if columns is None or name in columns})

    @property
    def column_names(self) -> list[str]:
        return list(self.features)

    def select_columns(self, columns: list[str]) -> "ParquetRows":
        return ParquetRows(self.file, columns)

    def tables(self) -> Iterator[pa.Table]:
        with pq.ParquetFile(self.file, memory_map=True) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, columns=self.columns, use_threads=False):
                yield pa.Table.from_batches([batch])


@dataclass
class Stream:
    """
    Rows that are read onward.

    Attributes:
        task: a name for messages.
        where: the name of the file or split in messages.
        rows: what `datasets` or pyarrow reads.
        options: what a `Part` of these rows knows of its file.
        failure: gives a hint where reading fails.
        look: looks at each piece in the counted pass, with the number of its first row.
        finish: is called at the end of it, with the number of all rows.
    """

    task: str
    where: str
    rows: IterableDataset | ParquetRows
    options: dict[str, Any] = field(default_factory=dict)
    failure: Callable[[BaseException], str] | None = None
    look: Callable[[Dataset, int], None] | None = None
    finish: Callable[[int], None] | None = None

    def pieces(self, names: Sequence[str] | None = None) -> Iterator[Part]:
        """
        The rows from the first one on, of all columns or of those that some names lead into.

        Raises:
            ValueError: reading fails; says after how many rows.
        """
        rows, known = self.rows, self.rows.column_names
        if names is not None and known is not None:
            rows = rows.select_columns(list(dict.fromkeys(root for name in names for root in roots_of(name, known))))
        is_own = isinstance(rows, ParquetRows)
        tables, read = rows.tables() if is_own else iter(rows.with_format("arrow").iter(BATCH_ROWS)), 0
        while True:
            shown = {"path": self.where, "streaming": True} | ({"rows_before": read} if read else {})
            table = attempt(self.task, shown, partial(next, tables, None), self.failure)
            if table is None:
                return
            found = Dataset(InMemoryTable(table), info=DatasetInfo(features=rows.features))
            found = without_halves(self.task, self.where, found, quiet=True, first_row=read)
            read += len(table)
            yield Part(self.where, found, is_piece=True, **self.options)


class StandIns:
    """
    The cells of a text column with one word in place of every text; whatever else a cell holds stays as it is.

    So the rules for texts (is there one, are all of them numbers) find what they would find in the column itself.
    """

    TEXT = "text"

    def __init__(self) -> None:
        self._codes: list[np.ndarray] = []
        self._values: list[Any] = [self.TEXT]
        self._places: dict[str, int] = {}
        self._all_numbers = True

    def add(self, cells: Sequence[Any]) -> np.ndarray:
        """Further cells; `(cells,)`: which of them are texts."""
        codes = np.fromiter(map(self._code, cells), np.int16, len(cells))
        self._codes.append(codes)
        return np.fromiter((isinstance(cell, str) and not is_empty(cell) for cell in cells), bool, len(cells))

    def _code(self, cell: Any) -> int:
        if isinstance(cell, str) and not is_empty(cell):
            if not self._all_numbers:
                return 0
            if number(cell) is not None:
                return self._place("a number", cell)
            self._all_numbers = False
            return 0
        return self._place(f"{type(cell).__name__} {brief(cell)}", cell)

    def _place(self, key: str, cell: Any) -> int:
        if key not in self._places and len(self._values) < MOST_DIFFERENT:
            self._places[key] = len(self._values)
            self._values.append(cell)
        return self._places.get(key, len(self._values) - 1)

    def cells(self) -> Cells:
        """All cells so far."""
        codes, values = np.concatenate([np.empty(0, np.int16), *self._codes]), self._values
        return Cells(len(codes), lambda start, stop: [values[code] for code in codes[start:stop].tolist()])


@dataclass
class CountedPart(Part):
    """
    A stream whose rows were all read once.

    `rows` holds the columns with labels and conditions, and `numbers`; of texts, only `texts` is known.

    Attributes:
        texts: by key and column, as `column` is asked for them, what stands in place of the cells.
        numbers: what the columns of `rows` with a row's number in its split, and with hashes of its texts, will be
            called in canonical rows, and are called here.
    """

    texts: dict[tuple[str, str], Cells] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)

    def column(self, task: str, key: str, name: str | list[str]) -> Cells:
        cells = self.texts.get((key, str(name)))
        return super().column(task, key, name) if cells is None else self.kept_cells(cells)


__all__ = ["CountedPart", "ParquetRows", "StandIns", "Stream"]
