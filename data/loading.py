"""From the tasks of a recipe to checked data sets in canonical columns.

`load_tasks` groups the tasks that read the same sentences of the same data (a sentence with labels for two tasks is
one row), loads each group (sources.py), turns label cells into ids, 0/1 lists and scores (labels/columns.py), settles
texts with several labels (labels/contradictions.py), leaves out rows that no task has a label for, and sets
validation and test rows aside where the recipe asks for them (splitting.py). What a person should know is logged;
what they must mend is an error that names task, file and row.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from ..checks_multitask import suggest
from ..problem_types_multitask import PROBLEM_TYPES, ProblemType
from .labels.columns import read_labels
from .labels.contradictions import settle_contradictions
from .labels.reading import is_empty, number
from .labels.rules import reading_rules
from .problems import CellError, Problems, brief, with_short_values
from .row_hashes import RowHashes
from .sources import SPLIT_NAMES, Part, TaskSource, check_source, load_parts
from .splitting import check_splits, set_aside

logger = logging.getLogger(__name__)

SPLIT_SETTINGS = ("validation_split", "test_split", "group")


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
    kinds: dict[str, ProblemType] = field(default_factory=dict)
    augmentations: dict[str, dict[str, Any]] = field(default_factory=dict)
    earlier: RowHashes | None = None


def _label_feature(kind: ProblemType) -> Any:
    """The type of a task's label column."""
    if kind.is_multi_label:
        return List(Value("float32"))
    return Value("int64" if kind.has_labels else "float64")


def sentence_columns(source: TaskSource) -> list[tuple[str, str | list[str]]]:
    """The (key, column) pairs that make up a row's sentences, in order; checks the whole `columns` block.

    A list of columns is one sentence, joined (`Part.column`); a list under `negative` is one sentence each.
    """
    task, columns = source.name, source.columns
    if source.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"Task {task!r}: unknown problem_type {brief(source.problem_type)}."
            f"{suggest(source.problem_type, PROBLEM_TYPES)} Known: {sorted(PROBLEM_TYPES)}."
        )
    forms = [[*form, *(["label"] if source.kind.has_label_column else [])] for form in source.kind.columns]
    if set(columns) not in [set(form) for form in forms]:
        raise ValueError(
            f"Task {task!r} ({source.problem_type}): columns should name {' or '.join(map(str, forms))}. "
            f"Found {sorted(columns)}. Correct tasks.{task}.columns."
        )
    pairs = []
    for key, value in columns.items():
        many = source.kind.is_multi_label if key == "label" else True
        names = value if many and isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"tasks.{task}.columns.{key} should be a column's name. Found {brief(value)}.")
        if key == "negative":
            pairs += [(key, name) for name in names]
        elif key != "label":
            pairs.append((key, value))
    order = ["sentence", "sentence1", "sentence2", "anchor", "positive", "negative"]
    return sorted(pairs, key=lambda pair: order.index(pair[0]))


def _read_sentences(
    source: TaskSource, part: Part, keep: list[int], drop_empty: bool, problems: Problems
) -> tuple[list[int], list[list[str]]]:
    """Of the rows to keep, those with text and their sentences; anything else than text is noted as a problem.

    With `drop_empty`, a row in which a text is empty is left out.
    """
    task, columns = source.name, []
    bad: set[int] = set()
    for key, name in sentence_columns(source):
        cells = part.column(task, key, name)
        filled = [row for row in keep if not is_empty(cells[row])]
        if part.all_text and filled and all(number(cells[row]) is not None for row in filled):
            raise ValueError(
                f"{part.where}, row {filled[0] + 1}: column {brief(name)} of task {task!r} holds only numbers, like "
                f"{brief(cells[filled[0]])}, where sentences should be. Name the text column in "
                f"tasks.{task}.columns.{key}."
            )
        for row in keep:
            empty = is_empty(cells[row])
            if isinstance(cells[row], str) and not empty:
                continue
            bad.add(row)
            if not (empty and drop_empty):
                found = f"column {brief(name)} of task {task!r} holds {brief(cells[row])} where a sentence should be"
                remedy = "Correct or remove the row"
                if empty:
                    remedy += f", or leave all rows without text out with tasks.{task}.empty_text: drop"
                problems.add(part.where, row, CellError(f"{found} (text, not empty).", f"{remedy}."))
        columns.append(cells)
    kept = [row for row in keep if row not in bad]
    return kept, [[cells[row] for cells in columns] for row in kept]


def _contrastive_labels(source: TaskSource, part: Part) -> list[Any]:
    """1.0 for every row that holds any text."""
    columns = [part.column(source.name, key, name) for key, name in sentence_columns(source)]
    return [None if all(is_empty(cell) for cell in row) else 1.0 for row in zip(*columns, strict=True)]


def _read_rows(
    sources: list[TaskSource],
    labels: dict[str, list[list[Any]]],
    parts: list[Part],
    problems: Problems,
    group: str | None,
) -> tuple[dict[str, list[Any]], int]:
    """The canonical columns of one split, of rows with a label for some task, and how many had an empty text.

    `labels` holds by task, of each part, one label for each row. `group` names a column that is kept as `group`.
    """
    columns: dict[str, list[Any]] = {"sentences": []} | {f"label_{source.name}": [] for source in sources}
    drop_empty, no_text = reading_rules(sources[0]).empty_text == "drop", 0
    for place, part in enumerate(parts):
        found = [labels[source.name][place] for source in sources]
        keep = [row for row, given in enumerate(zip(*found, strict=True)) if any(label is not None for label in given)]
        kept, sentences = _read_sentences(sources[0], part, keep, drop_empty, problems)
        columns["sentences"] += sentences
        for source, given in zip(sources, found, strict=True):
            columns[f"label_{source.name}"] += [given[row] for row in kept]
        if group is not None:
            cells = part.group_cells(sources[0].name, group)
            columns.setdefault("group", []).extend(cells[row] for row in kept)
        no_text += len(keep) - len(kept)
    return columns, no_text


def _finish_split(
    sources: list[TaskSource],
    columns: dict[str, list[Any]],
    no_text: int,
    split: str,
    parts: list[Part],
) -> dict[str, list[Any]]:
    """The columns of a split after contradictions are settled, without rows that no task has a label for."""
    tasks, total = ", ".join(source.name for source in sources), sum(len(part.rows) - part.left_out for part in parts)
    if no_text:
        logger.info(f"{tasks}: {no_text} of {total} {split} rows have an empty text and are left out")
    unlabelled = total - no_text - len(columns["sentences"])
    contradicting = set()
    for source in sources:
        if source.kind.has_label_column:
            labels = columns[f"label_{source.name}"]
            settled = settle_contradictions(reading_rules(source), split, columns["sentences"], labels)
            columns[f"label_{source.name}"] = settled
            if settled is not labels:
                contradicting.add(source.name)
    given = zip(*(columns[f"label_{source.name}"] for source in sources), strict=True)
    keep = [row for row, found in enumerate(given) if any(label is not None for label in found)]
    if len(keep) < len(columns["sentences"]):
        columns = {name: [values[row] for row in keep] for name, values in columns.items()}
    if unlabelled:
        logger.info(f"{tasks}: {unlabelled} of {total} {split} rows carry no label and are left out")
    for source in sources:
        if all(label is None for label in columns[f"label_{source.name}"]):
            remedy = f"Label some, or choose other splits under tasks.{source.name}.dataset."
            if source.name in contradicting:
                rule = f"tasks.{source.name}.contradictions: {source.contradictions}"
                remedy = f"Every text has different labels, and {rule} leaves none. Correct them, or change the rule."
            raise ValueError(
                f"Task {source.name!r}: the {split} split ({', '.join(part.where for part in parts)}) has no labelled "
                f"row (rows: {total}). {remedy}"
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
    """Load one group of tasks; label names and score ranges go into `loaded`.

    `known` says of some rows on which side they are, and learns where the rows are that are set aside here.
    """
    parts = load_parts(sources, data_root)
    check_splits(sources, parts, require_train)
    labelled_set = label_parts(sources, parts, seed, loaded, known)
    if "test" not in labelled_set.splits:
        logger.info(f"{', '.join(labelled_set.tasks)}: no test split")
    return labelled_set


def label_parts(
    sources: list[TaskSource],
    parts: dict[str, list[Part]],
    seed: int,
    loaded: LoadedTasks,
    known: dict[int, str],
) -> LabelledSet:
    """From the parts of one group of tasks to a set in canonical columns; arguments as of `_load_set`."""
    problems, labels = Problems(), {}
    for source in sources:
        loaded.kinds[source.name] = source.kind
        if not source.kind.has_label_column:
            labels[source.name] = {
                split: [_contrastive_labels(source, part) for part in found] for split, found in parts.items()
            }
            continue
        names, labels[source.name] = read_labels(source, parts, problems)
        if names is not None:
            loaded.labels[source.name] = names
    read = {
        split: _read_rows(
            sources,
            {task: splits[split] for task, splits in labels.items()},
            found,
            problems,
            group=sources[0].group if split == "train" else None,
        )
        for split, found in parts.items()
    }
    problems.raise_all()
    columns = {split: _finish_split(sources, *read[split], split, found) for split, found in parts.items()}
    if "train" in columns:
        set_aside(sources, columns, seed, known)

    for source in sources if "train" in columns else []:
        labels = [label for label in columns["train"][f"label_{source.name}"] if label is not None]
        if source.kind.has_scores:
            loaded.score_ranges[source.name] = (min(labels), max(labels))
        elif names := loaded.labels.get(source.name):
            seen = set(np.flatnonzero(np.sum(labels, axis=0)).tolist() if source.kind.is_multi_label else labels)
            if unseen := [name for index, name in enumerate(names) if index not in seen]:
                logger.info(f"{source.name}: no training row has the label {', '.join(unseen)}")
    features = Features(
        {"sentences": List(Value("string"))}
        | {f"label_{source.name}": _label_feature(source.kind) for source in sources}
    )
    splits = {split: Dataset.from_dict(columns[split], features) for split in SPLIT_NAMES if split in columns}
    return LabelledSet([source.name for source in sources], splits)


def group_sources(sources: list[TaskSource]) -> list[list[TaskSource]]:
    """The tasks that read the same sentences of the same rows, together: each group becomes one set."""
    groups: dict[str, list[TaskSource]] = {}
    for source in sources:
        check_source(source)
        sentences = [column for _, column in sentence_columns(source)]
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
        rules = [reading_rules(one).empty_text for one in (*group[:1], source)]
        if rules[0] != rules[-1]:
            raise ValueError(
                f"Tasks {group[0].name!r} and {source.name!r} read the same sentences but differ in empty_text "
                f"({rules[0]} and {rules[-1]}). Give both the same."
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
    try:
        for group in group_sources(sources):
            loaded.sets.append(_load_set(group, data_root, seed, require_train, loaded, known))
    except ValueError as error:
        raise ValueError(with_short_values(str(error), list(map(vars, sources)))) from error
    return loaded


__all__ = ["LabelledSet", "LoadedTasks", "TaskSource", "group_sources", "label_parts", "load_tasks"]
