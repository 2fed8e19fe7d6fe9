"""Further text without labels, which only teachers answer: the recipe's `distillation.unlabeled`."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ...data.cache.arrays import BATCH_ROWS
from ...data.files.parts import Part
from ...data.rows.canonical import RowsWriter, canonical_features
from ...data.sources.loading import load_parts
from ...data.sources.task_source import TaskSource
from ...data.text.problems import brief
from ...data.text.spelling import is_empty
from .answers import HeldOut
from .settings import unlabeled_key

logger = logging.getLogger(__name__)


def load_unlabeled(name: str, settings: dict[str, Any], data_root: Path, held_out: HeldOut) -> Dataset:
    """
    The text of the data set's train split, in the column `sentences`.

    Rows without text, and rows that stand in a validation or test split of any task, are left out and counted.

    Args:
        name: what the mixture calls the text.
        settings: `dataset` and `columns`, and perhaps `where`, as a task has them.
        data_root: what relative paths start from.
        held_out: the rows of all validation and test splits.

    Raises:
        ValueError: something is wrong with the data set, a cell is no text, or no row is left.
    """
    where = unlabeled_key(name)
    columns = dict(sorted(settings["columns"].items()))  # sentence1 before sentence2
    # Any problem type reads sentences and pairs alike; there are no labels that it would have to fit.
    source = TaskSource(name, "regression", settings["dataset"], settings["columns"], where=settings.get("where"))
    if source.is_streamed:
        raise ValueError(f"{where}.dataset.streaming: the teachers' answers are kept by row. Take streaming out.")
    try:
        parts = load_parts([source], data_root)
        if "train" not in parts:
            raise ValueError(f"{where}.dataset has no train split, but {', '.join(parts)}. Name it under splits.")
        found, total = _with_text(name, parts["train"], columns)
    except ValueError as error:
        said = str(error).replace(f"tasks.{name}", where).replace(f"Task {name!r}", where)
        raise ValueError(said) from error
    is_measured = held_out.find(found)
    rows = found.select(np.flatnonzero(~is_measured)) if is_measured.any() else found
    reasons = {"have no text": total - len(found), "stand in a validation or test split": int(is_measured.sum())}
    for reason, count in reasons.items():
        if count:
            logger.info(f"{where}: {count} of {total} rows {reason} and are left out")
    if not len(rows):
        raise ValueError(f"{where}: none of the {total} rows is left. Give other text, or leave the block out.")
    logger.info(f"{where}: {len(rows)} rows, which teachers alone answer")
    return rows


def _with_text(name: str, parts: Sequence[Part], columns: dict[str, str]) -> tuple[Dataset, int]:
    """The rows that have text, and how many there are."""
    writer, number = RowsWriter(None, canonical_features({})), 0
    for part in parts:
        cells = [part.column(name, key, column) for key, column in columns.items()]
        for start in range(0, len(part.rows), BATCH_ROWS):
            rows = []
            for row in zip(*(column[start : start + BATCH_ROWS] for column in cells), strict=True):
                number += 1
                if any(map(is_empty, row)):
                    continue
                if not all(isinstance(cell, str) for cell in row):
                    where, found, names = unlabeled_key(name), brief(row), ", ".join(columns.values())
                    raise ValueError(f"{where}, row {number}: found {found} where text should be. Correct {names}.")
                rows.append(row)
            writer.write({"sentences": pa.array(rows, writer.schema.field("sentences").type)})
    return writer.close(), number


__all__ = ["load_unlabeled"]
