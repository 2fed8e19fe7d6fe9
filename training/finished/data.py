"""Labelled rows for a finished model: those of a recipe, or of single files.

recipe_data    the splits of a recipe's tasks that the model has
files_data     files as a test split, with a column of labels for each task
stored_groups  the groups of tasks that the run scored together
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers.utils import cached_file

from ...checks_multitask import suggest
from ...data.files.formats import FORMATS
from ...data.files.parts import SPLIT_NAMES
from ...data.labels.reading import check_names
from ...data.loading.tasks import load_tasks
from ...data.rows.held_out import announce_trained_on
from ...data.rows.row_hashes import read_row_hashes
from ...data.rows.sets import LoadedTasks
from ...data.sources.task_source import TaskSource
from ...tasks_multitask import TaskConfig
from ..arguments import MultiTaskTrainingArguments
from ..evaluation.groups import TaskGroup, read_groups
from ..recipe.recipe import Recipe, load_recipe
from ..run.output_folder import RESULTS_FILE

SEED, BATCH_SIZE = MultiTaskTrainingArguments.seed, MultiTaskTrainingArguments.per_device_eval_batch_size
RECIPE_ENDINGS = (".yaml", ".yml")


@dataclass
class FinishedData:
    """
    Labelled rows for a finished model.

    Attributes:
        loaded: the rows in canonical columns, and what a person should know of them.
        groups: tasks that are scored together, by the group's name.
        batch_size: rows that losses over pairs compare with each other.
        sources: where each task's rows come from.
        data_root: what relative paths of the sources start from.
    """

    loaded: LoadedTasks
    groups: dict[str, TaskGroup] = field(default_factory=dict)
    batch_size: int = BATCH_SIZE
    sources: list[TaskSource] = field(default_factory=list)
    data_root: Path = Path()


def stored_groups(folder: str, tasks: Mapping[str, TaskConfig]) -> dict[str, TaskGroup]:
    """The groups of a finished folder or Hub repository, those of which the model still has every task."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(folder, RESULTS_FILE, **quiet)
    if file is None:
        return {}
    found = json.loads(Path(file).read_text(encoding="utf-8")).get("groups", {})
    return read_groups({name: group for name, group in found.items() if set(group["tasks"]) <= tasks.keys()}, tasks)


def _of_model(where: str, source: TaskSource, is_pair: bool, task: TaskConfig) -> TaskSource:
    """
    A recipe's source, with the labels of the model's task; refused where it is another kind of task.

    Cells may be read by position, so the recipe's list stays where its order is another one. The labels are then put
    into the model's order.
    """
    if (source.problem_type, is_pair) != (task.problem_type, task.pair):
        kinds = [
            f"{kind}{' of pairs' * pair}"
            for kind, pair in ((source.problem_type, is_pair), (task.problem_type, task.pair))
        ]
        raise ValueError(
            f"{where}: tasks.{source.name} is {kinds[0]}, but the model's task of that name is {kinds[1]}. Correct "
            f"the recipe, or leave the task out with --tasks."
        )
    own, known = check_names(source.name, source.labels or task.labels, 0), task.labels
    order = None
    if own != known[: len(own)] and known != own[: len(known)]:  # else a number means the same to both
        if other := [name for name in own if name not in known]:
            raise ValueError(
                f"{where}: tasks.{source.name}.labels holds {other[0]!r}, which the model's task of that name does "
                f"not have. It has: {known}. Correct the recipe, or leave the task out with --tasks."
            )
        order = known
    return replace(source, labels=(own if order else known) or None, label_order=order, augmentation=None)


def _without_train(source: TaskSource) -> TaskSource:
    """The source without its training files, where no rows of them are set aside for validation or test."""
    files = source.dataset.get("data_files")
    if source.validation_split is not None or source.test_split is not None or not isinstance(files, dict):
        return source
    splits = source.dataset.get("splits") or {}
    own = splits.get("train")
    rest = {split: found for split, found in files.items() if split not in {own, *SPLIT_NAMES["train"]}}
    splits = {split: name for split, name in splits.items() if split != "train"}
    if not rest:
        return source
    return replace(source, dataset={**source.dataset, "data_files": rest, **({"splits": splits} if splits else {})})


def recipe_data(
    folder: str,
    tasks: Mapping[str, TaskConfig],
    recipe: Recipe | Path,
    data_root: Path | None = None,
    with_train: bool = False,
) -> FinishedData:
    """
    The rows of a recipe, for those of its tasks that the model has.

    Rows that the run set aside are found again: they are where the folder's `row_hashes.parquet` says, and without
    that file where the recipe's seed puts them.

    Args:
        folder: of the finished model, or its Hub id.
        tasks: the model's tasks that are wanted.
        recipe: a recipe or its file.
        data_root: what relative data paths start from; by default the recipe's folder.
        with_train: whether training rows are wanted, too.

    Raises:
        ValueError: the recipe, a file or a row is wrong, or the model has none of its tasks.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    known = {source.name: source for source in recipe.sources if source.name in tasks}
    if not known:
        names = ", ".join(source.name for source in recipe.sources)
        raise ValueError(f"{recipe.path} has the tasks {names}, but wanted of {folder} are: {', '.join(tasks)}.")
    sources = [
        _of_model(str(recipe.path), source, recipe.tasks[name].pair, tasks[name]) for name, source in known.items()
    ]
    if not with_train:
        sources = [_without_train(source) for source in sources]
    seed, earlier = recipe.training.get("seed", SEED), read_row_hashes(folder)
    data_root = data_root or recipe.path.parent
    loaded = load_tasks(sources, data_root, seed, require_train=False, earlier=earlier)
    announce_trained_on(loaded)
    whole = {name: group for name, group in recipe.groups.items() if set(group.tasks) <= known.keys()}
    groups = read_groups(whole, {name: tasks[name] for name in known})  # by the numbers of the model's labels
    return FinishedData(
        loaded,
        groups or stored_groups(folder, {name: tasks[name] for name in known}),
        int(recipe.training.get("per_device_eval_batch_size", BATCH_SIZE)),
        sources,
        data_root,
    )


def _format_of(files: Sequence[Path]) -> str:
    """The format that the files' names end with."""
    endings = {file.suffix[1:].lower() for file in files}
    known = [name for name, found in FORMATS.items() if found.source == "file"]
    if len(endings) > 1 or not endings <= set(known):
        ending = next((end for end in sorted(endings) if end not in known), None)
        found = f"{', '.join(map(str, files))} end with {', '.join(sorted(endings))}"
        raise ValueError(f"{found}, but should all end with one of {', '.join(known)}.{suggest(ending, known)}")
    return endings.pop()


def _columns_of(name: str, task: TaskConfig, text: Sequence[str], label: str | None) -> dict[str, str]:
    keys = ["anchor", "positive"] if not task.kind.has_label_column else ["sentence1", "sentence2"]
    keys = keys if task.pair else ["sentence"]
    if len(text) != len(keys):
        raise ValueError(f"Task {name!r} reads {len(keys)} text column(s), but --text names {', '.join(text)}.")
    columns = dict(zip(keys, text, strict=True))
    return columns | ({"label": label} if task.kind.has_label_column else {})


def files_data(
    folder: str,
    tasks: Mapping[str, TaskConfig],
    files: Sequence[Path],
    text: Sequence[str] = ("text",),
    labels: Mapping[str, str] | None = None,
) -> FinishedData:
    """
    The rows of files, as the split `test`.

    Args:
        folder: of the finished model, or its Hub id.
        tasks: the model's tasks that are wanted.
        files: of one format.
        text: the column to read, or two for pairs.
        labels: by task, the column of its labels. Without an entry it is called like the task; of a single task,
            `label`.

    Raises:
        ValueError: a file, a column or a row is wrong, or no task reads this kind of row.
    """
    labels = dict(labels or {})
    for name in labels:
        if name not in tasks:
            raise ValueError(f"--label: the model has no task {name!r}.{suggest(name, tasks)} It has: {list(tasks)}.")
    is_pair = len(text) == 2
    wanted = {name: task for name, task in tasks.items() if name in labels or (not labels and task.pair == is_pair)}
    if not wanted:
        raise ValueError(f"No task reads {'pairs' if is_pair else 'single sentences'}. Tasks: {', '.join(tasks)}.")
    ending = _format_of(files)
    dataset = {"path": ending, "data_files": {"test": [str(file.absolute()) for file in files]}}
    sources = [
        TaskSource(
            name=name,
            problem_type=task.problem_type,
            dataset=dataset,
            columns=_columns_of(name, task, text, labels.get(name, "label" if len(wanted) == 1 else name)),
            labels=task.labels or None,
        )
        for name, task in wanted.items()
    ]
    earlier = read_row_hashes(folder)
    loaded = load_tasks(sources, Path(), SEED, require_train=False, earlier=earlier)
    announce_trained_on(loaded)
    return FinishedData(loaded, stored_groups(folder, wanted), sources=sources)


__all__ = ["RECIPE_ENDINGS", "FinishedData", "files_data", "recipe_data", "stored_groups"]
