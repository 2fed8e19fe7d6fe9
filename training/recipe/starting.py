"""What a run starts from: an encoder with new heads, or a trained model with tasks added; with an adapter or without.

check_start      all that can be refused before any data is loaded, and what trains when
start_model      the model to train
describe_start   what is printed at the start
describe_origin  what of the recipe makes the run the one it is
scores_before    what a trained model's tasks score before training goes on
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ...backbone_multitask import (
    SentenceTransformersSettings,
    find_backbone,
    open_backbone_config,
    read_sentence_transformers,
)
from ...configuration_multitask import MultiTaskConfig, check_encoder, complete_projection
from ...data.rows.row_hashes import RowHashes, read_row_hashes
from ...data.rows.sets import LoadedTasks
from ...data.sources.task_source import TaskSource
from ...modeling_multitask import MultiTaskModel
from ...records_multitask import settings_of
from ...staging_multitask import is_same_folder
from ...tasks_multitask import TaskConfig, complete_task, extend_labels
from ..arguments import MultiTaskTrainingArguments
from ..calibration.scope import abstains_by_scope
from ..evaluation.groups import read_groups
from ..strategy.plan import Plan, make_plan, planned_parts
from ..trainer import MultiTaskTrainer
from .adapters import adapter_config, check_adapter, describe_adapter
from .recipe import Recipe

# What a task's head was built for; the rest of its settings only says how it is trained and measured.
FIXED_SETTINGS = ("problem_type", "pair", "labels", "head", "target_mean", "target_deviation")


@dataclass
class Start:
    """
    A checked start.

    Attributes:
        path: folder or Hub id to load from.
        sources: where each task's rows come from, with the labels of tasks that the model has already.
        plan: what trains when, of a model without weights; the trainer binds it to its own.
        tasks: settings of those tasks, by name, with new labels; empty for a new model.
        new_labels: by task, the labels that the model does not have yet.
        earlier: which rows the model has seen already; `None` for a new model.
        embedding: what a backbone of sentence-transformers says of its embedding; `None` for a trained model.
    """

    path: str
    sources: list[TaskSource]
    plan: Plan
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    new_labels: dict[str, list[str]] = field(default_factory=dict)
    earlier: RowHashes | None = None
    embedding: SentenceTransformersSettings | None = None


def _trained_config(name_or_path: str) -> MultiTaskConfig:
    """The configuration of the model to continue from; a ValueError where there is no such model."""
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"continue_from: the folder {name_or_path} holds no config.json, so it is no model.")
    if not Path(name_or_path).is_dir() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise ValueError(f"continue_from: there is no folder {name_or_path}. Give an existing folder or a Hub id.")
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"continue_from: {name_or_path} cannot be opened as a model. {said}") from error
    if found.get("model_type") != MultiTaskConfig.model_type:
        raise ValueError(
            f"continue_from: {name_or_path} is a {found.get('model_type')!r} model, not one that was trained here. "
            "Name it as backbone to start a new model from it."
        )
    return MultiTaskConfig.from_pretrained(name_or_path)


def _check_same_embedding(recipe: Recipe, config: MultiTaskConfig) -> None:
    for key in ("pooling", "projection", "normalize", "max_length"):
        wanted, found = getattr(recipe, key), getattr(config, key)
        if key == "projection":
            wanted = complete_projection(wanted)
        if wanted is not None and wanted != found:
            raise ValueError(
                f"{recipe.path}: {key} is {settings_of(wanted)!r}, but {recipe.continue_from} was trained with "
                f"{settings_of(found)!r}. Remove it: a model that is continued keeps its own."
            )


def _with_new_labels(recipe: Recipe, name: str, saved: TaskConfig, labels: list[str]) -> TaskConfig:
    """A saved task with the labels that the recipe lists after the saved ones."""
    own = saved.labels
    if labels[: len(own)] != own:
        raise ValueError(
            f"{recipe.path}: tasks.{name}.labels is {labels!r}, but the task of that name in {recipe.continue_from} "
            f"has {own!r}. List these first, in this order, and new ones after them; or give the new task another "
            "name."
        )
    return extend_labels(name, saved, labels[len(own) :])


def _continued_task(recipe: Recipe, name: str, saved: TaskConfig) -> TaskConfig:
    """A task that the model has already: its own settings, but for what the recipe says of loss and metrics."""
    given, planned = recipe.settings[name], recipe.tasks[name]
    for key in FIXED_SETTINGS:
        wanted = settings_of(planned.head) if key == "head" else given.get(key)
        found = settings_of(getattr(saved, key))
        if key == "labels" and key in given and wanted != found:
            saved = _with_new_labels(recipe, name, saved, wanted)
        elif key in given and wanted != found:
            raise ValueError(
                f"{recipe.path}: tasks.{name}.{key} is {wanted!r}, but the task of that name in "
                f"{recipe.continue_from} has {found!r}. Keep to that, or give the new task another name."
            )
    changed = {key: value for key, value in given.items() if key not in FIXED_SETTINGS}
    if "metrics" in changed:
        changed.setdefault("f1_labels", [])  # which only say what the metrics before meant
    return replace(saved, **changed, where=f"tasks.{name}")


def _continued_tasks(recipe: Recipe, config: MultiTaskConfig) -> dict[str, TaskConfig]:
    """Settings of all tasks of the model to continue from, with what the recipe says of them."""
    _check_same_embedding(recipe, config)
    tasks = dict(config.tasks)
    tasks |= {name: _continued_task(recipe, name, tasks[name]) for name in recipe.tasks if name in tasks}
    read_groups(recipe.groups, {**recipe.tasks, **tasks})
    asking = [name for name in recipe.tasks if name in tasks and abstains_by_scope(tasks[name])]
    if asking and recipe.out_of_scope is False:
        raise ValueError(
            f"{recipe.path}: out_of_scope is false, but the task {asking[0]!r} of {recipe.continue_from} abstains out "
            f"of its scope. Remove out_of_scope, or give tasks.{asking[0]}.abstain without it."
        )
    return tasks


def _check_apart(source: Path, output_dir: Path) -> None:
    above = source.resolve()
    if source.is_dir() and any(is_same_folder(output_dir, folder) for folder in (above, *above.parents)):
        raise ValueError(
            f"continue_from {source} lies in the output_dir {output_dir}, which would be written over. Give another "
            "--output_dir."
        )


def _check_peft(recipe: Recipe, pushes: bool) -> None:
    """What can be refused of the `peft` block before anything is looked for on the Hub."""
    adapter_config(recipe.peft)
    source = recipe.continue_from or recipe.backbone
    if pushes and recipe.peft.get("save") == "adapter" and Path(source).is_dir():
        raise ValueError(
            f"peft.save is 'adapter', but {'continue_from' if recipe.continue_from else 'the backbone'} is the "
            f"folder {source}, where nobody else finds it. Set save: merged, or start from a model on the Hub."
        )


def check_start(recipe: Recipe, args: MultiTaskTrainingArguments) -> Start:
    """
    Find what the recipe starts from, check that its tasks and its adapter fit, and plan what trains when.

    Args:
        recipe: the recipe.
        args: of the run; where it saves, whether it pushes, and what `make_plan` reads.

    Raises:
        ValueError: the backbone is no encoder; the model to continue from is none, has other settings than the recipe
            says, or lies in the output folder; the adapter or the strategy does not fit.
        ImportError: the recipe has a `peft` block, and peft is not installed.
    """
    if recipe.peft is not None:
        _check_peft(recipe, args.push_to_hub)
    if recipe.continue_from is not None:
        path, config = recipe.continue_from, _trained_config(recipe.continue_from)
        _check_apart(Path(path), Path(args.output_dir))
        backbone_config, projection = config.backbone_config, config.projection
        tasks = _continued_tasks(recipe, config)
        new_labels = {name: task.labels[len(config.tasks[name].labels) :] for name, task in tasks.items()}
        earlier, embedding = read_row_hashes(path), None
    else:
        path = find_backbone(recipe.backbone)
        backbone_config = open_backbone_config(path)
        check_encoder(backbone_config)
        embedding = read_sentence_transformers(path, unless_given=recipe.pooling)
        tasks, new_labels, earlier, projection = {}, {}, None, recipe.projection or embedding.projection
    adapted = None if recipe.peft is None else check_adapter(recipe.peft, backbone_config)
    new = {name: task for name, task in recipe.tasks.items() if name not in tasks}
    planned = MultiTaskConfig(backbone_config=backbone_config, projection=projection, tasks={**tasks, **new})
    parts = planned_parts(planned, adapted)
    for name in tasks.keys() - recipe.settings.keys():
        for parameter in parts.get(f"heads.{name}", {}).values():
            parameter.requires_grad_(False)  # as `start_model` does
    try:
        plan = make_plan(recipe.strategy, parts, args)
    except ValueError as error:
        raise ValueError(f"{recipe.path}: {error}") from error
    return Start(
        path=path,
        sources=[
            replace(source, labels=tasks[source.name].labels or None) if source.name in tasks else source
            for source in recipe.sources
        ],
        plan=plan,
        tasks=tasks,
        new_labels={name: labels for name, labels in new_labels.items() if labels},
        earlier=earlier,
        embedding=embedding,
    )


def new_tasks(recipe: Recipe, loaded: LoadedTasks, known: Collection[str] = ()) -> dict[str, TaskConfig]:
    """The recipe's tasks that are not known yet, with the labels and score ranges that the data gave."""
    tasks = {}
    for name, given in recipe.settings.items():
        if name in known:
            continue
        found = {"labels": loaded.labels[name]} if name in loaded.labels else {}
        if recipe.tasks[name].kind.has_score_range and "score_range" not in given:
            found["score_range"] = list(loaded.score_ranges[name])
        tasks[name] = complete_task(name, {**given, **found}, is_new=True)
    return tasks


def start_model(start: Start, recipe: Recipe, loaded: LoadedTasks) -> MultiTaskModel:
    """
    The model to train: new or trained, with every task of the recipe, and with its adapter.

    Heads of tasks that the recipe does not name are frozen: no data says what they should learn.
    """
    tasks = new_tasks(recipe, loaded, start.tasks)
    if recipe.continue_from is None:
        model = MultiTaskModel.from_backbone(
            start.path,
            tasks=tasks,
            pooling=recipe.pooling,
            projection=recipe.projection,
            normalize=recipe.normalize,
            max_length=recipe.max_length,
            _stored=start.embedding,
        )
        model.config.backbone_config._name_or_path = recipe.backbone  # also where a packaged copy was taken
    else:
        model = MultiTaskModel.from_pretrained(start.path, dtype=torch.float32)
        if model.config.base_name_or_path:
            model.merge_adapter()
        for name, labels in start.new_labels.items():
            model.add_labels(name, labels)
        model.config.tasks = start.tasks
        for name, task in tasks.items():
            model.add_task(name, task)
        for name in model.heads.keys() - recipe.settings.keys():
            model.heads[name].requires_grad_(False)
    if recipe.peft is not None:
        model.add_adapter(adapter_config(recipe.peft))
    return model


def describe_start(start: Start, recipe: Recipe, model: MultiTaskModel) -> list[tuple[str, str]]:
    """Lines for the settings: what is continued, what is new, what is kept as it is, and the adapter."""
    lines = []
    if recipe.continue_from is not None:
        groups = {
            "continued tasks": [name for name in start.tasks if name in recipe.settings],
            "new tasks": [name for name in recipe.settings if name not in start.tasks],
            "kept tasks": [name for name in start.tasks if name not in recipe.settings],
        }
        remarks = {
            "kept tasks": " (no data in the recipe: heads frozen, not measured; training the backbone or the "
            "projection changes their answers)"
        }
        lines += [(title, ", ".join(names) + remarks.get(title, "")) for title, names in groups.items() if names]
        lines += [(f"new labels of {name}", ", ".join(labels)) for name, labels in start.new_labels.items()]
    if recipe.peft is not None:
        lines.append(("peft", describe_adapter(model, recipe.peft)))
    return lines


def describe_origin(recipe: Recipe) -> dict[str, Any]:
    """What a run's checkpoints record beside what its Trainer knows: what it starts from, and how rows are read."""
    return {
        "backbone": recipe.backbone,
        "continue_from": recipe.continue_from,
        "columns": {source.name: source.columns for source in recipe.sources},
        "augmentation": {source.name: source.augmentation for source in recipe.sources if source.augmentation},
    }


def scores_before(trainer: MultiTaskTrainer, splits: Sequence[str], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    Loss and metrics of the tasks that a trained model has already, before it is trained on.

    Returns by `"<split> before"` and task what `task_scores` measures; splits without any of the tasks are left out.
    """
    found = {f"{split} before": trainer.measure(split, tasks) for split in splits}
    return {split: scores for split, scores in found.items() if scores}
