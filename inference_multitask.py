"""Sentences in, arrays out: what a person calls on a finished model.

    SentenceInference   encode, predict and similarity, for a model that has a backbone, a tokenizer and task logits

Input of any length is read in windows; a window's sentences are tokenized (while the window before is computed),
sorted by length and cut into batches by a token budget, and each batch is written to its place in the result. So
results come back in the caller's order, and memory does not grow with the input beyond the result.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from .padding_free_multitask import pack, pool_row, row_states
from .prepacked_multitask import prepacked

# Tokens of one backbone pass in `encode`, by device. On a CPU enough to fill the matrix products and little enough to
# stay in the caches, as measured. A GPU takes many more to be busy; what is best there was not measured.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
# Sentences that are tokenized and sorted by length together.
SENTENCES_PER_WINDOW = 16384
# From so many sentences on, a progress bar appears by itself.
SENTENCES_FOR_PROGRESS = 2000


def length_sorted_batches(
    lengths: Sequence[int], batch_size: int | None = None, tokens_per_batch: int = TOKENS_PER_BATCH["cpu"]
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


def check_sentences(sentences: Sequence[Any], start: int = 0) -> None:
    """Raise a TypeError that gives the place (counted from `start`) of the first thing that is not a string."""
    for index, sentence in enumerate(sentences, start):
        if not isinstance(sentence, str):
            raise TypeError(f"Sentence {index} is {sentence!r} ({type(sentence).__name__}), but should be a string.")


def check_batch_size(batch_size: int | None) -> None:
    """Raise a ValueError for what is no number of sentences."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but should be at least 1, or None for a token budget.")


def windows_of(rows: Iterable[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Rows in lists of at most `SENTENCES_PER_WINDOW`, each with the place of its first row."""
    start, iterator = 0, iter(rows)
    while window := list(islice(iterator, SENTENCES_PER_WINDOW)):
        yield start, window
        start += len(window)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Eval mode inside, each module's own mode restored afterwards, also after an error; gives all modules."""
    modules = [model]
    for module in modules:  # `model.modules()` takes twice as long, which tells for a single sentence
        modules.extend(child for child in module._modules.values() if child is not None)
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield modules
    finally:
        for module in training:
            module.training = True


def check_rows(rows: Sequence[Any], is_pair: bool, start: int = 0) -> None:
    """As `check_sentences`, also for pairs of strings."""
    if not is_pair:
        check_sentences(rows, start)
        return
    for index, row in enumerate(rows, start):
        is_good = isinstance(row, (tuple, list)) and len(row) == 2
        if not is_good or not all(isinstance(sentence, str) for sentence in row):
            raise TypeError(f"Row {index} is {row!r}, but should be a pair of strings.")


class SentenceInference:
    """`encode`, `predict` and `similarity`; mixed into [`MultiTaskModel`]."""

    @property
    def tokens_per_batch(self) -> int:
        """The token budget of a backbone pass on the model's device."""
        return TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cpu"])

    @property
    def _input_device(self) -> torch.device:
        """Where inputs are made. The weights of an offloaded model are nowhere until its hooks bring them in."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    @torch.no_grad()
    def embed(
        self,
        sentences: Iterable[str],
        batch_size: int | None = None,
        show_progress: bool | None = None,
        normalize: bool = False,
    ) -> torch.Tensor:
        """
        Embeddings as the heads read them: `(sentences, embedding_dim)`, float32, on the CPU.

        Args:
            sentences: any number of strings; longer ones than `config.max_length` tokens are truncated.
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
            show_progress: whether to show a bar; `None` shows one for long input.
            normalize: whether to scale them to length 1.
        """
        check_batch_size(batch_size)
        if isinstance(sentences, (list, tuple)):
            check_sentences(sentences)  # all of them before the first is computed

        def checked() -> Iterator[tuple[list[str], int]]:
            for start, window in windows_of(sentences):
                check_sentences(window, start)
                yield window, start

        total = len(sentences) if hasattr(sentences, "__len__") else None
        embeddings = torch.empty(total or 0, self.config.embedding_dim)
        grown = []  # where the length is not known beforehand
        with evaluating(self) as modules, prepacked(modules), self._progress(total, show_progress) as bar:
            for token_ids, start in self._tokenize_ahead(checked()):
                if total is None:
                    place = torch.empty(len(token_ids), self.config.embedding_dim)
                    grown.append(place)
                else:
                    place = embeddings[start : start + len(token_ids)]
                self._embed_tokens(token_ids, batch_size, bar, place, normalize)
        return torch.cat([embeddings, *grown]) if total is None else embeddings

    @staticmethod
    def _progress(total: int | None, show: bool | None) -> tqdm:
        show = show if show is not None else (total or 0) >= SENTENCES_FOR_PROGRESS
        return tqdm(total=total, unit="sentence", desc="Encoding", disable=not show)

    def _tokenize_ahead(self, windows: Iterator[tuple[list[str], Any]]) -> Iterator[tuple[list[list[int]], Any]]:
        """Token ids in place of each window's sentences; the next window is tokenized while one is worked on."""
        sentences, companion = next(windows, ([], None))
        token_ids = self._tokenize(sentences)
        with ThreadPoolExecutor(max_workers=1) as thread:
            for sentences, next_companion in windows:
                following = thread.submit(self._tokenize, sentences)
                yield token_ids, companion
                token_ids, companion = following.result(), next_companion
        if token_ids:
            yield token_ids, companion

    def _tokenize(self, sentences: list[str]) -> list[list[int]]:
        if not sentences:
            return []
        return self.tokenizer(
            sentences,
            truncation=True,
            max_length=self.config.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def _embed_tokens(
        self,
        token_ids: list[list[int]],
        batch_size: int | None,
        bar: tqdm,
        place: torch.Tensor,
        normalize: bool = False,
    ) -> None:
        """Write the embeddings of a window's sentences to `place (sentences, embedding_dim)`."""
        lengths = [len(ids) for ids in token_ids]
        for batch in length_sorted_batches(lengths, batch_size, self.tokens_per_batch):
            pooled = self.pooled_batch([token_ids[index] for index in batch])  # (batch, hidden)
            embedding = self.project(pooled).float()  # (batch, embedding_dim)
            place[batch] = (F.normalize(embedding, dim=-1) if normalize else embedding).cpu()
            bar.update(len(batch))

    def pooled_batch(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Pooled vectors `(batch, hidden)` of sentences sorted by length, from one pass of the backbone."""
        if self.packs():
            row = pack(self.backbone, token_ids)
            return pool_row(row_states(self.backbone, row), row.length_groups, self.config.pooling)
        longest = max(map(len, token_ids))
        pad_id = self.tokenizer.pad_token_id or 0
        input_ids = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
        attention_mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
        _, pooled = self.states_and_pooled(
            input_ids=torch.tensor(input_ids, device=self._input_device),
            attention_mask=torch.tensor(attention_mask, device=self._input_device),
        )
        return pooled

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
        normalize = self.config.normalize if normalize is None else normalize
        embeddings = self.embed([sentences] if is_single else sentences, batch_size, show_progress, normalize)
        embeddings = embeddings[0] if is_single else embeddings
        return embeddings.numpy() if convert_to == "numpy" else embeddings

    @torch.no_grad()
    def predict(
        self,
        sentences: str | tuple[str, str] | Iterable[str] | Iterable[tuple[str, str]],
        tasks: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> dict[str, dict[str, Any]]:
        """
        Every task's answer from one pass of the backbone.

        Args:
            sentences: one string or any number of them (a list, a `datasets` column, a generator), or one pair
                `(str, str)` or any number of pairs for the tasks that compare two sentences.
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
        rows = [sentences] if is_single else sentences
        _, answers = self._answer_rows(rows, tasks, batch_size, show_progress, keep_embeddings=False)
        if is_single:
            answers = {name: {key: value[0] for key, value in answer.items()} for name, answer in answers.items()}
        return answers

    @torch.no_grad()
    def embed_and_predict(
        self,
        rows: Iterable[str] | Iterable[tuple[str, str]],
        tasks: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> tuple[np.ndarray, dict[str, dict[str, Any]]]:
        """
        Embeddings and answers of rows (strings, or pairs of strings) from the same one pass.

        Arguments and answers are those of `predict` for a list; the embeddings are those of `encode`: `(rows,
        embedding_dim)`, or `(rows, 2, embedding_dim)` for pairs.
        """
        embeddings, answers = self._answer_rows(rows, tasks, batch_size, show_progress, keep_embeddings=True)
        if self.config.normalize:
            embeddings = F.normalize(embeddings, dim=-1)
        return embeddings.numpy(), answers

    def _answer_rows(
        self,
        rows: Iterable[Any],
        tasks: str | Sequence[str] | None,
        batch_size: int | None,
        show_progress: bool | None,
        keep_embeddings: bool,
    ) -> tuple[torch.Tensor | None, dict[str, dict[str, Any]]]:
        """Embeddings, not normalised, where they are to be kept, and answers of rows."""
        check_batch_size(batch_size)
        total = len(rows) if hasattr(rows, "__len__") else None
        windows = windows_of(rows)
        start, first = next(windows, (0, []))
        is_pair = bool(first) and isinstance(first[0], (tuple, list))
        names = self._tasks_for(tasks, is_pair, check_kind=bool(first))
        if isinstance(rows, (list, tuple)):
            check_rows(rows, is_pair)  # all of them before the first is computed

        def distinct(windows: Iterable[tuple[int, list[Any]]]) -> Iterator[tuple[list[str], torch.Tensor]]:
            """Each window's distinct sentences, and where each row finds its own: `(rows,)` or `(rows, 2)`."""
            for start, window in windows:
                check_rows(window, is_pair, start)
                flat = list(chain.from_iterable(window)) if is_pair else window
                places = {sentence: place for place, sentence in enumerate(dict.fromkeys(flat))}
                index = torch.tensor([places[sentence] for sentence in flat], dtype=torch.long)
                yield list(places), index.view(-1, 2) if is_pair else index

        embeddings = [torch.empty(0, *([2] if is_pair else []), self.config.embedding_dim)]
        logits: dict[str, list[torch.Tensor]] = {name: [self._no_logits(name)] for name in names}
        steps = total and total * (1 + is_pair)
        with evaluating(self) as modules, prepacked(modules), self._progress(steps, show_progress) as bar:
            for token_ids, index in self._tokenize_ahead(distinct(chain([(start, first)], windows))):
                window = torch.empty(len(token_ids), self.config.embedding_dim)
                self._embed_tokens(token_ids, batch_size, bar, window)
                if keep_embeddings:
                    embeddings.append(window[index])
                window, index = window.to(self._input_device, self.dtype), index.to(self._input_device)
                for name, found in self.task_logits(window, task_rows=dict.fromkeys(names, index)).items():
                    logits[name].append(found.float().cpu())
                bar.update(index.numel() - len(token_ids))  # sentences that stood there twice
        answers = {name: self._answer(name, torch.cat(chunks)) for name, chunks in logits.items()}
        return torch.cat(embeddings) if keep_embeddings else None, answers

    def _no_logits(self, name: str) -> torch.Tensor:
        """Logits of no row: `(0, num_labels)` or `(0,)`."""
        labels = self.config.tasks[name].get("labels")
        return torch.empty(0, len(labels)) if labels else torch.empty(0)

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

    def _answer(self, name: str, logits: torch.Tensor) -> dict[str, Any]:
        """One task's answers from its logits `(rows, num_labels)` or `(rows,)`."""
        settings = self.config.tasks[name]
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
            if not isinstance(side, (str, np.ndarray, torch.Tensor)):
                side = list(side)
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
