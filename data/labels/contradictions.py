"""The same text with different labels in one split: counted, and settled as the recipe says."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..text.sameness import among
from .rules import ReadingRules

logger = logging.getLogger(__name__)

Labels = pa.Array | pa.ChunkedArray


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


def same_texts(hashes: np.ndarray) -> list[np.ndarray]:
    """The rows of each text that several rows have, ascending; `hashes` has a hash of each row's text."""
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    if not len(repeated):
        return []
    rows = np.flatnonzero(among(hashes, repeated))
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(hashes[rows])) + 1)


def settle_contradictions(
    rules: ReadingRules, split: str, texts: Sequence[np.ndarray], labels: Labels
) -> dict[int, Any]:
    """
    What becomes of the labels of one task in one split that contradict each other, as far as the rules say so.

    Args:
        rules: `contradictions` is "keep"; "drop" (no row of such a text is labelled); "majority" (only the rows with
            the most frequent label of the text are, and none of them in a tie); or "mean" (all get the mean score).
        texts: the rows of each text, as `same_texts` gives them. Texts are the same as `text_key` says, pairs of a
            similarity task in either order.
        labels: class id, 0/1 list or score of each row, null where it is not labelled.

    Returns:
        By row its new label, `None` where it is no longer labelled; the others stay.
    """
    settled: dict[int, Any] = {}
    different = contradicting = removed = ties = 0
    labelled = pc.is_valid(labels).to_numpy(zero_copy_only=False)
    for text in texts:
        group = text[labelled[text]]
        found = labels.take(pa.array(group)).to_pylist()
        plain = [tuple(label) if isinstance(label, list) else label for label in found]
        if len(set(plain)) < 2:
            continue
        different, contradicting = different + 1, contradicting + len(group)
        if rules.contradictions == "mean":
            settled |= dict.fromkeys(group.tolist(), sum(found) / len(group))
        elif rules.contradictions != "keep":
            (first, most), (_, second), *_ = Counter(plain).most_common()
            tied = rules.contradictions == "majority" and most == second
            kept = first if rules.contradictions == "majority" and not tied else None
            against = [row for row, label in zip(group.tolist(), plain, strict=True) if label != kept]
            settled |= dict.fromkeys(against)
            removed, ties = removed + len(against), ties + tied
    if different:
        logger.info(
            f"{rules.task}: {different} texts have different labels in the {split} split ({contradicting} rows)."
            + _outcome(rules, removed, ties)
        )
    return settled


__all__ = ["same_texts", "settle_contradictions"]
