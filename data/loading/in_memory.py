"""Data sets that are in memory already: `{"sentiment": datasets.Dataset, ...}` to checked sets in canonical columns.

Columns and labels are read, checked and refused as those of a recipe's files (tasks.py). Tasks that are given the
same `Dataset` object with the same sentence columns become one set, whose rows are then drawn once for all of them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from ...checks_multitask import check_keys, suggest
from ...tasks_multitask import TaskConfig
from ..files.parts import Part
from ..rows.sets import LabelledSet, LoadedTasks
from ..rows.sides import Sides
from ..sources.task_source import TaskSource, check_file_names, check_text_columns, sentence_columns
from ..text.half_characters import without_halves
from .label_parts import label_parts

TaskDatasets = Mapping[str, Dataset]
Columns = Mapping[str, Mapping[str, Any]]
NAMES = {"train": "train_dataset", "validation": "eval_dataset"}  # what a split is called in messages


def _check_datasets(where: str, found: Any, tasks: Mapping[str, TaskConfig]) -> None:
    if not isinstance(found, Mapping) or not found:
        raise TypeError(
            f"{where} should be a mapping of tasks to data sets, such as {{{next(iter(tasks), 'topic')!r}: dataset}}. "
            f"Found {type(found).__name__}."
        )
    for task, rows in found.items():
        if task not in tasks:
            raise ValueError(
                f"{where}: the model has no task {task!r}.{suggest(task, tasks)} It has: {', '.join(tasks)}."
            )
        if not isinstance(rows, Dataset):
            raise TypeError(
                f"{where}[{task!r}] should be a datasets.Dataset. Found {type(rows).__name__}. Choose one split of a "
                "DatasetDict; datasets.Dataset.from_list and from_pandas make one of other data."
            )


def _columns_like_keys(task: TaskConfig, rows: Dataset) -> dict[str, str]:
    """The default columns of a task's rows, named like a recipe's keys."""
    kind = task.kind
    fitting = [form for form in kind.columns if (len(form) > 1) == task.pair]
    forms = (*reversed(fitting), *kind.columns)  # another form than the task's is refused afterwards
    form = next((form for form in forms if set(form) <= set(rows.column_names)), fitting[0])
    return {key: key for key in (*form, *(["label"] if kind.has_label_column else []))}


def _check_pairs(tasks: Mapping[str, TaskConfig], sources: Mapping[str, TaskSource]) -> None:
    """Refuse pairs for a task that reads single sentences, which would read the first ones alone, and the reverse."""
    for task, source in sources.items():
        keys = [key for key, _ in sentence_columns(source)]
        if (len(keys) > 1) == tasks[task].pair:
            continue
        if tasks[task].pair:
            reads, mend = "pairs", "name its two columns sentence1 and sentence2, or make the task without pair: True"
        else:
            reads, mend = "single sentences", f"make the task with pair: True, {{{task!r}: {{'pair': True, ...}}}}"
        raise ValueError(
            f"Task {task!r} of the model reads {reads}, but its data has the columns {' and '.join(keys)}. To train "
            f"it on them, {mend}."
        )


def _groups(found: TaskDatasets, sources: Mapping[str, TaskSource]) -> list[list[str]]:
    """The tasks that read the same sentences of the same object, together."""
    groups: dict[tuple[int, str], list[str]] = {}
    for task, rows in found.items():
        sentences = json.dumps([column for _, column in sentence_columns(sources[task])])
        groups.setdefault((id(rows), sentences), []).append(task)
    return list(groups.values())


def as_labelled_sets(
    tasks: Mapping[str, TaskConfig],
    train: TaskDatasets | Sequence[LabelledSet],
    validation: TaskDatasets | None,
    columns: Columns | None,
) -> list[LabelledSet]:
    """What a trainer is given: labelled sets, which hold every split, or data sets for `label_datasets`."""
    if not isinstance(train, Sequence) or not all(isinstance(entry, LabelledSet) for entry in train):
        return label_datasets(tasks, train, validation, columns).sets
    if validation is not None or columns is not None:
        raise TypeError("train_dataset holds labelled sets with all their splits. Leave eval_dataset and columns out.")
    return list(train)


def label_datasets(
    tasks: Mapping[str, TaskConfig],
    train: TaskDatasets | None,
    validation: TaskDatasets | None = None,
    columns: Columns | None = None,
) -> LoadedTasks:
    """
    Check data sets, and bring them to canonical columns.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        train: by task, its training rows.
        validation: by task, its validation rows; an entry for each task of `train`, where both are given.
        columns: by task, what its columns are called, as in a recipe: `{"topic": {"sentence": "text", "label":
            "topic"}}`. Without an entry they are called like the keys: `sentence`, or `sentence1` and `sentence2`, and
            `label`; or `anchor`, `positive` and optionally `negative`.

    Returns:
        The sets, with the splits `train` and `validation` as far as they are given.

    Raises:
        TypeError: something is no mapping, or no `datasets.Dataset`.
        ValueError: a task is unknown or has no entry, two names differ in case alone, a column is missing, a row is
            wrong, or pairs are given for a task of single sentences, or the reverse; says where, and what would be
            right.
    """
    given = {split: found for split, found in (("train", train), ("validation", validation)) if found is not None}
    for split, found in given.items():
        _check_datasets(NAMES[split], found, tasks)
    check_keys("columns", columns or {}, tasks)
    if len(given) == 2 and (unpaired := sorted(train.keys() ^ validation.keys())):
        task = unpaired[0]
        lacking, other = ("eval_dataset", "train_dataset") if task in train else ("train_dataset", "eval_dataset")
        raise ValueError(f"{lacking} has no entry for task {task!r}, which {other} has. Add one, or take it out.")
    first, *others = given.values()
    check_file_names(first)
    sources = {
        task: TaskSource(
            name=task,
            problem_type=tasks[task].problem_type,
            dataset={},
            columns=dict((columns or {}).get(task) or _columns_like_keys(tasks[task], rows)),
            labels=tasks[task].labels or None,
        )
        for task, rows in first.items()
    }
    _check_pairs(tasks, sources)
    loaded = LoadedTasks([])

    def add_set(names: list[str], splits: list[str]) -> None:
        parts = {}
        for split in splits:
            where, rows = f"{NAMES[split]}[{names[0]!r}]", given[split][names[0]].with_format(None)
            parts[split] = [Part(where, without_halves(names[0], where, rows))]
        group = [sources[name] for name in names]
        check_text_columns(group[0], [part for found in parts.values() for part in found])
        found = label_parts(group, parts, seed=0, loaded=loaded, known=Sides(), folder=None)
        loaded.sets.append(LabelledSet(names, found))

    for names in _groups(first, sources):
        apart = [group for found in others for group in _groups({name: found[name] for name in names}, sources)]
        if len(apart) < 2:
            add_set(names, list(given))
        else:  # one training set, validated on several
            add_set(names, ["train"])
            for group in apart:
                add_set(group, ["validation"])
    return loaded
