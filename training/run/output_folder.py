"""The folder that a run writes to: whose it is, from its first file to its last.

write_json         a file that is there as a whole or not at all
put_folder         the same of a folder
hold_output_dir    keeps every other run out of a folder for as long as this one lives
check_output_dir   refuses a folder that holds something else
claim_output_dir   marks it as a run's own, before anything else is written, and empties it where that is wanted
release_output_dir takes the mark away from a finished run
"""

import ctypes
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from transformers.utils import logging

from ...data.cache.locks import fcntl
from ...staging_multitask import UNFINISHED, entries_of, sync, sync_folder, write_whole

logger = logging.get_logger(__name__)

BEST_FOLDER = "best"
STEP_FILE = "best.json"  # in each folder of a best model: which step it is, and its score

RESULTS_FILE = "results.json"
RECIPE_FILE = "recipe.yaml"
MARK_FILE = "unfinished_run.json"
_MARK = {"unfinished_run_of": "multitask_sentence"}
LOCK_FILE = ".run.lock"


def _layout(value: Any, indent: str = "") -> str:
    """JSON with a line for each key and each mapping of a list, and lists of anything else on one line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        lines = [_layout(item, inner) for item in value]
    else:
        return json.dumps(value)
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{right}"


def as_json(content: dict[str, Any]) -> dict[str, Any]:
    """The same as it is read back from a file: keys and what JSON has no type for as text, null for NaN."""
    return json.loads(json.dumps(content, default=str), parse_constant=lambda _: None)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either there as a whole or not at all."""
    write_whole(path, _layout(as_json(content)))


def put_folder(made: Path, place: Path) -> None:
    """
    Move a finished folder, which lies in one named `.unfinished`, to its place, and remove what stood there.

    Where the system can, both change places at once, so that at no moment there is none.
    """
    sync_folder(made)
    if not place.exists():
        made.rename(place)
    elif not _exchange(made, place):
        older = made.with_name(f"older-{place.name}")
        shutil.rmtree(older, ignore_errors=True)
        place.rename(older)
        made.rename(place)
        shutil.rmtree(older, ignore_errors=True)
    sync(place.parent)
    shutil.rmtree(made, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step of the file system; whether it can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or a C library without it
        return False
    here = -100  # AT_FDCWD: paths start from the working directory
    return rename(here, os.fsencode(first), here, os.fsencode(second), 2) == 0  # RENAME_EXCHANGE


def _is_marked(folder: Path) -> bool:
    try:
        return json.loads((folder / MARK_FILE).read_text(encoding="utf-8")) == _MARK
    except (OSError, ValueError):
        return False


def _is_best_folder(folder: Path) -> bool:
    """Whether it is what a run leaves as `best`, also where it was stopped, and by earlier versions."""
    inside = [folder / name for name in entries_of(folder)] if folder.is_dir() else []
    return bool(inside) and all(
        path.name in (UNFINISHED, ".copy", ".older") or (path / STEP_FILE).is_file() for path in inside
    )


def _is_finished(folder: Path) -> bool:
    return (folder / RESULTS_FILE).is_file() and (folder / RECIPE_FILE).is_file()


def _is_run(folder: Path) -> bool:
    """Whether the folder holds a finished run, or what a run that did not finish leaves behind."""
    if _is_finished(folder) or _is_marked(folder):
        return True
    checkpoints = {*folder.glob("checkpoint-*"), *filter(_is_best_folder, folder.glob(BEST_FOLDER))}
    found = {folder / name for name in entries_of(folder)} - {folder / LOCK_FILE}
    begun = {folder / f"{MARK_FILE}.part", folder / UNFINISHED} & found
    return bool(checkpoints or begun) and found <= {*checkpoints, *begun, folder / "runs"}


@contextmanager
def hold_output_dir(folder: Path) -> Iterator[None]:
    """
    Keep every other run out of a folder, on this machine and, where the file system can, on others.

    The lock belongs to the process. The system takes it back when the process ends in any way, and processes that are
    forked from it do not have it. The folder is made where there is none, and removed again if nothing came into it.

    Raises:
        ValueError: another run writes there.
    """
    if folder.exists() and not folder.is_dir():  # which `check_output_dir` refuses
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _open_locked(folder) as file:
        try:
            yield
        finally:
            os.unlink(file.name)  # while nobody else can have locked it
            for path in made:
                with suppress(OSError):  # it is not empty
                    path.rmdir()


def _open_locked(folder: Path) -> IO[str]:
    """The lock file of a folder, open and locked, with the process that holds it written in it."""
    while True:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise ValueError(
                f"output_dir {folder}: another run is writing there ({holder}). Wait for its end, stop it, or give "
                "another --output_dir."
            ) from None
        except OSError as error:
            logger.info(
                f"{folder}: this file system has no locks ({error}). See to it that no other run writes there."
            )
        if os.fstat(file.fileno()).st_nlink:  # else a run that has just ended removed it meanwhile
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """
    Make sure that nothing of value is written over; nothing is removed here.

    Args:
        folder: where the run will save.
        overwrite: whether an earlier run in it may be replaced.

    Raises:
        ValueError: the folder is a file, holds something that is no run, or a run that may not be replaced.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"output_dir {folder} is a file. Give a folder.")
    found = [name for name in entries_of(folder) if name != LOCK_FILE]
    if found and not _is_run(folder):
        names = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ValueError(f"output_dir {folder} holds something else than a run ({names}). Give another folder.")
    if found and not overwrite and not any(folder.glob("checkpoint-*")) and not _is_finished(folder):
        raise ValueError(
            f"output_dir {folder} holds an earlier run that was stopped before its first checkpoint, so there is "
            "nothing to go on from. Replace it with --overwrite, or give another --output_dir."
        )
    if found and not overwrite:
        raise ValueError(
            f"output_dir {folder} holds an earlier run. Give another --output_dir, go on with "
            "--resume_from_checkpoint, or replace it with --overwrite."
        )


def claim_output_dir(folder: Path, empty: bool, keep: Collection[str] = ()) -> None:
    """
    Mark a folder as a run's own, so that the run can be replaced wherever it is stopped.

    Args:
        folder: one that `check_output_dir` lets through; made where there is none.
        empty: whether to remove what an earlier run has left in it.
        keep: names of what is kept nevertheless.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARK_FILE, _MARK)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    for path in folder.iterdir() if empty else ():
        if path.name not in (MARK_FILE, LOCK_FILE, *keep):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def release_output_dir(folder: Path) -> None:
    """Take the mark away: the run is finished, which its results say."""
    (folder / MARK_FILE).unlink(missing_ok=True)
