"""The label column of one task in all files and splits: its names in id order, and one label for each row.

`read_labels` opens the cells (cells.py), finds the label list (from the recipe, a ClassLabel feature, or the train
split), says what looks wrong about it (names.py), and reads the cells against it (reading.py).
"""

import logging
import math
from collections import Counter
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from ..files.parts import Part, class_names
from ..sources.task_source import TaskSource
from ..text.problems import CellError, Problems, brief, shorten
from ..text.spelling import clean, is_empty, number, show_names, spell, whole_number
from .cells import open_cell
from .names import SEPARATORS, announce_doubtful_names, announce_joined, check_joined
from .reading import (
    Coded,
    Marks,
    check_names,
    class_reader,
    flags_reader,
    multi_label_reader,
    read_cells,
    score_reader,
    sort_names,
    vector,
)
from .rules import ReadingRules, reading_rules

logger = logging.getLogger(__name__)

Labels = dict[str, list[pa.Array]]  # by split, of each part, one label for each row, null for none


def _names_of_ids(source: TaskSource, rules: ReadingRules, part: Part, own: list[str]) -> list[str]:
    """
    What the ids of a ClassLabel stand for: its own names, or those of the recipe, which may rename them.

    Raises:
        ValueError: the recipe's names are others, and their order may not be that of the ids.
    """
    given = list(map(spell, source.labels or []))
    if not given or set(map(clean, own)) & {*given, *rules.label_map, *rules.missing_labels}:
        return own
    folded, written = {name.casefold(): name for name in given}, [clean(name).casefold() for name in own]
    if folded.keys() >= set(written):
        return [folded[name] for name in written]
    where, remedy = f"{part.where}: the label ids of task {source.name!r} stand for", f"tasks.{source.name}.label_map"

    def alike(one: str, other: str) -> bool:
        return one.startswith(other) or other.startswith(one)

    in_order = len(own) == len(given) and all(
        alike(name, list(folded)[place]) or not any(alike(name, other) for other in folded)
        for place, name in enumerate(written)
    )
    if not in_order or folded.keys() & set(written):
        raise ValueError(
            f"{where} {show_names(own)}, and tasks.{source.name}.labels are {show_names(given)}: which is which "
            f"cannot be told. Say it with {remedy}: {{{own[0]}: ..., ...}}, or write the names as the data has them."
        )
    renamed = ", ".join(f"{brief(name)} is {brief(new)}" for name, new in zip(own[:20], given, strict=False))
    logger.info(f"{where} other names than tasks.{source.name}.labels, which are taken in their order: {renamed}")
    return given


def _whole_numbers(source: TaskSource, part: Part) -> tuple[dict[str, str], bool]:
    """
    The cells of a CSV column of whole numbers with `.0`, each without it, and whether some cells are empty.

    pandas adds `.0` to a column of whole numbers with empty cells. A column with other cells gives nothing.
    """
    if not part.all_text:
        return {}, False
    cells = part.column(source.name, "label", source.columns["label"])
    kept = set(cells if part.kept is None else (cell for cell, counts in zip(cells, part.kept, strict=True) if counts))
    filled = {cell for cell in kept if not is_empty(cell)}
    plain = {cell: whole_number(cell.strip()) for cell in filled if ".0" in cell}
    written = {cell: found for cell, found in plain.items() if found is not None}
    return (written, len(filled) < len(kept)) if written and len(written) == len(filled) else ({}, False)


def _open_part(
    source: TaskSource, rules: ReadingRules, part: Part, problems: Problems, whole_numbers: dict[str, str]
) -> Coded:
    """What the cells of a part hold, as `Marks`; some of them are read as the whole numbers that they are."""
    column, given = source.columns["label"], source.labels or []
    cells: Any = part.column(source.name, "label", column)
    if own := part.class_names(column):
        names = _names_of_ids(source, rules, part, own)
        cells = (class_names(cell, names) for cell in cells)
    elif whole_numbers:
        cells = (whole_numbers.get(cell, cell) for cell in cells)
    known = frozenset(map(clean, map(str, given)))
    return Coded.of(read_cells(part.where, cells, partial(open_cell, rules, known=known), problems), len(part.rows))


def _check_fractions(
    source: TaskSource, counts: Counter[str], train: list[Coded], parts: list[Part], problems: Problems
) -> None:
    """Note every row with a fraction where all names are numbers: a score column for a classification task."""
    values = {name: number(name) for name in counts}
    if not all(value is not None and math.isfinite(value) for value in values.values()):
        return
    task, fractions = source.name, {name for name, value in values.items() if not value.is_integer()}
    for part, found in zip(parts, train, strict=True) if fractions else ():
        cells = part.column(task, "label", source.columns["label"])
        for row in found.rows_of({marks for marks in found.values if not fractions.isdisjoint(marks.on)}):
            problems.add(
                part.where,
                row,
                CellError(
                    f"found {brief(cells[row])}: a score column for a classification task.",
                    f"Write tasks.{task}.problem_type: regression, or list the classes under tasks.{task}.labels.",
                ),
            )


def _check_no_vectors(task: str, rows: Counter[Marks]) -> None:
    """Refuse lists of zeros and ones of one length where no label list says what they stand for."""
    lengths = {len(marks.on) for marks in rows}
    length = max(lengths, default=0)
    if len(lengths) == 1 and length > 1 and all(vector(marks.on, length) is not None for marks in rows):
        example = list(next(iter(rows)).on)
        raise ValueError(
            f"Task {task!r}: the label cells, such as {example}, can be read in two ways: as rows of zeros and ones "
            f"for {length} labels whose names are not known, or as labels called 0 and 1. List the {length} labels "
            f"under tasks.{task}.labels, or say what 0 and 1 mean: tasks.{task}.label_map: {{0: ..., 1: ...}}."
        )


def _infer_names(
    source: TaskSource,
    rules: ReadingRules,
    train: list[Coded],
    parts: list[Part],
    problems: Problems,
) -> list[str]:
    """Label names in id order: those that the train split holds."""
    task = source.name
    rows: Counter[Marks] = sum((found.counts() for found in train), Counter())
    counts: Counter[str] = Counter()
    for marks, count in rows.items():
        for name in (*marks.on, *marks.off):
            if (target := rules.class_of(name)) is not None:
                counts[target] += count if name in marks.on else 0
    if rules.kind.is_multi_label and not rules.label_map:
        _check_no_vectors(task, rows)
    _check_fractions(source, counts, train, parts, problems)
    if rules.kind.is_multi_label:
        check_joined(task, rows, rules.label_separator)
    else:
        remedy = f"write tasks.{task}.problem_type: multi_label_classification"
        announce_joined(task, rows, (*SEPARATORS, "|"), remedy)
    names = sort_names(counts)
    if not problems.shown:  # else the rows are at fault
        check_names(task, names, rules.kind.least_labels)
    shown = ", ".join(map(shorten, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    logger.info(f"{task}: {len(names)} labels, from the train split: {shown}")
    announce_doubtful_names(task, counts)
    return names


def _vectors(marks: set[Marks], rules: ReadingRules, names: list[str]) -> bool | None:
    """Whether the cells of a column are 0/1 lists; None where some could be those or ids, and others are not."""
    fits = {
        cell: not cell.off
        and vector(cell.on, len(names)) is not None
        and all(rules.class_of(name) == name for name in cell.on)
        for cell in marks
    }
    if not any(fits.values()):
        return False
    return True if all(fits.values()) else None


def _announce_unused(rules: ReadingRules, seen: set[str]) -> None:
    """Tell of names in `label_map` and `missing_labels` that no cell of any split holds."""
    for key, names in (("label_map", rules.label_map), ("missing_labels", rules.missing_labels)):
        if unused := sorted(name for name in names if name not in seen):
            logger.info(f"{rules.task}: no cell holds {show_names(unused)} of tasks.{rules.task}.{key}")


def _read_classes(source: TaskSource, parts: dict[str, list[Part]], problems: Problems) -> tuple[list[str], Labels]:
    """Names and labels of a classification task with one label column."""
    rules, task = reading_rules(source), source.name
    numbers = {split: [_whole_numbers(source, part) for part in found] for split, found in parts.items()}
    by_pandas = any(beside_empty for own in numbers.values() for _, beside_empty in own)  # then so in every file
    opened = {
        split: [
            _open_part(source, rules, part, problems, own if by_pandas else {})
            for part, (own, _) in zip(found, numbers[split], strict=True)
        ]
        for split, found in parts.items()
    }
    distinct = {marks for split in opened.values() for part in split for marks in part.values}
    seen = {name for marks in distinct for name in (*marks.on, *marks.off)}
    _announce_unused(rules, seen)
    given = source.labels
    features = (part.class_names(source.columns["label"]) for part in chain.from_iterable(parts.values()))
    if not given and (own := next(filter(None, features), None)):
        given = list(dict.fromkeys(name for name in map(rules.class_of, map(clean, own)) if name is not None))
    if given:
        names = check_names(task, given, rules.kind.least_labels)
    elif "train" in parts:
        names = _infer_names(source, rules, opened["train"], parts["train"], problems)
    else:
        raise ValueError(f"Task {task!r}: without a train split the labels must stand under tasks.{task}.labels.")
    if rules.kind.is_multi_label:
        vectors = _vectors(distinct, rules, names) if given else False
        if vectors and (number_names := {"0", "1"} & set(names)):
            raise ValueError(
                f"Task {task!r}: the label cells can be read in two ways: as rows of zeros and ones, one for each of "
                f"the labels {show_names(names)}, or as labels called {sorted(number_names)}. Give the labels other "
                f"names under tasks.{task}.labels, or say what 0 and 1 mean under tasks.{task}.label_map."
            )
        read = multi_label_reader(task, names, rules.class_of, vectors)
    else:
        read = class_reader(task, names, rules.class_of)
    kind = pa.list_(pa.float32()) if rules.kind.is_multi_label else pa.int64()
    labels = {
        split: [
            cells.read(part.where, read, problems).array(kind) for part, cells in zip(parts[split], found, strict=True)
        ]
        for split, found in opened.items()
    }
    return names, labels


def _in_order(labels: Labels, names: list[str], order: list[str]) -> Labels:
    """Labels of the classes `names` as those of `order`, which has each of them."""
    places = [order.index(name) for name in names]

    def placed(label: Any) -> Any:
        if not isinstance(label, list):
            return places[label]
        flags = [0.0] * len(order)
        for place, flag in zip(places, label, strict=True):
            flags[place] = flag
        return flags

    def moved(array: pa.DictionaryArray) -> pa.DictionaryArray:
        values = pa.array(map(placed, array.dictionary.to_pylist()), array.type.value_type)
        return pa.DictionaryArray.from_arrays(array.indices, values)

    return {split: [moved(array) for array in arrays] for split, arrays in labels.items()}


def _read_labels(
    source: TaskSource, parts: dict[str, list[Part]], problems: Problems
) -> tuple[list[str] | None, Labels]:
    rules, task, column = reading_rules(source), source.name, source.columns["label"]
    names = check_names(task, source.labels or column, 1) if isinstance(column, list) else None
    if names is not None and len(names) != len(column):
        raise ValueError(
            f"Task {task!r}: {len(names)} labels {names} for {len(column)} columns {column}. Give one label for each "
            f"column under tasks.{task}.labels, or leave the labels out."
        )
    if names is not None:
        by_name = dict(zip(check_names(task, column, 1), column, strict=True))
        column = [by_name[name] for name in names] if by_name.keys() == set(names) else column
    if names is None and not source.kind.has_scores:
        return _read_classes(source, parts, problems)

    def read_part(part: Part) -> pa.Array:
        if names is None:
            read = score_reader(task, rules.missing_labels, part.score_cell, part.all_text)
            found = read_cells(part.where, part.column(task, "label", column), read, problems)
            scores = np.fromiter((math.nan if score is None else score for score in found), float, len(part.rows))
            return pa.array(scores, mask=np.isnan(scores))
        cells = zip(*(part.column(task, "label", name) for name in column), strict=True)
        found = read_cells(part.where, cells, flags_reader(task, column, rules.missing_labels), problems)
        flags = (None if row is None else tuple(row) for row in found)
        return Coded.of(flags, len(part.rows)).array(pa.list_(pa.float32()))

    return names, {split: [read_part(part) for part in found] for split, found in parts.items()}


def read_labels(
    source: TaskSource, parts: dict[str, list[Part]], problems: Problems
) -> tuple[list[str] | None, Labels]:
    """
    The label names of a task in id order (None for scores), and of every row its label: class id, 0/1 list or score.

    None stands for a row that is not labelled, and for one that is noted in `problems`. Several 0/1 columns that are
    called like the labels are read by name.

    Raises:
        ValueError: the label list is wrong, or the cells can be read in two ways.
    """
    names, labels = _read_labels(source, parts, problems)
    if source.label_order is None or names is None:
        return names, labels
    return source.label_order, _in_order(labels, names, source.label_order)


__all__ = ["read_labels"]
