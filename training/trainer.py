"""MultiTaskTrainer: a transformers Trainer whose loss is the weighted sum of the tasks' losses.

    MultiTaskTrainingArguments   TrainingArguments with defaults for this job
    MultiTaskTrainer             one backbone pass per mixed batch; every task evaluated with loss and metrics

The Trainer itself is left as it is: what is overridden is where batches come from, how the loss is computed, and how
an evaluation runs.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import speed_metrics

from ..configuration_multitask import LABELLED_PROBLEM_TYPES
from ..data.collation import MultiTaskCollator
from ..data.mixture import MixtureBatchSampler, MixtureDataset
from ..modeling_multitask import MultiTaskModel
from .evaluation import Evaluation, choose_thresholds, combined_score, task_confusion, task_logits, task_scores
from .feature_batches import FeatureDataset, as_it_is, describe_features, sentence_windows
from .feature_cache import FeatureCache, cache_sentences, can_cache_features, embed_cached, open_features
from .losses import task_loss

PAIR_LOSSES = ("cosent", "multiple_negatives_ranking")  # compare the rows of a batch with each other
LEAST_ROWS_OF_PAIR_LOSSES = 16


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with other defaults; every field can stand in a recipe's `training` block."""

    output_dir: str | None = field(default=None, metadata={"help": "Where checkpoints and the finished model go."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The peak learning rate."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a batch on one process."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Rows that losses over pairs compare with each other in evaluation."}
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best checkpoint is the result."})
    metric_for_best_model: str | None = field(
        default="eval_score", metadata={"help": "What makes a checkpoint the best."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of that metric is better."})
    logging_steps: float = field(default=50, metadata={"help": "Log the losses every so many steps."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - argparse tries the types in this order
        default="none", metadata={"help": "Where to report to, such as tensorboard."}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Has no effect here: leave it False."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every task touches its parameters in every step, so False is right."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "The peak learning rate of heads and projection (that of the backbone)."}
    )
    feature_cache: bool = field(
        default=True,
        metadata={"help": "With a frozen backbone, keep its pooled vectors on disk and train on them."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Whether to pin memory: only useful with a GPU."}
    )


class _BeginCallback(TrainerCallback):
    """Lets task losses count from where training begins or resumes, and tells the sampler which epoch begins."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer._reset_task_losses()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # After resuming, the sampler is wrapped too deeply for the Trainer to reach it.
        self.trainer.sampler.set_epoch(int(state.epoch or 0))


class MultiTaskTrainer(Trainer):
    """
    Train all tasks of a [`MultiTaskModel`] together.

    Logs `loss` and `loss_<task>` (means over the same steps, so that `loss` is the weighted sum of the others), and
    at each evaluation `eval_<task>_loss`, `eval_<task>_<metric>`, `eval_loss` (weighted sum) and `eval_score` (mean of
    the tasks' primary metrics, which chooses the best checkpoint).

    A task without a labelled row in a step contributes an exact zero that touches its parameters: their gradient is
    zero, not absent, so an optimizer's momentum and weight decay still move them.

    Args:
        model: the model to train.
        args: training arguments.
        sets: labelled sets, each with `tasks` and a `splits` dictionary of datasets in canonical columns.
        passes: how often an epoch goes through a task's set, by task; 1 where nothing is said.
        rows_per_batch: how many rows of a task stand together in a batch where it has any, by task. Tasks whose loss
            compares rows with each other get 16 (or the batch size, if smaller) where nothing is said.
        callbacks: as in `Trainer`.

    Raises:
        ValueError: nothing is trainable, or several GPUs are visible to one process.
    """

    # compute_loss already divides by the rows of the whole accumulated step; the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: MultiTaskModel,
        args: MultiTaskTrainingArguments,
        sets: Sequence[Any],
        passes: dict[str, float] | None = None,
        rows_per_batch: dict[str, int] | None = None,
        callbacks: list[TrainerCallback] | None = None,
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
        self._features: FeatureCache | None = None
        self.evaluations: dict[str, Evaluation] = {}
        self.confusion: dict[str, dict[str, Any]] = {}  # of the classification tasks, at the last evaluation
        tasks = model.config.tasks
        self.sampler = MixtureBatchSampler(
            sizes=[len(labelled_set.splits["train"]) for labelled_set in self.sets],
            batch_size=args.per_device_train_batch_size,
            passes=[max((passes or {}).get(task, 1.0) for task in labelled_set.tasks) for labelled_set in self.sets],
            least_rows=[
                max(
                    self._least_rows(tasks[task], (rows_per_batch or {}).get(task), args)
                    for task in labelled_set.tasks
                )
                for labelled_set in self.sets
            ],
            num_processes=args.world_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=MixtureDataset([labelled_set.splits["train"] for labelled_set in self.sets]),
            eval_dataset=self.sets,
            processing_class=model.tokenizer,
            data_collator=MultiTaskCollator(model.tokenizer, tasks, model.config.max_length),
            callbacks=[_BeginCallback(self), *(callbacks or [])],
        )
        self.label_names = ["labels"]
        self._reset_task_losses()

    @staticmethod
    def _least_rows(settings: dict[str, Any], asked_for: int | None, args: MultiTaskTrainingArguments) -> int:
        if asked_for is not None:
            return asked_for
        if settings["loss"] in PAIR_LOSSES:
            return min(LEAST_ROWS_OF_PAIR_LOSSES, args.per_device_train_batch_size)
        return 1

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        self._check_trainable()
        if (cache := self._open_features()) is not None:
            sets = [labelled_set.splits["train"] for labelled_set in self.sets]
            places = self._cache_sentences(cache, lambda: sentence_windows(sets))
            dataloader = DataLoader(
                FeatureDataset(sets, self.model.config.tasks, cache, places),
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
        )
        return self.accelerator.prepare(dataloader)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, and by task how many labelled rows all processes have in them."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        names = list(self.model.config.tasks)
        counts = torch.tensor([sum(len(batch["labels"][task]) for batch in batches) for task in names], device=device)
        counts = self.accelerator.reduce(counts, reduction="sum").tolist()
        return batches, dict(zip(names, counts, strict=True))

    # ---- features of a frozen backbone ----

    def _open_features(self) -> FeatureCache | None:
        """The cache of pooled vectors where they are the same in every epoch, else nothing."""
        if not (self.args.feature_cache and can_cache_features(self.model)):
            return None
        precision = f"{self.accelerator.mixed_precision}{' tf32' if self.args.tf32 else ''}"
        self._features = open_features(self.model, precision, self._features)
        return self._features

    def _cache_sentences(self, cache: FeatureCache, sentences: Callable[[], Iterable[Sequence[str]]]) -> np.ndarray:
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            return cache_sentences(cache, self.model, sentences, show_progress=not self.args.disable_tqdm)

    def describe_features(self) -> str | None:
        """What the feature cache holds of all splits, as one line; nothing where the backbone is trained."""
        if not can_cache_features(self.model):
            return None
        if (cache := self._open_features()) is None:
            return "off"
        return describe_features(cache, [rows for entry in self.sets for rows in entry.splits.values()])

    # ---- loss ----

    def _check_trainable(self) -> None:
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "Nothing is trainable: every parameter of the model is frozen. Unfreeze a part, such as a head."
            )

    def create_optimizer(self, model=None):
        self._check_trainable()
        if self.optimizer is None and self.args.head_learning_rate is not None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(self._parameter_groups(), **options)
        return super().create_optimizer(model)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Backbone and the rest, each with and without weight decay; biases and norms have none."""
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((name.startswith("backbone."), name in decayed), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.args.learning_rate if is_backbone else self.args.head_learning_rate,
                "weight_decay": self.args.weight_decay if is_decayed else 0.0,
            }
            for (is_backbone, is_decayed), parameters in groups.items()
        ]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """
        The weighted sum of the task losses: this process's share of the mean over the whole optimizer step.

        Each `loss_t` is summed over the micro-batch and divided by the task's labelled rows in all micro-batches of
        all processes. DDP averages gradients over processes, hence the factor.
        """
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        counts = num_items_in_batch or {task: len(labels[task]) for task in labels}
        losses = []
        for task, settings in self.model.config.tasks.items():
            summed = task_loss(
                settings, outputs.logits[task], labels[task], outputs.sentence_embedding, inputs["task_rows"][task]
            )
            losses.append(summed * (self.accelerator.num_processes / max(counts[task], 1)))
        losses = torch.stack(losses)  # (tasks,)
        if model.training:
            self._task_losses += losses.detach()
        weights = losses.new_tensor([settings["loss_weight"] for settings in self.model.config.tasks.values()])
        loss = (weights * losses).sum()
        return (loss, outputs) if return_outputs else loss

    def _reset_task_losses(self) -> None:
        self._task_losses = torch.zeros(len(self.model.config.tasks), device=self.args.device)
        self._task_losses_since = self.state.global_step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            steps = max(self.state.global_step - self._task_losses_since, 1)
            losses = self.accelerator.reduce(self._task_losses, reduction="mean") / steps
            names = [f"loss_{task}" for task in self.model.config.tasks]
            logs.update(zip(names, losses.tolist(), strict=True))
            self._reset_task_losses()
        super().log(logs, start_time)

    # ---- evaluation ----

    def _embed_split(self, split: str) -> tuple[Evaluation, torch.Tensor]:
        """A split and the embeddings of its distinct sentences, each process having computed its share."""
        if split not in self.evaluations:
            self.evaluations[split] = Evaluation(self.sets, self.model.config.tasks, split)
        evaluation = self.evaluations[split]
        if evaluation.sentences and (cache := self._open_features()) is not None:
            places = self._cache_sentences(cache, lambda: [evaluation.sentences])
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                return evaluation, embed_cached(self.model, cache, places)
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            share = self.model.embed(
                evaluation.sentences[rank::world_size],
                show_progress=None if rank == 0 and not self.args.disable_tqdm else False,
            )
        if world_size == 1:
            return evaluation, share
        longest = -(-len(evaluation.sentences) // world_size)
        padded = share.new_zeros(longest, share.shape[1])
        padded[: len(share)] = share
        gathered = self.accelerator.gather(padded.to(self.args.device)).cpu()  # (world_size * longest, embedding_dim)
        gathered = gathered.view(world_size, longest, -1).transpose(0, 1).reshape(world_size * longest, -1)
        return evaluation, gathered[: len(evaluation.sentences)]

    def evaluate(
        self, eval_dataset: str | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Loss and metrics of every task on a split.

        Args:
            eval_dataset: name of the split, `validation` where nothing is said.
            ignore_keys: not used; part of the Trainer's signature.
            metric_key_prefix: what the keys begin with.

        Returns:
            `<prefix>_<task>_loss`, `<prefix>_<task>_<metric>`, `<prefix>_loss` and `<prefix>_score`.

        Raises:
            ValueError: no task has a labelled row in the split.
        """
        self._memory_tracker.start()
        start_time = time.time()
        split = eval_dataset or "validation"
        evaluation, embeddings = self._embed_split(split)
        if not evaluation.rows:
            raise ValueError(f"No task has a labelled row in the split {split!r}.")
        tasks = self.model.config.tasks
        scores = {
            task: task_scores(
                self.model, task, embeddings, rows, evaluation.labels[task], self.args.per_device_eval_batch_size
            )
            for task, rows in evaluation.rows.items()
        }
        self.confusion = {
            task: {**task_confusion(self.model, task, embeddings, rows, evaluation.labels[task]), "split": split}
            for task, rows in evaluation.rows.items()
            if tasks[task]["problem_type"] in LABELLED_PROBLEM_TYPES
        }
        metrics = {
            f"{metric_key_prefix}_{task}_{metric}": value
            for task, task_metrics in scores.items()
            for metric, value in task_metrics.items()
        }
        metrics[f"{metric_key_prefix}_loss"] = sum(
            tasks[task]["loss_weight"] * scores[task]["loss"] for task in scores
        )
        metrics[f"{metric_key_prefix}_score"] = combined_score(tasks, scores)
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=len(evaluation.sentences)))

        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def choose_thresholds(self, split: str = "validation") -> dict[str, list[float]]:
        """Set the multi-label tasks' thresholds in the configuration to the best of a split, and return them."""
        multi_label = [
            task
            for task, settings in self.model.config.tasks.items()
            if settings["problem_type"] == "multi_label_classification"
        ]
        if not multi_label:
            return {}
        evaluation, embeddings = self._embed_split(split)
        chosen = {}
        for task in multi_label:
            logits = task_logits(self.model, task, embeddings, evaluation.rows[task], batch_size=8192)
            probabilities = torch.cat(logits).sigmoid().numpy()
            chosen[task] = choose_thresholds(probabilities, evaluation.labels[task].numpy())
            self.model.config.tasks[task]["thresholds"] = chosen[task]
        return chosen
