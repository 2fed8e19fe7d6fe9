"""Adapters on the backbone (LoRA and friends, through peft): put on, merged, saved and opened.

    inject_adapter       puts new adapter layers on a backbone, whose own weights stay as they are
    take_off_backbone    takes them off, folded into the backbone's weights or not: peft is no longer needed
    write_adapter        writes peft's own two files into the folder `adapter` of a saved model
    read_adapter         puts a saved adapter on the backbone it was trained on
    read_weights         only its weights, into layers that are there already
    BackboneAdapter      the models' part: putting an adapter on, switching it, taking it off, saving and opening

A model saved as an adapter holds in `model.safetensors` heads and projection only; the backbone's weights stay where
`base_name_or_path` in its config.json says. The two files are not in the root of the repository, because there an
adapter_config.json makes AutoModel open the base instead of a repository on the Hub.

peft is needed only here, and only where a model has an adapter.
"""

import contextlib
import copy
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .backbone_multitask import find_backbone, open_backbone
from .configuration_multitask import public_name
from .staging_multitask import in_place, is_same_folder
from .turns_multitask import changes_model

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


def _adapter_layers(backbone: PreTrainedModel) -> list[tuple[str, Any]]:
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
    for name, layer in _adapter_layers(backbone):
        if fold:
            layer.merge()
        backbone.set_submodule(name, layer.get_base_layer())
    del backbone.peft_config
    backbone.requires_grad_(True)


def _weights_of(backbone: PreTrainedModel, state_dict: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    peft = import_peft("An adapter")
    # Not "auto", which asks the Hub for the base's vocabulary. Embeddings that are a target are there all the same.
    return peft.get_peft_model_state_dict(backbone, state_dict, ADAPTER_NAME, save_embedding_layers=False)


def own_weights(backbone: PreTrainedModel) -> set[nn.Parameter]:
    """The backbone's parameters that its adapter is saved without."""
    return {*backbone.parameters()} - {*_weights_of(backbone, backbone.state_dict(keep_vars=True)).values()}


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
    weights = _weights_of(backbone, state_dict)
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
    sides = weights, _weights_of(backbone, None)
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


class BackboneAdapter:
    """
    What a model needs to have an adapter on its backbone; expects `config`, `base_model.backbone` and `HeadsOrigin`.

    With an adapter, `save_pretrained` writes it beside heads and projection, and leaves the backbone's weights out.
    """

    @changes_model
    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """
        Put a new adapter on the backbone: it is trainable, the backbone's own weights no longer are.

        Its base is what the model was started or opened from, whose weights should not have changed since.

        Args:
            adapter_config: a `peft.PeftConfig` of a kind that is put into layers, such as `LoraConfig`.
            adapter_name: only `"default"`: a model has one adapter, and files do not hold its name.

        Raises:
            ValueError: there is an adapter already, it does not fit or has another name, or the model was not started
                from anything.
            ImportError: peft is not installed.
        """
        if adapter_name not in (None, ADAPTER_NAME):
            raise ValueError(
                f"adapter_name is {adapter_name!r}, but a model has one adapter, named {ADAPTER_NAME!r}, and files do "
                "not hold its name. Leave adapter_name out."
            )
        opened_from = self.config.name_or_path
        base = opened_from or self.config.backbone_config.name_or_path
        if not base:
            raise ValueError("An adapter needs a base: start the model with from_backbone or from_pretrained.")
        with self._same_embedding():
            inject_adapter(self.base_model.backbone, adapter_config)
        self.config.base_name_or_path = os.path.abspath(base) if os.path.isdir(base) else base
        self.config.base_revision = cached_commit(base, self.base_model._hub_options if opened_from else {})
        self._leave_out_backbone()

    @changes_model
    def merge_adapter(self) -> None:
        """
        Fold the adapter into the backbone: a plain model, with the same outputs up to rounding.

        Raises:
            ValueError: there is no adapter, or it is disabled.
        """
        if not self.active_adapters():
            raise ValueError(
                "The adapter is disabled, so that folding it in would change every output. Switch it on first, "
                "model.enable_adapters(), or take it off: model.delete_adapter()."
            )
        with self._same_embedding():
            take_off_backbone(self.base_model.backbone)
        self._forget_base()

    @changes_model
    def delete_adapter(self, adapter_names: list[str] | str = ADAPTER_NAME) -> None:
        """
        Take the adapter off the backbone, whose own weights stay as they are and train again.

        Raises:
            ValueError: there is no adapter, or none of this name.
        """
        self._check_adapter(adapter_names)
        take_off_backbone(self.base_model.backbone, fold=False)
        self._forget_base()

    def disable_adapters(self) -> None:
        """Compute without the adapter, which stays on the backbone; a ValueError where there is none."""
        self._set_enabled(False)

    def enable_adapters(self) -> None:
        """Compute with the adapter again; a ValueError where there is none."""
        self._set_enabled(True)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """The same as `enable_adapters`: there is only one. A ValueError where it has another name."""
        self._check_adapter(adapter_name)
        self._set_enabled(True)

    def active_adapters(self) -> list[str]:
        """The adapter's name in a list, empty while it is disabled; a ValueError where there is none."""
        self._check_adapter()
        layers = _adapter_layers(self.base_model.backbone)
        return [] if any(layer.disable_adapters for _, layer in layers) else [ADAPTER_NAME]

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """The adapter's weights by their names in the backbone; a ValueError where there is none of this name."""
        self._check_adapter(ADAPTER_NAME if adapter_name is None else adapter_name)
        return _weights_of(self.base_model.backbone, state_dict)

    def _check_adapter(self, names: list[str] | str = ADAPTER_NAME) -> None:
        """Raise a ValueError where there is no adapter, or where one of other names is asked for."""
        if not has_adapter(self.base_model.backbone):
            raise ValueError("The backbone has no adapter. Put one on: model.add_adapter(peft.LoraConfig(...)).")
        if names not in (ADAPTER_NAME, [ADAPTER_NAME]):
            raise ValueError(f"There is no adapter {names!r}. The model has one, named {ADAPTER_NAME!r}.")

    @changes_model
    def _set_enabled(self, enabled: bool) -> None:
        self._check_adapter()
        for _, layer in _adapter_layers(self.base_model.backbone):
            layer.enable_adapters(enabled)

    def _forget_base(self) -> None:
        """The backbone's weights are saved with the model again."""
        self.config.base_name_or_path = self.config.base_revision = None
        self._leave_out_backbone(False)

    @property
    def _backbone_prefix(self) -> str:
        """What the names of the backbone's weights begin with."""
        return "backbone." if self.base_model is self else f"{self.base_model_prefix}.backbone."

    def _leave_out_backbone(self, leave_out: bool = True) -> None:
        """Whether transformers leaves the backbone's weights out in saving, and does not miss them in loading."""
        names = [name for name in self.state_dict() if name.startswith(self._backbone_prefix)]
        self._keys_to_ignore_on_save = set(names if leave_out else ())

    def _save_adapter(self, folder: str | os.PathLike, state_dict: dict[str, torch.Tensor] | None) -> None:
        """Save the adapter beside heads and projection, where there is one."""
        if not has_adapter(self.base_model.backbone):
            return
        if is_same_folder(self.config.base_name_or_path, in_place(folder)):
            raise ValueError(
                f"{in_place(folder)} holds the weights that the adapter was trained on, which would be written over. "
                "Save to another folder, or fold the adapter in first: model.merge_adapter()."
            )
        known, rows = self.base_model._vocab_size_of_base, self.config.vocab_size
        if rows != known:
            raise ValueError(
                f"The vocabulary was resized to {rows} rows, but the adapter's base {self.config.base_name_or_path} "
                f"has {known}, and an adapter is saved without them. Fold the adapter in first: "
                "model.merge_adapter(). Or resize the model without adapter, save it, and put the adapter on what is "
                "opened from there."
            )
        prefix, state_dict = self._backbone_prefix, state_dict or self.state_dict()
        of_backbone = {
            name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)
        }
        if len(of_backbone) == len(state_dict):  # transformers writes no file without weights, but looks for one
            os.makedirs(folder, exist_ok=True)
            save_file({}, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        base, revision = public_name(self.config.base_name_or_path), self.config.base_revision
        write_adapter(self.base_model.backbone, folder, base, revision, of_backbone)

    def _check_can_push(self) -> None:
        """Raise a ValueError where the adapter's base is a folder: nobody else has it."""
        base = self.config.base_name_or_path
        if base and os.path.isabs(base):
            raise ValueError(
                f"The adapter was trained on the folder {base}, which nobody else has, so the model would not open "
                "from the Hub. Fold the adapter in first, model.merge_adapter(), or push the base and train on that."
            )

    @contextlib.contextmanager
    def _base_relative_to(self, folder: str | os.PathLike) -> Iterator[None]:
        """Inside, a base that is a folder is named as seen from the place of `folder`, in which the model is saved."""
        base = self.config.base_name_or_path
        if base and os.path.isdir(base):
            relative = os.path.relpath(os.path.realpath(base), os.path.realpath(in_place(folder))).replace(os.sep, "/")
            self.config.base_name_or_path = relative if relative.startswith(".") else f"./{relative}"
        try:
            yield
        finally:
            self.config.base_name_or_path = base

    def _open_adapter(self, name_or_path: str | os.PathLike, options: dict[str, Any]) -> None:
        """
        Load the backbone from where config.json says, and put the adapter on that lies beside it.

        Whoever trusts the adapter need not know its base: nothing there is run or unpickled.
        """
        import_peft(f"{name_or_path} was saved as an adapter, which")
        model, config, device, dtype = self.base_model, self.config, self.device, self.dtype
        if config.base_name_or_path.startswith("."):  # as no Hub id does
            base = os.path.join(os.path.realpath(name_or_path), config.base_name_or_path)
            config.base_name_or_path = os.path.normpath(base)
        base = config.base_name_or_path
        reached = {name: options[name] for name in ("token", "cache_dir") if name in options}
        reached["revision"] = config.base_revision
        try:
            path = find_backbone(base)
            if is_same_folder(path, name_or_path):
                raise ValueError("that is the folder itself.")
            found, _ = PreTrainedConfig.get_config_dict(path, **reached)
            if found.get("model_type") == config.model_type:
                opened = type(model).from_pretrained(path, dtype=dtype, trust_remote_code=False, **reached)
                if has_adapter(opened.backbone):
                    opened.merge_adapter()
                model.backbone = opened.backbone
            else:
                model.backbone = open_backbone(path, config.backbone_config, dtype, **reached)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name_or_path} was saved as an adapter on {base}, which cannot be opened: {error}"
            ) from error
        config.backbone_config = model.backbone.config
        config.backbone_config._name_or_path = base
        model._adopt_backbone()
        read_adapter(model.backbone, name_or_path, options)
        model.backbone.to(device, dtype).eval()
        self._leave_out_backbone()
