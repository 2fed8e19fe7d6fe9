"""The settings of a task, checked and with every default filled in.

    complete_task   one task's settings
    extend_labels   the same with further labels
    new_task        what a task with a new head adds to them
    target_scale    mean and deviation of a regression task
    check_size      refuses what is no size of a layer
    check_activation  refuses what is no activation

What the problem types mean stands in problem_types_multitask.py. This file travels with every saved model.
"""

from collections import Counter
from typing import Any

import torch.nn as nn
from transformers.activations import ACT2FN

from .checks_multitask import check_choice, check_count, check_flag, check_keys, is_number, suggest
from .problem_types_multitask import LOSSES, METRICS, PROBLEM_TYPES, find_problem_type

LARGEST_SIZE = 1_000_000

# What only some problem types know, in the order in which it is looked for.
_OWN_SETTINGS = tuple(dict.fromkeys(key for kind in PROBLEM_TYPES.values() for key in kind.settings))
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


def check_size(where: str, found: Any) -> None:
    """Refuse what cannot be the size of a layer: anything but a whole number from 1 to `LARGEST_SIZE`."""
    check_count(where, found)
    if found > LARGEST_SIZE:
        raise ValueError(f"{where} is {found}, but should be at most {LARGEST_SIZE:,}: it is the size of a layer.")


def check_activation(where: str, found: Any) -> None:
    """Refuse what transformers does not know as an activation."""
    if not isinstance(found, str) or found not in ACT2FN:
        raise ValueError(
            f"{where} is {found!r}, but should be an activation of transformers such as relu, gelu, tanh, silu or "
            f"linear (none).{suggest(found, ACT2FN)}"
        )


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
    check_keys(where, head or {}, _HEAD_DEFAULTS)
    head = {**_HEAD_DEFAULTS, **(head or {})}
    if not isinstance(head["hidden_dims"], (list, tuple)):
        raise ValueError(
            f"{where}.hidden_dims is {head['hidden_dims']!r}, but should be a list of sizes, such as [256]."
        )
    for size in head["hidden_dims"]:
        check_size(f"{where}.hidden_dims: a size", size)
    check_activation(f"{where}.activation", head["activation"])
    if not is_number(head["dropout"]) or not 0 <= head["dropout"] < 1:
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
                check_choice(f"{where}: a label", name, tuple(labels))
        by_name = dict(zip(names, weights.values(), strict=True))
        missing = [label for label in labels if label not in by_name]
        if missing:
            raise ValueError(f"{where} gives no weight for {', '.join(map(repr, missing))}. Every label needs one.")
        weights = [by_name[label] for label in labels]
    is_list = isinstance(weights, (list, tuple)) and len(weights) == len(labels)
    if not is_list or not all(is_number(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"{where} is {weights!r}, but should be balanced, or give a number above 0 for each of the {len(labels)} "
            "labels: a list in their order, or a mapping by label."
        )
    return [float(weight) for weight in weights]


def _complete_loss_options(where: str, options: Any, loss: str, labels: list[str]) -> dict[str, Any]:
    known = LOSSES[loss].options
    if not isinstance(options, dict):
        raise ValueError(f"{where} is {options!r}, but should be a mapping, such as {{temperature: 0.05}}.")
    if options and not known:
        raise ValueError(f"{where}: the loss {loss} takes no options. Remove them.")
    check_keys(f"{where} ({loss})", options, known)
    completed = {}
    for key, value in options.items():
        if value is None:
            continue
        if key in ("class_weights", "pos_weight"):
            value = _complete_label_weights(f"{where}.{key}", value, labels)
        elif key == "label_smoothing" and not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{where}.{key} is {value!r}, but should be at least 0 and less than 1.")
        elif key == "temperature" and not (is_number(value) and value > 0):
            raise ValueError(
                f"{where}.{key} is {value!r}, but should be a number above 0: cosines are divided by it (usual: 0.05)."
            )
        elif key == "symmetric":
            check_flag(f"{where}.{key}", value)
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
    if len(given) < 2 or not all(map(is_number, given.values())) or given["target_deviation"] <= 0:
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
    check_keys(where, task, _TASK_KEYS)
    problem_type = task.get("problem_type")
    kind = find_problem_type(f"{where}.problem_type", problem_type)
    for key in _OWN_SETTINGS:
        if task.get(key) is not None and key not in kind.settings:
            raise ValueError(f"{where}.{key} has no meaning for problem_type {problem_type}. Remove it.")

    completed: dict[str, Any] = {"problem_type": problem_type, "pair": task.get("pair", kind.is_always_pair)}
    if not isinstance(completed["pair"], bool) or (kind.is_always_pair and not completed["pair"]):
        raise ValueError(
            f"{where}.pair is {completed['pair']!r}, but should be "
            + (f"true: {problem_type} compares two sentences." if kind.is_always_pair else "true or false.")
        )
    if kind.has_labels:
        completed["labels"] = _complete_labels(f"{where}.labels", task.get("labels"), kind.least_labels)
    if kind.has_head:
        completed["head"] = _complete_head(f"{where}.head", task.get("head"))

    loss = task.get("loss") or kind.losses[0]
    check_choice(f"{where}.loss ({problem_type})", loss, kind.losses)
    completed["loss"] = loss
    if task.get("loss_options") is not None:
        options = _complete_loss_options(
            f"{where}.loss_options", task["loss_options"], loss, completed.get("labels", [])
        )
        completed.update({"loss_options": options} if options else {})

    loss_weight = task.get("loss_weight", 1.0)
    if not is_number(loss_weight) or loss_weight < 0:
        raise ValueError(f"{where}.loss_weight is {loss_weight!r}, but should be a number of at least 0.")
    completed["loss_weight"] = float(loss_weight)

    metrics = task.get("metrics") or [kind.metrics[0]]
    if not isinstance(metrics, (list, tuple)):
        raise ValueError(f"{where}.metrics is {metrics!r}, but should be a list. The first is the primary metric.")
    for metric in metrics:
        check_choice(f"{where}.metrics ({problem_type}): a metric", metric, kind.metrics)
    if METRICS[metrics[0]].is_error:
        raise ValueError(
            f"{where}.metrics: {metrics[0]} cannot stand first, because the first metric chooses the best checkpoint "
            "and should grow with quality. Put spearman or pearson before it."
        )
    completed["metrics"] = list(metrics)

    if "thresholds" in kind.settings:
        thresholds = task.get("thresholds") or [0.5] * len(completed["labels"])
        is_list = isinstance(thresholds, (list, tuple)) and len(thresholds) == len(completed["labels"])
        if not is_list or not all(is_number(threshold) and 0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(
                f"{where}.thresholds is {thresholds!r}, but should hold one probability for each of the "
                f"{len(completed['labels'])} labels."
            )
        completed["thresholds"] = [float(threshold) for threshold in thresholds]
    if "target_mean" in kind.settings:
        completed.update(_complete_targets(where, task))
    if "score_range" in kind.settings:
        score_range = task.get("score_range") or [0.0, 1.0]
        is_pair = isinstance(score_range, (list, tuple)) and len(score_range) == 2
        if not is_pair or not all(map(is_number, score_range)) or score_range[0] >= score_range[1]:
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
