"""Pictures for the model card: how training went, and what each classification task confuses.

    draw_training   loss and validation scores over the steps, from the Trainer's log history
    draw_confusion  a confusion matrix, or for a multi-label task what was hit and missed by label
    draw_reliability  how often probabilities come true, before and after calibration
    draw_risk_coverage  the risk of each task that abstains, by the share of rows that it answers

matplotlib is needed for drawing only, and imported there.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ...checks_multitask import is_number
from ...tasks_multitask import TaskConfig
from ..evaluation.groups import TaskGroup, counted_once, with_groups
from .confusion import matrix_of, most_confused

# Up to so many labels all are drawn; of more, those that are confused most. Every tick takes its time, and its place.
MOST_LABELS = 30
LABELS_OF_MANY = 25
MOST_TASKS = 20  # of more, curves stay without a name
LONGEST_LABEL = 24
PANELS_IN_A_ROW = 3
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 100}


def _series(entries: dict[int, dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged quantity, where it is a number."""
    points = [(step, entry[key]) for step, entry in sorted(entries.items()) if is_number(entry.get(key))]
    return [step for step, _ in points], [value for _, value in points]


def _plot_losses(axes: Any, entries: dict[int, dict[str, Any]], tasks: dict[str, TaskConfig], colours: Any) -> None:
    if (total := _series(entries, "loss"))[0]:
        axes.plot(*total, color="black", linewidth=2, label="loss (sum)")
    for number, (task, settings) in enumerate(tasks.items()):
        steps, values = _series(entries, f"loss_{task}")
        if not steps:  # only evaluated
            continue
        weight, key = settings.loss_weight, f"weight_{task}"  # the latter only where weights change in training
        weighted = [entries[step].get(key, weight) * value for step, value in zip(steps, values, strict=True)]
        is_balanced = any(key in entry for entry in entries.values())
        label = task if weight == 1 or is_balanced else f"{weight:g} x {task}"
        label = label if len(tasks) <= MOST_TASKS else None
        axes.plot(steps, weighted, color=colours(number), linewidth=1.4, label=label)
    axes.set(title="Training loss", ylabel="loss times weight")
    axes.set_ylim(bottom=0)


def _shade_stages(axes: Any, losses: dict[int, dict[str, Any]]) -> None:
    """A band for every stretch of steps with the same number of trainable layers, with that number at its top."""
    steps, layers = _series(losses, "trainable_layers")
    left = 0
    for number, (count, stretch) in enumerate(groupby(zip(steps, layers, strict=True), lambda entry: entry[1])):
        *_, (right, _) = stretch
        axes.axvspan(left, right, color=str(0.95 - 0.06 * (number % 2)), linewidth=0, zorder=0)
        label = f"{count:g} layer{'s' * (count != 1)}"
        axes.text(
            (left + right) / 2, 0.99, label, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=9
        )
        left = right


def _plot_scores(
    axes: Any,
    entries: dict[int, dict[str, Any]],
    tasks: dict[str, TaskConfig],
    colours: Any,
    groups: dict[str, TaskGroup],
) -> None:
    scored = with_groups(tasks, groups)
    counted = counted_once(scored, groups)
    for number, (task, settings) in enumerate(scored.items()):
        if task not in counted:
            continue
        metric = settings.primary_metric
        steps, values = _series(entries, f"eval_{task}_{metric}")
        label = f"{task}: {metric.replace('_', ' ')}" if len(counted) <= MOST_TASKS else None
        axes.plot(steps, values, color=colours(number), marker="o", markersize=4, linewidth=1.4, label=label)
    if len(counted) > 1 and (mean := _series(entries, "eval_score"))[0]:
        axes.plot(*mean, color="black", linewidth=2, linestyle="--", label="mean of these")
    axes.set_title("Validation scores")
    axes.margins(y=0.08)


def draw_training(
    path: Path,
    history: Sequence[dict[str, Any]],
    tasks: dict[str, TaskConfig],
    best_step: int | None = None,
    groups: dict[str, TaskGroup] | None = None,
) -> bool:
    """
    Draw the training loss with each task's weighted part of it, and each task's primary validation metric. Where
    layers join one after the other, bands show how many train. Of more than 20 tasks, only sum and mean are named.

    Args:
        path: the PNG file to write.
        history: the Trainer's log history.
        tasks: task settings by name.
        best_step: the step of the checkpoint that was kept, marked by a line.
        groups: the tasks that were scored together, whose curve stands in place of theirs.

    Returns:
        Whether there was anything to draw.
    """
    losses: dict[int, dict[str, Any]] = {}
    scores: dict[int, dict[str, Any]] = {}
    for entry in history:
        # The evaluation after training repeats the last step with the best checkpoint: the first entry is the curve's.
        if "loss" in entry:
            losses.setdefault(entry["step"], entry)
        elif "eval_score" in entry:
            scores.setdefault(entry["step"], entry)
    if not losses and not scores:
        return False

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11 if losses and scores else 6, 4.4), layout="constrained")
        groups = groups or {}
        colours = matplotlib.colormaps["tab10" if len(tasks) + len(groups) <= 10 else "tab20"]
        both = ((_plot_losses, losses), (partial(_plot_scores, groups=groups), scores))
        panels = [(panel, entries) for panel, entries in both if entries]
        all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for (panel, entries), axes in zip(panels, all_axes, strict=True):
            _shade_stages(axes, losses)
            panel(axes, entries, tasks, colours)
            if entries is scores and best_step:
                axes.axvline(best_step, color="0.5", linewidth=1.2, linestyle=":", label="kept checkpoint")
            axes.set_xlim(left=0)
            in_stages = any("trainable_layers" in entry for entry in losses.values())
            axes.set_xlabel("step (at the top: backbone layers that train)" if in_stages else "step")
            axes.grid(alpha=0.3)
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=10, handlelength=1.6
            )
        figure.savefig(path)  # a Figure without pyplot draws with Agg, whatever backend is set
    return True


def _drawable(labels: Sequence[str], classes: Sequence[int]) -> list[str]:
    """Names of classes, short enough for an axis; one that matplotlib's own font cannot write becomes its number."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    names = []
    for number in classes:
        name = " ".join(str(labels[number]).split())
        if not name or any(ord(character) not in known for character in name):
            name = f"label {number}"
        names.append(name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…")
    return names


def draw_confusion(path: Path, task: str, labels: Sequence[str], counted: dict[str, Any]) -> None:
    """
    Draw what `count_confusion` has counted: of up to 30 classes all, else the 25 that are confused most.

    Args:
        path: the PNG file to write.
        task: the task's name, for the title.
        labels: the names of all classes.
        counted: the counts with their `split`, as `read_confusion` gives them.
    """
    import matplotlib

    classes = range(len(labels)) if len(labels) <= MOST_LABELS else most_confused(counted, LABELS_OF_MANY)
    title = f"{task}, {counted['split']} split ({counted['rows']:,} rows)"
    if len(classes) < len(labels):
        title += f"\nthe {len(classes)} most confused of {len(labels):,} classes"
    with matplotlib.rc_context({**STYLE, "font.family": "DejaVu Sans"}):
        names = _drawable(labels, classes)
        draw = _matrix if "confused" in counted else _hits_by_label
        figure = draw(names, counted, list(classes))
        figure.axes[0].set_title(title, parse_math=False)
        figure.savefig(path)


def _matrix(names: Sequence[str], counted: dict[str, Any], classes: list[int]) -> Any:
    """Rows are the true classes, columns the predicted ones; the colour is the share of all rows of the class."""
    from matplotlib.figure import Figure

    size = len(classes)
    side = min(2.6 + 0.55 * size, 4.5 + 0.3 * size, 16)  # inches
    figure = Figure(figsize=(side + 1.4, side + 0.6), layout="constrained")
    axes = figure.subplots()
    counts = matrix_of(counted, classes)
    shares = counts / np.maximum([[counted["labelled"][number]] for number in classes], 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    fontsize = 11 if size <= 12 else 9
    axes.set_xticks(range(size), names, rotation=45 if size <= 12 else 90, parse_math=False, fontsize=fontsize)
    if size <= 12:
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), names, parse_math=False, fontsize=fontsize)
    axes.set(xlabel="predicted", ylabel="labelled")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for row, column in zip(*counts.nonzero(), strict=True):
        axes.text(
            column,
            row,
            counts[row, column],
            ha="center",
            va="center",
            fontsize=12 if size <= 6 else 9 if size <= 12 else 7,
            color="white" if shares[row, column] > 0.55 else "black",
        )
    figure.colorbar(picture, ax=axes, label="share of the labelled class", shrink=0.7)
    return figure


def _hits_by_label(names: Sequence[str], counted: dict[str, Any], classes: list[int]) -> Any:
    """A bar for each label: rows found and rows missed, and to the left of zero the false alarms."""
    from matplotlib.figure import Figure

    size = len(classes)
    figure = Figure(figsize=(8.5, 1.8 + 0.28 * size), layout="constrained")
    axes = figure.subplots()
    found, labelled, predicted = (np.array(counted[key])[classes] for key in ("right", "labelled", "predicted"))
    places = np.arange(size)
    axes.barh(places, found, color="#2f6db3", label="found")
    axes.barh(places, labelled - found, left=found, color="#b9d3ec", label="missed")
    axes.barh(places, found - predicted, color="#d9884f", label="predicted, but not labelled")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names, parse_math=False, fontsize=10)
    axes.set_ylim(size - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_xlabel("rows")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_reliability(path: Path, calibration: dict[str, dict[str, Any]]) -> None:
    """
    Draw the share that came true over the mean forecast of each bin, a panel for each task, before and after its
    temperature; the larger the dot, the more forecasts.

    Args:
        path: the PNG file to write.
        calibration: what `describe_calibration` gave, of up to 12 tasks.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(calibration), PANELS_IN_A_ROW)
    rows = -(-len(calibration) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.4 * columns, 5), 3.9 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (task, found) in zip(all_axes, calibration.items(), strict=False):
            axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
            for side, colour in (("before", "#d9884f"), ("after", "#2f6db3")):
                if found[side] is None:
                    continue
                counts = np.array(found[side]["forecasts"])
                curve = [np.array(found[side][key], dtype=float)[counts > 0] for key in ("mean_forecast", "came_true")]
                sizes = 12 + 140 * counts[counts > 0] / counts.sum()
                axes.plot(*curve, color=colour, linewidth=1.4)
                error = found[side]["expected_calibration_error"]
                axes.scatter(*curve, s=sizes, color=colour, label=f"{side}: error {error:.3f}")
            axes.set_title(f"{task}, {found['split']}", parse_math=False)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.set(xlabel="probability", ylabel="share that came true")
            axes.grid(alpha=0.3)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=10)
        for axes in all_axes[len(calibration) :]:
            axes.remove()
        figure.savefig(path)


def draw_risk_coverage(path: Path, abstention: dict[str, dict[str, Any]]) -> None:
    """
    Draw the share of errors over the share of rows that are answered, a curve for each task that abstains, with a dot
    where it does and a dotted line at the risk that it promises.

    Args:
        path: the PNG file to write.
        abstention: what `describe_abstention` gave.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 4.4), layout="constrained")
        axes = figure.subplots()
        colours = matplotlib.colormaps["tab10" if len(abstention) <= 10 else "tab20"]
        for number, (task, found) in enumerate(abstention.items()):
            split, answered = list(found["splits"].items())[-1]
            label = f"{task}, {split}" if len(abstention) <= MOST_TASKS else None
            axes.plot(found["curve"]["coverage"], found["curve"]["risk"], color=colours(number), label=label)
            if answered["risk"] is not None:
                axes.plot(answered["coverage"], answered["risk"], marker="o", color=colours(number))
            if found["risk"] is not None:
                axes.axhline(found["risk"], color=colours(number), linewidth=1, linestyle=":")
        axes.set(xlabel="share of rows that are answered", ylabel="share of wrong answers")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=10)
        figure.savefig(path)
