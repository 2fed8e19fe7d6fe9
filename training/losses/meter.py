"""The tasks' losses while a model trains: looked at before every optimizer step, and averaged for the log."""

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainingArguments

from ...tasks_multitask import TaskConfig
from ..balancing.balancers import Balancer
from ..balancing.making import check_finite
from .scale import LossWatch


class LossMeter(TrainerCallback):
    """
    Adds up the losses of micro-batches.

    Before each optimizer step it stops training where a loss is NaN or infinite, and shows the step's losses to the
    balancer and to the watch. All processes see the same losses, and so stop together.

    Args:
        tasks: settings of the tasks that train, by name.
        balancer: learns from the weighted losses of each step.
        args: of the run; the losses are kept on its device.
    """

    def __init__(self, tasks: dict[str, TaskConfig], balancer: Balancer, args: TrainingArguments):
        self.tasks, self.balancer = tasks, balancer
        self.watch: LossWatch | None = None
        # Each (tasks,): this process's share since the last step, and since the last log.
        self.of_step, self.logged, self.logged_weighted = torch.zeros(3, len(tasks), device=args.device)
        self.logged_at = 0  # the optimizer step of the last log

    @property
    def loss_weights(self) -> torch.Tensor:
        """The tasks' `loss_weight`, `(tasks,)`, on the CPU."""
        return torch.tensor([settings.loss_weight for settings in self.tasks.values()])

    def add(self, losses: torch.Tensor, weighted: torch.Tensor) -> None:
        """Count a micro-batch's losses `(tasks,)`, as they are and as they went into the sum."""
        self.of_step += losses.detach()
        self.logged += losses.detach()
        self.logged_weighted += weighted.detach()

    def on_train_begin(self, args, state, control, **kwargs):
        for sums in (self.of_step, self.logged, self.logged_weighted):
            sums.zero_()
        self.logged_at = state.global_step
        # Not with balancing, which changes the weights by itself, nor in a run that was warned before it stopped.
        is_watched = self.balancer.method == "sum" and state.global_step == 0
        weights = {task: settings.loss_weight for task, settings in self.tasks.items()}
        self.watch = LossWatch(weights, state.max_steps) if is_watched else None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        losses = reduce(self.of_step, reduction="mean").cpu()
        self.of_step.zero_()
        check_finite(losses.tolist(), self.tasks, state.global_step + 1)
        values = losses * self.loss_weights
        self.balancer.update(values)
        if self.watch is not None:
            self.watch.add(values, warns=state.is_world_process_zero)

    def take_logs(self, step: int) -> dict[str, float]:
        """
        The entries of a log; counting then begins anew.

        `loss_<task>` is the mean over the steps since the last log. With balancing, `weight_<task>` is what a task
        added to `loss` over its own loss.

        Args:
            step: optimizer steps made so far.
        """
        steps = max(step - self.logged_at, 1)
        losses = reduce(self.logged, reduction="mean") / steps
        logs = {f"loss_{task}": loss for task, loss in zip(self.tasks, losses.tolist(), strict=True)}
        if self.balancer.method != "sum":
            weighted = reduce(self.logged_weighted, reduction="mean") / steps
            weights = dict(zip(self.tasks, (weighted / losses).tolist(), strict=True))
            # A task without rows since the last log had no weight.
            logs |= {f"weight_{task}": weight for task, weight in weights.items() if logs[f"loss_{task}"] > 0}
        self.logged.zero_()
        self.logged_weighted.zero_()
        self.logged_at = step
        return logs
