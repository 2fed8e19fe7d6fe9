"""Sentences in, vectors out: `encode` and `similarity`.

    pooled_vectors     sentences to vectors before the projection, for training on a frozen backbone
    SentenceEncoding   the model's part: encode and similarity

Input of any length is read in windows; a window's sentences are tokenized (while the window before is computed),
sorted by length and cut into batches by a token budget, and each batch is written to its place in the result. So
results come back in the caller's order, and memory does not grow with the input beyond the result.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from .checks_multitask import check_choice
from .rows_multitask import (
    SENTENCES_FOR_PROGRESS,
    TOKENS_PER_BATCH,
    check_batch_size,
    check_container,
    count_rows,
    length_sorted_batches,
    sentence_windows,
    tokenized_ahead,
    windows_of,
)
from .tokenizer_multitask import own_tokenizer, token_ids

CONVERSIONS = ("numpy", "tensor")


def tokens_per_batch(device: torch.device) -> int:
    """The token budget of a backbone pass on a device."""
    return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])


@torch.no_grad()
def pooled_vectors(model: nn.Module, sentences: Sequence[str], bar: tqdm | None = None) -> np.ndarray:
    """
    What the backbone makes of sentences, before the projection: `(sentences, hidden)`, float32.

    Args:
        model: a [`MultiTaskModel`].
        sentences: longer ones than `config.max_length` tokens are truncated.
        bar: moves on by the sentences of each batch.
    """
    vectors = torch.empty(len(sentences), model.config.backbone_config.hidden_size, dtype=torch.float32, device="cpu")
    ids = model._tokenize(sentences)
    with model._computing():
        for batch in length_sorted_batches([len(row) for row in ids], tokens_per_batch=tokens_per_batch(model.device)):
            vectors[batch] = model._pooled_batch([ids[index] for index in batch]).float().cpu()
            if bar is not None:
                bar.update(len(batch))
    return vectors.numpy()


def _is_embedding(row: Any) -> bool:
    """Whether a row of `similarity` is numbers in a row, not text, nor a list of texts."""
    numbers = isinstance(row, list) and not any(isinstance(value, (str, bytes)) for value in row)
    return numbers or isinstance(row, (np.ndarray, torch.Tensor))


class SentenceEncoding:
    """`encode` and `similarity`, for a model that has a backbone and a tokenizer; mixed into [`MultiTaskModel`]."""

    @torch.no_grad()
    def _embed(
        self, sentences: Iterable[str], batch_size: int | None, show_progress: bool | None, normalize: bool
    ) -> torch.Tensor:
        """Embeddings `(sentences, embedding_dim)`, float32, on the CPU; arguments as of `encode`."""
        check_batch_size(batch_size)
        windows = sentence_windows(sentences)
        total = count_rows(sentences)
        embeddings = self._no_embeddings(total or 0)
        grown = []  # where the length is not known beforehand
        with self._computing(), self._progress(total, show_progress) as bar:
            for window, start in tokenized_ahead(self._tokenize, windows):
                if total is None:
                    place = self._no_embeddings(len(window))
                    grown.append(place)
                else:
                    place = embeddings[start : start + len(window)]
                self._embed_tokens(window, batch_size, bar, place, normalize)
        return torch.cat([embeddings, *grown]) if total is None else embeddings

    def _no_embeddings(self, sentences: int, sides: int | None = None) -> torch.Tensor:
        """Room for embeddings, `(sentences, embedding_dim)` or `(sentences, sides, embedding_dim)`."""
        shape = (sentences, *([] if sides is None else [sides]), self.config.embedding_dim)
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    @staticmethod
    @contextlib.contextmanager
    def _progress(total: int | None, show: bool | None) -> Iterator[tqdm | None]:
        """A bar, where one is shown: making one takes a lock, which a process forked meanwhile would wait for."""
        show = show if show is not None else (total or 0) >= SENTENCES_FOR_PROGRESS
        if not show:
            yield None
            return
        with tqdm(total=total, unit="sentence", desc="Encoding") as bar:
            yield bar

    def _tokenize(self, sentences: list[str]) -> list[list[int]]:
        return token_ids(own_tokenizer(self), sentences, self.config.max_length) if sentences else []

    def _embed_tokens(
        self,
        token_ids: list[list[int]],
        batch_size: int | None,
        bar: tqdm | None,
        place: torch.Tensor,
        normalize: bool = False,
    ) -> None:
        """Write the embeddings of a window's sentences to `place (sentences, embedding_dim)`."""
        lengths = [len(ids) for ids in token_ids]
        for batch in length_sorted_batches(lengths, batch_size, tokens_per_batch(self.device)):
            embedding = self._embed_batch([token_ids[index] for index in batch]).float()  # (batch, embedding_dim)
            place[batch] = (F.normalize(embedding, dim=-1) if normalize else embedding).cpu()
            if bar is not None:
                bar.update(len(batch))

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: str = "numpy",
        show_progress: bool | None = None,
    ) -> np.ndarray | torch.Tensor:
        """
        Sentence embeddings in the caller's order.

        Args:
            sentences: one string, or any number of them: a list, a `datasets` column, a generator. Longer ones than
                `config.max_length` tokens are truncated.
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget. The result does not
                depend on it.
            normalize: whether to scale embeddings to length 1; `None` does what `config.normalize` says.
            convert_to: `"numpy"` for float32 arrays, or `"tensor"` for tensors on the model's device, of its dtype.
            show_progress: whether to show a bar; `None` shows one for long input.

        Returns:
            Embeddings of shape `(sentences, embedding_dim)`, or `(embedding_dim,)` for one string.

        Raises:
            TypeError: this is no list of texts, or something in it is not a string; the message gives its place.
            ValueError: `convert_to` is unknown, or `batch_size` below 1.
        """
        check_choice("convert_to", convert_to, CONVERSIONS)
        is_single = isinstance(sentences, str)
        normalize = self.config.normalize if normalize is None else normalize
        embeddings = self._embed([sentences] if is_single else sentences, batch_size, show_progress, normalize)
        return self._converted(embeddings[0] if is_single else embeddings, convert_to)

    def _converted(self, found: torch.Tensor, convert_to: str, keep_dtype: bool = False) -> np.ndarray | torch.Tensor:
        """A float32 tensor on the CPU as the caller wants it."""
        if convert_to == "numpy":
            return found.numpy()
        return found.to(self._input_device, found.dtype if keep_dtype else self.dtype)

    @torch.no_grad()
    def similarity(
        self,
        a: Sequence[str] | np.ndarray | torch.Tensor,
        b: Sequence[str] | np.ndarray | torch.Tensor,
        convert_to: str = "numpy",
    ) -> np.ndarray | torch.Tensor:
        """
        Cosine of every sentence (or embedding) of `a` with every one of `b`: `(len(a), len(b))`, between -1 and 1.

        Args:
            a, b: sentences, or their embeddings of shape `(n, embedding_dim)`.
            convert_to: `"numpy"` or `"tensor"`, as in `encode`.

        Raises:
            TypeError: a side holds neither only sentences nor only embeddings.
            ValueError: embeddings have another size, or `convert_to` is unknown.
        """
        check_choice("convert_to", convert_to, CONVERSIONS)
        sides = [F.normalize(self._embeddings_of(side), dim=-1) for side in (a, b)]
        return self._converted(sides[0] @ sides[1].T, convert_to)

    def _embeddings_of(self, side: Any) -> torch.Tensor:
        """Embeddings `(n, embedding_dim)` of one side of `similarity`."""
        options = {"dtype": torch.float32, "device": "cpu"}
        if isinstance(side, torch.Tensor) or (isinstance(side, np.ndarray) and side.dtype.kind in "fiub"):
            side = torch.as_tensor(side, **options)
        else:
            if not isinstance(side, str):
                check_container(side)
                side = list(chain.from_iterable(window for _, window in windows_of(side)))
            if isinstance(side, str) or not all(_is_embedding(row) for row in side):
                side = self._embed([side] if isinstance(side, str) else side, None, None, self.config.normalize)
            else:
                rows = [torch.as_tensor(row, **options) for row in side]
                side = torch.stack(rows) if rows else torch.empty(0, **options)
        if side.numel() and side.shape[-1] != self.config.embedding_dim:
            raise ValueError(
                f"similarity: embeddings of shape {tuple(side.shape)}, but the last size should be the model's "
                f"embedding_dim, {self.config.embedding_dim}."
            )
        return side.reshape(-1, self.config.embedding_dim)


__all__ = ["SentenceEncoding", "pooled_vectors", "tokens_per_batch"]
