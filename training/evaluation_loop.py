"""How a MultiTaskTrainer measures: one pass over a split's distinct sentences, then every task's loss and metrics.

evaluation/scores.py holds the splits and the functions that scores come from; here is what the Trainer adds: its
precision, its processes, its log and its callbacks.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import speed_metrics

from ..checks_multitask import check_choice, suggest
from ..data.loading.in_memory import TaskDatasets, label_datasets
from ..modeling_multitask import MultiTaskModel
from .calibration.scope import abstains_by_scope, fit_scopes, has_scope, sample_rows
from .calibration.settling import CALIBRATIONS, settle_tasks
from .evaluation.best_checkpoints import keep_models
from .evaluation.groups import counted_once, group_scores, with_groups
from .evaluation.scores import Evaluation, TaskAnswers, answer_task, combined_score, task_scores
from .features.cache import embed_cached
from .run.output_folder import BEST_FOLDER, STEP_FILE

logger = logging.getLogger(__name__)

SENTENCES_AT_ONCE = 1 << 17  # of a split are read into memory and encoded; the embeddings of all of them stay


class EvaluationLoop:
    """`evaluate` and its relatives; mixed into [`MultiTaskTrainer`]."""

    def _evaluation(self, split: str | TaskDatasets) -> Evaluation:
        """A split of the trainer's own sets by its name, or other data by task."""
        known = list(dict.fromkeys(name for entry in self.sets for name in entry.splits))
        if isinstance(split, Mapping):
            loaded = label_datasets(self.tasks, None, split, self.columns)
            return Evaluation(loaded.sets, self.tasks, "validation")
        if not isinstance(split, str):
            raise TypeError(
                f"What to evaluate on should be a mapping of tasks to data sets, or the name of a split, one of "
                f"{', '.join(known)}. Found {type(split).__name__}."
            )
        if split not in known:
            raise ValueError(f"There is no split {split!r}.{suggest(split, known)} Known splits: {', '.join(known)}.")
        if split not in self.evaluations:
            self.evaluations[split] = Evaluation(self.sets, self.model.config.tasks, split)
        return self.evaluations[split]

    def _embed_split(self, split: str | TaskDatasets) -> tuple[Evaluation, torch.Tensor]:
        """A split and the embeddings of its distinct sentences, each process having computed its share."""
        evaluation = self._evaluation(split)
        if evaluation.sentences and (cache := self.features.open(self.model)) is not None:
            places = self.features.places(cache, self.model, lambda: [evaluation.sentences])
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                return evaluation, embed_cached(self.model, cache, places)
        return evaluation, self._embed_shared(evaluation.sentences)

    def _embed_shared(
        self, sentences: Sequence[str], model: MultiTaskModel | None = None, is_shared: bool = True
    ) -> torch.Tensor:
        """
        Embeddings `(sentences, embedding_dim)`, each process having computed its share unless this one is alone.

        Args:
            sentences: the same on every process.
            model: another one than that which trains.
            is_shared: whether every process calls it.
        """
        model = self.model if model is None else model
        rank, world_size = (self.accelerator.process_index, self.accelerator.num_processes) if is_shared else (0, 1)
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            piece = world_size * SENTENCES_AT_ONCE
            encoded = [
                model.encode(
                    sentences[start : start + piece : world_size],
                    normalize=False,
                    show_progress=None if rank == 0 and not self.args.disable_tqdm else False,
                )
                for start in range(rank, max(len(sentences), rank + 1), piece)
            ]
            share = torch.from_numpy(np.concatenate(encoded))
        if world_size == 1 or not sentences:
            return share
        longest = -(-len(sentences) // world_size)
        padded = share.new_zeros(longest, share.shape[1])
        padded[: len(share)] = share
        gathered = []
        for rows in padded.split(-(-SENTENCES_AT_ONCE // world_size)):  # a GPU need not hold a whole split
            found = self.accelerator.gather(rows.to(self.args.device)).cpu()  # (world_size * rows, embedding_dim)
            gathered.append(found.view(world_size, len(rows), -1).transpose(0, 1).flatten(0, 1))
        return torch.cat(gathered)[: len(sentences)]

    def _answer(
        self, evaluation: Evaluation, embeddings: torch.Tensor, task: str, with_probabilities: bool = False
    ) -> TaskAnswers:
        rows, labels = evaluation.rows[task], evaluation.labels[task]
        batch_size = self.args.per_device_eval_batch_size
        return answer_task(self.model, task, embeddings, rows, labels, batch_size, with_probabilities)

    def measure(self, split: str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Loss and metrics of those tasks that have rows in a split, and of groups of them, but nothing is logged."""
        answers = self.predictions(split, tasks)
        scores = {task: task_scores(self.model.config.tasks[task], found) for task, found in answers.items()}
        groups = {name: group for name, group in self.groups.items() if set(group.tasks) <= set(tasks)}
        return scores | group_scores(groups, answers)

    def evaluate(
        self,
        eval_dataset: TaskDatasets | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Loss and metrics of every task that has rows.

        Args:
            eval_dataset: by task, a `datasets.Dataset` with columns as those of `train_dataset`; or the name of a
                split that the trainer has. By default its own `eval_dataset`, the split `validation`.
            ignore_keys: not used; part of the Trainer's signature.
            metric_key_prefix: what the keys begin with.

        Returns:
            `<prefix>_<task>_loss`, `<prefix>_<task>_<metric>`, `<prefix>_loss` and `<prefix>_score`; of a group
            `<prefix>_<group>_<metric>`, over the rows of all its tasks that have any.

        Raises:
            TypeError: `eval_dataset` is neither a mapping nor a name.
            ValueError: there is no such split or task, a row is wrong, or no task has a labelled row.
        """
        split = "validation" if eval_dataset is None else eval_dataset
        self._memory_tracker.start()  # which knows the method that it is called from by its name
        metrics, _ = self.evaluate_and_answer(split, metric_key_prefix, with_probabilities=False)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def evaluate_and_answer(
        self, split: str | TaskDatasets, metric_key_prefix: str = "eval", with_probabilities: bool = True
    ) -> tuple[dict[str, float], dict[str, TaskAnswers]]:
        """What `evaluate` gives, and by task what the model answers, from the same pass."""
        start_time = time.time()
        evaluation, embeddings = self._embed_split(split)
        if not evaluation.rows:
            raise ValueError(f"No task has a labelled row in the split {split!r}.")
        tasks = self.model.config.tasks
        answers = {task: self._answer(evaluation, embeddings, task, with_probabilities) for task in evaluation.rows}
        scores = {task: task_scores(tasks[task], found) for task, found in answers.items()}
        loss = sum(tasks[task].loss_weight * found["loss"] for task, found in scores.items())
        scores |= group_scores(self.groups, answers)
        metrics = {
            f"{metric_key_prefix}_{name}_{metric}": value
            for name, found in scores.items()
            for metric, value in found.items()
        }
        metrics[f"{metric_key_prefix}_loss"] = loss
        score = combined_score(with_groups(tasks, self.groups), counted_once(scores, self.groups))
        metrics[f"{metric_key_prefix}_score"] = score
        metrics.update(speed_metrics(metric_key_prefix, start_time, num_samples=len(evaluation.sentences)))

        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics, answers

    def predict(self, test_dataset: Any, **kwargs: Any) -> None:
        """Not for a model with several tasks: always a TypeError that names what is."""
        raise TypeError(
            "A trainer of several tasks predicts no data set. Call model.predict(sentences) for answers, or "
            "trainer.predictions(split, tasks) for what the metrics are computed from."
        )

    def predictions(self, split: str, tasks: Iterable[str]) -> dict[str, TaskAnswers]:
        """By task what the model answers, of those that have rows in a split."""
        evaluation, embeddings = self._embed_split(split)
        return {task: self._answer(evaluation, embeddings, task) for task in evaluation.rows if task in tasks}

    def choose_thresholds(self, split: str = "validation") -> dict[str, list[float]]:
        """
        Set the trained multi-label tasks' thresholds in the configuration to the best of a split; return them. They
        are those of probabilities without temperatures, which are given up: `calibrate` chooses both.
        """
        multi_label = [name for name, task in self.trained_tasks.items() if task.kind.is_multi_label]
        if calibrated := [name for name in multi_label if self.tasks[name].temperatures]:
            logger.info(
                f"{', '.join(calibrated)}: temperatures are given up, because thresholds are chosen alone. "
                "`calibrate` chooses both."
            )
        self._settle(split, multi_label, "none")
        return {name: self.tasks[name].thresholds for name in multi_label}

    def calibrate(self, split: str = "validation", calibration: str = "temperature") -> dict[str, str]:
        """
        Choose the trained multi-label tasks' thresholds as `choose_thresholds` does, then fit temperatures for all
        trained classification tasks, then choose the confidence of those that promise a risk. All of it is set in the
        configuration (see `settle_task` and `settle_abstain`). A risk beside `out_of_scope` needs `fit_out_of_scope`
        before.

        Args:
            split: the name of a split that the trainer has.
            calibration: `temperature`, or `none` for thresholds alone.

        Returns by task why it was not calibrated.

        Raises:
            ValueError: there is no such split or calibration.
        """
        check_choice("calibration", calibration, CALIBRATIONS)
        return self._settle(split, [name for name, task in self.trained_tasks.items() if task.labels], calibration)

    def _settle(self, split: str, names: Sequence[str], calibration: str) -> dict[str, str]:
        """Settle tasks on a split; by task, why it was not calibrated."""
        if not names:
            return {}
        notes = settle_tasks(self.model, names, *self._embed_split(split), calibration)
        for name in names:
            self._take_settings(name)
        return notes

    def _moves_embedding(self) -> bool:
        """Whether anything trains that embeddings come from."""
        return any(not part.startswith("heads.") for part in self.plan.parameters)

    def drop_old_scopes(self, unwanted: bool = False) -> list[str]:
        """
        Let tasks forget what they were trained on before this run, if their embeddings have moved; where that is
        `unwanted`, those that take part forget it in any case. Their names.
        """
        moved = self._moves_embedding()
        scoped = [name for name, task in self.model.config.tasks.items() if task.out_of_scope]
        names = [name for name in scoped if moved or (unwanted and name in self.tasks)]
        for name in names:
            self.model._set_scope(name, None)
            self._take_settings(name)
        return names

    def _take_settings(self, name: str) -> None:
        """Take a task's settings over from the configuration, where they have changed."""
        for tasks in (self.tasks, self.trained_tasks):
            if name in tasks:
                tasks[name] = self.model.config.tasks[name]

    def fit_out_of_scope(self, split: str = "validation", tasks: Sequence[str] | None = None) -> list[str]:
        """
        Let each classification task of single sentences know what it was trained on, so that `predict` answers with
        `out_of_scope`: see `fit_scope`. At most 20,000 training rows of each set are embedded once more.

        Args:
            split: whose rows give the scale.
            tasks: only these.

        Returns the names of the tasks.
        """
        asked = [name for name, task in self.tasks.items() if has_scope(task) and (tasks is None or name in tasks)]
        train = self._scope_rows(asked)
        for name in [name for name in asked if name not in train.rows]:
            logger.warning(
                f"{name}: no training row is labelled, so that what is out of its scope is not known."
                + " It gives no label, because it abstains by that." * abstains_by_scope(self.tasks[name])
            )
        if not train.rows:
            return []
        names = fit_scopes(self.model, train, self._embed_shared(train.sentences), *self._embed_split(split))
        for name in names:
            self._take_settings(name)
        return names

    def _scope_rows(self, names: Sequence[str]) -> Evaluation:
        """The training rows that scopes of these tasks are fitted on."""
        tasks = {name: task for name, task in self.tasks.items() if name in names}
        return Evaluation(sample_rows(self.sets, list(tasks), self.args.seed), tasks, "train")

    def settle_best(self, split: str = "validation", calibration: str = "temperature") -> list[Path]:
        """
        Settle the models in `best/` as the finished one is: thresholds, temperatures, confidences for a risk, and what
        is out of scope where the finished model knows it. Every process has to call it, after `fit_out_of_scope` and
        `calibrate`.

        Returns the folders.
        """
        steps: dict[int, list[str]] = {}
        for name, found in self.best_of_tasks.summary.items():
            if found["folder"] is not None:
                steps.setdefault(found["step"], []).append(name)
        steps = broadcast_object_list([steps])[0]  # what the main process has written
        folder = Path(self.args.output_dir) / BEST_FOLDER
        # Without a common disk, the other machines do not see the folders, and the main process embeds alone.
        is_seen = all(gather_object([all((folder / best[0]).is_dir() for best in steps.values())]))
        if is_seen or self.is_world_process_zero():
            for best in steps.values():
                self._settle_kept(folder, best, split, calibration, is_shared=is_seen)
        return [folder / name for best in steps.values() for name in best]

    def _settle_kept(self, folder: Path, best: list[str], split: str, calibration: str, is_shared: bool) -> None:
        """Settle the model of one step, which stands in `folder` for each of the tasks `best`."""
        model = MultiTaskModel.from_pretrained(folder / best[0], dtype="auto").to(self.args.device).eval()
        finished = self.model.config.tasks
        scoped = [name for name, task in finished.items() if task.out_of_scope]
        evaluation = self._evaluation(split)
        train = self._scope_rows(scoped if self._moves_embedding() else [])
        embeddings = self._embed_shared(evaluation.sentences, model, is_shared)
        train_embeddings = self._embed_shared(train.sentences, model, is_shared)
        if not self.is_world_process_zero():
            return
        for name in [name for name, task in model.config.tasks.items() if task.out_of_scope or name in scoped]:
            # Where the embedding stays as it is, so do the scopes.
            is_same = name in scoped and not self._moves_embedding()
            model._set_scope(name, self.model.heads[name].scope.state_dict() if is_same else None)
        fit_scopes(model, train, train_embeddings, evaluation, embeddings)
        names = [name for name, task in self.trained_tasks.items() if task.labels]
        settle_tasks(model, names, evaluation, embeddings, calibration)
        found = {name: json.loads((folder / name / STEP_FILE).read_text(encoding="utf-8")) for name in best}
        keep_models(model, folder, found, self.row_hashes)
