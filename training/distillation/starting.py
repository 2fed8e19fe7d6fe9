"""From the recipe's block to what a run learns from its teachers.

check_distillation  all that can be refused before any data is loaded
make_lessons        unlabelled text, and the teachers that the recipe names
take_single_teachers  each task's own model, trained alone first or found, for `teachers: single`
recall_single_teachers  the same models that the run of a checkpoint has learnt from
"""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from ...configuration_multitask import MultiTaskConfig
from ...data.rows.canonical import is_labelled, width_of
from ...data.rows.sets import LoadedTasks
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ..comparison.single_runs import (
    OF_ONE_RUN,
    SINGLE_FOLDER,
    find_finished,
    read_single,
    single_places,
    single_settings,
    train_single,
)
from ..run.output_folder import RESULTS_FILE
from ..strategy.plan import Plan, plan_of_tasks
from .answers import HeldOut
from .lessons import Lessons
from .settings import Distillation, TeacherName, unlabeled_key
from .teachers import check_teacher, open_teacher
from .unlabeled import load_unlabeled

logger = logging.getLogger(__name__)


def check_distillation(
    distillation: Distillation,
    tasks: dict[str, Any],
    plan: Plan,
    joint: Path | None = None,
) -> None:
    """
    Refuse what no data is needed for.

    Args:
        distillation: the recipe's block.
        tasks: the tasks as the recipe has them; labels may be stand-ins.
        plan: what trains when.
        joint: the folder of a run without teachers to compare with.

    Raises:
        ValueError: a task that should learn from a teacher has nothing to train, a teacher cannot teach its task, or
            `joint` holds no finished run of these tasks.
        ImportError: a package is missing.
    """
    where, taught = "distillation.teachers", tasks if distillation.has_single_teachers else distillation.teachers
    for task in taught:
        if not plan.trains(task):
            single = "single: " if distillation.has_single_teachers else ""
            raise ValueError(
                f"{where}: {single}task {task!r} has nothing to train (strategy), so it cannot learn from a teacher. "
                "Name teachers for the other tasks alone, or let it train."
            )
    if distillation.has_single_teachers:
        for task in tasks:
            try:
                plan_of_tasks(plan, [task])
            except ValueError as error:
                raise ValueError(f"{where}: single: {error}") from error
    else:
        for task, named in distillation.teachers.items():
            for found in named:
                check_teacher(task, found, tasks[task])
    if joint is not None:
        check_joint(joint, tasks, ("problem_type", "pair"))


def finished_tasks(folder: Path) -> dict[str, TaskConfig]:
    """The tasks of the finished model that a run has left in a folder; none where there is no such model."""
    try:
        if (folder / RESULTS_FILE).is_file():
            return MultiTaskConfig.from_pretrained(folder).tasks
    except (OSError, ValueError, TypeError):
        pass
    return {}


def check_joint(joint: Path, tasks: dict[str, TaskConfig], keys: Sequence[str]) -> None:
    """
    Refuse a run that cannot be compared with.

    Args:
        joint: its folder.
        tasks: the tasks that are compared.
        keys: which of their settings have to be the same there.

    Raises:
        ValueError: it holds no finished run of these tasks, or answers another question.
    """
    theirs = finished_tasks(joint)
    if not tasks.keys() <= theirs.keys():
        raise ValueError(
            f"--joint {joint} is no finished run of the tasks {', '.join(tasks)}. Give the folder that a run without "
            "a distillation block has saved."
        )
    for task, key in product(tasks, keys):
        found, wanted = getattr(theirs[task], key), getattr(tasks[task], key)
        if found != wanted:
            raise ValueError(
                f"--joint {joint}: {key} of task {task!r} is {found!r} there, but {wanted!r} here. Give a run of the "
                f"same tasks{', or list the labels in that order' if key == 'labels' else ''}."
            )


def joint_run_of(singles: dict[str, Path], output_dir: Path) -> Path | None:
    """
    The joint run without teachers that single runs were made for by `--compare_single`, where they are all of one run.

    They have the settings of both runs: start, data, mixture and strategy. Balancing is none of theirs, and a run that
    went on from a checkpoint may have other arguments since, so these are compared.

    Args:
        singles: by task, the folder of its single run.
        output_dir: that of the distilled run, which is saved.
    """
    folders = {single.resolve().parent.parent for single in singles.values()}
    if len(folders) != 1 or output_dir.resolve() in folders:
        return None
    (folder,) = folders
    if not singles.keys() <= finished_tasks(folder).keys():
        return None
    joint, own = (json.loads((run / RESULTS_FILE).read_text(encoding="utf-8")) for run in (folder, output_dir))
    same = [
        (found["balancing"], {key: found["training"][key] for key in found["training"] if key not in OF_ONE_RUN})
        for found in (joint, own)
    ]
    return folder if "distillation" not in joint and same[0] == same[1] else None


def make_lessons(
    distillation: Distillation,
    model: MultiTaskModel,
    loaded: LoadedTasks,
    data_root: Path,
    joint: Path | None = None,
) -> Lessons:
    """
    What a run learns from its teachers; those of `teachers: single` follow. Nothing is opened where none has a say.

    Args:
        distillation: the recipe's block.
        model: the model to train, whose task settings are complete.
        loaded: the data of all tasks.
        data_root: what relative paths start from.
        joint: the folder of a run without teachers to compare with.

    Raises:
        ValueError: a teacher cannot teach its task, `joint` has other labels, or something is wrong with the
            unlabelled text.
        ImportError: a package is missing.
    """
    if distillation.is_silent:
        return Lessons(distillation)
    if joint is not None:
        named = [task for entry in loaded.sets for task in entry.tasks]
        check_joint(joint, {task: model.config.tasks[task] for task in named}, ("labels",))
    unlabeled = {}
    if distillation.unlabeled:
        check_kinds(distillation, loaded)
        held_out = HeldOut(loaded.sets)
        for name, settings in distillation.unlabeled.items():
            unlabeled[name] = load_unlabeled(name, settings, data_root, held_out)
    lessons = Lessons(distillation, unlabeled=unlabeled)
    if not distillation.has_single_teachers:
        lessons.take(
            {
                task: [open_teacher(task, found, model.config.tasks[task]) for found in named]
                for task, named in distillation.teachers.items()
            }
        )
    return lessons


def check_kinds(distillation: Distillation, loaded: LoadedTasks) -> None:
    """
    Refuse unlabelled text that no teacher would answer.

    Raises:
        ValueError: every task with a teacher, or one of those that are named, reads another kind of row.
    """
    single = distillation.has_single_teachers
    taught = {
        task: width_of(entry.splits["train"])
        for entry in loaded.sets
        for task in entry.tasks
        if single or task in distillation.teachers
    }
    kinds = {1: "single sentences", 2: "pairs"}
    for name, settings in distillation.unlabeled.items():
        where, width, named = unlabeled_key(name), len(settings["columns"]), settings.get("tasks")
        if untaught := [task for task in named or () if task not in taught]:
            raise ValueError(f"{where}.tasks names {untaught[0]!r}, which has no teacher under distillation.teachers.")
        asked = {task: taught[task] for task in named or taught}
        if set(asked.values()) == {width} or (named is None and width in asked.values()):
            continue
        read = ", ".join(dict.fromkeys(kinds.get(found, f"{found} sentences a row") for found in asked.values()))
        raise ValueError(
            f"{where}.columns gives {kinds[width]}, but the tasks with teachers ({', '.join(asked)}) read {read}, so "
            "that no teacher would answer this text. Give text of their kind, or leave it out."
        )


def measured_split(trainer: Any, task: str) -> str:
    """`test` where there is one with rows of the task, else `validation`."""
    splits = next(entry.splits for entry in trainer.sets if task in entry.tasks)
    return "test" if "test" in splits and is_labelled(splits["test"], task).any() else "validation"


def take_single_teachers(trainer: Any, make_initial: Callable[[], MultiTaskModel]) -> dict[str, Path]:
    """
    Train each task's own model, where there is none of an earlier run, and let the trainer's tasks learn from them.

    A finished single run with the same start, data and settings is taken as it is: of this output folder, or of one
    beside it.

    Args:
        trainer: the student's, which has not trained yet.
        make_initial: makes the model that it starts from.

    Returns:
        By task, the folder of its single run.
    """
    output_dir, initial, folders = Path(trainer.args.output_dir), make_initial(), {}
    for number, task in enumerate(trainer.trained_tasks, 1):
        settings = single_settings(trainer, initial, task)
        own = output_dir / SINGLE_FOLDER / task
        found = find_finished(trainer, single_places(output_dir, task), settings)
        title = f"{task} alone ({number} of {len(trainer.trained_tasks)})"
        logger.info(f"\n{title}: finished before, in {found}" if found else f"\n{title}")
        if found is None:
            train_single(trainer, initial, task, own, measured_split(trainer, task))
        folders[task] = found or own
    trainer.accelerator.wait_for_everyone()
    _take(trainer, folders)
    return folders


def recall_single_teachers(trainer: Any, checkpoint: Path) -> dict[str, Path]:
    """
    Let the trainer's tasks learn from the single models that the run of a checkpoint has learnt from.

    They are known by what the checkpoint records of them, so that arguments may have changed since. None is trained.

    Args:
        trainer: the student's, which has been checked against the checkpoint.
        checkpoint: its folder.

    Returns:
        By task, the folder of its single run.

    Raises:
        ValueError: one is no longer there.
    """
    wanted, output_dir = trainer.lessons.describe()["teachers"], Path(trainer.args.output_dir)
    looked: list[dict[str, Path | None]] = [{}]
    if trainer.accelerator.is_main_process:
        for task in trainer.trained_tasks:
            places = dict.fromkeys((*single_places(checkpoint.parent, task), *single_places(output_dir, task)))
            is_it = (place for place in places if _identity(trainer, task, place) in wanted.get(task, ()))
            looked[0][task] = next(is_it, None)
    folders = broadcast_object_list(looked)[0]
    for task, folder in folders.items():
        if folder is None:
            raise ValueError(
                f"resume_from_checkpoint: no folder {SINGLE_FOLDER}/{task} in {output_dir}, in {checkpoint.parent} or "
                f"beside them holds the teacher that the run of {checkpoint} has learnt from. Put it back, or start a "
                "run anew, without --resume_from_checkpoint."
            )
        logger.info(f"\n{task} alone: finished before, in {folder}")
    _take(trainer, folders)
    return folders


def _identity(trainer: Any, task: str, folder: Path) -> str | None:
    """Of the teacher in the folder of a single run; `None` where there is none."""
    if read_single(folder) is None:
        return None
    try:
        return open_teacher(task, TeacherName(str(folder)), trainer.tasks[task]).identity
    except ValueError:
        return None


def _take(trainer: Any, folders: dict[str, Path]) -> None:
    """Let the tasks learn from the models in some folders."""
    trainer.lessons.take(
        {task: [open_teacher(task, TeacherName(str(folder)), trainer.tasks[task])] for task, folder in folders.items()}
    )
    set_seed(trainer.args.seed)  # the student draws the same numbers, whether its teachers were trained or found


__all__ = ["check_distillation", "make_lessons", "recall_single_teachers", "take_single_teachers"]
