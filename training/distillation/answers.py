"""Teachers' answers: computed once for each teacher and distinct sentence or pair, kept on disk, read batch by batch.

    ask             places of rows in a teacher's answers, after those that are not on disk yet were computed
    SoftTargets     a task's targets, from the places of its rows
    HeldOut         the rows of validation and test splits, which no teacher is asked about
    answer_rows     training sets with a column `teacher_<task>` of places, and each task's `SoftTargets`

A teacher's answers stand in a folder below `datasets`' own cache, in the shards of the feature cache
(features/cache.py). Its name is a hash of the teacher's weights, tokenizer, maximum length and precision, and each
answer is found by a hash of its text. So a run that was killed goes on where it stopped, later runs ask nothing again,
and processes share the work. Answers are what a teacher gives: logits, values or embeddings, not what a temperature or
an average makes of them.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import xxhash
from datasets import Dataset, LargeList, Value
from transformers.utils import logging

from ...data.cache.arrays import batches
from ...data.rows.canonical import LABEL_PREFIX, TEACHER_PREFIX, is_labelled, width_of
from ...data.text.sameness import among, distinct, row_hash, row_hashes
from ...tasks_multitask import TaskConfig
from ..features.cache import FeatureCache, fill_cache, text_hashes
from .settings import Distillation
from .teachers import Teacher
from .units import line_of, values_of

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1  # of the answers and of how a teacher is asked: another number, other folders
CACHE_FOLDER = "multitask_teachers"
ANSWERS_PER_SHARD = 2048  # computed together and then written; a run that is killed loses no more than these
ROWS_PER_WINDOW = 16384


# ---- asking ----


def question_hashes(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """Rows of sentences to `(rows,)` hashes; the length of the first keeps `("a b", "c")` and `("a", "b c")` apart."""
    return text_hashes(f"{len(row[0])} {' '.join(row)}" for row in rows)


def answer_folder(teacher: Teacher, precision: str) -> Path:
    """Where a teacher's answers are kept."""
    key = xxhash.xxh3_128(f"{FORMAT_VERSION} {teacher.identity} {precision}".encode()).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / key


def ask(
    teacher: Teacher,
    cache: FeatureCache,
    windows: Callable[[], Iterator[list[list[str]]]],
    width: int,
    show_progress: bool,
) -> np.ndarray:
    """
    Places in the cache: `(rows, 1)` of whole rows, or `(rows, sentences of a row)` for a teacher that compares.

    Every process has to call this with the same rows.

    Args:
        teacher: on the device that it answers on.
        cache: its answers.
        windows: gives the rows, each a list of sentences, in windows; called up to three times.
        width: how many sentences a row has.
        show_progress: whether the main process shows a bar.
    """

    def sentences() -> Iterator[list[str]]:
        for window in windows():
            yield [sentence for row in window for sentence in row]

    places = fill_cache(
        cache,
        sentences if teacher.compares else windows,
        text_hashes if teacher.compares else question_hashes,
        teacher.ask,
        show_progress=show_progress,
        description=f"Asking {teacher.name}",
        unit="sentence" if teacher.compares else "row",
        items_per_shard=ANSWERS_PER_SHARD,
    )
    return places.reshape(-1, width if teacher.compares else 1)


# ---- targets ----


@dataclass
class SoftTargets:
    """
    What a task learns from its teachers, averaged over them.

    Args:
        task: its settings.
        temperature: what logits are divided by.
        caches: each teacher's answers.
        widths: of each teacher, how many places a row has in its answers.
        orders: of each teacher, which of its outputs stands for each label of the task.
        lines: of each teacher, slope and intercept that bring its cosines, or values in other units, to the values of
            a regression task; `None` where its values stay as they are.
    """

    task: TaskConfig
    temperature: float
    caches: list[FeatureCache] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    orders: list[list[int] | None] = field(default_factory=list)
    lines: list[tuple[float, float] | None] = field(default_factory=list)

    def empty(self) -> torch.Tensor:
        """The targets of no row."""
        if self.task.labels:
            return torch.empty(0, len(self.task.labels))
        return torch.empty(0) if self.task.kind.has_head else torch.empty(0, 2, 1)

    def __call__(self, places: Sequence[Sequence[int]]) -> torch.Tensor:
        """
        Targets of rows, from what stands in their column `teacher_<task>`.

        Returns:
            For classification the mean of the teachers' probabilities at the temperature, `(rows, num_labels)`; for
            regression the mean of their values, `(rows,)`; for similarity and contrastive tasks vectors of length 1
            whose products are the mean of the teachers' cosines, `(rows, sentences of a row, dim)`.
        """
        if not len(places):
            return self.empty()
        by_teacher = np.split(np.asarray(places), np.cumsum(self.widths)[:-1], axis=1)  # (rows, width) each
        answers = [
            cache.gather(found.ravel()).view(len(places), -1, cache.hidden_size)  # (rows, width, size)
            for cache, found in zip(self.caches, by_teacher, strict=True)
        ]
        if not self.task.kind.has_head:
            return torch.cat(answers, dim=-1) / len(answers) ** 0.5
        found = [self._of_head(number, answer) for number, answer in enumerate(answers)]
        return torch.stack(found).mean(dim=0)

    def _of_head(self, number: int, answers: torch.Tensor) -> torch.Tensor:
        """One teacher's probabilities `(rows, num_labels)` or values `(rows,)`."""
        if not self.task.kind.has_labels:
            values, line = values_of(answers), self.lines[number]
            return values if line is None else line[0] * values + line[1]
        logits = answers[:, 0, self.orders[number]] / self.temperature
        return logits.sigmoid() if self.task.kind.is_multi_label else logits.softmax(dim=-1)


# ---- which rows ----


class HeldOut:
    """
    The rows of all validation and test splits, as hashes: what no teacher is asked about, whatever else it stands in.

    Args:
        sets: labelled sets.

    Attributes:
        rows: `(rows,)`, the `row_hash` of each, ascending.
        sentences: `(sentences,)`, that of each of their sentences as a row of its own, ascending.
    """

    def __init__(self, sets: Sequence[Any]):
        rows, sentences = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for labelled_set in sets:
            for split, held in labelled_set.splits.items():
                if split != "train":
                    rows.append(row_hashes(held))
                    sentences += [distinct(np.sort(hashes.ravel())) for hashes in _sentence_hashes(held)]
        self.rows, self.sentences = (distinct(np.sort(np.concatenate(found))) for found in (rows, sentences))

    def find(self, rows: Dataset) -> np.ndarray:
        """
        `(rows,)`: which rows stand there.

        That is a row that stands there whole, a pair in either order; a single sentence also as a part of another row;
        and a contrastive row with a negative that does. A pair of which only one sentence stands there is another row.
        """
        found = among(row_hashes(rows), self.rows)
        if width_of(rows) == 1:
            return found | among(row_hashes(rows), self.sentences)
        if width_of(rows) in (0, 2):
            return found
        negatives = [among(hashes[:, 2:].ravel(), self.sentences) for hashes in _sentence_hashes(rows)]
        return found | np.concatenate([np.empty(0, bool), *negatives]).reshape(len(rows), -1).any(axis=1)


def _sentence_hashes(rows: Dataset) -> Iterator[np.ndarray]:
    """The `row_hash` of every sentence as a row of its own, `(rows, sentences of a row)`, some rows at a time."""
    for batch in batches(rows, ["sentences"]):
        found = batch["sentences"].to_pylist()
        hashes = np.fromiter((row_hash([text]) for row in found for text in row), np.int64)
        yield hashes.reshape(len(found), -1)


def asked_rows(
    task: str,
    which: str,
    train_sets: Sequence[Dataset],
    kept_back: Sequence[np.ndarray],
    only: Sequence[Collection[str] | None],
) -> tuple[int, list[np.ndarray]]:
    """
    The rows that a task's teachers are asked about.

    Args:
        task: its name.
        which: `all` or `own`, as `Distillation.rows`.
        train_sets: training rows in canonical columns; a set without any label column holds unlabelled text.
        kept_back: of each set, `(rows,)`, whether a row stands in a validation or test split.
        only: of each set, the tasks whose teachers are asked about it; `None` for all.

    Returns:
        How many sentences the task's rows have, and of each set the numbers of the rows.
    """
    column = LABEL_PREFIX + task
    own_width = next(width_of(rows) for rows in train_sets if column in rows.column_names)
    numbers = []
    for rows, held, asked_tasks in zip(train_sets, kept_back, only, strict=True):
        is_unlabeled = not any(name.startswith(LABEL_PREFIX) for name in rows.column_names)
        asked = np.full(len(rows), (which == "all" or is_unlabeled) and width_of(rows) == own_width)
        if column in rows.column_names:
            asked |= is_labelled(rows, task)
        if asked_tasks is not None and task not in asked_tasks:
            asked[:] = False
        numbers.append(np.flatnonzero(asked & ~held))
    return own_width, numbers


def _windows(dataset: Dataset, numbers: np.ndarray) -> Iterator[list[list[str]]]:
    sentences = dataset.select_columns("sentences").with_format(None)
    for start in range(0, len(numbers), ROWS_PER_WINDOW):
        yield sentences[numbers[start : start + ROWS_PER_WINDOW]]["sentences"]


def answer_rows(
    distillation: Distillation,
    teachers: dict[str, list[Teacher]],
    tasks: dict[str, Any],
    train_sets: Sequence[Dataset],
    kept_back: Sequence[np.ndarray],
    device: torch.device,
    precision: str = "no",
    show_progress: bool = True,
    only: Sequence[Collection[str] | None] | None = None,
) -> tuple[list[Dataset], dict[str, SoftTargets]]:
    """
    Ask the teachers about the training rows.

    Every process has to call this with the same rows. A teacher is on the device only while it is asked.

    Args:
        distillation: the settings in force.
        teachers: by task.
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        train_sets: training rows in canonical columns; a set without any label column holds unlabelled text.
        kept_back: of each set, `(rows,)`, whether a row stands in a validation or test split; see `HeldOut.find`.
        device: where teachers answer.
        precision: how matrix products are computed, such as `Accelerator.mixed_precision`.
        show_progress: whether the main process shows bars.
        only: of each set, the tasks whose teachers are asked about it, `None` for all; without it, all about all.

    Returns:
        The sets with a column `teacher_<task>` for each task that has any answer in them, and each task's targets.
    """
    targets, only = {}, only or [None] * len(train_sets)
    columns: list[dict[str, tuple[np.ndarray, np.ndarray]]] = [{} for _ in train_sets]
    for task, of_task in teachers.items():
        width, numbers = asked_rows(task, distillation.rows, train_sets, kept_back, only)
        targets[task] = found = SoftTargets(tasks[task], distillation.temperature)
        by_teacher: list[list[np.ndarray]] = []  # of each teacher and set, (rows, places of a row)
        for teacher in of_task:
            cache = FeatureCache(answer_folder(teacher, precision), teacher.size)
            teacher.model.to(device)
            by_teacher.append(
                [
                    ask(teacher, cache, partial(_windows, rows, own), width, show_progress)
                    for rows, own in zip(train_sets, numbers, strict=True)
                ]
            )
            teacher.model.cpu()
            has_values = tasks[task].kind.has_target_scale
            found.caches.append(cache)
            found.widths.append(width if teacher.compares else 1)
            found.orders.append(teacher.order)
            given = task, teacher, cache, train_sets, numbers, by_teacher[-1]
            found.lines.append(line_of(*given) if has_values and any(map(len, numbers)) else None)
        for column, own, places in zip(columns, numbers, zip(*by_teacher, strict=True), strict=True):
            column[task] = own, np.concatenate(places, axis=1)
        if not any(map(len, numbers)):
            logger.warning(
                f"distillation: no training row of task {task!r} is answered by its teachers, because all stand in a "
                "validation or test split. It learns from its labels alone, by their share. Correct the splits."
            )
    return [_with_places(rows, column) for rows, column in zip(train_sets, columns, strict=True)], targets


def _with_places(rows: Dataset, columns: dict[str, tuple[np.ndarray, np.ndarray]]) -> Dataset:
    for task, (own, places) in columns.items():
        if not len(own):
            continue
        is_asked = np.zeros(len(rows), bool)
        is_asked[own] = True
        starts = np.concatenate([[0], np.cumsum(is_asked * places.shape[1])])
        column = pa.LargeListArray.from_arrays(starts, places.ravel(), mask=pa.array(~is_asked))
        rows = rows.add_column(TEACHER_PREFIX + task, column, feature=LargeList(Value("int64")))
    return rows


__all__ = ["HeldOut", "SoftTargets", "answer_rows"]
