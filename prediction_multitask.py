"""Sentences in, answers out: `predict`.

TaskPrediction   the model's part: every task's answer from one pass of the backbone
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from .answers_multitask import ANSWER_CONVERSIONS, farthest_labelled, hand_out, labelled_near, one_word, read_question
from .checks_multitask import check_choice
from .heads_multitask import calibrated, confidences, task_logits
from .rows_multitask import check_batch_size, tokenized_ahead
from .scope_multitask import out_of_scope
from .turns_multitask import sharing


class TaskPrediction:
    """`predict`, for a model that encodes and has tasks; mixed into [`MultiTaskModel`]."""

    @torch.no_grad()
    def predict(
        self,
        sentences: str | tuple[str, str] | Iterable[str] | Iterable[tuple[str, str]],
        head: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        as_list: bool = False,
        embeddings: bool = False,
        convert_to: str = "numpy",
        tasks: str | Sequence[str] | None = None,
        abstain: dict[str, float] | bool | None = None,
    ) -> Any:
        """
        Every task's answer, and the embedding on request, from one pass of the backbone.

        Args:
            sentences: one string or any number of them (a list, a `datasets` column, a generator), or one pair
                `(str, str)` or any number of pairs for the tasks that compare two sentences.
            head: name of the task to answer, or a list of names; `None` answers every task of the given kind (single
                or pair).
            batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
            show_progress: whether to show a bar; `None` shows one for long input.
            as_list: whether to answer row by row in Python's own types, which `json.dumps` takes, instead of arrays.
            embeddings: whether to answer with what `encode` gives as well, under the name `embedding`.
            convert_to: `"numpy"` for float32 arrays, or `"tensor"` for tensors on the model's device, of its dtype
                (values of a regression stay float32: half precision has no room for years), or `"pandas"` for a
                DataFrame with a row a sentence (see `answer_columns`). With `as_list`, none of them.
            tasks: the same as `head`, as older code spells it.
            abstain: where no label is given, though probabilities are: `None` for what the configuration says, `False`
                for nowhere, or `{"confidence": 0.8}` where a task is less sure (see `AbstainConfig`), or
                `{"out_of_scope": 99}` where a row is farther from what it was trained on; or both.

        Returns:
            By task: `labels` and `probabilities (rows, num_labels)` for classification (calibrated, where the
            configuration has temperatures; `labels` is a list per row for multi-label tasks, by the thresholds of the
            configuration; a label, or such a list, is `None` where the task abstains), `values (rows,)` for
            regression, and `scores (rows,)`, cosines, for similarity and contrastive tasks. A task that knows its
            scope also gives `out_of_scope (rows,)`, percentiles from 0 to 100 (see `Scope`). With `embeddings`, first
            of all `embedding (rows, embedding_dim)`, or `(rows, 2, embedding_dim)` for pairs. One string or pair gives
            single values.

            With `convert_to="pandas"`, a DataFrame: `sentiment_label`, `sentiment_probability` and so on. Its index is
            that of `sentences` where these are a pandas Series.

            With `as_list`, a list of dictionaries as `pipeline("multitask")` gives them (see `plain_answers`), or one
            for one string or pair: `[{"sentiment": {"label": ..., "score": ..., "scores": {...}}, ...}, ...]`.

        Raises:
            TypeError: this is no list of texts, or something in it is neither a string nor a pair of strings.
            ValueError: a task is unknown, or reads the other kind of input, or no task reads this kind; `convert_to`
                is unknown, `batch_size` below 1, or `abstain` says something else.
        """
        check_choice("convert_to", convert_to, ANSWER_CONVERSIONS)
        rows = [sentences] if isinstance(sentences, (str, tuple)) else sentences
        head = one_word(head, tasks, "tasks")
        with sharing(self):  # the tasks stay what they are, from the first look at them to the answers
            count, answers = self._answer_rows(rows, head, batch_size, show_progress, embeddings, abstain)
            tasks = self.config.tasks
        return hand_out(tasks, answers, count, sentences, as_list, convert_to, self._converted)

    def _answer_rows(
        self,
        rows: Iterable[Any],
        head: str | Sequence[str] | None,
        batch_size: int | None,
        show_progress: bool | None,
        keep_embeddings: bool,
        abstain: dict[str, float] | bool | None,
    ) -> tuple[int, dict[str, Any]]:
        """How many rows there were, and the answers as float32 tensors on the CPU, with `embedding` if it is kept."""
        check_batch_size(batch_size)
        asked, count = read_question(self.config.tasks, rows, head, abstain, keep_embeddings), 0
        farthest = farthest_labelled(self.config.tasks, asked.names, abstain)
        embeddings = [self._no_embeddings(0, 2 if asked.is_pair else None)]
        logits: dict[str, list[torch.Tensor]] = {name: [self._no_logits(name)] for name in asked.names}
        beyond: dict[str, list[torch.Tensor]] = {}  # percentiles out of scope, of the tasks that know theirs
        with self._computing(), self._progress(asked.total, show_progress) as bar:
            for sentences, places in tokenized_ahead(self._tokenize, asked.windows):
                index = torch.tensor(places, dtype=torch.long, device="cpu")
                index = index.view(-1, 2) if asked.is_pair else index
                window = self._no_embeddings(len(sentences))
                self._embed_tokens(sentences, batch_size, bar, window)
                count += len(index)
                if keep_embeddings:
                    embeddings.append(window[index])
                window = window.to(self._input_device, self.dtype)
                for name, found in task_logits(self, window, asked.names, dict.fromkeys(asked.names, index)).items():
                    logits[name].append(found.float().cpu())
                for name, found in out_of_scope(self.heads, window, asked.names).items():
                    beyond.setdefault(name, []).append(found.cpu()[index])
                if bar is not None:
                    bar.update(index.numel() - len(sentences))  # some stood there twice
        answers: dict[str, Any] = {}
        if keep_embeddings:
            found = torch.cat(embeddings)
            answers["embedding"] = F.normalize(found, dim=-1) if self.config.normalize else found
        for name, chunks in logits.items():
            answers[name] = self._answer(name, torch.cat(chunks), asked.least_confidence.get(name))
            if self.config.tasks[name].out_of_scope:
                found = torch.cat([self._no_embeddings(0)[:, 0], *beyond.get(name, [])])
                answers[name]["out_of_scope"] = found
                if name in farthest:
                    answers[name]["labels"] = labelled_near(answers[name]["labels"], found.tolist(), farthest[name])
        return count, answers

    def _no_logits(self, name: str) -> torch.Tensor:
        """Logits of no row: `(0, num_labels)` or `(0,)`."""
        labels = self.config.tasks[name].labels
        return torch.empty((0, len(labels)) if labels else (0,), dtype=torch.float32, device="cpu")

    def _answer(self, name: str, logits: torch.Tensor, least_confidence: float | None) -> dict[str, Any]:
        """One task's answers, with tensors, from its logits `(rows, num_labels)` or `(rows,)`."""
        task = self.config.tasks[name]
        if not task.kind.has_head:
            return {"scores": logits}
        if not task.kind.has_labels:
            return {"values": logits}
        chosen = None
        if task.kind.is_multi_label:
            probabilities = calibrated(task, logits).sigmoid()
            chosen = probabilities >= torch.tensor(task.thresholds, dtype=torch.float32, device="cpu")
            names = [[] for _ in range(len(chosen))]
            for row, label in chosen.nonzero().tolist():  # of thousands of labels a row has a few
                names[row].append(task.labels[label])
        else:
            probabilities = logits.softmax(dim=-1)
            names = [task.labels[best] for best in probabilities.argmax(dim=-1).tolist()]
            if task.temperatures:  # only now: two that differ in their last bits may become equal
                probabilities = calibrated(task, logits).softmax(dim=-1)
        if least_confidence is not None:
            is_given = (confidences(task, probabilities, chosen) >= least_confidence).tolist()
            names = [label if given else None for label, given in zip(names, is_given, strict=True)]
        return {"labels": names, "probabilities": probabilities}


__all__ = ["TaskPrediction"]
