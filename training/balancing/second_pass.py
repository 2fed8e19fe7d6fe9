"""How an optimizer step has changed the losses of its batch, for a method that learns from that (famo)."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from ...tasks_multitask import TaskConfig
from .balancers import Balancer
from .making import check_finite


def _random_states(device: torch.device) -> list[torch.Tensor]:
    """The states of the random numbers on the CPU and, where it is another one, on the model's device."""
    if device.type == "mps":  # which has one generator for all
        return [torch.get_rng_state(), torch.mps.get_rng_state()]
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "mps":
        torch.mps.set_rng_state(states[1])
    elif device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class SecondPass(TrainerCallback):
    """
    Shows a balancer the losses of the last batch after the optimizer step, with the dropout of before it.

    Args:
        balancer: what learns from them.
        tasks: settings of the tasks that train, by name.
        weighted_losses: a batch and the step's counts to the weighted losses `(tasks,)`; see `task_losses`.
    """

    def __init__(
        self,
        balancer: Balancer,
        tasks: dict[str, TaskConfig],
        weighted_losses: Callable[[dict[str, Any], dict[str, int]], torch.Tensor],
    ):
        self.balancer, self.tasks, self.weighted_losses = balancer, tasks, weighted_losses
        self.batch: tuple | None = None

    def keep(self, inputs: dict[str, Any], counts: dict[str, int], device: torch.device) -> None:
        """Keep the batch of a step, and the state of the random numbers before it is passed through the model."""
        self.batch = inputs, counts, device, _random_states(device)

    def on_optimizer_step(self, args, state, control, **kwargs):
        inputs, counts, device, states = self.batch
        current = _random_states(device)
        _set_random_states(device, states)
        try:
            with torch.no_grad():
                values = reduce(self.weighted_losses(inputs, counts), reduction="mean").cpu()
        finally:
            _set_random_states(device, current)
        check_finite(values.tolist(), self.tasks, state.global_step + 1, after=True)
        self.balancer.update_after_step(values)
