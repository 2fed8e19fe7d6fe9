"""What one label cell holds, before anybody knows the label list: `open_cell` gives the names in it as `Marks`.

A cell may be a name or a number, a list, a mapping, or text in which a list or a mapping is written out: as JSON, as
Python (`str` of a list, which pandas writes), as numpy (`['a' 'b']`, which `datasets` writes), or bare (`[a, b]`,
`{a,b}`, as Spark and Postgres write). In a multi-label task, other text may hold several names with a separator
between them. Text is never taken for a number: "007", "7" and "7.0" are three names.
"""

import ast
import csv
import json
import math
import re
import warnings
from collections.abc import Collection
from decimal import Decimal
from typing import Any

from ..text.problems import CellError, brief
from ..text.spelling import clean, spell
from .reading import FLAGS, Marks
from .rules import ReadingRules

BRACKETS = {"[": "]", "(": ")", "{": "}"}
LARGEST_FLOAT = 2**53  # beyond it, a float no longer tells neighbouring whole numbers apart
LONGEST_NUMBER = 10**100  # Python refuses to write numbers of thousands of digits

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_NUMPY_ITEM = rf"{_QUOTED}|[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?|True|False|None|nan"
# What Python, numpy and torch write around a list: set(), frozenset({...}), array([1, 0]), tensor([1., 0.]).
_WRAPPED = re.compile(
    r"(?:set|frozenset|list|tuple|(?:np\.)?array|tensor)\(\s*([\[({].*[\])}]|)\s*(?:,\s*(?:dtype|device)=[^()]*)?\)",
    re.DOTALL,
)
_NUMPY_LIST = re.compile(rf"\[\s*(?:(?:{_NUMPY_ITEM})(?:\s+(?:{_NUMPY_ITEM}))*)?\s*\]", re.DOTALL)


def _written_out(text: str) -> list[Any] | dict[Any, Any] | None:
    """The list or mapping that a text is as JSON, numpy or Python; None for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of backslashes in names
                if _NUMPY_LIST.fullmatch(text):  # before Python, which reads ['a' 'b'] as the one text "ab"
                    items = re.findall(_NUMPY_ITEM, text, re.DOTALL)
                    value = [math.nan if item == "nan" else ast.literal_eval(item) for item in items]
                else:
                    value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return None
    if isinstance(value, tuple | set):
        value = list(value)
    return value if isinstance(value, list | dict) else None


def _unquoted(text: str) -> str:
    """The list or mapping that a text is as JSON within JSON (`"[\\"a\\"]"`); other text as it is."""
    try:
        inner = json.loads(text) if text[:2] in ('"[', '"{') else None
    except ValueError:
        return text
    return clean(inner) if isinstance(inner, str) else text


def _bare_list(text: str) -> list[str] | None:
    """The names of `[a, b]` and `{a,"b c"}`; None where brackets or colons within say that it is something else."""
    inner = text[1:-1].strip()
    if re.search(r"[\[\]{}:'\n]|\.\.\.", inner):
        return None
    try:
        return [item for item in next(csv.reader([inner], skipinitialspace=True, strict=True), []) if item.strip()]
    except csv.Error:  # quotes that enclose no name
        return None


def _split(rules: ReadingRules, text: str) -> list[Any]:
    """The names in the text of a multi-label cell that is neither written-out list nor mapping."""
    closed = text[0] in "[{" and text[-1] == BRACKETS[text[0]]
    if rules.label_separator is None and (closed or text[:2] in ("['", '["', "{'", '{"')):
        found = _bare_list(text) if closed else None
        if found is None:
            raise CellError(
                f"found {brief(text)}, which looks like a list and cannot be read as one.",
                f"Write lists as JSON or Python does, or list such names under tasks.{rules.task}.labels.",
            )
        return found
    return [part for part in text.split(rules.label_separator or "|") if clean(part)]


def _flag(rules: ReadingRules, name: Any, value: Any, cell: Any) -> bool | None:
    """Whether a mapping's value says that a name applies; None where it says nothing of it."""
    if value is None:
        return None
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value in FLAGS:
        return bool(FLAGS[value])
    raise CellError(
        f"found {brief(cell)} for task {rules.task!r}, where {brief(name)} is neither 0 nor 1.",
        "A mapping should say of each label whether it applies, with 1 or 0, or be like {choices: [...]}.",
    )


def _item_name(rules: ReadingRules, item: Any, cell: Any) -> str:
    if isinstance(item, float):
        if not math.isfinite(item) and spell(item) not in rules.missing_labels:
            raise CellError(
                f"{item} is no label of task {rules.task!r}.", "Leave the cell empty if the row is not labelled."
            )
        if LARGEST_FLOAT < abs(item) < math.inf:
            raise CellError(
                f"found {brief(item)} for task {rules.task!r}, a number too large to have kept all of its digits.",
                "Store labels with so many digits as text.",
            )
    too_long = isinstance(item, int) and abs(item) >= LONGEST_NUMBER
    if not isinstance(item, str | int | float | Decimal) or too_long or not spell(item):
        raise CellError(
            f"the labels {brief(cell)} of task {rules.task!r} hold an empty or true/false entry, or one that is "
            "no name.",
            "List names or ids.",
        )
    return spell(item)


def _wrong_kind(rules: ReadingRules, cell: Any) -> CellError:
    found = f"found {type(cell).__name__} {brief(cell)} where"
    if rules.kind.is_multi_label:
        return CellError(
            f"{found} multi-label task {rules.task!r} needs a list of labels, or text with "
            f"{brief(rules.label_separator or '|')} between the labels.",
            f"Correct the row, or name several 0/1 columns as tasks.{rules.task}.columns.label.",
        )
    return CellError(
        f"{found} task {rules.task!r} needs one label, a name or a number.",
        f"Correct the row, or write tasks.{rules.task}.problem_type: multi_label_classification if a row may have "
        "several labels or none.",
    )


def open_cell(rules: ReadingRules, cell: Any, known: Collection[str] = ()) -> Marks | None:
    """
    The names in a cell; `None` for a cell that says nothing: empty text, or a mapping without values.

    Args:
        rules: the task's; a single-label task takes lists and mappings that give one label, and an empty list is no
            label there (in a multi-label task it is a row to which no label applies).
        known: names from the recipe, which are never taken apart.

    Raises:
        CellError: the cell cannot be read as labels of such a task.
    """
    items: Any = cell
    several = rules.kind.is_multi_label
    if isinstance(cell, str):
        text = clean(cell)
        if not text:
            return None
        if text not in known and (wrapped := _WRAPPED.fullmatch(text)):
            text = wrapped[1].strip() or "[]"
        text = _unquoted(text) if text not in known else text
        if text in known or (not several and text[0] not in BRACKETS):
            return Marks((text,))
        items = _written_out(text) if BRACKETS.get(text[0]) == text[-1] else None
        if items is None:
            items = _split(rules, text) if several else [text]
    elif cell is None:
        return None
    elif isinstance(cell, int | float | Decimal) and (not several or spell(cell) in rules.missing_labels):
        items = [cell]
    off: tuple[str, ...] = ()
    if isinstance(items, dict):
        choices = items.get("choices")
        if isinstance(choices, str | list):
            items = [choices] if isinstance(choices, str) else choices
        else:
            flags = {name: _flag(rules, name, value, cell) for name, value in items.items()}
            if all(flag is None for flag in flags.values()):
                return None
            off = tuple(_item_name(rules, name, cell) for name, flag in flags.items() if flag is False)
            items = [name for name, flag in flags.items() if flag]
    if not isinstance(items, list | tuple) or (not several and (len(items) > 1 or (off and not items))):
        raise _wrong_kind(rules, cell)
    on = tuple(_item_name(rules, item, cell) for item in items)
    if not several and not on:
        return None
    return Marks(on, off)


__all__ = ["open_cell"]
