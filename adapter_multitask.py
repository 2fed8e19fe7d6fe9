"""Adapters on the backbone (LoRA and friends, through peft): put on, merged, saved and opened.

    inject_adapter       puts new adapter layers on a backbone, whose own weights stay as they are
    take_off_backbone    takes them off, folded into the backbone's weights or not: peft is no longer needed
    write_adapter        writes peft's own two files into the folder `adapter` of a saved model
    read_adapter         puts a saved adapter on the backbone it was trained on
    read_weights         only its weights, into layers that are there already

The models' part stands in model_adapter_multitask.py. The two files of a saved adapter are not in the root of the
repository, because there an adapter_config.json makes AutoModel open the base instead of a repository on the Hub.

peft is needed only where a model has an adapter.
"""

import copy
import os
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

ADAPTER_FOLDER = "adapter"
ADAPTER_NAME = "default"  # peft's own, and part of parameter names in memory but not in files
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
# Settings of peft's that reach beyond layers of the backbone.
REFUSED_SETTINGS = {
    "modules_to_save": "is not needed: heads and projection are always trained and saved",
    "trainable_token_indices": "trains embeddings of single tokens, which is not supported here",
    "layer_replication": "makes another backbone, which the saved model could not be built as",
    "target_parameters": "adapts single parameters, which cannot be merged here; name modules under target_modules",
}
FILE_PREFIX = "base_model.model."  # what PeftModel puts before the backbone's own names


def import_peft(why: str) -> ModuleType:
    """The package peft; an ImportError that names `why` it is needed where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"{why} needs the package peft, which is not installed: pip install peft") from error
    return peft


def has_adapter(backbone: nn.Module) -> bool:
    """Whether adapter layers are on a backbone."""
    return bool(getattr(backbone, "peft_config", None))


def inject_adapter(backbone: PreTrainedModel, adapter_config: Any) -> None:
    """
    Put new adapter layers on a backbone, in place. They are trainable; the backbone's own weights no longer are.

    Args:
        backbone: an encoder without adapter.
        adapter_config: a `peft.PeftConfig` of a kind that is put into layers, such as `LoraConfig`.

    Raises:
        ValueError: there is an adapter already, the kind does not go into layers, no module has the name of a target,
            a setting is one of `REFUSED_SETTINGS`, or starting the adapter changes the backbone's own weights (as
            pissa, olora and others do), which would then be in no file.
    """
    if has_adapter(backbone):
        raise ValueError("The backbone has an adapter already. Merge it first: model.merge_adapter().")
    for key, reason in REFUSED_SETTINGS.items():
        if getattr(adapter_config, key, None):
            raise ValueError(f"The adapter's {key} {reason}. Leave it out.")
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    import_peft("An adapter").inject_adapter_in_model(adapter_config, backbone, ADAPTER_NAME)
    for name, weight in backbone.state_dict().items():
        original = before.get(name.replace(".base_layer.", "."))
        if original is not None and not torch.equal(original, weight):
            raise ValueError(
                f"Starting this adapter changed {name}, a weight of the backbone itself, which an adapter is saved "
                "without. Choose a start that leaves the backbone alone, such as init_lora_weights: true."
            )


def adapter_layers(backbone: PreTrainedModel) -> list[tuple[str, Any]]:
    """peft's layers and their names in the backbone."""
    kind = import_peft("An adapter").tuners.tuners_utils.BaseTunerLayer
    return [(name, layer) for name, layer in backbone.named_modules() if isinstance(layer, kind)]


def take_off_backbone(backbone: PreTrainedModel, fold: bool = True) -> None:
    """
    Take the adapter's layers off a backbone, in place.

    Args:
        backbone: with an adapter.
        fold: whether to fold them into its weights before, so that outputs stay the same up to rounding.

    Raises:
        NotImplementedError: peft cannot merge this kind.
    """
    for name, layer in adapter_layers(backbone):
        if fold:
            layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
    backbone.requires_grad_(True)


def adapter_weights(backbone: PreTrainedModel, state_dict: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    peft = import_peft("An adapter")
    # Not "auto", which asks the Hub for the base's vocabulary. Embeddings that are a target are there all the same.
    return peft.get_peft_model_state_dict(backbone, state_dict, ADAPTER_NAME, save_embedding_layers=False)


def own_weights(backbone: PreTrainedModel) -> set[nn.Parameter]:
    """The backbone's parameters that its adapter is saved without."""
    return {*backbone.parameters()} - {*adapter_weights(backbone, backbone.state_dict(keep_vars=True)).values()}


def write_adapter(
    backbone: PreTrainedModel,
    folder: str | os.PathLike,
    base: str,
    revision: str | None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """
    Write adapter_config.json and adapter_model.safetensors, as `PeftModel.from_pretrained` reads them.

    Args:
        backbone: with an adapter.
        folder: of the saved model; the files go into its folder `adapter`.
        base: Hub id, or name of the folder, of the weights that the adapter was trained on.
        revision: their commit, where they come from the Hub.
        state_dict: of the backbone, where it is gathered elsewhere.
    """
    folder = os.path.join(folder, ADAPTER_FOLDER)
    os.makedirs(folder, exist_ok=True)
    weights = adapter_weights(backbone, state_dict)
    weights = {FILE_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    with open(os.path.join(folder, WEIGHTS_FILE), "wb") as file:  # `save_file` makes it private to its owner
        file.write(save(weights, metadata={"format": "pt"}))
    adapter_config = copy.copy(backbone.peft_config[ADAPTER_NAME])
    adapter_config.base_model_name_or_path, adapter_config.revision = base, revision
    adapter_config.inference_mode = True  # how peft marks what is saved
    adapter_config.save_pretrained(folder)


def cached_commit(name_or_path: str, options: dict[str, Any]) -> str | None:
    """The commit that files of a Hub repository were just read from; `None` for a folder, or what is not cached."""
    where = {name: options.get(name) for name in ("cache_dir", "revision")}
    path = None if os.path.isdir(name_or_path) else try_to_load_from_cache(name_or_path, CONFIG_NAME, **where)
    return extract_commit_hash(path, None) if isinstance(path, str) else None


def _adapter_file(name_or_path: str | os.PathLike, filename: str, options: dict[str, Any]) -> str:
    path = cached_file(
        name_or_path, f"{ADAPTER_FOLDER}/{filename}", _raise_exceptions_for_missing_entries=False, **options
    )
    if path is None:
        raise OSError(f"{name_or_path} was saved as an adapter, but {ADAPTER_FOLDER}/{filename} is missing.")
    return path


def read_weights(
    backbone: PreTrainedModel, name_or_path: str | os.PathLike, options: dict[str, Any] | None = None
) -> None:
    """
    Read the weights of a saved adapter into the layers of an equal one.

    Args:
        backbone: with an adapter of the same settings.
        name_or_path: folder or Hub id of a model saved as an adapter.
        options: how to reach the Hub, such as `revision` and `token`.

    Raises:
        OSError: the file is missing or damaged.
        ValueError: it holds other weights than the adapter has.
    """
    path = _adapter_file(name_or_path, WEIGHTS_FILE, options or {})
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path}: the adapter's weights are damaged ({error}). Download or save them again.") from error
    weights = {name.removeprefix(FILE_PREFIX): weight for name, weight in weights.items()}
    sides = weights, adapter_weights(backbone, None)
    found, expected = ({(name, weight.shape) for name, weight in side.items()} for side in sides)
    different = sorted({name for name, _ in found ^ expected})
    if different:
        raise ValueError(
            f"{name_or_path}: the weights of the adapter do not fit its layers ({', '.join(different[:3])}"
            f"{', ...' if len(different) > 3 else ''}). They should be of equal settings."
        )
    import_peft("An adapter").set_peft_model_state_dict(backbone, weights, ADAPTER_NAME)


def read_adapter(
    backbone: PreTrainedModel, name_or_path: str | os.PathLike, options: dict[str, Any] | None = None
) -> None:
    """Put a saved adapter, settings and weights, on its backbone; arguments as for `read_weights`."""
    peft = import_peft(f"{name_or_path} was saved as an adapter, which")
    adapter_folder = os.path.dirname(_adapter_file(name_or_path, CONFIG_FILE, options or {}))
    adapter_config = peft.PeftConfig.from_pretrained(adapter_folder)
    adapter_config.inference_mode = False
    peft.inject_adapter_in_model(adapter_config, backbone, ADAPTER_NAME)
    read_weights(backbone, name_or_path, options)
