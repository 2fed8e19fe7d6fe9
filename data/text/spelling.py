"""What a cell says as a name or number, and how names are shown in messages."""

import json
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from .half_characters import whole
from .problems import brief

MOST_NAMES = 20
# Zero-width space, word joiner, byte order mark, direction marks, soft hyphen. Zero-width joiners are kept within a
# name, where Persian, Indic scripts and emoji need them.
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u200e\u200f\u00ad"))
JOINERS = "\u200c\u200d"
# A whole number as it is usually written, also as pandas writes it beside empty cells; "007" and "1E2" are codes.
WHOLE = re.compile(r"(-?(?:0|[1-9]\d{0,99}))(?:\.0+)?", re.ASCII)


# What moves a terminal's cursor, changes its colours, or turns the reading direction of what follows.
_CONTROLS = {
    code: f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}


def visible(text: str) -> str:
    """A text for a terminal or a page: control characters that names, labels or rows may hold are spelled out."""
    return text.translate(_CONTROLS)


def show_names(names: Sequence[str]) -> str:
    """The names as a list in a message, cut short where there are many."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"[{', '.join(map(brief, names[:MOST_NAMES]))}]{more}"


def first_names(names: Sequence[str]) -> str:
    """The names in a sentence; of many the first ten, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"{', '.join(names[:10])}{more}"


def quoted(text: str) -> str:
    """A text as a recipe may hold it: in single quotes where YAML reads it so."""
    return repr(text) if text.isprintable() and "\\" not in text else json.dumps(text)


def clean(text: str) -> str:
    """A label's spelling: Unicode form NFC, without white space around it and without invisible characters."""
    if text.isascii():
        return text.strip()
    return unicodedata.normalize("NFC", whole(text).translate(INVISIBLE)).strip().strip(JOINERS).strip()


def spell(item: Any) -> str:
    """The name of a text, number or bool: 1 and 1.0 are "1", True is "true"; text keeps its digits."""
    if isinstance(item, str):
        return clean(item)
    if isinstance(item, bool):
        return str(item).lower()
    return str(int(item)) if isinstance(item, float | Decimal) and item % 1 == 0 else str(item)


def is_empty(cell: Any) -> bool:
    """None and text of nothing but white space and invisible characters."""
    if not isinstance(cell, str):
        return cell is None
    text = cell.strip()
    return not text or (not text[0].isprintable() and not clean(text))  # most texts need no cleaning


def number(cell: Any) -> float | None:
    """The number that a cell holds, which may be NaN or infinite; None for a bool and for other text."""
    if isinstance(cell, int | float | Decimal) and not isinstance(cell, bool):
        return float(cell)
    if isinstance(cell, str) and "_" not in cell:  # float("1_000") is 1000.0 in Python, a typing error in a table
        try:
            return float(cell)
        except ValueError:
            return None
    return None


def whole_number(name: str) -> str | None:
    """The plain form of a whole number in text: "1" for "1" and "1.0"; None for other text, codes like "01" too."""
    match = WHOLE.fullmatch(name)
    return match[1] if match else None
