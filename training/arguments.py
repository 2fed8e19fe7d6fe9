"""The training arguments: transformers' own, with other defaults and a few of ours.

Every field can stand in a recipe's `training` block and is a flag of train.py.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from ..configuration_multitask import ERROR_METRICS

# Fields of transformers' that the batches and losses here do not read, and what does what they promise.
WITHOUT_EFFECT = {
    "label_smoothing_factor": "Give a task `loss_options: {label_smoothing: 0.1}`.",
    "train_sampling_strategy": "Rows are drawn as the recipe's `mixture` says.",
    "dataloader_drop_last": "Every row is drawn; `mixture: {epoch_rows: ...}` makes an epoch shorter.",
    "auto_find_batch_size": "Batches are laid out before training. Lower per_device_train_batch_size.",
}


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
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
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
        default=None, metadata={"help": "Watch the first metric of this task, not metric_for_best_model."}
    )
    keep_best_of_tasks: bool = field(
        default=True,
        metadata={"help": "Keep the best model of every task in output_dir/best, unless save_strategy is no."},
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
            value = getattr(self, name)
            if value != self.__dataclass_fields__[name].default:
                raise ValueError(f"training.{name} is {value!r}, but has no effect here. {instead}")
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", *ERROR_METRICS))
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        return {name: None if name.endswith("_token") else value for name, value in self.__dict__.items()}
