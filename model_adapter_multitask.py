"""The models' part of adapters: putting one on the backbone, switching it, taking it off, saving and opening it.

A model saved as an adapter holds in `model.safetensors` heads and projection only; the backbone's weights stay where
`base_name_or_path` in its config.json says. What peft is called for stands in adapter_multitask.py.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_NAME

from .adapter_multitask import (
    ADAPTER_NAME,
    adapter_layers,
    adapter_weights,
    cached_commit,
    has_adapter,
    import_peft,
    inject_adapter,
    read_adapter,
    take_off_backbone,
    write_adapter,
)
from .backbone_multitask import find_backbone, open_backbone
from .configuration_multitask import public_name
from .staging_multitask import in_place, is_same_folder
from .turns_multitask import changes_model


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
        layers = adapter_layers(self.base_model.backbone)
        return [] if any(layer.disable_adapters for _, layer in layers) else [ADAPTER_NAME]

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """The adapter's weights by their names in the backbone; a ValueError where there is none of this name."""
        self._check_adapter(ADAPTER_NAME if adapter_name is None else adapter_name)
        return adapter_weights(self.base_model.backbone, state_dict)

    def _check_adapter(self, names: list[str] | str = ADAPTER_NAME) -> None:
        """Raise a ValueError where there is no adapter, or where one of other names is asked for."""
        if not has_adapter(self.base_model.backbone):
            raise ValueError("The backbone has no adapter. Put one on: model.add_adapter(peft.LoraConfig(...)).")
        if names not in (ADAPTER_NAME, [ADAPTER_NAME]):
            raise ValueError(f"There is no adapter {names!r}. The model has one, named {ADAPTER_NAME!r}.")

    @changes_model
    def _set_enabled(self, enabled: bool) -> None:
        self._check_adapter()
        for _, layer in adapter_layers(self.base_model.backbone):
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
