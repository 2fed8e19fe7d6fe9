"""What the sections of the page show of a run's rows, ready for the template.

score_table      every task's and group's metrics by split, with intervals
confusions       what each classification task confuses
error_rows       the rows that were answered wrongly, for the table that a reader searches and filters
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..data.metrics.bootstrap import RESAMPLES, score_interval
from ..tasks_multitask import TaskConfig
from ..training.evaluation.groups import TaskGroup, joined
from ..training.evaluation.scores import metric_options, metric_scores
from ..training.report.confusion import matrix_of, most_confused, read_confusion
from .rows import TaskRows

MOST_CLASSES = 25  # of a matrix
MOST_ERRORS = 2000  # of a task, so that the page stays small

# By what its rows are ordered, of each kind of task: heading, and what it means.
DISTANCES = {
    "labels": ("confidence", "how sure the model is of its wrong answer"),
    "regression": ("off by", "how far the value is off"),
    "similarity": ("ranks off", "by how many per cent of the rows the pair ranks too high or too low"),
    "contrastive": ("before it", "how many answers rank before the right one"),
}


def kind_of(settings: TaskConfig) -> str:
    """The key of `DISTANCES`."""
    return "labels" if settings.kind.has_labels else settings.problem_type


def score_rows(
    settings: TaskConfig,
    predictions: np.ndarray,
    references: np.ndarray | None,
    metrics: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """`metric`, `score` and its 95 % bootstrap `interval` over these rows, of each metric that the task lists."""
    scores = metric_scores(settings, predictions, references)
    return [
        {
            "metric": metric,
            "score": scores[metric],
            "interval": score_interval(metric, predictions, references, RESAMPLES, **metric_options(settings, metric)),
        }
        for metric in metrics or settings.metrics
    ]


def score_table(
    rows: Mapping[str, Mapping[str, TaskRows]], groups: Mapping[str, TaskGroup]
) -> tuple[list[str], list[dict[str, Any]]]:
    """
    The splits, and a line for each task or group and metric: `name`, `is_group`, `metric`, and by split `score`,
    `interval` and `rows`.

    Args:
        rows: by task and split.
        groups: tasks that are scored together, by the group's name.
    """
    splits = list(dict.fromkeys(split for by_split in rows.values() for split in by_split))
    sides: dict[str, dict[str, tuple[TaskConfig, Any, Any]]] = {
        task: {split: (found.settings, found.predictions, found.references) for split, found in by_split.items()}
        for task, by_split in rows.items()
    }
    for name, group in groups.items():
        whole = [split for split in splits if all(split in rows.get(task, {}) for task in group.tasks)]
        sides[name] = {}
        for split in whole:
            predictions, references = (
                joined(group, {task: sides[task][split][side] for task in group.tasks}) for side in (1, 2)
            )
            sides[name][split] = group.scoring, predictions, references
    lines = []
    for name, by_split in sides.items():
        scored = {split: score_rows(*found) for split, found in by_split.items()}
        for place, first in enumerate(next(iter(scored.values()), [])):
            cells = {split: {**found[place], "rows": len(by_split[split][1])} for split, found in scored.items()}
            lines.append(
                {"name": name, "is_group": name in groups, "metric": first["metric"], "first": place == 0, "by": cells}
            )
    return splits, lines


def confusions(tasks: Mapping[str, TaskConfig], counted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    What each classification task confuses, from results.json.

    Returns `task`, `split`, `rows`, `labels` that are shown, `num_labels`, and `matrix`, rows of `{"count", "share"}`;
    or for a multi-label task `hits`: by label `found`, `missed` and `false`.
    """
    found = []
    for task, entry in counted.items():
        if task not in tasks or not tasks[task].labels:
            continue
        labels, entry = tasks[task].labels, read_confusion(entry)
        classes = list(range(len(labels))) if len(labels) <= MOST_CLASSES else most_confused(entry, MOST_CLASSES)
        shown = {"task": task, "split": entry["split"], "rows": entry["rows"], "num_labels": len(labels)}
        shown |= {"labels": [labels[number] for number in classes], "matrix": None, "hits": None}
        if "confused" in entry:
            counts = matrix_of(entry, classes)
            totals = [max(entry["labelled"][number], 1) for number in classes]
            shown["matrix"] = [
                [{"count": int(count), "share": count / total} for count in row]
                for row, total in zip(counts, totals, strict=True)
            ]
        else:
            shown["hits"] = [
                {
                    "found": entry["right"][number],
                    "missed": entry["labelled"][number] - entry["right"][number],
                    "false": entry["predicted"][number] - entry["right"][number],
                }
                for number in classes
            ]
        shown["scores"] = [
            {"precision": entry["precision"][number], "recall": entry["recall"][number]} for number in classes
        ]
        found.append(shown)
    return found


def _short(answer: Any) -> Any:
    return round(answer, 4) if isinstance(answer, float) else answer


def error_rows(rows: Mapping[str, TaskRows], slices: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """
    A task's rows that were answered wrongly, the worst first, at most 2,000.

    Args:
        rows: of a task, by split.
        slices: by column of the data, the value of each row by its hash.

    Returns:
        `kind`, `heading` and `meaning` of what they are ordered by, `count` of all rows, `wrong` of those that were
        answered wrongly, and `rows`: `split`, `text`, `label`, `prediction`, `distance`, `words` and `slices`.
    """
    wrong = [(own.distances[row], own, row) for own in rows.values() for row in np.flatnonzero(own.is_wrong)]
    kind = kind_of(next(iter(rows.values())).settings)
    heading, meaning = DISTANCES[kind]
    found = [
        {
            "split": own.split,
            "text": own.texts[row],
            "label": _short(own.answers[row][0]),
            "prediction": _short(own.answers[row][1]),
            "distance": round(float(distance), 4),
            "words": int(own.words[row]),
            "slices": [by_hash.get(int(own.hashes[row])) for by_hash in slices.values()],
        }
        for distance, own, row in sorted(wrong, key=lambda entry: -entry[0])[:MOST_ERRORS]
    ]
    return {
        "kind": kind,
        "heading": heading,
        "meaning": meaning,
        "count": sum(map(len, rows.values())),
        "wrong": len(wrong),
        "rows": found,
    }


__all__ = ["DISTANCES", "confusions", "error_rows", "kind_of", "score_rows", "score_table"]
