"""The tokenizer of a model, and how texts beyond `max_length` are cut.

open_tokenizer         the one that stands beside the weights
own_tokenizer          a model's private copy for `encode` and `predict`, which no caller's truncation changes
tokens_kept_at_start   how a tokenizer cuts: so many tokens stay at the start, the others at the end
truncate_batch         a batch of tensors, cut in that way
ModelTokenizer         the model's part: the property `tokenizer`

`encode`, `predict` and sentence-transformers let the tokenizer cut. Pipelines of transformers and many scripts do not.
`forward` cuts what they hand over in the same way, so that every door gives the same answer.
"""

import os
from copy import deepcopy
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
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


def tokens_kept_at_start(tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> int:
    """
    How many tokens of a text that is too long the tokenizer keeps from its start; what else it keeps ends the text.

    BERT's tokenizer keeps all but one there, and ends with `[SEP]`. A tokenizer that cuts at the left keeps `[CLS]`.
    Without a tokenizer, all come from the start.
    """
    if tokenizer is None:
        return max_length
    is_special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    if tokenizer.truncation_side == "left":
        return is_special.index(0) if 0 in is_special else 0
    return max_length - (is_special[::-1].index(0) if 0 in is_special else 0)


def truncate_batch(
    tensors: dict[str, torch.Tensor], attention_mask: torch.Tensor, max_length: int, kept_at_start: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Cut a batch whose sequences are longer than `max_length`; shorter texts in it keep all their tokens.

    Args:
        tensors: each `(batch, sequence)` or `(batch, sequence, size)`.
        attention_mask: `(batch, sequence)`, 0 for padding, which may stand on either side.
        max_length: so many tokens are kept of a text.
        kept_at_start: so many of them from its start, see `tokens_kept_at_start`; the others from its end.

    Returns the tensors and the mask with `max_length` in place of `sequence`, padding at the right.
    """
    is_token = attention_mask.bool()
    place = is_token.cumsum(dim=1) - 1  # (batch, sequence): of each token in its text
    length = is_token.sum(dim=1, keepdim=True)  # (batch, 1)
    is_kept = is_token & ((place < kept_at_start) | (place >= length - (max_length - kept_at_start)))
    is_kept |= is_token & (length <= max_length)
    kept = (
        (~is_kept).to(torch.int8).argsort(dim=1, stable=True)[:, :max_length]
    )  # (batch, max_length): kept ones first
    cut = {}
    for name, tensor in tensors.items():
        index = kept if tensor.dim() == 2 else kept.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
        cut[name] = tensor.expand(kept.shape[0], *tensor.shape[1:]).gather(1, index)
    return cut, is_kept.gather(1, kept).to(attention_mask.dtype)


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

    def _is_too_long(self, attention_mask: torch.Tensor) -> bool:
        """Whether a text may have more tokens than the model reads; an exported graph takes any length."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return False
        return attention_mask.dim() == 2 and attention_mask.shape[1] > self.config.max_length

    def _truncate(
        self, inputs: dict[str, torch.Tensor], attention_mask: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        max_length = self.config.max_length
        positions = {name: inputs[name][:, :max_length] for name in inputs.keys() & {"position_ids"}}
        inputs = {name: value for name, value in inputs.items() if name not in positions}
        kept_at_start = tokens_kept_at_start(self.tokenizer if self.has_tokenizer else None, max_length)
        inputs, attention_mask = truncate_batch(inputs, attention_mask, max_length, kept_at_start)
        return inputs | positions, attention_mask


__all__ = [
    "ModelTokenizer",
    "is_gone",
    "open_tokenizer",
    "own_tokenizer",
    "token_ids",
    "tokens_kept_at_start",
    "truncate_batch",
]
