"""The training arguments: transformers' own, with other defaults and a few of ours.

Every field can stand in a recipe's `training` block and is a flag of train.py.
"""

import os
from dataclasses import MISSING, dataclass, field
from typing import Any

import torch
from transformers import IntervalStrategy, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..problem_types_multitask import METRICS
from .argument_checks import check_values

# Every field of transformers' own arguments stands in one of these tables, and tests/test_arguments.py tells of a
# new one. Those that do here what they promise:
WORKS = (
    *("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cpu"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # the older names of the same
    *("logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "log_level"),
    *("log_level_replica", "include_num_input_tokens_seen", "disable_tqdm", "skip_memory_metrics", "debug"),
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "resume_from_checkpoint"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_revision"),
    *("seed", "data_seed", "full_determinism"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "accelerator_config"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"),
    "ddp_timeout",
    "local_rank",  # some launchers pass it as a flag
)
# Those of sharded training, and what accelerate's launcher sets where it is asked for it.
SHARDED = {"fsdp": "ACCELERATE_USE_FSDP", "fsdp_config": None, "deepspeed": "ACCELERATE_USE_DEEPSPEED"}
_EVALUATION = "Evaluation embeds every distinct sentence once and measures each task on its rows. Leave it out."
_ORDER = "The order of batches follows from the seed, also on resuming. Leave it out."
_ONE_PUSH = "The finished folder is pushed once, at the end. Leave it out."
_NO_KERNELS = "It has no kernels for a model with several heads. Leave it out."
# Those that batches, losses or evaluation here do not read, and what does what they promise. Another value than the
# default is refused.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "Give a task `loss_options: {label_smoothing: 0.1}`.",
    "train_sampling_strategy": "Rows are drawn as the recipe's `mixture` says.",
    "length_column_name": "Rows are drawn as the recipe's `mixture` says.",
    "dataloader_drop_last": "Every row is drawn; `mixture: {epoch_rows: ...}` makes an epoch shorter.",
    "dataloader_in_order": _ORDER,
    "ignore_data_skip": _ORDER,
    "auto_find_batch_size": "Batches are laid out before training. Lower per_device_train_batch_size.",
    "parallelism_config": "Batches are laid out for processes that each hold the whole model. Leave it out.",
    "remove_unused_columns": "Batches hold what the tasks need and nothing else. Leave it out.",
    "label_names": "Labels are the recipe's `columns`.",
    "average_tokens_across_devices": "Losses are means over rows of the whole step, on all processes. Leave it out.",
    "logging_nan_inf_filter": "A NaN or infinite loss ends training before it is logged. Leave it out.",
    "neftune_noise_alpha": "Its noise is scaled by the length of a sentence, and passes without padding have none.",
    "use_liger_kernel": _NO_KERNELS,
    "liger_kernel_config": _NO_KERNELS,
    "use_cache": "An encoder generates nothing. Leave it out.",
    "do_train": "train.py trains. To only evaluate, say `strategy: {freeze: all}`.",
    "do_eval": "Every task is measured at the end. `eval_strategy: no` leaves out evaluations during training.",
    "do_predict": "The test split is measured where there is one. Take it out of a task's `dataset` to leave it out.",
    "prediction_loss_only": "Every task's loss and `metrics` come from the same pass. List fewer metrics.",
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": "Evaluation has the precision of training. Say `bf16: true` for both.",
    "fp16_full_eval": "Evaluation has the precision of training. Say `fp16: true` for both.",
    "enable_jit_checkpoint": "An interrupted run goes on from its last checkpoint. Set `save_steps`.",
    "restore_callback_states_from_checkpoint": "Callbacks here read their state from the log of a checkpoint.",
    "hub_strategy": _ONE_PUSH,
    "hub_always_push": _ONE_PUSH,
}
# Schedules that make up their rates as they go, from the metric; there is no peak to change.
FOLLOWS_METRIC = ("reduce_lr_on_plateau", "greedy")
MIXED_PRECISIONS = ("no", "bf16", "fp16")
# Of `accelerator_config`, what batches here leave to accelerate's defaults.
_LEFT_TO_BATCHES = {"split_batches": False, "dispatch_batches": None, "use_seedable_sampler": True}


@dataclass(repr=False)  # transformers' own hides tokens
class MultiTaskTrainingArguments(TrainingArguments):
    """
    `transformers.TrainingArguments` with other defaults; every field can stand in a recipe's `training` block.

    A pickle or a copy has no `hub_token`: the Trainer pickles its arguments into every checkpoint.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Where checkpoints and the finished model go."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The peak learning rate."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a batch on one process."})
    per_device_eval_batch_size: int = field(
        default=64, metadata={"help": "Rows that losses over pairs compare with each other in evaluation."}
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."}
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best checkpoint is the result."})
    metric_for_best_model: str | None = field(
        default="eval_score", metadata={"help": "What makes a checkpoint the best."}
    )
    greater_is_better: bool | None = field(
        default=None,
        metadata={"help": "Whether more of that metric is better (yes, unless it is a loss or an error)."},
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the losses every so many steps."})
    report_to: None | str | list[str] = field(  # noqa: RUF036 - argparse tries the types in this order
        default="none", metadata={"help": "Where to report to, such as tensorboard."}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Has no effect here: leave it False."})
    include_num_input_tokens_seen: str = field(
        default="no", metadata={"help": "Whether to count tokens.", "choices": ["no", "all", "non_padding"]}
    )
    do_train: bool = field(default=True, metadata={"help": "train.py trains: leave it True."})
    do_eval: bool = field(default=True, metadata={"help": "Every task is measured: leave it True."})
    do_predict: bool = field(default=True, metadata={"help": "A test split is measured: leave it True."})
    hub_strategy: str = field(default="end", metadata={"help": "A folder is pushed once, at the end: leave it."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Every task touches its parameters in every step, so False is right."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "The peak learning rate of heads and projection (that of the backbone)."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without improvement."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "An improvement is a gain over the best score so far by more than this."}
    )
    early_stopping_task: str | None = field(
        default=None, metadata={"help": "Watch the first metric of this task or group, not metric_for_best_model."}
    )
    keep_best_of_tasks: bool = field(
        default=True,
        metadata={"help": "Keep the best model of every task in output_dir/best, unless save_strategy is no."},
    )
    keep_row_hashes: bool = field(
        default=True,
        metadata={"help": "Keep hashes of the rows with the model, so that a later run knows its training rows."},
    )
    feature_cache: bool = field(
        default=True,
        metadata={"help": "With a frozen backbone, keep its pooled vectors on disk and train on them."},
    )
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Whether to pin memory: only useful with a GPU."}
    )

    def __post_init__(self):
        for name, instead in WITHOUT_EFFECT.items():
            value, argument = getattr(self, name), self.__dataclass_fields__[name]
            default = argument.default if argument.default_factory is MISSING else argument.default_factory()
            if value != default:
                raise ValueError(f"training.{name} is {value!r}, but has no effect here. {instead}")
        for name, variable in SHARDED.items():
            if getattr(self, name) or os.environ.get(variable or "", "").lower() == "true":
                raise ValueError(
                    f"training.{name}: models are not sharded. accelerate shards none on a CPU, so that nothing shows "
                    "that a sharded run trains and saves the model of a whole one. Start it with torchrun or "
                    "accelerate launch for DDP; activation_checkpointing and bf16 save memory."
                )
        if isinstance(self.include_num_input_tokens_seen, bool):
            self.include_num_input_tokens_seen = "all" if self.include_num_input_tokens_seen else "no"
        check_values(self)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            errors = [name for name, metric in METRICS.items() if metric.is_error]
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", *errors))
        super().__post_init__()
        if self.mixed_precision not in MIXED_PRECISIONS:
            raise ValueError(
                f"The launcher asks for mixed precision {self.mixed_precision}, but should ask for one of "
                f"{', '.join(MIXED_PRECISIONS)}. Start with `accelerate launch --mixed_precision bf16`."
            )
        # What `accelerate launch` was asked for is recorded like the flags, which win.
        self.bf16, self.fp16 = self.mixed_precision == "bf16", self.mixed_precision == "fp16"
        if self.lr_scheduler_type in FOLLOWS_METRIC:
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}
        for name, default in _LEFT_TO_BATCHES.items():
            value = getattr(self.accelerator_config, name)
            if value != default:
                raise ValueError(
                    f"training.accelerator_config.{name} is {value!r}, but has no effect here. Batches are laid out "
                    "for all processes before training. Leave it out."
                )
        self.accelerator_config.even_batches = False  # the batches of an epoch are even already

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}


def check_process(args: Any) -> None:
    """
    Check that a trainer can work with these arguments in this process.

    Raises:
        TypeError: they are plain `TrainingArguments`.
        ValueError: the process sees several GPUs.
    """
    if not isinstance(args, MultiTaskTrainingArguments):
        raise TypeError(f"args should be MultiTaskTrainingArguments. Found {type(args).__name__}.")
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. Start one process per GPU with `accelerate launch train.py`, "
            "or choose one GPU with CUDA_VISIBLE_DEVICES=0 (in a notebook, restart the kernel and set it first)."
        )


def check_evaluations(args: MultiTaskTrainingArguments, has_validation: bool) -> None:
    """A ValueError where evaluations are asked for, and there are no rows for them."""
    if args.eval_strategy != "no" and not has_validation:
        raise ValueError(
            f"training.eval_strategy is {args.eval_strategy.value}, but there is nothing to evaluate on. Give "
            "eval_dataset, or set eval_strategy and save_strategy to no and load_best_model_at_end to False."
        )
