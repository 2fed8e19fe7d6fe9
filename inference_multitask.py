"""Sentences in, arrays out: what a person calls on a finished model.

    SentenceInference   encode, predict and similarity, for a model that has a backbone, a tokenizer and task logits

Input of any length is read in windows; a window's sentences are tokenized (while the window before is computed),
sorted by length and cut into batches by a token budget, and each batch is written to its place in the result. So
results come back in the caller's order, and memory does not grow with the input beyond the result.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from .padding_free_multitask import pack, pool_row, row_states
from .prepacked_multitask import can_prepack, computed_rows, prepacked
from .rows_multitask import (
    check_batch_size,
    check_container,
    check_rows,
    check_sentences,
    count_rows,
    plain_answers,
    windows_of,
    without_lone_surrogates,
)
from .tokenizer_multitask import own_tokenizer, token_ids

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


def _is_embedding(row: Any) -> bool:
    """Whether a row of `similarity` is numbers in a row, not text, nor a list of texts."""
    numbers = isinstance(row, list) and not any(isinstance(value, (str, bytes)) for value in row)
    return numbers or isinstance(row, (np.ndarray, torch.Tensor))


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
        check_container(sentences)
        if isinstance(sentences, (list, tuple)):
            check_sentences(sentences)  # all of them before the first is computed

        def checked() -> Iterator[tuple[list[str], int]]:
            for start, window in windows_of(sentences, SENTENCES_PER_WINDOW):
                check_sentences(window, start)
                yield without_lone_surrogates(window, start), start

        total = count_rows(sentences)
        embeddings = self._no_embeddings(total or 0)
        grown = []  # where the length is not known beforehand
        with self._computing(), self._progress(total, show_progress) as bar:
            for window, start in self._tokenize_ahead(checked()):
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

    def _tokenize_ahead(self, windows: Iterator[tuple[list[str], Any]]) -> Iterator[tuple[list[list[int]], Any]]:
        """Token ids in place of each window's sentences; the next window is tokenized while one is worked on."""
        sentences, companion = next(windows, ([], None))
        tokenized = self._tokenize(sentences)
        with ThreadPoolExecutor(max_workers=1) as thread:
            for sentences, next_companion in windows:
                following = thread.submit(self._tokenize, sentences)
                yield tokenized, companion
                tokenized, companion = following.result(), next_companion
        if tokenized:
            yield tokenized, companion

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
        for batch in length_sorted_batches(lengths, batch_size, self.tokens_per_batch):
            embedding = self._embed_batch([token_ids[index] for index in batch]).float()  # (batch, embedding_dim)
            place[batch] = (F.normalize(embedding, dim=-1) if normalize else embedding).cpu()
            if bar is not None:
                bar.update(len(batch))

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Eval mode, and packed weights unless a compiled model brings code of its own."""
        with evaluating(self) as modules, prepacked(modules if self._compiled_call_impl is None else ()):
            yield

    def _embed_batch(self, token_ids: list[list[int]]) -> torch.Tensor:
        """
        Embeddings `(batch, embedding_dim)`, not normalised, of sentences sorted by length.

        A model that was compiled (`model.compile()`) or has hooks is called as a whole, with a padded batch.
        """
        if self._compiled_call_impl is None and not self._forward_hooks and not self._forward_pre_hooks:
            return self.project(self.pooled_batch(token_ids))
        inputs = self._padded_batch(token_ids)
        return self(**inputs, task="embedding", normalize=False, return_dict=True).sentence_embedding

    def pooled_batch(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Pooled vectors `(batch, hidden)` of sentences sorted by length, from one pass of the backbone."""
        if self.packs():
            tokens = sum(map(len, token_ids))
            fills = self.device.type == "cpu" and can_prepack()
            # One-token sentences fill the row up, here once instead of in every layer.
            filler = [[0]] * (computed_rows(tokens) - tokens if fills else 0)
            row = pack(self.backbone, [*token_ids, *filler])
            pooled = pool_row(row_states(self.backbone, row), row.length_groups, self.config.pooling)
            return pooled[: len(token_ids)]
        _, pooled = self.states_and_pooled(**self._padded_batch(token_ids))
        return pooled

    def _padded_batch(self, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, each `(batch, sequence)`."""
        longest = max(map(len, token_ids))
        pad_id = self.tokenizer.pad_token_id or 0
        input_ids = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
        attention_mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
        return {
            "input_ids": torch.tensor(input_ids, dtype=torch.long, device=self._input_device),
            "attention_mask": torch.tensor(attention_mask, dtype=torch.long, device=self._input_device),
        }

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
        as_list: bool = False,
    ) -> dict[str, dict[str, Any]] | list[dict[str, Any]]:
        """
        Every task's answer from one pass of the backbone.

        Args:
            sentences: one string or any number of them (a list, a `datasets` column, a generator), or one pair
                `(str, str)` or any number of pairs for the tasks that compare two sentences.
            tasks: names of the tasks to answer; `None` answers every task of the given kind (single or pair).
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
            show_progress: whether to show a bar; `None` shows one for long input.
            as_list: whether to answer row by row in Python's own types, which `json.dumps` takes, instead of arrays.

        Returns:
            By task: `labels` and `probabilities (rows, num_labels)` for classification (`labels` is a list per row for
            multi-label tasks, by the thresholds of the configuration), `values (rows,)` for regression, and `scores
            (rows,)`, cosines, for similarity and contrastive tasks. One string or pair gives single values.

            With `as_list`, a list of dictionaries as `pipeline("multitask")` gives them (see `plain_answers`), or one
            for one string or pair: `[{"sentiment": {"label": ..., "score": ..., "scores": {...}}, ...}, ...]`.

        Raises:
            TypeError: this is no list of texts, or something in it is neither a string nor a pair of strings.
            ValueError: a task is unknown, or reads the other kind of input, or no task reads this kind.
        """
        is_single = isinstance(sentences, (str, tuple))
        rows = [sentences] if is_single else sentences
        count, _, answers = self._answer_rows(rows, tasks, batch_size, show_progress, keep_embeddings=False)
        if as_list:
            listed = plain_answers(self.config.tasks, answers, count)
            return listed[0] if is_single else listed
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
        _, embeddings, answers = self._answer_rows(rows, tasks, batch_size, show_progress, keep_embeddings=True)
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
    ) -> tuple[int, torch.Tensor | None, dict[str, dict[str, Any]]]:
        """How many rows there were, their embeddings, not normalised, where they are to be kept, and their answers."""
        check_batch_size(batch_size)
        check_container(rows)
        total, count = count_rows(rows), 0
        windows = windows_of(rows, SENTENCES_PER_WINDOW)
        start, first = next(windows, (0, []))
        is_pair = bool(first) and isinstance(first[0], (tuple, list))
        names = self._tasks_for(tasks, is_pair, check_kind=bool(first))
        if not names and first and tasks is None and self.config.tasks and not keep_embeddings:
            found, others = ("pairs", "single sentences") if is_pair else ("single sentences", "pairs (str, str)")
            raise ValueError(
                f"No task reads {found}. The tasks {', '.join(self.config.tasks)} read {others}. "
                f"{'Give several sentences as a list; ' if is_pair else ''}embeddings come from model.encode."
            )
        if isinstance(rows, (list, tuple)):
            check_rows(rows, is_pair)  # all of them before the first is computed

        def distinct(windows: Iterable[tuple[int, list[Any]]]) -> Iterator[tuple[list[str], torch.Tensor]]:
            """Each window's distinct sentences, and where each row finds its own: `(rows,)` or `(rows, 2)`."""
            for start, window in windows:
                check_rows(window, is_pair, start)
                flat = list(chain.from_iterable(window)) if is_pair else window
                flat = without_lone_surrogates(flat, start, 1 + is_pair)
                places = {sentence: place for place, sentence in enumerate(dict.fromkeys(flat))}
                index = torch.tensor([places[sentence] for sentence in flat], dtype=torch.long, device="cpu")
                yield list(places), index.view(-1, 2) if is_pair else index

        embeddings = [self._no_embeddings(0, 2 if is_pair else None)]
        logits: dict[str, list[torch.Tensor]] = {name: [self._no_logits(name)] for name in names}
        steps = total and total * (1 + is_pair)
        with self._computing(), self._progress(steps, show_progress) as bar:
            for sentences, index in self._tokenize_ahead(distinct(chain([(start, first)], windows))):
                window = self._no_embeddings(len(sentences))
                self._embed_tokens(sentences, batch_size, bar, window)
                count += len(index)
                if keep_embeddings:
                    embeddings.append(window[index])
                window, index = window.to(self._input_device, self.dtype), index.to(self._input_device)
                for name, found in self.task_logits(window, task_rows=dict.fromkeys(names, index)).items():
                    logits[name].append(found.float().cpu())
                if bar is not None:
                    bar.update(index.numel() - len(sentences))  # some stood there twice
        answers = {name: self._answer(name, torch.cat(chunks)) for name, chunks in logits.items()}
        return count, torch.cat(embeddings) if keep_embeddings else None, answers

    def _no_logits(self, name: str) -> torch.Tensor:
        """Logits of no row: `(0, num_labels)` or `(0,)`."""
        labels = self.config.tasks[name].get("labels")
        return torch.empty((0, len(labels)) if labels else (0,), dtype=torch.float32, device="cpu")

    def _tasks_for(self, tasks: str | Sequence[str] | None, is_pair: bool, check_kind: bool = True) -> list[str]:
        """The named tasks, or all that read this kind of input; a ValueError for one that does not."""
        if tasks is None:
            return [name for name, settings in self.config.tasks.items() if settings["pair"] == is_pair]
        names = list(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, str) else [tasks]
        if not all(isinstance(name, str) for name in names):
            known = ", ".join(self.config.tasks) or "none"
            raise TypeError(
                f"tasks is {tasks!r}, but should be a task's name or a list of them. Known tasks: {known}."
            )
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
            chosen = probabilities >= torch.tensor(settings["thresholds"], dtype=torch.float32, device="cpu")
            names = [[] for _ in range(len(chosen))]
            for row, label in chosen.nonzero().tolist():  # of thousands of labels a row has a few
                names[row].append(labels[label])
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

        Raises:
            TypeError: a side holds neither only sentences nor only embeddings.
            ValueError: embeddings have another size.
        """
        sides = [F.normalize(self._embeddings_of(side), dim=-1) for side in (a, b)]
        return (sides[0] @ sides[1].T).numpy()

    def _embeddings_of(self, side: Any) -> torch.Tensor:
        """Embeddings `(n, embedding_dim)` of one side of `similarity`."""
        options = {"dtype": torch.float32, "device": "cpu"}
        if isinstance(side, torch.Tensor) or (isinstance(side, np.ndarray) and side.dtype.kind in "fiub"):
            side = torch.as_tensor(side, **options)
        else:
            if not isinstance(side, str):
                check_container(side)
                side = list(chain.from_iterable(window for _, window in windows_of(side, SENTENCES_PER_WINDOW)))
            if isinstance(side, str) or not all(_is_embedding(row) for row in side):
                side = self.encode([side] if isinstance(side, str) else side, convert_to="tensor")
            else:
                rows = [torch.as_tensor(row, **options) for row in side]
                side = torch.stack(rows) if rows else torch.empty(0, **options)
        if side.numel() and side.shape[-1] != self.config.embedding_dim:
            raise ValueError(
                f"similarity: embeddings of shape {tuple(side.shape)}, but the last size should be the model's "
                f"embedding_dim, {self.config.embedding_dim}."
            )
        return side.reshape(-1, self.config.embedding_dim)
