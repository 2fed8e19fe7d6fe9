"""How checkpoints are chosen, written and read: mixed into MultiTaskTrainer.

Checkpoints   the best of equal scores, adapters, and a run that was ended early
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..adapter_multitask import has_adapter, read_weights
from .best_checkpoints import has_stopped_improving


class Checkpoints:
    """Expects a Trainer with `tasks` and `best_of_tasks`."""

    # ---- choosing ----

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Of equal scores, the one with the lower loss is better. Both stand in the log, and so survive resuming."""
        if super()._determine_best_metric(metrics, trial):
            return True
        state, name = self.state, self.args.metric_for_best_model
        if name is None or not state.best_global_step:
            return False
        score = metrics[name if name.startswith("eval_") else f"eval_{name}"]
        losses = [
            entry["eval_loss"]
            for entry in state.log_history
            if entry["step"] == state.best_global_step and "eval_loss" in entry
        ]
        if score != state.best_metric or not losses or not metrics.get("eval_loss", float("inf")) < losses[-1]:
            return False
        state.best_global_step = state.global_step
        return True

    # ---- reading ----

    # With an adapter, the Trainer finds heads and projection in a checkpoint's model.safetensors, and no backbone.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if has_adapter(self.model.backbone):
            read_weights(self.model.backbone, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if has_adapter(self.model.backbone):
            read_weights(self.model.backbone, self.state.best_model_checkpoint)

    def _end_if_stopped_early(self, checkpoint: str) -> bool:
        """Where early stopping ended the run at this checkpoint, take its result; transformers would train on."""
        file = Path(checkpoint, TRAINER_STATE_NAME)
        if not file.is_file():
            return False
        state = TrainerState.load_from_json(str(file))
        if not has_stopped_improving(self.args, state.log_history, self.tasks):
            return False
        self.state = state
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        self._load_from_checkpoint(checkpoint)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        self.best_of_tasks.on_train_end(self.args, state, self.control)
        return True
