"""From the tasks of a recipe to checked data sets in canonical columns.

`load_tasks` groups the tasks that read the same sentences of the same data (a sentence with labels for two tasks is
one row), loads each group (sources.py), turns label cells into ids, 0/1 lists and scores (labels.py), leaves out rows
that no task has a label for, and sets validation and test rows aside where the recipe asks for them (splitting.py).
What a person should know is collected as announcements; what they must mend is an error that names task, file and
row.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from .labels import (
    check_names,
    class_cell,
    class_reader,
    flags_reader,
    infer_names,
    is_empty,
    multi_label_cell,
    multi_label_reader,
    nearest,
    number,
    read_cells,
    score_reader,
)
from .row_hashes import RowHashes
from .sources import SPLIT_NAMES, Part, TaskSource, load_parts
from .splitting import check_splits, set_aside

SENTENCE_COLUMNS = {
    "single_label_classification": [["sentence"], ["sentence1", "sentence2"]],
    "multi_label_classification": [["sentence"], ["sentence1", "sentence2"]],
    "regression": [["sentence"], ["sentence1", "sentence2"]],
    "similarity": [["sentence1", "sentence2"]],
    "contrastive": [["anchor", "positive"], ["anchor", "positive", "negative"]],
}
SPLIT_SETTINGS = ("validation_split", "test_split", "group")
LABEL_FEATURES = {
    "single_label_classification": Value("int64"),
    "multi_label_classification": List(Value("float32")),
    "regression": Value("float64"),
    "similarity": Value("float64"),
    "contrastive": Value("float64"),
}


@dataclass
class LabelledSet:
    """One data set in canonical columns and the tasks that its rows carry labels for.

    Every split has the column `sentences` (a list: one sentence, a pair, or anchor, positive and negatives) and per
    task a column `label_<task>`: class id, list of 0/1 as float32, score, or for contrastive 1.0; null where the row
    is not labelled for that task.
    """

    tasks: list[str]
    splits: dict[str, Dataset]


@dataclass
class LoadedTasks:
    """All data of a recipe: label names in id order, and the smallest and largest score of each train split.

    `augmentations` holds by task what `augment_sets` did to its training rows, `earlier` the rows of the model that is
    gone on from, where they are known.
    """

    sets: list[LabelledSet]
    labels: dict[str, list[str]] = field(default_factory=dict)
    score_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    announcements: list[str] = field(default_factory=list)
    problem_types: dict[str, str] = field(default_factory=dict)
    augmentations: dict[str, dict[str, Any]] = field(default_factory=dict)
    earlier: RowHashes | None = None


def _sentence_columns(source: TaskSource) -> list[tuple[str, str | list[str]]]:
    """The (key, column) pairs that make up a row's sentences, in order; checks the whole `columns` block.

    A list of columns is one sentence, joined (`Part.column`); a list under `negative` is one sentence each.
    """
    task, columns = source.name, source.columns
    if source.problem_type not in SENTENCE_COLUMNS:
        raise ValueError(
            f"Task {task!r}: unknown problem_type {source.problem_type!r}."
            f"{nearest(source.problem_type, SENTENCE_COLUMNS)} Known: {sorted(SENTENCE_COLUMNS)}."
        )
    label = [] if source.problem_type == "contrastive" else ["label"]
    forms = [form + label for form in SENTENCE_COLUMNS[source.problem_type]]
    if set(columns) not in [set(form) for form in forms]:
        raise ValueError(
            f"Task {task!r} ({source.problem_type}): columns should name {' or '.join(map(str, forms))}. "
            f"Found {sorted(columns)}. Correct tasks.{task}.columns."
        )
    pairs = []
    for key, value in columns.items():
        many = source.problem_type == "multi_label_classification" if key == "label" else True
        names = value if many and isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"tasks.{task}.columns.{key} should be a column's name. Found {value!r}.")
        if key == "negative":
            pairs += [(key, name) for name in names]
        elif key != "label":
            pairs.append((key, value))
    order = ["sentence", "sentence1", "sentence2", "anchor", "positive", "negative"]
    return sorted(pairs, key=lambda pair: order.index(pair[0]))


def _label_names(source: TaskSource, parts: dict[str, list[Part]], announcements: list[str]) -> list[str]:
    """Label names in id order: from the recipe, from a ClassLabel feature, or from the train split."""
    task, column = source.name, source.columns["label"]
    multi = source.problem_type == "multi_label_classification"
    least = 1 if multi else 2
    if isinstance(column, list):
        names = check_names(task, source.labels or column, least)
        if len(names) != len(column):
            raise ValueError(
                f"Task {task!r}: {len(names)} labels {names} for {len(column)} columns {column}. Give one label for "
                f"each column under tasks.{task}.labels, or leave the labels out."
            )
        return names
    if source.labels:
        return check_names(task, source.labels, least)
    if names := _feature_names(parts, column):
        return check_names(task, names, least)
    if "train" not in parts:
        raise ValueError(f"Task {task!r}: without a train split the labels must stand under tasks.{task}.labels.")
    cells: set[str | int] = set()
    for part in parts["train"]:
        read = partial(multi_label_cell if multi else class_cell, task)
        found = [cell for cell in read_cells(part.where, part.column(task, "label", column), read) if cell is not None]
        cells.update(chain.from_iterable(found) if multi else found)
    names = check_names(task, infer_names(cells), least)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    announcements.append(f"{task}: {len(names)} labels, from the train split: {shown}")
    return names


def _feature_names(parts: dict[str, list[Part]], column: str) -> list[str] | None:
    """The names of a ClassLabel column, or of a list of them."""
    for part in chain.from_iterable(parts.values()):
        feature = part.rows.features.get(column)
        feature = getattr(feature, "feature", feature)
        if isinstance(feature, ClassLabel):
            return feature.names
    return None


def _read_labels(source: TaskSource, part: Part, names: list[str] | None) -> list[Any]:
    """One label per row of a part, None where the row is not labelled for this task."""
    task, column = source.name, source.columns.get("label")
    if source.problem_type == "contrastive":
        columns = [part.column(task, key, name) for key, name in _sentence_columns(source)]
        return [None if all(is_empty(cell) for cell in row) else 1.0 for row in zip(*columns, strict=True)]
    if isinstance(column, list):
        columns = [part.column(task, "label", name) for name in column]
        return read_cells(part.where, zip(*columns, strict=True), flags_reader(task, column))
    cells = part.column(task, "label", column)
    if names is None:
        read = score_reader(task)
        return read_cells(part.where, cells, lambda cell: read(part.score_cell(cell)))
    if own := _feature_names({"": [part]}, column):
        # The ids count in the feature's own order. Where the recipe uses other names throughout, it renames them.
        own = own if set(own) & set(names) else names
        cells = [_class_names(cell, own) for cell in cells]
    reader = class_reader if source.problem_type == "single_label_classification" else multi_label_reader
    return read_cells(part.where, cells, reader(task, names))


def _class_names(cell: Any, names: list[str]) -> Any:
    """ClassLabel ids as names; -1 is how the Hub writes a hidden label."""
    if isinstance(cell, list):
        return [_class_names(item, names) for item in cell]
    if cell == -1:
        return None
    return names[cell] if isinstance(cell, int) and cell < len(names) else cell


def _read_sentences(source: TaskSource, part: Part, keep: list[int]) -> list[list[str]]:
    """The sentences of the rows to keep; anything but text with something in it is an error."""
    task, columns = source.name, []
    for key, name in _sentence_columns(source):
        cells = part.column(task, key, name)
        if part.all_text and keep and all(number(cells[row]) is not None for row in keep):
            raise ValueError(
                f"{part.where}, row {keep[0] + 1}: column {name!r} of task {task!r} holds only numbers, like "
                f"{cells[keep[0]]!r}, where sentences should be. Name the text column in tasks.{task}.columns.{key}."
            )
        for row in keep:
            if not isinstance(cells[row], str) or is_empty(cells[row]):
                raise ValueError(
                    f"{part.where}, row {row + 1}: column {name!r} of task {task!r} holds {cells[row]!r} where a "
                    "sentence should be (text, not empty). Correct or remove the row."
                )
        columns.append([cells[row] for row in keep])
    return [list(row) for row in zip(*columns, strict=True)]


def _read_split(
    sources: list[TaskSource],
    names: dict[str, list[str]],
    split: str,
    parts: list[Part],
    announcements: list[str],
) -> dict[str, list[Any]]:
    """The canonical columns of one split; rows without any label are left out."""
    columns: dict[str, list[Any]] = {"sentences": []} | {f"label_{source.name}": [] for source in sources}
    left_out = 0
    for part in parts:
        labels = [_read_labels(source, part, names.get(source.name)) for source in sources]
        keep = [
            row for row, found in enumerate(zip(*labels, strict=True)) if any(label is not None for label in found)
        ]
        columns["sentences"] += _read_sentences(sources[0], part, keep)
        for source, found in zip(sources, labels, strict=True):
            columns[f"label_{source.name}"] += [found[row] for row in keep]
        if split == "train" and sources[0].group is not None:
            cells = part.group_cells(sources[0].name, sources[0].group)
            columns.setdefault("group", []).extend(cells[row] for row in keep)
        left_out += len(part.rows) - part.left_out - len(keep)
    total = len(columns["sentences"]) + left_out
    if left_out:
        tasks = ", ".join(source.name for source in sources)
        announcements.append(f"{tasks}: {left_out} of {total} {split} rows carry no label and are left out")
    for source in sources:
        if all(label is None for label in columns[f"label_{source.name}"]):
            raise ValueError(
                f"Task {source.name!r}: the {split} split ({', '.join(part.where for part in parts)}) has no labelled "
                f"row (rows: {total}). Label some, or choose other splits under tasks.{source.name}.dataset."
            )
    return columns


def _load_set(
    sources: list[TaskSource],
    data_root: Path,
    seed: int,
    require_train: bool,
    loaded: LoadedTasks,
    known: dict[int, str],
) -> LabelledSet:
    """Load one group of tasks; label names, score ranges and announcements go into `loaded`.

    `known` says of some rows on which side they are, and learns where the rows are that are set aside here.
    """
    parts = load_parts(sources, data_root, loaded.announcements)
    check_splits(sources, parts, require_train)
    for source in sources:
        loaded.problem_types[source.name] = source.problem_type
        if source.problem_type.endswith("_classification"):
            loaded.labels[source.name] = _label_names(source, parts, loaded.announcements)
    columns = {
        split: _read_split(sources, loaded.labels, split, found, loaded.announcements)
        for split, found in parts.items()
    }
    if "train" in columns:
        set_aside(sources, columns, seed, known, loaded.announcements)
    if "test" not in columns:
        loaded.announcements.append(f"{', '.join(source.name for source in sources)}: no test split")

    for source in sources if "train" in columns else []:
        labels = [label for label in columns["train"][f"label_{source.name}"] if label is not None]
        if source.problem_type in ("regression", "similarity"):
            loaded.score_ranges[source.name] = (min(labels), max(labels))
        elif names := loaded.labels.get(source.name):
            multi = source.problem_type == "multi_label_classification"
            seen = set(np.flatnonzero(np.sum(labels, axis=0)).tolist() if multi else labels)
            if unseen := [name for index, name in enumerate(names) if index not in seen]:
                loaded.announcements.append(f"{source.name}: no training row has the label {', '.join(unseen)}")
    features = Features(
        {"sentences": List(Value("string"))}
        | {f"label_{source.name}": LABEL_FEATURES[source.problem_type] for source in sources}
    )
    splits = {split: Dataset.from_dict(columns[split], features) for split in SPLIT_NAMES if split in columns}
    return LabelledSet([source.name for source in sources], splits)


def group_sources(sources: list[TaskSource]) -> list[list[TaskSource]]:
    """The tasks that read the same sentences of the same rows, together: each group becomes one set."""
    groups: dict[str, list[TaskSource]] = {}
    for source in sources:
        sentences = [column for _, column in _sentence_columns(source)]
        group = groups.setdefault(
            json.dumps([source.dataset, sentences, source.where], sort_keys=True, default=str), []
        )
        for key in SPLIT_SETTINGS if group else ():
            found = [getattr(one, key) for one in (group[0], source)]
            if found[0] != found[1]:
                raise ValueError(
                    f"Tasks {group[0].name!r} and {source.name!r} read the same sentences but differ in {key} "
                    f"({found[0]} and {found[1]}). Give both the same."
                )
        group.append(source)
    return list(groups.values())


def load_tasks(
    sources: list[TaskSource],
    data_root: Path,
    seed: int,
    require_train: bool = True,
    earlier: RowHashes | None = None,
) -> LoadedTasks:
    """Load and check the data of all tasks.

    Relative paths are looked up in `data_root`; `seed` decides which rows `validation_split` and `test_split` set
    aside, but for the rows of an `earlier` model, which stay where that had them.
    `require_train=False` is for evaluation: train and validation splits may then be missing (where there is no train
    split, label names come from the source or a ClassLabel feature, and there are no score ranges).

    Raises ValueError for anything that is wrong with sources, files or rows.
    """
    data_root = Path(data_root).expanduser().absolute()
    loaded = LoadedTasks([], earlier=earlier)
    known = earlier.sides() if earlier else {}
    for group in group_sources(sources):
        loaded.sets.append(_load_set(group, data_root, seed, require_train, loaded, known))
    return loaded


__all__ = ["LabelledSet", "LoadedTasks", "TaskSource", "group_sources", "load_tasks"]
