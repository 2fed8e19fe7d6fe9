"""The state of an optimizer in a checkpoint, matched with the parameters of a model by their names.

    parameter_names       names of the parameters in each group of an optimizer
    match_state           saved state in the order of the optimizer that is to go on with it
    check_shapes          whether the state has the shapes of the parameters, for checkpoints that name none
    set_learning_rates    peaks and schedule of this run in place of the saved ones

torch matches by position, and its fused optimizers do not look at shapes: where parameters come in another order, they
read beyond the end of a tensor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch.optim.lr_scheduler import LambdaLR

_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # what has a parameter's own shape


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """The names of the parameters in each group, in the optimizer's order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def match_state(
    state: dict[str, Any], saved: Sequence[Sequence[str]], names: Sequence[Sequence[str]], checkpoint: Path
) -> dict[str, Any]:
    """
    A saved `state_dict` for an optimizer whose groups hold the same parameters, in any order.

    Args:
        state: as an optimizer saved it.
        saved: names of the parameters in each of its groups, as `parameter_names` gave them.
        names: the same of the optimizer that is to load it.
        checkpoint: where the state comes from, for the message.

    Raises:
        ValueError: the groups hold other parameters.
    """
    groups = {
        frozenset(group_names): (group, dict(zip(group_names, group["params"], strict=True)))
        for group, group_names in zip(state["param_groups"], saved, strict=True)
    }
    matched: dict[str, Any] = {"state": {}, "param_groups": []}
    position = 0
    for group_names in names:
        if frozenset(group_names) not in groups:
            raise ValueError(
                f"resume_from_checkpoint: the optimizer of {checkpoint} divides its parameters into other groups: "
                f"those of {group_names[0] if group_names else 'an empty group'} are not the same. Parts that trained "
                "with one learning rate should still train with one, and others with their own."
            )
        group, places = groups[frozenset(group_names)]
        indices = range(position, position + len(group_names))
        position += len(group_names)
        matched["param_groups"].append({**group, "params": list(indices)})
        for index, name in zip(indices, group_names, strict=True):
            if places[name] in state["state"]:
                matched["state"][index] = state["state"][places[name]]
    return matched


def check_shapes(state: dict[str, Any], optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """
    Compare a saved `state_dict` with an optimizer's parameters by position, as torch is going to match them.

    Raises:
        ValueError: another number of parameters, or state of another shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in state["param_groups"]]
    if sizes != found:
        raise ValueError(
            f"resume_from_checkpoint: the optimizer of {checkpoint} has groups of {found} parameters, but that of "
            f"this run has {sizes}. Tasks, heads, frozen parts and learning rates should be those of the earlier run."
        )
    for index, values in state["state"].items():
        for key in _LIKE_PARAMETERS:
            if key in values and values[key].shape != parameters[index].shape:
                raise ValueError(
                    f"resume_from_checkpoint: parameter {index} has the shape {tuple(parameters[index].shape)}, but "
                    f"the optimizer of {checkpoint} was training one of {tuple(values[key].shape)}. Tasks should "
                    "stand in the order of the earlier run."
                )


def set_learning_rates(optimizer: torch.optim.Optimizer, scheduler: Any, peaks: Sequence[float] | None) -> None:
    """
    Let a schedule go on with this run's peaks and length; without a change of either, every rate stays what it is.

    Args:
        optimizer: with the groups that the schedule was made for.
        scheduler: what has been loaded; one that is no `LambdaLR` makes up its rates as it goes, and is left alone.
        peaks: of each group; `None` for those that were loaded.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    if peaks is not None:
        scheduler.base_lrs = list(peaks)
    for group, peak, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"], group["initial_lr"] = peak * factor(scheduler.last_epoch), peak
        if "peak" in group:
            group["peak"] = peak
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
