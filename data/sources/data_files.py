"""Which files are a task's train, validation and test split, and whether they are still what they were."""

import glob
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from datasets import load_dataset_builder

from ...checks_multitask import suggest
from ..files.formats import FORMATS, SPLIT_NAMES, SPLIT_OPTIONS, files_below
from ..files.parts import attempt
from ..text.problems import brief
from .task_source import TaskSource


def find_files(task: str, split: str, spec: Any, data_root: Path, folders: bool) -> list[str]:
    """The files (or folders) of one split: paths against `data_root`, patterns expanded, addresses (`x://`) kept."""
    files = []
    for name in spec if isinstance(spec, list) else [spec]:
        if not isinstance(name, str):
            raise ValueError(f"tasks.{task}.dataset.data_files, {split}: found {brief(name)} where a path should be.")
        name = os.path.expanduser(name)
        path = data_root / name
        if "://" in name and not folders:
            files.append(name)
        elif os.path.isdir(path) if folders else os.path.isfile(path):
            files.append(str(path))
        else:
            found = [data_root / match for match in sorted(glob.glob(name, root_dir=data_root, recursive=True))]
            found = [str(match) for match in found if (match.is_dir() if folders else match.is_file())]
            files += found
            if not found:
                raise ValueError(
                    f"Task {task!r}: there is no {'folder' if folders else 'file'} {path} ({split} split). Correct "
                    f"tasks.{task}.dataset.data_files; relative paths are looked up in --data_root, now {data_root}."
                )
    known = Counter(file if "://" in file else os.path.realpath(file) for file in files)
    if double := next((file for file, count in known.items() if count > 1), None):
        raise ValueError(
            f"tasks.{task}.dataset.data_files, {split}: {double} is named twice, and its rows would count twice. Name "
            "it once; a pattern names all files that fit it."
        )
    return files


def choose_splits(task: str, available: list[str], wanted: dict[str, str] | None) -> dict[str, str]:
    """Which of the data set's own splits serves as train, validation and test."""
    if wanted is None:
        aliases = {split: [name for name in names if name in available] for split, names in SPLIT_NAMES.items()}
        return {split: names[0] for split, names in aliases.items() if names}
    if not isinstance(wanted, dict):
        raise ValueError(f"tasks.{task}.dataset.splits should be like {{train: train}}. Found {brief(wanted)}.")
    for split, own in wanted.items():
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"tasks.{task}.dataset.splits: unknown split {split!r}.{suggest(split, SPLIT_NAMES)} "
                f"Known: {list(SPLIT_NAMES)}."
            )
        if own not in available:
            raise ValueError(
                f"tasks.{task}.dataset.splits.{split}: the data set has no split {brief(own)}."
                f"{suggest(own, available)} It has: {available}."
            )
    return dict(wanted)


def files_by_split(task: str, arguments: dict[str, Any], data_root: Path) -> dict[str, Any]:
    """Take `data_files`, `data_dir` or `con` out of the arguments: files by the names of splits."""
    source = FORMATS[arguments["path"]].source
    data_files, data_dir = arguments.pop("data_files", None), arguments.pop("data_dir", None)
    if source == "address":
        data_files = arguments.pop("con", None)
        if not isinstance(data_files, str):
            raise ValueError(
                f"tasks.{task}.dataset.con should be an address, like sqlite:///reviews.db, or $NAME for an "
                f"environment variable that holds one. Found {brief(data_files)}."
            )
    elif data_files is None and data_dir is not None:
        folder = data_root / Path(data_dir).expanduser()
        if not os.path.isdir(folder):
            raise ValueError(
                f"Task {task!r}: there is no folder {folder}. Correct tasks.{task}.dataset.data_dir; relative paths "
                f"are looked up in --data_root, now {data_root}."
            )
        data_files = _folder_files(task, arguments, folder)
    if not data_files:
        raise ValueError(
            f"Task {task!r}: name the files under tasks.{task}.dataset.data_files, like {{train: train.csv}}."
        )
    if isinstance(data_files, dict):
        return data_files
    by_split = next((arguments[key] for key in SPLIT_OPTIONS if isinstance(arguments.get(key), dict)), {"train": None})
    return dict.fromkeys(by_split, data_files)


def _folder_files(task: str, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The files of a folder by split: as `datasets` finds them, or the folders in it that are named like splits."""
    if FORMATS[arguments["path"]].source == "folder":
        names = [name for aliases in SPLIT_NAMES.values() for name in aliases if (folder / name).is_dir()]
        return {name: str(folder / name) for name in names} or {"train": str(folder)}
    suffix = arguments["path"]
    if suffix in ("xlsx", "sqlite", "fasttext"):
        raise ValueError(
            f"tasks.{task}.dataset: name {suffix} files under data_files, like {{train: train.{suffix}}}."
        )
    builder = {"tsv": "csv", "jsonl": "json"}.get(suffix, suffix)
    call = {"path": builder, "data_dir": str(folder)}
    found = attempt(task, call, partial(load_dataset_builder, **call))
    return {str(split): list(files) for split, files in found.config.data_files.items()}


def options_of_split(task: str, split: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The options of one split: some may be given for each split."""
    options = dict(arguments)
    for key in SPLIT_OPTIONS:
        if isinstance(by_split := options.get(key), dict):
            if split not in by_split:
                raise ValueError(
                    f"tasks.{task}.dataset.{key} has no entry for the split {split!r}."
                    f"{suggest(split, map(str, by_split))} Found {list(by_split)}."
                )
            options[key] = by_split[split]
    return options


def data_identity(source: TaskSource, data_root: Path) -> list[Any] | None:
    """
    What tells whether a task's data is still the same, without reading it: name, size and time of each local file.

    `None` where that cannot be told so: of addresses, data bases and the Hub, and where a file is missing.
    """
    dataset = source.dataset
    path = dataset["path"]
    local = data_root / Path(path).expanduser()
    named = {"data_files", "data_dir", "con"} & dataset.keys() or not os.path.isdir(local)
    if path in FORMATS and named:
        if FORMATS[path].source == "address" or path == "sqlite":
            return None
        is_folder = FORMATS[path].source == "folder"
        try:
            data_files = files_by_split(source.name, dict(dataset), data_root)
            names = [
                name
                for split, own in data_files.items()
                for name in find_files(source.name, split, own, data_root, is_folder)
            ]
        except ValueError:
            return None  # which is told when the data is loaded
    elif os.path.isdir(local):
        names, is_folder = [str(local)], True
    else:
        return None
    if any("://" in name for name in names):
        return None
    files = [str(file) for name in names for file in files_below(Path(name))] if is_folder else names
    found = [(file, os.stat(file)) for file in files if os.path.isfile(file)]
    return [[file, status.st_size, status.st_mtime_ns] for file, status in found]


__all__ = ["choose_splits", "data_identity", "files_by_split", "find_files", "options_of_split"]
