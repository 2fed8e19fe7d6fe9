"""Finding and reading a task's data: a recipe's `dataset` block becomes parts (files, or splits of a Hub data set).

Files of a known format are loaded one by one with `datasets.load_dataset`, so that a message can name file and row
and a column may have another type in the next file; Hub data sets and local folders are loaded as a whole. What a
cell means is not decided here but in loading.py.
"""

import glob
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, Features, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.csv.csv import CsvConfig

from .labels import nearest

# File formats by the name a recipe uses, with the name and the arguments `load_dataset` needs for them.
FORMATS = {
    "csv": ("csv", {}),
    "tsv": ("csv", {"delimiter": "\t"}),
    "json": ("json", {}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
    "arrow": ("arrow", {}),
}
SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "valid", "dev", "val"], "test": ["test"]}
# Empty cells are null; the words NA, None and null stay words, which pandas by itself turns into nothing.
CSV_DEFAULTS = {"keep_default_na": False, "na_values": [""]}


@dataclass
class TaskSource:
    """Where one task's labelled rows come from (one task of a recipe).

    `dataset` holds the arguments of `datasets.load_dataset`; beyond them, `path` may be tsv or jsonl, and `splits` may
    say what the data set calls its splits (`{train: train, validation: matched}`; splits not listed are not read).
    `columns` names the sentence columns (`sentence` | `sentence1`, `sentence2` | `anchor`, `positive` and optionally
    `negative`, one column or a list) and, except for contrastive, `label`: a column, or for a multi-label task also
    a list of 0/1 columns. `augmentation` holds the settings that `complete_augmentation` has checked.

    `where` keeps the rows whose columns hold given values; `label_separator`, `label_map` and `missing_labels` say how
    label cells are read; `empty_text` and `contradictions` say what happens to rows without text and to texts with
    several labels; `validation_split`, `test_split` (shares) and `group` (a column) say how rows are set aside.
    """

    name: str
    problem_type: str
    dataset: dict[str, Any]
    columns: dict[str, Any]
    labels: list[str] | None = None
    validation_split: float | None = None
    test_split: float | None = None
    group: str | None = None
    where: dict[str, Any] | None = None
    label_separator: str | None = None
    label_map: dict[str, Any] | None = None
    missing_labels: list[Any] | None = None
    empty_text: str | None = None
    contradictions: str | None = None
    augmentation: dict[str, Any] | None = None


@dataclass
class Part:
    """A file, or a split of a data set, as it was loaded; `where` is its name in messages."""

    where: str
    rows: Dataset
    all_text: bool = False  # a CSV file: every cell is text, so that a column of numbers has to be recognised

    def column(self, task: str, key: str, name: str) -> list[Any]:
        if name not in self.rows.column_names:
            raise ValueError(
                f"{self.where}: task {task!r} needs a column {name!r}, which is missing."
                f"{nearest(name, self.rows.column_names)} Columns: {self.rows.column_names}. "
                f"Correct tasks.{task}.columns.{key}."
            )
        return self.rows[name][:]


def _files(task: str, split: str, spec: Any, data_root: Path) -> list[str]:
    """The files of one split: relative paths against `data_root`, patterns expanded, addresses (`x://`) kept."""
    files = []
    for name in spec if isinstance(spec, list) else [spec]:
        if not isinstance(name, str):
            raise ValueError(f"tasks.{task}.dataset.data_files, {split}: found {name!r} where a path should be.")
        path = data_root / Path(name).expanduser()
        if "://" in name:
            files.append(name)
        elif path.is_file():
            files.append(str(path))
        else:
            found = [data_root / match for match in sorted(glob.glob(name, root_dir=data_root, recursive=True))]
            files += [str(match) for match in found if match.is_file()]
            if not any(match.is_file() for match in found):
                raise ValueError(
                    f"Task {task!r}: there is no file {path} ({split} split). Correct tasks.{task}.dataset."
                    f"data_files; relative paths are looked up in --data_root, now {data_root}."
                )
    return files


def _choose_splits(task: str, available: list[str], wanted: dict[str, str] | None) -> dict[str, str]:
    """Which of the data set's own splits serves as train, validation and test."""
    if wanted is None:
        aliases = {split: [name for name in names if name in available] for split, names in SPLIT_NAMES.items()}
        return {split: names[0] for split, names in aliases.items() if names}
    if not isinstance(wanted, dict):
        raise ValueError(f"tasks.{task}.dataset.splits should be like {{train: train}}. Found {wanted!r}.")
    for split, own in wanted.items():
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"tasks.{task}.dataset.splits: unknown split {split!r}.{nearest(str(split), SPLIT_NAMES)} "
                f"Known: {list(SPLIT_NAMES)}."
            )
        if own not in available:
            raise ValueError(
                f"tasks.{task}.dataset.splits.{split}: the data set has no split {own!r}."
                f"{nearest(str(own), available)} It has: {available}."
            )
    return dict(wanted)


def _attempt(task: str, arguments: dict[str, Any], load: Callable[..., Any]) -> Any:
    """Call a function of `datasets` or pandas; any failure becomes one readable error."""
    try:
        return load(**arguments)
    except Exception as error:  # Hub, file system, parsers and builders each raise their own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if "corresponds to no data" in str(cause) or isinstance(cause, StopIteration):
            reason = "it holds no rows. Add rows, or take the split out of the recipe."
        else:
            reason = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
        shown = {key: value for key, value in arguments.items() if key not in ("features", *CSV_DEFAULTS)}
        raise ValueError(f"Task {task!r}: could not load {shown}: {reason}") from error


def _csv_features(task: str, file: str, arguments: dict[str, Any]) -> Features:
    """Every column as text: pandas would guess types anew for each 10,000 rows, and turn "007" into 7."""
    known = {option.name for option in fields(CsvConfig)}
    options = {key: value for key, value in arguments.items() if key in known}

    def read_head(path: str) -> pd.DataFrame:
        parsing = CsvConfig(**options).pd_read_csv_kwargs | {"nrows": 1, "chunksize": None, "dtype": object}
        return pd.read_csv(path, **parsing)

    head = _attempt(task, {"path": file}, read_head)
    if "index_col" not in options and not isinstance(head.index, pd.RangeIndex):
        raise ValueError(
            f"{file}, row 1: the row has more fields than the header ({list(head.columns)}). Put text with commas or "
            "tabs into double quotes, or correct the header."
        )
    return Features({str(column): Value("string") for column in head.columns})


def _load_files(task: str, arguments: dict[str, Any], data_root: Path) -> dict[str, list[Part]]:
    """Load csv, tsv, json, jsonl, parquet or arrow files one by one, so that messages can name file and row."""
    arguments = dict(arguments)
    path, defaults = FORMATS[arguments["path"]]
    arguments = {**defaults, **(CSV_DEFAULTS if path == "csv" else {}), **arguments, "path": path}
    data_files, wanted = arguments.pop("data_files", None), arguments.pop("splits", None)
    if data_files is None and "data_dir" in arguments:
        folder = data_root / Path(arguments["data_dir"]).expanduser()
        if not folder.is_dir():
            raise ValueError(
                f"Task {task!r}: there is no folder {folder}. Correct tasks.{task}.dataset.data_dir; relative paths "
                f"are looked up in --data_root, now {data_root}."
            )
        builder = _attempt(task, {**arguments, "data_dir": str(folder)}, load_dataset_builder)
        data_files = {str(split): list(files) for split, files in builder.config.data_files.items()}
    if not data_files:
        raise ValueError(
            f"Task {task!r}: name the files under tasks.{task}.dataset.data_files, like {{train: train.csv}}."
        )
    if not isinstance(data_files, dict):
        data_files = {"train": data_files}
    arguments.pop("data_dir", None)
    chosen = _choose_splits(task, list(data_files), wanted)
    if wanted is None and (unknown := [split for split in data_files if split not in chosen.values()]):
        raise ValueError(
            f"tasks.{task}.dataset.data_files: unknown split {unknown[0]!r}.{nearest(str(unknown[0]), SPLIT_NAMES)} "
            f"Known: {list(SPLIT_NAMES)}; say otherwise under tasks.{task}.dataset.splits."
        )
    parts: dict[str, list[Part]] = {}
    for split, own in chosen.items():
        for file in _files(task, own, data_files[own], data_root):
            call = {**arguments, "data_files": {"train": glob.escape(file)}}
            if path == "csv":
                call["features"] = _csv_features(task, file, arguments)
            rows = _attempt(task, call, load_dataset)["train"]
            parts.setdefault(split, []).append(Part(file, rows, all_text=path == "csv"))
    return parts


def _load_repository(
    task: str, arguments: dict[str, Any], data_root: Path, announcements: list[str]
) -> dict[str, list[Part]]:
    """Load a data set from the Hub or from a local folder, all of its splits at once."""
    arguments = dict(arguments)
    path, wanted = arguments["path"], arguments.pop("splits", None)
    local = data_root / Path(path).expanduser()
    if local.is_file():
        raise ValueError(
            f"Task {task!r}: {local} is a file. Write tasks.{task}.dataset as {{path: csv, data_files: "
            f"{{train: {path}}}}}, with the file's format as path: {list(FORMATS)}."
        )
    if local.is_dir():
        arguments["path"] = str(local)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(
            f"Task {task!r}: there is no folder {local}. Correct tasks.{task}.dataset.path; relative paths are looked "
            f"up in --data_root, now {data_root}."
        )
    elif "/" not in path and "data_files" in arguments:
        raise ValueError(
            f"tasks.{task}.dataset.path: unknown file format {path!r}.{nearest(path, FORMATS)} Known: {list(FORMATS)}."
        )
    builder = _attempt(task, arguments, load_dataset_builder)
    if isinstance(builder.config, CsvConfig):
        arguments = CSV_DEFAULTS | arguments
    loaded = _attempt(task, arguments, load_dataset)
    chosen = _choose_splits(task, list(loaded), wanted)
    unused = [str(split) for split in loaded if split not in chosen.values()]
    if unused and wanted is None:
        announcements.append(f"{task}: the data set's splits {', '.join(unused)} are not used")
    return {split: [Part(f"{path}, {own} split", loaded[own])] for split, own in chosen.items()}


def load_parts(source: TaskSource, data_root: Path, announcements: list[str]) -> dict[str, list[Part]]:
    """The parts of each split of a task's data set, with the checks that need no look into the rows."""
    task, dataset = source.name, source.dataset
    if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
        raise ValueError(
            f"tasks.{task}.dataset should hold the arguments of datasets.load_dataset, at least path (a Hub id, a "
            f"folder or one of {list(FORMATS)}). Found {dataset!r}."
        )
    for key in {"split", "streaming"} & set(dataset):
        raise ValueError(
            f"tasks.{task}.dataset.{key} is not supported: all splits are loaded as a whole. "
            f"Choose splits with tasks.{task}.dataset.splits, like {{train: train, validation: dev}}."
        )
    if dataset["path"] in FORMATS:
        parts = _load_files(task, dataset, data_root)
    else:
        parts = _load_repository(task, dataset, data_root, announcements)
    if not parts:
        raise ValueError(
            f"Task {task!r}: {dataset} has none of the splits {list(SPLIT_NAMES)}. Name its own under splits."
        )
    return parts
