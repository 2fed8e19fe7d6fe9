"""How scores of several models are shown side by side: in per cent, with the interval of their differences.

percent           one decimal, in words where a score is undefined
with_difference   a score, and in brackets the difference to another with its interval
all_compared      what is compared of tasks and of groups
draw_differences  points with intervals, a row for each task
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...checks_multitask import is_number
from .plots import STYLE

COLOURS = ("#2f6db3", "#c46210")


def percent(value: float | None, sign: str = "") -> str:
    """One decimal in per cent; -0.04 is 0.0."""
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}" if is_number(value) else "undefined"


def with_difference(score: float | None, found: Mapping[str, Any]) -> str:
    """`71.0 (+0.3 [-0.2, 0.8])`: a score, the difference between two, and its interval where it has one."""
    interval = ", ".join(map(percent, found["interval"] or ()))
    return f"{percent(score)} ({percent(found['difference'], '+')}{f' [{interval}]' if interval else ''})"


def all_compared(compared: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is compared of each task, then of each group; older results know no groups."""
    return {**compared["tasks"], **compared.get("groups", {})}


def draw_differences(
    path: Path, metrics: Mapping[str, str], series: Sequence[tuple[str, Mapping[str, dict[str, Any]]]], label: str
) -> bool:
    """
    Draw differences with their intervals.

    Args:
        path: of the picture.
        metrics: by task, or group of such, what is compared.
        series: what each series of points is called, and by task its `difference` and `interval`.
        label: of the axis.

    Returns whether there is any to draw: a difference may be undefined.
    """
    import matplotlib
    from matplotlib.figure import Figure

    drawn = {
        name: {task: found for task, found in points.items() if found["interval"] and is_number(found["difference"])}
        for name, points in series
    }
    drawn = {name: points for name, points in drawn.items() if points}
    tasks = [task for task in metrics if any(task in points for points in drawn.values())]
    if not tasks:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 1.4 + (0.3 + 0.15 * len(drawn)) * len(tasks)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="0.5", linewidth=1)
        for number, ((name, points), colour) in enumerate(zip(drawn.items(), COLOURS, strict=False)):
            shift = 0.26 * (number - (len(drawn) - 1) / 2)
            places = [tasks.index(task) + shift for task in points]
            for place, found in zip(places, points.values(), strict=True):
                ends = [100 * end for end in found["interval"]]
                axes.plot(ends, [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
            differences = [100 * found["difference"] for found in points.values()]
            axes.plot(differences, places, marker="o", color=colour, markersize=8, linestyle="none", label=name)
        names = [f"{task}: {metrics[task].replace('_', ' ')}" for task in tasks]
        axes.set_yticks(range(len(tasks)), names, parse_math=False)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlabel(f"{label}, with the 95 % interval over rows (per cent)")
        axes.grid(axis="x", alpha=0.3)
        if len(drawn) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, frameon=False)
        figure.savefig(path)
    return True


__all__ = ["all_compared", "draw_differences", "percent", "with_difference"]
