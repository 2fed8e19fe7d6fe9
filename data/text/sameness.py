"""When two texts, and two rows, count as the same: one rule for duplicates, splits, overlaps and contradictions.

Rows are compared by hashes of 64 bits, which fit into an array. Among ten million different rows, two have the same
hash with a probability of three in a million.
"""

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from types import FunctionType

import numpy as np
from datasets import Dataset

from ..cache.arrays import BATCH_ROWS, batches, cached_array, column_array


def text_key(text: str) -> str:
    """The text without what many tokenizers do not see: its case, the extent of its white space, its Unicode form."""
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def row_key(sentences: Sequence[str]) -> tuple[str, ...]:
    """The keys of a row's sentence, of a pair in either order, or of a contrastive row's anchor and positive."""
    return tuple(sorted(map(text_key, sentences[:2])))


def hash_of(text: str) -> int:
    """64 bits of BLAKE2b as a signed number, the same on every machine."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def row_hash(sentences: Sequence[str]) -> int:
    """`hash_of` a row's `row_key`: equal for rows that count as the same."""
    return hash_of("\n".join(row_key(sentences)))


def whole_row_hash(sentences: Sequence[str]) -> int:
    """`hash_of` all that a row holds, a contrastive row's negatives included, a pair in either order."""
    return hash_of("\n".join((*row_key(sentences), *map(text_key, sentences[2:]))))


def ordered_hash(sentences: Sequence[str]) -> int:
    """`hash_of` a row's sentences in their order."""
    return hash_of("\n".join(map(text_key, sentences)))


TEXT_RULES = {rule.__name__: rule for rule in (row_hash, ordered_hash, whole_row_hash)}


def row_hashes(rows: Dataset, rule: FunctionType = row_hash) -> np.ndarray:
    """
    The `row_hash` of every row of a data set in canonical columns, or what another rule gives: `(rows,)`, int64.

    Rows of a stream, which have no sentences, bring them along in a column.
    """
    if (name := rule.__name__) in rows.column_names:
        return column_array(rows, name)

    def blocks():
        for batch in batches(rows, ["sentences"]):
            sentences = batch["sentences"].to_pylist()
            yield np.fromiter(map(rule, sentences), np.int64, len(sentences))

    return cached_array(rows, name, blocks)


def sorted_hashes(rows: Dataset, rule: FunctionType = row_hash, chosen: np.ndarray | None = None) -> np.ndarray:
    """The same in ascending order; of the rows where `chosen` is True, if that is given."""
    if chosen is not None and not chosen.all():
        return np.sort(row_hashes(rows, rule)[chosen])
    return cached_array(rows, f"{rule.__name__}-sorted", lambda: [np.sort(row_hashes(rows, rule))])


def distinct(ordered: np.ndarray) -> np.ndarray:
    """The different ones of ascending hashes: the same array where all are."""
    is_new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered if is_new.all() else ordered[is_new]


def among(hashes: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """`(hashes,)`: which of the hashes stand among ascending ones. Unlike `np.isin`, it copies neither."""
    found = np.zeros(len(hashes), bool)
    for start in range(0, len(hashes) if len(ordered) else 0, BATCH_ROWS):
        own = hashes[start : start + BATCH_ROWS]
        places = np.minimum(np.searchsorted(ordered, own), len(ordered) - 1)
        found[start : start + BATCH_ROWS] = ordered[places] == own
    return found


__all__ = [
    "TEXT_RULES",
    "among",
    "distinct",
    "hash_of",
    "ordered_hash",
    "row_hash",
    "row_hashes",
    "row_key",
    "sorted_hashes",
    "text_key",
    "whole_row_hash",
]
