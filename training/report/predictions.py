"""Every row of validation and test with what is right and what the finished model says: `predictions/<task>.parquet`.

    write_predictions  the files of a finished run
    task_table         one task's rows of one split

The files hold the texts of the data, so they are never pushed to the Hub.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...staging_multitask import staged
from ...tasks_multitask import TaskConfig
from ..evaluation.scores import Evaluation, TaskAnswers

PREDICTIONS_FOLDER = "predictions"


def _lists(values: np.ndarray | pa.Array, sizes: np.ndarray) -> pa.Array:
    """A list for each row, from all values one after another."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32()), pa.array(values))


def _names_of(multi_hot: np.ndarray, names: pa.Array) -> pa.Array:
    """`(rows, num_labels)` of 0 and 1 to the names of each row's labels."""
    _, classes = multi_hot.nonzero()
    return _lists(names.take(pa.array(classes)), np.count_nonzero(multi_hot, axis=1))


def task_table(task: TaskConfig, split: str, sentences: list[str], answers: TaskAnswers) -> pa.Table:
    """
    One task's labelled rows of one split.

    Args:
        task: its settings.
        split: the split's name.
        sentences: all sentences of the split.
        answers: what `answer_task` gave, with probabilities.

    Returns:
        The columns `split`; `text`, or `text1`, `text2`, ... for rows of several sentences; `label` and `prediction`:
        a class's name, the list of a multi-label row's names, or a value or score and what the model gives for it; and
        for classification `probabilities`: in the order of the labels, or where the answers hold the highest only
        those, of the names in `most_probable`. A contrastive task has `rank`, that of the positive, in their place.
    """
    num_rows, texts = len(answers.rows), pa.array(sentences)
    columns: dict[str, Any] = {"split": pa.array([split] * num_rows)}
    for place, chosen in enumerate(answers.rows.T.numpy(), 1):
        columns["text" if len(answers.rows.T) == 1 else f"text{place}"] = texts.take(pa.array(chosen))
    if answers.references is None:
        columns["rank"] = pa.array(answers.predictions)
        return pa.table(columns)
    sides = {"label": answers.references, "prediction": answers.predictions}
    if not task.labels:
        columns |= {name: pa.array(side, pa.float64()) for name, side in sides.items()}
        return pa.table(columns)
    names = pa.array(task.labels)
    for name, side in sides.items():
        columns[name] = _names_of(side, names) if side.ndim == 2 else names.take(pa.array(side))
    sizes = np.full(num_rows, answers.probabilities.shape[1])
    if answers.probabilities.shape[1] < len(names):
        columns["most_probable"] = _lists(names.take(pa.array(answers.classes.ravel())), sizes)
    columns["probabilities"] = _lists(answers.probabilities.ravel(), sizes)
    return pa.table(columns)


def write_predictions(
    folder: Path,
    tasks: dict[str, TaskConfig],
    evaluations: dict[str, Evaluation],
    answers: dict[str, dict[str, TaskAnswers]],
) -> None:
    """
    Write `predictions/<task>.parquet` into a finished folder.

    Args:
        folder: of the finished model.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        evaluations: the splits by name.
        answers: by split and task, what the finished model answers.
    """
    with staged(folder / PREDICTIONS_FOLDER) as unfinished:
        for task in dict.fromkeys(task for found in answers.values() for task in found):
            tables = [
                task_table(tasks[task], split, evaluations[split].sentences, found[task])
                for split, found in answers.items()
                if task in found
            ]
            pq.write_table(pa.concat_tables(tables), Path(unfinished, f"{task}.parquet"), compression="zstd")


__all__ = ["PREDICTIONS_FOLDER", "task_table", "write_predictions"]
