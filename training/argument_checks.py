"""Which values of the training arguments can work: numbers in range, words among the known ones, packages installed.

check_values      called when arguments are made: every value by itself, and what needs another one
check_packages    called before data is loaded: trackers, optimizer and schedule are there and take what is said
"""

import json
import os
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import integration_utils

from ..checks_multitask import check_choice, is_number, suggest

AT_LEAST_ONE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit"),
    *("dataloader_prefetch_factor", "torch_empty_cache_steps", "ddp_bucket_cap_mb", "ddp_timeout"),
)
SEEDS = ("seed", "data_seed")
AT_LEAST_ZERO = (
    *("learning_rate", "head_learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm"),
    *("warmup_steps", "eval_delay"),
)
ABOVE_ZERO = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")
STEPS_OR_SHARE = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")  # below 1, a share of all steps
BELOW_ONE = ("adam_beta1", "adam_beta2")
MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")

# What an argument says nothing without.
NEEDS = {
    "hub_private_repo": ("push_to_hub", "push_to_hub: true"),
    "hub_revision": ("push_to_hub", "push_to_hub: true"),
    "dataloader_persistent_workers": ("dataloader_num_workers", "dataloader_num_workers: 1 or more"),
    "dataloader_prefetch_factor": ("dataloader_num_workers", "dataloader_num_workers: 1 or more"),
    "dataloader_multiprocessing_context": ("dataloader_num_workers", "dataloader_num_workers: 1 or more"),
    "activation_checkpointing_kwargs": ("activation_checkpointing", "activation_checkpointing: true"),
}
# Trackers whose package, and whose question whether it is installed, are not named like them.
TRACKERS = {
    "azure_ml": ("azureml-sdk", "is_azureml_available"),
    "comet_ml": ("comet-ml", "is_comet_available"),
    "flyte": ("flytekit", "is_flytekit_available"),
}
# These look at the model's parameters, so that only their package is checked.
OPTIMIZERS_OF_A_MODEL = ("galore", "apollo", "lomo", "adalomo")


def _refuse(name: str, value: Any, should_be: str) -> None:
    text = repr(value)
    raise ValueError(
        f"training.{name} is {text if len(text) < 100 else text[:90] + '...'}, but should be {should_be}."
    )


def _check_number(name: str, value: Any) -> None:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if name in AT_LEAST_ONE and not (is_whole and 1 <= value < 2**31):
        _refuse(name, value, "a whole number of at least 1")
    if name in SEEDS and not (is_whole and 0 <= value < 2**32):
        _refuse(name, value, "a whole number from 0 to 2**32 - 1")
    if name == "dataloader_num_workers" and not (is_whole and 0 <= value < 2**31):
        _refuse(name, value, "a whole number of at least 0")
    if name == "max_steps" and not (is_whole and (value == -1 or 1 <= value < 2**31)):
        _refuse(name, value, "a whole number of at least 1 (or -1: num_train_epochs decides)")
    if name in AT_LEAST_ZERO and not (is_number(value) and 0 <= value < 2**63):
        _refuse(name, value, "a number of at least 0")
    if name in ABOVE_ZERO and not (is_number(value) and 0 < value < 2**31):
        freeze = " (to train nothing, say strategy: {freeze: all})" if name == "num_train_epochs" else ""
        _refuse(name, value, "a number above 0" + freeze)
    if name in STEPS_OR_SHARE and value >= 1 and value != int(value):
        _refuse(name, value, "a whole number of steps, or below 1 a share of all steps")
    if name in BELOW_ONE and not (is_number(value) and 0 <= value < 1):
        _refuse(name, value, "a number of at least 0 and below 1")


def _check_kind(name: str, value: Any, hint: Any, choices: Any) -> None:
    """Text where only text is taken, and words among the known ones."""
    kinds = set(get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]) - {NoneType}
    enum = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
    if known := [str(word) for word in choices or [kind.value for kind in enum or []]]:
        value = value.value if isinstance(value, Enum) else value
        check_choice(f"training.{name}", value, known)
    elif kinds == {str}:
        may_be_bool = name == "resume_from_checkpoint"
        if not isinstance(value, (str, os.PathLike)) and not (may_be_bool and isinstance(value, bool)):
            _refuse(name, value, "text")
    elif kinds == {str, list[str]}:
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            _refuse(name, value, "text, or a list of texts")


def _check_mapping(name: str, value: Any) -> None:
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, dict):
        _refuse(name, value, "a mapping (lines of `key: value`; as a flag, JSON)")


def check_values(args: TrainingArguments) -> None:
    """
    Check every argument by itself, and the ones that mean nothing without another.

    Raises:
        ValueError: names the argument, its value and what would be right.
    """
    hints = get_type_hints(type(args))
    for argument in fields(args):
        name, value = argument.name, getattr(args, argument.name, None)
        if not argument.init or (value is None and NoneType in get_args(hints[name])):
            continue
        _check_number(name, value)
        if name in MAPPINGS:
            _check_mapping(name, value)
        else:
            _check_kind(name, value, hints[name], argument.metadata.get("choices"))
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer.endswith("_layerwise"):
        whole = optimizer.removesuffix("_layerwise")
        _refuse("optim", optimizer, f"{whole}, or another whose state a checkpoint can hold")
    if not isinstance(args.debug, str | list | None):
        _refuse("debug", args.debug, "text, such as underflow_overflow")
    for name, (other, remedy) in NEEDS.items():
        value = getattr(args, name, None)  # None: transformers before 5.23 has no activation_checkpointing_kwargs
        if value not in (None, False) and not getattr(args, other):
            raise ValueError(
                f"training.{name} is {value!r}, which says nothing without {remedy}. Add that, or leave {name} out."
            )
    for kind in ("eval", "save", "logging"):
        name, strategy = f"{kind}_steps", getattr(args, f"{kind}_strategy")
        strategy = strategy.value if isinstance(strategy, Enum) else strategy
        value, default = getattr(args, name), type(args).__dataclass_fields__[name].default
        if strategy not in ("steps", "no") and value not in (None, default):
            raise ValueError(
                f"training.{name} is {value!r}, but {kind}_strategy is {strategy}. Set {kind}_strategy: steps, or "
                f"leave {name} out."
            )


def _check_trackers(args: TrainingArguments) -> None:
    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in args.report_to:
        if name not in known:
            raise ValueError(f"training.report_to names {name!r}, but knows {', '.join(known)}.{suggest(name, known)}")
        # Only asked for, not made: a tracker that cannot be made leaves a stack trace behind.
        package, is_available = TRACKERS.get(name, (name, f"is_{name}_available"))
        if not getattr(integration_utils, is_available)():
            raise ImportError(
                f"training.report_to names {name}, but its package is missing. Install it with "
                f"`pip install {package}`, or leave {name} out."
            )


def _check_optimizer(args: TrainingArguments) -> None:
    name = args.optim.value
    try:
        _, options = Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        raise ImportError(
            f"training.optim is {name}, whose package is missing: {' '.join(str(error).split())}"
        ) from error
    except (ValueError, TypeError) as error:
        if name.startswith(OPTIMIZERS_OF_A_MODEL):
            return
        if args.optim_args is not None:
            _refuse("optim_args", args.optim_args, f"options of {name}, like a=1,b=2 ({error})")
        raise ValueError(f"training.optim is {name}, which cannot be used here: {error}") from error
    if args.optim_args is not None:
        given, args.optim_args = args.optim_args, None
        _, without = Trainer.get_optimizer_cls_and_kwargs(args)
        args.optim_args = given
        if options == without:
            raise ValueError(f"training.optim_args is {given!r}, but {name} reads none of it. Leave it out.")


def _check_schedule(args: TrainingArguments) -> None:
    name, options = args.lr_scheduler_type.value, args.lr_scheduler_kwargs
    if options and name in ("constant", "constant_with_warmup"):
        raise ValueError(f"training.lr_scheduler_kwargs is {options!r}, but the {name} schedule has no options.")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(name, optimizer, 0, 100, dict(options or {}))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"training.lr_scheduler_kwargs is {options!r}, which the {name} schedule does not take: {error}"
        ) from error


def check_packages(args: TrainingArguments) -> None:
    """
    Check that trackers, optimizer and schedule can be made: the Trainer makes them only when the data is loaded.

    Raises:
        ValueError: a name or an option is unknown.
        ImportError: a package is missing; says how to install it.
    """
    _check_trackers(args)
    _check_optimizer(args)
    _check_schedule(args)
