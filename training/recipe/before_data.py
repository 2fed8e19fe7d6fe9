"""All that can be refused about a run before any data is loaded."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ...backbone_multitask import find_backbone
from ...data.augmentation.rows import Augmentation, open_augmentations
from ...data.sources.task_source import check_file_names
from ...staging_multitask import is_same_folder
from ..argument_checks import check_packages
from ..arguments import MultiTaskTrainingArguments, check_process
from ..balancing.balancers import Balancer
from ..balancing.making import check_shared_parts, make_balancer
from ..balancing.settings import BalancingConfig
from ..distillation.starting import check_distillation
from ..evaluation.best_checkpoints import check_best_metric
from ..evaluation.early_stopping import check_early_stopping
from ..resuming.files import RUN_FILE, check_files, last_checkpoint
from ..run.output_folder import check_output_dir
from ..run.pinned import check_pinned
from ..strategy.plan import Plan, plan_of_tasks
from .recipe import Recipe
from .starting import Start, check_start

PIN_IT = "a folder: hf download {source} --revision {commit} --local-dir FOLDER"


def chosen_checkpoint(arguments: MultiTaskTrainingArguments) -> Path | None:
    """The checkpoint to resume from, checked; `None` to start anew."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() in ("last", "true"):
        if (last := last_checkpoint(Path(arguments.output_dir))) is None:
            raise ValueError(
                f"{arguments.output_dir} holds no checkpoint to resume from. Leave --resume_from_checkpoint out (and "
                "replace with --overwrite what a run has left that did not come as far), or name the folder of a "
                "checkpoint."
            )
        return last
    if not any((Path(wanted) / name).is_file() for name in (RUN_FILE, TRAINER_STATE_NAME)):
        raise ValueError(
            f"resume_from_checkpoint: {wanted or 'an empty name'} is no checkpoint of a Trainer. Name a folder, such "
            f"as {Path(arguments.output_dir, 'checkpoint-500')}, or give the flag without a value for the last one."
        )
    return Path(wanted)


@dataclass
class Checked:
    """
    A run, checked as far as it can be without data.

    Attributes:
        checkpoint: the one to resume from, `None` to start anew.
        starts_anew: whether the output folder is begun: no checkpoint in it is resumed from.
        start: what the model starts from, and what of it trains when.
        balancer: turns the tasks' losses into the step.
        augmentations: what makes further training rows.
    """

    checkpoint: Path | None
    starts_anew: bool
    start: Start
    balancer: Balancer
    augmentations: list[Augmentation]


def check_hub_names(recipe: Recipe, require_pinned: bool) -> None:
    """
    Warn of trained models that come from the Hub by a name; with `require_pinned` refuse them, and a backbone, too.

    Raises:
        ValueError: one does.
    """
    teachers = recipe.distillation.teachers if recipe.distillation is not None else {}
    named = [teacher.model for found in teachers.values() for teacher in found] if isinstance(teachers, dict) else []
    if recipe.continue_from or require_pinned:
        named.insert(0, recipe.continue_from or find_backbone(recipe.backbone))
    for name in dict.fromkeys(named):
        check_pinned(name, None, require_pinned, PIN_IT)


def check_comparison(plan: Plan, recipe: Recipe) -> None:
    """
    Refuse a comparison that cannot be made.

    Raises:
        ValueError: fewer than two tasks are trained, or one has nothing to train in a stage.
    """
    trained = [task for task in recipe.settings if plan.trains(task)]
    if len(trained) < 2:
        found = f"only {trained[0]!r} is trained" if trained else "strategy leaves nothing to train"
        raise ValueError(
            f"--compare_single: {recipe.path}: {found}, so there is nothing to compare. Train two tasks or more, or "
            "leave --compare_single out."
        )
    for task in trained:
        try:
            plan_of_tasks(plan, [task])
        except ValueError as error:
            raise ValueError(f"--compare_single: {recipe.path}: {error}") from error


def check_streams(recipe: Recipe) -> None:
    """
    Refuse what cannot be done with rows that are read onward.

    Raises:
        ValueError: teachers would have to answer them.
    """
    streamed = next((source.name for source in recipe.sources if source.is_streamed), None)
    if streamed is not None and recipe.distillation is not None:
        raise ValueError(
            f"{recipe.path}: distillation keeps what teachers answer to every training row, and "
            f"tasks.{streamed}.dataset.streaming keeps none. Take one of them out."
        )


def check_rows_per_batch(recipe: Recipe, trained: Sequence[str], batch_size: int) -> None:
    """
    Refuse more rows of a task than a batch holds.

    Raises:
        ValueError: names the task.
    """
    for task, rows in recipe.mixture.rows_per_batch.items():
        if task in trained and rows > batch_size:
            raise ValueError(
                f"{recipe.path}: mixture.rows_per_batch.{task} is {rows}, but a batch holds {batch_size} rows. Raise "
                "per_device_train_batch_size or lower rows_per_batch."
            )


def check_before_data(options: argparse.Namespace, recipe: Recipe, arguments: MultiTaskTrainingArguments) -> Checked:
    """
    Refuse all that can be refused before any data is loaded; nothing is written.

    Raises:
        ValueError: recipe, arguments and output folder do not fit each other; says where and what would be right.
        ImportError: a package is missing.
    """
    check_process(arguments)
    check_file_names((*recipe.tasks, *recipe.groups))
    check_hub_names(recipe, options.require_pinned)
    checkpoint, output_dir = chosen_checkpoint(arguments), Path(arguments.output_dir)
    above = checkpoint.resolve().parents if checkpoint else ()
    starts_anew = not any(is_same_folder(output_dir, folder) for folder in above)
    if starts_anew:
        check_output_dir(output_dir, overwrite=options.overwrite or options.check)
    check_packages(arguments)
    check_streams(recipe)
    check_early_stopping(arguments, (*recipe.tasks, *recipe.groups))
    start = check_start(recipe, arguments)
    tasks = {name: start.tasks.get(name, task) for name, task in recipe.tasks.items()}
    check_best_metric(arguments, tasks, recipe.groups)
    trained = [task for task in recipe.settings if start.plan.trains(task)]
    check_rows_per_batch(recipe, trained, arguments.per_device_train_batch_size)
    balancer = make_balancer(recipe.balancing if trained else BalancingConfig(), len(trained), arguments)
    check_shared_parts(balancer.method, start.plan)
    if checkpoint and not trained:
        raise ValueError("resume_from_checkpoint: strategy.freeze is all, so there is no training to go on with.")
    if options.compare_single:
        check_comparison(start.plan, recipe)
    if options.joint is not None and recipe.distillation is None:
        raise ValueError("--joint goes with a distillation block in the recipe, which is not there. Leave it out.")
    if recipe.distillation is not None:
        check_distillation(recipe.distillation, recipe.tasks, start.plan, options.joint)
    if checkpoint:
        check_files(checkpoint, arguments.world_size)
    augmentations = open_augmentations(start.sources, recipe.path.parent) if trained else []
    return Checked(checkpoint, starts_anew, start, balancer, augmentations)
