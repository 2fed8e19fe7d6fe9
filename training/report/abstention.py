"""When tasks abstain, and whether the risk that they promise is kept.

describe_abstention   by task, for results.json
abstention_rows       the same as the rows of a table
unreached             tasks whose risk no confidence keeps, and the lowest that one does
format_abstention     the table that a run prints
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from ...tasks_multitask import TaskConfig
from ..calibration.abstention import CERTAINTY, choose_confidence, describe_answered, risk_coverage
from ..evaluation.scores import TaskAnswers

DIGITS = 6


def _in_scope(answers: TaskAnswers) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows that may get a label, those in scope: how sure the task is and whether it is wrong."""
    near = slice(None) if answers.is_near is None else answers.is_near
    return answers.confidences[near], answers.is_wrong[near]


def describe_abstention(
    tasks: Mapping[str, TaskConfig], answers: Mapping[str, Mapping[str, TaskAnswers]]
) -> dict[str, dict[str, Any]]:
    """
    What became of the rows of each task that abstains.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        answers: by split and task, the `TaskAnswers` with confidences.

    Returns by task `risk` (`None` where a confidence was given), `confidence` (`None` where none keeps the risk),
    `certainty` and `lowest_risk`, that could have been promised on validation data; `splits`, with `rows`, `answered`,
    `wrong`, `coverage` and `risk` of each; and `curve`, risk by coverage on the last split, of its rows in scope.
    """
    described = {}
    for task, settings in tasks.items():
        found = {split: by_task[task] for split, by_task in answers.items() if task in by_task}
        if settings.abstain is None or not found or settings.abstain.least_confidence == 0:
            continue
        risk, confidence = settings.abstain.risk, settings.abstain.confidence
        described[task] = {
            "risk": risk,
            "confidence": confidence,
            "certainty": CERTAINTY,
            "lowest_risk": None,
            "splits": {
                split: describe_answered(each.confidences, each.is_wrong, confidence, each.is_near)
                for split, each in found.items()
            },
        }
        if risk is not None and (validation := found.get("validation")) is not None:
            lowest = choose_confidence(*_in_scope(validation), risk).lowest_risk
            described[task]["lowest_risk"] = round(lowest, DIGITS)
        *_, last = found.values()
        described[task]["curve"] = risk_coverage(*_in_scope(last), len(last.rows))
    return described


def abstention_rows(abstention: Mapping[str, dict[str, Any]]) -> list[list[Any]]:
    """Rows of a table: task, promised risk, confidence, split, share that is answered, risk among these."""
    return [
        [
            task if place == 0 else "",
            found["risk"] if place == 0 else "",
            found["confidence"] if place == 0 else "",
            split,
            counted["coverage"],
            counted["risk"],
        ]
        for task, found in abstention.items()
        for place, (split, counted) in enumerate(found["splits"].items())
    ]


def unreached(abstention: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Tasks whose risk no confidence keeps, and what to say of each."""
    return [
        (
            task,
            f"no confidence keeps the risk within {found['risk']:g} at {CERTAINTY:.0%} certainty, so that it gives no "
            f"label. The lowest risk that one keeps is {found['lowest_risk']:.4f}; more validation rows allow less.",
        )
        for task, found in abstention.items()
        if found["confidence"] is None and found["lowest_risk"] is not None
    ]


def format_abstention(abstention: Mapping[str, dict[str, Any]]) -> str:
    """The table of `describe_abstention`, with a line for each risk that is not reached."""
    header = ["task", "risk promised", "confidence", "split", "answered", "risk"]
    lines = [tabulate(abstention_rows(abstention), header, floatfmt=".4f", missingval="-")]
    return "\n".join([*lines, *(f"{task}: {text}" for task, text in unreached(abstention))])


__all__ = ["abstention_rows", "describe_abstention", "format_abstention", "unreached"]
