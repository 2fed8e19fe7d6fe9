"""What the page is about: a finished run, as it left its answers, or measured now on other data.

stored_run     from results.json and predictions/ of the run's folder
measured_run   the same of a model that has just been measured
data_of_run    the data that a finished run was trained and measured on
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.rows.row_hashes import RowHashes, read_row_hashes
from ..tasks_multitask import TaskConfig
from ..training.evaluation.groups import TaskGroup
from ..training.finished.comparing import measured_tables, stored_tables
from ..training.finished.data import FinishedData, recipe_data, stored_groups
from ..training.finished.measuring import Measured, describe
from ..training.run.output_folder import RECIPE_FILE, RESULTS_FILE
from .rows import TaskRows, task_rows


@dataclass
class Run:
    """
    A finished model and its answers.

    Attributes:
        name: what the page is called.
        origin: a sentence that says which rows these are.
        tasks: settings by name, of the tasks that have rows.
        rows: by task and split.
        results: what results.json holds of these rows: `calibration`, `confusion`; of a run also `history` and more.
        groups: tasks that are scored together, by the group's name.
        trained: `(rows,)`, the hashes of the rows that the model was trained on, as far as its folder says.
    """

    name: str
    origin: str
    tasks: dict[str, TaskConfig]
    rows: dict[str, dict[str, TaskRows]]
    results: dict[str, Any]
    groups: dict[str, TaskGroup]
    trained: np.ndarray


def _told(known: RowHashes, rows: Mapping[str, Mapping[str, TaskRows]]) -> str:
    """How many of the rows the model was trained on."""
    hashes = np.unique(np.concatenate([one.hashes for by_split in rows.values() for one in by_split.values()]))
    seen = int(np.isin(hashes, known.of_split("train")).sum())
    if known.is_complete:
        return f"It was trained on {f'{seen:,}' if seen else 'none'} of {len(hashes):,} rows."
    least = f" (at least {seen:,} of {len(hashes):,})" if seen else ""
    return f"Which of them it was trained on is not known{least}."


def stored_run(folder: Path, tasks: Mapping[str, TaskConfig]) -> Run:
    """
    A run as it left its answers.

    Args:
        folder: that train.py has saved.
        tasks: the model's tasks that are wanted.

    Raises:
        ValueError: the folder holds no results, or no predictions with texts.
    """
    if not (folder / RESULTS_FILE).is_file():
        raise ValueError(
            f"{folder} holds no {RESULTS_FILE}, so it is no finished run. Give the folder that train.py saved, or "
            "--data with a recipe or files, so that the model is measured now."
        )
    results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    tables = stored_tables(folder)
    rows = {task: task_rows(task, settings, tables[task]) for task, settings in tasks.items() if task in tables}
    if not rows:
        raise ValueError(f"{folder} holds predictions of {', '.join(tables)}, but wanted are {', '.join(tasks)}.")
    found = {task: tasks[task] for task in rows}
    known = read_row_hashes(str(folder))
    origin = f"Validation and test rows as the finished run answered them. {_told(known, rows)}"
    groups = stored_groups(str(folder), found)
    return Run(folder.resolve().name, origin, found, rows, results, groups, known.of_split("train"))


def measured_run(source: str, name: str, data: str, measured: Measured) -> Run:
    """
    A model that was measured now.

    Args:
        source: its folder or Hub id.
        name: what the page is called.
        data: what the rows are called.
        measured: what `measure_model` gave.
    """
    tables = measured_tables(measured)
    rows = {task: task_rows(task, settings, tables[task]) for task, settings in measured.tasks.items()}
    known = read_row_hashes(source)
    origin = f"Rows of {data}, as the finished model answers them. {_told(known, rows)}"
    results = describe(measured, {})
    return Run(name, origin, measured.tasks, rows, results, measured.groups, known.of_split("train"))


def data_of_run(
    folder: Path, tasks: Mapping[str, TaskConfig], recipe: Path | None, data_root: Path | None, needed: bool
) -> FinishedData | str:
    """
    The data that a finished run was trained and measured on, or why it cannot be read.

    Args:
        folder: that train.py has saved.
        tasks: the model's tasks that are wanted.
        recipe: `None` for the recipe.yaml in the folder.
        data_root: what relative data paths start from; `None` for the recipe's folder.
        needed: whether the page cannot do without.

    Raises:
        ValueError: the data is needed and cannot be read.
    """
    path = recipe or folder / RECIPE_FILE
    try:
        return recipe_data(str(folder), tasks, path, data_root, with_train=True)
    except (ValueError, OSError) as error:
        if needed:
            raise
        remedy = "" if recipe else " Relative paths start from the recipe's folder: give --recipe or --data_root."
        return f"The data of {path} cannot be read.{remedy} ({error})"


__all__ = ["Run", "data_of_run", "measured_run", "stored_run"]
