"""How a MultiTaskTrainer measures: one pass over a split's distinct sentences, then every task's loss and metrics.

evaluation.py holds the splits and the functions that scores come from; here is what the Trainer adds: its precision,
its processes, its log and its callbacks.
"""

import time
from collections.abc import Iterable, Sequence

import torch
from transformers.trainer_utils import speed_metrics

from ..configuration_multitask import LABELLED_PROBLEM_TYPES
from .evaluation import (
    Evaluation,
    choose_thresholds,
    combined_score,
    task_confusion,
    task_logits,
    task_predictions,
    task_scores,
)
from .features.cache import embed_cached


class EvaluationLoop:
    """`evaluate` and its relatives; mixed into [`MultiTaskTrainer`]."""

    def _embed_split(self, split: str) -> tuple[Evaluation, torch.Tensor]:
        """A split and the embeddings of its distinct sentences, each process having computed its share."""
        if split not in self.evaluations:
            self.evaluations[split] = Evaluation(self.sets, self.model.config.tasks, split)
        evaluation = self.evaluations[split]
        if evaluation.sentences and (cache := self._open_features()) is not None:
            places = self._cache_sentences(cache, lambda: [evaluation.sentences])
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                return evaluation, embed_cached(self.model, cache, places)
        rank, world_size = self.accelerator.process_index, self.accelerator.num_processes
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            share = self.model.embed(
                evaluation.sentences[rank::world_size],
                show_progress=None if rank == 0 and not self.args.disable_tqdm else False,
            )
        if world_size == 1:
            return evaluation, share
        longest = -(-len(evaluation.sentences) // world_size)
        padded = share.new_zeros(longest, share.shape[1])
        padded[: len(share)] = share
        gathered = self.accelerator.gather(padded.to(self.args.device)).cpu()  # (world_size * longest, embedding_dim)
        gathered = gathered.view(world_size, longest, -1).transpose(0, 1).reshape(world_size * longest, -1)
        return evaluation, gathered[: len(evaluation.sentences)]

    def _scores(
        self, evaluation: Evaluation, embeddings: torch.Tensor, tasks: Iterable[str]
    ) -> dict[str, dict[str, float]]:
        return {
            task: task_scores(
                self.model,
                task,
                embeddings,
                evaluation.rows[task],
                evaluation.labels[task],
                self.args.per_device_eval_batch_size,
            )
            for task in tasks
        }

    def measure(self, split: str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Loss and metrics by task of those that have rows in a split: as `evaluate`, but nothing is logged."""
        evaluation, embeddings = self._embed_split(split)
        return self._scores(evaluation, embeddings, [task for task in evaluation.rows if task in tasks])

    def evaluate(
        self, eval_dataset: str | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Loss and metrics of every task on a split.

        Args:
            eval_dataset: name of the split, `validation` where nothing is said.
            ignore_keys: not used; part of the Trainer's signature.
            metric_key_prefix: what the keys begin with.

        Returns:
            `<prefix>_<task>_loss`, `<prefix>_<task>_<metric>`, `<prefix>_loss` and `<prefix>_score`.

        Raises:
            ValueError: no task has a labelled row in the split.
        """
        self._memory_tracker.start()
        start_time = time.time()
        split = eval_dataset or "validation"
        evaluation, embeddings = self._embed_split(split)
        if not evaluation.rows:
            raise ValueError(f"No task has a labelled row in the split {split!r}.")
        tasks = self.model.config.tasks
        scores = self._scores(evaluation, embeddings, evaluation.rows)
        self.confusion |= {
            task: {**task_confusion(self.model, task, embeddings, rows, evaluation.labels[task]), "split": split}
            for task, rows in evaluation.rows.items()
            if tasks[task]["problem_type"] in LABELLED_PROBLEM_TYPES
        }
        metrics = {
            f"{metric_key_prefix}_{task}_{metric}": value
            for task, task_metrics in scores.items()
            for metric, value in task_metrics.items()
        }
        metrics[f"{metric_key_prefix}_loss"] = sum(
            tasks[task]["loss_weight"] * scores[task]["loss"] for task in scores
        )
        metrics[f"{metric_key_prefix}_score"] = combined_score(tasks, scores)
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=len(evaluation.sentences)))

        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predictions(self, split: str, tasks: Iterable[str]) -> dict[str, tuple[list, list | None]]:
        """By task what its metrics are computed from, see `task_predictions`; of those that have rows in a split."""
        evaluation, embeddings = self._embed_split(split)
        return {
            task: task_predictions(
                self.model.config.tasks[task],
                torch.cat(task_logits(self.model, task, embeddings, rows, self.args.per_device_eval_batch_size)),
                embeddings,
                rows,
                evaluation.labels[task],
            )
            for task, rows in evaluation.rows.items()
            if task in tasks
        }

    def choose_thresholds(self, split: str = "validation") -> dict[str, list[float]]:
        """Set the trained multi-label tasks' thresholds in the configuration to the best of a split; return them."""
        multi_label = [
            task
            for task, settings in self.trained_tasks.items()
            if settings["problem_type"] == "multi_label_classification"
        ]
        if not multi_label:
            return {}
        evaluation, embeddings = self._embed_split(split)
        chosen = {}
        for task in multi_label:
            logits = task_logits(self.model, task, embeddings, evaluation.rows[task], batch_size=8192)
            probabilities = torch.cat(logits).sigmoid().numpy()
            chosen[task] = choose_thresholds(probabilities, evaluation.labels[task].numpy())
            self.model.config.tasks[task]["thresholds"] = chosen[task]
        return chosen
