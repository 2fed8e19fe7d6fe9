"""Finished models side by side, on the same rows: scores, and paired differences with intervals.

stored_tables    what a run has left in predictions/
measured_tables  the same of a model that was measured now
compare_models   each task's scores, and what every other model has over the first
format_compared  the table
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from ...data.metrics import compute_metric
from ...data.metrics.bootstrap import RESAMPLES, paired_interval
from ...tasks_multitask import TaskConfig
from ..evaluation.groups import TaskGroup, joined
from ..evaluation.scores import metric_options
from ..report.differences import percent, with_difference
from ..report.predictions import PREDICTIONS_FOLDER, task_table
from .measuring import Measured

Tables = Mapping[str, pa.Table]


def stored_tables(folder: Path) -> dict[str, pa.Table]:
    """
    By task, its rows with what is right and what the model says.

    Raises:
        ValueError: there are none.
    """
    found = sorted((folder / PREDICTIONS_FOLDER).glob("*.parquet"))
    if not found:
        raise ValueError(
            f"{folder} holds no {PREDICTIONS_FOLDER}/, which train.py leaves beside a finished model. Give --data "
            "with a recipe or with files, so that the models are measured now."
        )
    return {file.stem: pq.read_table(file) for file in found}


def measured_tables(measured: Measured) -> dict[str, pa.Table]:
    """The same of a model that was measured now."""
    return {
        task: pa.concat_tables(
            [
                task_table(settings, split, measured.evaluations[split].sentences, found[task])
                for split, found in measured.answers.items()
                if task in found
            ]
        )
        for task, settings in measured.tasks.items()
    }


def _rows_of(table: pa.Table, split: str) -> pa.Table:
    return table.filter(pa.compute.equal(table["split"], split))


def _given(table: pa.Table, columns: Sequence[str]) -> list[list[Any]]:
    """Cells of columns; several labels of a row in one order, whichever their model has."""
    cells = [table[name].to_pylist() for name in columns]
    return [[sorted(cell) if isinstance(cell, list) else cell for cell in own] for own in cells]


def _check_same_rows(task: str, names: Sequence[str], tables: Sequence[pa.Table]) -> None:
    columns = [name for name in tables[0].column_names if name.startswith(("text", "label"))]
    first = _given(tables[0], columns)
    for name, table in zip(names[1:], tables[1:], strict=True):
        if not set(columns) <= set(table.column_names) or _given(table, columns) != first:
            raise ValueError(
                f"Task {task!r}: {names[0]} and {name} were measured on other rows, or in another order "
                f"({len(tables[0])} and {len(table)} rows). Give --data, so that all are measured on the same."
            )


def metric_arrays(task: TaskConfig, column: pa.ChunkedArray) -> np.ndarray:
    """What the metrics take, from a column of `task_table`: names, lists of names, or numbers."""
    if not task.labels:
        return column.to_numpy()
    numbers = {label: number for number, label in enumerate(task.labels)}
    cells = column.to_pylist()
    if not task.kind.is_multi_label:
        return np.array([numbers[label] for label in cells])
    found = np.zeros((len(cells), len(numbers)), dtype=np.uint8)
    for row, labels in enumerate(cells):
        found[row, [numbers[label] for label in labels]] = 1
    return found


def _compared(
    task: TaskConfig, names: Sequence[str], predictions: Sequence[np.ndarray], references: np.ndarray | None, seed: int
) -> dict[str, Any]:
    metric = task.primary_metric
    options = metric_options(task, metric)
    scores = [compute_metric(metric, found, references, **options)[metric] for found in predictions]
    return {
        "metric": metric,
        "rows": len(predictions[0]),
        "scores": dict(zip(names, scores, strict=True)),
        "differences": {
            name: {
                "difference": score - scores[0],
                "interval": paired_interval(metric, found, predictions[0], references, RESAMPLES, seed, **options),
            }
            for name, score, found in zip(names[1:], scores[1:], predictions[1:], strict=True)
        },
    }


def compare_models(
    names: Sequence[str],
    tasks: Sequence[Mapping[str, TaskConfig]],
    tables: Sequence[Tables],
    groups: Mapping[str, TaskGroup] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """
    Compare models on the tasks that all of them have, on test rows, or where there are none on validation rows.

    Args:
        names: of the models; the others are compared with the first.
        tasks: each model's task settings; metrics and classes that count are those of the first.
        tables: each model's rows by task, as `stored_tables` gives them.
        groups: tasks that are scored together, by the group's name.
        seed: of the resamples.

    Returns by task and group `split`, `metric`, `rows`, `scores` by model, and `differences` by model: `difference`
    (its score minus the first one's) and the `interval` of it.

    Raises:
        ValueError: no task is common to all, labels differ, or rows do.
    """
    common = [task for task in tasks[0] if all(task in found for found in [*tasks, *tables])]
    if not common:
        found = "; ".join(f"{name}: {', '.join(table) or 'none'}" for name, table in zip(names, tables, strict=True))
        raise ValueError(f"The models have no measured task in common ({found}).")
    compared, sides = {}, {}
    for task in common:
        first, *others = (found[task] for found in tasks)
        for name, other in zip(names[1:], others, strict=True):
            if other.problem_type != first.problem_type or set(other.labels) != set(first.labels):
                raise ValueError(
                    f"Task {task!r} is {other.problem_type} with the labels {other.labels} in {name}, but "
                    f"{first.problem_type} with {first.labels} in {names[0]}. Leave it out with --tasks."
                )
        splits = {split for split in ("validation", "test") if all(len(_rows_of(t[task], split)) for t in tables)}
        if not splits:
            raise ValueError(f"Task {task!r}: there is no split that all models were measured on.")
        split = max(splits, key=["validation", "test"].index)
        rows = [_rows_of(found[task], split) for found in tables]
        _check_same_rows(task, names, rows)
        if first.kind.has_label_column:
            predictions = [metric_arrays(first, found["prediction"]) for found in rows]
            references = metric_arrays(first, rows[0]["label"])
        else:
            predictions, references = [found["rank"].to_numpy() for found in rows], None
        sides[task] = split, predictions, references
        compared[task] = {"split": split, **_compared(first, names, predictions, references, seed)}
    for name, group in (groups or {}).items():
        splits = {sides[task][0] if task in sides else None for task in group.tasks}
        if len(splits) == 1 and None not in splits:
            predictions = [joined(group, {t: sides[t][1][place] for t in group.tasks}) for place in range(len(names))]
            references = joined(group, {task: sides[task][2] for task in group.tasks})
            found = _compared(group.scoring, names, predictions, references, seed)
            compared[name] = {"split": splits.pop(), **found}
    return compared


def format_compared(names: Sequence[str], compared: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each task: every model's score in per cent, each but the first with its difference and interval."""

    def cell(found: Mapping[str, Any], name: str) -> str:
        score, other = found["scores"][name], found["differences"].get(name)
        return percent(score) if other is None else with_difference(score, other)

    rows = [
        [task, found["metric"], found["split"], found["rows"], *(cell(found, name) for name in names)]
        for task, found in compared.items()
    ]
    header = ["task", "metric", "split", "rows", *names]
    return (
        tabulate(rows, header, disable_numparse=True)
        + f"\nScores in per cent. In brackets: the difference to {names[0]}, and its 95 % interval from "
        f"{RESAMPLES:,} paired resamples of the rows. It says nothing about another seed."
    )


__all__ = ["compare_models", "format_compared", "measured_tables", "metric_arrays", "stored_tables"]
