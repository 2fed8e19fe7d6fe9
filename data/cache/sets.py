"""Sets in canonical columns, kept on disk: a second run of the same recipe opens them instead of reading its files.

    set_key         a hash of all that a set depends on
    cached_splits   the splits that belong to a key, built where they are not there

They stand in `multitask_rows` in the cache of `datasets`, a folder for each key. It may be removed at any time.
"""

import errno
import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow as pa
import xxhash
from datasets import Dataset

from .arrays import full_disk_told
from .shards import file_hash

FACTS_FILE = "facts.json"
DATA_CODE = Path(__file__).parents[1]  # data/
CODE_BESIDE = ("checks_multitask.py", "problem_types_multitask.py")  # which it goes by


def _code_digest() -> str:
    """A hash of the code that reads data, and of whose parsers it uses: what other code has read is read again."""
    versions = [package.__version__ for package in (datasets, pandas, pa)]
    digest = hashlib.sha256(repr(versions).encode())
    for path in (*sorted(DATA_CODE.rglob("*.py")), *(DATA_CODE.parent / name for name in CODE_BESIDE)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def set_key(content: Any) -> str:
    """A hash, as 32 hexadecimal digits, of what a set is made of and of the code that makes it."""
    text = repr([_code_digest(), content])  # unlike JSON, it tells 1 from "1" among keys
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _text_hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


class _Recorder(logging.Handler):
    def __init__(self, lines: list[str]):
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def recorded_lines() -> Iterator[list[str]]:
    """What data/ logs, in a list and nowhere else: it is told whenever a set is opened, not only when it is read."""
    logger, lines = logging.getLogger(__name__.rsplit(".", 2)[0]), []
    level, propagates, handlers = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers = False, []
    logger.addHandler(_Recorder(lines))
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagates, handlers


def cached_splits(key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """
    The splits of a set, memory-mapped, and what is known about them.

    Args:
        key: what `set_key` gives.
        build: writes a file `<split>.arrow` for each split into a folder, and returns what is known, as JSON holds it.

    Raises:
        OSError: there is no room on the disk.
    """
    root = Path(datasets.config.HF_DATASETS_CACHE) / "multitask_rows"
    folder = root / key
    if (found := _open(folder)) is not None:
        return found
    unfinished = root / f"{key}-{uuid.uuid4().hex[:8]}.part"
    unfinished.mkdir(parents=True)
    try:
        with full_disk_told(root):
            facts = build(unfinished)
            hashes = {path.name: file_hash(path) for path in unfinished.glob("*.arrow")}
            kept = json.dumps({"hashes": hashes, "facts": facts})
            content = json.dumps({"hash": _text_hash(kept), "kept": kept})
            (unfinished / FACTS_FILE).write_text(content, encoding="utf-8")
            _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if (found := _open(folder)) is None:
        raise OSError(f"{folder}: what was just written cannot be read back. Check the disk.")
    return found


def _move(unfinished: Path, folder: Path) -> None:
    """Put a finished folder into its place, where another process may have been faster, or a damaged one stands."""
    try:
        unfinished.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if _open(folder) is None:
            damaged = folder.replace(unfinished.with_suffix(".damaged"))
            unfinished.replace(folder)
            shutil.rmtree(damaged, ignore_errors=True)


def open_split(path: Path) -> Dataset:
    """An Arrow file, memory-mapped; its fingerprint is the folder's key with the file's name."""
    rows = Dataset.from_file(str(path))
    rows._fingerprint = f"{path.parent.name[:32]}-{path.stem}"
    return rows


def _open(folder: Path) -> tuple[dict[str, Dataset], dict[str, Any]] | None:
    """What is kept in a folder; `None` where there is none, and where it is damaged."""
    try:
        content = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        if _text_hash(content["kept"]) != content["hash"]:
            raise ValueError(f"{folder / FACTS_FILE} is not what was written.")
        kept, splits = json.loads(content["kept"]), {}
        for name, expected in kept["hashes"].items():
            path = folder / name
            if file_hash(path) != expected:
                raise ValueError(f"{path} is not what was written.")
            splits[path.stem] = open_split(path)
        return splits, kept["facts"]
    except (FileNotFoundError, ValueError, TypeError, KeyError, pa.ArrowException):
        return None


__all__ = ["cached_splits", "open_split", "set_key"]
