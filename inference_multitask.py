"""Sentences in, arrays out: what a person calls on a finished model.

    SentenceInference   encode, predict and similarity, for a model that has a backbone, a tokenizer and task logits

Sentences are sorted by length and cut into batches by a token budget; results come back in the caller's order.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

# Tokens of one backbone pass in `encode`: enough to fill the matrix products, little enough to stay in the caches.
TOKENS_PER_BATCH = 2048
# Sentences that are tokenized and sorted by length together; memory does not grow with the input beyond this.
SENTENCES_PER_WINDOW = 16384
# From so many sentences on, a progress bar appears by itself.
SENTENCES_FOR_PROGRESS = 2000


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int | None = None, tokens_per_batch: int = TOKENS_PER_BATCH
) -> Iterator[list[int]]:
    """
    Indices in batches of similar length, longest first.

    Args:
        lengths: tokens of each sentence.
        batch_size: at most so many sentences a batch; `None` leaves it to the token budget alone.
        tokens_per_batch: at most so many tokens a batch, padding included (a longer sentence stands alone).
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch
        if full or len(batch) == batch_size:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def check_sentences(sentences: Sequence[Any]) -> None:
    """Raise a TypeError that gives the place of the first thing that is not a string."""
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise TypeError(f"Sentence {index} is {sentence!r} ({type(sentence).__name__}), but should be a string.")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode restored afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class SentenceInference:
    """`encode`, `predict` and `similarity`; mixed into [`MultiTaskModel`]."""

    @torch.no_grad()
    def embed(
        self, sentences: Sequence[str], batch_size: int | None = None, show_progress: bool | None = None
    ) -> torch.Tensor:
        """
        Embeddings as the heads read them, not normalised: `(sentences, embedding_dim)`, float32, on the CPU.

        Args:
            sentences: any number of strings; longer ones than `config.max_length` tokens are truncated.
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
            show_progress: whether to show a bar; `None` shows one for long input.
        """
        check_sentences(sentences)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but should be at least 1, or None for a token budget.")
        embeddings = torch.empty(len(sentences), self.config.embedding_dim)
        show = show_progress if show_progress is not None else len(sentences) >= SENTENCES_FOR_PROGRESS
        with evaluating(self), tqdm(total=len(sentences), unit="sentence", desc="Encoding", disable=not show) as bar:
            for start in range(0, len(sentences), SENTENCES_PER_WINDOW):
                window = list(sentences[start : start + SENTENCES_PER_WINDOW])
                token_ids = self.tokenizer(
                    window, truncation=True, max_length=self.config.max_length, return_attention_mask=False
                )["input_ids"]
                for batch in length_sorted_batches([len(ids) for ids in token_ids], batch_size):
                    inputs = self._pad([token_ids[index] for index in batch])
                    _, embedding = self.states_and_embedding(**inputs)  # (batch, embedding_dim)
                    embeddings[[start + index for index in batch]] = embedding.float().cpu()
                    bar.update(len(batch))
        return embeddings

    def _pad(self, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids of different lengths to `input_ids` and `attention_mask` of shape `(batch, sequence)`."""
        longest = max(map(len, token_ids))
        pad_id = self.tokenizer.pad_token_id or 0
        input_ids = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
        attention_mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
        return {
            "input_ids": torch.tensor(input_ids, device=self.device),
            "attention_mask": torch.tensor(attention_mask, device=self.device),
        }

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: str = "numpy",
        show_progress: bool | None = None,
    ) -> np.ndarray | torch.Tensor:
        """
        Sentence embeddings in the caller's order.

        Args:
            sentences: one string, or any number of them. Longer ones than `config.max_length` tokens are truncated.
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget. The result does not
                depend on it.
            normalize: whether to scale embeddings to length 1; `None` does what `config.normalize` says.
            convert_to: `"numpy"` or `"tensor"`.
            show_progress: whether to show a bar; `None` shows one for long input.

        Returns:
            float32 of shape `(sentences, embedding_dim)`, or `(embedding_dim,)` for one string.

        Raises:
            TypeError: something is not a string; the message gives its place.
            ValueError: `convert_to` is unknown.
        """
        if convert_to not in ("numpy", "tensor"):
            raise ValueError(f"convert_to is {convert_to!r}, but should be 'numpy' or 'tensor'.")
        is_single = isinstance(sentences, str)
        embeddings = self.embed([sentences] if is_single else sentences, batch_size, show_progress)
        if self.config.normalize if normalize is None else normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        embeddings = embeddings[0] if is_single else embeddings
        return embeddings.numpy() if convert_to == "numpy" else embeddings

    @torch.no_grad()
    def predict(
        self,
        sentences: str | tuple[str, str] | Sequence[str] | Sequence[tuple[str, str]],
        tasks: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> dict[str, dict[str, Any]]:
        """
        Every task's answer from one pass of the backbone.

        Args:
            sentences: one string or a list of them, or one pair `(str, str)` or a list of pairs for the tasks that
                compare two sentences.
            tasks: names of the tasks to answer; `None` answers every task of the given kind (single or pair).
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
            show_progress: whether to show a bar; `None` shows one for long input.

        Returns:
            By task: `labels` and `probabilities (rows, num_labels)` for classification (`labels` is a list per row for
            multi-label tasks, by the thresholds of the configuration), `values (rows,)` for regression, and `scores
            (rows,)`, cosines, for similarity and contrastive tasks. One string or pair gives single values.

        Raises:
            TypeError: something is neither a string nor a pair of strings.
            ValueError: a task is unknown, or reads the other kind of input.
        """
        is_single = isinstance(sentences, (str, tuple))
        rows = [sentences] if is_single else list(sentences)
        _, answers = self.embed_and_predict(rows, tasks, batch_size, show_progress)
        if is_single:
            answers = {name: {key: value[0] for key, value in answer.items()} for name, answer in answers.items()}
        return answers

    @torch.no_grad()
    def embed_and_predict(
        self,
        rows: Sequence[str] | Sequence[tuple[str, str]],
        tasks: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> tuple[np.ndarray, dict[str, dict[str, Any]]]:
        """
        Embeddings and answers of rows (strings, or pairs of strings) from the same one pass.

        Arguments and answers are those of `predict` for a list; the embeddings are those of `encode`: `(rows,
        embedding_dim)`, or `(rows, 2, embedding_dim)` for pairs.
        """
        is_pair = bool(rows) and isinstance(rows[0], (tuple, list))
        names = self._tasks_for(tasks, is_pair, check_kind=bool(rows))

        if is_pair:
            for index, row in enumerate(rows):
                is_good = isinstance(row, (tuple, list)) and len(row) == 2
                if not is_good or not all(isinstance(sentence, str) for sentence in row):
                    raise TypeError(f"Row {index} is {row!r}, but should be a pair of strings.")
        flat = [sentence for row in rows for sentence in row] if is_pair else rows
        check_sentences(flat)
        distinct = list(dict.fromkeys(flat))
        embeddings = self.embed(distinct, batch_size, show_progress)
        position = {sentence: index for index, sentence in enumerate(distinct)}
        index = torch.tensor([position[sentence] for sentence in flat], dtype=torch.long)
        index = index.view(-1, 2) if is_pair else index  # (rows,) or (rows, 2)

        answers = {name: self._answer(name, embeddings, index) for name in names}
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return embeddings[index].numpy(), answers

    def _tasks_for(self, tasks: str | Sequence[str] | None, is_pair: bool, check_kind: bool = True) -> list[str]:
        """The named tasks, or all that read this kind of input; a ValueError for one that does not."""
        if tasks is None:
            return [name for name, settings in self.config.tasks.items() if settings["pair"] == is_pair]
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        self._check_tasks(names)
        for name in names:
            if check_kind and self.config.tasks[name]["pair"] != is_pair:
                found, right = ("pairs", "single sentences") if is_pair else ("single sentences", "pairs (str, str)")
                raise ValueError(f"Task {name!r} reads {right}, but was given {found}.")
        return names

    def _answer(self, name: str, embeddings: torch.Tensor, index: torch.Tensor) -> dict[str, Any]:
        """One task's answers for rows of embeddings: `(rows,)` or `(rows, 2)` into `(sentences, embedding_dim)`."""
        settings = self.config.tasks[name]
        with evaluating(self):
            chunks = []
            for rows in index.split(SENTENCES_PER_WINDOW):
                chosen, places = rows.unique(return_inverse=True)
                chunk = embeddings[chosen].to(self.device, self.dtype)
                chunks.append(self.task_logits(chunk, name, {name: places.to(self.device)})[name].float().cpu())
            logits = torch.cat(chunks)
        if name not in self.heads:
            return {"scores": logits.numpy()}
        if settings["problem_type"] == "regression":
            return {"values": logits.numpy()}
        labels = settings["labels"]
        if settings["problem_type"] == "multi_label_classification":
            probabilities = logits.sigmoid()
            chosen = probabilities >= torch.tensor(settings["thresholds"])
            names = [
                [label for label, is_chosen in zip(labels, row, strict=True) if is_chosen] for row in chosen.tolist()
            ]
        else:
            probabilities = logits.softmax(dim=-1)
            names = [labels[best] for best in probabilities.argmax(dim=-1).tolist()]
        return {"labels": names, "probabilities": probabilities.numpy()}

    @torch.no_grad()
    def similarity(self, a: Sequence[str] | np.ndarray, b: Sequence[str] | np.ndarray) -> np.ndarray:
        """
        Cosine of every sentence (or embedding) of `a` with every one of `b`: float32 of shape `(len(a), len(b))`.

        Args:
            a, b: sentences, or their embeddings of shape `(n, embedding_dim)`.
        """
        sides = []
        for side in (a, b):
            if isinstance(side, str) or (len(side) and isinstance(side[0], str)):
                side = self.encode([side] if isinstance(side, str) else side)
            side = torch.as_tensor(side, dtype=torch.float32, device="cpu")
            if side.numel() and side.shape[-1] != self.config.embedding_dim:
                raise ValueError(
                    f"similarity: embeddings of shape {tuple(side.shape)}, but the last size should be the model's "
                    f"embedding_dim, {self.config.embedding_dim}."
                )
            side = side.reshape(-1, self.config.embedding_dim)
            sides.append(F.normalize(side, dim=-1))
        return (sides[0] @ sides[1].T).numpy()
