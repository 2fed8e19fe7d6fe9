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

from ..text.sameness import among, distinct, sorted_hashes
from .canonical import is_labelled
from .sides import SIDES, Sides

ROW_HASHES_FILE = "row_hashes.parquet"
ROWS_AT_ONCE = 1_000_000


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
    """The distinct ones of several arrays that are so themselves, ascending; one that stands for all is not copied."""
    several = list({id(own): own for own in hashes if len(own)}.values())
    if len(several) == 1:
        return several[0]
    return distinct(np.sort(np.concatenate([np.empty(0, np.int64), *several])))


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
            hashes = distinct(sorted_hashes(dataset))
            for task in labelled_set.tasks:
                if split != "train" or task in trained_tasks:
                    chosen = is_labelled(dataset, task)
                    own = hashes if chosen.all() else distinct(sorted_hashes(dataset, chosen=chosen))
                    found[task, split].append(own)
    rows = {key: _union(hashes) for key, hashes in found.items()}
    trained = RowHashes(name, rows).of_split("train")
    rows = {key: hashes if key[1] == "train" else hashes[~among(hashes, trained)] for key, hashes in rows.items()}
    return RowHashes(name, rows, is_complete=earlier is None or earlier.is_complete)


def write_row_hashes(folder: Path, hashes: RowHashes) -> None:
    """Write the file, whole or not at all; the same rows give the same lines."""
    keys = sorted(key for key, found in hashes.rows.items() if len(found))
    schema = pa.schema({"task": pa.string(), "split": pa.string(), "hash": pa.int64()})
    schema = schema.with_metadata({"is_complete": str(hashes.is_complete)})
    unfinished = folder / (ROW_HASHES_FILE + ".part")
    options = {"use_dictionary": ["task", "split"], "write_page_checksum": True}
    with parquet.ParquetWriter(unfinished, schema, **options) as writer:
        for task, split in keys:
            found = hashes.rows[task, split]
            for start in range(0, len(found), ROWS_AT_ONCE):
                own = pa.array(found[start : start + ROWS_AT_ONCE])
                columns = [pa.repeat(task, len(own)), pa.repeat(split, len(own)), own]
                writer.write_table(pa.table(columns, schema))
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
        names = ["task", "split", "hash"]
        table = parquet.read_table(
            file, columns=names, read_dictionary=names[:2], page_checksum_verification=True
        ).unify_dictionaries()
        columns = [table[name].combine_chunks() for name in names]
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
