"""What is printed of a log: with many tasks, not the losses and scores of each.

    shorten_log         what a line shows
    shorten_log_lines   lets a trainer print such lines

The whole log stays in `trainer_state.json` of every checkpoint, and is what trackers get.
"""

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

MOST_TASKS = 20


def shorten_log(logs: Mapping[str, Any], tasks: Collection[str]) -> dict[str, Any]:
    """Without what tells of a single task; in place of their losses, the lowest and the highest of them."""
    names = "|".join(map(re.escape, tasks))
    of_one = re.compile(rf"(loss|weight)_({names})|(eval|test)_({names})_.+")
    shown = {key: value for key, value in logs.items() if not of_one.fullmatch(key)}
    losses = {task: logs[f"loss_{task}"] for task in tasks if f"loss_{task}" in logs}
    if losses:
        ends = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        shown["loss of one"] = " to ".join(f"{losses[task]:.4g} ({task})" for task in ends)
    return shown


def shorten_log_lines(trainer: Trainer, tasks: Collection[str]) -> None:
    """Let the trainer print short lines, where there are more than `MOST_TASKS` tasks."""
    if len(tasks) <= MOST_TASKS:
        return

    def print_short(print_log, args, state, control, logs=None, **kwargs) -> None:
        print_log(args, state, control, logs=shorten_log(logs or {}, tasks), **kwargs)

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, (PrinterCallback, ProgressCallback)):
            callback.on_log = partial(print_short, callback.on_log)


__all__ = ["shorten_log", "shorten_log_lines"]
