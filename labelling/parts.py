"""What is done of a job, on disk: a folder with a manifest, and a part for each chunk of the input.

A part is written under another name, brought to the disk, and then renamed, so that it is there as a whole or not at
all. Its record, which holds its checksum, is written after it: a part without a record does not count. A job that goes
on keeps the parts whose checksums are right and makes the others again.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST = "job.json"
LOCK = "lock"


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], object], folder: Path | None = None) -> None:
    """Have `write` fill a file under another name (in `folder`), bring it to the disk, and give it its own name."""
    unfinished = (folder or path.parent) / f".{path.name}.{os.getpid()}"
    try:
        write(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class PartRecord:
    """
    A finished part.

    Attributes:
        number: of its chunk.
        start: the number of its first row in the input, from 0.
        labelled: rows with answers.
        set_aside: rows that could not be read.
        sha256: of the part's file.
        counts: by task, how often each label was given, for the table at the end.
    """

    number: int
    start: int
    labelled: int
    set_aside: int
    sha256: str
    counts: dict[str, dict[str, int]]


class JobFolder:
    """
    The folder of a job.

    Args:
        path: the folder.
        suffix: ending of the parts' names.
    """

    def __init__(self, path: Path, suffix: str):
        self.path, self.suffix = path, suffix

    def part(self, number: int) -> Path:
        """A part's file."""
        return self.path / f"part-{number:06d}{self.suffix}"

    def set_aside(self, number: int) -> Path:
        """The file of a chunk's rows that could not be read."""
        return self.path / f"set_aside-{number:06d}.jsonl"

    def _record(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a ValueError where another job has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / LOCK
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_held = os.path.samestat(lock.stat(), os.fstat(file.fileno()))  # not one that a job took away
            except OSError:
                is_held = False
            if not is_held:
                raise ValueError(f"{self.path}: another job is writing there. Wait for it, or give another output.")
            yield

    def left(self) -> list[Path]:
        """What stands in the folder beside the lock."""
        return [path for path in self.path.iterdir() if path.name != LOCK]

    def clear(self) -> None:
        """Take away all but the lock."""
        for path in self.left():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def begin(self, identity: dict[str, Any]) -> None:
        """Write down what the job reads and what answers it, or check that it is the same job.

        Raises:
            ValueError: the folder holds another job; names what differs.
        """
        for pattern in (".part-*", ".set_aside-*"):  # what a killed job was writing
            for unfinished in self.path.glob(pattern):
                unfinished.unlink()
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            write_whole(manifest, lambda path: path.write_text(json.dumps(identity, indent=2) + "\n"))
            return
        found = json.loads(manifest.read_text())
        different = [key for key in identity if found.get(key) != identity[key]]
        if different:
            said = "; ".join(f"{key} was {found.get(key)!r}, now {identity[key]!r}" for key in different)
            raise ValueError(f"{self.path}: --resume goes on with the same job only. Different: {said}.")

    def keep(self, record: PartRecord) -> None:
        """Count a part, whose file is there, as finished."""
        text = json.dumps(asdict(record))
        write_whole(self._record(record.number), lambda path: path.write_text(text))

    def finished(self) -> dict[int, PartRecord]:
        """The finished parts by number. A damaged one is taken away, so that it is made again."""
        found = {}
        for file in sorted(self.path.glob("part-*.json")):
            try:
                record = PartRecord(**json.loads(file.read_text()))
                is_whole = file_hash(self.part(record.number)) == record.sha256
            except (ValueError, TypeError, OSError):
                is_whole = False
            if is_whole:
                found[record.number] = record
            else:
                file.unlink()
        return found


__all__ = ["LOCK", "MANIFEST", "JobFolder", "PartRecord", "file_hash", "write_whole"]
