"""How checkpoints are chosen, written and read: mixed into MultiTaskTrainer.

    Checkpoints   the best of equal scores, a record of the run in each, and a check of both before one is gone on from

identity.py says what makes it the same run, files.py whether a checkpoint is whole, optimizer_state.py how the
optimizer's state finds its parameters.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints
from transformers.utils import CONFIG_NAME, logging

from ...adapter_multitask import has_adapter, read_weights
from ...configuration_multitask import MultiTaskConfig
from ...data.rows.row_hashes import write_row_hashes
from ...data.rows.streamed import BrokenStream
from ...manifest_multitask import listed
from ...staging_multitask import UNFINISHED, as_disk_error, is_same_folder
from ..arguments import FOLLOWS_METRIC
from ..balancing.making import load_balancer, save_balancer
from ..evaluation.early_stopping import has_stopped_improving
from ..mixture.drawing import steps_of_training
from ..report.publish import CARD_FILE, push_folder
from ..run.output_folder import put_folder
from .files import check_files, last_checkpoint, put_later_aside, read_record, write_record
from .identity import LEARNING_RATES, check_length, check_same_run, describe_model, describe_run
from .optimizer_state import check_shapes, match_state, parameter_names, set_learning_rates

logger = logging.get_logger(__name__)


def _read_state(checkpoint: Path) -> tuple[Path | None, TrainerState]:
    """The best checkpoint when this one was written, and the Trainer's state; folders may have been moved since."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if state.best_model_checkpoint is None:
        return None, state
    best = Path(state.best_model_checkpoint)
    return best if best.is_dir() else checkpoint.parent / best.name, state


class Checkpoints:
    """Expects a Trainer with all that `MultiTaskTrainer` sets up."""

    _is_saving_checkpoint = False

    # ---- choosing ----

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """
        Of equal scores, the one with the lower loss is better. Both stand in the log, and so survive resuming.

        A run that is to end with its best checkpoint looks only at what it saves.
        """
        if self.args.load_best_model_at_end and self.args.save_strategy != "best" and not self.control.should_save:
            return False
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

    # ---- writing ----

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the run the one it is, as its checkpoints record it; first asked for before anything trains."""
        return describe_run(self)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        self.accelerator.unwrap_model(self.model).adopt_heads()  # also those that had no row yet
        if not self.args.should_save:
            return super()._save(output_dir, state_dict)
        with listed(output_dir or self.args.output_dir) as folder:
            super()._save(folder, state_dict)
            if self.row_hashes is not None:
                write_row_hashes(Path(folder), self.row_hashes)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save a folder that opens by itself, by default in `args.output_dir`. With `args.push_to_hub`, that folder is
        pushed.
        """
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self._push(output_dir or self.args.output_dir, "Model save")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """
        Save the model in `args.output_dir` and push that folder: see `push_folder` for what goes along.

        Args:
            commit_message: the title of the commit.
            blocking: has to be true.
            token: by default `args.hub_token`, and without one what `hf auth login` stored or HF_TOKEN holds.
            revision: the branch, by default `args.hub_revision`.
            private: whether a new repository is private, by default `args.hub_private_repo`.
            kwargs: of `create_model_card`, which drafts a README.md where the folder has none.

        Returns the URL of the commit; `None` on other processes than the first.

        Raises:
            ValueError, OSError: as `push_folder`.
        """
        if not blocking:
            raise ValueError("blocking=False: the folder is pushed in one commit, which is waited for. Leave it out.")
        self.save_model(_internal_call=True)
        if self.is_world_process_zero() and not (Path(self.args.output_dir) / CARD_FILE).exists():
            self.create_model_card(**{"model_name": self._repo_id.split("/")[-1], **kwargs})
        return self._push(self.args.output_dir, commit_message or "End of training", token, revision, private)

    @property
    def _repo_id(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _push(
        self,
        folder: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> str | None:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_world_process_zero():
            return None
        private = self.args.hub_private_repo if private is None else private
        revision, token = revision or self.args.hub_revision, token or self.args.hub_token
        return push_folder(folder, self._repo_id, private, revision, token, commit_message)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving_checkpoint else folder

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """An optimizer that averages its steps shows the average before anything is measured, saved or the last."""
        control = self.control
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self.optimizer.eval()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, and move it there once it is whole; then older ones may go."""
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        unfinished = folder / UNFINISHED / checkpoint.name
        if self.args.should_save:
            shutil.rmtree(unfinished.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()  # no process writes before what an earlier run left is gone
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._is_saving_checkpoint = True
        try:
            with as_disk_error(checkpoint):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self._is_saving_checkpoint = limit, False
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best == checkpoint or best.exists()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()  # every process has written its random numbers
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
            names = parameter_names(self.optimizer, self.model)
            write_record(unfinished, self.identity, names, self.args.save_only_model)
            put_folder(unfinished, checkpoint)
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and unfinished.exists():
            put_folder(unfinished, checkpoint)  # a machine that does not see the folder of the first one
        if not self.args.should_save:
            return
        shutil.rmtree(unfinished.parent, ignore_errors=True)
        self._remove_older_checkpoints(folder)

    @contextmanager
    def _kept_where_streams_break(self) -> Iterator[None]:
        """
        Where streamed rows cannot be read any further, keep the steps that were made, and say so in the error.

        Of several processes, the others wait in the middle of a step, so that only the last checkpoint is left.
        """
        try:
            yield
        except BrokenStream as error:
            said = str(error).rpartition(f"{BrokenStream.__name__}: ")[2].strip()  # after a worker's stack trace
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            is_kept = checkpoint.is_dir()
            if (
                not is_kept
                and self.state.global_step
                and self.args.save_strategy != "no"
                and self.args.world_size == 1
            ):
                self.optimizer.eval()
                self._save_checkpoint(self.model, None)
                is_kept = True
            last = checkpoint if is_kept else last_checkpoint(Path(self.args.output_dir))
            remedy = "Begin again" if last is None else f"Go on from {last} with --resume_from_checkpoint"
            raise BrokenStream(f"{said} {remedy} when the rows can be read.") from error

    def _remove_older_checkpoints(self, folder: Path) -> None:
        """Keep no more checkpoints than `save_total_limit`; a run may have been killed before or while it did so."""
        if not self.args.should_save:
            return
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_balancer(self.balancer, output_dir, list(self.trained_tasks))

    # ---- reading ----

    def check_resume(self, checkpoint: str | Path) -> list[str]:
        """
        Make sure that a checkpoint is of this run and whole, before anything of it is loaded.

        Returns:
            What has changed since then and may, and whether anything is left to train: a line for each.

        Raises:
            ValueError: the checkpoint comes from another run, lacks a file, or is damaged.
        """
        checkpoint = Path(checkpoint)
        check_files(checkpoint, self.args.world_size)
        record = read_record(checkpoint)
        if record is None:  # of an earlier version
            model = describe_model(MultiTaskConfig.from_json_file(checkpoint / CONFIG_NAME))
            del model["task_order"]  # it was not kept
            check_same_run(checkpoint, model, self.identity)
            lines = [
                f"{checkpoint} comes from an earlier version, which did not record its run. The model fits; tasks in "
                "another order, other data or other training arguments cannot be told from here."
            ]
        else:
            if self.lessons is not None:
                self.lessons.expect((record["run"].get("distillation") or {}).get("teachers", {}))
            changes = check_same_run(checkpoint, record["run"], self.identity)
            rates = [changes[name] for name in LEARNING_RATES if name in changes]
            if rates and (kind := self.args.lr_scheduler_type.value) in FOLLOWS_METRIC:
                raise ValueError(
                    f"resume_from_checkpoint: {rates[0]} But the schedule {kind} makes up its rates as it goes, so "
                    "that none can be applied. Go on with the learning rates of then."
                )
            lines = list(changes.values())
        best, state = _read_state(checkpoint)
        if best is not None and self.args.load_best_model_at_end:
            if not best.is_dir():
                raise ValueError(
                    f"resume_from_checkpoint: the best checkpoint before {checkpoint}, {best.name}, is gone, so that "
                    "the run could not end with it. Put it back, or set load_best_model_at_end to false."
                )
            check_files(best, self.args.world_size)
        return lines + check_length(checkpoint, state.global_step, self)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        trained = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is not None:
            # What a checkpoint says of logging, evaluation and saving would go on, whatever is asked for now.
            self.state.compute_steps(self.args, max_steps)
            best, _ = _read_state(Path(resume_from_checkpoint))
            self.state.best_model_checkpoint = str(best) if best is not None and best.is_dir() else None
        return trained

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self._load_matched_optimizer(checkpoint)
        if checkpoint is not None:
            load_balancer(self.balancer, checkpoint, list(self.trained_tasks))

    def _load_matched_optimizer(self, checkpoint: str) -> None:
        """Optimizer and schedule, the state of each parameter found by its name."""
        optimizer, folder = self.optimizer.optimizer, Path(checkpoint)
        peaks = [group.get("initial_lr") for group in optimizer.param_groups]  # those of a schedule that has any
        record = read_record(folder)

        def match(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            if record is not None:
                state = match_state(state, record["optimizer"], parameter_names(optimizer, self.model), folder)
            check_shapes(state, optimizer, folder)
            return state

        hook = optimizer.register_load_state_dict_pre_hook(match)
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        finally:
            hook.remove()
        # With stages, the peaks are those of the stage, which follow when it is entered.
        set_learning_rates(optimizer, self.lr_scheduler, None if len(self.plan.stages) > 1 else peaks)

    # With an adapter, the Trainer finds heads and projection in a checkpoint's model.safetensors, and no backbone.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if has_adapter(self.model.backbone):
            read_weights(self.model.backbone, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if has_adapter(self.model.backbone):
            read_weights(self.model.backbone, self.state.best_model_checkpoint)

    def _prepare_to_resume(self, checkpoint: str) -> bool:
        """Check a checkpoint, say what has changed, and see to what is left of a later course; whether to train on."""
        for line in self.check_resume(checkpoint):
            if self.is_world_process_zero():
                logger.warning(line)
        if self.args.should_save and is_same_folder(Path(checkpoint).resolve().parent, self.args.output_dir):
            put_later_aside(Path(checkpoint))
        self.accelerator.wait_for_everyone()
        if not self._end_if_finished(checkpoint):
            return True
        self._remove_older_checkpoints(Path(self.args.output_dir))
        return False

    def _end_if_finished(self, checkpoint: str) -> bool:
        """Where the run ended at this checkpoint, take its result; transformers would train on."""
        best, state = _read_state(Path(checkpoint))
        is_at_end = state.global_step >= steps_of_training(self.sampler, self.args)
        if not is_at_end and not has_stopped_improving(self.args, state.log_history, self.scored):
            return False
        self.state = state
        state.is_local_process_zero = self.is_local_process_zero()
        state.is_world_process_zero = self.is_world_process_zero()
        # As `train` does before it trains: what the finished folder says of tokens does not depend on resuming.
        if hasattr(trainer, "align_special_tokens"):
            trainer.align_special_tokens(self.model, self.processing_class)
        self._load_from_checkpoint(checkpoint)
        if self.args.load_best_model_at_end and best is not None:
            state.best_model_checkpoint = str(best)
            self._load_best_model()
        self.best_of_tasks.on_train_end(self.args, state, self.control)
        return True
