"""What keeps one task's loss from drowning the others.

measure_targets  mean and deviation of a regression task's training targets, which its values are standardised by
LossWatch        a warning where one task's weighted loss is many times that of every other in the first steps
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset

from ...data.rows.canonical import labels_of
from ...tasks_multitask import TaskConfig

logger = logging.getLogger(__name__)

FIRST_STEPS = 10  # optimizer steps that the losses are compared over
DWARFING_FACTOR = 20  # between losses of such different kinds as CoSENT and BCE, five to ten times are usual


def measure_targets(tasks: dict[str, TaskConfig], training_rows: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
    """
    Mean and deviation of the training targets of each regression task that has none yet.

    They are taken over the labelled rows that training draws from: after all splits and caps, with augmented rows.
    Equal targets, or a single one, have a deviation of 0 and get 1. Tasks of a model that was trained before, here or
    with older code, keep what they have.

    Args:
        tasks: task settings by name, as in `MultiTaskConfig.tasks`.
        training_rows: by task, its training rows.

    Returns:
        By task, `target_mean` and `target_deviation`.
    """
    measured = {}
    for task, rows in training_rows.items():
        if not tasks[task].kind.has_target_scale or tasks[task].target_mean is not None:
            continue
        targets = labels_of(rows, task).drop_null().to_numpy()
        is_constant = np.ptp(targets) == 0  # where rounding gives the mean, and so the deviation, a last bit
        mean, deviation = (targets[0], 1.0) if is_constant else (targets.mean(), targets.std())
        measured[task] = {"target_mean": float(mean), "target_deviation": float(deviation)}
        logger.info(
            f"{task}: all {len(targets)} training targets are {mean:g}, so there is nothing to learn"
            if is_constant
            else f"{task}: targets are standardised by mean {mean:.6g} and deviation {deviation:.6g} of "
            f"{len(targets)} training rows; values and metrics keep the units of the labels"
        )
    return measured


def dwarfing(losses: dict[str, float], weights: dict[str, float], steps: int) -> str | None:
    """
    The warning where one loss is at least `DWARFING_FACTOR` times every other, else nothing.

    Args:
        losses: by task, the weighted loss; tasks without a row have 0 and do not count.
        weights: by task, the `loss_weight` in it.
        steps: over how many steps the losses were taken.
    """
    ordered = sorted((task for task in losses if losses[task] > 0), key=losses.__getitem__, reverse=True)
    if len(ordered) < 2:
        return None
    largest, next_largest = ordered[:2]
    factor = losses[largest] / losses[next_largest]
    if factor < DWARFING_FACTOR:
        return None
    return (
        f"In the first {steps} steps, the weighted loss of {largest} was {factor:,.0f} times that of every other task "
        f"or more, so the others may hardly train. Lower tasks.{largest}.loss_weight, which is {weights[largest]:g}: "
        f"with {weights[largest] / factor:.1g} it would be level with {next_largest}."
    )


class LossWatch:
    """
    Adds up the tasks' weighted losses of the first steps, and warns once where one dwarfs the others.

    Args:
        weights: each trained task's `loss_weight`.
        steps: of the training; fewer than `FIRST_STEPS` are looked at where it is shorter.
    """

    def __init__(self, weights: dict[str, float], steps: int):
        self.weights = weights
        self.steps_left = self.steps = min(FIRST_STEPS, steps)
        self.sums = torch.zeros(len(weights))

    def add(self, values: torch.Tensor, warns: bool = True) -> None:
        """Take a step's weighted losses `(tasks,)`; warns where it is due, if this process is one that does."""
        self.steps_left -= 1
        if self.steps_left >= 0:
            self.sums += values
        if self.steps_left == 0 and warns:
            losses = dict(zip(self.weights, self.sums.tolist(), strict=True))
            if (warning := dwarfing(losses, self.weights, self.steps)) is not None:
                logger.warning(warning)
