"""Which rows a model was trained, validated and tested on: 64-bit hashes of their text, kept beside the model.

    collect_row_hashes   of the sets of a run, and of the model that it goes on from
    write_row_hashes     into a model's folder, as `row_hashes.parquet`
    read_row_hashes      from a folder or a Hub repository

A run that goes on from the model keeps its training rows in training and its validation rows in validation, and tells
of rows that it measures although the model was trained on them. The file has a line for each task and row (`task`,
`split`, `hash`; 8 bytes a line). It holds no text, but whoever has a text can look up whether it is among the rows.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet
from transformers.utils import cached_file

from ..text.sameness import row_hashes
from .canonical import is_labelled
from .sides import SIDES, Sides

ROW_HASHES_FILE = "row_hashes.parquet"


@dataclass
class RowHashes:
    """
    Hashes of the rows that a model has seen.

    Attributes:
        name: of the model, as it is called in messages.
        rows: by task and split (`("topic", "train")`) the `row_hash` of each distinct row that is labelled for it,
            ascending.
        is_complete: whether no model before it saw rows that nothing is known of.
    """

    name: str
    rows: dict[tuple[str, str], np.ndarray]
    is_complete: bool = True

    def of_split(self, split: str) -> np.ndarray:
        """Those of all tasks, ascending."""
        return _union([hashes for (_, own), hashes in self.rows.items() if own == split])

    def sides(self) -> Sides:
        """Where the rows were; of several splits, train wins, then validation."""
        sides = Sides()
        for side, split in enumerate(SIDES):
            hashes = self.of_split(split)
            sides.add(hashes, np.full(len(hashes), side))
        return sides


def _union(hashes: Sequence[np.ndarray]) -> np.ndarray:
    """The distinct ones of all, ascending."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *hashes]))


def collect_row_hashes(
    name: str, sets: Iterable[Any], trained_tasks: Collection[str], earlier: RowHashes | None = None
) -> RowHashes:
    """
    The rows of a run, and those that the model it goes on from had seen.

    A row that was trained on once counts as trained on, and is in no other split.

    Args:
        name: what the model is called in messages.
        sets: labelled sets.
        trained_tasks: the tasks whose training rows are trained on.
        earlier: the rows of the model that the run goes on from.
    """
    found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for key, hashes in earlier.rows.items() if earlier else ():
        found[key].append(hashes)
    for labelled_set in sets:
        for split, dataset in labelled_set.splits.items():
            hashes = row_hashes(dataset)
            for task in labelled_set.tasks:
                if split != "train" or task in trained_tasks:
                    found[task, split].append(hashes[is_labelled(dataset, task)])
    rows = {key: _union(hashes) for key, hashes in found.items()}
    trained = RowHashes(name, rows).of_split("train")
    rows = {key: hashes if key[1] == "train" else hashes[~np.isin(hashes, trained)] for key, hashes in rows.items()}
    return RowHashes(name, rows, is_complete=earlier is None or earlier.is_complete)


def write_row_hashes(folder: Path, hashes: RowHashes) -> None:
    """Write the file, whole or not at all; the same rows give the same lines."""
    keys = sorted(key for key, found in hashes.rows.items() if len(found))
    counts = [len(hashes.rows[key]) for key in keys]
    columns = {
        "task": np.repeat(np.array([task for task, _ in keys], dtype=str), counts),
        "split": np.repeat(np.array([split for _, split in keys], dtype=str), counts),
        "hash": np.concatenate([np.empty(0, np.int64), *(hashes.rows[key] for key in keys)]),
    }
    unfinished = folder / (ROW_HASHES_FILE + ".part")
    table = pa.table(columns).replace_schema_metadata({"is_complete": str(hashes.is_complete)})
    parquet.write_table(table, unfinished, use_dictionary=["task", "split"], write_page_checksum=True)
    unfinished.replace(folder / ROW_HASHES_FILE)


def read_row_hashes(name_or_path: str) -> RowHashes:
    """
    The rows of a model in a folder or on the Hub; none, and not complete, where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    name = str(name_or_path)
    may_be_missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(name, ROW_HASHES_FILE, **may_be_missing)
    if file is None:
        return RowHashes(name, {}, is_complete=False)
    try:
        table = parquet.read_table(file, columns=["task", "split", "hash"], page_checksum_verification=True)
        columns = [table[name].combine_chunks() for name in ("task", "split", "hash")]
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{file} is damaged ({said}). Take it from where the model came from, or delete it: which rows the model "
            "was trained on is then not known."
        ) from error
    tasks, splits, hashes = columns
    rows = {}
    for task in pc.unique(tasks).to_pylist():
        for split in pc.unique(splits).to_pylist():
            own = hashes.filter(pc.and_(pc.equal(tasks, task), pc.equal(splits, split)))
            if len(own):
                rows[task, split] = np.sort(own.to_numpy())
    return RowHashes(name, rows, is_complete=(table.schema.metadata or {}).get(b"is_complete") != b"False")


__all__ = ["ROW_HASHES_FILE", "RowHashes", "collect_row_hashes", "read_row_hashes", "write_row_hashes"]
