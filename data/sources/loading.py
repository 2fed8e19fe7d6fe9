"""A recipe's `dataset` block becomes parts: files, or splits of a Hub data set.

Files of a known format (files/formats.py) are loaded one by one, so that a message can name file and row and a column
may have another type in the next file; Hub data sets and local folders are loaded as a whole. Which rows count is
decided here too (`where`, `explode`); what a cell means is not, but in labels/.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder, load_from_disk
from datasets.fingerprint import Hasher
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.text.text import TextConfig

from ...checks_multitask import suggest
from ..files.csv_files import CSV_OPTIONS, check_csv_options, read_csv
from ..files.formats import FORMATS, SPLIT_NAMES, UNREAD, check_options
from ..files.json_files import AS_ROWS
from ..files.parts import Part, attempt
from ..files.streams import Stream
from ..text.half_characters import without_halves
from ..text.problems import brief
from .data_files import choose_splits, data_identity, files_by_split, find_files, options_of_split
from .task_source import TaskSource, check_source, check_text_columns

logger = logging.getLogger(__name__)

Loaded = dict[str, list[Part | Stream]]


def _load_files(source: TaskSource, scores: bool, data_root: Path, wanted_splits: Collection[str]) -> Loaded:
    """Load files of a known format one by one, so that messages can name file and row."""
    task, arguments = source.name, _without_own_keys(source.dataset)
    path, wanted = arguments["path"], arguments.pop("splits", None)
    data_files = files_by_split(task, arguments, data_root)
    del arguments["path"]
    chosen = choose_splits(task, list(data_files), wanted)
    if wanted is None and (unknown := [split for split in data_files if split not in chosen.values()]):
        raise ValueError(
            f"tasks.{task}.dataset.data_files: unknown split {brief(unknown[0])}.{suggest(unknown[0], SPLIT_NAMES)} "
            f"Known: {list(SPLIT_NAMES)}; say otherwise under tasks.{task}.dataset.splits."
        )
    check_options(task, path, arguments)
    known = FORMATS[path]
    if known.read is read_csv:
        arguments = known.defaults | check_csv_options(task, arguments, scores)
    if source.is_streamed and known.stream is None:
        raise ValueError(
            f"tasks.{task}.dataset.streaming: {path} files are read as a whole. Take streaming out, or write the rows "
            f"in one of the formats {[name for name, own in FORMATS.items() if own.stream is not None]}."
        )
    parts: Loaded = {}
    for split, own in chosen.items():
        if split not in wanted_splits:
            continue
        read = known.stream if source.is_streamed and split == "train" else known.read
        options = options_of_split(task, own, arguments)
        files = [data_files[own]]
        if known.source != "address":
            files = find_files(task, own, data_files[own], data_root, folders=known.source == "folder")
        for file in files:
            parts.setdefault(split, []).append(read(task, file, options, source.columns))
    return parts


def _load_repository(source: TaskSource, scores: bool, data_root: Path, wanted_splits: Collection[str]) -> Loaded:
    """Load a data set from the Hub or from a local folder, all of its splits at once."""
    task, arguments = source.name, _without_own_keys(source.dataset)
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
        if source.is_streamed:
            raise ValueError(
                f"tasks.{task}.dataset.streaming: {local} was written by save_to_disk and is mapped where it lies, "
                "so it needs no stream. Take streaming out."
            )
        loaded = attempt(task, shown, partial(load_from_disk, str(local)))
        loaded = loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    else:
        if os.path.isdir(local):
            # `datasets` knows what it has read of a folder by paths and times. Here sizes count, too.
            kept = Path(datasets.config.HF_DATASETS_CACHE) / "multitask_folders"
            arguments.setdefault("cache_dir", str(kept / Hasher.hash(data_identity(source, data_root))))
        builder = attempt(task, shown, partial(load_dataset_builder, **arguments))
        if isinstance(builder.config, TextConfig):
            raise ValueError(f"tasks.{task}.dataset: {path} holds text files, and {UNREAD['text']}")
        if isinstance(builder.config, CsvConfig) and builder.info.features is None:
            # Every cell as text, and a look at stray quotes, as for single files.
            options = {name: getattr(builder.config, name) for name in CSV_OPTIONS}
            given = {name: value for name, value in options.items() if value != getattr(CsvConfig(), name)}
            files = {str(split): list(map(str, names)) for split, names in builder.config.data_files.items()}
            given |= {"path": "csv", "data_files": files} | ({} if wanted is None else {"splits": wanted})
            given |= {"streaming": True} if source.is_streamed else {}
            return _load_files(replace(source, dataset=given), scores, data_root, wanted_splits)
        arguments |= AS_ROWS if isinstance(builder.config, JsonConfig) else {}
        arguments |= {"streaming": True} if source.is_streamed else {}
        loaded = attempt(task, shown, partial(load_dataset, **arguments))
    chosen = choose_splits(task, list(loaded), wanted)
    unused = [str(split) for split in loaded if split not in chosen.values()]
    if unused and wanted is None:
        logger.info(f"{task}: the data set's splits {', '.join(unused)} are not used")
    parts: Loaded = {}
    for split, own in chosen.items():
        where = f"{path}, {own} split"
        if split not in wanted_splits:
            continue
        if source.is_streamed and split == "train":
            parts[split] = [Stream(task, where, loaded[own])]
            continue
        rows = loaded[own]
        if source.is_streamed:  # of a small split, all that is read may stand in memory
            rows = concatenate_datasets([piece.rows for piece in Stream(task, where, rows).pieces()])
        parts[split] = [Part(where, without_halves(task, where, rows))]
    return parts


def _without_own_keys(dataset: dict[str, Any]) -> dict[str, Any]:
    """A recipe's `dataset` without what only we read."""
    return {key: value for key, value in dataset.items() if key not in ("explode", "streaming", "buffer_size")}


def _load(sources: list[TaskSource], data_root: Path, wanted_splits: Collection[str]) -> Loaded:
    """What is loaded, or opened as a stream, for some of the splits."""
    source, scores = sources[0], any(one.kind.has_scores for one in sources)
    dataset = source.dataset
    # A folder may have the name of a format.
    named = {"data_files", "data_dir", "con"} & dataset.keys() or not os.path.isdir(data_root / dataset["path"])
    load = _load_files if dataset["path"] in FORMATS and named else _load_repository
    return load(source, scores, data_root, wanted_splits)


def open_streams(sources: list[TaskSource], data_root: Path) -> list[Stream]:
    """The streams of the training rows that these tasks read, in order."""
    return [own for own in _load(sources, data_root, ["train"]).get("train", []) if isinstance(own, Stream)]


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


def stream_identity(source: TaskSource, data_root: Path) -> list[Any]:
    """
    What tells whether data that is streamed is still the same: as `data_identity`, and of an address or the Hub what
    the server says of each file, and whether it says something of all.
    """
    if (identity := data_identity(source, data_root)) is not None:
        return identity
    task, arguments = source.name, _without_own_keys(source.dataset)
    arguments.pop("splits", None)
    if arguments["path"] in FORMATS and "data_files" in arguments:
        builder = {"tsv": "csv", "jsonl": "json"}.get(arguments["path"], arguments["path"])
        files = files_by_split(task, arguments, data_root)
        files = {own: find_files(task, own, names, data_root, folders=False) for own, names in files.items()}
        arguments = {"path": builder, "data_files": files}
    shown = {key: value for key, value in arguments.items() if key != "storage_options"}
    builder = attempt(task, shown, partial(load_dataset_builder, **arguments))
    found = [
        [str(split), list(map(str, own)), own.origin_metadata] for split, own in builder.config.data_files.items()
    ]
    is_known = all(metadata for *_, own in found for metadata in own)
    return [builder.hash, found, is_known]


def load_parts(
    sources: list[TaskSource], data_root: Path, count: Callable[[Stream], Part] | None = None
) -> dict[str, list[Part]]:
    """
    The parts of each split of the data set that these tasks read, with the rows that `where` keeps.

    Args:
        sources: the tasks.
        data_root: what relative paths start from.
        count: reads a stream once; without it, streamed training rows are left out.

    Raises:
        ValueError: something is wrong with the recipe's `dataset` or `where`, or a file cannot be read.
    """
    source = sources[0]
    check_source(source)
    task, dataset = source.name, source.dataset
    is_left_out = source.is_streamed and count is None
    loaded = _load(sources, data_root, [split for split in SPLIT_NAMES if split != "train" or not is_left_out])
    if not loaded and not is_left_out:
        raise ValueError(
            f"Task {task!r}: {dataset} has none of the splits {list(SPLIT_NAMES)}. Name its own under splits."
        )
    parts = {split: [own if isinstance(own, Part) else count(own) for own in found] for split, found in loaded.items()}
    if "explode" in dataset:
        _explode(task, dataset["explode"], list(chain.from_iterable(parts.values())))
    check_text_columns(source, list(chain.from_iterable(parts.values())))
    if source.where is not None:
        _keep_where(sources, parts)
    else:
        _announce_reviews(source, list(chain.from_iterable(parts.values())))
    return parts


__all__ = ["REVIEWS", "load_parts", "open_streams", "stream_identity"]
