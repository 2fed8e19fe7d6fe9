"""When two texts, and two rows, count as the same: one rule for duplicates, splits, overlaps and contradictions."""

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b


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


__all__ = ["hash_of", "row_hash", "row_key", "text_key"]
