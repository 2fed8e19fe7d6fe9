"""Whether a saved folder still holds what was saved: the size and sha256 of each of its files, in `manifest.json`.

    listed            files that are written into a folder all or none, and listed in its manifest
    update_manifest   write down what a folder holds
    find_changes      the files that are no longer what was saved
    check_opened      what opening a model checks: sizes of weights, hashes of code, settings and tokenizer

A folder without a manifest, of an earlier version say, is opened unchecked. README.md may be edited, and files may be
added. `multitask-sentence doctor FOLDER --verify` compares everything, `--seal` writes the manifest of a folder that
was changed on purpose.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from .staging_multitask import files_of, in_place, staged, stale_weights, write_whole

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
MAY_CHANGE = ("README.md", "README.generated.md")  # what people write in
WEIGHTS = ".safetensors"
CODE = ".py"
TOKENIZER = "tokenizer.json"
# What decides the answers beside weights and code. People do change it by hand.
SETTINGS = ("config.json", TOKENIZER, "vocab", "merges", "spiece", "sentencepiece")

_CACHED = re.compile(r"/models--([^/]+)/snapshots/[^/]+$")  # a repository in the cache of the Hub


def sha256_of(path: str | os.PathLike) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # hashlib.file_digest would need Python 3.11
            hashed.update(block)
    return hashed.hexdigest()


def how_to_seal(folder: str | os.PathLike) -> str:
    """The commands that write the manifest of a folder; nobody writes into the cache of the Hub."""
    cached = _CACHED.search(os.path.abspath(folder).replace(os.sep, "/"))
    if cached is None:
        return f"multitask-sentence doctor {folder} --seal"
    name = cached.group(1).replace("--", "/")
    return f"hf download {name} --local-dir FOLDER && multitask-sentence doctor FOLDER --seal, and push FOLDER"


def read_manifest(folder: str | os.PathLike) -> dict[str, dict[str, Any]] | None:
    """
    By file, `bytes` and `sha256`; `None` where a folder has no manifest.

    Raises:
        OSError: the manifest is damaged, or of a newer version.
    """
    path = os.path.join(folder, MANIFEST_FILE)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        version, files = content["manifest_version"], content["files"]
        is_whole = content["sha256"] == _entries_hash(files)
    except (ValueError, TypeError, KeyError, AttributeError):
        version, files, is_whole = MANIFEST_VERSION, {}, False
    if version != MANIFEST_VERSION or not is_whole:
        raise OSError(
            f"{path} is damaged, or was written by a newer version (this one knows {MANIFEST_VERSION}). Take the "
            f"folder from where it came from, or, if it is right, write it anew: {how_to_seal(folder)}"
        )
    return files


def read_older_manifest(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """The entries of a manifest that is written anew; none, with a warning, where it is damaged."""
    try:
        return read_manifest(folder) or {}
    except OSError as error:
        logger.warning(f"{error} It is written anew, for the files that are saved now.")
        return {}


def describe_files(folder: str | os.PathLike, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By file, `bytes` and `sha256`, in the order of the names."""
    found = {}
    for name in sorted(set(names) - {MANIFEST_FILE}):
        path = os.path.join(folder, name)
        found[name] = {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}
        if os.path.basename(name) == TOKENIZER:
            found[name]["tokens_sha256"] = _tokens_hash(path)
    return found


def _tokens_hash(path: str) -> str:
    """Of what decides the tokens; how a tokenizer was last called, which saving it writes too, is left out."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _has_same_tokens(path: str, entry: dict[str, Any]) -> bool:
    try:
        return _tokens_hash(path) == entry.get("tokens_sha256")
    except (ValueError, AttributeError, OSError):
        return False


def _entries_hash(files: dict[str, dict[str, Any]]) -> str:
    """Of what a manifest says, so that damage to itself is found too."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def format_manifest(files: dict[str, dict[str, Any]]) -> str:
    """The text of a manifest."""
    content = {"manifest_version": MANIFEST_VERSION, "sha256": _entries_hash(files), "files": files}
    return json.dumps({**content, "files": dict(sorted(files.items()))}, indent=2) + "\n"


def update_manifest(
    folder: str | os.PathLike, names: Iterable[str] | None = None, place: str | os.PathLike | None = None
) -> None:
    """
    Write down in a folder's manifest what files it holds now; other files stay as they are listed.

    Args:
        folder: the folder.
        names: of the files; `None` for all that are not listed yet, or were written since the manifest.
        place: the folder that the files are going to be moved to, with files of its own.
    """
    listed, path = read_manifest(folder) or {}, os.path.join(folder, MANIFEST_FILE)
    if names is None:
        written = os.stat(path).st_mtime_ns if listed else 0
        names = [
            name
            for name in files_of(folder)
            if name not in listed or os.stat(os.path.join(folder, name)).st_mtime_ns >= written
        ]
    files = {**listed, **describe_files(folder, names)}
    files = {name: entry for name, entry in files.items() if os.path.isfile(os.path.join(folder, name))}
    if place is not None:
        gone = {*files, *stale_weights(place, files)}
        kept = {name: entry for name, entry in read_older_manifest(place).items() if name not in gone}
        files |= {name: entry for name, entry in kept.items() if os.path.isfile(os.path.join(place, name))}
    write_whole(path, format_manifest(files))


@contextlib.contextmanager
def listed(folder: str | os.PathLike) -> Iterator[str]:
    """The same as `staged`, where one of the two folders has a manifest, which then lists the new files too."""
    with staged(folder) as unfinished:
        yield unfinished
        place = in_place(unfinished)
        if any(os.path.isfile(os.path.join(holder, MANIFEST_FILE)) for holder in (unfinished, place)):
            update_manifest(unfinished, place=None if os.path.samefile(folder, unfinished) else place)


def _change(path: str, entry: dict[str, Any], is_hashed: bool) -> str | None:
    """How a file differs from what was saved, as the end of a sentence that begins with its name."""
    if not os.path.isfile(path):
        return "is missing"
    if (size := os.path.getsize(path)) != entry["bytes"]:
        return f"has {size} bytes, not the {entry['bytes']} that were saved"
    if is_hashed and sha256_of(path) != entry["sha256"]:
        return "is not what was saved: its sha256 is another"
    return None


def find_changes(folder: str | os.PathLike) -> dict[str, str]:
    """
    The files of a folder that are not what was saved, with what is wrong with each.

    README.md may be edited, and whatever is not listed may be there. Empty where there is no manifest.

    Raises:
        OSError: the manifest is damaged.
    """
    entries = {name: entry for name, entry in (read_manifest(folder) or {}).items() if name not in MAY_CHANGE}
    changes = {name: _change(os.path.join(folder, name), entry, is_hashed=True) for name, entry in entries.items()}
    return {name: change for name, change in changes.items() if change is not None}


def check_opened(folder: str | os.PathLike, name_or_path: str | os.PathLike, all_files: bool = False) -> None:
    """
    Compare a folder that a model is opened from with its manifest, as far as that costs next to nothing.

    Sizes of weights and hashes of code have to be right. A changed config.json or tokenizer is warned of. In a cache
    of the Hub not every file is there.

    Args:
        folder: where the files lie.
        name_or_path: what the model was opened by, for the message.
        all_files: whether every listed file is hashed and has to be right, weights too.

    Raises:
        OSError: a file is not what was saved.
    """
    remedy = (
        f"Take it from where the model came from, or save the model again. If it was changed on purpose: "
        f"{how_to_seal(folder)}"
    )
    is_complete = os.path.isdir(name_or_path)
    for name, entry in (read_manifest(folder) or {}).items():
        path, is_weight, is_code = os.path.join(folder, name), name.endswith(WEIGHTS), name.endswith(CODE)
        is_checked = all_files or is_weight or is_code or name.startswith(SETTINGS)
        if name in MAY_CHANGE or not is_checked or not (is_complete or os.path.isfile(path)):
            continue
        change = _change(path, entry, is_hashed=all_files or not is_weight)
        if change and (all_files or is_weight or is_code or not os.path.isfile(path)):
            raise OSError(f"{name_or_path}: {name} {change}. {remedy}")
        if change and not _has_same_tokens(path, entry):
            logger.warning(f"{name_or_path}: {name} {change}. {remedy}")


__all__ = [
    "MANIFEST_FILE",
    "check_opened",
    "describe_files",
    "find_changes",
    "format_manifest",
    "how_to_seal",
    "listed",
    "read_manifest",
    "sha256_of",
    "update_manifest",
]
