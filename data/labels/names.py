"""Label names that the data gives, and what looks wrong about them.

announce_doubtful_names    names that look like missing values, or that differ in hardly anything
announce_joined            names that are other names with a separator between them
check_joined               names that are several labels with a separator between them
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from ..text.problems import brief
from ..text.spelling import clean, quoted
from .reading import Marks

logger = logging.getLogger(__name__)

MISSING_WORDS = {
    *("", "na", "n/a", "n.a.", "n.a", "nan", "nat", "none", "null", "nil", "nul", "missing", "undefined", "empty"),
    *(
        "#n/a",
        "#na",
        "<na>",
        "<none>",
        "<nan>",
        "<null>",
        "(null)",
        "[null]",
        "\\n",
        "blank",
        "(blank)",
        "notavailable",
    ),
    *("?", "??", "???", "-", "--", "---", "\u2013", "\u2014", ".", "..", "...", "_", "*"),
}
MOST_GROUPS = 10
# Full-width and ideographic commas and semicolons, and the Arabic comma, separate as ours do.
SEPARATORS = (",", ";", "#", "/", "+", "&", "\t", "\n", "\uff0c", "\u3001", "\uff1b", "\u060c")
WITHIN_NAMES = (" ", "-", ":", "~", "^", "\\")  # so common in whole names that only names with shared parts tell
CONJUNCTIONS = (" and ", " und ", " et ", " y ")
# What alone may tell two names apart ("C", "C++", "C#") is left in the form that names are compared in.
TELLING = set("#%&@*")


def _looks_missing(name: str) -> bool:
    return unicodedata.normalize("NFKC", name).casefold().replace(" ", "") in MISSING_WORDS


def _form(name: str) -> str:
    """What two names that differ only in case, space, punctuation, Unicode form or as numbers have in common."""
    try:
        value = Decimal(name)
    except InvalidOperation:
        value = Decimal("NaN")
    if value.is_finite() and "_" not in name:
        return f"number {value.normalize()}"
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    bare = "".join(sign for sign in folded if sign in TELLING or unicodedata.category(sign)[0] not in ("P", "Z", "C"))
    return bare or "".join(folded.split())


def announce_doubtful_names(task: str, counts: Counter[str]) -> None:
    """Tell of names that look like missing values, and of such that differ in hardly anything, with their rows."""

    def show(name: str) -> str:
        return f"{brief(name)} ({counts[name]} {'row' if counts[name] == 1 else 'rows'})"

    missing = [name for name in counts if _looks_missing(name)]
    if missing:
        logger.info(
            f"{task}: labels that look like missing values are classes: {', '.join(map(show, sorted(missing)))}. "
            f"Where they mean that a row is not labelled, write tasks.{task}.missing_labels: "
            f"[{', '.join(map(quoted, sorted(missing)))}]; where not, list all labels under tasks.{task}.labels."
        )
    groups: dict[str, list[str]] = {}
    for name in counts:
        if name not in missing:
            groups.setdefault(_form(name), []).append(name)
    alike = [
        sorted(group, key=lambda name: (-counts[name], not name.islower(), name))
        for group in groups.values()
        if len(group) > 1
    ]
    if alike:
        shown = "; ".join(", ".join(map(show, group)) for group in alike[:MOST_GROUPS])
        more = f"; and {len(alike) - MOST_GROUPS} more groups" if len(alike) > MOST_GROUPS else ""
        pairs = [f"{quoted(name)}: {quoted(group[0])}" for group in alike[:MOST_GROUPS] for name in group[1:]]
        logger.info(
            f"{task}: labels are separate classes that differ only in case, space, punctuation, Unicode form or the "
            f"way a number is written: {shown}{more}. Where they mean the same, write tasks.{task}.label_map: "
            f"{{{', '.join(pairs)}}}; where not, list all labels under tasks.{task}.labels."
        )


def _other_signs(names: set[str]) -> list[str]:
    """Punctuation and symbols beyond ASCII (bullets, middle dots, other scripts' commas) that stand in the names."""
    signs = {sign for name in names if not name.isascii() for sign in name if not sign.isascii()}
    return sorted(sign for sign in signs - set(SEPARATORS) if unicodedata.category(sign) in ("Po", "Sm", "So", "Pd"))


def announce_joined(task: str, rows: Counter[Marks], separators: Sequence[str], remedy: str) -> None:
    """Tell of names that are other names of the task with a separator between them."""
    names = {name for marks in rows for name in marks.on}
    for separator in separators:
        joined = [name for name in names if separator in name]
        joined = sorted(name for name in joined if names.issuperset(map(clean, name.split(separator))))
        if joined:
            cells = sum(count for marks, count in rows.items() if not set(joined).isdisjoint(marks.on))
            logger.info(
                f"{task}: {len(joined)} label names are others with {quoted(separator)} between them, such as "
                f"{quoted(joined[0])} ({cells} cells in all): they are classes of their own. If they are several "
                f"labels, {remedy}."
            )


def check_joined(task: str, rows: Counter[Marks], label_separator: str | None) -> None:
    """
    Look whether the names of a multi-label task are several labels with a separator between them.

    `rows` counts the cells. Where most of them give one label and taking the names apart does not leave more names,
    the labels are joined. Where many names merely hold a separator, or the recipe gives another one, this is
    announced. `label_separator: '|'` in the recipe says that all names are whole.

    Raises:
        ValueError: the labels are joined, and the recipe gives no separator.
    """
    labelled = sum(count for marks, count in rows.items() if marks.on)
    if label_separator == "|":
        return
    if 2 * sum(rows[marks] for marks in rows if len(marks.on) == 1) <= labelled:
        announce_joined(task, rows, SEPARATORS, "write all cells in one way")
        return
    names = {name for marks in rows for name in marks.on}
    for separator in (*SEPARATORS, *CONJUNCTIONS, *WITHIN_NAMES, *_other_signs(names)):
        taken_apart = {name: [part for part in map(clean, name.split(separator)) if part] for name in names}
        joined = sorted(name for name, parts in taken_apart.items() if len(parts) > 1)
        parts = {part for found in taken_apart.values() for part in found}
        within_names = separator not in SEPARATORS
        spaced = separator.strip() == separator and all(
            name.count(separator) == name.count(separator + " ") for name in joined
        )
        written = quoted(f"{separator} " if spaced else separator)
        # "a, b" beside "b" is enough; "not good" beside "good" is not, as words recur in whole names.
        if joined and len(parts) < len(names) + (not within_names):
            if label_separator is None:
                raise ValueError(
                    f"Task {task!r}: the label cells hold several labels with {written} between them, such as "
                    f"{brief(joined[0])}: {len(names)} different names are made of {len(parts)} labels. Write "
                    f"tasks.{task}.label_separator: {written}. If they are whole names, write "
                    f"tasks.{task}.label_separator: '|' or list them under tasks.{task}.labels."
                )
        elif within_names or len(joined) < 2 or 2 * len(joined) <= len(names):
            continue
        if joined:
            logger.info(
                f"{task}: {len(joined)} of {len(names)} label names hold {written}, such as {brief(joined[0])}. If it "
                f"stands between labels, write tasks.{task}.label_separator: {written}."
            )


__all__ = ["SEPARATORS", "announce_doubtful_names", "announce_joined", "check_joined"]
