"""Single, joint without teachers, distilled: the three figures of each task, with paired intervals.

report_distillation   what teachers were worth, into results.json, the card and the log
format_distilled      the table that a run ends with
distilled_section     the same for the model card
draw_distilled        each task's differences with their intervals
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from tabulate import tabulate

from ...configuration_multitask import public_name
from ...data.metrics.bootstrap import RESAMPLES, paired_interval
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ..comparison.single_runs import PREDICTIONS_FILE, RESULT_FILE, rows_hash, single_set
from ..evaluation.groups import common_split, joined
from ..evaluation.scores import TaskAnswers, answer_task, metric_options, metric_scores
from ..report.differences import all_compared, draw_differences, percent, with_difference
from ..report.markdown import code_span, link_target, plain_text, table
from ..report.results import add_result
from .starting import joint_run_of, measured_split

logger = logging.getLogger(__name__)

PICTURE = "distillation.png"
OTHERS = {"single": "alone", "joint": "joint without teachers"}
HOW_TO_READ = (
    "The model learnt from teachers beside its labels. Scores are in per cent; each difference is the distilled "
    "model's score minus the other's, and its interval the middle 95 % of {resamples:,} paired resamples of the rows "
    "that were measured. It says nothing about another seed."
)


def _difference(
    task: TaskConfig,
    own: tuple[float, np.ndarray],
    other: tuple[float, np.ndarray],
    references: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    """Another model's score beside the distilled model's, from the score and the predictions of each."""
    metric = task.primary_metric
    options = metric_options(task, metric)
    interval = paired_interval(metric, own[1], other[1], references, RESAMPLES, seed, **options)
    return {"score": other[0], "difference": own[0] - other[0], "interval": interval}


def _single_answers(trainer: Any, task: str, folder: Path, split: str) -> tuple[float, np.ndarray] | None:
    """Score and predictions of a single run; `None` where it was measured on other rows."""
    found = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    own_rows = single_set(trainer, task)[0].splits[split]
    if found["settings"]["rows_hash"].get(split) != rows_hash(own_rows):
        logger.info(f"{folder} was measured on other rows, so that the distilled model is not compared with it.")
        return None
    score = found["scores"][split][trainer.tasks[task].primary_metric]
    return math.nan if score is None else score, load_file(folder / PREDICTIONS_FILE)["predictions"]


def _joint_answers(folder: Path, trainer: Any, splits: dict[str, str]) -> dict[str, tuple[float, np.ndarray]]:
    """By task, score and predictions of a joint model on the rows that the trainer was measured on."""
    model = MultiTaskModel.from_pretrained(folder, dtype=torch.float32).to(trainer.args.device).eval()
    found = {}
    for split in sorted(set(splits.values())):
        evaluation = trainer.evaluations[split]
        with trainer.accelerator.autocast():
            embeddings = torch.from_numpy(model.encode(evaluation.sentences, normalize=False, show_progress=False))
        for task in [task for task in splits if splits[task] == split]:  # without autocast, as the trainer does
            answers = answer_task(model, task, embeddings, evaluation.rows[task], evaluation.labels[task])
            scores = metric_scores(trainer.tasks[task], answers.predictions, answers.references)
            found[task] = scores[trainer.tasks[task].primary_metric], answers.predictions
    return found


def _compare_groups(
    trainer: Any,
    splits: dict[str, str],
    answers: dict[str, dict[str, TaskAnswers]],
    scores: dict[str, dict[str, dict[str, float]]],
    others: dict[str, dict[str, tuple[float, np.ndarray]]],
) -> dict[str, Any]:
    """The same for each group whose tasks are all compared on one split, over their rows together."""
    compared = {}
    for name, group in trainer.groups.items():
        split, task = common_split(group, splits), group.scoring
        if split is None:
            continue
        own, references = (
            joined(group, {member: getattr(answers[split][member], side) for member in group.tasks})
            for side in ("predictions", "references")
        )
        score = scores[split][name][task.primary_metric]
        entry = {"metric": task.primary_metric, "split": split, "rows": len(own), "distilled": score}
        for kind in OTHERS:
            if all(kind in others[member] for member in group.tasks):
                found = joined(group, {member: others[member][kind][1] for member in group.tasks})
                other = metric_scores(task, found, references)[task.primary_metric], found
                entry[kind] = _difference(task, (score, own), other, references, trainer.args.seed)
        compared[name] = entry
    return compared


def compare_distilled(
    trainer: Any,
    answers: dict[str, dict[str, TaskAnswers]],
    scores: dict[str, dict[str, dict[str, float]]],
    singles: dict[str, Path],
    joint: Path | None,
) -> dict[str, Any]:
    """
    The distilled model beside each task's single model, and beside the joint one without teachers.

    Args:
        trainer: the student's, which has been evaluated.
        answers: by split and task, what the student answers.
        scores: by split and task, what it scores.
        singles: by task, the folder of its single run; none where teachers are others.
        joint: the folder of a joint run without teachers; `None` where there is none at hand.

    Returns:
        `tasks` and `groups`: by trained task, or group of such, `metric`, `split`, `rows`, `distilled`, and for
        `single` and `joint`, where they are known, `score`, `difference` (distilled minus the other) and `interval`.
    """
    splits = {task: measured_split(trainer, task) for task in trainer.trained_tasks}
    joint_answers = _joint_answers(joint, trainer, splits) if joint is not None else {}
    compared, all_others = {}, {}
    for task, split in splits.items():
        metric, found = trainer.tasks[task].primary_metric, answers[split][task]
        score = scores[split][task][metric]
        own = math.nan if score is None else score, found.predictions
        entry = {"metric": metric, "split": split, "rows": len(found.rows), "distilled": own[0]}
        others = {"joint": joint_answers[task]} if task in joint_answers else {}
        if task in singles and (single := _single_answers(trainer, task, singles[task], split)) is not None:
            others["single"] = single
        for kind in OTHERS:
            if kind in others:
                entry[kind] = _difference(trainer.tasks[task], own, others[kind], found.references, trainer.args.seed)
        compared[task], all_others[task] = entry, others
    settings = trainer.lessons.settings
    return {
        "settings": {name: getattr(settings, name) for name in ("schedule", "temperature", "rows", "similarity_loss")},
        "teachers": "single"
        if settings.has_single_teachers
        else {task: [public_name(one.model) for one in named] for task, named in settings.teachers.items()},
        "unlabeled": {name: len(rows) for name, rows in trainer.lessons.unlabeled.items()},
        "joint": None if joint is None else joint.name,
        "resamples": RESAMPLES,
        "tasks": compared,
        "groups": _compare_groups(trainer, splits, answers, scores, all_others),
    }


def report_distillation(
    trainer: Any,
    answers: dict[str, dict[str, TaskAnswers]],
    scores: dict[str, dict[str, dict[str, float]]],
    singles: dict[str, Path],
    joint: Path | None,
    write_card: Callable[[], Path],
) -> None:
    """Put what teachers were worth into results.json, the card and the log; arguments as of `compare_distilled`."""
    output_dir = Path(trainer.args.output_dir)
    compared = compare_distilled(trainer, answers, scores, singles, joint or joint_run_of(singles, output_dir))
    add_result(output_dir, "distillation", compared)
    write_card()
    logger.info("\n" + format_distilled(compared))


def _cell(found: dict[str, Any] | None) -> str:
    """Another model's score, and by how much the distilled one is better."""
    return "-" if found is None else with_difference(found["score"], found)


def _table(compared: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    shown = [kind for kind in OTHERS if any(kind in entry for entry in compared["tasks"].values())]
    header = ["task", "metric", "split", "rows", "distilled"]
    header += [f"{OTHERS[kind]} (what the distilled one gains [95 % interval])" for kind in shown]
    return header, [
        [
            task,
            entry["metric"].replace("_", " "),
            entry["split"],
            entry["rows"],
            percent(entry["distilled"]),
            *(_cell(entry.get(kind)) for kind in shown),
        ]
        for task, entry in all_compared(compared).items()
    ]


def format_distilled(compared: dict[str, Any]) -> str:
    """The table that a run ends with."""
    header, rows = _table(compared)
    title = f"Distilled, and what it is measured against; intervals from {compared['resamples']:,} paired resamples"
    return f"{title}\n{tabulate(rows, header, disable_numparse=True)}"


def distilled_section(compared: dict[str, Any], pictures: dict[str, str], unlabeled: dict[str, str]) -> str:
    """
    The section of the model card.

    Args:
        compared: `distillation` of results.json.
        pictures: title and file of each of the card's pictures.
        unlabeled: by name, where unlabelled text came from.
    """
    header, rows = _table(compared)
    rows = [[code_span(task), *rest] for task, *rest in rows]
    teachers, settings = compared["teachers"], compared["settings"]
    if teachers == "single":
        said = "Each task's teacher is its own model, trained alone first."
    else:
        named = (f"{code_span(task)}: {', '.join(map(code_span, names))}" for task, names in teachers.items())
        said = f"Teachers: {'; '.join(named)}."
    said += " " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()) + "."
    if counts := compared.get("unlabeled"):
        more = (f"{code_span(name)}, {count:,} rows ({unlabeled[name]})" for name, count in counts.items())
        said += f" Teachers alone answered text without labels: {'; '.join(more)}."
    parts = [HOW_TO_READ.format(resamples=compared["resamples"]), said]
    parts.append(table(rows, header))
    parts += [f"![{plain_text(title)}]({link_target(file)})" for title, file in pictures.items() if file == PICTURE]
    return "## Distillation\n\n" + "\n\n".join(parts)


def draw_distilled(folder: Path, compared: dict[str, Any]) -> dict[str, str]:
    """Draw each task's differences, where there are any; returns title and file of the picture."""
    entries = all_compared(compared)
    metrics = {task: entry["metric"] for task, entry in entries.items()}
    series = [
        (f"distilled minus {name}", {task: entry[kind] for task, entry in entries.items() if kind in entry})
        for kind, name in OTHERS.items()
    ]
    if not draw_differences(folder / PICTURE, metrics, series, "difference"):
        return {}
    return {"Distilled minus other scores of each task": PICTURE}


__all__ = ["distilled_section", "draw_distilled", "report_distillation"]
