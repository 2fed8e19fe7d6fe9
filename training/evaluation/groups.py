"""Groups of tasks that are scored together: one figure over all their rows, such as stance towards five targets.

TaskGroup           a group's tasks, and how it is scored
read_groups         the groups of a recipe or a caller, checked against the tasks that there are
with_groups         all that is scored: settings by task, then by group
group_scores        the metrics of each group, from what its tasks answered
common_split        the split that all tasks of a group are measured on
joined              the rows of all tasks
counted_once        groups, and the tasks that are in none
check_metric_keys   refuses names whose scores would be the same key
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks_multitask import check_keys, check_mapping, suggest
from ...tasks_multitask import TaskConfig
from .scores import TaskAnswers, metric_scores

_GROUP_KEYS = ("tasks", "metrics", "f1_labels")


@dataclass(frozen=True)
class TaskGroup:
    """
    Tasks that are scored together.

    Attributes:
        tasks: their names, two or more classification tasks with the same labels.
        scoring: problem type and labels of these tasks, with the group's own `metrics` and `f1_labels`.
    """

    tasks: tuple[str, ...]
    scoring: TaskConfig

    def to_recipe(self) -> dict[str, Any]:
        """What a recipe says of the group, with defaults filled in."""
        chosen = {"f1_labels": list(self.scoring.f1_labels)} if self.scoring.f1_labels else {}
        return {"tasks": list(self.tasks), "metrics": list(self.scoring.metrics), **chosen}


def _check_members(where: str, members: Any, tasks: Mapping[str, TaskConfig], without_labels: Collection[str]) -> None:
    if not isinstance(members, (list, tuple)) or len(members) < 2:
        raise ValueError(f"{where}.tasks is {members!r}, but should list two tasks or more.")
    for place, name in enumerate(members):
        if not isinstance(name, str) or name not in tasks:
            raise ValueError(
                f"{where}.tasks: there is no task {name!r}.{suggest(name, tasks)} Known tasks: {', '.join(tasks)}."
            )
        if name in members[:place]:
            raise ValueError(f"{where}.tasks lists {name!r} more than once.")
        if not tasks[name].kind.has_labels:
            raise ValueError(
                f"{where}.tasks: {name!r} is a task of type {tasks[name].problem_type}, but only classification tasks "
                "are scored together. Take it out."
            )
        if name in without_labels:
            raise ValueError(
                f"{where}.tasks: {name!r} lists no labels. Tasks that are scored together need the same ones in the "
                f"same order: list them under tasks.{name}.labels."
            )
    first = tasks[members[0]]
    for name in members[1:]:
        if (tasks[name].problem_type, tasks[name].labels) != (first.problem_type, first.labels):
            found = ", but ".join(
                f"{member!r} is a task of type {tasks[member].problem_type} with the labels {tasks[member].labels}"
                for member in (members[0], name)
            )
            raise ValueError(
                f"{where}.tasks: {found}. Tasks that are scored together need one type, and the same labels in the "
                "same order."
            )


def read_groups(
    groups: Any, tasks: Mapping[str, TaskConfig], without_labels: Collection[str] = ()
) -> dict[str, TaskGroup]:
    """
    The groups by name.

    Args:
        groups: by name, a `TaskGroup` or what a recipe says: `tasks`, `metrics` (the first is the primary one) and
            `f1_labels`. `None` for no groups.
        tasks: the tasks that there are.
        without_labels: classification tasks whose labels are not known yet, which no group can have.

    Raises:
        ValueError: a name is taken or is no identifier, a task is unknown, stands in two groups or does not fit the
            others, a metric is wrong, or two scores would have one name.
    """
    groups = {} if groups is None else groups
    check_mapping("groups", groups)
    read: dict[str, TaskGroup] = {}
    for name, group in groups.items():
        where = f"groups.{name}"
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(
                f"groups: the name {name!r} is not an identifier. Use letters, digits and underscores, like 'stance'."
            )
        if name in tasks:
            raise ValueError(f"groups: {name!r} is the name of a task. Choose another one.")
        group = group.to_recipe() if isinstance(group, TaskGroup) else group
        check_mapping(where, group)
        check_keys(where, group, _GROUP_KEYS)
        members = group.get("tasks")
        _check_members(where, members, tasks, without_labels)
        for other, earlier in read.items():
            if both := [task for task in members if task in earlier.tasks]:
                raise ValueError(
                    f"{where}.tasks: {both[0]!r} stands in groups.{other} as well. A task counts once in eval_score: "
                    "leave it in one group."
                )
        first = tasks[members[0]]
        scoring = TaskConfig(
            problem_type=first.problem_type,
            labels=first.labels,
            metrics=group.get("metrics"),
            f1_labels=group.get("f1_labels"),
            where=where,
        )
        read[name] = TaskGroup(tuple(members), scoring)
    check_metric_keys(with_groups(tasks, read))
    return read


def with_groups(tasks: Mapping[str, TaskConfig], groups: Mapping[str, TaskGroup]) -> dict[str, TaskConfig]:
    """Settings of all that is scored: of the tasks, then of the groups."""
    return {**tasks, **{name: group.scoring for name, group in groups.items()}}


def group_scores(groups: Mapping[str, TaskGroup], answers: Mapping[str, TaskAnswers]) -> dict[str, dict[str, float]]:
    """
    The metrics of each group over the rows of all its tasks that have answers; no entry where none has.

    So TweetEval's own script scores stance: it joins the rows of the five targets.
    """
    scores = {}
    for name, group in groups.items():
        if found := [answers[task] for task in group.tasks if task in answers]:
            predictions, references = (
                np.concatenate([getattr(answer, side) for answer in found]) for side in ("predictions", "references")
            )
            scores[name] = metric_scores(group.scoring, predictions, references)
    return scores


def common_split(group: TaskGroup, splits: Mapping[str, str]) -> str | None:
    """The split that all tasks of a group are measured on, from that of each task; `None` where there is no such."""
    found = {splits.get(task) for task in group.tasks}
    return found.pop() if len(found) == 1 else None


def joined(group: TaskGroup, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """One array of the rows of all tasks, task by task."""
    return np.concatenate([arrays[task] for task in group.tasks])


def counted_once(by_name: Mapping[str, Any], groups: Mapping[str, TaskGroup]) -> dict[str, Any]:
    """What there is of groups, and of the tasks that are in none: what `eval_score` is the mean of."""
    members = {task for group in groups.values() for task in group.tasks}
    return {name: found for name, found in by_name.items() if name not in members}


def check_metric_keys(scored: Mapping[str, TaskConfig]) -> None:
    """Refuse names whose `eval_<name>_<metric>` would be the same key, such as `a` and `a_cosine`."""
    owners: dict[str, str] = {}
    for name, task in scored.items():
        for metric in (*task.metrics, "loss"):
            owner = owners.setdefault(f"{name}_{metric}", name)
            if owner != name:
                raise ValueError(
                    f"tasks: {owner!r} and {name!r} would both report a score called {name}_{metric}. Rename one."
                )


__all__ = [
    "TaskGroup",
    "check_metric_keys",
    "common_split",
    "counted_once",
    "group_scores",
    "joined",
    "read_groups",
    "with_groups",
]
