"""A finished model's scores on labelled rows, with intervals; nothing is trained.

measure_model    every task's answers and scores, by split
describe         scores, intervals, calibration and abstention, for a JSON file
format_measured  the table: a score with its interval for each task, metric and split
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tabulate import tabulate

from ...checks_multitask import suggest
from ...data.metrics.bootstrap import RESAMPLES, score_interval
from ...data.rows.sets import LabelledSet
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ..evaluation.groups import TaskGroup, group_scores, joined, with_groups
from ..evaluation.scores import Evaluation, TaskAnswers, answer_task, metric_options, task_scores
from ..report.abstention import describe_abstention
from ..report.calibration import describe_calibration
from ..report.confusion import count_confusions

Interval = tuple[float, float] | None


@dataclass
class Measured:
    """
    What a model came to, each by split.

    Attributes:
        tasks: settings by name, of the tasks that have rows.
        groups: tasks that were scored together.
        evaluations: the rows.
        answers: by task, what the model answers.
        scores: by task and by group, loss and metrics.
    """

    tasks: dict[str, TaskConfig]
    groups: dict[str, TaskGroup]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    answers: dict[str, dict[str, TaskAnswers]] = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def choose_splits(sets: Sequence[LabelledSet], wanted: Sequence[str] | None = None) -> list[str]:
    """
    The splits to measure: those that are named, or validation and test as far as there are rows.

    Raises:
        ValueError: a named split is not there, or there is none to measure.
    """
    known = list(dict.fromkeys(split for entry in sets for split in entry.splits))
    for split in wanted or ():
        if split not in known:
            raise ValueError(f"There is no split {split!r}.{suggest(split, known)} The data has: {', '.join(known)}.")
    chosen = list(wanted or [split for split in ("validation", "test") if split in known])
    if not chosen:
        raise ValueError(
            f"The data has neither a validation nor a test split, but {', '.join(known)}. Name a split with --splits."
        )
    return chosen


def measure_model(
    model: MultiTaskModel,
    sets: Sequence[LabelledSet],
    splits: Sequence[str],
    groups: Mapping[str, TaskGroup] | None = None,
    batch_size: int = 64,
    show_progress: bool | None = None,
) -> Measured:
    """
    Answer and score every task that has rows.

    Args:
        model: a finished model.
        sets: labelled sets.
        splits: names of splits.
        groups: tasks that are scored together, by the group's name.
        batch_size: rows that losses over pairs compare with each other.
        show_progress: as for `encode`.
    """
    named = {task: model.config.tasks[task] for entry in sets for task in entry.tasks}
    tasks = {task: settings for task, settings in model.config.tasks.items() if task in named}
    measured = Measured(tasks, dict(groups or {}))
    for split in splits:
        evaluation = measured.evaluations[split] = Evaluation(sets, tasks, split)
        found = model.encode(evaluation.sentences, normalize=False, show_progress=show_progress)
        embeddings = torch.from_numpy(found)
        answers = measured.answers[split] = {
            task: answer_task(
                model, task, embeddings, rows, evaluation.labels[task], batch_size, with_probabilities=True
            )
            for task, rows in evaluation.rows.items()
        }
        scores = {task: task_scores(tasks[task], found) for task, found in answers.items()}
        whole = {name: group for name, group in measured.groups.items() if set(group.tasks) <= answers.keys()}
        measured.scores[split] = scores | group_scores(whole, answers)
    return measured


def _sides(measured: Measured, split: str, name: str) -> list[Any]:
    """Predictions and references of a task or of a group."""
    answers, group = measured.answers[split], measured.groups.get(name)
    sides = ("predictions", "references")
    if group is None:
        return [getattr(answers[name], side) for side in sides]
    return [joined(group, {task: getattr(answers[task], side) for task in group.tasks}) for side in sides]


def score_intervals(measured: Measured, seed: int = 0) -> dict[str, dict[str, dict[str, Interval]]]:
    """By split, task or group, and metric that it lists, the 95 % interval of the score."""
    scored = with_groups(measured.tasks, measured.groups)
    return {
        split: {
            name: {
                metric: score_interval(
                    metric,
                    *_sides(measured, split, name),
                    RESAMPLES,
                    seed,
                    **metric_options(scored[name], metric),
                )
                for metric in scored[name].metrics
            }
            for name in found
        }
        for split, found in measured.scores.items()
    }


def describe(measured: Measured, intervals: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json holds of a run, as far as it follows from a finished model; and the intervals."""
    return {
        "scores": measured.scores,
        "intervals": intervals,
        "resamples": RESAMPLES,
        "rows": {split: {task: len(one.rows) for task, one in by.items()} for split, by in measured.answers.items()},
        "calibration": describe_calibration(measured.tasks, measured.answers, {}),
        "abstention": describe_abstention(measured.tasks, measured.answers),
        "confusion": count_confusions(measured.tasks, measured.answers),
        "groups": {name: group.to_recipe() for name, group in measured.groups.items()},
    }


def _cell(score: float | None, interval: Interval) -> str:
    """`0.7102 [0.6934, 0.7271]`."""
    if score is None:
        return "-"
    return f"{score:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def format_measured(measured: Measured, intervals: Mapping[str, Any]) -> str:
    """A line for each task and metric, the primary metric first, with the score and its interval on each split."""
    rows = []
    for name, settings in with_groups(measured.tasks, measured.groups).items():
        found = [(scores.get(name, {}), intervals[split].get(name, {})) for split, scores in measured.scores.items()]
        extra = {metric for scores, _ in found for metric in scores} - {*settings.metrics, "loss"}
        for place, metric in enumerate([*settings.metrics, *sorted(extra), *["loss"] * (name in measured.tasks)]):
            shown = name + " (group)" * (name in measured.groups) if place == 0 else ""
            rows.append([shown, metric, *(_cell(scores.get(metric), ends.get(metric)) for scores, ends in found)])
    return tabulate(rows, ["task", "metric", *measured.scores], disable_numparse=True)


__all__ = ["Measured", "choose_splits", "describe", "format_measured", "measure_model", "score_intervals"]
