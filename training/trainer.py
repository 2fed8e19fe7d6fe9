"""MultiTaskTrainer: a transformers Trainer whose loss is the weighted sum of the tasks' losses.

One backbone pass per batch, whatever the tasks; every task evaluated with loss and metrics. The Trainer itself is left
as it is: what is overridden is where batches come from, what trains, how the loss is computed, and how an evaluation
runs. The parts have files of their own:

    mixture/        what is drawn, and how batches are laid out
    strategy/       what trains when, and how fast
    losses/         the loss of a task; the look at the losses of a step, and their log
    balancing/      how the losses of the tasks become one step
    distillation/   what tasks learn from teachers beside their labels
    features/       pooled vectors of a frozen backbone
    evaluation_loop.py, resuming/checkpoints.py   evaluation and checkpoints, mixed in
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..data.collation import COUNTED, MultiTaskCollator, count_rows
from ..data.loading.in_memory import Columns, TaskDatasets, as_labelled_sets
from ..data.rows.row_hashes import RowHashes
from ..data.rows.sets import LabelledSet
from ..data.sampling.sampler import MixtureDataset
from ..data.text.tokens import warn_of_tokens_without_embedding
from ..modeling_multitask import MultiTaskModel, MultiTaskOutput
from ..tasks_multitask import TaskConfig
from .arguments import MultiTaskTrainingArguments, check_evaluations, check_process
from .balancing.balancers import Balancer, GradientBalancer
from .balancing.making import check_finite, check_shared_parts, make_balancer
from .balancing.second_pass import SecondPass
from .balancing.settings import BalancingConfig
from .compiled_layers import compile_layers
from .distillation.lessons import Lessons
from .evaluation.best_checkpoints import BestOfTasks, check_best_metric
from .evaluation.early_stopping import EarlyStopping, check_early_stopping
from .evaluation.groups import TaskGroup, read_groups, with_groups
from .evaluation.scores import Evaluation
from .evaluation_loop import EvaluationLoop
from .fast_dropout import use_fast
from .features.batches import FeatureDataset, as_it_is, sentence_windows
from .features.run_features import RunFeatures
from .losses.losses import task_loss
from .losses.measures import take_measures
from .losses.meter import LossMeter
from .mixture.drawing import EpochOfSampler, draw_sets, make_sampler, rows_by_task, steps_of_epoch, steps_of_training
from .mixture.settings import MixtureConfig
from .resuming.checkpoints import Checkpoints
from .resuming.files import last_checkpoint
from .strategy.plan import Plan, make_plan, plan_of_tasks
from .strategy.stages import Stages, enter_stage, parameter_groups, stage_starts


class MultiTaskTrainer(EvaluationLoop, Checkpoints, Trainer):
    """
    Train all tasks of a [`MultiTaskModel`] together.

    Logs `loss` and `loss_<task>` (means over the same steps, so that `loss` is the weighted sum of the others), and
    at each evaluation `eval_<task>_loss`, `eval_<task>_<metric>`, `eval_loss` (weighted sum) and `eval_score` (mean of
    the tasks' primary metrics, which chooses the best checkpoint; a group counts once, in place of its tasks).

    A task without a labelled row in a step contributes an exact zero that touches its parameters: their gradient is
    zero, not absent, so an optimizer's momentum and weight decay still move them.

    A NaN or infinite loss stops training before the optimizer step, on every process. With `balancing`, the weights in
    that sum change from step to step and are logged as `weight_<task>`: what a task added to `loss` since the last log
    over its `loss_<task>`, so that the sum still holds. (For gradient methods they hold for the shared parameters.)

    Args:
        model: the model to train. What the strategy freezes stays frozen in it, and its `config.tasks` takes what is
            measured on the training rows: the scale of regression targets, and balanced weights.
        args: training arguments.
        train_dataset: by task, a `datasets.Dataset` with the columns that a recipe's would have: see
            `data.loading.in_memory.label_datasets`. Tasks that are given the same object share its rows, which are
            drawn once. Or labelled sets as `load_tasks` gives them for a recipe, which hold every split.
        eval_dataset: by task, its validation rows, an entry for each task that is trained.
        groups: tasks that are scored together, by the group's name: `{"tasks": [...], "metrics": [...]}`, and
            `f1_labels` for the metric `f1`. See `groups.read_groups`.
        columns: by task, the names of its columns. By default they are the keys of a recipe's `columns`.
        mixture: how batches are drawn from the sets: a `MixtureConfig`, or what a recipe says. Tasks whose loss
            compares rows with each other get 16 rows in a mixed batch (or the batch size, if smaller) where nothing is
            said.
        callbacks: as in `Trainer`.
        tasks: names of the tasks that take part; the heads of all others are frozen. By default those of
            `train_dataset`, or with labelled sets all tasks.
        strategy: what is frozen, what joins when, and learning rates by part; see `make_plan`.
        balancing: how the tasks' losses become one: a `BalancingConfig`, a method's name, or
            `{"method": ..., **options}`; or a `Balancer`.
        origin: what else identifies the run, such as names of data columns; its checkpoints record it.
        lessons: what tasks learn from teachers beside their labels.
        plan: what follows from `strategy`, where it is made and the arguments are checked already.

    Attributes:
        tasks: settings of the tasks that take part.
        plan: what trains when.
        groups: the tasks that are scored together, by the group's name.
        trained_tasks: settings of the tasks with anything to train. The others are only evaluated: rows that are
            labelled for no other task are not drawn, and their losses are no part of `loss`.
        drawn: what training draws from each set.
        balancer: turns the tasks' losses into the step.
        row_hashes: of the rows that the model has seen, kept beside every model that is saved; `None` for none.

    Raises:
        TypeError: the data has neither form, or `args` are plain `TrainingArguments`.
        ValueError: a row or a label is wrong, evaluations are asked for without `eval_dataset`, the strategy, the
            mixture or the balancing does not fit, several GPUs are visible to one process, a task has no training row,
            or a class that balanced weights need has none; in `train`, nothing is trainable, or a loss is NaN or
            infinite.
        ImportError: `balancing` needs torchjd, which is missing.
    """

    # compute_loss already divides by the rows of the whole accumulated step; the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: MultiTaskModel,
        args: MultiTaskTrainingArguments,
        train_dataset: TaskDatasets | Sequence[LabelledSet],
        eval_dataset: TaskDatasets | None = None,
        mixture: MixtureConfig | dict[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        tasks: Sequence[str] | None = None,
        strategy: dict[str, Any] | None = None,
        balancing: Balancer | BalancingConfig | str | dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        columns: Columns | None = None,
        lessons: Lessons | None = None,
        groups: Mapping[str, TaskGroup | dict[str, Any]] | None = None,
        plan: Plan | None = None,
    ):
        check_process(args)
        self.columns = columns
        self.sets = as_labelled_sets(model.config.tasks, train_dataset, eval_dataset, columns)
        check_evaluations(args, any("validation" in entry.splits for entry in self.sets))
        self.strategy = strategy or {}
        self.origin = origin or {}
        mixture = MixtureConfig.from_recipe(mixture)
        if lessons is not None and lessons.settings.is_silent:
            lessons, mixture = None, mixture.without(lessons.settings.unlabeled)
        self.lessons = lessons
        self.evaluations: dict[str, Evaluation] = {}
        self.row_hashes: RowHashes | None = None
        if tasks is None and isinstance(train_dataset, Mapping):
            tasks = list(train_dataset)
        names = [name for name in model.config.tasks if tasks is None or name in tasks]
        participating = {name: model.config.tasks[name] for name in names}
        self.groups = read_groups(groups, participating)
        parts = model.parts()
        if plan is None:
            check_best_metric(args, participating, self.groups)
            check_early_stopping(args, [*names, *self.groups])
            plan = make_plan(strategy, parts, args)
        self.plan = plan_of_tasks(plan.of_model(parts), names)
        for part in self.plan.frozen:
            for parameter in parts[part].values():
                parameter.requires_grad_(False)
        use_fast(model.backbone)
        warn_of_tokens_without_embedding(model.tokenizer, model.get_input_embeddings().weight.shape[0])
        trained = {name: model.config.tasks[name] for name in names if self.plan.trains(name)}

        seed = args.data_seed if args.data_seed is not None else args.seed
        batch_size = args.per_device_train_batch_size
        train_sets = [entry for entry in self.sets if "train" in entry.splits]
        unlabeled = lessons.unlabeled if lessons else {}
        self.mixture = mixture.for_sets([*(entry.tasks for entry in train_sets), *([name] for name in unlabeled)])
        self.drawn = draw_sets(self.mixture, train_sets, trained, batch_size, seed, unlabeled)
        self.sampler = make_sampler(self.mixture, self.drawn, batch_size, args.world_size, seed)

        take_measures(model, rows_by_task(self.drawn, train_sets, set(names) - set(trained)))
        self.tasks = {name: model.config.tasks[name] for name in names}
        self.trained_tasks = {name: self.tasks[name] for name in trained}

        if not isinstance(balancing, Balancer):
            balancing = make_balancer(BalancingConfig.from_recipe(balancing if trained else None), len(trained), args)
            check_shared_parts(balancing.method, self.plan)
        self.balancer = balancing
        self.loss_meter = LossMeter(self.trained_tasks, self.balancer, args)
        self.second_pass = None
        if self.balancer.learns_after_step:
            self.second_pass = SecondPass(self.balancer, self.trained_tasks, self._weighted_losses)
        self.best_of_tasks = BestOfTasks(self)
        own_callbacks = [EpochOfSampler(self.sampler), self.loss_meter, self.second_pass, self.best_of_tasks]
        if args.early_stopping_patience is not None:
            own_callbacks.append(EarlyStopping(self.scored))
        super().__init__(
            model=model,
            args=args,
            train_dataset=MixtureDataset([entry.whole_rows for entry in self.drawn]),
            eval_dataset=self.sets,
            processing_class=model.tokenizer,
            data_collator=MultiTaskCollator(model.tokenizer, self.trained_tasks, model.config.max_length),
            callbacks=[*filter(None, own_callbacks), *(callbacks or [])],
        )
        self.compiled_layers = compile_layers(model, self.accelerator, args)
        self.label_names = ["labels"]
        is_streamed = any(entry.texts for entry in self.drawn)
        self.features = RunFeatures(args, self.accelerator, self.plan.trains_backbone, is_streamed)
        starts = [0]
        if len(self.plan.stages) > 1:
            steps = steps_of_epoch(self.sampler, args), steps_of_training(self.sampler, args)
            starts = stage_starts(self.plan, *steps)
        self.stages = Stages(self.plan, starts)

    @property
    def scored(self) -> dict[str, TaskConfig]:
        """Settings of all that is scored: of `tasks`, then of `groups`."""
        return with_groups(self.tasks, self.groups)

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        self._check_trainable()
        workers = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
        options = {name: getattr(self.args, f"dataloader_{name}") for name in workers}
        if self.lessons is not None:
            self._ask_teachers()
        rows, collate = self.train_dataset, self.data_collator
        if self.lessons is None and (cache := self.features.open(self.model)) is not None:
            sets = self.train_dataset.sets
            places = self.features.places(cache, self.model, lambda: sentence_windows(sets))
            rows, collate = FeatureDataset(sets, self.trained_tasks, cache, places), as_it_is
            options = self.features.without_workers()
        options["pin_memory"] = self.args.dataloader_pin_memory
        return self.accelerator.prepare(DataLoader(rows, batch_sampler=self.sampler, collate_fn=collate, **options))

    def _ask_teachers(self) -> None:
        """Put the places of the teachers' answers into the rows, and what reads them into the collator."""
        if self.data_collator.targets:  # asked before: training goes on
            return
        with self.accelerator.autocast():
            rows = self.lessons.answer(
                self.trained_tasks,
                self.train_dataset.sets,
                self.sets,
                self.args.device,
                self.features.precision,
                show_progress=not self.args.disable_tqdm,
            )
        self.train_dataset = MixtureDataset(rows)
        self.data_collator.targets = self.lessons.targets

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and how many rows all processes have in them; see `count_rows`."""
        with self._kept_where_streams_break():
            batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = count_rows(batches)
        if self.accelerator.num_processes == 1:
            return batches, counts
        numbers = torch.tensor([count for found in counts.values() for count in found.values()], device=device)
        numbers = iter(self.accelerator.reduce(numbers, reduction="sum").tolist())
        return batches, {kind: {task: next(numbers) for task in found} for kind, found in counts.items()}

    # ---- what trains ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        self._check_trainable()
        if resume_from_checkpoint is True:  # still true where there is none, which the Trainer then says
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir)) or True
        if self.args.save_strategy != "no":
            _ = self.identity  # as it is before anything has changed
        if isinstance(resume_from_checkpoint, (str, os.PathLike)):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            if not self._prepare_to_resume(resume_from_checkpoint):
                return TrainOutput(self.state.global_step, 0.0, {})
        try:
            trained = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            if resume_from_checkpoint:  # where no checkpoint was left to write, older ones may have been left
                self._remove_older_checkpoints(Path(self.args.output_dir))
            return trained
        finally:  # also after an interruption, what the stages have kept frozen is no longer frozen
            self.train_dataset.close()
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
        self.stages.enter(self.state.global_step, self.model_wrapped, self.optimizer, self.lr_scheduler)
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

    def _get_learning_rate(self) -> float:
        """What is logged as `learning_rate`: that of a part that trains."""
        if len(self.plan.stages) < 2:
            return super()._get_learning_rate()
        return self.stages.learning_rate(self.state.global_step, self.optimizer)

    # ---- loss ----

    def task_losses(
        self, model: torch.nn.Module, inputs: dict[str, Any], counts: dict[str, dict[str, int]] | None = None
    ) -> tuple[torch.Tensor, MultiTaskOutput]:
        """
        One loss for each trained task: this process's share of the mean over the whole optimizer step.

        Args:
            model: the model, or what accelerate has wrapped around it.
            inputs: a collated batch on the model's device.
            counts: the rows in all micro-batches of all processes in this step, as `count_rows` gives them; by
                default those of the batch.

        Each loss is summed over the batch and divided by its count. DDP averages gradients over processes, hence the
        factor. A task with teachers learns from the mean over its labelled rows by the label's share, and from that
        over the rows that its teachers answered by the rest. Nothing is kept.

        Returns the losses `(tasks,)`, not weighted, and the model's output.
        """
        labels, targets = inputs["labels"], inputs.get("teacher_targets", {})
        outputs = model(**{name: value for name, value in inputs.items() if name not in COUNTED})
        counts, processes = counts or count_rows([inputs]), self.accelerator.num_processes
        embeddings, losses = outputs.sentence_embedding, []
        for task, settings in self.trained_tasks.items():
            logits, rows = outputs.logits[task], inputs["task_rows"][task]
            labelled = slice(len(labels[task])) if task in targets else slice(None)
            summed = task_loss(
                settings, logits[labelled], labels[task], embeddings, rows[labelled], gather=processes > 1
            )
            loss = summed * (processes / max(counts["labels"][task], 1))
            if task in targets:
                answered = slice(len(rows) - len(targets[task]), None)
                summed = self.lessons.loss(settings, logits[answered], targets[task], embeddings, rows[answered])
                of_teacher = summed * (processes / max(counts["teacher_targets"][task], 1))
                loss = self.label_share * loss + (1 - self.label_share) * of_teacher
            losses.append(loss)
        return torch.stack(losses), outputs

    @property
    def label_share(self) -> float:
        """The label's share of what a task with teachers learns in this step."""
        return self.lessons.settings.label_share(self.state.global_step, self.state.max_steps)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the task losses, with the balancer's weights while training; see `task_losses`."""
        losses, outputs = self.task_losses(model, inputs, num_items_in_batch)
        weights = self.loss_meter.loss_weights.to(losses)
        if model.training and torch.is_grad_enabled():
            step, epoch = self.state.global_step, int(self.state.epoch or 0)
            weights = weights * self.balancer.weights_of_share(weights * losses, step, epoch)
            self.loss_meter.add(losses, weights * losses)
        loss = (weights * losses).sum()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch: the weighted sum backward, or for gradient methods each task's own gradient."""
        self.stages.enter(self.state.global_step, model, self.optimizer, self.lr_scheduler)
        if self.second_pass is not None:
            self.second_pass.keep(inputs, num_items_in_batch, self.args.device)
        if not isinstance(self.balancer, GradientBalancer):
            with self.compiled_layers():
                return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        self.optimizer.train()  # of accelerate, which passes it on to those that have such a mode
        with self.compute_loss_context_manager():
            losses, _ = self.task_losses(model, self._prepare_inputs(inputs), num_items_in_batch)
        check_finite(losses.tolist(), self.trained_tasks, self.state.global_step + 1)  # before methods solve for it
        own = {parameter for parameter in self.model.heads.parameters() if parameter.requires_grad}
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        shared = [parameter for parameter in trainable if parameter not in own]
        values = self.loss_meter.loss_weights.to(losses) * losses
        weighted = (self.balancer.backward(values, shared, list(own)) * values).detach()
        self.loss_meter.add(losses, weighted)
        return weighted.sum()

    def _weighted_losses(self, inputs: dict[str, Any], counts: dict[str, int]) -> torch.Tensor:
        """The losses `(tasks,)` of a batch times their static weights, with the model as it is now."""
        with self.compiled_layers(), self.compute_loss_context_manager():  # draws the dropout of a training step
            losses, _ = self.task_losses(self.model, self._prepare_inputs(inputs), counts)
        return self.loss_meter.loss_weights.to(losses) * losses

    # ---- what is logged ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.loss_meter.take_logs(self.state.global_step))
            made = self.state.global_step - 1  # the step that was made last
            if self.lessons is not None:
                logs["label_share"] = self.lessons.settings.label_share(made, self.state.max_steps)
            stage = self.stages.at(made)
            if len(self.plan.stages) > 1 and (layers := self.plan.trainable_layers(stage)) is not None:
                logs["trainable_layers"] = layers
        super().log(logs, start_time)
