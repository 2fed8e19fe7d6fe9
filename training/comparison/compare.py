"""Do the tasks help or hurt each other? Each task trained alone, beside the joint run: `train.py --compare_single`.

    watch_joint_run   before the joint run: what it should measure for the comparison
    report_comparison after it: the single runs, and all that the comparison says, in results.json and the card

single_runs.py trains a task alone, gradient_cosines.py measures the tasks' gradients during the joint run, report.py
shows the comparison.
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from ...data.metrics.bootstrap import RESAMPLES, paired_interval
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ..evaluation.best_checkpoints import score_key
from ..evaluation.groups import common_split, joined
from ..evaluation.scores import metric_options, metric_scores
from ..report.results import add_result
from ..trainer import MultiTaskTrainer
from .gradient_cosines import GradientCosines, cosines_of_history
from .report import LEAST_EVALUATIONS, format_comparison
from .single_runs import (
    MEAN_COSINES,
    PREDICTIONS_FILE,
    RESULT_FILE,
    SINGLE_FOLDER,
    check_single_runs,
    find_finished,
    single_settings,
    train_single,
)

logger = logging.getLogger(__name__)

Predictions = tuple[np.ndarray, np.ndarray | None]


def watch_joint_run(joint: MultiTaskTrainer) -> None:
    """
    Let a joint run measure the cosines of its tasks' gradients.

    Raises:
        ValueError: a task's own run could not carry out the strategy.
    """
    check_single_runs(joint)
    joint.add_callback(GradientCosines(joint))


def give_up(trainer: MultiTaskTrainer) -> None:
    """Free what a trainer that has finished holds on the device."""
    for holder in (trainer, trainer.callback_handler):
        holder.optimizer = holder.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.model.cpu()


def curve_correlations(
    history: list[dict[str, Any]], tasks: dict[str, TaskConfig]
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
    **options: Any,
) -> dict[str, Any]:
    """
    One task's joint and single score with the interval of their difference; `options` are those of the metric.

    Raises:
        ValueError: the two models were not measured on the same rows.
    """
    (joint_predictions, references), (single_predictions, own_references) = joint, single
    if references is not None and not np.array_equal(references, own_references):
        raise ValueError("The single run was measured on other rows. Remove its folder, and run again.")
    joint_score, single_score = (math.nan if score is None else score for score in scores)
    interval = paired_interval(metric, joint_predictions, single_predictions, references, RESAMPLES, seed, **options)
    return {
        "metric": metric,
        "rows": len(joint_predictions),
        "joint": joint_score,
        "single": single_score,
        "difference": joint_score - single_score,
        "interval": interval,
    }


def compare_groups(
    joint: MultiTaskTrainer,
    splits: dict[str, str],
    scores: dict[str, dict[str, dict[str, float]]],
    joint_predictions: dict[str, Predictions],
    single_predictions: dict[str, Predictions],
) -> dict[str, Any]:
    """As `compare_task` for each group whose tasks were all trained alone, and are compared on the same split."""
    compared = {}
    for name, group in joint.groups.items():
        split, metric = common_split(group, splits), group.scoring.primary_metric
        if split is None:
            continue
        both = [
            tuple(joined(group, {task: found[task][side] for task in group.tasks}) for side in (0, 1))
            for found in (joint_predictions, single_predictions)
        ]
        found = scores[split][name][metric], metric_scores(group.scoring, *both[1])[metric]
        options = metric_options(group.scoring, metric)
        compared[name] = compare_task(metric, *both, found, joint.args.seed, **options) | {"split": split}
    return compared


def compare_single(
    joint: MultiTaskTrainer,
    make_initial: Callable[[], MultiTaskModel],
    history: list[dict[str, Any]],
    scores: dict[str, dict[str, dict[str, float]]],
    singles: dict[str, Path],
) -> dict[str, Any]:
    """
    Train each task alone, and compare.

    Args:
        joint: the trainer of the joint run, which is over; it is given up to make room for the single runs.
        make_initial: makes the model that the joint run started from.
        history: the joint run's log history when its training ended.
        scores: the joint model's, by split and task.
        singles: by task, the folder of a single run that is there already, such as that of its teacher.

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
    initial = make_initial()

    compared: dict[str, Any] = {}
    single_predictions: dict[str, Predictions] = {}
    for number, task in enumerate(tasks, 1):
        place = folder / task
        known = singles.get(task) or find_finished(joint, [place], single_settings(joint, initial, task))
        title = f"{task} alone ({number} of {len(tasks)})"
        logger.info(f"\n{title}: finished before, in {known}" if known else f"\n{title}")
        if not known:
            train_single(joint, initial, task, place, splits[task])
        if not joint.accelerator.is_main_process:
            continue
        single = json.loads(((known or place) / RESULT_FILE).read_text(encoding="utf-8"))
        arrays = load_file((known or place) / PREDICTIONS_FILE)
        single_predictions[task] = arrays["predictions"], arrays.get("references")
        split, metric = splits[task], tasks[task].primary_metric
        own, found = scores[split][task], single["scores"][split]
        compared[task] = compare_task(
            metric,
            joint_predictions[task],
            single_predictions[task],
            (own[metric], found[metric]),
            joint.args.seed,
            **metric_options(tasks[task], metric),
        )
        compared[task] |= {"split": split, **{key: single[key] for key in ("steps", "best_step", "seconds")}}
        if tasks[task].kind.has_score_range:
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
        "groups": compare_groups(joint, splits, scores, joint_predictions, single_predictions),
        "resamples": RESAMPLES,
        "gradient_cosines": cosines_of_history(history),
        "evaluations": evaluations,
        "curve_correlations": correlations,
    }


def report_comparison(
    joint: MultiTaskTrainer,
    make_initial: Callable[[], MultiTaskModel],
    history: list[dict[str, Any]],
    scores: dict[str, dict[str, dict[str, float]]],
    write_card: Callable[[], Path],
    singles: dict[str, Path],
) -> None:
    """Train each task alone, and put the comparison into results.json, the card and the log; as `compare_single`."""
    compared = compare_single(joint, make_initial, history, scores, singles)
    if joint.accelerator.is_main_process:
        add_result(Path(joint.args.output_dir), "compare_single", compared)
        write_card()
        logger.info("\n" + format_comparison(compared))


__all__ = ["compare_single", "report_comparison", "watch_joint_run"]
