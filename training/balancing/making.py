"""A balancer for a run: made, checked against what trains, saved and resumed.

make_balancer        the method, ready for a run; an error where that run cannot support it
save_balancer        what it has learnt, into a checkpoint, from which load_balancer goes on
check_shared_parts   an error where a gradient method has nothing to balance
check_finite         stops a run whose loss is NaN or infinite, and names the task
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..strategy.plan import Plan
from .balancers import (
    Balancer,
    DynamicWeightAverage,
    Famo,
    GeometricMean,
    GradientBalancer,
    RandomWeights,
    Uncertainty,
)
from .settings import GRADIENT_METHODS, BalancingConfig

STATE_FILE = "balancing.json"


def check_shared_parts(method: str, plan: Plan) -> None:
    """
    Check that a gradient method finds shared parameters to balance gradients on.

    Raises:
        ValueError: in some stage of the plan no part trains that tasks share.
    """
    for number, stage in enumerate(plan.stages, 1):
        if method in GRADIENT_METHODS and all(part.startswith("heads.") for part in stage.learning_rates):
            where = f" in stage {number} of strategy.unfreeze" if len(plan.stages) > 1 else ""
            raise ValueError(
                f"balancing: {method} balances gradients of shared parameters, but none is trainable{where}. Let a "
                "part of the backbone train, or leave balancing out."
            )


def check_finite(losses: Sequence[float], tasks: Mapping[str, dict[str, Any]], step: int, after: bool = False) -> None:
    """
    Stop where a task's loss is NaN or infinite.

    Args:
        losses: of one optimizer step, one for each task.
        tasks: task settings by name.
        step: the optimizer step, counted from 1.
        after: whether they were computed after the step (for famo), with the weights that it gave.

    Raises:
        ValueError: names the step, and each such task with its loss.
    """
    found = [
        f"the {settings.loss} loss of task {task!r} is {loss}"
        for (task, settings), loss in zip(tasks.items(), losses, strict=True)
        if not math.isfinite(loss)
    ]
    if found:
        raise ValueError(
            f"Step {step}: {' and '.join(found)}. Training stopped {'after' if after else 'before'} the optimizer "
            "step and before anything was saved, so the last checkpoint is good. Look for extreme labels in that "
            "task's rows, or lower the learning rate."
        )


_CLASSES = {
    "sum": Balancer,
    "uncertainty": Uncertainty,
    "dwa": DynamicWeightAverage,
    "famo": Famo,
    "geometric_mean": GeometricMean,
    "random": RandomWeights,
    **dict.fromkeys(GRADIENT_METHODS, GradientBalancer),
}


def make_balancer(balancing: BalancingConfig, num_tasks: int, args: TrainingArguments) -> Balancer:
    """
    The method, ready for a run.

    Args:
        balancing: the method and its options.
        num_tasks: how many tasks there are.
        args: of the run.

    Raises:
        ValueError: the run is one that the method cannot support.
        ImportError: torchjd is missing.
    """
    method, is_gradient_method = balancing.method, balancing.method in GRADIENT_METHODS
    balancer_class = _CLASSES[method]
    if args.gradient_accumulation_steps > 1 and (is_gradient_method or balancer_class.needs_values):
        raise ValueError(
            f"balancing: {method} needs the losses of a whole optimizer step at once, so it does not go with "
            f"gradient_accumulation_steps {args.gradient_accumulation_steps}. Set it to 1 and raise "
            "per_device_train_batch_size, or take sum, uncertainty, dwa or random."
        )
    if is_gradient_method:
        # By its older name in releases of transformers before the newer one, and in all of them until 6.
        checkpoints = getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", False)
        for key, is_in_the_way in (
            (f"{args.world_size} processes", args.world_size > 1),
            ("fp16 (take bf16)", args.fp16),
            ("activation_checkpointing", checkpoints),
            ("torch_compile", args.torch_compile),
        ):
            if is_in_the_way:
                raise ValueError(
                    f"balancing: {method} computes a gradient for each task, which does not go with {key}. "
                    "Change that, or take a method that only weighs losses, such as uncertainty, dwa or famo."
                )
    try:
        return balancer_class(balancing, num_tasks, args.seed)
    except ImportError as error:
        raise ImportError(
            f"balancing: {method} needs torchjd, which cannot be imported ({error}). Install it with "
            "`pip install 'torchjd>=0.18,<0.19'`, or leave balancing out."
        ) from error


def save_balancer(balancer: Balancer, folder: str | os.PathLike, tasks: Sequence[str]) -> None:
    """Write what a method has learnt into a checkpoint; `sum` has nothing to write."""
    if balancer.method != "sum":
        content = {"balancing": balancer.config.to_recipe(), "tasks": list(tasks), "state": balancer.state()}
        Path(folder, STATE_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def load_balancer(balancer: Balancer, folder: str | os.PathLike, tasks: Sequence[str]) -> None:
    """
    Go on from what `save_balancer` wrote.

    Raises:
        ValueError: the checkpoint comes from a run with another method, or with other tasks.
    """
    path = Path(folder, STATE_FILE)
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"balancing": {"method": "sum"}}
    found = content["balancing"]["method"]
    if found != balancer.method:
        raise ValueError(
            f"{folder} comes from a run with balancing {found}, but balancing is now {balancer.method}. Resume with "
            f"{found}, or start anew."
        )
    if content.get("tasks", list(tasks)) != list(tasks):
        raise ValueError(f"{path} is about the tasks {content['tasks']}, but there are {list(tasks)}. Start anew.")
    if content.get("state") is not None:
        balancer.load_state(content["state"])
