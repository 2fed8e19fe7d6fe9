"""What the comparison of joint and single training says: printed, in the model card, and as pictures.

    format_comparison    the tables that a run ends with
    comparison_section   the same for the model card
    draw_comparison      each task's difference with its interval; the tasks' gradient cosines, as means and over time

All of it is made of `compare_single` in results.json, see compare.py, and of nothing else.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...checks_multitask import is_number
from ..report.differences import all_compared, draw_differences, percent
from ..report.markdown import code_span, link_target, plain_text, table
from ..report.plots import STYLE
from .gradient_cosines import mean_cosines

DIFFERENCES_PICTURE = "compare_single.png"
COSINES_PICTURE = "gradient_cosines.png"
LEAST_EVALUATIONS = 3  # that a correlation between two validation curves is computed from

NO_COSINES = (
    "No gradients were compared: the tasks share nothing that was trained (backbone and projection are frozen)."
)
FEW_EVALUATIONS = "Validation curves were not compared: that takes three evaluations or more during training."
CONSTANT_CURVES = "Validation curves were not compared: no two of them changed during training."
HOW_TO_READ = (
    "Each task was also trained alone: from the same start, with the same settings and seed and the same number of "
    "its own rows. Scores are in per cent. The interval is the middle 95 % of {resamples:,} paired "
    "resamples of the rows that were measured; where it holds 0, these rows do not tell the two models apart. It says "
    "nothing about another seed, which alone can move a score by as much."
)


def format_difference(found: dict[str, Any]) -> str:
    """`70.2 - 70.3 = -0.1 [-0.7, 0.5]`: joint, single, difference and interval of one task."""
    joint, single, difference = (percent(found[key]) for key in ("joint", "single", "difference"))
    interval = ", ".join(percent(end) for end in found["interval"] or ())
    return f"{joint} - {single} = {difference}" + (f" [{interval}]" if interval else "")


def _differences(compared: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    header = ["task", "metric", "split", "rows", "joint - single = difference [95 % interval]"]
    return header, [
        [task, found["metric"].replace("_", " "), found["split"], found["rows"], format_difference(found)]
        for task, found in all_compared(compared).items()
    ]


def _matrix(tasks: Sequence[str], values: Sequence[Sequence[float | None]]) -> tuple[list[str], list[list[str]]]:
    """A table with a row and a column for each task, without the ones on its diagonal."""
    rows = [
        [task, *("" if place == column else _cosine(value) for column, value in enumerate(row))]
        for place, (task, row) in enumerate(zip(tasks, values, strict=True))
    ]
    return ["", *tasks], rows


def _cosine(value: float | None) -> str:
    return f"{value:.2f}" if is_number(value) else "-"


def _mean_cosines(compared: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Of the similarity tasks: the mean cosine of related and unrelated pairs, before and after either training."""
    stages = ("start", "single", "joint")
    rows = [
        [task if number == 0 else "", kind, *(_cosine(values[stage]) for stage in stages)]
        for task, found in compared["tasks"].items()
        for number, (kind, values) in enumerate(found.get("mean_cosines", {}).items())
    ]
    return ["task", "pairs", *stages], rows


def _tables(compared: dict[str, Any]) -> list[tuple[str, tuple[list[str], list[list[Any]]] | None]]:
    """By table, what it shows in words, and header and rows; no table where there are only the words."""
    tasks, measured = list(compared["tasks"]), compared["gradient_cosines"]
    tables = []
    if measured:
        text = f"Cosines between the tasks' gradients on what they share, mean of {len(measured)} measurements"
        tables.append((text, _matrix(tasks, mean_cosines(measured))))
    else:
        tables.append((NO_COSINES, None))
    if any(is_number(value) for row in compared["curve_correlations"] for value in row):
        text = f"Correlations between the tasks' validation curves in the joint run, {compared['evaluations']} points"
        tables.append((text, _matrix(tasks, compared["curve_correlations"])))
    else:
        is_few = compared["evaluations"] < LEAST_EVALUATIONS
        tables.append((FEW_EVALUATIONS if is_few else CONSTANT_CURVES, None))
    header, rows = _mean_cosines(compared)
    if rows:
        text = "Mean cosine of related and unrelated pairs (scores in the upper and lower fifth of the range)"
        tables.append((text, (header, rows)))
    return tables


def format_comparison(compared: dict[str, Any]) -> str:
    """The tables that a run ends with."""
    header, rows = _differences(compared)
    parts = [
        f"Joint and single training; intervals from {compared['resamples']:,} paired resamples of the rows, one seed\n"
        + tabulate(rows, header, disable_numparse=True)
    ]
    for text, found in _tables(compared):
        shown = "" if found is None else "\n" + tabulate(found[1], found[0], disable_numparse=True)
        parts.append(text + shown)
    return "\n\n".join(parts)


def comparison_section(compared: dict[str, Any], pictures: dict[str, str]) -> str:
    """
    The section of the model card.

    Args:
        compared: `compare_single` of results.json.
        pictures: title and file of each of the card's pictures.
    """

    def show(header: list[str], rows: list[list[Any]]) -> str:
        tasks = set(all_compared(compared))
        header, *rows = ([code_span(cell) if cell in tasks else cell for cell in line] for line in [header, *rows])
        return table(rows, header)

    parts = [HOW_TO_READ.format(resamples=compared["resamples"]), show(*_differences(compared))]
    shown = {file: f"![{plain_text(title)}]({link_target(file)})" for title, file in pictures.items()}
    if DIFFERENCES_PICTURE in shown:
        parts.append(shown[DIFFERENCES_PICTURE])
    for number, (text, found) in enumerate(_tables(compared)):
        parts.append(text + ("" if found is None else ":"))
        if found is not None:
            parts.append(show(*found))
        if number == 0 and COSINES_PICTURE in shown:
            parts.append(shown[COSINES_PICTURE])
    return "## Joint and single training\n\n" + "\n\n".join(parts)


# ---- pictures ----


def draw_comparison(folder: Path, compared: dict[str, Any]) -> dict[str, str]:
    """Draw what there is to draw; returns title and file of each picture."""
    pictures = {}
    found = all_compared(compared)
    metrics = {task: entry["metric"] for task, entry in found.items()}
    if draw_differences(folder / DIFFERENCES_PICTURE, metrics, [("", found)], "joint minus single"):
        pictures["Joint minus single score of each task"] = DIFFERENCES_PICTURE
    if compared["gradient_cosines"]:
        _draw_cosines(folder / COSINES_PICTURE, list(compared["tasks"]), compared["gradient_cosines"])
        pictures["Cosines between the tasks' gradients"] = COSINES_PICTURE
    return pictures


def _draw_cosines(path: Path, tasks: list[str], measured: list[dict[str, Any]]) -> None:
    """The mean of each pair as a heat map, and beside it each pair over the steps."""
    import matplotlib
    from matplotlib.figure import Figure

    means, size = mean_cosines(measured), len(tasks)
    pairs = list(combinations(range(size), 2))
    # Cosines between the gradients of small batches are small: the colours reach as far as the largest one does.
    reach = max([0.1, *(abs(means[row][column]) for row, column in pairs if means[row][column] is not None)])
    with matplotlib.rc_context(STYLE):
        side = min(2.4 + 0.6 * size, 9)  # inches
        height = max(side, 4.4) + 0.22 * math.ceil(len(pairs) / 2)
        figure = Figure(figsize=(side + 7.5, height), layout="constrained")
        heat, lines = figure.subplots(1, 2, width_ratios=[side, 6.5])
        shown = [
            [math.nan if row == column or means[row][column] is None else means[row][column] for column in range(size)]
            for row in range(size)
        ]
        picture = heat.imshow(shown, cmap="RdBu", vmin=-reach, vmax=reach)
        heat.set_facecolor("0.93")
        heat.set_xticks(range(size), tasks, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        heat.set_yticks(range(size), tasks, parse_math=False)
        heat.spines[:].set_visible(False)
        heat.tick_params(length=0)
        for row in range(size):
            for column in range(size):
                text = "1" if row == column else _cosine(means[row][column])
                is_dark = is_number(shown[row][column]) and abs(shown[row][column]) > 0.6 * reach
                colour = "white" if is_dark else "black"
                heat.text(column, row, text, ha="center", va="center", color=colour, fontsize=11 if size < 8 else 8)
        heat.set_title("Mean over the steps")
        figure.colorbar(picture, ax=heat, shrink=0.7)

        colours = matplotlib.colormaps["tab10" if len(pairs) <= 10 else "tab20"]
        for number, (row, column) in enumerate(pairs):
            points = [(entry["step"], entry["cosines"][row][column]) for entry in measured]
            points = [point for point in points if is_number(point[1])]
            steps, cosines = [step for step, _ in points], [cosine for _, cosine in points]
            label = f"{tasks[row]}, {tasks[column]}"
            lines.plot(steps, cosines, color=colours(number % 20), marker="o", markersize=4, label=label)
        lines.axhline(0, color="0.5", linewidth=1)
        lines.set(title="Cosines between the tasks' gradients", xlabel="step", ylabel="cosine")
        lines.grid(alpha=0.3)
        lines.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=10)
        figure.savefig(path)


__all__ = ["comparison_section", "draw_comparison", "format_comparison", "format_difference"]
