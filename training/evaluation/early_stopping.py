"""Early stopping: training ends when `eval_score`, or one task, has stopped improving.

EarlyStopping          the callback
has_stopped_improving  whether patience has run out; follows from the log history, and so survives resuming
check_early_stopping   refuses settings that cannot work
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ...checks_multitask import check_count, is_number, suggest
from ...tasks_multitask import TaskConfig
from .best_checkpoints import score_key


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


def watched_score(args: TrainingArguments, tasks: dict[str, TaskConfig]) -> tuple[str, bool]:
    """What early stopping watches, as it stands in the log, and whether more of it is better."""
    if args.early_stopping_task is not None:
        return score_key(args.early_stopping_task, tasks[args.early_stopping_task]), True
    key = args.metric_for_best_model or "eval_score"
    return key if key.startswith("eval_") else f"eval_{key}", args.greater_is_better is not False


def has_stopped_improving(
    args: TrainingArguments, history: Sequence[dict[str, Any]], tasks: dict[str, TaskConfig]
) -> bool:
    """Whether `early_stopping_patience` has run out; arguments as of `best_of_history`."""
    if args.early_stopping_patience is None:
        return False
    key, greater_is_better = watched_score(args, tasks)
    scores = {entry["step"]: entry[key] for entry in history if key in entry}  # eval_on_start repeats one on resuming
    count = evaluations_without_improvement(list(scores.values()), args.early_stopping_threshold, greater_is_better)
    return count >= args.early_stopping_patience


class EarlyStopping(TrainerCallback):
    """
    Ends training after `early_stopping_patience` evaluations in a row without improvement.

    Watched is the primary metric of `early_stopping_task`, else `metric_for_best_model` (`eval_score`). Works as
    transformers' EarlyStoppingCallback, which knows no other metric than the latter and forgets its count when
    training is resumed; here the count follows from the log history.
    """

    def __init__(self, tasks: dict[str, TaskConfig]):
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
