"""Arrow files of a cache on disk, each named by a hash of its bytes.

    write_shard    one more file, written beside its place and then moved there
    open_shard     a file through a memory map; one that is not as it was written is removed with a warning

Two processes can only write the same file twice, an interrupted run leaves whole files behind, and what was damaged
later is found.
"""

import hashlib
import uuid
from pathlib import Path

import pyarrow as pa
import xxhash
from datasets import Dataset
from transformers.utils import logging

logger = logging.get_logger(__name__)


def file_hash(path: Path) -> str:
    """A hash of a file's bytes, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_shard(folder: Path, batch: pa.RecordBatch) -> None:
    """Write a batch as a file of the folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{uuid.uuid4().hex}.part"
    try:
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
            writer.write_batch(batch)
        unfinished.replace(folder / f"{file_hash(unfinished)}.arrow")
    finally:
        unfinished.unlink(missing_ok=True)


def open_shard(path: Path) -> Dataset | None:
    """A shard, memory-mapped; `None` for a damaged one, which is removed here if no other process was faster."""
    try:
        if file_hash(path) == path.stem:
            return Dataset.from_file(str(path))
    except FileNotFoundError:
        return None
    logger.warning(f"{path} of a cache is damaged. It is removed, and what it held is computed again.")
    path.unlink(missing_ok=True)
    return None


__all__ = ["file_hash", "open_shard", "write_shard"]
