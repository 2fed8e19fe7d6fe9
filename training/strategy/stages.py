"""A plan's stages carried out while a model trains.

    Stages            which stage a step belongs to, and entering it
    stage_starts      the optimizer step before which each stage begins
    parameter_groups  the optimizer's groups
    enter_stage       lets a stage's parts train; also of a model wrapped by DistributedDataParallel
    set_peaks         the learning rates of a stage

All parameters that ever train are in the optimizer from the start: optimizers skip those without a gradient, so that a
part that has not joined yet has no optimizer state and does not move.
"""

from bisect import bisect
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from .plan import Plan


def stage_starts(plan: Plan, steps_per_epoch: int, max_steps: int) -> list[int]:
    """
    The optimizer step before which each stage begins.

    Raises:
        ValueError: a stage has no step, because it is too short or training ends before it.
    """
    ends = accumulate(stage.epochs for stage in plan.stages[:-1])
    starts = [0, *(round(end * steps_per_epoch) for end in ends)]
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], max_steps], strict=True), 1):
        if start >= end:
            raise ValueError(
                f"strategy.unfreeze, stage {number} has no step: an epoch is {steps_per_epoch} optimizer steps, the "
                f"training {max_steps}, and the stage would begin after step {start} and end after step {end}. "
                "Change the stages' epochs, or train longer."
            )
    return starts


def parameter_groups(plan: Plan, decayed: Iterable[str], weight_decay: float) -> list[dict[str, Any]]:
    """
    The optimizer's groups: parts that train alike in all stages together, with and without weight decay.

    A group's `part` is the first of its parts, `peak` the learning rate that the scheduler's factor multiplies.
    """
    decayed = set(decayed)
    groups: dict[tuple, dict[str, Any]] = {}
    for part, parameters in plan.parameters.items():
        rates = tuple(stage.learning_rates.get(part) for stage in plan.stages)
        peak = next(rate for rate in rates if rate is not None)
        for name, parameter in parameters.items():
            is_decayed = name in decayed
            empty = {"params": [], "lr": peak, "weight_decay": weight_decay if is_decayed else 0.0}
            group = groups.setdefault((rates, is_decayed), {**empty, "part": part, "peak": peak})
            group["params"].append(parameter)
    return list(groups.values())


def enter_stage(plan: Plan, stage: int, wrapped: nn.Module) -> None:
    """
    Let the parts of a stage train, and no others.

    Args:
        plan: the plan.
        stage: number of the stage, from 0.
        wrapped: the model as it is trained. DistributedDataParallel waits for the gradients of exactly the parameters
            that were trainable when it was set up, so it is set up again where these change.
    """
    changed = False
    for part, parameters in plan.parameters.items():
        trains = part in plan.stages[stage].learning_rates
        for parameter in parameters.values():
            changed |= parameter.requires_grad != trains
            parameter.requires_grad_(trains)
    if changed and isinstance(wrapped, DistributedDataParallel):
        wrapped.__setstate__(wrapped.__getstate__())  # as unpickling does: a new reducer, in place


def set_peaks(plan: Plan, stage: int, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    """Change the groups' peak learning rates to those of a stage; the scheduler's present factor stays what it is."""
    for number, group in enumerate(optimizer.param_groups):
        peak = plan.stages[stage].learning_rates.get(group["part"])
        if peak is None or peak == group["peak"]:
            continue
        group["lr"] *= peak / group["peak"]
        group["peak"] = peak
        if "initial_lr" in group:
            group["initial_lr"] = peak
        for name in ("base_lrs", "_init_lrs"):  # of torch's schedulers, and of transformers' GreedyLR
            if hasattr(scheduler, name):
                getattr(scheduler, name)[number] = peak


class Stages:
    """
    A plan's stages over the steps of a training.

    Args:
        plan: the plan.
        starts: from `stage_starts`.
    """

    def __init__(self, plan: Plan, starts: Sequence[int] = (0,)):
        self.plan, self.starts = plan, starts

    def at(self, step: int) -> int:
        """The number of the stage, from 0, that an optimizer step belongs to."""
        return bisect(self.starts, step) - 1

    def enter(
        self,
        step: int,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        """Let the parts train whose stage a step belongs to, with their learning rates where there is a schedule."""
        if len(self.plan.stages) < 2:
            return
        enter_stage(self.plan, self.at(step), wrapped)
        if scheduler is not None:
            set_peaks(self.plan, self.at(step), optimizer, scheduler)

    def learning_rate(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """The present learning rate of a part that trains at a step."""
        rates = self.plan.stages[self.at(step)].learning_rates
        return next(group["lr"] for group in optimizer.param_groups if group["part"] in rates)
