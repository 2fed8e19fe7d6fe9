"""What a run prints and leaves behind: settings at the start, the table of scores, results.json, the saved folder."""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...configuration_multitask import public_name
from ...data.rows.canonical import is_labelled
from ...data.rows.row_hashes import write_row_hashes
from ...data.rows.sets import LoadedTasks
from ...manifest_multitask import listed
from ...modeling_multitask import MultiTaskModel
from ...records_multitask import settings_of
from ...staging_multitask import write_whole
from ...tasks_multitask import TaskConfig
from ..arguments import WITHOUT_EFFECT, MultiTaskTrainingArguments
from ..balancing.settings import format_balancing
from ..evaluation.groups import TaskGroup, with_groups
from ..evaluation.scores import TaskAnswers
from ..mixture.drawing import describe_epoch
from ..recipe.recipe import Recipe
from ..run.output_folder import RECIPE_FILE, RESULTS_FILE, write_json
from ..trainer import MultiTaskTrainer
from .confusion import count_confusions

ONLY_EVALUATED = "only evaluated"  # said of a task that has nothing to train
EXTRA_METRICS = ("mean_cosine_related", "mean_cosine_unrelated")  # measured for similarity without being listed


def changed_arguments(arguments: MultiTaskTrainingArguments) -> dict[str, Any]:
    """The training arguments that a reader needs: all that differ from transformers' own defaults, but no token and no
    empty list."""
    changed = {}
    for argument in fields(MultiTaskTrainingArguments):
        if not argument.init or argument.name.endswith("_token") or argument.name in WITHOUT_EFFECT:
            continue
        default = argument.default_factory() if argument.default_factory is not MISSING else argument.default
        value = getattr(arguments, argument.name)
        if argument.name in MultiTaskTrainingArguments.__annotations__ or value != default:
            changed[argument.name] = getattr(value, "value", value) if not isinstance(value, dict) else value
    shown = (str, int, float, bool, list, dict)
    return {key: value for key, value in changed.items() if isinstance(value, shown) and value not in ([], {})}


def stored_arguments(arguments: MultiTaskTrainingArguments) -> dict[str, Any]:
    """The same as results.json holds them, without folders of this machine."""
    return {
        name: public_name(value) if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in changed_arguments(arguments).items()
    }


def _metrics(task: TaskConfig) -> str:
    """`f1 (irony), accuracy`: what a task lists."""
    classes = f" ({', '.join(task.f1_labels)})"
    return ", ".join(metric + classes * (metric == "f1") for metric in task.metrics)


def format_settings(
    recipe: Recipe, model: MultiTaskModel, trainer: MultiTaskTrainer, notes: Sequence[tuple[str, str]] = ()
) -> str:
    """The settings in force, as a readable block; `notes` are lines on the start and on the augmentation of rows."""
    config, groups = model.config, trainer.groups
    lines = [
        ("recipe", recipe.path),
        ("backbone", f"{recipe.backbone} ({model.backbone.num_parameters() / 1e6:.1f} M parameters)"),
        *notes,
        ("pooling", config.pooling),
        ("projection", settings_of(config.projection) or "none"),
        ("normalize", config.normalize),
        ("embedding_dim", config.embedding_dim),
        ("max_length", config.max_length),
        ("balancing", format_balancing(trainer.balancer.config.to_recipe())),
        *((f"group {name}", f"{', '.join(found.tasks)}: {_metrics(found.scoring)}") for name, found in groups.items()),
        ("processes", trainer.args.world_size),
        ("device", trainer.args.device),
        *changed_arguments(trainer.args).items(),
    ]
    rows = [split for labelled_set in trainer.sets for split in labelled_set.splits.values()]
    if trainer.lessons is not None:
        lines.append(("distillation", trainer.lessons.in_words()))
    if (features := trainer.features.describe(model, rows)) is not None:
        lines.append(("feature cache", features))
    epoch = sum(entry.rows_per_epoch for entry in trainer.drawn)
    tasks = []

    def add_row(task: str, rows: str, least_rows: int | str) -> None:
        settings = config.tasks[task]
        tasks.append(
            [
                task,
                settings.problem_type + (" (pair)" if settings.pair else ""),
                "-" if settings.head is None else " x ".join(map(str, [*settings.head.hidden_dims, "linear"])),
                settings.loss,
                settings.loss_weight,
                _metrics(settings),
                rows,
                least_rows,
            ]
        )

    for drawn in trainer.drawn:
        for task in drawn.tasks:
            add_row(task, f"{drawn.rows_per_epoch} ({drawn.rows_per_epoch / epoch:.0%})", drawn.least_rows)
    for task in [task for task in trainer.tasks if task not in trainer.trained_tasks]:
        add_row(task, ONLY_EVALUATED, "-")
    header = ["task", "problem_type", "head", "loss", "weight", "metrics", "rows an epoch", "least rows"]
    return (
        "Settings\n"
        + tabulate(lines, tablefmt="plain")
        + f"\n\nMixture: {describe_epoch(trainer.mixture, trainer.drawn, len(trainer.sampler))}\n"
        + tabulate(tasks, header)
    )


def scores_by_task(metrics: dict[str, float], prefix: str, tasks: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`{"test_topic_accuracy": 0.9}` to `{"topic": {"accuracy": 0.9}}`; tasks without a score are left out."""
    scores = {
        task: {
            name: metrics[f"{prefix}_{task}_{name}"]
            for name in (*settings.metrics, *EXTRA_METRICS, "loss")
            if f"{prefix}_{task}_{name}" in metrics
        }
        for task, settings in tasks.items()
    }
    return {task: found for task, found in scores.items() if found}


def format_scores(
    tasks: dict[str, TaskConfig],
    scores: dict[str, dict[str, dict[str, float]]],
    trained: Iterable[str] | None = None,
    groups: Mapping[str, TaskGroup] | None = None,
) -> str:
    """A table with a line per task and metric, the primary metric first; all tasks were trained unless it is said.
    Groups follow."""
    groups, trained = groups or {}, set(tasks if trained is None else trained)
    remarks = dict.fromkeys(tasks.keys() - trained, f" ({ONLY_EVALUATED})") | dict.fromkeys(groups, " (group)")
    rows = []
    for task, settings in with_groups(tasks, groups).items():
        found = {metric for split in scores.values() for metric in split.get(task, {})} - {"loss"}
        metrics = [*settings.metrics, *sorted(found - set(settings.metrics)), *["loss"] * (task not in groups)]
        for place, metric in enumerate(metrics):
            values = [scores[split].get(task, {}).get(metric) for split in scores]
            rows.append([task + remarks.get(task, "") if place == 0 else "", metric, *values])
    return tabulate(rows, ["task", "metric", *scores], floatfmt=".4f", missingval="-")


def save_result(
    recipe: Recipe,
    model: MultiTaskModel,
    trainer: MultiTaskTrainer,
    loaded: LoadedTasks,
    measured: dict[str, dict[str, Any]],
    answers: dict[str, dict[str, TaskAnswers]],
    seconds: float,
) -> None:
    """Save the finished model with its recipe, results.json and, where kept, its rows' hashes: all or none."""
    rows = {
        task: {split: int(is_labelled(rows, task).sum()) for split, rows in entry.splits.items()}
        for entry in loaded.sets
        for task in entry.tasks
    }
    packages = ("torch", "transformers", "datasets", "accelerate", "evaluate")
    results = {
        **measured,
        "confusion": count_confusions(trainer.tasks, answers),
        "best_of_tasks": trainer.best_of_tasks.summary,
        "best_step": trainer.state.best_global_step,
        "best_metric": trainer.state.best_metric,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(seconds, 1),
        "rows": rows,
        "rows_per_epoch": sum(entry.rows_per_epoch for entry in trainer.drawn),
        "backbone": public_name(recipe.backbone) if recipe.backbone else None,
        "continue_from": public_name(recipe.continue_from) if recipe.continue_from else None,
        "peft": recipe.peft,
        "groups": {name: group.to_recipe() for name, group in trainer.groups.items()},
        "tasks": {name: task.to_dict() for name, task in model.config.tasks.items()},
        "augmentation": {
            task: {**noted, "models": [public_name(name) for name in noted["models"]]} if "models" in noted else noted
            for task, noted in loaded.augmentations.items()
        },
        "mixture": recipe.mixture.to_recipe(),
        "strategy": recipe.strategy,
        "only_evaluated": [task for task in trainer.tasks if task not in trainer.trained_tasks],
        "balancing": trainer.balancer.config.to_recipe(),
        "training": stored_arguments(trainer.args),
        "processes": trainer.args.world_size,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "history": trainer.state.log_history,
    }
    model.adopt_heads()
    with listed(trainer.args.output_dir) as unfinished:
        folder = Path(unfinished)
        model.save_pretrained(folder)
        write_whole(folder / RECIPE_FILE, recipe.text)
        if trainer.row_hashes is not None:
            write_row_hashes(folder, trainer.row_hashes)
        write_json(folder / RESULTS_FILE, results)


def add_result(folder: Path, key: str, value: Any) -> None:
    """Put one more thing into a finished run's results.json."""
    results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    with listed(folder) as unfinished:
        write_json(Path(unfinished, RESULTS_FILE), {**results, key: value})
