"""Training rows whose labels are known and whose texts are read onward, a window of them at a time.

StreamedTexts   where the texts of a streamed split come from
StreamedRows    its rows, as a mixture asks for them
"""

import os
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from ..cache.arrays import column_array
from ..files.streams import Stream
from ..sources.task_source import BUFFER_SIZE, TaskSource, sentence_columns
from ..text.sameness import TEXT_RULES, row_hash
from .canonical import ROW_COLUMN


class BrokenStream(ValueError):
    """Reading a stream broke off; what was learnt before is whole."""


Texts = tuple[Any, ...]  # the cells of a row that should be its sentences


@dataclass
class StreamedTexts:
    """
    The texts of a streamed split, read from the first one on.

    Attributes:
        source: one of the tasks that read them.
        open_streams: opens the files.
    """

    source: TaskSource
    open_streams: Callable[[], list[Stream]]

    @property
    def buffer_size(self) -> int:
        """How many rows stand in memory, and are shuffled with each other."""
        return self.source.dataset.get("buffer_size", BUFFER_SIZE)

    @cached_property
    def _streams(self) -> list[Stream]:
        return self.open_streams()

    def pieces(self) -> Generator[tuple[str, int, list[Texts]], None, None]:
        """Some thousand rows at a time: their file, how many rows of it come before, and their texts."""
        columns = sentence_columns(self.source)
        names = [own for _, name in columns for own in (name if isinstance(name, list) else [name])]
        for stream in self._streams:
            first = 0
            for piece in stream.pieces(names):
                cells = [piece.column(self.source.name, key, name)[:] for key, name in columns]
                yield stream.where, first, list(zip(*cells, strict=True))
                first += len(piece.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "open_streams": self.open_streams}  # open files do not travel


class StreamedRows:
    """
    The rows of a streamed split, in any order within a window that moves onward.

    Texts stand in memory from `buffer_size` rows before the last one that was asked for. Asking for an earlier one
    starts the stream anew, as a second pass does. Each process, and each worker of a data loader, reads for itself.

    Args:
        rows: their numbers, hashes and labels.
        texts: where their texts come from.
    """

    def __init__(self, rows: Dataset, texts: StreamedTexts):
        self.rows, self.texts = rows, texts
        self._numbers = column_array(rows, ROW_COLUMN)  # ascending
        self._process, self._close = os.getpid(), lambda: None
        self._start()

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self.rows, "texts": self.texts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """
        Rows in canonical columns, in the order in which they are asked for.

        Raises:
            BrokenStream: the stream cannot be read any further.
            ValueError: it ends too early, or a text is not what it was in the counted pass.
        """
        found = []
        for place, row in zip(places, self.rows.__getitems__(list(places)), strict=True):
            labels = {name: cell for name, cell in row.items() if name != ROW_COLUMN and name not in TEXT_RULES}
            found.append({"sentences": self._texts_of(place, row[row_hash.__name__]), **labels})
        return found

    def close(self) -> None:
        """Read no further, and begin anew if a row is asked for."""
        self._start()

    def read_all(self) -> Dataset:
        """All rows, with their texts in memory: for some that were chosen."""
        found = self.__getitems__(range(len(self)))
        columns = {name: [row[name] for row in found] for name in found[0]}
        features = {name: kind for name, kind in self.rows.features.items() if name in columns}
        return Dataset.from_dict(columns, Features({"sentences": List(Value("string"))} | features))

    def _start(self) -> None:
        """Before the first row."""
        self._held: dict[int, tuple[str, int, Texts]] = {}  # by place: file, row in it, texts
        if self._process == os.getpid():  # else a fork, which has none of the threads that read for its parent
            self._close()
        self._pieces = self.texts.pieces()
        # What is still being read when Python ends may keep it from ending.
        self._close = weakref.finalize(self, self._pieces.close)
        self._rows_read = self._places_read = self._oldest = 0
        self._process = os.getpid()

    def _texts_of(self, place: int, hashed: int) -> list[str]:
        if self._process != os.getpid():  # a fork shares the open files, and where in them its parent reads
            self._start()
        if place not in self._held:
            if place < self._places_read:
                self._start()
            self._read_on(place)
        where, row, texts = self._held[place]
        if not all(isinstance(text, str) for text in texts) or row_hash(texts) != hashed:
            raise ValueError(
                f"{where}, row {row + 1}: the text is not what it was when the rows were counted. A file that is "
                "streamed should not change in a run. Start again, which counts its rows anew."
            )
        return list(texts)

    def _read_on(self, place: int) -> None:
        """Read up to a place, and forget what no batch asks for any more."""
        first_kept = place - self.texts.buffer_size + 1
        where = ""
        while self._places_read <= place:
            try:
                piece = next(self._pieces, None)
            except ValueError as error:
                raise BrokenStream(str(error)) from error
            if piece is None:
                raise ValueError(
                    f"{where or self.texts.source.dataset['path']}: it ends after {self._rows_read} rows, before row "
                    f"{self._numbers[place] + 1}, which was there when the rows were counted. A file that is "
                    "streamed should not change in a run. Start again, which counts its rows anew."
                )
            where, before, texts = piece
            stop = int(np.searchsorted(self._numbers, self._rows_read + len(texts)))
            for own in range(max(self._places_read, first_kept), stop):
                row = int(self._numbers[own]) - self._rows_read
                self._held[own] = where, before + row, texts[row]
            self._rows_read, self._places_read = self._rows_read + len(texts), stop
        for own in range(self._oldest, min(first_kept, self._places_read)):
            self._held.pop(own, None)
        self._oldest = max(self._oldest, first_kept)


__all__ = ["BrokenStream", "StreamedRows", "StreamedTexts"]
