"""Finding a task's data: a recipe's `dataset` block becomes parts (files, or splits of a Hub data set).

Files of a known format (files/formats.py) are loaded one by one, so that a message can name file and row and a column
may have another type in the next file; Hub data sets and local folders are loaded as a whole. Which rows count is
decided here too (`where`, `explode`); what a cell means is not, but in loading.py.
"""

import glob
import logging
import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.text.text import TextConfig

from ..checks_multitask import suggest
from ..problem_types_multitask import PROBLEM_TYPES, ProblemType
from .files.csv_files import CSV_OPTIONS, check_csv_options, read_csv
from .files.formats import FORMATS, SPLIT_NAMES, SPLIT_OPTIONS, UNREAD, check_options
from .half_characters import without_halves
from .parts import Part, attempt
from .problems import brief

logger = logging.getLogger(__name__)


@dataclass
class TaskSource:
    """Where one task's labelled rows come from (one task of a recipe).

    `dataset` holds the arguments of `datasets.load_dataset`; beyond them, `path` may be tsv or jsonl, and `splits` may
    say what the data set calls its splits (`{train: train, validation: matched}`; splits not listed are not read).
    `columns` names the sentence columns (`sentence` | `sentence1`, `sentence2` | `anchor`, `positive` and optionally
    `negative`, one column or a list) and, except for contrastive, `label`: a column, or for a multi-label task also
    a list of 0/1 columns. A list of columns is one sentence, joined; a list of negatives is several. A dotted name
    (`data.text`) leads into nested cells. `augmentation` holds the settings that `complete_augmentation` has checked.

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

    @property
    def kind(self) -> ProblemType:
        """What its problem type means."""
        return PROBLEM_TYPES[self.problem_type]


def _files(task: str, split: str, spec: Any, data_root: Path, folders: bool) -> list[str]:
    """The files (or folders) of one split: paths against `data_root`, patterns expanded, addresses (`x://`) kept."""
    files = []
    for name in spec if isinstance(spec, list) else [spec]:
        if not isinstance(name, str):
            raise ValueError(f"tasks.{task}.dataset.data_files, {split}: found {brief(name)} where a path should be.")
        path = data_root / Path(name).expanduser()
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
    return files


def _choose_splits(task: str, available: list[str], wanted: dict[str, str] | None) -> dict[str, str]:
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


def _data_files(task: str, arguments: dict[str, Any], data_root: Path) -> dict[str, Any]:
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


def _load_files(source: TaskSource, scores: bool, data_root: Path) -> dict[str, list[Part]]:
    """Load files of a known format one by one, so that messages can name file and row."""
    task, arguments = source.name, dict(source.dataset)
    path, wanted = arguments["path"], arguments.pop("splits", None)
    data_files = _data_files(task, arguments, data_root)
    del arguments["path"]
    chosen = _choose_splits(task, list(data_files), wanted)
    if wanted is None and (unknown := [split for split in data_files if split not in chosen.values()]):
        raise ValueError(
            f"tasks.{task}.dataset.data_files: unknown split {brief(unknown[0])}.{suggest(unknown[0], SPLIT_NAMES)} "
            f"Known: {list(SPLIT_NAMES)}; say otherwise under tasks.{task}.dataset.splits."
        )
    check_options(task, path, arguments)
    known = FORMATS[path]
    if known.read is read_csv:
        arguments = known.defaults | check_csv_options(task, arguments, scores)
    parts: dict[str, list[Part]] = {}
    for split, own in chosen.items():
        options = _options_of_split(task, own, arguments)
        files = [data_files[own]]
        if known.source != "address":
            files = _files(task, own, data_files[own], data_root, folders=known.source == "folder")
        for file in files:
            parts.setdefault(split, []).append(known.read(task, file, options, source.columns))
    return parts


def _options_of_split(task: str, split: str, arguments: dict[str, Any]) -> dict[str, Any]:
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


def _load_repository(source: TaskSource, scores: bool, data_root: Path) -> dict[str, list[Part]]:
    """Load a data set from the Hub or from a local folder, all of its splits at once."""
    task, arguments = source.name, dict(source.dataset)
    path, wanted = arguments["path"], arguments.pop("splits", None)
    local = data_root / Path(path).expanduser()
    if os.path.isfile(local):  # which, unlike Path.is_file, takes any text for a name
        suffix = local.suffix[1:].lower()
        written = {"db": "sqlite", "sqlite3": "sqlite"}.get(suffix, suffix if suffix in FORMATS else "csv")
        raise ValueError(
            f"Task {task!r}: {local} is a file. Write tasks.{task}.dataset as {{path: {written}, data_files: "
            f"{{train: {path}}}}}, with the file's format as path: {list(FORMATS)}."
        )
    if os.path.isdir(local):
        arguments["path"] = str(local)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(
            f"Task {task!r}: there is no folder {local}. Correct tasks.{task}.dataset.path; relative paths are looked "
            f"up in --data_root, now {data_root}."
        )
    elif path in UNREAD or ("/" not in path and "data_files" in arguments):
        reason = f" This format is not read: {UNREAD[path]}" if path in UNREAD else suggest(path, FORMATS)
        raise ValueError(
            f"tasks.{task}.dataset.path: unknown file format {brief(path)}.{reason} Known: {list(FORMATS)}."
        )
    shown = {key: value for key, value in arguments.items() if key != "storage_options"}  # which may hold secrets
    if os.path.isfile(local / "dataset_dict.json") or os.path.isfile(local / "state.json"):
        loaded = attempt(task, shown, partial(load_from_disk, str(local)))
        loaded = loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    else:
        builder = attempt(task, shown, partial(load_dataset_builder, **arguments))
        if isinstance(builder.config, TextConfig):
            raise ValueError(f"tasks.{task}.dataset: {path} holds text files, and {UNREAD['text']}")
        if isinstance(builder.config, CsvConfig) and builder.info.features is None:
            # Every cell as text, and a look at stray quotes, as for single files.
            options = {name: getattr(builder.config, name) for name in CSV_OPTIONS}
            given = {name: value for name, value in options.items() if value != getattr(CsvConfig(), name)}
            files = {str(split): list(map(str, names)) for split, names in builder.config.data_files.items()}
            given |= {"path": "csv", "data_files": files} | ({} if wanted is None else {"splits": wanted})
            return _load_files(replace(source, dataset=given), scores, data_root)
        loaded = attempt(task, shown, partial(load_dataset, **arguments))
    chosen = _choose_splits(task, list(loaded), wanted)
    unused = [str(split) for split in loaded if split not in chosen.values()]
    if unused and wanted is None:
        logger.info(f"{task}: the data set's splits {', '.join(unused)} are not used")
    parts = {split: Part(f"{path}, {own} split", loaded[own]) for split, own in chosen.items()}
    for part in parts.values():
        part.rows = without_halves(task, part.where, part.rows)
    return {split: [part] for split, part in parts.items()}


def _explode(task: str, column: Any, parts: list[Part]) -> None:
    """Make a row of every text in a column of lists."""
    if not isinstance(column, str):
        raise ValueError(f"tasks.{task}.dataset.explode should be a column's name. Found {brief(column)}.")
    for part in parts:
        where, rows = part.where, len(part.rows)
        part.explode(task, column)
        logger.info(f"{task}: the {rows} rows of {where} give {len(part.rows)}, one for each {brief(column)}")


def _keep_where(sources: list[TaskSource], parts: dict[str, list[Part]]) -> None:
    """Leave out the rows that `where` does not name, and say how many."""
    task, conditions = sources[0].name, sources[0].where
    tasks = ", ".join(source.name for source in sources)
    for split, found in parts.items():
        for part in found:
            part.keep_where(task, conditions)
        total, left_out = sum(len(part.rows) for part in found), sum(part.left_out for part in found)
        if left_out == total:
            held = [f"{brief(column)} holds {', '.join(found[0].values(column))}" for column in conditions]
            raise ValueError(
                f"Task {task!r}: where {brief(conditions)} keeps none of the {total} {split} rows ({found[0].where}). "
                f"Column {'; column '.join(held)}. Correct tasks.{task}.where."
            )
        logger.info(f"{tasks}: {left_out} of {total} {split} rows are left out by where {brief(conditions)}")


# What annotation tools say of a row: the column, the answers that it may hold, and the one that counts.
REVIEWS = {
    "answer": ({"accept", "reject", "ignore"}, "accept"),  # Prodigy
    "status": ({"completed", "submitted", "pending", "draft", "discarded"}, "completed"),  # Argilla 2
}


def _announce_reviews(source: TaskSource, parts: list[Part]) -> None:
    """Tell of rows that an annotator has rejected, which count where no `where` leaves them out."""
    used = {*source.columns.values()} if all(isinstance(own, str) for own in source.columns.values()) else set()
    for column, (answers, good) in REVIEWS.items():
        cells = (cell for part in parts if column in part.rows.column_names for cell in part.cells(column))
        counts = Counter(cell for cell in cells if isinstance(cell, str))
        if counts.keys() <= answers and good in counts and len(counts) > 1 and column not in used:
            others = ", ".join(
                f"{answer} ({count} rows)" for answer, count in sorted(counts.items()) if answer != good
            )
            logger.info(
                f"{source.name}: rows whose {column!r} is {others} count like all others. Where they should not, "
                f"write tasks.{source.name}.where: {{{column}: {good}}}."
            )


def check_source(source: TaskSource) -> None:
    """Check a recipe's `dataset` and `where` as far as that needs no look at the data.

    Raises:
        ValueError: they have no such form.
    """
    task, dataset, conditions = source.name, source.dataset, source.where
    if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
        raise ValueError(
            f"tasks.{task}.dataset should hold the arguments of datasets.load_dataset, at least path (a Hub id, a "
            f"folder or one of {list(FORMATS)}). Found {brief(dataset)}."
        )
    if unnamed := [key for key in dataset if not isinstance(key, str)]:
        raise ValueError(f"tasks.{task}.dataset: the key {brief(unnamed[0])} is no name of an option. Take it out.")
    if "split" in dataset:
        raise ValueError(
            f"tasks.{task}.dataset.split is not supported: all splits are loaded as a whole. "
            f"Choose splits with tasks.{task}.dataset.splits, like {{train: train, validation: dev}}."
        )
    if dataset.get("streaming", False) is not False:
        raise ValueError(
            f"tasks.{task}.dataset.streaming is {brief(dataset['streaming'])}, but training draws from a permutation "
            "of all rows and sets rows aside by their text, so it has to know every row. Leave it out: rows are "
            "written to the disk once, and read from there through a memory map, however many there are. "
            "HF_DATASETS_CACHE says to which disk."
        )
    if isinstance(dataset.get("token"), str):
        raise ValueError(
            f"tasks.{task}.dataset.token: a token does not belong in a recipe, which is published with the model. "
            "Log in with `hf auth login`, or set HF_TOKEN."
        )
    if not isinstance(dataset.get("data_dir"), str | None):
        raise ValueError(
            f"tasks.{task}.dataset.data_dir should be a folder's path. Found {brief(dataset['data_dir'])}."
        )
    if conditions is None:
        return
    if (
        not isinstance(conditions, dict)
        or not conditions
        or not all(isinstance(column, str) for column in conditions)
        or any(isinstance(value, dict) or value == [] for value in conditions.values())
    ):
        raise ValueError(
            f"tasks.{task}.where should say which values of a column to keep, like {{answer: accept}} or "
            f"{{language: [en, de]}}. Found {brief(conditions)}."
        )


def check_text_columns(source: TaskSource, parts: list[Part]) -> None:
    """Refuse columns of lists or objects where sentences should be."""
    for key, names in source.columns.items():
        for name in names if isinstance(names, list) else [names]:
            for part in parts if key != "label" else []:
                part.check_texts(source.name, key, name)


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
            data_files = _data_files(source.name, dict(dataset), data_root)
            names = [
                name
                for split, own in data_files.items()
                for name in _files(source.name, split, own, data_root, is_folder)
            ]
        except ValueError:
            return None  # which is told when the data is loaded
    elif os.path.isdir(local):
        names, is_folder = [str(local)], True
    else:
        return None
    if any("://" in name for name in names):
        return None
    files = [str(file) for name in names for file in sorted(Path(name).rglob("*"))] if is_folder else names
    found = [(file, os.stat(file)) for file in files if os.path.isfile(file)]
    return [[file, status.st_size, status.st_mtime_ns] for file, status in found]


def load_parts(sources: list[TaskSource], data_root: Path) -> dict[str, list[Part]]:
    """The parts of each split of the data set that these tasks read, with the rows that `where` keeps.

    Raises:
        ValueError: something is wrong with the recipe's `dataset` or `where`, or a file cannot be read.
    """
    source, scores = sources[0], any(one.kind.has_scores for one in sources)
    check_source(source)
    task, dataset = source.name, source.dataset
    source = replace(source, dataset={key: value for key, value in dataset.items() if key != "explode"})
    # A folder may have the name of a format.
    named = {"data_files", "data_dir", "con"} & dataset.keys() or not os.path.isdir(data_root / dataset["path"])
    load = _load_files if dataset["path"] in FORMATS and named else _load_repository
    parts = load(source, scores, data_root)
    if not parts:
        raise ValueError(
            f"Task {task!r}: {dataset} has none of the splits {list(SPLIT_NAMES)}. Name its own under splits."
        )
    if "explode" in dataset:
        _explode(task, dataset["explode"], list(chain.from_iterable(parts.values())))
    check_text_columns(source, list(chain.from_iterable(parts.values())))
    if source.where is not None:
        _keep_where(sources, parts)
    else:
        _announce_reviews(source, list(chain.from_iterable(parts.values())))
    return parts


__all__ = [
    "FORMATS",
    "SPLIT_NAMES",
    "Part",
    "TaskSource",
    "check_source",
    "check_text_columns",
    "data_identity",
    "load_parts",
]
