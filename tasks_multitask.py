"""The settings of a task as records that are checked when they are made.

    TaskConfig     what `config.tasks` holds for each task
    complete_task  a task's record from what a user wrote, or a file holds
    extend_labels  the same with further labels

What the problem types mean stands in problem_types_multitask.py. This file travels with every saved model. The runtime
without torch reads the records, too: what only layers can say is checked in `complete_task`.
"""

from collections import Counter
from dataclasses import InitVar, asdict, dataclass, field, fields, replace
from typing import Any

from .checks_multitask import check_choice, check_flag, check_keys, is_number
from .problem_types_multitask import COUNTED_WEIGHTS, LOSSES, METRICS, PROBLEM_TYPES, ProblemType, find_problem_type
from .records_multitask import (
    AbstainConfig,
    HeadConfig,
    Record,
    check_activation,
    complete_abstain,
    complete_head,
    settings_of,
)

# What only some problem types know, in the order in which it is looked for.
_OWN_SETTINGS = tuple(dict.fromkeys(key for kind in PROBLEM_TYPES.values() for key in kind.settings))

_ONLY_IF_GIVEN = ("loss_options", "f1_labels", "temperatures", "abstain", "out_of_scope")
# What is chosen on validation data once training has ended, and what else says how answers are given.
CHOSEN_SETTINGS = ("thresholds", "temperatures", "abstain", "out_of_scope")


def _check_task_name(name: Any) -> None:
    import torch.nn as nn

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


def _complete_labels(where: str, labels: Any, least: int) -> list[str]:
    if not isinstance(labels, (list, tuple)) or len(labels) < least:
        raise ValueError(f"{where} is {labels!r}, but should list at least {least} label names.")
    labels = [str(label) for label in labels]
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        raise ValueError(f"{where} lists {', '.join(map(repr, repeated))} more than once.")
    return labels


def _complete_label_weights(where: str, weights: Any, labels: list[str]) -> str | list[float]:
    """One number above 0 for each label, in their order; `COUNTED_WEIGHTS` stay names until rows are there."""
    if isinstance(weights, str) and weights in COUNTED_WEIGHTS:
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
            f"{where} is {weights!r}, but should be balanced or sqrt_balanced, or give a number above 0 for each of "
            f"the {len(labels)} labels: a list in their order, or a mapping by label."
        )
    return [float(weight) for weight in weights]


def _complete_loss_options(where: str, options: Any, loss: str, labels: list[str]) -> dict[str, Any]:
    known, options = LOSSES[loss].options, {} if options is None else options
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
        completed[key] = float(value) if key in ("label_smoothing", "temperature") else value  # numpy's are not JSON
    return completed


def _complete_targets(where: str, mean: Any, deviation: Any) -> tuple[float | None, float | None]:
    """Mean and deviation of a regression task; both `None` until there are training rows to measure."""
    if mean is None and deviation is None:
        return None, None
    if not is_number(mean) or not is_number(deviation) or deviation <= 0:
        raise ValueError(
            f"{where}: found target_mean {mean!r}, target_deviation {deviation!r}, but target_mean should be a number "
            "and target_deviation a number above 0. Give both, or leave both out: they are then measured on the "
            "training rows."
        )
    return float(mean), float(deviation)


def _complete_metrics(where: str, metrics: Any, problem_type: str) -> list[str]:
    known = PROBLEM_TYPES[problem_type].metrics
    metrics = metrics or [known[0]]
    if not isinstance(metrics, (list, tuple)):
        raise ValueError(f"{where} is {metrics!r}, but should be a list. The first is the primary metric.")
    for metric in metrics:
        check_choice(f"{where} ({problem_type}): a metric", metric, known)
    if METRICS[metrics[0]].is_error:
        raise ValueError(
            f"{where}: {metrics[0]} cannot stand first, because the first metric chooses the best checkpoint "
            "and should grow with quality. Put spearman or pearson before it."
        )
    return list(metrics)


def _complete_f1_labels(where: str, f1_labels: Any, labels: list[str], metrics: list[str]) -> list[str]:
    """The classes whose F1 counts; none without the metric."""
    if "f1" not in metrics:
        if f1_labels:
            raise ValueError(
                f"{where} is {f1_labels!r}, but metrics lists no f1, which alone reads it. List f1, or remove it."
            )
        return []
    if not f1_labels:
        raise ValueError(
            f"{where} is missing: the metric f1 is the mean F1 of some of the classes. List their names, such as "
            f"[{labels[-1]}]; macro_f1 takes all of them."
        )
    chosen = _complete_labels(where, f1_labels, least=1)
    for label in chosen:
        if label not in labels:
            check_choice(f"{where}: a label", label, tuple(labels))
    return chosen


def _complete_thresholds(where: str, thresholds: Any, num_labels: int) -> list[float]:
    thresholds = thresholds or [0.5] * num_labels
    is_list = isinstance(thresholds, (list, tuple)) and len(thresholds) == num_labels
    if not is_list or not all(is_number(threshold) and 0 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(
            f"{where} is {thresholds!r}, but should hold one probability for each of the {num_labels} labels."
        )
    return [float(threshold) for threshold in thresholds]


def _complete_temperatures(where: str, temperatures: Any, size: int) -> list[float]:
    """One number above 0 for each label of a multi-label task, one alone for a single-label task, or none at all."""
    is_list = isinstance(temperatures, (list, tuple)) and len(temperatures) in (0, size)
    if not is_list or not all(is_number(temperature) and temperature > 0 for temperature in temperatures):
        raise ValueError(
            f"{where} is {temperatures!r}, but should hold {size} number{'s' * (size > 1)} above 0, which logits are "
            "divided by, or nothing."
        )
    return [float(temperature) for temperature in temperatures]


def _complete_score_range(where: str, score_range: Any) -> list[float]:
    score_range = score_range or [0.0, 1.0]
    is_pair = isinstance(score_range, (list, tuple)) and len(score_range) == 2
    if not is_pair or not all(map(is_number, score_range)) or score_range[0] >= score_range[1]:
        raise ValueError(f"{where} is {score_range!r}, but should be [lowest, highest], such as [0, 5].")
    return [float(score) for score in score_range]


@dataclass(frozen=True, eq=False, kw_only=True)
class TaskConfig(Record):
    """
    A task's settings, checked and with every default filled in. What the problem type does not know stays empty.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        pair: whether a row holds two sentences; `None` for what the problem type says.
        labels: their names, for classification only.
        head: a `HeadConfig` or its settings, for the problem types with a head; linear where nothing is said.
        loss: empty for the problem type's first.
        loss_options: of the loss: `class_weights` (one of `COUNTED_WEIGHTS`, or a number for each label) and
            `label_smoothing` for cross_entropy, `pos_weight` (the same forms) for binary_cross_entropy, `temperature`
            for cosent and multiple_negatives_ranking, `symmetric` for the latter.
        loss_weight: what the loss is multiplied with in the sum.
        metrics: the first is the primary metric; empty for the problem type's first.
        f1_labels: the classes that the metric `f1` is the mean of, by name; empty without that metric.
        thresholds: multi-label: the probability from which each label counts, 0.5 where nothing is said.
        temperatures: classification: what logits are divided by before they become probabilities: one number, of a
            multi-label task one for each label. Empty until training has fitted them: see training/calibration/.
        abstain: classification: an `AbstainConfig` or its settings; `None` to give a label always.
        out_of_scope: classification of single sentences: whether the head has a `Scope`, see scope_multitask.py.
        target_mean, target_deviation: regression: see `target_scale`; `None` for both until training measures them.
        score_range: similarity: the scores that mean cosine 0 and cosine 1, 0 and 1 where nothing is said.
        where: what an error says it is about.

    Raises:
        ValueError: names the setting, what was found and what would be right.

    ```python
    >>> task = TaskConfig(problem_type="single_label_classification", labels=["negative", "positive"])
    >>> task.head.dropout, task.metrics, task.kind.has_labels
    (0.0, ['accuracy'], True)

    ```
    """

    problem_type: str
    pair: bool | None = None
    labels: list[str] = field(default_factory=list)
    head: HeadConfig | None = None
    loss: str = ""
    loss_options: dict[str, Any] = field(default_factory=dict)
    loss_weight: float = 1.0
    metrics: list[str] = field(default_factory=list)
    f1_labels: list[str] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=list)
    abstain: AbstainConfig | None = None
    out_of_scope: bool = False
    target_mean: float | None = None
    target_deviation: float | None = None
    score_range: list[float] | None = None
    where: InitVar[str] = "task"

    def __post_init__(self, where: str):
        kind = find_problem_type(f"{where}.problem_type", self.problem_type)
        for key in _OWN_SETTINGS:
            value = getattr(self, key)
            is_said = value is not None and value is not False and not (isinstance(value, list) and not value)
            if is_said and key not in kind.settings:
                raise ValueError(f"{where}.{key} has no meaning for problem_type {self.problem_type}. Remove it.")

        pair = kind.is_always_pair if self.pair is None else self.pair
        if not isinstance(pair, bool) or (kind.is_always_pair and not pair):
            raise ValueError(
                f"{where}.pair is {pair!r}, but should be "
                + (f"true: {self.problem_type} compares two sentences." if kind.is_always_pair else "true or false.")
            )
        check_flag(f"{where}.out_of_scope", self.out_of_scope)
        if self.out_of_scope and pair:
            raise ValueError(
                f"{where}.out_of_scope is true, but only tasks of single sentences know what is. Remove it."
            )
        abstain = complete_abstain(f"{where}.abstain", self.abstain)
        if pair and abstain is not None and abstain.out_of_scope is not None:
            raise ValueError(
                f"{where}.abstain.out_of_scope: only tasks of single sentences know their scope. Remove it."
            )
        labels = _complete_labels(f"{where}.labels", self.labels, kind.least_labels) if kind.has_labels else []
        loss = self.loss or kind.losses[0]
        check_choice(f"{where}.loss ({self.problem_type})", loss, kind.losses)
        metrics = _complete_metrics(f"{where}.metrics", self.metrics, self.problem_type)
        if not is_number(self.loss_weight) or self.loss_weight < 0:
            raise ValueError(f"{where}.loss_weight is {self.loss_weight!r}, but should be a number of at least 0.")
        self._settle(
            pair=pair,
            labels=labels,
            head=complete_head(f"{where}.head", self.head) if kind.has_head else None,
            loss=loss,
            loss_options=_complete_loss_options(f"{where}.loss_options", self.loss_options, loss, labels),
            loss_weight=float(self.loss_weight),
            metrics=metrics,
            f1_labels=_complete_f1_labels(f"{where}.f1_labels", self.f1_labels, labels, metrics),
            thresholds=_complete_thresholds(f"{where}.thresholds", self.thresholds, len(labels))
            if kind.is_multi_label
            else [],
            temperatures=_complete_temperatures(
                f"{where}.temperatures", self.temperatures, len(labels) if kind.is_multi_label else 1
            ),
            abstain=abstain,
            score_range=_complete_score_range(f"{where}.score_range", self.score_range)
            if kind.has_score_range
            else None,
        )
        if kind.has_target_scale:
            mean, deviation = _complete_targets(where, self.target_mean, self.target_deviation)
            self._settle(target_mean=mean, target_deviation=deviation)

    @property
    def kind(self) -> ProblemType:
        """What the problem type means."""
        return PROBLEM_TYPES[self.problem_type]

    @property
    def primary_metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return self.metrics[0]

    @property
    def target_scale(self) -> tuple[float, float]:
        """
        Mean and deviation of a regression task: its value is `mean + deviation * (what the head gives)`.

        They are 0 and 1 for a task that has none yet, and for those of other problem types.
        """
        if self.target_mean is None or self.target_deviation is None:
            return 0.0, 1.0
        return self.target_mean, self.target_deviation

    def to_dict(self) -> dict[str, Any]:
        """The settings that the problem type knows, as JSON holds them; some only where there are any."""
        left_out = {key for key in _OWN_SETTINGS if key not in self.kind.settings}
        left_out |= {key for key in _ONLY_IF_GIVEN if not getattr(self, key)}
        found = {key: value for key, value in asdict(self).items() if key not in left_out}
        return found if self.abstain is None else {**found, "abstain": self.abstain.to_dict()}


def complete_task(name: str, task: Any, is_new: bool = False) -> TaskConfig:
    """
    A task's record from its settings.

    Args:
        name: the task's name, an identifier other than `embedding`.
        task: a `TaskConfig`, or a mapping with its settings: `problem_type`, `labels` for classification, and what
            else differs from the defaults.
        is_new: whether its head is new: it has no scope yet, and the scale of a regression task that says none is
            measured in training. Of any other it is 0 and 1: models that were saved before there was one have these.

    Returns:
        A record of its own; completing it again changes nothing.

    Raises:
        ValueError: names the task, the setting, what was found and what would be right.
    """
    _check_task_name(name)
    where = f"tasks.{name}"
    task = settings_of(task)
    if not isinstance(task, dict):
        raise ValueError(f"{where} is {task!r}, but should be a mapping with at least a problem_type.")
    check_keys(where, task, [setting.name for setting in fields(TaskConfig)])
    kind = find_problem_type(f"{where}.problem_type", task.get("problem_type"))
    absent = {"labels": None} if kind.has_labels else {}
    if kind.has_target_scale and not is_new and "target_mean" not in task and "target_deviation" not in task:
        absent |= {"target_mean": 0.0, "target_deviation": 1.0}
    completed = TaskConfig(**{**absent, **task}, where=where)
    if is_new:
        completed._settle(out_of_scope=False)
    if completed.head is not None:
        check_activation(f"{where}.head.activation", completed.head.activation)
    return completed


def extend_labels(name: str, task: TaskConfig, labels: list[str]) -> TaskConfig:
    """
    A classification task with further labels after its own.

    What stands there for each label follows: a new label has the threshold 0.5 and the temperature 1, and counts 1 in
    the loss. A confidence that was chosen for a risk is given up, and so is what is known of the task's scope.

    Raises:
        ValueError: the task has no labels, or one of them already, or none is given.
    """
    where = f"tasks.{name}"
    if not task.kind.has_labels:
        raise ValueError(f"{where} ({task.problem_type}) has no labels, so none can be added.")
    labels = _complete_labels(f"{where}: the labels to add", labels, least=1)
    known = [label for label in labels if label in set(task.labels)]
    if known:
        raise ValueError(f"{where} has the labels {', '.join(map(repr, known))} already. Add others only.")
    abstain = task.abstain
    if abstain is not None and abstain.risk is not None:
        abstain = replace(abstain, confidence=None)
    return replace(
        task,
        where=where,
        abstain=abstain,
        out_of_scope=False,
        labels=[*task.labels, *labels],
        thresholds=[*task.thresholds, *[0.5] * len(labels)] if task.kind.is_multi_label else [],
        temperatures=[*task.temperatures, *[1.0] * len(labels)]
        if task.kind.is_multi_label and task.temperatures
        else task.temperatures,
        loss_options={
            key: [*value, *[1.0] * len(labels)] if isinstance(value, list) else value
            for key, value in task.loss_options.items()
        },
    )
