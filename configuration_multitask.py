"""Configuration of a multi-task sentence model: everything that is needed to rebuild it, validated.

    MultiTaskConfig      backbone configuration, pooling, projection, normalisation, maximum length, tasks
    complete_task        one task's settings, checked and with every default filled in
    complete_projection  the same for the projection
    public_name          what a stranger may see of a Hub id or folder
    check_encoder        refuses a backbone that is no encoder

This file travels with every saved model (`trust_remote_code=True`), so it imports nothing but torch and transformers.
"""

import difflib
import math
import os
import re
from collections import Counter
from numbers import Real
from typing import Any

import torch.nn as nn
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

POOLINGS = ("mean", "cls", "max")
LARGEST_SIZE = 1_000_000
# Grows when a saved model means something that older code would read wrongly.
FORMAT_VERSION = 1

# The first loss and the first metric of each problem type are its defaults.
LOSSES = {
    "single_label_classification": ("cross_entropy",),
    "multi_label_classification": ("binary_cross_entropy",),
    "regression": ("mse",),
    "similarity": ("cosent", "cosine_mse"),
    "contrastive": ("multiple_negatives_ranking",),
}
METRICS = {
    "single_label_classification": ("accuracy", "macro_f1", "macro_recall", "micro_f1", "mcc"),
    "multi_label_classification": ("macro_f1", "micro_f1", "accuracy"),
    "regression": ("spearman", "pearson", "mse", "mae"),
    "similarity": ("cosine_spearman",),
    "contrastive": ("mrr", "accuracy_at_1"),
}
ERROR_METRICS = ("mse", "mae")  # smaller is better, so that none can choose the best checkpoint
# What a loss can be told; the functions in training/ have the defaults.
LOSS_OPTIONS = {
    "cross_entropy": ("class_weights", "label_smoothing"),
    "binary_cross_entropy": ("pos_weight",),
    "cosent": ("temperature",),
    "multiple_negatives_ranking": ("temperature", "symmetric"),
}
PROBLEM_TYPES = tuple(LOSSES)
LABELLED_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")
HEAD_PROBLEM_TYPES = (*LABELLED_PROBLEM_TYPES, "regression")  # the others work on the embedding itself

_TASK_KEYS = (
    "problem_type",
    "pair",
    "labels",
    "head",
    "loss",
    "loss_options",
    "loss_weight",
    "metrics",
    "thresholds",
    "score_range",
    "target_mean",
    "target_deviation",
)
_HEAD_DEFAULTS = {"hidden_dims": [], "activation": "relu", "dropout": 0.0}
_PROJECTION_DEFAULTS = {"out_features": None, "bias": True, "activation": "tanh"}


def suggest(found: Any, known: Any) -> str:
    """`" Did you mean 'x'?"` for the nearest of the known names, else an empty string."""
    nearest = difflib.get_close_matches(str(found), [str(name) for name in known], n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


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


def _check_keys(where: str, found: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in found:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}.{suggest(key, known)} Known keys: {', '.join(known)}.")


def _check_choice(where: str, found: Any, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(f"{where} is {found!r}, but should be one of {', '.join(known)}.{suggest(found, known)}")


def _check_count(where: str, found: Any) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{where} is {found!r}, but should be a whole number of at least 1.")
    if found > LARGEST_SIZE:
        raise ValueError(f"{where} is {found}, but should be at most {LARGEST_SIZE:,}: it is the size of a layer.")


def _check_activation(where: str, found: Any) -> None:
    if not isinstance(found, str) or found not in ACT2FN:
        raise ValueError(
            f"{where} is {found!r}, but should be an activation of transformers such as relu, gelu, tanh, silu or "
            f"linear (none).{suggest(found, ACT2FN)}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def complete_projection(projection: dict[str, Any] | None) -> dict[str, Any] | None:
    """Check a projection and fill in its defaults: `{"out_features": 256}` gets a bias and a tanh."""
    if projection is None:
        return None
    if not isinstance(projection, dict):
        raise ValueError(
            f"projection is {projection!r}, but should be null or like {{out_features: 256, bias: true}}."
        )
    _check_keys("projection", projection, tuple(_PROJECTION_DEFAULTS))
    projection = {**_PROJECTION_DEFAULTS, **projection}
    _check_count("projection.out_features", projection["out_features"])
    if not isinstance(projection["bias"], bool):
        raise ValueError(f"projection.bias is {projection['bias']!r}, but should be true or false.")
    projection["activation"] = projection["activation"] or "linear"
    _check_activation("projection.activation", projection["activation"])
    return projection


def _check_task_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"tasks: the name {name!r} is not an identifier. Use letters, digits and underscores, such as 'topic'."
        )
    if name == "embedding":
        raise ValueError("tasks: the name 'embedding' is taken by the sentence embedding. Choose another one.")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"tasks: the name {name!r} is taken by torch's ModuleDict, which holds the heads. "
            f"Choose another one, such as '{name}_task'."
        )


def _complete_head(where: str, head: dict[str, Any] | None) -> dict[str, Any]:
    if head is not None and not isinstance(head, dict):
        raise ValueError(
            f"{where} is {head!r}, but should be like {{hidden_dims: [256], activation: relu, dropout: 0.1}}."
        )
    _check_keys(where, head or {}, tuple(_HEAD_DEFAULTS))
    head = {**_HEAD_DEFAULTS, **(head or {})}
    if not isinstance(head["hidden_dims"], (list, tuple)):
        raise ValueError(
            f"{where}.hidden_dims is {head['hidden_dims']!r}, but should be a list of sizes, such as [256]."
        )
    for size in head["hidden_dims"]:
        _check_count(f"{where}.hidden_dims: a size", size)
    _check_activation(f"{where}.activation", head["activation"])
    if not _is_number(head["dropout"]) or not 0 <= head["dropout"] < 1:
        raise ValueError(f"{where}.dropout is {head['dropout']!r}, but should be at least 0 and less than 1.")
    return {**head, "hidden_dims": list(head["hidden_dims"]), "dropout": float(head["dropout"])}


def _complete_labels(where: str, labels: Any, least: int) -> list[str]:
    if not isinstance(labels, (list, tuple)) or len(labels) < least:
        raise ValueError(f"{where} is {labels!r}, but should list at least {least} label names.")
    labels = [str(label) for label in labels]
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ValueError(f"{where} lists {', '.join(map(repr, repeated))} more than once.")
    return labels


def _complete_label_weights(where: str, weights: Any, labels: list[str]) -> str | list[float]:
    """One number above 0 for each label, in their order; `balanced` stays until there are training rows to count."""
    if weights == "balanced":
        return weights
    if isinstance(weights, dict):
        # YAML has made booleans of some labels.
        names = [str(label).lower() if isinstance(label, bool) else str(label) for label in weights]
        known = set(labels)
        for name in names:
            if name not in known:
                _check_choice(f"{where}: a label", name, tuple(labels))
        by_name = dict(zip(names, weights.values(), strict=True))
        missing = [label for label in labels if label not in by_name]
        if missing:
            raise ValueError(f"{where} gives no weight for {', '.join(map(repr, missing))}. Every label needs one.")
        weights = [by_name[label] for label in labels]
    is_list = isinstance(weights, (list, tuple)) and len(weights) == len(labels)
    if not is_list or not all(_is_number(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"{where} is {weights!r}, but should be balanced, or give a number above 0 for each of the {len(labels)} "
            "labels: a list in their order, or a mapping by label."
        )
    return [float(weight) for weight in weights]


def _complete_loss_options(where: str, options: Any, loss: str, labels: list[str]) -> dict[str, Any]:
    known = LOSS_OPTIONS.get(loss, ())
    if not isinstance(options, dict):
        raise ValueError(f"{where} is {options!r}, but should be a mapping, such as {{temperature: 0.05}}.")
    if options and not known:
        raise ValueError(f"{where}: the loss {loss} takes no options. Remove them.")
    _check_keys(f"{where} ({loss})", options, known)
    completed = {}
    for key, value in options.items():
        if value is None:
            continue
        if key in ("class_weights", "pos_weight"):
            value = _complete_label_weights(f"{where}.{key}", value, labels)
        elif key == "label_smoothing" and not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{where}.{key} is {value!r}, but should be at least 0 and less than 1.")
        elif key == "temperature" and not (_is_number(value) and value > 0):
            raise ValueError(
                f"{where}.{key} is {value!r}, but should be a number above 0: cosines are divided by it (usual: 0.05)."
            )
        elif key == "symmetric" and not isinstance(value, bool):
            raise ValueError(f"{where}.{key} is {value!r}, but should be true or false.")
        completed[key] = value
    return completed


def new_task(task: Any) -> Any:
    """The settings of a task whose head is new: a regression task without a scale takes that of its training rows."""
    is_regression = isinstance(task, dict) and task.get("problem_type") == "regression"
    if not is_regression or "target_mean" in task or "target_deviation" in task:
        return task
    return {**task, "target_mean": None, "target_deviation": None}


def target_scale(task: dict[str, Any]) -> tuple[float, float]:
    """
    Mean and deviation of a regression task: its value is `mean + deviation * (what the head gives)`.

    They are 0 and 1 for a task that has none yet, and for models that were saved before there were any.
    """
    if task.get("target_deviation") is None:
        return 0.0, 1.0
    return task["target_mean"], task["target_deviation"]


def _complete_targets(where: str, task: dict[str, Any]) -> dict[str, float | None]:
    """Mean and deviation of a regression task; both null until there are training rows to measure."""
    given = {key: task[key] for key in ("target_mean", "target_deviation") if key in task}
    if not given:
        return {"target_mean": 0.0, "target_deviation": 1.0}
    if len(given) == 2 and set(given.values()) == {None}:
        return given
    if len(given) < 2 or not all(map(_is_number, given.values())) or given["target_deviation"] <= 0:
        found = ", ".join(f"{key} {value!r}" for key, value in given.items())
        raise ValueError(
            f"{where}: found {found}, but target_mean should be a number and target_deviation a number above 0. Give "
            "both, or leave both out: they are then measured on the training rows."
        )
    return {key: float(value) for key, value in given.items()}


def complete_task(name: str, task: dict[str, Any]) -> dict[str, Any]:
    """
    Check one task's settings and fill in every default.

    Args:
        name: the task's name, an identifier other than `embedding`.
        task: `problem_type` (required); `labels` (required for classification); and optionally `pair` (two sentences a
            row, for the problem types with a head), `head`, `loss`, `loss_options`, `loss_weight`, `metrics`,
            `thresholds` (multi-label), `score_range` (similarity: the scores that mean cosine 0 and cosine 1), and
            `target_mean` and `target_deviation` (regression: see `target_scale`; null for both means that training
            measures them first).
            `loss_options` are those of the loss: `class_weights` (`balanced`, or a number for each label) and
            `label_smoothing` for cross_entropy, `pos_weight` (the same forms) for binary_cross_entropy, `temperature`
            for cosent and multiple_negatives_ranking, `symmetric` for the latter.

    Returns:
        A new dictionary with all keys that the problem type knows, `loss_options` only where there are any. Completing
        it again changes nothing.

    Raises:
        ValueError: names the task, the key, what was found and what would be right.
    """
    _check_task_name(name)
    where = f"tasks.{name}"
    if not isinstance(task, dict):
        raise ValueError(f"{where} is {task!r}, but should be a mapping with at least a problem_type.")
    _check_keys(where, task, _TASK_KEYS)
    problem_type = task.get("problem_type")
    _check_choice(f"{where}.problem_type", problem_type, PROBLEM_TYPES)

    has_head, has_labels = problem_type in HEAD_PROBLEM_TYPES, problem_type in LABELLED_PROBLEM_TYPES
    for key, fits in (
        ("labels", has_labels),
        ("head", has_head),
        ("thresholds", problem_type == "multi_label_classification"),
        ("score_range", problem_type == "similarity"),
        ("target_mean", problem_type == "regression"),
        ("target_deviation", problem_type == "regression"),
    ):
        if task.get(key) is not None and not fits:
            raise ValueError(f"{where}.{key} has no meaning for problem_type {problem_type}. Remove it.")

    completed: dict[str, Any] = {"problem_type": problem_type, "pair": task.get("pair", not has_head)}
    if not isinstance(completed["pair"], bool) or not (has_head or completed["pair"]):
        raise ValueError(
            f"{where}.pair is {completed['pair']!r}, but should be "
            + ("true or false." if has_head else f"true: {problem_type} compares two sentences.")
        )
    if has_labels:
        least = 2 if problem_type == "single_label_classification" else 1
        completed["labels"] = _complete_labels(f"{where}.labels", task.get("labels"), least)
    if has_head:
        completed["head"] = _complete_head(f"{where}.head", task.get("head"))

    loss = task.get("loss") or LOSSES[problem_type][0]
    _check_choice(f"{where}.loss ({problem_type})", loss, LOSSES[problem_type])
    completed["loss"] = loss
    if task.get("loss_options") is not None:
        options = _complete_loss_options(
            f"{where}.loss_options", task["loss_options"], loss, completed.get("labels", [])
        )
        completed.update({"loss_options": options} if options else {})

    loss_weight = task.get("loss_weight", 1.0)
    if not _is_number(loss_weight) or loss_weight < 0:
        raise ValueError(f"{where}.loss_weight is {loss_weight!r}, but should be a number of at least 0.")
    completed["loss_weight"] = float(loss_weight)

    metrics = task.get("metrics") or [METRICS[problem_type][0]]
    if not isinstance(metrics, (list, tuple)):
        raise ValueError(f"{where}.metrics is {metrics!r}, but should be a list. The first is the primary metric.")
    for metric in metrics:
        _check_choice(f"{where}.metrics ({problem_type}): a metric", metric, METRICS[problem_type])
    if metrics[0] in ERROR_METRICS:
        raise ValueError(
            f"{where}.metrics: {metrics[0]} cannot stand first, because the first metric chooses the best checkpoint "
            "and should grow with quality. Put spearman or pearson before it."
        )
    completed["metrics"] = list(metrics)

    if problem_type == "multi_label_classification":
        thresholds = task.get("thresholds") or [0.5] * len(completed["labels"])
        is_list = isinstance(thresholds, (list, tuple)) and len(thresholds) == len(completed["labels"])
        if not is_list or not all(_is_number(threshold) and 0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(
                f"{where}.thresholds is {thresholds!r}, but should hold one probability for each of the "
                f"{len(completed['labels'])} labels."
            )
        completed["thresholds"] = [float(threshold) for threshold in thresholds]
    if problem_type == "regression":
        completed.update(_complete_targets(where, task))
    if problem_type == "similarity":
        score_range = task.get("score_range") or [0.0, 1.0]
        is_pair = isinstance(score_range, (list, tuple)) and len(score_range) == 2
        if not is_pair or not all(map(_is_number, score_range)) or score_range[0] >= score_range[1]:
            raise ValueError(
                f"{where}.score_range is {score_range!r}, but should be [lowest, highest], such as [0, 5]."
            )
        completed["score_range"] = [float(score) for score in score_range]
    return completed


def extend_labels(name: str, task: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """
    A classification task's completed settings with further labels after its own.

    What stands there for each label follows: a new label has the threshold 0.5, and counts 1 in the loss.

    Raises:
        ValueError: the task has no labels, or one of them already, or none is given.
    """
    where = f"tasks.{name}"
    if "labels" not in task:
        raise ValueError(f"{where} ({task['problem_type']}) has no labels, so none can be added.")
    labels = _complete_labels(f"{where}: the labels to add", labels, least=1)
    known = [label for label in labels if label in set(task["labels"])]
    if known:
        raise ValueError(f"{where} has the labels {', '.join(map(repr, known))} already. Add others only.")
    extended = {**task, "labels": [*task["labels"], *labels]}
    if "thresholds" in task:
        extended["thresholds"] = [*task["thresholds"], *[0.5] * len(labels)]
    extended["loss_options"] = {
        key: [*value, *[1.0] * len(labels)] if isinstance(value, list) else value
        for key, value in task.get("loss_options", {}).items()
    }
    return complete_task(name, extended)


@strict
class MultiTaskConfig(PreTrainedConfig):
    r"""
    All that is needed to rebuild a [`MultiTaskModel`].

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            The encoder's own configuration; a dictionary needs `model_type`. Defaults to a BERT configuration.
        pooling (`str`, *optional*, defaults to `"mean"`):
            From token states to one vector: `mean`, `cls` or `max`, all over unmasked tokens only.
        projection (`dict`, *optional*):
            Dense layer from the pooled vector to the sentence embedding: `out_features`, `bias` (defaults to `True`),
            `activation` (a transformers activation, defaults to `tanh`; `linear` for none).
        normalize (`bool`, *optional*, defaults to `False`):
            Whether the sentence embedding is handed out with length 1. Heads read it before that.
        max_length (`int`, *optional*, defaults to 128):
            Longest sentence in tokens, special tokens included. Longer ones are truncated.
        tasks (`dict[str, dict]`, *optional*):
            Task settings by name; see [`complete_task`] for the keys.
        task_order (`list[str]`, *optional*):
            The names of the tasks in their order, which config.json would lose: its keys are sorted. Tasks that are
            not named follow in the order of `tasks`.
        task (`str`, *optional*):
            The task that `AutoModelForSequenceClassification` answers.
        base_name_or_path (`str`, *optional*):
            Of a model saved as an adapter: Hub id or folder of the encoder, or multi-task model, that the backbone's
            weights come from. In config.json a folder is relative to that file.
        base_revision (`str`, *optional*):
            The commit of those weights, where they come from the Hub.
        encoder_fingerprint (`str`, *optional*):
            What tells the weights of backbone and projection that the heads belong to from others.
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
    >>> config.embedding_dim, config.tasks["sentiment"]["metrics"]
    (32, ['accuracy'])

    ```
    """

    model_type = "multitask"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - a class attribute of transformers' own making

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    pooling: str = "mean"
    projection: dict[str, Any] | None = None
    normalize: bool = False
    max_length: int = 128
    tasks: dict[str, Any] | None = None
    task_order: list[str] | None = None
    task: str | None = None
    base_name_or_path: str | None = None
    base_revision: str | None = None
    encoder_fingerprint: str | None = None
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
        self.projection = complete_projection(self.projection)
        tasks = self.tasks or {}
        order = [name for name in self.task_order or () if name in tasks]
        self.tasks = {name: complete_task(name, tasks[name]) for name in dict.fromkeys([*order, *tasks])}
        self.task_order = None  # `tasks` has the order from here on; `to_dict` writes it down
        self.validate_multitask()  # here as well, where the error is a ValueError and not wrapped
        is_labelled = self.id2label is not None or kwargs.get("num_labels") is not None
        super().__post_init__(**kwargs)
        if not is_labelled:  # transformers would name two; the view of one head has to know whether anybody did
            self.id2label = self.label2id = None

    def validate_multitask(self):
        """Part of `@strict`-powered validation: runs when the configuration is made and when it is saved."""
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"The model was saved by a newer version of this code (format {self.format_version}; this one knows "
                f"{FORMAT_VERSION}). Load the code that lies beside it with trust_remote_code=True, or update."
            )
        check_encoder(self.backbone_config)
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_count("max_length", self.max_length)
        complete_projection(self.projection)
        for name, task in self.tasks.items():
            complete_task(name, task)

    def to_dict(self) -> dict[str, Any]:
        """As of any configuration, with the tasks' order and without folders of this machine: it is what is saved."""
        found = {**super().to_dict(), "task_order": list(self.tasks)}
        for settings in (found, found["backbone_config"]):
            if settings.get("_name_or_path"):
                settings["_name_or_path"] = public_name(settings["_name_or_path"])
        return found

    @property
    def embedding_dim(self) -> int:
        """Size of the sentence embedding."""
        return self.projection["out_features"] if self.projection else self.backbone_config.hidden_size

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

__all__ = ["MultiTaskConfig"]
