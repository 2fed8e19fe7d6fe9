"""How a model is fine-tuned: what stays frozen, what joins when, and the learning rate of each part.

    make_plan         a recipe's `strategy` block, checked against the parts of the model: a list of stages
    plan_of_tasks     the same where only some of the model's tasks take part
    planned_parts     these parts before there is any data, of a model without weights
    format_plan       the table that is shown before training

Without a schedule there is one stage. How a plan is carried out stands in stages.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn as nn
from tabulate import tabulate
from transformers import PreTrainedModel, TrainingArguments

from ...checks_multitask import check_keys, check_mapping, is_number
from ...configuration_multitask import MultiTaskConfig
from ...freezing_multitask import select_parts
from ...modeling_multitask import MultiTaskModel

STRATEGY_KEYS = ("freeze", "unfreeze", "learning_rates", "layer_decay")
STAGE_KEYS = ("epochs", "train", "learning_rates")

Parts = Mapping[str, Mapping[str, nn.Parameter]]


@dataclass
class Stage:
    """A part of a training: its epochs (`None`: to the end), and the peak learning rate of every part that trains."""

    epochs: float | None
    learning_rates: dict[str, float]


def _trainable(parts: Parts, names: Iterable[str]) -> dict[str, dict[str, nn.Parameter]]:
    """By part, its trainable parameters by name."""
    return {part: {name: p for name, p in parts[part].items() if p.requires_grad} for part in names}


@dataclass
class Plan:
    """
    What trains when.

    Attributes:
        frozen: the parts that never train.
        stages: at least one, unless everything is frozen.
        parameters: by part that ever trains, its trainable parameters by name.
    """

    frozen: list[str]
    stages: list[Stage] = field(default_factory=list)
    parameters: dict[str, dict[str, nn.Parameter]] = field(default_factory=dict)

    def trains(self, task: str) -> bool:
        """Whether training changes anything that the task's answers come from."""
        return any(not part.startswith("heads.") or part == f"heads.{task}" for part in self.parameters)

    @property
    def trains_backbone(self) -> bool:
        """Whether any part of the backbone ever trains."""
        return any(part != "projection" and not part.startswith("heads.") for part in self.parameters)

    def of_model(self, parts: Parts) -> "Plan":
        """The plan for these parts: they have the names of those that it was made from."""
        return replace(self, parameters=_trainable(parts, self.parameters))

    def has_own_rates(self, learning_rate: float) -> bool:
        """Whether any part ever trains with another learning rate than this one, or joins later."""
        rates = {rate for stage in self.stages for rate in stage.learning_rates.values()}
        return len(self.stages) > 1 or rates != {learning_rate}

    def trainable_layers(self, stage: int) -> int | None:
        """How many of the backbone's layers train in a stage; `None` where the backbone has no list of layers."""
        if not any(part.startswith("layers.") for part in (*self.frozen, *self.parameters)):
            return None
        return sum(part.startswith("layers.") for part in self.stages[stage].learning_rates)


# ---- from the block to the plan ----


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _select(where: str, names: Iterable[str], *wanted: Any) -> list[str]:
    try:
        return select_parts(names, *wanted)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _rate_keys(part: str) -> tuple[str, ...]:
    """Under which keys of `learning_rates` a part's rate may stand, the most specific first."""
    if part.startswith("heads."):
        task = part.removeprefix("heads.")
        return ("heads",) if task in ("backbone", "projection", "heads") else (task, "heads")
    return ("projection",) if part == "projection" else ("backbone",)


def _check_rates(where: str, rates: Any, names: Sequence[str], trainable: Iterable[str]) -> dict[str, float]:
    """`learning_rates`: its keys belong to parts that train, its values are above 0."""
    if rates is None:
        return {}
    known = ["backbone", "projection", "heads", *(name[6:] for name in names if name.startswith("heads."))]
    check_mapping(where, rates)
    check_keys(where, rates, known)
    trainable = {key for part in trainable for key in _rate_keys(part)}
    for key, rate in rates.items():
        if not is_number(rate) or rate <= 0:
            raise ValueError(
                f"{where}.{key} is {rate!r}, but should be a number above 0. Freeze what should not train."
            )
        if key not in trainable:
            exists = any(key in _rate_keys(name) for name in names)
            raise ValueError(
                f"{where}.{key} is {rate!r}, but {'it does not train there' if exists else 'the model has none'}. "
                "Leave it out."
            )
    return rates


def _check_layer_decay(decay: Any, names: Sequence[str]) -> float:
    if decay is None:
        return 1.0
    if not is_number(decay) or not 0 < decay <= 1:
        raise ValueError(f"strategy.layer_decay is {decay!r}, but should be a number above 0 and at most 1.")
    if "backbone" in names:
        raise ValueError("strategy.layer_decay: this backbone has no single list of its own layers. Leave it out.")
    return float(decay)


def _stage_parts(where: str, train: Any, names: Sequence[str], frozen: Iterable[str], joined: set[str]) -> set[str]:
    """The parts that join in a stage: each word that is named brings at least one."""
    if train is None:
        raise ValueError(f"{where}: train is missing. Name the parts that join, such as heads or {{top_layers: 2}}.")
    free, new = set(names) - set(frozen), set()
    for item in _listed(train):
        chosen = set(_select(f"{where}.train", names, item))
        if chosen and not chosen & free:
            raise ValueError(f"{where}.train: {item!r} is frozen for the whole training. Name it in one place only.")
        if chosen and not chosen & free - joined - new:
            raise ValueError(f"{where}.train: {item!r} trains already. Name only what joins in this stage.")
        new |= chosen & free
    if not new:
        raise ValueError(f"{where}.train is {train!r}, so nothing joins. Name a part, or leave the stage out.")
    return new - joined


def _read_stages(
    stages: Any, names: Sequence[str], frozen: Sequence[str], args: TrainingArguments
) -> list[tuple[float | None, set[str], dict[str, float]]]:
    """By stage: its epochs, all parts that train in it, and its own learning rates."""
    if not isinstance(stages, (list, tuple)) or not stages:
        raise ValueError(f"strategy.unfreeze is {stages!r}, but should be a list of stages.")
    read, joined = [], set()
    for number, stage in enumerate(stages, 1):
        where = f"strategy.unfreeze, stage {number}"
        check_mapping(where, stage)
        check_keys(where, stage, STAGE_KEYS)
        epochs, is_last = stage.get("epochs"), number == len(stages)
        if is_last and epochs is not None:
            raise ValueError(f"{where}: the last stage lasts to the end of training. Leave epochs out.")
        if not is_last and (not is_number(epochs) or epochs <= 0):
            raise ValueError(f"{where}: epochs is {epochs!r}, but should be a number above 0; fractions are fine.")
        joined = joined | _stage_parts(where, stage.get("train"), names, frozen, joined)
        own_rates = _check_rates(f"{where}, learning_rates", stage.get("learning_rates"), names, joined)
        read.append((epochs, joined, own_rates))
    if never := [name for name in names if name not in joined and name not in frozen]:
        raise ValueError(
            f"strategy.unfreeze: no stage trains {', '.join(never)}. Give the last stage `train: all`, or name what "
            "should never train under strategy.freeze."
        )
    total = sum(epochs for epochs, *_ in read[:-1])
    if args.max_steps <= 0 and total >= args.num_train_epochs:
        raise ValueError(
            f"strategy.unfreeze: the stages before the last take {total:g} epochs, but training has "
            f"{args.num_train_epochs:g}, so the last stage never trains. Shorten them, or raise num_train_epochs."
        )
    return read


def _check_all_frozen(strategy: dict[str, Any]) -> None:
    if others := [key for key in STRATEGY_KEYS[1:] if strategy.get(key)]:
        raise ValueError(f"strategy.freeze is all, so nothing trains. Leave {' and '.join(others)} out.")


def make_plan(strategy: dict[str, Any] | None, parts: Parts, args: TrainingArguments) -> Plan:
    """
    What trains when, and how fast.

    A part's peak learning rate is what the stage says, else what `strategy.learning_rates` says (in both, a task's
    name goes before `heads`), else `head_learning_rate` for heads and projection, else `learning_rate`. In the
    backbone it is multiplied by `layer_decay` once for every layer above, so the embeddings get `layer_decay **
    num_layers` (discriminative fine-tuning; Howard & Ruder 2018, "ULMFiT", arXiv 1801.06146, section 3.2; gradual
    unfreezing: section 3.3).

    Args:
        strategy: `freeze`, `unfreeze`, `learning_rates` and `layer_decay`, each of which may be absent.
        parts: `MultiTaskModel.parts()`. A part without a trainable parameter stays frozen, whatever is said.
        args: `learning_rate`, `head_learning_rate`, `num_train_epochs` and `max_steps` are read.

    Raises:
        ValueError: something is unknown, contradicts something else, or leaves nothing to train.
    """
    strategy, names = strategy or {}, list(parts)
    check_mapping("strategy", strategy)
    check_keys("strategy", strategy, STRATEGY_KEYS)
    to_freeze = _listed(strategy.get("freeze"))
    chosen = _select("strategy.freeze", names, *to_freeze)
    frozen = [
        name
        for name in names
        if name in chosen or not any(parameter.requires_grad for parameter in parts[name].values())
    ]
    if len(frozen) == len(names):
        if "all" in to_freeze or not strategy:
            _check_all_frozen(strategy)
            return Plan(frozen)
        raise ValueError(
            "strategy: nothing is left to train. Freeze less, or say freeze: all to evaluate the model as it is."
        )
    free = [name for name in names if name not in frozen]
    rates = _check_rates("strategy.learning_rates", strategy.get("learning_rates"), names, free)
    if args.head_learning_rate is not None and (twice := {"heads", "projection"} & set(rates)):
        raise ValueError(
            f"training.head_learning_rate and strategy.learning_rates.{min(twice)} both say how fast "
            "heads and projection train. Leave one out."
        )
    decay = _check_layer_decay(strategy.get("layer_decay"), names)
    layers = [name for name in names if name.startswith("layers.")]
    depths = {"embeddings": len(layers), **{name: depth for depth, name in enumerate(reversed(layers))}}

    def learning_rate(part: str, own_rates: dict[str, float]) -> float:
        keys = _rate_keys(part)
        rate = next((given[key] for given in (own_rates, rates) for key in keys if key in given), None)
        if rate is None:
            is_head = keys != ("backbone",) and args.head_learning_rate is not None
            rate = args.head_learning_rate if is_head else args.learning_rate
        return rate * decay ** depths.get(part, 0)

    stages = [(None, set(free), {})]
    if strategy.get("unfreeze") not in (None, []):
        stages = _read_stages(strategy["unfreeze"], names, frozen, args)
    plan = Plan(
        frozen=frozen,
        stages=[
            Stage(epochs, {part: learning_rate(part, own_rates) for part in free if part in joined})
            for epochs, joined, own_rates in stages
        ],
        parameters=_trainable(parts, free),
    )
    if len(stages) > 1 and any(rate <= 0 for stage in plan.stages for rate in stage.learning_rates.values()):
        raise ValueError("strategy.unfreeze needs learning rates above 0. Raise training.learning_rate.")
    return plan


def plan_of_tasks(plan: Plan, tasks: Iterable[str]) -> Plan:
    """
    A plan without the heads of all but some tasks: those stay as they are.

    Raises:
        ValueError: a stage trains nothing but such heads.
    """
    heads = {f"heads.{task}" for task in tasks}
    others = {part for part in plan.parameters if part.startswith("heads.")} - heads
    frozen = [*plan.frozen, *(part for part in plan.parameters if part in others)]
    if others == set(plan.parameters):
        return Plan(frozen)
    stages = [
        Stage(stage.epochs, {part: rate for part, rate in stage.learning_rates.items() if part not in others})
        for stage in plan.stages
    ]
    for number, stage in enumerate(stages, 1):
        if not stage.learning_rates:
            raise ValueError(
                f"strategy.unfreeze, stage {number}: nothing trains that {' or '.join(map(repr, tasks))} is answered "
                "from. Let a part of the backbone train in every stage."
            )
    return Plan(
        frozen=frozen,
        stages=stages,
        parameters={part: parameters for part, parameters in plan.parameters.items() if part not in others},
    )


def planned_parts(config: MultiTaskConfig, adapted: PreTrainedModel | None = None) -> Parts:
    """The parts that a model of this configuration will have; with an adapter, those of a backbone that has it."""
    with torch.device("meta"):
        model = MultiTaskModel(config)
    if adapted is not None:
        model.backbone = adapted
    return model.parts()


# ---- what is shown ----


def _title(parts: list[str]) -> str:
    """`layers.0`, `layers.1` and `layers.2` to `layers 0-2`."""
    numbers = [part.removeprefix("layers.") for part in parts]
    if numbers == parts:
        return parts[0].removeprefix("heads.") + (" (head)" if parts[0].startswith("heads.") else "")
    return f"layer {numbers[0]}" if len(parts) == 1 else f"layers {numbers[0]}-{numbers[-1]}"


def _state(part: str, parameters: Mapping[str, nn.Parameter], plan: Plan) -> str:
    """Whether a part trains: `no`, `yes`, from which stage, or how many of its parameters."""
    if part not in plan.parameters:
        return "no"
    first = next(number for number, stage in enumerate(plan.stages, 1) if part in stage.learning_rates)
    trainable = plan.parameters[part]
    some = "" if len(trainable) == len(parameters) else f"{sum(p.numel() for p in trainable.values()):,} "
    return f"{some}from stage {first}" if first > 1 else some.strip() or "yes"


def format_plan(plan: Plan, parts: Parts) -> str:
    """A table of the model's parts from the highest to the lowest: parameters, whether they train, learning rates."""

    def row(part: str) -> tuple[str, ...]:
        rates = [stage.learning_rates.get(part) for stage in plan.stages] or [None]
        return _state(part, parts[part], plan), *("-" if rate is None else f"{rate:.3g}" for rate in rates)

    def together(part: str) -> tuple[str, ...]:
        return (part.split(".")[0] if part.startswith("layers.") else part, *row(part))

    rows = []
    heads = [part for part in parts if part.startswith("heads.")]
    for _, group in groupby([*heads, *reversed([part for part in parts if part not in heads])], together):
        names = list(group)[::-1]
        count = sum(parameter.numel() for name in names for parameter in parts[name].values())
        rows.append([_title(names), f"{count:,}", *row(names[0])])
    header = ["learning rate"]
    if len(plan.stages) > 1:
        epochs = [stage.epochs for stage in plan.stages]
        lengths = [f"{length:g} epoch{'s' * (length != 1)}" if length else "to the end" for length in epochs]
        header = [f"rate in stage {number} ({length})" for number, length in enumerate(lengths, 1)]
    align = ["left", "right", "left", *["right"] * len(header)]
    title = "Parts, from top to bottom" + ("" if plan.stages else ": nothing is trained")
    table = tabulate(rows, ["part", "parameters", "trains", *header], disable_numparse=True, colalign=align)
    return f"{title}\n{table}"
