"""Half characters ("lone surrogates") in files: read as U+FFFD, and counted, as `encode` and `predict` read them.

They are what is left of an emoji that was cut in the middle. JSON files hold them as `\\ud83d`, others as bytes that
UTF-8 and UTF-16 do not allow. Two halves that belong together are one character. Anything else that an encoding does
not allow stays an error.

    HALVES               the name to give as `errors=` of `open` and `decode`
    encoding_errors_for  that name, for a file that needs it
    count_halves         how many there are in what was read from such a file, as an announcement
    without_halves       a data set that was loaded with them
"""

import codecs
import logging
import os
import re
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from typing import Any

import fsspec
import pyarrow as pa
from datasets import Dataset
from fsspec.utils import infer_compression

logger = logging.getLogger(__name__)

HALVES = "multitask_sentence.half_characters"
REPLACEMENT = "\ufffd"

_AS_BYTES = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]|\xed[\xa0-\xbf][\x80-\xbf]")
_CUT_OFF = re.compile(rb"\xed[\xa0-\xbf]?\Z")
_ESCAPED_HALF = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")


def whole(text: str) -> str:
    """The text with pairs of halves as one character, and single ones as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_half(error: UnicodeError) -> tuple[str, int]:
    """An error handler as `codecs.register_error` wants it: text in place of what is wrong, and where to go on."""
    if isinstance(error, UnicodeDecodeError):
        content, start = error.object, error.start
        if error.encoding.startswith("utf-16") and ("surrogate" in error.reason or len(content) - start == 2):
            return REPLACEMENT, error.end
        if found := _AS_BYTES.match(content, start):
            return whole(found[0].decode("utf-8", "surrogatepass")), found.end()
        # A reader in pieces cuts a half in two: its end comes first in the next piece.
        if found := _CUT_OFF.match(content, start):
            return REPLACEMENT, found.end()
        if start == 0 and (found := re.match(rb"[\xa0-\xbf]?[\x80-\xbf]", content)):
            return "", found.end()
    raise error


codecs.register_error(HALVES, _read_half)


def read_bytes(file: str) -> bytes:
    """All of a file, unpacked where it is compressed."""
    with fsspec.open(file, "rb", compression="infer") as opened:
        return opened.read()


def map_bytes(file: str) -> bytes | mmap:
    """The same, through a memory map where the file lies on this machine as it is."""
    if infer_compression(file) is not None or not os.path.getsize(file):
        return read_bytes(file)
    with open(file, "rb") as opened:
        return mmap(opened.fileno(), 0, access=ACCESS_READ)


def encoding_errors_for(content: bytes | mmap, encoding: str) -> str:
    """`HALVES` where half characters are all that the encoding does not allow in these bytes, else "strict"."""
    kind = encoding.lower().replace("_", "-")
    may_hold = _AS_BYTES.search(content) if kind.startswith("utf-8") or kind == "utf8" else kind.startswith("utf-16")
    if not may_hold:
        return "strict"
    content = bytes(content)
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        try:
            content.decode(encoding, HALVES)
        except UnicodeDecodeError:
            return "strict"
        return HALVES
    return "strict"


def holds_escaped_halves(content: bytes | mmap) -> bool:
    """Whether bytes of JSON may hold half characters as `\\ud83d`."""
    return _ESCAPED_HALF.search(content) is not None


def texts_in(value: Any) -> Iterable[str]:
    """Every text in cells or settings that are nested as JSON has them, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def mended(value: Any) -> Any:
    """Cells, nested as JSON has them, with every text `whole`."""
    if isinstance(value, str):
        return value if value.isascii() else whole(value)
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return [mended(item) for item in value] if isinstance(value, list) else value


def count_halves(task: str, where: str, rows: Iterable[Any]) -> None:
    """Announce in how many rows U+FFFD stands, and the first of them."""
    found = [row for row, cells in enumerate(rows) if any(REPLACEMENT in text for text in texts_in(cells))]
    if found:
        logger.info(
            f"{task}: halves of characters (lone surrogates), as text has that was cut within an emoji, are read as "
            f"U+FFFD in {len(found)} rows of {where}, first in row {found[0] + 1}"
        )


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The type with bytes wherever it has text."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(
            kind.value_field.with_type(_with_bytes(kind.value_type))
        )
    return kind


def _as_text(value: Any) -> Any:
    """Cells, nested as Arrow gives them, with text in place of bytes."""
    if isinstance(value, bytes):
        return value.decode("utf-8", HALVES)
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    return [_as_text(item) for item in value] if isinstance(value, list) else value


def without_halves(task: str, where: str, rows: Dataset, quiet: bool = False, first_row: int = 0) -> Dataset:
    """
    A data set whose texts are whole, those in lists and objects too: what wrote it may not have looked.

    Args:
        task: a name for messages.
        where: what the data set is called in messages.
        rows: the data set.
        quiet: whether nothing is announced.
        first_row: the number that its first row has in `where`.

    Raises:
        ValueError: a text holds other bytes that are no UTF-8; names its row.
    """
    for name, feature in rows.features.items():
        column = rows.data.column(name)
        kind = _with_bytes(column.type)
        if kind == column.type:
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            if rows._indices is not None:  # `data` is in the order before it
                rows = rows.flatten_indices()
            cells = rows.data.column(name).cast(kind).to_pylist()
            for row, cell in enumerate(cells):
                try:
                    cells[row] = _as_text(cell)
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{where}, row {first_row + row + 1}: column {name!r} holds bytes that are no UTF-8: "
                        f"{error.object[:40]!r}. Write the text of this column in UTF-8."
                    ) from error
            rows = rows.remove_columns(name).add_column(name, cells, feature=feature)
            if not quiet:
                count_halves(task, where, cells)
    return rows


__all__ = [
    "HALVES",
    "count_halves",
    "encoding_errors_for",
    "holds_escaped_halves",
    "map_bytes",
    "mended",
    "read_bytes",
    "texts_in",
    "whole",
    "without_halves",
]
