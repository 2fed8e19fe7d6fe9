"""Pictures of a run for the page: those of the model card, as SVG within the page."""

import base64
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..tasks_multitask import TaskConfig
from ..training.card.body import kept_step
from ..training.evaluation.groups import TaskGroup
from ..training.report.plots import draw_reliability, draw_training


def _as_address(draw: Callable[[Path], object]) -> str | None:
    """What is drawn as a `data:` address, which an image of the page can have; `None` where nothing was."""
    import matplotlib

    # Text stays text, so that the reader's own fonts write every script.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "0", "savefig.transparent": True}
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(style):
        path = Path(folder, "picture.svg")
        draw(path)
        if not path.is_file():
            return None
        return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def training_picture(
    results: Mapping[str, Any], tasks: dict[str, TaskConfig], groups: dict[str, TaskGroup]
) -> str | None:
    """Loss and validation scores over the steps, from results.json; `None` where nothing was trained."""
    if not results.get("steps") or not results.get("history"):
        return None
    history = results["history"]
    if results["tasks"].keys() - tasks.keys():  # sum and mean are of all tasks
        history = [{**entry, **dict.fromkeys({"loss", "eval_score"} & entry.keys())} for entry in history]
    return _as_address(lambda path: draw_training(path, history, tasks, kept_step(dict(results)), groups))


def reliability_pictures(calibration: Mapping[str, Any], tasks: Mapping[str, TaskConfig]) -> list[dict[str, Any]]:
    """By classification task `task`, `picture`, and the `facts` that results.json has of its calibration."""
    return [
        {
            "task": task,
            "facts": found,
            "picture": _as_address(lambda path, task=task, found=found: draw_reliability(path, {task: found})),
        }
        for task, found in calibration.items()
        if task in tasks
    ]


__all__ = ["reliability_pictures", "training_picture"]
