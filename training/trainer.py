"""MultiTaskTrainer: a transformers Trainer whose loss is the weighted sum of the tasks' losses.

One backbone pass per batch, whatever the tasks; every task evaluated with loss and metrics. The Trainer itself is left
as it is: what is overridden is where batches come from, what trains, how the loss is computed, and how an evaluation
runs. The parts have files of their own: mixture.py, strategy.py, stages.py, evaluation_loop.py, and the folders
balancing, features and resuming.
"""

import math
import os
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..data.collation import MultiTaskCollator
from ..data.loading import LabelledSet
from ..data.sampling.sampler import MixtureDataset, rows_labelled_for
from ..modeling_multitask import MultiTaskModel, MultiTaskOutput
from .arguments import MultiTaskTrainingArguments
from .balancing.settings import check_shared_parts, make_balancer
from .balancing.step import BalancedStep
from .best_checkpoints import (
    BestOfTasks,
    EarlyStopping,
    check_best_metric,
    check_early_stopping,
)
from .class_weights import resolve_balanced
from .evaluation import Evaluation
from .evaluation_loop import EvaluationLoop
from .features.batches import FeatureDataset, as_it_is, describe_features, sentence_windows
from .features.cache import FeatureCache, cache_sentences, can_cache_features, open_features
from .loss_scale import LossWatch, measure_targets
from .losses import task_loss
from .mixture import complete_mixture, make_sampler, steps_of_epoch, training_sets
from .resuming.checkpoints import Checkpoints
from .resuming.files import last_checkpoint
from .stages import enter_stage, parameter_groups, set_peaks, stage_starts
from .strategy import make_plan, plan_of_tasks

logger = logging.get_logger(__name__)


class _BeginCallback(TrainerCallback):
    """What happens at moments of the training loop: task losses count from where training begins or resumes, the
    sampler learns which epoch begins, the parts train whose stage it is, and the losses of a step are looked at before
    and after the optimizer's."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._reset_logged_losses()
        self.trainer._watch_losses()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # After resuming, the sampler is wrapped too deeply for the Trainer to reach it.
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer._enter_stage()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer._check_and_learn_from_step()

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.balancer.learns_after_step:
            self.trainer._learn_from_second_pass()


class MultiTaskTrainer(EvaluationLoop, BalancedStep, Checkpoints, Trainer):
    """
    Train all tasks of a [`MultiTaskModel`] together.

    Logs `loss` and `loss_<task>` (means over the same steps, so that `loss` is the weighted sum of the others), and
    at each evaluation `eval_<task>_loss`, `eval_<task>_<metric>`, `eval_loss` (weighted sum) and `eval_score` (mean of
    the tasks' primary metrics, which chooses the best checkpoint).

    A task without a labelled row in a step contributes an exact zero that touches its parameters: their gradient is
    zero, not absent, so an optimizer's momentum and weight decay still move them.

    A NaN or infinite loss stops training before the optimizer step, on every process. With `balancing`, the weights in
    that sum change from step to step and are logged as `weight_<task>`: what a task added to `loss` since the last log
    over its `loss_<task>`, so that the sum still holds. (For gradient methods they hold for the shared parameters.)

    Args:
        model: the model to train.
        args: training arguments.
        sets: labelled sets, each with `tasks` and a `splits` dictionary of datasets in canonical columns.
        mixture: how batches are drawn from the sets, as in a recipe; see `complete_mixture` for the keys. Tasks whose
            loss compares rows with each other get 16 rows in a mixed batch (or the batch size, if smaller) where
            nothing is said.
        callbacks: as in `Trainer`.
        tasks: names of the tasks that take part; a model may have others, whose heads are then frozen. All where
            nothing is said.
        strategy: what is frozen, what joins when, and learning rates by part; see `make_plan`. What it freezes stays
            frozen in the model.
        balancing: how the tasks' losses become one: a method's name, or `{"method": ..., **options}`; see
            `complete_balancing`.
        origin: what else makes the run the one it is, such as names of data columns, for its checkpoints to record.

    Attributes:
        tasks: settings of the tasks that take part.
        plan: what trains when.
        trained_tasks: settings of the tasks with anything to train. The others are only evaluated: rows that are
            labelled for no other task are not drawn, and their losses are no part of `loss`.

    Raises:
        ValueError: the strategy, the mixture or the balancing does not fit, several GPUs are visible to one process, a
            task has no training row, or a class that balanced weights need has none; in `train`, nothing is trainable,
            or a loss is NaN or infinite.
        ImportError: `balancing` needs torchjd, which is missing.
    """

    # compute_loss already divides by the rows of the whole accumulated step; the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: MultiTaskModel,
        args: MultiTaskTrainingArguments,
        sets: Sequence[Any],
        mixture: dict[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        tasks: Sequence[str] | None = None,
        strategy: dict[str, Any] | None = None,
        balancing: str | dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
    ):
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs. Start one process per GPU with `accelerate launch train.py`, "
                "or choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        # The batches of an epoch are laid out for all processes, so accelerate has nothing to even out.
        args.accelerator_config.even_batches = False
        args.accelerator_config.split_batches = False
        self.sets = list(sets)
        self.strategy = strategy or {}
        self.origin = origin or {}
        self._features: FeatureCache | None = None
        self._loss_watch: LossWatch | None = None
        self.evaluations: dict[str, Evaluation] = {}
        self.confusion: dict[str, dict[str, Any]] = {}  # of the classification tasks, when last evaluated
        self.tasks = {name: task for name, task in model.config.tasks.items() if tasks is None or name in tasks}
        self.plan = plan_of_tasks(make_plan(strategy, parts := model.parts(), args), self.tasks)
        for part in self.plan.frozen:
            for parameter in parts[part].values():
                parameter.requires_grad_(False)
        self.trained_tasks = {name: task for name, task in self.tasks.items() if self.plan.trains(name)}
        self.balancer = make_balancer(balancing if self.trained_tasks else None, len(self.trained_tasks), args)
        check_shared_parts(self.balancer.method, self.plan)
        check_best_metric(args, self.tasks)
        check_early_stopping(args, tuple(self.tasks))
        self.best_of_tasks = BestOfTasks(self)
        own_callbacks = [_BeginCallback(self), self.best_of_tasks]
        if args.early_stopping_patience is not None:
            own_callbacks.append(EarlyStopping(self.tasks))
        self.drawn = self._drawn_sets()
        seed = args.data_seed if args.data_seed is not None else args.seed
        self.mixture = complete_mixture(mixture, [labelled_set.tasks for labelled_set in self.sets])
        train_sets, self.announcements = training_sets(self.mixture, self.drawn, seed)
        self.sampler = make_sampler(
            self.mixture,
            self.drawn,
            train_sets,
            self.trained_tasks,
            args.per_device_train_batch_size,
            args.world_size,
            seed,
        )
        idle = [LabelledSet(self._idle_tasks(entry), entry.splits) for entry in self.sets]  # their losses are shown
        measured = [*self.drawn, *idle], [*train_sets, *(entry.splits["train"] for entry in idle)]
        for resolve in (resolve_balanced, measure_targets):
            settings, announcements = resolve(self.tasks, *measured)
            for task, resolved in settings.items():
                self.tasks[task].update(resolved)
            self.announcements += announcements
        super().__init__(
            model=model,
            args=args,
            train_dataset=MixtureDataset(train_sets),
            eval_dataset=self.sets,
            processing_class=model.tokenizer,
            data_collator=MultiTaskCollator(model.tokenizer, self.trained_tasks, model.config.max_length),
            callbacks=[*own_callbacks, *(callbacks or [])],
        )
        self.label_names = ["labels"]
        self._reset_logged_losses()
        self._stage = 0
        self._stage_starts = [0]
        if len(self.plan.stages) > 1:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("strategy.unfreeze works in one process or with DDP, not with FSDP or DeepSpeed.")
            steps_per_epoch = steps_of_epoch(self.sampler, args)
            max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
            self._stage_starts = stage_starts(self.plan, steps_per_epoch, max_steps)

    def _drawn_sets(self) -> list[LabelledSet]:
        """The sets that training draws from: of each, the tasks that train and the rows that are labelled for any."""
        drawn = []
        for labelled_set in self.sets:
            trained = [task for task in labelled_set.tasks if task in self.trained_tasks]
            rows = labelled_set.splits["train"]
            if trained:
                rows = rows if trained == list(labelled_set.tasks) else rows_labelled_for(rows, trained)
                drawn.append(LabelledSet(trained, {"train": rows}))
        return drawn

    def _idle_tasks(self, labelled_set: LabelledSet) -> list[str]:
        """The tasks of a set that take part, but have nothing to train."""
        return [task for task in labelled_set.tasks if task in self.tasks and task not in self.trained_tasks]

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        self._check_trainable()
        if (cache := self._open_features()) is not None:
            sets = self.train_dataset.sets
            places = self._cache_sentences(cache, lambda: sentence_windows(sets))
            dataloader = DataLoader(
                FeatureDataset(sets, self.trained_tasks, cache, places),
                batch_sampler=self.sampler,
                collate_fn=as_it_is,
                pin_memory=self.args.dataloader_pin_memory,
            )
            return self.accelerator.prepare(dataloader)
        dataloader = DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(dataloader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and by task how many labelled rows all processes have in them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        names = list(self.trained_tasks)
        counts = torch.tensor([sum(len(batch["labels"][task]) for batch in batches) for task in names], device=device)
        counts = self.accelerator.reduce(counts, reduction="sum").tolist()
        return batches, dict(zip(names, counts, strict=True))

    # ---- features of a frozen backbone ----

    def _open_features(self) -> FeatureCache | None:
        """The cache of pooled vectors where they are the same in every epoch, else nothing."""
        if not (self.args.feature_cache and self._can_cache_features()):
            return None
        precision = f"{self.accelerator.mixed_precision}{' tf32' if self.args.tf32 else ''}"
        self._features = open_features(self.model, precision, self._features)
        return self._features

    def _can_cache_features(self) -> bool:
        """Also no later stage may train a part of the backbone."""
        return not self.plan.trains_backbone and can_cache_features(self.model)

    def _cache_sentences(self, cache: FeatureCache, sentences: Callable[[], Iterable[Sequence[str]]]) -> np.ndarray:
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return cache_sentences(cache, self.model, sentences, show_progress=not self.args.disable_tqdm)

    def describe_features(self) -> str | None:
        """What the feature cache holds of all splits, as one line; nothing where the backbone is trained."""
        if not self._can_cache_features():
            return None
        if (cache := self._open_features()) is None:
            return "off"
        return describe_features(cache, [rows for entry in self.sets for rows in entry.splits.values()])

    # ---- what trains ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        self._check_trainable()
        if resume_from_checkpoint is True:  # still true where there is none, which the Trainer then says
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir)) or True
        if self.args.save_strategy != "no":
            _ = self.identity  # as it is before anything has changed
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            for line in self.check_resume(resume_from_checkpoint):
                if self.is_world_process_zero():
                    logger.warning(line)
            if self._end_if_stopped_early(resume_from_checkpoint):
                return TrainOutput(self.state.global_step, 0.0, {})
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:  # also after an interruption, what the stages have kept frozen is no longer frozen
            if len(self.plan.stages) > 1:
                enter_stage(self.plan, len(self.plan.stages) - 1, self.model)

    def _check_trainable(self) -> None:
        if not self.plan.stages or not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "Nothing is trainable: every parameter of the model is frozen. Unfreeze a part, such as a head, or "
                "only call evaluate."
            )

    def create_optimizer(self, model=None):
        self._check_trainable()
        self._enter_stage()
        if self.optimizer is None and self.plan.has_own_rates(self.args.learning_rate):
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if {"params", "model", "optimizer_dict"} & set(options):
                raise ValueError(
                    f"training.optim {self.args.optim} divides the parameters by itself, so that parts cannot have "
                    "learning rates or stages of their own. Take another optimizer, such as adamw_torch."
                )
            groups = parameter_groups(self.plan, self.get_decay_parameter_names(self.model), self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return super().create_optimizer(model)

    def _enter_stage(self) -> None:
        """Let the parts train whose stage the next step belongs to."""
        if len(self.plan.stages) < 2:
            return
        self._stage = bisect(self._stage_starts, self.state.global_step) - 1
        enter_stage(self.plan, self._stage, self.model_wrapped)
        if self.lr_scheduler is not None:
            set_peaks(self.plan, self._stage, self.optimizer, self.lr_scheduler)

    def _get_learning_rate(self) -> float:
        """What is logged as `learning_rate`: that of a part that trains."""
        if len(self.plan.stages) < 2:
            return super()._get_learning_rate()
        rates = self.plan.stages[self._stage].learning_rates
        return next(group["lr"] for group in self.optimizer.param_groups if group["part"] in rates)

    # ---- loss ----

    def task_losses(
        self, model: torch.nn.Module, inputs: dict[str, Any], counts: dict[str, int] | None = None
    ) -> tuple[torch.Tensor, MultiTaskOutput]:
        """
        One loss for each trained task: this process's share of the mean over the whole optimizer step.

        Args:
            model: the model, or what accelerate has wrapped around it.
            inputs: a collated batch on the model's device.
            counts: by task, its labelled rows in all micro-batches of all processes in this step; those of the batch
                where nothing is said.

        Each loss is summed over the batch and divided by its count. DDP averages gradients over processes, hence the
        factor. Nothing is kept.

        Returns the losses `(tasks,)`, not weighted, and the model's output.
        """
        labels = inputs["labels"]
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        counts = counts or {task: len(labels[task]) for task in labels}
        losses = []
        for task, settings in self.trained_tasks.items():
            summed = task_loss(
                settings,
                outputs.logits[task],
                labels[task],
                outputs.sentence_embedding,
                inputs["task_rows"][task],
                gather=self.accelerator.num_processes > 1,
            )
            losses.append(summed * (self.accelerator.num_processes / max(counts[task], 1)))
        return torch.stack(losses), outputs

    @property
    def loss_weights(self) -> torch.Tensor:
        """The trained tasks' `loss_weight`, `(tasks,)`, on the CPU."""
        return torch.tensor([settings["loss_weight"] for settings in self.trained_tasks.values()])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the task losses, with the balancer's weights while training; see `task_losses`."""
        losses, outputs = self.task_losses(model, inputs, num_items_in_batch)
        weights = self.loss_weights.to(losses)
        if model.training and torch.is_grad_enabled():
            weights = weights * self._weights_of_step(weights * losses)
            self._add_to_sums(losses, weights * losses)
        loss = (weights * losses).sum()
        return (loss, outputs) if return_outputs else loss

    def _add_to_sums(self, losses: torch.Tensor, weighted: torch.Tensor) -> None:
        """Count a micro-batch's losses `(tasks,)` for the look at the step and for the log."""
        self._step_losses += losses.detach()
        self._logged_losses += losses.detach()
        self._logged_weighted_losses += weighted.detach()

    def _reset_logged_losses(self) -> None:
        self._step_losses, self._logged_losses, self._logged_weighted_losses = torch.zeros(
            3, len(self.trained_tasks), device=self.args.device
        )
        self._logged_since = self.state.global_step

    def _watch_losses(self) -> None:
        """Not with balancing, which changes the weights by itself, nor in a run that was warned before it stopped."""
        is_watched = self.balancer.method == "sum" and self.state.global_step == 0
        weights = {task: settings["loss_weight"] for task, settings in self.trained_tasks.items()}
        self._loss_watch = LossWatch(weights, self.state.max_steps) if is_watched else None

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            steps = max(self.state.global_step - self._logged_since, 1)
            losses = self.accelerator.reduce(self._logged_losses, reduction="mean") / steps
            names = [f"loss_{task}" for task in self.trained_tasks]
            logs.update(zip(names, losses.tolist(), strict=True))
            if len(self.plan.stages) > 1 and (layers := self.plan.trainable_layers(self._stage)) is not None:
                logs["trainable_layers"] = layers
            if self.balancer.method != "sum":
                weighted = self.accelerator.reduce(self._logged_weighted_losses, reduction="mean") / steps
                for task, weight, loss in zip(
                    self.trained_tasks, (weighted / losses).tolist(), losses.tolist(), strict=True
                ):
                    if loss > 0:  # a task without rows since the last log had no weight
                        logs[f"weight_{task}"] = weight
            self._reset_logged_losses()
        super().log(logs, start_time)
