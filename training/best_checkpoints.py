"""The best step of every task, and early stopping. Both follow from the log history, and so survive resuming.

BestOfTasks       at each evaluation: keeps the model as `best/<task>` for each task that is now better than ever
best_of_history   each task's best step and score
EarlyStopping     ends training when `eval_score`, or one task, has stopped improving
format_best       the table that a run ends with
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ..checks_multitask import check_count, is_number, suggest
from ..problem_types_multitask import PROBLEM_TYPES

BEST_FOLDER = "best"
STEP_FILE = "best.json"  # in each folder: which step it is, and its score
UNFINISHED, COPY, OLDER = ".unfinished", ".copy", ".older"  # what is being written, and what it replaces


def score_key(task: str, settings: dict[str, Any]) -> str:
    """The log's name of a task's primary metric on validation data."""
    return f"eval_{task}_{settings['metrics'][0]}"


def best_of_history(history: Sequence[dict[str, Any]], tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
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
                best[task] = {"metric": settings["metrics"][0], "step": entry["step"], "score": score}
    return best


def keep_models(model: PreTrainedModel, folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """
    Save a model as `folder/<task>` for each of some tasks, in place of older ones.

    It is written under other names first, so that a folder with a task's name is always complete.

    Args:
        model: what is saved.
        folder: the folder of all tasks.
        found: by task, what is written into its `best.json`.
    """
    if not found:
        return
    unfinished, copy, older = folder / UNFINISHED, folder / COPY, folder / OLDER
    for leftover in (unfinished, copy, older):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(unfinished)  # as deep as the copies: an adapter names its base as seen from its own folder
    for task, content in found.items():
        shutil.copytree(unfinished, copy)
        (copy / STEP_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")
        if (folder / task).exists():
            (folder / task).rename(older)
        copy.rename(folder / task)
        shutil.rmtree(older, ignore_errors=True)
    shutil.rmtree(unfinished)


def is_best_folder(folder: Path) -> bool:
    """Whether it is what `BestOfTasks` leaves in an output folder, also where it was stopped."""
    inside = list(folder.iterdir()) if folder.name == BEST_FOLDER and folder.is_dir() else []
    return bool(inside) and all(
        path.name in (UNFINISHED, COPY, OLDER) or (path / STEP_FILE).is_file() for path in inside
    )


class BestOfTasks(TrainerCallback):
    """
    Tracks the best step of each task while a Trainer trains, and keeps the model of that step.

    `output_dir/best/<task>` is a finished model folder, without optimizer. Nothing is kept where
    `keep_best_of_tasks` is off or `save_strategy` is `no`.

    Attributes:
        summary: after training, by task: `metric`, `step`, `score`, `chosen_score` (the same metric at `chosen_step`,
            when the model that the run ends with was evaluated; `None` where it was not), `folder` (or `None`).
        chosen_step: the step of the model that the run ends with.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.summary: dict[str, dict[str, Any]] = {}
        self.chosen_step = 0

    def on_evaluate(self, args, state, control, **kwargs):
        keeps = args.should_save and args.keep_best_of_tasks and args.save_strategy != "no"
        if not keeps or not self.trainer.is_in_train:
            return
        best = best_of_history(state.log_history, self.trainer.trained_tasks)
        improved = {task: found for task, found in best.items() if found["step"] == state.global_step}
        self.trainer.accelerator.unwrap_model(self.trainer.model).adopt_heads()
        keep_models(self.trainer.model, Path(args.output_dir) / BEST_FOLDER, improved)

    def on_train_end(self, args, state, control, **kwargs):
        is_best_loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
        self.chosen_step = state.best_global_step if is_best_loaded else state.global_step
        chosen = [entry for entry in state.log_history if entry["step"] == self.chosen_step]
        tasks, folder = self.trainer.trained_tasks, Path(args.output_dir) / BEST_FOLDER
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


def check_best_metric(args: TrainingArguments, tasks: dict[str, dict[str, Any]]) -> None:
    """
    Check that evaluations give `metric_for_best_model`; of the task settings, a recipe's own are enough.

    Raises:
        ValueError: they do not; names what they give.
    """
    metric = args.metric_for_best_model
    if metric is None:
        return
    known = ["score", "loss"]
    for task, settings in tasks.items():
        metrics = settings.get("metrics") or PROBLEM_TYPES[settings["problem_type"]].metrics[:1]
        known += [f"{task}_{name}" for name in (*metrics, "loss")]
    if (name := metric.removeprefix("eval_")) not in known:
        raise ValueError(
            f"metric_for_best_model: evaluations give no {metric!r}.{suggest(name, known)} Known: "
            f"{', '.join(f'eval_{name}' for name in known)}."
        )


def check_early_stopping(args: TrainingArguments, tasks: Sequence[str]) -> None:
    """
    Check `early_stopping_patience`, `early_stopping_threshold` and `early_stopping_task`.

    Raises:
        ValueError: a value is out of range, the task is unknown, or nothing is evaluated.
    """
    patience, threshold, task = args.early_stopping_patience, args.early_stopping_threshold, args.early_stopping_task
    if patience is None:
        if task is not None or threshold:
            name = "early_stopping_task" if task is not None else "early_stopping_threshold"
            raise ValueError(
                f"{name} is given without early_stopping_patience. Say after how many evaluations to stop."
            )
        return
    check_count("early_stopping_patience", patience)
    if not is_number(threshold) or threshold < 0:
        raise ValueError(f"early_stopping_threshold is {threshold}, but should be a number of at least 0.")
    if task is not None and task not in tasks:
        raise ValueError(
            f"early_stopping_task: there is no task {task!r}.{suggest(task, tasks)} Known tasks: {', '.join(tasks)}. "
            "Leave it out to watch the mean of all (eval_score)."
        )
    if args.eval_strategy == "no":
        raise ValueError(
            "early_stopping_patience needs evaluations, but eval_strategy is no. Set it to epoch or steps."
        )


def evaluations_without_improvement(
    scores: Sequence[float], threshold: float = 0.0, greater_is_better: bool = True
) -> int:
    """How many of the last scores in a row did not beat all earlier ones by more than the threshold (NaN does not)."""
    best, count = -math.inf, 0
    for score in scores if greater_is_better else [-score for score in scores]:
        count = 0 if score - best > threshold else count + 1
        best = score if score > best else best
    return count


def watched_score(args: TrainingArguments, tasks: dict[str, dict[str, Any]]) -> tuple[str, bool]:
    """What early stopping watches, as it stands in the log, and whether more of it is better."""
    if args.early_stopping_task is not None:
        return score_key(args.early_stopping_task, tasks[args.early_stopping_task]), True
    key = args.metric_for_best_model or "eval_score"
    return key if key.startswith("eval_") else f"eval_{key}", args.greater_is_better is not False


def has_stopped_improving(
    args: TrainingArguments, history: Sequence[dict[str, Any]], tasks: dict[str, dict[str, Any]]
) -> bool:
    """Whether `early_stopping_patience` has run out; arguments as of `best_of_history`."""
    if args.early_stopping_patience is None:
        return False
    key, greater_is_better = watched_score(args, tasks)
    scores = [entry[key] for entry in history if key in entry]
    count = evaluations_without_improvement(scores, args.early_stopping_threshold, greater_is_better)
    return count >= args.early_stopping_patience


class EarlyStopping(TrainerCallback):
    """
    Ends training after `early_stopping_patience` evaluations in a row without improvement.

    Watched is the primary metric of `early_stopping_task`, else `metric_for_best_model` (`eval_score`). Works as
    transformers' EarlyStoppingCallback, which knows no other metric than the latter and forgets its count when
    training is resumed; here the count follows from the log history.
    """

    def __init__(self, tasks: dict[str, dict[str, Any]]):
        self.tasks = tasks

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if "eval_score" not in metrics:
            return  # an evaluation of another split
        key, _ = watched_score(args, self.tasks)
        if key not in metrics:
            raise ValueError(
                f"Early stopping watches {key}, which the evaluation does not give. Take a task with labelled "
                "validation rows, or eval_score."
            )
        if has_stopped_improving(args, state.log_history, self.tasks):
            control.should_training_stop = True
