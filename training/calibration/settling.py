"""What is chosen on validation data once a task is trained: thresholds, then temperatures, then when to abstain.

settle_task     thresholds and temperatures of one classification task
settle_tasks    all of it for several tasks of a model, put into its configuration
settle_abstain  the confidence for a risk that it promises
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...modeling_multitask import MultiTaskModel
from ...records_multitask import AbstainConfig
from ...tasks_multitask import TaskConfig
from ..evaluation.scores import Evaluation, choose_thresholds, decisions, near_enough, task_confidences, task_logits
from .abstention import choose_confidence
from .temperatures import LEAST_OF_BOTH, LEAST_ROWS, fit_temperature, fit_temperatures, moved_thresholds

CALIBRATIONS = ("temperature", "none")


def _why_not(task: TaskConfig, rows: int) -> str:
    """Why a task has no temperature."""
    if rows < LEAST_ROWS:
        return f"it has {rows} validation rows, and {LEAST_ROWS} are needed"
    if task.kind.is_multi_label:
        return f"no label has {LEAST_OF_BOTH} validation rows with it, {LEAST_OF_BOTH} without, and more than chance"
    return "on validation data it does no better than chance"


def settle_task(
    task: TaskConfig, logits: torch.Tensor, labels: torch.Tensor, calibration: str = "temperature"
) -> tuple[dict[str, Any], str | None]:
    """
    Thresholds and temperatures of a classification task, chosen on validation data.

    Thresholds are chosen first. They move along with the temperatures, so that labels stay what they were.

    Args:
        task: its settings.
        logits: `(rows, num_labels)`, before any temperature.
        labels: class numbers `(rows,)`, or 0 and 1 `(rows, num_labels)`.
        calibration: `temperature` or `none`.

    Returns the settings that change, and why the task was not calibrated, or `None`.
    """
    changes: dict[str, Any] = {"temperatures": []}
    values, found = logits.numpy(), labels.numpy()
    if task.kind.is_multi_label:
        changes["thresholds"] = choose_thresholds(logits.sigmoid().numpy(), found)
    if calibration == "none":
        return changes, "the recipe says calibration: none"
    if not task.kind.is_multi_label:
        temperature = fit_temperature(values, found)
        temperatures = None if temperature is None else [temperature]
    else:
        temperatures = fit_temperatures(values, found, changes["thresholds"])
    if temperatures is None:
        return changes, _why_not(task, len(found))
    if task.kind.is_multi_label:
        changes["thresholds"] = moved_thresholds(changes["thresholds"], temperatures)
    return {**changes, "temperatures": temperatures}, None


def settle_abstain(
    task: TaskConfig, logits: torch.Tensor, labels: torch.Tensor, is_near: np.ndarray | None = None
) -> AbstainConfig:
    """
    When a task abstains, from its settled settings: with the confidence that keeps the risk which it promises, or with
    none where no confidence does. Arguments are those of `settle_task`, and what `near_enough` gives: the promise is
    about rows in scope, as no other gets a label.
    """
    wrong = decisions(task, logits) != labels.numpy()
    is_wrong = wrong.any(axis=1) if wrong.ndim == 2 else wrong
    near = slice(None) if is_near is None else is_near
    chosen = choose_confidence(task_confidences(task, logits).numpy()[near], is_wrong[near], task.abstain.risk)
    return replace(task.abstain, confidence=chosen.confidence)


def settle_tasks(
    model: MultiTaskModel, names: Sequence[str], evaluation: Evaluation, embeddings: torch.Tensor, calibration: str
) -> dict[str, str]:
    """
    Settle tasks of a model whose scopes are fitted, and put what is chosen into its configuration.

    Args:
        model: the model that gave the embeddings.
        names: classification tasks with rows.
        evaluation: validation rows.
        embeddings: `(sentences, embedding_dim)`, of its sentences.
        calibration: `temperature` or `none`.

    Returns by task why it was not calibrated.
    """
    notes = {}
    for name in names:
        logits = task_logits(model, name, embeddings, evaluation.rows[name], batch_size=8192)
        found = torch.cat(list(logits)), evaluation.labels[name]
        changes, notes[name] = settle_task(model.config.tasks[name], *found, calibration)
        changed = model.config.change_task(name, **changes)
        if changed.abstain is not None and changed.abstain.risk is not None:
            is_near = near_enough(model, name, embeddings, evaluation.rows[name])
            model.config.change_task(name, abstain=settle_abstain(changed, *found, is_near))
    return {name: note for name, note in notes.items() if note is not None}


__all__ = ["CALIBRATIONS", "settle_abstain", "settle_task", "settle_tasks"]
