"""The recipe's `peft` block: checked and tried on a backbone of the same shape before any data is loaded.

adapter_config     the settings as a peft configuration
check_adapter      puts it on a random backbone, runs and, where asked for, merges it
describe_adapter   what is printed at the start
"""

import copy
import warnings
from dataclasses import fields
from typing import Any

import torch
import torch.nn as nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ...adapter_multitask import ADAPTER_NAME, REFUSED_SETTINGS, import_peft, inject_adapter, take_off_backbone
from ...checks_multitask import check_choice, check_keys, suggest
from ...modeling_multitask import MultiTaskModel

SAVES = ("merged", "adapter")
# Said by the run itself, or of no use in a model's file.
REFUSED_KEYS = {
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version"),
        "is set by the run itself",
    ),
    **REFUSED_SETTINGS,
    "runtime_config": "is not part of what is saved",
}
REFUSED_KINDS = {
    "ADALORA": "its ranks are shared out anew in every step, which the trainer does not do",
    "POLY": "it needs a task number with every row",
    "SHADOW": "it is not put into the layers of an encoder",
}


def _kinds() -> dict[str, type]:
    """Configuration classes of the kinds that are put into layers, by name."""
    import_peft("The recipe's peft block")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    if not hasattr(BaseTuner, "uses_shared_state"):
        raise ImportError(
            "The recipe's peft block needs peft 0.21 or newer, which says what kinds share parameters between layers: "
            "pip install 'peft>=0.21'"
        )
    return {
        kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if hasattr(tuner, "tuner_layer_cls") and not tuner.uses_shared_state and kind.value not in REFUSED_KINDS
    }


def adapter_config(settings: dict[str, Any]) -> Any:
    """
    The `peft.PeftConfig` of a recipe's `peft` block.

    Args:
        settings: `peft_type` (LORA by default), `save`, and any field of that type's configuration class.

    Raises:
        ImportError: peft is not installed.
        ValueError: an unknown type or key, or a value that peft refuses.
    """
    kinds = _kinds()
    kind, save = str(settings.get("peft_type", "LORA")).upper(), settings.get("save", SAVES[0])
    if kind not in kinds:
        reason = REFUSED_KINDS.get(kind, "there is no such type, or it is not put into the layers of an encoder")
        raise ValueError(
            f"peft.peft_type is {settings['peft_type']!r}: {reason}.{suggest(kind, kinds)} "
            f"Known types: {', '.join(sorted(kinds))}."
        )
    check_choice("peft.save", save, SAVES)
    values = {key: value for key, value in settings.items() if key not in ("peft_type", "save")}
    known = sorted(field.name for field in fields(kinds[kind]) if field.init and field.name not in REFUSED_KEYS)
    for key in values:
        if key in REFUSED_KEYS:
            raise ValueError(f"peft.{key} {REFUSED_KEYS[key]}. Remove it.")
    names = ["peft_type", "save", *known]
    check_keys("peft", values, names, f"Known keys for {kind}: {', '.join(names)}.")
    try:
        return kinds[kind](**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"peft ({kind}): {error}") from error


def _last_names(modules: list[str]) -> str:
    return ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in modules))


def _check_targets(config: Any, backbone: nn.Module) -> None:
    """Refuse a name under target_modules that no module has: peft passes over it where another one fits."""
    targets = getattr(config, "target_modules", None)
    modules = [name for name, _ in backbone.named_modules() if name]
    linear = _last_names([name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)])
    for target in targets if isinstance(targets, (list, tuple, set)) else ():
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            names = {part for name in modules for part in name.split(".")}
            raise ValueError(
                f"peft.target_modules: no module of the backbone is called {target!r}.{suggest(target, names)} "
                f"Its linear layers are called {linear}."
            )


def check_adapter(settings: dict[str, Any], backbone_config: PreTrainedConfig) -> PreTrainedModel:
    """
    Try the `peft` block on a random backbone of the same shape: target modules, values, one pass, and merging.

    Returns:
        That backbone with the adapter.

    Raises:
        ImportError: peft is not installed.
        ValueError: what does not fit, with the names of the backbone's linear layers.
    """
    config = adapter_config(settings)
    backbone = AutoModel.from_config(copy.deepcopy(backbone_config)).eval()
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # as in a MultiTaskModel
    _check_targets(config, backbone)
    linear = _last_names([name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # they come again when the adapter is put on the model
            inject_adapter(backbone, config)
            backbone(input_ids=torch.ones(1, 2, dtype=torch.long), attention_mask=torch.ones(1, 2, dtype=torch.long))
            if settings.get("save", SAVES[0]) == "merged":
                take_off_backbone(copy.deepcopy(backbone))
        return backbone
    except NotImplementedError as error:
        raise ValueError(
            f"peft ({config.peft_type.value}): an adapter of this type cannot be merged. Set save: adapter."
        ) from error
    except Exception as error:  # peft and torch raise what they like at values that do not fit
        raise ValueError(
            f"peft ({config.peft_type.value}): {str(error) or type(error).__name__} (The backbone's linear layers are "
            f"called {linear}.)"
        ) from error


def describe_adapter(model: MultiTaskModel, settings: dict[str, Any]) -> str:
    """Type, settings, how it will be saved, and how much of the model is trained."""
    config = model.backbone.peft_config[ADAPTER_NAME]
    shown = {key: value for key, value in settings.items() if key not in ("peft_type", "save", "target_modules")}
    if hasattr(config, "r"):
        shown = {"r": config.r, **shown}
    targets = settings.get("target_modules") or getattr(config, "target_modules", None)
    if targets:
        shown["target_modules"] = targets if isinstance(targets, str) else "[" + ", ".join(sorted(targets)) + "]"
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained, total = sum(count for count, is_trained in counts if is_trained), sum(count for count, _ in counts)
    return (
        f"{config.peft_type.value}, {', '.join(f'{key} {value}' for key, value in shown.items())}; saved "
        f"{settings.get('save', SAVES[0])}; {trained:,} of {total:,} parameters trainable ({trained / total:.2%})"
    )
