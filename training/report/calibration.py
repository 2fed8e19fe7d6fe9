"""How far a run's probabilities are from what comes true, before and after the temperatures.

describe_calibration   by task, for results.json
calibration_rows       the same as the rows of a table
format_calibration     the table that a run prints
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ...data.text.spelling import first_names
from ...tasks_multitask import TaskConfig
from ..evaluation.reliability import describe_forecasts
from ..evaluation.scores import TaskAnswers


def describe_calibration(
    tasks: Mapping[str, TaskConfig],
    answers: Mapping[str, Mapping[str, TaskAnswers]],
    left_out: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """
    How well each classification task is calibrated, on the last split that has rows of it.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        answers: by split and task, the `TaskAnswers` with forecasts.
        left_out: by task, why it was not calibrated.

    Returns by task `split`; `temperatures`, none for a task that was not calibrated; `before` and, where there is a
    temperature, `after`, as `describe_forecasts` gives them; and `left_out`, a reason or `None`.
    """
    described = {}
    for split, by_task in answers.items():
        for task, found in by_task.items():
            if found.forecasts is None:
                continue
            before, after = found.forecasts
            temperatures = tasks[task].temperatures
            described[task] = {
                "split": split,
                "temperatures": temperatures,
                "before": describe_forecasts(before),
                "after": describe_forecasts(after) if temperatures else None,
                "left_out": left_out.get(task),
            }
    return described


def show_temperatures(temperatures: Sequence[float]) -> str:
    """One temperature, or the range of several."""
    if not temperatures:
        return "none"
    ends = dict.fromkeys(f"{end:.2f}" for end in (min(temperatures), max(temperatures)))
    return " to ".join(ends)


def calibration_rows(calibration: Mapping[str, dict[str, Any]]) -> list[list[Any]]:
    """
    Rows of a table: task, split, temperature, expected calibration error before and after, Brier score before and
    after; `None` for what is not there.
    """
    scores = ("expected_calibration_error", "brier_score")
    return [
        [
            task,
            found["split"],
            show_temperatures(found["temperatures"]),
            *(side and side[score] for score in scores for side in (found["before"], found["after"])),
        ]
        for task, found in calibration.items()
    ]


def format_calibration(calibration: Mapping[str, dict[str, Any]]) -> str:
    """The table of `describe_calibration`, with a line for each reason why tasks were left out."""
    header = ["task", "split", "temperature", "ECE before", "ECE after", "Brier before", "Brier after"]
    lines = [tabulate(calibration_rows(calibration), header, floatfmt=".4f", missingval="-", disable_numparse=[2])]
    reasons: dict[str, list[str]] = {}
    for task, found in calibration.items():
        if found["left_out"]:
            reasons.setdefault(found["left_out"], []).append(task)
    for reason, tasks in reasons.items():
        are_not = "is not calibrated:" if len(tasks) == 1 else "are not calibrated, each because"
        lines.append(f"{first_names(tasks)} {are_not} {reason}.")
    return "\n".join(lines)


__all__ = ["calibration_rows", "describe_calibration", "format_calibration"]
