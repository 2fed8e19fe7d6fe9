"""From the parts of a split, as they were loaded, to its rows in canonical columns, some rows at a time.

    label_parts   labels read, texts checked, contradictions settled, validation and test rows set aside

Rows are written to an Arrow file and read through a memory map, so that no split is ever held as Python lists: what
stands in memory of a row is the place of its label in a list of different ones, and a hash of its text.
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import compress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value

from ..cache.arrays import BATCH_ROWS, write_array
from ..cache.sets import open_split
from ..files.parts import SPLIT_NAMES, Cells, Part
from ..files.streams import CountedPart
from ..labels.columns import read_labels
from ..labels.contradictions import same_texts, settle_contradictions
from ..labels.rules import reading_rules
from ..rows.canonical import (
    LABEL_PREFIX,
    RowsWriter,
    canonical_features,
    is_labelled,
    label_counts,
    labels_of,
    rewrite,
)
from ..rows.sets import LoadedTasks
from ..rows.sides import SIDES, Sides
from ..sources.task_source import TaskSource, sentence_columns
from ..splits.splitting import group_value, set_aside
from ..text.problems import CellError, Problems, brief
from ..text.sameness import ordered_hash, row_hash, row_hashes
from ..text.spelling import is_empty, number

logger = logging.getLogger(__name__)

TEXTS = pa.list_(pa.string())


def _rows_with_text(
    source: TaskSource, part: Part, keep: np.ndarray, drop_empty: bool, problems: Problems
) -> np.ndarray:
    """`(rows,)`: which of the rows to keep hold text; anything else than text is noted as a problem.

    With `drop_empty`, a row in which a text is empty is left out.
    """
    task, kept = source.name, keep.copy()
    for key, name in sentence_columns(source):
        cells, first = part.column(task, key, name), None
        if part.all_text:
            filled = ((row, cell) for row, cell in enumerate(cells) if keep[row] and not is_empty(cell))
            first = next(filled, None)
        if first is not None and number(first[1]) is not None and all(number(cell) is not None for _, cell in filled):
            raise ValueError(
                f"{part.where}, row {first[0] + 1}: column {brief(name)} of task {task!r} holds only numbers, like "
                f"{brief(first[1])}, where sentences should be. Name the text column in "
                f"tasks.{task}.columns.{key}."
            )
        for row, cell in enumerate(cells):
            if not keep[row]:
                continue
            empty = is_empty(cell)
            if isinstance(cell, str) and not empty:
                continue
            kept[row] = False
            if not (empty and drop_empty):
                found = f"column {brief(name)} of task {task!r} holds {brief(cell)} where a sentence should be"
                remedy = "Correct or remove the row"
                if empty:
                    remedy += f", or leave all rows without text out with tasks.{task}.empty_text: drop"
                problems.add(part.where, row, CellError(f"{found} (text, not empty).", f"{remedy}."))
    return kept


def _contrastive_labels(source: TaskSource, part: Part) -> pa.Array:
    """1.0 for every row that holds any text."""
    columns = [part.column(source.name, key, name) for key, name in sentence_columns(source)]
    rows = zip(*columns, strict=True)
    is_empty_row = np.fromiter((all(is_empty(cell) for cell in row) for row in rows), bool, len(part.rows))
    return pa.array(np.ones(len(part.rows)), mask=is_empty_row)


def _write_part(
    source: TaskSource,
    part: Part,
    kept: np.ndarray,
    labels: Mapping[str, pa.Array],
    group: str | None,
    writer: RowsWriter,
) -> None:
    """Write the rows of a part that are kept, in canonical columns; `group` names one that goes along as text."""
    columns = [part.column(source.name, key, name) for key, name in sentence_columns(source)]
    groups = None if group is None else part.group_cells(source.name, group)
    for start in range(0, len(kept), BATCH_ROWS):
        stop = min(start + BATCH_ROWS, len(kept))
        mask = kept[start:stop]
        if isinstance(part, CountedPart):
            counted = part.rows.data.slice(start, stop - start)
            found = {name: counted[own].filter(pa.array(mask)) for name, own in part.numbers.items()}
        else:
            sentences = zip(*(cells[start:stop] for cells in columns), strict=True)
            texts = [row for row, keep in zip(sentences, mask.tolist(), strict=True) if keep]
            found = {"sentences": pa.array(texts, TEXTS)}
        found |= {name: cells[start:stop].filter(pa.array(mask)) for name, cells in labels.items()}
        if groups is not None:
            found["group"] = pa.array(map(group_value, compress(groups[start:stop], mask)), pa.string())
        writer.write(found)


def _read_rows(
    sources: list[TaskSource],
    labels: dict[str, list[pa.Array]],
    parts: list[Part],
    problems: Problems,
    group: str | None,
    path: Path | None,
) -> tuple[Dataset, int]:
    """The rows of one split that have a label for some task, in canonical columns, and how many had an empty text.

    `labels` holds by task, of each part, one label for each row. `group` names a column that is kept as `group`.
    """
    numbers = next((part.numbers for part in parts if isinstance(part, CountedPart)), ())
    features = canonical_features({source.name: source.kind for source in sources}, numbers)
    writer = RowsWriter(path, features if group is None else Features({**features, "group": Value("string")}))
    drop_empty, no_text = reading_rules(sources[0]).empty_text == "drop", 0
    for place, part in enumerate(parts):
        found = {LABEL_PREFIX + source.name: labels[source.name][place] for source in sources}
        keep = np.zeros(len(part.rows), bool)
        for given in found.values():
            keep |= given.is_valid().to_numpy(zero_copy_only=False)
        kept = _rows_with_text(sources[0], part, keep, drop_empty, problems)
        no_text += int(keep.sum() - kept.sum())
        if not problems.shown:
            _write_part(sources[0], part, kept, found, group, writer)
    return writer.close(), no_text


def _settle_split(
    sources: list[TaskSource], rows: Dataset, no_text: int, split: str, parts: list[Part]
) -> tuple[dict[str, dict[int, Any]], np.ndarray | None]:
    """By column the labels that contradictions change, and which rows keep a label for some task; None for all."""
    tasks, total = ", ".join(source.name for source in sources), sum(len(part.rows) - part.left_out for part in parts)
    if no_text:
        logger.info(f"{tasks}: {no_text} of {total} {split} rows have an empty text and are left out")
    unlabelled = total - no_text - len(rows)
    changed, same = {}, {}
    labelled = np.zeros(len(rows), bool)
    for source in sources:
        column = LABEL_PREFIX + source.name
        own = is_labelled(rows, source.name)
        if source.kind.has_label_column:
            in_order = not source.kind.has_score_range and len(sentence_columns(source)) > 1
            rule = ordered_hash if in_order else row_hash
            if rule not in same:
                same[rule] = same_texts(row_hashes(rows, rule))
            labels = rows.data.column(column)
            settled = settle_contradictions(reading_rules(source), split, same[rule], labels)
            if settled:
                changed[column] = settled
                own = own.copy()
                own[[row for row, label in settled.items() if label is None]] = False
        if not own.any():
            remedy = f"Label some, or choose other splits under tasks.{source.name}.dataset."
            if column in changed:
                rule = f"tasks.{source.name}.contradictions: {source.contradictions}"
                remedy = f"Every text has different labels, and {rule} leaves none. Correct them, or change the rule."
            raise ValueError(
                f"Task {source.name!r}: the {split} split ({', '.join(part.where for part in parts)}) has no labelled "
                f"row (rows: {total}). {remedy}"
            )
        labelled |= own
    if unlabelled:
        logger.info(f"{tasks}: {unlabelled} of {total} {split} rows carry no label and are left out")
    return changed, None if labelled.all() else labelled


def _rewritten(
    rows: Dataset,
    path: Path | None,
    features: Features,
    chosen: np.ndarray | None,
    changed: Mapping[str, Mapping[int, Any]] = MappingProxyType({}),
) -> Dataset:
    """What `rewrite` makes of rows in a file, with the hashes that are known of them."""
    new = rewrite(rows, RowsWriter(path, features), chosen, changed)
    if path is not None:
        new = open_split(path)
    if path is not None and row_hash.__name__ not in new.column_names:
        write_array(new, row_hash.__name__, [row_hashes(rows) if chosen is None else row_hashes(rows)[chosen]])
    return new


def _set_aside(
    sources: list[TaskSource],
    train: Dataset,
    folder: Path | None,
    features: Features,
    seed: int,
    known: Sides,
) -> dict[str, Dataset]:
    """The training rows, and those that are set aside from them, each as the final rows of its split."""
    groups = None
    if sources[0].group is not None:
        groups = Cells(len(train), lambda start, stop: train.data.slice(start, stop - start)["group"].to_pylist())
    sides = set_aside(sources, train, groups, seed, known)
    if sides is None:
        return {"train": _rewritten(train, folder and folder / "train.arrow", features, None)}
    return {
        split: _rewritten(train, folder and folder / f"{split}.arrow", features, sides == side)
        for side, split in enumerate(SIDES)
        if split == "train" or getattr(sources[0], f"{split}_split") is not None
    }


def _read_train(sources: list[TaskSource], train: Dataset, loaded: LoadedTasks) -> None:
    """Note the smallest and largest score of the training rows, and tell of labels that none of them has."""
    for source in sources:
        labels = labels_of(train, source.name)
        if source.kind.has_scores:
            found = pc.min_max(labels).as_py()
            loaded.score_ranges[source.name] = (found["min"], found["max"])
        elif names := loaded.labels.get(source.name):
            counts = label_counts(labels, len(names))
            if unseen := [name for name, count in zip(names, counts, strict=True) if not count]:
                logger.info(f"{source.name}: no training row has the label {', '.join(unseen)}")


def label_parts(
    sources: list[TaskSource],
    parts: dict[str, list[Part]],
    seed: int,
    loaded: LoadedTasks,
    known: Sides,
    folder: Path | None,
) -> dict[str, Dataset]:
    """
    From the parts of one group of tasks to its splits in canonical columns.

    Args:
        sources: the tasks.
        parts: by split, what was loaded.
        seed: decides which rows are set aside.
        loaded: takes label names, kinds and score ranges.
        known: on which side some rows are; it learns where the rows are that are set aside here.
        folder: where the splits are written, as `<split>.arrow`; `None` keeps them in memory.

    Raises:
        ValueError: something is wrong with the label list or the rows.
    """
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
    with nullcontext() if folder is None else TemporaryDirectory(dir=folder) as scratch:

        def path(split: str, stage: str) -> Path | None:
            return None if scratch is None else Path(scratch) / f"{split}-{stage}.arrow"

        read = {
            split: _read_rows(
                sources,
                {task: splits.pop(split) for task, splits in labels.items()},
                found,
                problems,
                group=sources[0].group if split == "train" else None,
                path=path(split, "read"),
            )
            for split, found in parts.items()
        }
        problems.raise_all()
        settled = {}
        for split, (rows, no_text) in read.items():
            changed, chosen = _settle_split(sources, rows, no_text, split, parts[split])
            if changed or chosen is not None:
                rows = _rewritten(rows, path(split, "settled"), rows.features, chosen, changed)
            settled[split] = rows
        splits = {}
        if "train" in settled:
            train = settled.pop("train")
            features = Features({name: kind for name, kind in train.features.items() if name != "group"})
            splits = _set_aside(sources, train, folder, features, seed, known)
            _read_train(sources, splits["train"], loaded)
        for split, rows in settled.items():
            splits[split] = _rewritten(rows, folder and folder / f"{split}.arrow", rows.features, None)
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}


__all__ = ["label_parts"]
