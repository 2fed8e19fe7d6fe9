"""Configuration of a multi-task sentence model: everything that is needed to rebuild it, validated.

    MultiTaskConfig      backbone configuration, pooling, projection, normalisation, maximum length, tasks
    ProjectionConfig     the projection
    complete_projection  its record from what a user wrote, or a file holds
    public_name          what a stranger may see of a Hub id or folder
    check_encoder        refuses a backbone that is no encoder

This file travels with every saved model (`trust_remote_code=True`), so it imports only torch, transformers and other
remote files. The records of a task's settings stand in tasks_multitask.py.
"""

import os
import re
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .checks_multitask import check_choice, check_flag, check_keys
from .records_multitask import Record, check_activation, check_size, settings_of
from .tasks_multitask import TaskConfig, complete_task

POOLINGS = ("mean", "cls", "max")
# Grows when a saved model means something that older code would read wrongly.
FORMAT_VERSION = 1


def public_name(name_or_path: str) -> str:
    """A Hub id as it is, and of a folder only the last name, as `./name`: what a stranger may see of it."""
    name_or_path = str(name_or_path)
    is_folder = os.path.isdir(name_or_path) or name_or_path.startswith((".", "~")) or os.path.isabs(name_or_path)
    if not name_or_path or not (is_folder or name_or_path.count("/") > 1 or "\\" in name_or_path):
        return name_or_path
    return "./" + re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1]


def check_encoder(backbone_config: PreTrainedConfig) -> None:
    """Raise a ValueError unless transformers knows the architecture as an encoder (it has a masked-language model)."""
    model_type = backbone_config.model_type
    is_encoder = model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not is_encoder or backbone_config.is_encoder_decoder or getattr(backbone_config, "is_decoder", False):
        raise ValueError(
            f"backbone: {model_type!r} is not an encoder, so it gives no sentence embedding from one pass. "
            "Take an encoder such as BERT, DistilBERT, RoBERTa, XLM-R, MPNet, ELECTRA, DeBERTa-v2 or ModernBERT."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class ProjectionConfig(Record):
    """
    The dense layer from the pooled vector to the sentence embedding.

    Args:
        out_features: size of the sentence embedding.
        bias: whether the layer has one.
        activation: as transformers names it; empty or `linear` for none.

    Raises:
        ValueError: names the setting, what was found and what would be right.
    """

    out_features: int
    bias: bool = True
    activation: str = "tanh"

    def __post_init__(self):
        check_size("projection.out_features", self.out_features)
        check_flag("projection.bias", self.bias)
        self._settle(activation=self.activation or "linear")
        check_activation("projection.activation", self.activation)


def complete_projection(projection: Any) -> ProjectionConfig | None:
    """A projection's record from a `ProjectionConfig` or a mapping with its settings; `None` stays `None`."""
    projection = settings_of(projection)
    if projection is None:
        return None
    if not isinstance(projection, dict):
        raise ValueError(
            f"projection is {projection!r}, but should be null or like {{out_features: 256, bias: true}}."
        )
    check_keys("projection", projection, [setting.name for setting in fields(ProjectionConfig)])
    return ProjectionConfig(**{"out_features": None, **projection})


@strict
class MultiTaskConfig(PreTrainedConfig):
    r"""
    All that is needed to rebuild a [`MultiTaskModel`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            The encoder's own configuration; a dictionary needs `model_type`. Defaults to a BERT configuration.
        pooling (`str`, *optional*, defaults to `"mean"`):
            From token states to one vector: `mean`, `cls` or `max`, all over unmasked tokens only.
        projection (`ProjectionConfig` or `dict`, *optional*):
            Dense layer from the pooled vector to the sentence embedding: `out_features`, `bias` (defaults to `True`),
            `activation` (a transformers activation, defaults to `tanh`; `linear` for none).
        normalize (`bool`, *optional*, defaults to `False`):
            Whether the sentence embedding is handed out with length 1. Heads read it before that.
        max_length (`int`, *optional*, defaults to 128):
            Longest sentence in tokens, special tokens included. Longer ones are truncated.
        tasks (`dict[str, TaskConfig]` or `dict[str, dict]`, *optional*):
            Task settings by name. The attribute holds a [`TaskConfig`] for each, whatever is assigned to it;
            `change_task` changes one.
        task_order (`list[str]`, *optional*):
            The names of the tasks in their order, which config.json would lose: its keys are sorted. Tasks that are
            not named follow in the order of `tasks`.
        task (`str`, *optional*):
            The task that `AutoModelForSequenceClassification` answers.
        shown_labels (`dict[str, list[str]]`, *optional*):
            Of that task, the names that `id2label` has in place of its labels.
        base_name_or_path (`str`, *optional*):
            Of a model saved as an adapter: Hub id or folder of the encoder, or multi-task model, that the backbone's
            weights come from. In config.json a folder is relative to that file.
        base_revision (`str`, *optional*):
            The commit of those weights, where they come from the Hub.
        encoder_fingerprint (`str`, *optional*):
            What tells the weights of backbone and projection that the heads belong to from others.
        stale_heads (`dict[str, str]`, *optional*):
            The same of heads that belong to another encoder than the rest, by task.
        format_version (`int`, *optional*):
            Of config.json; one that this code does not know yet is refused.

    Raises:
        ValueError: names the setting, what was found and what would be right.

    ```python
    >>> from transformers import BertConfig
    >>> config = MultiTaskConfig(
    ...     backbone_config=BertConfig(hidden_size=32, num_attention_heads=4),
    ...     tasks={"sentiment": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}},
    ... )
    >>> config.embedding_dim, config.tasks["sentiment"].metrics
    (32, ['accuracy'])

    ```
    """

    model_type = "multitask"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - a class attribute of transformers' own making

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    pooling: str = "mean"
    projection: Any = None  # a ProjectionConfig once it is set; `@strict` checks what is given before that
    normalize: bool = False
    max_length: int = 128
    tasks: dict[str, Any] | None = None  # a TaskConfig for each once it is set
    task_order: list[str] | None = None
    task: str | None = None
    shown_labels: dict[str, list[str]] | None = None
    base_name_or_path: str | None = None
    base_revision: str | None = None
    encoder_fingerprint: str | None = None
    stale_heads: dict[str, str] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        backbone_config = self.backbone_config if self.backbone_config is not None else {"model_type": "bert"}
        if isinstance(backbone_config, dict):
            backbone_config = dict(backbone_config)
            if "model_type" not in backbone_config:
                raise ValueError(
                    "backbone_config has no model_type. Take a configuration that transformers has saved."
                )
            backbone_config = AutoConfig.for_model(backbone_config.pop("model_type"), **backbone_config)
        self.backbone_config = backbone_config
        order = [name for name in self.task_order or () if name in self.tasks]
        self.tasks = {name: self.tasks[name] for name in dict.fromkeys([*order, *self.tasks])}
        self.task_order = None  # `tasks` has the order from here on; `to_dict` writes it down
        self.validate_multitask()  # here as well, where the error is a ValueError and not wrapped
        is_labelled = self.id2label is not None or kwargs.get("num_labels") is not None
        super().__post_init__(**kwargs)
        if not is_labelled:  # transformers would name two; the view of one head has to know whether anybody did
            self.id2label = self.label2id = None

    def __setattr__(self, key: str, value: Any) -> None:
        # Not only when the configuration is made: `from_pretrained(..., tasks=...)` sets them on the finished one.
        if key == "projection":
            value = complete_projection(value)
        elif key == "tasks":
            value = {name: complete_task(name, task) for name, task in (value or {}).items()}
        super().__setattr__(key, value)

    def change_task(self, name: str, **changes: Any) -> TaskConfig:
        """
        Put a task's record with some settings changed in the place of the one it has, and return it.

        Raises:
            ValueError: a setting is wrong; it is named as `tasks.<name>.<setting>`.
        """
        self.tasks[name] = complete_task(name, {**self.tasks[name].to_dict(), **changes})
        return self.tasks[name]

    def show_labels(self, names: list[str]) -> None:
        """Give the labels of `task` these names in `id2label`, which a view of it shows."""
        self.id2label = dict(enumerate(names))
        self.label2id = {name: index for index, name in self.id2label.items()}
        self.shown_labels = {self.task: names} if names != (self.tasks[self.task].labels or [self.task]) else None

    def validate_multitask(self):
        """Part of `@strict`-powered validation: runs when the configuration is made and when it is saved."""
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"The model was saved by a newer version of this code (format {self.format_version}; this one knows "
                f"{FORMAT_VERSION}). Load the code that lies beside it with trust_remote_code=True, or update."
            )
        check_encoder(self.backbone_config)
        check_choice("pooling", self.pooling, POOLINGS)
        check_size("max_length", self.max_length)
        complete_projection(self.projection)
        for name, task in self.tasks.items():
            complete_task(name, task)

    def to_dict(self) -> dict[str, Any]:
        """As of any configuration, with the tasks' order and without folders of this machine: it is what is saved."""
        found = {**super().to_dict(), "task_order": list(self.tasks)}
        found["tasks"] = {name: task.to_dict() for name, task in self.tasks.items()}
        found["projection"] = settings_of(self.projection)
        for settings in (found, found["backbone_config"]):
            if settings.get("_name_or_path"):
                settings["_name_or_path"] = public_name(settings["_name_or_path"])
        return found

    @property
    def embedding_dim(self) -> int:
        """Size of the sentence embedding."""
        return self.projection.out_features if self.projection else self.backbone_config.hidden_size

    @property
    def hidden_size(self) -> int:
        """Size of the sentence embedding, under the name that sentence-transformers asks for."""
        return self.embedding_dim

    @property
    def vocab_size(self) -> int:
        """Rows of the backbone's token embeddings."""
        return self.backbone_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.backbone_config.vocab_size = value


MultiTaskConfig.register_for_auto_class()

__all__ = ["MultiTaskConfig", "ProjectionConfig"]
