"""The recipe: one YAML file with the backbone, the tasks with their datasets, the mixture and the training arguments.

`load_recipe` reads and checks everything that can be checked before any data is loaded.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..configuration_multitask import (
    HEAD_PROBLEM_TYPES,
    LABELLED_PROBLEM_TYPES,
    complete_projection,
    complete_task,
    suggest,
)
from ..data.sources import TaskSource
from .trainer import MultiTaskTrainingArguments

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
SAMPLINGS = ("proportional",)

_SOURCE_KEYS = ("dataset", "columns", "labels", "validation_split")
_SETTING_KEYS = ("problem_type", "labels", "head", "loss", "loss_weight", "metrics", "score_range")
_TASK_KEYS = ("problem_type", "dataset", "columns", "labels", "validation_split", *_SETTING_KEYS[2:])
_MIXTURE_KEYS = ("sampling", "passes", "rows_per_batch")
_TRAINING_KEYS = tuple(argument.name for argument in fields(MultiTaskTrainingArguments) if argument.init)


@dataclass
class Recipe:
    """
    A checked recipe.

    Attributes:
        path: the file.
        sources: where each task's rows come from.
        settings: each task's settings for the model, as far as the recipe gives them (labels may still be missing).
        training: training arguments by name.
        text: the file's text, kept beside the finished model.
    """

    path: Path
    sources: list[TaskSource]
    settings: dict[str, dict[str, Any]]
    text: str
    backbone: str = DEFAULT_BACKBONE
    pooling: str | None = None
    projection: dict[str, Any] | None = None
    normalize: bool | None = None
    max_length: int | None = None
    mixture: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


_RECIPE_KEYS = ("backbone", "pooling", "projection", "normalize", "max_length", "tasks", "mixture", "training")


def _mapping(where: str, value: Any, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The value, if it is a mapping with known keys only; an empty one for nothing at all."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, but should be a mapping (lines of `key: value`).")
    for key in value:
        if known is not None and key not in known:
            raise ValueError(
                f"{where}: unknown key {key!r}.{suggest(key, known)} Known keys: {', '.join(sorted(known))}."
            )
    return value


def _read_task(where: str, name: str, task: dict[str, Any]) -> tuple[TaskSource, dict[str, Any]]:
    task = _mapping(where, task, _TASK_KEYS)
    settings = {key: task[key] for key in _SETTING_KEYS if task.get(key) is not None}
    columns = _mapping(f"{where}.columns", task.get("columns"))
    if settings.get("problem_type") in HEAD_PROBLEM_TYPES:
        settings["pair"] = "sentence1" in columns
    # What only the data can say stands in for itself here, so that the rest is checked before any data is loaded.
    stand_in = dict(settings)
    if settings.get("problem_type") in LABELLED_PROBLEM_TYPES:
        stand_in.setdefault("labels", ["first", "second"])
    complete_task(name, stand_in)
    if not task.get("dataset"):
        raise ValueError(
            f"{where}: dataset is missing. Give the arguments of datasets.load_dataset, such as path: csv."
        )
    source = TaskSource(
        name=name,
        problem_type=settings["problem_type"],
        dataset=_mapping(f"{where}.dataset", task["dataset"]),
        columns=columns,
        labels=[str(label) for label in task["labels"]] if task.get("labels") else None,
        validation_split=task.get("validation_split"),
    )
    return source, settings


def _read_mixture(where: str, mixture: Any, tasks: dict[str, Any]) -> dict[str, Any]:
    mixture = _mapping(where, mixture, _MIXTURE_KEYS)
    sampling = mixture.get("sampling", "proportional")
    if sampling not in SAMPLINGS:
        raise ValueError(f"{where}.sampling is {sampling!r}, but should be one of {', '.join(SAMPLINGS)}.")
    for key, kinds in (("passes", (int, float)), ("rows_per_batch", (int,))):
        for task, value in _mapping(f"{where}.{key}", mixture.get(key), tuple(tasks)).items():
            if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
                raise ValueError(f"{where}.{key}.{task} is {value!r}, but should be a number above 0.")
    return mixture


def load_recipe(path: str | Path) -> Recipe:
    """
    Read a recipe and check it.

    Raises:
        ValueError: the file cannot be read, is no YAML, or holds something unknown or wrong; the message says where,
            what was found and what would be right.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}. Give the path of a YAML file, such as recipes/quickstart.yaml.")
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a recipe: it should be a mapping with tasks, but holds {str(content)[:60]!r}."
        )
    try:
        content = _mapping("recipe", content, _RECIPE_KEYS)
        tasks = _mapping("tasks", content.get("tasks"))
        if not tasks:
            raise ValueError("tasks is missing or empty. Name at least one task with its problem_type and dataset.")
        complete_projection(content.get("projection"))
        read = {name: _read_task(f"tasks.{name}", name, task) for name, task in tasks.items()}
        return Recipe(
            path=path,
            sources=[source for source, _ in read.values()],
            settings={name: settings for name, (_, settings) in read.items()},
            text=text,
            mixture=_read_mixture("mixture", content.get("mixture"), tasks),
            training=_mapping("training", content.get("training"), _TRAINING_KEYS),
            backbone=str(content.get("backbone") or DEFAULT_BACKBONE),
            **{key: content.get(key) for key in ("pooling", "projection", "normalize", "max_length")},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
