"""What is done of a job, on disk: a folder with a manifest, and a part for each chunk of the input.

A part is written under another name, brought to the disk, and then renamed, so that it is there as a whole or not at
all. Its record, which holds its checksum, is written after it: a part without a record does not count. A job that goes
on keeps the parts whose checksums are right and makes the others again. What the job did not write it leaves alone.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..data.cache.locks import fcntl
from ..manifest_multitask import sha256_of
from ..staging_multitask import entries_of, sync

logger = logging.getLogger(__name__)

MANIFEST = "job.json"
LOCK = "lock"
_OWN = re.compile(r"job\.json|lock|(part|set_aside)-\d{6}\.[a-z]+|_set_aside\.jsonl")
_UNFINISHED = re.compile(r"\.(job\.json|output|(part|set_aside)-\d{6}\.[a-z]+)\.\d+")


def write_whole(path: Path, write: Callable[[Path], object], place: Path | None = None) -> None:
    """
    Have `write` fill a file beside `place` (`path`), bring it to the disk, and give it its own name.

    Other than with `staging_multitask.write_whole`, a library may fill it, and two processes do not meet.
    """
    place = place or path
    unfinished = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        write(unfinished)
        sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


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
        control: folder of all files but the parts: the same, or one inside it whose name readers of tables pass over.
    """

    def __init__(self, path: Path, suffix: str, control: Path):
        self.path, self.suffix, self.control = path, suffix, control

    def part(self, number: int) -> Path:
        """A part's file."""
        return self.path / f"part-{number:06d}{self.suffix}"

    def set_aside(self, number: int) -> Path:
        """The file of a chunk's rows that could not be read."""
        return self.control / f"set_aside-{number:06d}.jsonl"

    def _record(self, number: int) -> Path:
        return self.control / f"part-{number:06d}.json"

    def manifest(self) -> dict[str, Any] | None:
        """What the job that was begun here reads and what answers it; `None` where there is none."""
        for folder in (self.control, self.path):  # the latter by earlier versions
            try:
                found = json.loads((folder / MANIFEST).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(found, dict) and "rows_per_part" in found:
                return found
        return None

    def check_own(self) -> None:
        """Raise a ValueError where the folder holds files, and no job was begun in it."""
        inside = entries_of(self.path) if self.path.is_dir() and self.manifest() is None else []
        for path in map(self.path.joinpath, inside):
            if path not in (self.control, self.path / LOCK) and not _UNFINISHED.fullmatch(path.name):
                raise ValueError(
                    f"{self.path} is no folder of a labelling job: it holds {path.name!r}. Give another output, or "
                    "move what stands there elsewhere."
                )

    def _lock(self, file: IO[str]) -> bool:
        """Lock the open lock file; whether no other job has it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            logger.warning(
                f"{self.path}: this file system has no locks ({error}). See to it that no other job writes there."
            )
        try:
            return os.path.samestat((self.control / LOCK).stat(), os.fstat(file.fileno()))
        except FileNotFoundError:  # a job that has just ended took it away
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a ValueError where another job has it."""
        self.control.mkdir(parents=True, exist_ok=True)
        with (self.control / LOCK).open("w") as file:
            if not self._lock(file):
                raise ValueError(f"{self.path}: another job is writing there. Wait for it, or give another output.")
            yield

    def left(self) -> list[Path]:
        """What jobs have written, beside the lock; the manifest, without which nothing goes on, comes last."""
        inside = [path for folder in {self.path, self.control} for path in folder.iterdir()]
        own = [path for path in inside if _OWN.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)]
        return sorted(set(own) - {self.control / LOCK}, key=lambda path: path.name == MANIFEST)

    def clear(self) -> None:
        """Take away all that jobs have written but the lock."""
        for path in self.left():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def remove(self) -> None:
        """Take away the folder, unless others have put something into it."""
        self.clear()
        (self.control / LOCK).unlink()
        with suppress(OSError):
            self.path.rmdir()

    def begin(self, identity: dict[str, Any]) -> None:
        """Write down what the job reads and what answers it, or check that it is the same job.

        Raises:
            ValueError: the folder holds another job, and names what differs, or one of an earlier version.
        """
        for path in self.left():
            if _UNFINISHED.fullmatch(path.name):  # what a killed job was writing
                path.unlink()
        found = self.manifest()
        if found is None:
            text = json.dumps(identity, indent=2) + "\n"
            write_whole(self.control / MANIFEST, lambda path: path.write_text(text))
            return
        if "quoted" not in found:
            raise ValueError(
                f"{self.path} holds a job of an earlier version, which cannot go on here. Finish it with that "
                "version, or start anew with --overwrite."
            )
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
        for file in sorted(self.control.glob("part-*.json")):
            try:
                record = PartRecord(**json.loads(file.read_text()))
                is_whole = sha256_of(self.part(record.number)) == record.sha256
            except (ValueError, TypeError, OSError):
                is_whole = False
            if is_whole:
                found[record.number] = record
            else:
                file.unlink()
        return found


__all__ = ["LOCK", "MANIFEST", "JobFolder", "PartRecord", "write_whole"]
