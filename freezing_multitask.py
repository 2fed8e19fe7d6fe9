"""Freezing: the parts of a model, and which of them train.

    backbone_parts   what of a backbone belongs to its embeddings and to each of its layers
    select_parts     the parts that words such as `embeddings` or `layers: 3` mean
    Freezing         parts, freeze and unfreeze of a MultiTaskModel

Every parameter belongs to exactly one part: `embeddings`, `layers.0` (the lowest) to `layers.<n - 1>`, `projection`,
`heads.<task>`. A backbone without a list of layers is one part, `backbone`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn as nn

from .adapter_multitask import has_adapter, own_weights
from .checks_multitask import check_count, suggest
from .turns_multitask import changes_model

PART_WORDS = ("backbone", "embeddings", "projection", "heads", "all", "none")
PART_COUNTS = ("layers", "top_layers")  # the lowest and the highest so many layers
# Norms after the last layer: ModernBERT, EuroBERT, Megatron-BERT, ESM.
TOP_NORMS = ("final_norm", "norm", "ln", "emb_layer_norm_after")


def find_layers(backbone: nn.Module) -> str | None:
    """The name of the module list that holds the backbone's layers; `None` where there is no single one."""
    num_layers = getattr(backbone.config, "num_hidden_layers", None)
    found = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return outermost[0] if len(outermost) == 1 else None


def backbone_parts(backbone: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """
    By part, the parameters by their names in the backbone: `embeddings`, `layers.0`, `layers.1`, ...

    The norm after the last layer belongs to the last layer. All else outside the layers belongs to the embeddings,
    because the lowest layer reads it: position tables, ELECTRA's and DeBERTa's projection of embeddings, the relative
    position biases of MPNet and DeBERTa, which every layer reads, and DeBERTa's convolution beside the first layer.
    With the embeddings and the lowest layers frozen, no gradient is then computed below the lowest trainable layer.
    """
    layers = find_layers(backbone)
    if layers is None:
        return {"backbone": dict(backbone.named_parameters())}
    num_layers = backbone.config.num_hidden_layers
    parts: dict[str, dict[str, nn.Parameter]] = {
        name: {} for name in ("embeddings", *(f"layers.{number}" for number in range(num_layers)))
    }
    beside_layers = layers.rpartition(".")[0] + "." if "." in layers else ""
    for name, parameter in backbone.named_parameters():
        if name.startswith(f"{layers}."):
            part = f"layers.{name[len(layers) + 1 :].split('.')[0]}"
        elif name.startswith(tuple(f"{beside_layers}{norm}." for norm in TOP_NORMS)):
            part = f"layers.{num_layers - 1}"
        else:
            part = "embeddings"
        parts[part][name] = parameter
    return parts


def _check_layers(key: str, count: Any, num_layers: int) -> None:
    check_count(key, count)
    if count > num_layers:
        raise ValueError(f"{key} is {count}, but the backbone has {num_layers} layers.")


def _heads_of(tasks: Any, heads: Sequence[str]) -> list[str]:
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(tasks, Sequence) or not tasks:
        raise ValueError(f"heads is {tasks!r}, but should list tasks, such as [{', '.join(heads[:2])}].")
    for task in tasks:
        if task not in heads:
            raise ValueError(
                f"heads: no task {task!r} has a head.{suggest(task, heads)} "
                f"Tasks with a head: {', '.join(heads) or 'none'}."
            )
    return [f"heads.{task}" for task in tasks]


def select_parts(known: Iterable[str], *wanted: Any) -> list[str]:
    """
    The parts that are meant, in the model's own order, each once.

    Args:
        known: the names of the model's parts.
        wanted: words of `PART_WORDS`, and mappings: `{"layers": 3}` for the lowest three layers, `{"top_layers": 2}`
            for the highest two, `{"heads": ["topic"]}` for single heads.

    Raises:
        ValueError: something is unknown, or the model has no such part.
    """
    known = list(known)
    heads = [name.removeprefix("heads.") for name in known if name.startswith("heads.")]
    layers = [name for name in known if name.startswith("layers.")]
    of_words = {
        "backbone": [name for name in known if name in ("backbone", "embeddings") or name in layers],
        "embeddings": [name for name in known if name == "embeddings"],
        "projection": [name for name in known if name == "projection"],
        "heads": [f"heads.{head}" for head in heads],
        "all": known,
        "none": [],
    }
    chosen: set[str] = set()
    for item in wanted:
        for key, value in item.items() if isinstance(item, dict) else [(item, None)]:
            if isinstance(key, str) and (key in PART_COUNTS or key == "embeddings") and not layers:
                raise ValueError(
                    f"{key}: this backbone has no single list of its own layers, so it trains and is frozen as a "
                    "whole. Write backbone instead."
                )
            if key in PART_COUNTS and not isinstance(item, dict):
                raise ValueError(f"{key} needs a number: {{{key}: 3}}, in Python {key}=3.")
            if key in PART_COUNTS:
                _check_layers(key, value, len(layers))
                chosen.update(layers[:value] if key == "layers" else layers[len(layers) - value :])
            elif key == "heads" and isinstance(item, dict):
                chosen.update(_heads_of(value, heads))
            elif not isinstance(item, dict) and isinstance(key, str) and key in of_words:
                if not of_words[key] and key != "none":
                    raise ValueError(f"{key}: the model has none. Leave it out.")
                chosen.update(of_words[key])
            else:
                raise ValueError(
                    f"unknown part {item!r}.{suggest(key, (*PART_WORDS, *PART_COUNTS))} Known parts: "
                    f"{', '.join(PART_WORDS)}, {{layers: 3}}, {{top_layers: 3}}, {{heads: [task, ...]}}."
                )
    return [name for name in known if name in chosen]


class Freezing:
    """Parts, freeze and unfreeze of a model with `backbone`, `projection` and `heads`."""

    def parts(self) -> dict[str, dict[str, nn.Parameter]]:
        """
        The model's parts from the lowest to the highest: part to parameter name to parameter.

        Each parameter stands in one part; see `backbone_parts` for what belongs to which part of the backbone.
        """
        parts = {
            part: {f"backbone.{name}": parameter for name, parameter in parameters.items()}
            for part, parameters in backbone_parts(self.backbone).items()
        }
        if self.projection is not None:
            parts["projection"] = {f"projection.{name}": p for name, p in self.projection.named_parameters()}
        for task, head in self.heads.items():
            parts[f"heads.{task}"] = {f"heads.{task}.{name}": p for name, p in head.named_parameters()}
        return parts

    def freeze(
        self,
        *parts: str,
        layers: int | None = None,
        top_layers: int | None = None,
        heads: str | Sequence[str] | None = None,
    ) -> None:
        """
        Freeze parts: their parameters stay bit-identical in training, and they run without dropout.

        `model.freeze("embeddings", layers=3, heads=["topic"])` does what a recipe's
        `freeze: [embeddings, {layers: 3}, {heads: [topic]}]` does. What was frozen before stays frozen.

        Args:
            parts: `backbone`, `embeddings`, `projection`, `heads`, `all` or `none`.
            layers: the lowest so many layers of the backbone.
            top_layers: the highest so many.
            heads: single tasks' heads.

        Raises:
            ValueError: nothing was named, a name is unknown, or the model has no such part.
        """
        self._set_trainable(False, parts, layers=layers, top_layers=top_layers, heads=heads)

    def unfreeze(
        self,
        *parts: str,
        layers: int | None = None,
        top_layers: int | None = None,
        heads: str | Sequence[str] | None = None,
    ) -> None:
        """
        Let parts train again; the arguments are those of `freeze`.

        Of a backbone with an adapter only that trains: the other weights are not saved.

        Raises:
            ValueError: as for `freeze`, or nothing of the parts is in the adapter.
        """
        self._set_trainable(True, parts, layers=layers, top_layers=top_layers, heads=heads)

    def _set_trainable(self, trainable: bool, words: Sequence[str], **counts: Any) -> None:
        counts = {key: value for key, value in counts.items() if value is not None}
        if not words and not counts:
            raise ValueError(f"Name a part: {', '.join(PART_WORDS)}, layers=3, top_layers=3 or heads=[...].")
        parts = self.parts()
        chosen = select_parts(parts, *words, *([counts] if counts else []))
        parameters = [parameter for part in chosen for parameter in parts[part].values()]
        if trainable and parameters and has_adapter(self.backbone):
            kept = own_weights(self.backbone)
            parameters = [parameter for parameter in parameters if parameter not in kept]
            if not parameters:
                raise ValueError(
                    f"The adapter is not in {', '.join(chosen)}, and the backbone's own weights are not saved with "
                    "it. Leave them frozen, or fold the adapter in first: model.merge_adapter()."
                )
        for parameter in parameters:
            parameter.requires_grad_(trainable)
        if self.training:
            self.train()  # which of the modules run in eval mode follows from what is frozen

    @changes_model
    def train(self, mode: bool = True) -> "Freezing":
        """Set training mode; modules without any trainable parameter stay in eval mode, so that frozen is frozen."""
        if not mode or not self.training:
            super().train(mode)
        if not mode:
            return self
        kinds: dict[nn.Module, set[bool]] = {}  # of each module, whether parameters in it train, do not, or both

        def look(module: nn.Module) -> set[bool]:
            found = {parameter.requires_grad for parameter in module._parameters.values() if parameter is not None}
            kinds[module] = found.union(*map(look, module.children()))
            return kinds[module]

        look(self)
        waiting: list[nn.Module] = [self]
        while waiting:  # the Trainer calls this in every step, so a module whose mode is right costs next to nothing
            module = waiting.pop()
            if kinds[module] != {False}:
                if not module.training:
                    module.training = True
                waiting.extend(module.children())
            elif any(part.training for part in module.modules()):
                module.train(False)
        return self
