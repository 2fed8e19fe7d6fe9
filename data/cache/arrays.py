"""What takes long to compute about the rows of a data set, kept on disk as long as the data set is the same.

    batches        a data set's columns, some rows at a time, as Arrow tables
    cached_array   an array with an entry for each row: computed once, then read through a memory map
    column_array   a column of numbers as such an array
    write_array    the same where it is known already
    cached_text    a text about all rows

The arrays stand beside the data set's own Arrow files, under its fingerprint, each with a hash at its end: what was
damaged is computed again. What is computed about a data set that stands in memory stays there too.
"""

import errno
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset

BATCH_ROWS = 10_000
HASH_BYTES = 16


def batches(rows: Dataset, columns: Sequence[str], size: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """The columns of a data set, so many rows at a time."""
    yield from rows.select_columns(list(columns)).with_format("arrow").iter(size)


def cached_array(rows: Dataset, name: str, blocks: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """
    An array with an entry for each row, read through a memory map where the rows are files of a cache.

    Args:
        rows: the data set.
        name: what is computed, with all that it depends on beside the rows.
        blocks: computes the array, in pieces along its first dimension.
    """
    if not rows.cache_files or not len(rows):
        found = list(blocks())
        return np.concatenate(found) if found else np.empty(0, np.int64)
    path = _path(rows, name)
    try:
        content = np.memmap(path, np.uint8, "r").data
        if _hash(content[:-HASH_BYTES]) == content[-HASH_BYTES:]:
            array = np.load(path, mmap_mode="r")
            if len(array) == len(rows):
                return array
    except (OSError, ValueError):
        pass
    write_array(rows, name, blocks())
    return np.load(path, mmap_mode="r")


def column_array(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers, without nulls, as an array with an entry for each row; see `cached_array`."""
    return cached_array(rows, name, lambda: (batch[name].to_numpy() for batch in batches(rows, [name])))


def cached_text(rows: Dataset, name: str, compute: Callable[[], str]) -> str:
    """A text about the rows, such as a hash of them, kept like an array."""
    if not rows.cache_files or not len(rows):
        return compute()
    path = _path(rows, name).with_suffix(".txt")
    try:
        content = path.read_bytes()
        if _hash(content[:-HASH_BYTES]) == content[-HASH_BYTES:]:
            return content[:-HASH_BYTES].decode()
    except OSError:
        pass
    found = compute()
    with _written_beside(path) as unfinished:
        unfinished.write_bytes(found.encode() + _hash(found.encode()))
    return found


def write_array(rows: Dataset, name: str, blocks: Iterable[np.ndarray]) -> None:
    """Keep what `cached_array` will look for; nothing where the rows stand in memory."""
    if not rows.cache_files or not len(rows):
        return
    with _written_beside(_path(rows, name)) as unfinished:
        _write_blocks(unfinished, len(rows), blocks)


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Say of a full disk where it is, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"{folder}: the disk is full. Make room, or set HF_DATASETS_CACHE to a folder with more of it; nothing is "
            "left behind."
        ) from error


@contextmanager
def _written_beside(path: Path) -> Iterator[Path]:
    """A place for a file that is moved to its own when it is whole, and removed else."""
    unfinished = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        with full_disk_told(path.parent):
            yield unfinished
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _hash(content: bytes | memoryview) -> bytes:
    return xxhash.xxh3_128_digest(content)


def _path(rows: Dataset, name: str) -> Path:
    return Path(rows.cache_files[0]["filename"]).parent / f"{rows._fingerprint}-{name}.npy"


def _write_blocks(path: Path, length: int, blocks: Iterable[np.ndarray]) -> None:
    with path.open("wb") as file:
        for number, block in enumerate(blocks):
            if not number:
                header = {"descr": np.lib.format.dtype_to_descr(block.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": (length, *block.shape[1:])})
            file.write(np.ascontiguousarray(block).data)  # unlike `tofile`, it says why it fails
    content = _hash(np.memmap(path, np.uint8, "r").data)
    with path.open("ab") as file:
        file.write(content)


__all__ = ["BATCH_ROWS", "batches", "cached_array", "cached_text", "column_array", "full_disk_told", "write_array"]
