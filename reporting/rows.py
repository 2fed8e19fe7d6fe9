"""The rows of a run, with what is right, what the model says and how sure it is.

TaskRows     of one task and one split
task_rows    the same by split, from a table of `predictions/`
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from ..data.text.sameness import row_hash
from ..tasks_multitask import TaskConfig
from ..training.finished.comparing import metric_arrays


@dataclass
class TaskRows:
    """
    One task's labelled rows of one split.

    Attributes:
        task: its name.
        settings: its settings.
        split: the split's name.
        table: the rows, as `task_table` gives them.
        predictions: what the metrics take: class numbers, 0 and 1 `(rows, num_labels)`, values, cosines or ranks.
        references: what is right, in the same form; `None` for a contrastive task.
    """

    task: str
    settings: TaskConfig
    split: str
    table: pa.Table
    predictions: np.ndarray
    references: np.ndarray | None

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def texts(self) -> list[tuple[str, ...]]:
        """The sentences of each row."""
        columns = [name for name in self.table.column_names if name.startswith("text")]
        return list(zip(*(self.table[name].to_pylist() for name in columns), strict=True))

    @cached_property
    def hashes(self) -> np.ndarray:
        """`(rows,)`: the `row_hash` of each row."""
        return np.fromiter(map(row_hash, self.texts), np.int64, len(self))

    @cached_property
    def words(self) -> np.ndarray:
        """`(rows,)`: how many words the sentences of each row have together."""
        return np.array([sum(len(text.split()) for text in row) for row in self.texts], dtype=np.int64)

    @cached_property
    def answers(self) -> list[tuple[object, object]]:
        """What is right and what the model says, in words or numbers; of a contrastive task ranks."""
        if self.references is None:
            return [(1, int(rank)) for rank in self.predictions]
        return list(zip(self.table["label"].to_pylist(), self.table["prediction"].to_pylist(), strict=True))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of a classification task `(rows, k)`: of all labels, or of a task with many the highest."""
        cells = self.table["probabilities"].combine_chunks()
        return cells.flatten().to_numpy(zero_copy_only=False).reshape(len(self), -1).astype(np.float64)

    @property
    def labels(self) -> np.ndarray:
        """`references` of a task that has labels."""
        if self.references is None:
            raise ValueError(f"Task {self.task!r} has no labels.")
        return self.references

    @property
    def has_all_probabilities(self) -> bool:
        return self.settings.kind.has_labels and "most_probable" not in self.table.column_names

    @cached_property
    def distances(self) -> np.ndarray:
        """
        `(rows,)`: how far each answer is from what is right, 0 where it is right.

        Of a classification task, how sure the model is of a wrong answer (see `AbstainConfig`); of a regression, how
        far the value is off; of similarity, how many hundredths of the rows the pair is ranked too high or too low,
        as the cosine is on no scale of the labels; of a contrastive task, how many answers rank before the right one.
        """
        if self.references is None:
            return self.predictions - 1
        if not self.settings.kind.has_labels:
            sides = [self.predictions, self.references]
            if not self.settings.kind.has_head:
                sides = [100 * rankdata(side) / max(len(side) - 1, 1) for side in sides]
            return np.abs(sides[0] - sides[1])
        return np.where(self.is_wrong, self.confidences, 0)

    @cached_property
    def is_wrong(self) -> np.ndarray:
        """`(rows,)`: whether the answer differs from what is right at all."""
        if self.references is None or not self.settings.kind.has_labels:
            return self.distances > 0
        differs = self.predictions != self.references
        return differs.any(axis=1) if differs.ndim == 2 else differs

    @cached_property
    def confidences(self) -> np.ndarray:
        """Of a classification task `(rows,)`: how sure the model is of its answer."""
        if not self.settings.kind.is_multi_label:
            return self.probabilities.max(axis=1)
        chosen = self.predictions
        if not self.has_all_probabilities:
            numbers = {label: number for number, label in enumerate(self.settings.labels)}
            classes = pc.list_flatten(self.table["most_probable"]).to_pylist()
            classes = np.array([numbers[label] for label in classes]).reshape(len(self), -1)
            chosen = np.take_along_axis(self.predictions, classes, axis=1)
        return np.where(chosen.astype(bool), self.probabilities, 1 - self.probabilities).min(axis=1)


def task_rows(task: str, settings: TaskConfig, table: pa.Table) -> dict[str, TaskRows]:
    """
    A task's rows by split.

    Raises:
        ValueError: the table holds no texts, or of a classification task no probabilities.
    """
    names = table.column_names
    for name in ["text1" if "text1" in names else "text", *["probabilities"] * settings.kind.has_labels]:
        if name not in names:
            raise ValueError(
                f"The stored predictions of task {task!r} have no column {name}. Give --data with the recipe, so that "
                "the model is measured now."
            )
    found = {}
    for split in pc.unique(table["split"]).to_pylist():
        own = table.filter(pc.equal(table["split"], split))
        if settings.kind.has_label_column:
            sides = metric_arrays(settings, own["prediction"]), metric_arrays(settings, own["label"])
        else:
            sides = own["rank"].to_numpy(), None
        found[split] = TaskRows(task, settings, split, own, *sides)
    return found


__all__ = ["TaskRows", "task_rows"]
