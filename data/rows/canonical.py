"""Rows in canonical columns, written a batch at a time: into an Arrow file, or into memory where there is no folder.

canonical_features   the columns that the tasks of a set need
RowsWriter           takes batches, and gives them back as a data set
rewrite              some rows of a data set, with some labels changed
labels_of            a task's labels; `is_labelled` and `label_counts` count them
width_of             sentences of a row
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from ...problem_types_multitask import ProblemType
from ..cache.arrays import batches

LABEL_PREFIX = "label_"  # the column with a task's label is `label_<task>`; null means not labelled
ROW_COLUMN = "row"  # of a streamed split: which row of the stream it is, from 0 on
TEACHER_PREFIX = "teacher_"  # that with the places of its teachers' answers; null means that none was asked


def _label_feature(kind: ProblemType) -> Any:
    """The type of a task's label column."""
    if kind.is_multi_label:
        return List(Value("float32"))
    return Value("int64" if kind.has_labels else "float64")


def canonical_features(kinds: Mapping[str, ProblemType], numbers: Iterable[str] = ()) -> Features:
    """The columns of rows that carry labels for tasks of these kinds; a streamed split has `numbers`, and no texts."""
    labels = {LABEL_PREFIX + task: _label_feature(kind) for task, kind in kinds.items()}
    texts: dict[str, Any] = dict.fromkeys(numbers, Value("int64")) or {"sentences": List(Value("string"))}
    return Features(texts | labels)


class RowsWriter:
    """
    Writes rows batch by batch.

    Args:
        path: of the Arrow file; `None` writes into memory.
        features: the columns.
    """

    def __init__(self, path: Path | None, features: Features):
        self.path, self.schema = path, features.arrow_schema
        self._sink = pa.BufferOutputStream() if path is None else pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, self.schema)

    def write(self, columns: Mapping[str, pa.Array]) -> None:
        """Add rows: of each column of the schema its cells."""
        arrays = [
            _plain(columns[name], field.type) for name, field in zip(self.schema.names, self.schema, strict=True)
        ]
        if len(arrays[0]):
            self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))

    def close(self) -> Dataset:
        """The rows that were written."""
        self._writer.close()
        if self.path is None:
            return Dataset.from_buffer(self._sink.getvalue())
        self._sink.close()
        return Dataset.from_file(str(self.path))


def _plain(cells: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """One array of the type, without a dictionary."""
    cells = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    cells = cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells
    return cells if cells.type == kind else cells.cast(kind)


def rewrite(
    rows: Dataset, writer: RowsWriter, chosen: np.ndarray | None, changed: Mapping[str, Mapping[int, Any]]
) -> Dataset:
    """
    Some rows of a data set, in their order, as the writer gives them back.

    Args:
        rows: the data set.
        writer: takes the columns that it has.
        chosen: `(rows,)`, which ones; `None` for all.
        changed: by column, new cells by row.
    """
    start = 0
    ordered = {name: np.sort(np.fromiter(cells, np.int64, len(cells))) for name, cells in changed.items()}
    for batch in batches(rows, writer.schema.names):
        columns = {name: batch[name] for name in writer.schema.names}
        for name, cells in changed.items():
            first, last = np.searchsorted(ordered[name], (start, start + len(batch)))
            if found := ordered[name][first:last].tolist():
                values = columns[name].to_pylist()
                for row in found:
                    values[row - start] = cells[row]
                columns[name] = pa.array(values, columns[name].type)
        if chosen is not None:
            mask = pa.array(chosen[start : start + len(batch)])
            columns = {name: cells.filter(mask) for name, cells in columns.items()}
        writer.write(columns)
        start += len(batch)
    return writer.close()


def _column(rows: Dataset, name: str) -> pa.ChunkedArray:
    if rows._indices is None:  # nothing is copied
        return rows.data.column(name)
    return rows.select_columns(name).with_format("arrow")[:][name]


def sentences_of(rows: Dataset) -> pa.ChunkedArray:
    """The sentences of each row, as a list."""
    return _column(rows, "sentences")


def labels_of(rows: Dataset, task: str) -> pa.ChunkedArray:
    """The labels of a task, null where a row is not labelled for it."""
    return _column(rows, LABEL_PREFIX + task)


def is_labelled(rows: Dataset, task: str) -> np.ndarray:
    """`(rows,)`: whether each row is labelled for a task."""
    return pc.is_valid(labels_of(rows, task)).to_numpy(zero_copy_only=False)


def width_of(rows: Dataset) -> int:
    """Sentences of a row; 0 for a set without rows."""
    return len(rows[0]["sentences"]) if len(rows) else 0


def label_counts(labels: pa.ChunkedArray, num_labels: int) -> np.ndarray:
    """`(num_labels,)`: how many rows have each label, from class ids or 0/1 lists; null counts for none."""
    counts = np.zeros(num_labels, np.int64)
    for chunk in labels.chunks:
        chunk = chunk.drop_null()
        if pa.types.is_list(chunk.type):
            flags = chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), num_labels)
            counts += flags.sum(axis=0).astype(np.int64)
        else:
            counts += np.bincount(chunk.to_numpy(zero_copy_only=False), minlength=num_labels)
    return counts


__all__ = [
    "LABEL_PREFIX",
    "ROW_COLUMN",
    "TEACHER_PREFIX",
    "RowsWriter",
    "canonical_features",
    "is_labelled",
    "label_counts",
    "labels_of",
    "rewrite",
    "sentences_of",
    "width_of",
]
