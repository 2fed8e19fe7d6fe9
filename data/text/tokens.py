"""How many tokens the sentences of a data set have, counted once and kept beside the data set.

tokenizer_state                    everything that decides which tokens a sentence becomes
warn_of_tokens_without_embedding   before a model is trained on them
TokenCounter                       tokens of sentences, and of the rows of a data set
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..cache.arrays import batches, cached_array

logger = logging.getLogger(__name__)

BATCH_SIZE = 2048
MOST_REMEMBERED = 200_000  # sentences


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Everything that decides which tokens a sentence becomes."""
    if tokenizer.is_fast:
        backend = deepcopy(tokenizer.backend_tokenizer)
        backend.no_truncation()  # these two only tell how it was called last
        backend.no_padding()
        state: Any = backend.to_str()
    else:
        options = {name: value for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
        state = [sorted(tokenizer.get_vocab().items()), options]
    return json.dumps(
        [type(tokenizer).__name__, tokenizer.truncation_side, state], sort_keys=True, default=str
    ).encode()


def warn_of_tokens_without_embedding(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Say so where a tokenizer has ids beyond the rows of the embeddings; nothing else names them on a GPU."""
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        logger.warning(
            f"The tokenizer has tokens up to the id {highest}, but the model has embeddings for {rows} tokens only. A "
            "text with one of the others ends training, on a GPU with an error that does not say so. Give them "
            "embeddings: model.resize_token_embeddings(len(model.tokenizer))."
        )


def _unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the tokenizer does not know; None if it knows everything, as one of bytes does."""
    unknown = tokenizer.unk_token_id
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return None if unknown in (*ends, tokenizer.pad_token_id) else unknown


class TokenCounter:
    """
    Counts the tokens of sentences, untruncated, with special ones, and how many of them are unknown.

    A sentence that was counted lately is remembered: pairs often repeat one of their sentences.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.unknown = tokenizer, _unknown_id(tokenizer)
        self._known: dict[str, tuple[int, int]] = {}

    def count(self, sentences: Sequence[str]) -> list[tuple[int, int]]:
        """Of each sentence, its tokens and the unknown ones among them."""
        if len(self._known) > MOST_REMEMBERED:
            self._known.clear()
        new = [text for text in dict.fromkeys(sentences) if text not in self._known]
        for start in range(0, len(new), BATCH_SIZE):
            batch = new[start : start + BATCH_SIZE]
            found = zip(batch, self._input_ids(batch), strict=True)
            self._known.update((text, (len(ids), ids.count(self.unknown))) for text, ids in found)
        return [self._known[text] for text in sentences]

    def _input_ids(self, batch: list[str]) -> Iterator[list[int]]:
        if self._backend is not None:
            return (found.ids for found in self._backend.encode_batch_fast(batch))
        options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return iter(self.tokenizer(batch, truncation=False, padding=False, **options)["input_ids"])

    @cached_property
    def _backend(self) -> Tokenizer | None:
        """What a fast tokenizer asks, without truncation and padding: only ids are wanted, which is twice as fast."""
        if not getattr(self.tokenizer, "is_fast", False):
            return None
        backend = deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        return backend

    def of_rows(self, rows: Dataset) -> np.ndarray:
        """`(rows, sentences of a row, 2)`, int32: tokens and unknown ones."""

        def blocks() -> Iterator[np.ndarray]:
            for batch in batches(rows, ["sentences"]):
                sentences = [text for row in batch["sentences"].to_pylist() for text in row]
                yield np.array(self.count(sentences), np.int32).reshape(len(batch), -1, 2)

        return cached_array(rows, f"tokens-{self._digest}" if rows.cache_files else "tokens", blocks)

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(tokenizer_state(self.tokenizer)).hexdigest()[:32]


__all__ = ["TokenCounter", "tokenizer_state"]
