"""The best step of every task. It follows from the log history, and so survives resuming.

BestOfTasks        at each evaluation: keeps the model as `best/<task>` for each task that is now better than ever
best_of_history    each task's best step and score
format_best        the table that a run ends with
check_best_metric  refuses a `metric_for_best_model` that evaluations do not give
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ...checks_multitask import suggest
from ...data.rows.row_hashes import RowHashes, write_row_hashes
from ...staging_multitask import UNFINISHED
from ...tasks_multitask import TaskConfig
from ..run.output_folder import BEST_FOLDER, STEP_FILE, put_folder, write_json
from .groups import TaskGroup, with_groups


def score_key(task: str, settings: TaskConfig) -> str:
    """The log's name of a task's primary metric on validation data."""
    return f"eval_{task}_{settings.primary_metric}"


def best_of_history(history: Sequence[dict[str, Any]], tasks: dict[str, TaskConfig]) -> dict[str, dict[str, Any]]:
    """
    The evaluation with each task's highest primary metric; of equal ones that with the lowest loss, then the first.

    Args:
        history: the Trainer's log history, of the time in training.
        tasks: task settings by name.

    Returns:
        `{"metric", "step", "score"}` by task; a task that was never scored (or only NaN) is left out.
    """
    best: dict[str, dict[str, Any]] = {}
    for task, settings in tasks.items():
        highest, lowest = -math.inf, math.inf
        for entry in history:
            score, loss = entry.get(score_key(task, settings), math.nan), entry.get(f"eval_{task}_loss", math.inf)
            if score > highest or (score == highest and loss < lowest):
                highest, lowest = score, math.inf if math.isnan(loss) else loss
                best[task] = {"metric": settings.primary_metric, "step": entry["step"], "score": score}
    return best


def _link_or_copy(source: str, copy: str) -> None:
    """Large files, which are only ever replaced as a whole, stand on the disk once; small ones may be edited."""
    if source.endswith((".safetensors", ".parquet")):
        with contextlib.suppress(OSError):  # a file system without links
            os.link(source, copy)
            return
    shutil.copy2(source, copy)


def keep_models(
    model: PreTrainedModel, folder: Path, found: dict[str, dict[str, Any]], row_hashes: RowHashes | None = None
) -> None:
    """
    Save a model as `folder/<task>` for each of some tasks, in place of older ones, which stay until it is complete.

    Args:
        model: what is saved.
        folder: the folder of all tasks.
        found: by task, what is written into its `best.json`.
        row_hashes: of the rows that the model has seen, where they are to be kept.
    """
    if not found:
        return
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    first, *others = (unfinished / task for task in found)
    model.save_pretrained(first)
    if row_hashes is not None:
        write_row_hashes(first, row_hashes)
    for copy in others:
        shutil.copytree(first, copy, copy_function=_link_or_copy)
    for task, content in found.items():
        write_json(unfinished / task / STEP_FILE, content)
        put_folder(unfinished / task, folder / task)
    shutil.rmtree(unfinished)


class BestOfTasks(TrainerCallback):
    """
    Tracks the best step of each task and group while a Trainer trains, and keeps the model of that step.

    `output_dir/best/<task>` is a finished model folder, without optimizer. Nothing is kept where
    `keep_best_of_tasks` is off or `save_strategy` is `no`.

    Attributes:
        summary: after training, by task or group: `metric`, `step`, `score`, `chosen_score` (the same metric at
            `chosen_step`, when the model that the run ends with was evaluated; `None` where it was not), `folder` (or
            `None`).
        chosen_step: the step of the model that the run ends with.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.summary: dict[str, dict[str, Any]] = {}
        self.chosen_step = 0

    def _trained(self) -> dict[str, TaskConfig]:
        """Settings of the tasks that train, and of groups of which one does."""
        tasks, groups = self.trainer.trained_tasks, self.trainer.groups
        idle = [name for name, group in groups.items() if tasks.keys().isdisjoint(group.tasks)]
        return with_groups(tasks, {name: group for name, group in groups.items() if name not in idle})

    def on_evaluate(self, args, state, control, **kwargs):
        keeps = args.should_save and args.keep_best_of_tasks and args.save_strategy != "no"
        if not keeps or not self.trainer.is_in_train:
            return
        best = best_of_history(state.log_history, self._trained())
        improved = {task: found for task, found in best.items() if found["step"] == state.global_step}
        self.trainer.accelerator.unwrap_model(self.trainer.model).adopt_heads()
        keep_models(self.trainer.model, Path(args.output_dir) / BEST_FOLDER, improved, self.trainer.row_hashes)

    def on_train_end(self, args, state, control, **kwargs):
        is_best_loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
        self.chosen_step = state.best_global_step if is_best_loaded else state.global_step
        chosen = [entry for entry in state.log_history if entry["step"] == self.chosen_step]
        tasks, folder = self._trained(), Path(args.output_dir) / BEST_FOLDER
        self.summary = best_of_history(state.log_history, tasks)
        for task, found in self.summary.items():
            key, file = score_key(task, tasks[task]), folder / task / STEP_FILE
            found["chosen_score"] = next((entry[key] for entry in chosen if key in entry), None)
            # A folder of another step is left from before an interruption, or from training again.
            is_kept = file.is_file() and json.loads(file.read_text(encoding="utf-8"))["step"] == found["step"]
            found["folder"] = f"{BEST_FOLDER}/{task}" if is_kept else None


def format_best(summary: dict[str, dict[str, Any]], chosen_step: int) -> str:
    """A table with a line per task: its best step, the score there and the score in the chosen model."""
    rows = [
        [task, found["step"], found["metric"], found["score"], found["chosen_score"], found["folder"]]
        for task, found in summary.items()
    ]
    header = ["task", "best step", "metric", "score there", f"chosen (step {chosen_step})", "kept in"]
    return "Best of every task, on validation data\n" + tabulate(rows, header, floatfmt=".4f", missingval="-")


def check_best_metric(
    args: TrainingArguments, tasks: dict[str, TaskConfig], groups: Mapping[str, TaskGroup] | None = None
) -> None:
    """
    Check that evaluations give `metric_for_best_model`.

    Raises:
        ValueError: they do not; names what they give.
    """
    metric = args.metric_for_best_model
    if metric is None:
        return
    known = ["score", "loss"]
    for task, settings in tasks.items():
        known += [f"{task}_{name}" for name in (*settings.metrics, "loss")]
    for group, found in (groups or {}).items():
        known += [f"{group}_{name}" for name in found.scoring.metrics]
    if (name := metric.removeprefix("eval_")) not in known:
        raise ValueError(
            f"metric_for_best_model: evaluations give no {metric!r}.{suggest(name, known)} Known: "
            f"{', '.join(f'eval_{name}' for name in known)}."
        )
