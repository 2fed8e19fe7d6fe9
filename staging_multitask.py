"""Files and folders that appear whole or not at all, wherever the process, the disk or the power ends.

    write_whole    one file: written under another name, brought to the disk, renamed
    staged         several files of a folder: written beside their places, and moved there once all are on the disk
    check_moved    refuses a folder in which moving them was interrupted
    as_disk_error  gives every library's word for a full disk as an OSError

What is not finished lies in a folder named `.unfinished`, which mirrors the place that it is meant for. Whatever is
left there of a process that was killed is removed by the next save.
"""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

UNFINISHED = ".unfinished"
SHOWN = ".DS_Store"  # of the Finder of macOS: how a folder was shown
COMPLETE = ".complete"  # in it: all files are on the disk, and are being moved; names the weights that have to go
FIRST_READ = "config.json"  # what opens a folder; moved last, so that nothing opens one that is not complete
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
# What safetensors and tokenizers say of a disk without room, and torch of one that it cannot write to, none of them
# as an OSError.
_NOT_WRITTEN = re.compile(r"\(os error \d+\)|PytorchStreamWriter failed|unexpected pos \d+ vs \d+")


def in_place(folder: str | os.PathLike) -> str:
    """The place that a folder is meant for, which may be an unfinished one."""
    parts = os.path.abspath(folder).split(os.sep)
    return os.sep.join(part for part in parts if part != UNFINISHED)


def is_same_folder(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Whether both are paths of one folder that exists, in whatever letters."""
    return os.path.isdir(first) and os.path.isdir(second) and os.path.samefile(first, second)


def sync(path: str | os.PathLike) -> None:
    """Bring a file, or the names in a folder, to the disk; Windows opens no folders for that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike) -> None:
    """Bring a folder and all that is in it to the disk."""
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in (*names, ".")]
    with ThreadPoolExecutor(16) as pool:  # a disk takes many at a time in hardly more time than one
        list(pool.map(sync, paths))


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """
    Write a file, in UTF-8 where it is text, in place of an older one.

    Raises:
        OSError: there is no room, say. The older file is as it was.
    """
    folder, name = os.path.split(os.path.abspath(path))
    unfinished = os.path.join(folder, f"{name}.part")
    try:
        with open(unfinished, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(unfinished)
        raise
    sync(folder)


def files_of(folder: str | os.PathLike) -> list[str]:
    """All files of a folder and its folders, as `folder/name`, sorted; not those that are unfinished."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != UNFINISHED]
        within = os.path.relpath(parent, folder).replace(os.sep, "/")
        found += [name if within == "." else f"{within}/{name}" for name in names if name != COMPLETE]
    return sorted(found)


def entries_of(folder: str | os.PathLike) -> list[str]:
    """The names in a folder, sorted, without what macOS puts into each that it shows."""
    return sorted(name for name in os.listdir(folder) if name != SHOWN)


def stale_weights(folder: str | os.PathLike, names: Collection[str]) -> list[str]:
    """The weights in a folder that new files replace under another name: in shards or not, or in another number."""
    if not any(map(_WEIGHTS.fullmatch, names)):
        return []
    return sorted(name for name in os.listdir(folder) if _WEIGHTS.fullmatch(name) and name not in names)


@contextlib.contextmanager
def as_disk_error(folder: str | os.PathLike) -> Iterator[None]:
    """
    Inside, files are written to a folder.

    Raises:
        OSError: a library could not write one, whatever error it has for that.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not _NOT_WRITTEN.search(str(error)):
            raise
        raise OSError(
            f"{in_place(folder)}: not everything could be written ({error}). Make room on the disk, and save again."
        ) from error


def _waits(unfinished: str) -> bool:
    """Whether files of an unfinished folder are on the disk, and still have to be moved to their place."""
    return os.path.isfile(os.path.join(unfinished, COMPLETE)) and bool(files_of(unfinished))


def _stale(unfinished: str, folder: str | os.PathLike) -> list[str]:
    """The weights that still have to go from the folder that an unfinished one is moved to."""
    with open(os.path.join(unfinished, COMPLETE)) as file:
        names = filter(_WEIGHTS.fullmatch, file.read().split("\n"))
    return [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]


def _move(unfinished: str, folder: str) -> None:
    for path in _stale(unfinished, folder):  # before config.json, beside which they would be opened
        os.remove(path)
    for name in sorted(files_of(unfinished), key=lambda name: name == FIRST_READ):
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    sync(folder)
    shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def staged(folder: str | os.PathLike) -> Iterator[str]:
    """
    Inside, files are written into the folder that this gives; afterwards all of them stand in `folder`.

    An error inside, or a full disk, leaves `folder` as it was. Files of the same names are replaced, weights that the
    new ones replace under another name are removed, and all others stay. A folder that is part of something unfinished
    gets its files at once. Where moving was interrupted before, the files of that save are moved first.
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    if in_place(folder) != folder:
        with as_disk_error(folder):
            yield folder
        return
    unfinished = os.path.join(folder, UNFINISHED)
    if _waits(unfinished):
        _move(unfinished, folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    os.mkdir(unfinished)
    try:
        with as_disk_error(folder):
            yield unfinished
        sync_folder(unfinished)
        with open(os.path.join(unfinished, COMPLETE), "w") as file:
            file.write("\n".join(stale_weights(folder, files_of(unfinished))))
            file.flush()
            os.fsync(file.fileno())
        sync(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _move(unfinished, folder)


def check_moved(folder: str | os.PathLike) -> None:
    """
    Make sure that a folder does not hold some files of an older and some of a newer model.

    Raises:
        OSError: saving was interrupted while its files were moved; says how to move the others.
    """
    unfinished = os.path.join(folder, UNFINISHED)
    if _waits(unfinished):
        source, place = shlex.quote(f"{unfinished}/."), shlex.quote(f"{folder}/")
        gone = shlex.join([unfinished, *_stale(unfinished, folder)])
        raise OSError(
            f"{folder}: saving was interrupted, so that files of the model before may stand beside those of the new "
            f"one. Save it again, or move what was saved to its place: cp -r {source} {place} && rm -r {gone}"
        )


__all__ = [
    "SHOWN",
    "UNFINISHED",
    "as_disk_error",
    "check_moved",
    "entries_of",
    "files_of",
    "in_place",
    "is_same_folder",
    "staged",
    "stale_weights",
    "sync",
    "sync_folder",
    "write_whole",
]
