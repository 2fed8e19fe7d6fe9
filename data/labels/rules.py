"""How a task's cells are read, as a recipe may say: `label_separator`, `label_map`, `missing_labels`, `empty_text`,
`contradictions`.

`reading_rules` checks these settings of a TaskSource before any data is loaded, and gives them as they are used.
"""

from dataclasses import dataclass
from typing import Any

from ...checks_multitask import check_choice, suggest
from ...problem_types_multitask import ProblemType
from ..sources.task_source import TaskSource
from ..text.problems import brief
from ..text.spelling import clean, spell

EMPTY_TEXT = ("error", "drop")
# What a problem type must be for a setting to say something about it, and what to tell the others.
_APPLIES = {
    "label_separator": ("is_multi_label", "only a multi-label task has several labels in a cell"),
    "label_map": ("has_labels", "only classification tasks have label names"),
    "missing_labels": ("has_label_column", "a contrastive task has no labels"),
    "contradictions": ("has_label_column", "a contrastive task has no labels"),
}


@dataclass(frozen=True)
class ReadingRules:
    """
    The checked rules of one task.

    Attributes:
        label_separator: what stands between the labels of a multi-label cell; `None` where the recipe does not say.
        label_map: by name in the data, the name of the class.
        missing_labels: names in the data that mean that the row is not labelled.
        empty_text: "error" or "drop".
        contradictions: "keep", "drop", "majority" or (scores) "mean".
    """

    task: str
    kind: ProblemType
    label_separator: str | None
    label_map: dict[str, str]
    missing_labels: frozenset[str]
    empty_text: str
    contradictions: str

    def class_of(self, name: str) -> str | None:
        """The class that a name in the data means, `None` for no label."""
        return None if name in self.missing_labels else self.label_map.get(name, name)


def _name(where: str, value: Any) -> str:
    """A label name in the recipe as text."""
    if value is None:
        raise ValueError(f"{where} holds nothing, which is how YAML reads an unquoted null or ~. Put it into quotes.")
    if not isinstance(value, str | int | float) or not spell(value):
        raise ValueError(f"{where} holds {brief(value)} where the name of a label should be.")
    return spell(value)


def _missing_labels(where: str, value: Any, labels: list[str]) -> frozenset[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {brief(value)}, but should be a list of names, such as [N/A, unknown].")
    names = frozenset(_name(where, item) for item in value)
    if listed := sorted(names & set(labels)):
        raise ValueError(
            f"{where} holds {brief(listed[0])}, which is a label of the task. Take it out of one of the two."
        )
    return names


def _label_map(where: str, value: Any, labels: list[str], missing: frozenset[str]) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{where} is {brief(value)}, but should be a mapping of names, such as {{NEG: negative}}.")
    found: dict[str, str] = {}
    for key, target in value.items():
        name = _name(where, key)
        if target is None:
            raise ValueError(
                f"{where}: {brief(name)} has no label. Rows without a label are named in missing_labels: [{name}]."
            )
        if name in found:
            raise ValueError(
                f"{where}: {brief(name)} stands twice, for {brief(found[name])} and {brief(spell(target))}. Keep one."
            )
        found[name] = _name(f"{where}.{name}", target)
    for name, target in found.items():
        if found.get(target, target) != target:
            raise ValueError(
                f"{where}: {brief(name)} becomes {brief(target)}, which becomes {brief(found[target])}. Each name is "
                f"replaced once: write the label that is meant, such as {name}: {found[target]}."
            )
        if {name, target} & missing:
            raise ValueError(
                f"{where}: {brief(name)} becomes {brief(target)}, and missing_labels says that "
                f"{brief(name if name in missing else target)} is no label. Take it out of one of the two."
            )
        if labels and target not in labels:
            raise ValueError(
                f"{where}: {brief(name)} becomes {brief(target)}, which is not a label of the "
                f"task.{suggest(target, labels)} Known labels: {labels[:20]}."
            )
        if name in labels and name != target:
            raise ValueError(
                f"{where}: {brief(name)} becomes {brief(target)}, but is a label of the task itself. Take it out of "
                "the labels, or out of label_map."
            )
    return found


def _choice(where: str, value: Any, known: tuple[str, ...]) -> str:
    if value is None:
        return known[0]
    check_choice(where, value, known)
    return value


def reading_rules(source: TaskSource) -> ReadingRules:
    """
    The rules of a task, checked.

    Raises:
        ValueError: a setting has another form than it should have, contradicts another one or the labels, or has no
            effect on a task of this kind.
    """
    where = f"tasks.{source.name}"
    for key, (fact, reason) in _APPLIES.items():
        if getattr(source, key) is not None and not getattr(source.kind, fact):
            raise ValueError(
                f"{where}.{key} has no effect on a task of type {source.problem_type}: {reason}. Leave it out."
            )
    if isinstance(source.columns.get("label"), list):
        for key in ("label_separator", "label_map"):
            if getattr(source, key) is not None:
                raise ValueError(
                    f"{where}.{key} has no effect where {where}.columns.label lists 0/1 columns, whose names are the "
                    f"labels. Leave it out, and name the labels under {where}.labels."
                )
    separator, labels = source.label_separator, [clean(str(label)) for label in source.labels or []]
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise ValueError(
            f"{where}.label_separator is {separator!r}, but should be the text between two labels, such as ', '."
        )
    missing = (
        frozenset()
        if source.missing_labels is None
        else _missing_labels(f"{where}.missing_labels", source.missing_labels, labels)
    )
    return ReadingRules(
        task=source.name,
        kind=source.kind,
        label_separator=separator,
        label_map={}
        if source.label_map is None
        else _label_map(f"{where}.label_map", source.label_map, labels, missing),
        missing_labels=missing,
        empty_text=_choice(f"{where}.empty_text", source.empty_text, EMPTY_TEXT),
        contradictions=_choice(
            f"{where}.contradictions",
            source.contradictions,
            ("keep", "drop", "mean" if source.kind.has_scores else "majority"),
        ),
    )


__all__ = ["ReadingRules", "reading_rules"]
