"""Sentences in, answers out: `predict`.

TaskPrediction   the model's part: every task's answer from one pass of the backbone
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .answers_multitask import plain_answers, tasks_for
from .rows_multitask import (
    check_batch_size,
    check_container,
    check_rows,
    count_rows,
    windows_of,
    without_lone_surrogates,
)


class TaskPrediction:
    """`predict`, for a model that encodes and has tasks; mixed into [`MultiTaskModel`]."""

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
        windows = windows_of(rows)
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
        return tasks_for(self.config.tasks, tasks, is_pair, check_kind)

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


__all__ = ["TaskPrediction"]
