"""How an optimizer step has changed the losses of its batch, for a method that learns from that (famo)."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback

from ...tasks_multitask import TaskConfig
from .balancers import Balancer
from .making import check_finite


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
        devices = [device] if device.type == "cuda" else []
        states = torch.get_rng_state(), [torch.cuda.get_rng_state(cuda) for cuda in devices]
        self.batch = inputs, counts, devices, states

    def on_optimizer_step(self, args, state, control, **kwargs):
        inputs, counts, devices, (cpu_state, cuda_states) = self.batch
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.set_rng_state(cpu_state)
            for device, cuda_state in zip(devices, cuda_states, strict=True):
                torch.cuda.set_rng_state(cuda_state, device)
            values = reduce(self.weighted_losses(inputs, counts), reduction="mean").cpu()
        check_finite(values.tolist(), self.tasks, state.global_step + 1, after=True)
        self.balancer.update_after_step(values)
