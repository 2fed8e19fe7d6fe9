"""Do the tasks help or hurt each other? Each task trained alone, beside the joint run: `train.py --compare_single`.

    check_comparison  what can be refused before any data is loaded
    compare_single    the single runs, and all that the comparison says; what it returns goes into results.json

A single run has the joint run's start, seed, strategy and arguments, and the same number of the task's rows in as many
passes. It leaves `single/<task>` with scores and predictions; a finished one is not repeated. report.py shows the
comparison, gradient_cosines.py measures the tasks' gradients during the joint run.
"""

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from safetensors.numpy import load_file, save
from transformers import set_seed

from ...data.bootstrap import RESAMPLES, paired_interval
from ...data.collation import LABEL_PREFIX
from ...data.loading import LabelledSet
from ...data.sampling.sampler import rows_labelled_for
from ...modeling_multitask import MultiTaskModel
from ..arguments import MultiTaskTrainingArguments
from ..best_checkpoints import score_key
from ..drawing import draw_sets, make_sampler, steps_of_epoch
from ..mixture import MixtureConfig
from ..recipe.recipe import Recipe
from ..recipe.starting import Start, plan_before_data
from ..report.results import changed_arguments, scores_by_task, write_json
from ..stages import stage_starts
from ..strategy import plan_of_tasks
from ..trainer import MultiTaskTrainer
from .gradient_cosines import cosines_of_history

SINGLE_FOLDER = "single"
RESULT_FILE = "results.json"
PREDICTIONS_FILE = "predictions.safetensors"
LEAST_EVALUATIONS = 3  # that a correlation between two validation curves is computed from
MEAN_COSINES = ("mean_cosine_related", "mean_cosine_unrelated")

Predictions = tuple[np.ndarray, np.ndarray | None]


def check_comparison(start: Start, recipe: Recipe, args: MultiTaskTrainingArguments) -> None:
    """
    Refuse a comparison that cannot be made.

    Raises:
        ValueError: fewer than two tasks are trained, one has nothing to train in a stage, or the run is sharded.
    """
    plan = plan_before_data(start, recipe, args)
    trained = [task for task in recipe.settings if plan.trains(task)]
    if len(trained) < 2:
        found = f"only {trained[0]!r} is trained" if trained else "strategy leaves nothing to train"
        raise ValueError(
            f"--compare_single: {recipe.path}: {found}, so there is nothing to compare. Train two tasks or more, or "
            "leave --compare_single out."
        )
    if args.fsdp or args.deepspeed:
        raise ValueError(
            "--compare_single works in one process or with DDP, not with FSDP or DeepSpeed. Leave it out."
        )
    for task in trained:
        try:
            plan_of_tasks(plan, [task])
        except ValueError as error:
            raise ValueError(f"--compare_single: {recipe.path}: {error}") from error


# ---- a single run ----


def single_set(joint: MultiTaskTrainer, task: str) -> tuple[LabelledSet, float]:
    """The task's rows, labelled for nothing else, and how often an epoch of the joint run goes through them."""
    drawn = next(drawn for drawn in joint.drawn if task in drawn.tasks)
    splits = next(labelled_set.splits for labelled_set in joint.sets if task in labelled_set.tasks)
    splits = {**splits, "train": drawn.rows}  # what max_rows has left of them
    splits = {
        split: rows_labelled_for(rows, [task]).select_columns(["sentences", LABEL_PREFIX + task])
        for split, rows in splits.items()
    }
    return LabelledSet([task], splits), max(drawn.passes, 1 / len(splits["train"]))


def single_mixture(joint: MultiTaskTrainer, task: str, passes: float) -> MixtureConfig:
    """The joint run's mixture as far as it says something about this task."""
    rows_per_batch = {key: value for key, value in joint.mixture.rows_per_batch.items() if key == task}
    return MixtureConfig(passes={task: passes}, batches=joint.mixture.batches, rows_per_batch=rows_per_batch)


def check_single_runs(joint: MultiTaskTrainer) -> None:
    """
    Refuse, before the joint run, a strategy with a stage that would have no step in a task's own, shorter run.

    Raises:
        ValueError: names the task and the stage.
    """
    if len(joint.plan.stages) < 2:
        return
    for task in joint.trained_tasks:
        labelled_set, passes = single_set(joint, task)
        args = single_arguments(joint, task, Path(joint.args.output_dir))
        mixture, batch_size = single_mixture(joint, task, passes), args.per_device_train_batch_size
        drawn, _ = draw_sets(mixture, [labelled_set], {task: joint.tasks[task]}, batch_size, args.seed)
        sampler = make_sampler(mixture, drawn, batch_size, args.world_size, args.seed)
        steps = steps_of_epoch(sampler, args)
        try:
            stage_starts(plan_of_tasks(joint.plan, [task]), steps, math.ceil(args.num_train_epochs * steps))
        except ValueError as error:
            raise ValueError(f"--compare_single, {task} alone: {error}") from error


def single_arguments(joint: MultiTaskTrainer, task: str, folder: Path) -> MultiTaskTrainingArguments:
    """The joint run's arguments, for another folder, with epochs in place of steps and the task's own score."""
    # Not dataclasses.replace, which would reset accelerate's state under the joint run's trainer.
    args = copy.copy(joint.args)
    args.output_dir, args.resume_from_checkpoint = str(folder), None
    args.metric_for_best_model, args.greater_is_better = "eval_score", True  # of one task, its primary metric
    args.keep_best_of_tasks = False
    if args.early_stopping_task != task:
        args.early_stopping_task = None
    if args.max_steps > 0:
        args.num_train_epochs, args.max_steps = args.max_steps / steps_of_epoch(joint.sampler, joint.args), -1
    return args


def scale_steps(args: MultiTaskTrainingArguments, max_steps: int, joint_steps: int) -> None:
    """
    Bring what is counted in steps from a run of `joint_steps` to one of `max_steps`, in place.

    There are as many evaluations, as far as the steps suffice, and a checkpoint at each evaluation that had one.
    Shares of all steps stay as they are.
    """

    def scaled(steps: float) -> float:
        return max(1, round(steps * max_steps / joint_steps)) if steps >= 1 else steps

    eval_steps, save_steps = args.eval_steps, args.save_steps
    args.logging_steps, args.warmup_steps, args.save_steps = map(
        scaled, (args.logging_steps, args.warmup_steps, save_steps)
    )
    if args.eval_strategy == "steps":
        args.eval_delay = args.eval_delay * max_steps / joint_steps
        if eval_steps >= 1:
            args.eval_steps = math.ceil(max_steps / math.ceil(joint_steps / eval_steps))
            if save_steps >= 1 and save_steps % eval_steps == 0:
                args.save_steps = args.eval_steps * int(save_steps // eval_steps)


def train_single(joint: MultiTaskTrainer, initial: MultiTaskModel, task: str, folder: Path, split: str) -> None:
    """Train one task alone from the initial model; its scores and its predictions on a split go into a folder."""
    started = time.time()
    if joint.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted, or had other settings
    joint.accelerator.wait_for_everyone()
    labelled_set, passes = single_set(joint, task)
    args = single_arguments(joint, task, folder)
    set_seed(args.seed)
    trainer = MultiTaskTrainer(
        model=copy.deepcopy(initial),
        args=args,
        train_dataset=[labelled_set],
        mixture=single_mixture(joint, task, passes),
        tasks=[task],
        strategy=joint.strategy,
    )
    scale_steps(args, math.ceil(args.num_train_epochs * steps_of_epoch(trainer.sampler, args)), joint.state.max_steps)
    is_similarity = trainer.tasks[task]["problem_type"] == "similarity"
    before = trainer.measure(split, [task])[task] if is_similarity else {}
    trainer.train()
    trainer.choose_thresholds()
    splits = {"validation": "eval", "test": "test"}
    scores = {
        name: scores_by_task(trainer.evaluate(name, metric_key_prefix=prefix), prefix, trainer.tasks)[task]
        for name, prefix in splits.items()
        if name in labelled_set.splits
    }
    answers = trainer.predictions(split, [task])[task]
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"predictions": answers.predictions}
    if answers.references is not None:
        arrays["references"] = answers.references
    (folder / PREDICTIONS_FILE).write_bytes(save(arrays))
    content = {
        "task": task,
        "settings": single_settings(joint, initial, task),
        "start": {name: before[name] for name in MEAN_COSINES if name in before},
        "scores": scores,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step if args.load_best_model_at_end else None,
        "rows_per_epoch": sum(drawn.rows_per_epoch for drawn in trainer.drawn),
        "passes": passes,
        "seconds": round(time.time() - started, 1),
        "training": changed_arguments(args),
        "history": trainer.state.log_history,
    }
    write_json(folder / RESULT_FILE, content)


def rows_hash(rows: Any) -> str:
    """A hash of sentences and labels of a `datasets.Dataset`, in their order."""
    found = hashlib.sha256()
    for name in sorted(rows.column_names):
        found.update(json.dumps([name, rows[name][:]]).encode())
    return found.hexdigest()


def weights_hash(model: MultiTaskModel) -> str:
    """A hash of a model's weights."""
    found = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        found.update(name.encode() + weights.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def single_settings(joint: MultiTaskTrainer, initial: MultiTaskModel, task: str) -> dict[str, Any]:
    """All that a single run follows from, as JSON has it: one with other settings is made again."""
    labelled_set, passes = single_set(joint, task)
    training = changed_arguments(joint.args)
    for key in ("output_dir", "resume_from_checkpoint"):
        training.pop(key, None)
    settings = {
        # Thresholds are what a run finds, not what it follows from.
        "task": {key: value for key, value in joint.tasks[task].items() if key != "thresholds"},
        "rows": {split: len(rows) for split, rows in labelled_set.splits.items()},
        "rows_hash": {split: rows_hash(rows) for split, rows in labelled_set.splits.items()},
        "start": weights_hash(initial),
        "embedding": {
            name: getattr(initial.config, name) for name in ("pooling", "projection", "normalize", "max_length")
        },
        "passes": passes,
        "mixture": asdict(joint.mixture),
        "strategy": joint.strategy,
        "training": training,
        "joint_steps": joint.state.max_steps,
        "processes": joint.args.world_size,
    }
    return json.loads(json.dumps(settings, default=str))


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds a finished single run with these settings."""
    if not (folder / RESULT_FILE).is_file() or not (folder / PREDICTIONS_FILE).is_file():
        return False
    return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")).get("settings") == settings


# ---- the comparison ----


def give_up(trainer: MultiTaskTrainer) -> None:
    """Free what a trainer that has finished holds on the device."""
    for holder in (trainer, trainer.callback_handler):
        holder.optimizer = holder.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.model.cpu()


def curve_correlations(
    history: list[dict[str, Any]], tasks: dict[str, dict[str, Any]]
) -> tuple[int, list[list[float | None]]]:
    """
    Pearson correlations between the tasks' primary metrics over the evaluations of a run.

    Args:
        history: the Trainer's log history, of the time in training.
        tasks: task settings by name.

    Returns:
        How many evaluations there were, and a matrix with a row and a column for each task: `None` where a curve is
        constant, or the two have fewer than three evaluations in common.
    """
    evaluations = [entry for entry in history if "eval_score" in entry]
    curves = [
        np.array([entry.get(score_key(task, settings), math.nan) for entry in evaluations], dtype=float)
        for task, settings in tasks.items()
    ]

    def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
        known = np.isfinite(first) & np.isfinite(second)
        first, second = first[known], second[known]
        if len(first) < LEAST_EVALUATIONS or np.ptp(first) == 0 or np.ptp(second) == 0:
            return None
        return float(np.corrcoef(first, second)[0, 1])

    return len(evaluations), [[correlation(first, second) for second in curves] for first in curves]


def compare_task(
    metric: str,
    joint: Predictions,
    single: Predictions,
    scores: tuple[float | None, float | None],
    seed: int,
) -> dict[str, Any]:
    """
    One task's joint and single score with the interval of their difference.

    Raises:
        ValueError: the two models were not measured on the same rows.
    """
    (joint_predictions, references), (single_predictions, own_references) = joint, single
    if references is not None and not np.array_equal(references, own_references):
        raise ValueError("The single run was measured on other rows. Remove its folder, and run again.")
    joint_score, single_score = (math.nan if score is None else score for score in scores)
    interval = paired_interval(metric, joint_predictions, single_predictions, references, RESAMPLES, seed)
    return {
        "metric": metric,
        "rows": len(joint_predictions),
        "joint": joint_score,
        "single": single_score,
        "difference": joint_score - single_score,
        "interval": interval,
    }


def compare_single(
    joint: MultiTaskTrainer,
    initial: MultiTaskModel,
    history: list[dict[str, Any]],
    scores: dict[str, dict[str, dict[str, float]]],
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """
    Train each task alone, and compare.

    Args:
        joint: the trainer of the joint run, which is over; it is given up to make room for the single runs.
        initial: a copy of the model from before the joint run, on the CPU.
        history: the joint run's log history when its training ended.
        scores: the joint model's, by split and task.
        announce: called with a line before each single run.

    Returns:
        What `compare_single` in results.json holds, on the main process; nothing on the others.
    """
    tasks, folder = joint.trained_tasks, Path(joint.args.output_dir) / SINGLE_FOLDER
    splits = {task: "test" if task in scores.get("test", {}) else "validation" for task in tasks}
    joint_predictions: dict[str, Predictions] = {}
    for split in sorted(set(splits.values())):
        wanted = [task for task in tasks if splits[task] == split]
        for task, found in joint.predictions(split, wanted).items():
            joint_predictions[task] = found.predictions, found.references
    give_up(joint)

    compared: dict[str, Any] = {}
    for number, task in enumerate(tasks, 1):
        # One process decides for all, as another may not see the folder.
        finished = [
            joint.accelerator.is_main_process and is_finished(folder / task, single_settings(joint, initial, task))
        ]
        is_known = broadcast_object_list(finished)[0]
        title = f"{task} alone ({number} of {len(tasks)})"
        announce(f"\n{title}: finished before, in {folder / task}" if is_known else f"\n{title}")
        if not is_known:
            train_single(joint, initial, task, folder / task, splits[task])
        if not joint.accelerator.is_main_process:
            continue
        single = json.loads((folder / task / RESULT_FILE).read_text(encoding="utf-8"))
        arrays = load_file(folder / task / PREDICTIONS_FILE)
        split, metric = splits[task], tasks[task]["metrics"][0]
        own, found = scores[split][task], single["scores"][split]
        compared[task] = compare_task(
            metric,
            joint_predictions[task],
            (arrays["predictions"], arrays.get("references")),
            (own[metric], found[metric]),
            joint.args.seed,
        )
        compared[task] |= {"split": split, **{key: single[key] for key in ("steps", "best_step", "seconds")}}
        if tasks[task]["problem_type"] == "similarity":
            compared[task]["mean_cosines"] = {
                kind.removeprefix("mean_cosine_"): {
                    "start": single["start"].get(kind),
                    "single": found.get(kind),
                    "joint": own.get(kind),
                }
                for kind in MEAN_COSINES
            }
    if not joint.accelerator.is_main_process:
        return {}
    evaluations, correlations = curve_correlations(history, tasks)
    return {
        "tasks": compared,
        "resamples": RESAMPLES,
        "gradient_cosines": cosines_of_history(history),
        "evaluations": evaluations,
        "curve_correlations": correlations,
    }


__all__ = ["SINGLE_FOLDER", "check_comparison", "check_single_runs", "compare_single"]
