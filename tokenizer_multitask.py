"""The tokenizer of a model: read when the model is opened, and a copy of its own for `encode` and `predict`.

open_tokenizer   the one that stands beside the weights
own_tokenizer    a model's private copy, which no caller's truncation changes
ModelTokenizer   the model's part: the property `tokenizer`
"""

import os
from copy import deepcopy
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch.nn as nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")  # without any of them there is no tokenizer


class OwnTokenizer(NamedTuple):
    """A private copy, and what tells whether it is still that of the model's tokenizer."""

    copy: PreTrainedTokenizerBase
    source: PreTrainedTokenizerBase
    state: tuple


_OWN: WeakKeyDictionary[nn.Module, OwnTokenizer] = WeakKeyDictionary()
_LOCK = Lock()


def _renew_lock() -> None:
    """In a forked child, where the thread that held the lock does not exist."""
    global _LOCK
    _LOCK = Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


def is_gone(name_or_path: str) -> bool:
    """Whether it is the path of a folder that is no longer there; the Hub would take it for a wrong name."""
    return os.path.isabs(name_or_path) and not os.path.isdir(name_or_path)


def open_tokenizer(
    name_or_path: str, config: PreTrainedConfig, options: dict[str, Any], trust_remote_code: bool = False
) -> PreTrainedTokenizerBase | None:
    """
    The tokenizer that stands beside the weights; `None` where there is none.

    Args:
        name_or_path: folder or Hub id of the model.
        config: of the model.
        options: how to reach the Hub, such as `revision` and `token`.
        trust_remote_code: whether a tokenizer may run code of its own.

    Raises:
        OSError: there is one, but it cannot be read.
    """
    if is_gone(name_or_path):
        return None
    lookup = {f"_raise_exceptions_for_{name}": False for name in ("missing_entries", "connection_errors")}
    if not any(cached_file(name_or_path, filename, **lookup, **options) for filename in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            name_or_path, config=config, trust_remote_code=trust_remote_code, **options
        )
    except Exception as error:  # the reader of tokenizer.json raises no narrower one
        raise OSError(
            f"{name_or_path}: the tokenizer cannot be read ({error}). Download it or save it again. Without any of "
            f"{' and '.join(TOKENIZER_FILES)}, the model opens without a tokenizer."
        ) from error


def own_tokenizer(model: nn.Module) -> PreTrainedTokenizerBase:
    """
    A private copy of `model.tokenizer` that truncates at `config.max_length`.

    How a fast tokenizer truncates and pads is a part of its state, which every call with other arguments changes, also
    one in another thread. The copy is made anew where the tokenizer was replaced or has other tokens. Tokenizers
    without such state, in Python, are not copied.
    """
    source = model.tokenizer
    if not source.is_fast:
        return source
    state = (len(source), source.truncation_side, model.config.max_length)
    kept = _OWN.get(model)
    if kept is None or kept.source is not source or kept.state != state:
        with _LOCK:
            kept = _OWN.get(model)
            if kept is None or kept.source is not source or kept.state != state:
                kept = OwnTokenizer(deepcopy(source), source, state)
                token_ids(kept.copy, [""], model.config.max_length)  # sets its truncation before threads share it
                _OWN[model] = kept
    return kept.copy


def token_ids(tokenizer: PreTrainedTokenizerBase, sentences: list[str], max_length: int) -> list[list[int]]:
    """Token ids of sentences, at most `max_length` of each."""
    encoded = tokenizer(
        sentences, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=False
    )
    return encoded["input_ids"]


class ModelTokenizer:
    """The tokenizer of a model with `config`, `_tokenizer`, and `_hub_options` to reach the repository."""

    def __dir__(self) -> list[str]:
        """Without `tokenizer` where there is none: `torch.jit.trace` asks for all that is listed."""
        return [name for name in super().__dir__() if name != "tokenizer" or self.has_tokenizer]

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def _find_tokenizer(self, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
        """The tokenizer, read from where the model was opened unless there is one already; `None` without any."""
        if self._tokenizer is None and self.config.name_or_path:
            found = open_tokenizer(self.config.name_or_path, self.config, self._hub_options, trust_remote_code)
            if found is not None:
                self.tokenizer = found
        return self._tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model. One that was missing when it was opened is looked for again."""
        if self._find_tokenizer() is None:
            where = f", and there is none in {self.config.name_or_path}" if self.config.name_or_path else ""
            raise ValueError(
                f"The model has no tokenizer yet{where}. Set model.tokenizer = AutoTokenizer.from_pretrained(...)."
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.model_max_length = self.config.max_length
        self._tokenizer = tokenizer


__all__ = ["ModelTokenizer", "is_gone", "open_tokenizer", "own_tokenizer", "token_ids"]
