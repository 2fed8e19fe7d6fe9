"""Further text without labels, which only teachers answer: the recipe's `distillation.unlabeled`."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ...data.sources.loading import load_parts
from ...data.sources.task_source import TaskSource
from ...data.text.problems import brief
from ...data.text.spelling import is_empty
from ..mixture.settings import UNLABELED
from .answers import HeldOut

logger = logging.getLogger(__name__)

WHERE = "distillation.unlabeled"


def load_unlabeled(settings: dict[str, Any], data_root: Path, held_out: HeldOut) -> Dataset:
    """
    The text of the data set's train split, in the column `sentences`.

    Rows without text, and rows that stand in a validation or test split of any task, are left out and counted.

    Args:
        settings: `dataset` and `columns`, and perhaps `where`, as a task has them.
        data_root: what relative paths start from.
        held_out: the rows of all validation and test splits.

    Raises:
        ValueError: something is wrong with the data set, a cell is no text, or no row is left.
    """
    columns = [settings["columns"][key] for key in sorted(settings["columns"])]  # sentence1 before sentence2
    # Any problem type reads sentences and pairs alike; there are no labels that it would have to fit.
    source = TaskSource(UNLABELED, "regression", settings["dataset"], settings["columns"], where=settings.get("where"))
    if source.is_streamed:
        raise ValueError(f"{WHERE}.dataset.streaming: the teachers' answers are kept by row. Take streaming out.")
    try:
        parts = load_parts([source], data_root)
        if "train" not in parts:
            raise ValueError(f"{WHERE}.dataset has no train split, but {', '.join(parts)}. Name it under splits.")
        cells = [
            [cell for part in parts["train"] for cell in part.column(UNLABELED, key, name)]
            for key, name in zip(sorted(settings["columns"]), columns, strict=True)
        ]
    except ValueError as error:
        said = str(error).replace(f"tasks.{UNLABELED}", WHERE).replace(f"Task {UNLABELED!r}", WHERE)
        raise ValueError(said) from error
    rows, no_text, measured = [], 0, 0
    for number, row in enumerate(zip(*cells, strict=True), 1):
        if any(map(is_empty, row)):
            no_text += 1
        elif not all(isinstance(cell, str) for cell in row):
            raise ValueError(f"{WHERE}, row {number}: found {brief(row)} where text should be. Correct {columns}.")
        elif row in held_out:
            measured += 1
        else:
            rows.append(list(row))
    total = len(rows) + no_text + measured
    for count, reason in ((no_text, "have no text"), (measured, "stand in a validation or test split")):
        if count:
            logger.info(f"unlabelled text: {count} of {total} rows {reason} and are left out")
    if not rows:
        raise ValueError(f"{WHERE}: none of the {total} rows is left. Give other text, or leave the block out.")
    logger.info(f"unlabelled text: {len(rows)} rows, which teachers alone answer")
    return Dataset.from_dict({"sentences": rows}, Features({"sentences": List(Value("string"))}))


__all__ = ["load_unlabeled"]
