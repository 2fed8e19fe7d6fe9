"""The same text with different labels in one split: counted, and settled as the recipe says."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..texts import row_key, text_key
from .rules import ReadingRules

logger = logging.getLogger(__name__)


def _outcome(rules: ReadingRules, removed: int, ties: int) -> str:
    """What became of the rows, as the end of a line."""
    if rules.contradictions == "keep":
        others = "drop or mean" if rules.kind.has_scores else "drop or majority"
        return f" They stay; tasks.{rules.task}.contradictions: {others} settles them."
    if rules.contradictions == "mean":
        return " All rows of such a text get the mean of its scores."
    tied = f", as are all rows of {ties} texts without a majority" if ties else ""
    which = "All of them" if rules.contradictions == "drop" else "Those against the majority"
    return f" {which} are no longer labelled for this task{tied} ({removed} rows)."


def settle_contradictions(
    rules: ReadingRules, split: str, rows: Sequence[Sequence[str]], labels: list[Any]
) -> list[Any]:
    """
    The labels of one task in one split, without those that contradict each other, as far as the rules say so.

    Args:
        rules: `contradictions` is "keep"; "drop" (no row of such a text is labelled); "majority" (only the rows with
            the most frequent label of the text are, and none of them in a tie); or "mean" (all get the mean score).
        rows: the sentences of each row. They count as the same as `text_key` says, of a similarity task in either
            order.
        labels: class id, 0/1 list or score of each row, `None` where it is not labelled.

    Returns:
        The labels, `None` where a row is no longer labelled.
    """
    rows_of: dict[tuple[str, ...], list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            key = row_key(rows[row]) if rules.kind.has_score_range else tuple(map(text_key, rows[row]))
            rows_of.setdefault(key, []).append(row)
    plain = [tuple(label) if isinstance(label, list) else label for label in labels]
    groups = [group for group in rows_of.values() if len({plain[row] for row in group}) > 1]
    if not groups:
        return labels

    settled, removed, ties = list(labels), 0, 0
    for group in groups:
        if rules.contradictions == "mean":
            mean = sum(labels[row] for row in group) / len(group)
            for row in group:
                settled[row] = mean
        elif rules.contradictions != "keep":
            (first, most), (_, second), *_ = Counter(plain[row] for row in group).most_common()
            tied = rules.contradictions == "majority" and most == second
            kept = first if rules.contradictions == "majority" and not tied else None
            against = [row for row in group if plain[row] != kept]
            for row in against:
                settled[row] = None
            removed, ties = removed + len(against), ties + tied
    contradicting = sum(map(len, groups))
    logger.info(
        f"{rules.task}: {len(groups)} texts have different labels in the {split} split ({contradicting} rows)."
        + _outcome(rules, removed, ties)
    )
    return settled


__all__ = ["settle_contradictions"]
