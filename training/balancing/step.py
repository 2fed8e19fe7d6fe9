"""A training step whose task losses are balanced: mixed into MultiTaskTrainer.

    BalancedStep   the weights of a step, the backward pass of gradient methods, and what a balancer learns and saves

Every step ends with a look at its losses, also under the plain sum: one that is NaN or infinite stops training.
"""

import torch
from transformers.utils import logging

from .balancers import GradientBalancer
from .settings import check_finite, load_balancer, save_balancer

logger = logging.get_logger(__name__)


class BalancedStep:
    """Expects a Trainer with `balancer`, `trained_tasks`, `task_losses` and `loss_weights`."""

    def _weights_of_step(self, values: torch.Tensor) -> torch.Tensor:
        """What the weighted losses `(tasks,)` of this step are multiplied with; the same in all its micro-batches."""
        if self.balancer.method == "sum":
            return torch.ones_like(values)
        values = values.detach()
        mean = self.accelerator.reduce(values, reduction="mean").cpu() if self.balancer.needs_values else None
        return self.balancer.weights(self.state.global_step, int(self.state.epoch or 0), mean).to(values)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.balancer.learns_after_step:
            self._last_batch = inputs, num_items_in_batch, self._rng_states()
        if not isinstance(self.balancer, GradientBalancer):
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        with self.compute_loss_context_manager():
            losses, _ = self.task_losses(model, self._prepare_inputs(inputs), num_items_in_batch)
        own = {parameter for parameter in self.model.heads.parameters() if parameter.requires_grad}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shared = [parameter for parameter in trainable if parameter not in own]
        values = self.loss_weights.to(losses) * losses
        weighted = (self.balancer.backward(values, shared, list(own)) * values).detach()
        self._add_to_sums(losses, weighted)
        return weighted.sum()

    def _rng_states(self) -> list[torch.Tensor]:
        on_gpu = self.args.device.type == "cuda"
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self.args.device)] if on_gpu else [])]

    def _check_and_learn_from_step(self) -> None:
        """Stop at a loss that is NaN or infinite; all processes see the same losses, and so stop together."""
        losses = self.accelerator.reduce(self._step_losses, reduction="mean").cpu()
        self._step_losses = torch.zeros_like(self._step_losses)
        check_finite(losses.tolist(), self.trained_tasks, self.state.global_step + 1)
        self.balancer.update(losses * self.loss_weights)
        warning = self._loss_watch.add(losses * self.loss_weights) if self._loss_watch else None
        if warning is not None and self.is_world_process_zero():
            logger.warning(warning)

    def _learn_from_second_pass(self) -> None:
        """Show the balancer the losses of the last batch after the step, with the dropout of before it."""
        inputs, counts, (state, *cuda_state) = self._last_batch
        with torch.no_grad(), torch.random.fork_rng(devices=[self.args.device] if cuda_state else []):
            torch.set_rng_state(state)
            if cuda_state:
                torch.cuda.set_rng_state(*cuda_state, self.args.device)
            with self.compute_loss_context_manager():
                losses, _ = self.task_losses(self.model, self._prepare_inputs(inputs), counts)
        values = self.accelerator.reduce(self.loss_weights.to(losses) * losses, reduction="mean").cpu()
        check_finite(values.tolist(), self.trained_tasks, self.state.global_step + 1, after=True)
        self.balancer.update_after_step(values)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_balancer(self.balancer, output_dir, list(self.trained_tasks))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_balancer(self.balancer, checkpoint, list(self.trained_tasks))
