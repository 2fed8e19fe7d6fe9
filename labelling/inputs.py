"""Reading a table piece by piece: csv, tsv, jsonl and parquet, every row once, with its number.

A csv cell stays the text that it is (`007` is no number), and a line that is no row is set aside with its reason.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ..data.text.half_characters import mended

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES_AT_ONCE = 8192  # of jsonl
BLOCK_BYTES = 1 << 22  # of a text file at a time; the longest line that can be read


@dataclass(frozen=True)
class SetAside:
    """
    A row that cannot be read.

    Attributes:
        row: its number in the input, from 1.
        reason: why.
        content: what stands there.
    """

    row: int
    reason: str
    content: str


@dataclass
class Chunk:
    """
    Rows that follow each other in the input.

    Attributes:
        number: of the chunk, from 0.
        start: the number of its first row, from 0; rows set aside count.
        table: those that could be read.
        rows: their numbers in the input, from 1, as many as the table has rows.
        set_aside: the others.
    """

    number: int
    start: int
    table: pa.Table
    rows: list[int]
    set_aside: list[SetAside] = field(default_factory=list)


def format_of(path: Path) -> str:
    """The file's format by the end of its name; a ValueError that names those that can be read."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name should end in {', '.join(FORMATS)}. Found {path.suffix or 'no ending'!r}.")
    return path.suffix.lower()


def read_schema(path: Path, text: tuple[str, ...], quoted: bool = True) -> pa.Schema:
    """
    A file's columns and their types. Those of jsonl are the keys of all its lines, each with one type for all rows.

    Args:
        path: the file.
        text: the columns that are to hold text, as in `read_chunks`.
        quoted: whether quotes enclose cells of csv and tsv files.

    Raises:
        ValueError: the file is empty, its header has a name twice, or its first line cannot be read.
    """
    kind = format_of(path)
    if kind == ".parquet":
        return pq.ParquetFile(path).schema_arrow
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), None)
    if first is None:
        raise ValueError(f"{path} is empty. It should hold {'a header and ' if kind != '.jsonl' else ''}rows.")
    if kind == ".jsonl":
        found = _parse_line(first)
        if isinstance(found, str):
            raise ValueError(f'{path}, row 1: {found}. Each line should be a JSON object such as {{"text": "..."}}.')
        return _json_schema(path, text, list(found))
    names = pacsv.read_csv(pa.BufferReader(first.encode()), parse_options=_parsing(kind, quoted)).column_names
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the header has a name twice ({', '.join(names)}). Rename one.")
    return pa.schema([(name, pa.string()) for name in names])


def read_chunks(
    path: Path, rows_per_chunk: int, schema: pa.Schema, text: tuple[str, ...], quoted: bool = True
) -> Iterator[Chunk]:
    """
    The rows of a file in chunks of so many, cut at the same rows each time; the last has what is left.

    Args:
        path: the file.
        rows_per_chunk: how many, counting those set aside.
        schema: from `read_schema`.
        text: the columns that are to hold text: a line of jsonl with something else there is set aside.
        quoted: whether quotes enclose cells of csv and tsv files.

    Raises:
        ValueError: a quote in a csv file has swallowed rows.
    """
    kind = format_of(path)
    if kind == ".parquet":
        pieces = _parquet_pieces(path)
    else:
        pieces = _json_pieces(path, schema, text) if kind == ".jsonl" else _csv_pieces(path, schema, quoted)
    number = start = 0
    table, rows, set_aside = None, [], []
    for piece, piece_rows, piece_set_aside in pieces:
        table = piece if table is None else pa.concat_tables([table, piece])
        rows, set_aside = rows + piece_rows, set_aside + piece_set_aside
        while len(rows) + len(set_aside) >= rows_per_chunk:
            end = start + rows_per_chunk
            count = bisect_right(rows, end)
            own = [found for found in set_aside if found.row <= end]
            yield Chunk(number, start, table.slice(0, count), rows[:count], own)
            table, rows, set_aside = table.slice(count), rows[count:], [f for f in set_aside if f.row > end]
            number, start = number + 1, end
    if rows or set_aside:
        yield Chunk(number, start, table, rows, set_aside)


_Piece = tuple[pa.Table, list[int], list[SetAside]]


def _parquet_pieces(path: Path) -> Iterator[_Piece]:
    start = 0
    for batch in pq.ParquetFile(path, memory_map=True).iter_batches(batch_size=8192):
        table = _valid_text(pa.Table.from_batches([batch]))
        yield table, list(range(start + 1, start + len(table) + 1)), []
        start += len(table)


def _parse_line(line: str, text: tuple[str, ...] = ()) -> dict[str, Any] | str:
    """A line of jsonl, or why it is none."""
    try:
        found = json.loads(line)
        if "\\ud" in line or "\\uD" in line:
            found = mended(found)
    except ValueError as error:
        return f"the line is no JSON ({error})"
    if not isinstance(found, dict):
        return f"the line holds a {type(found).__name__}, not an object"
    for name in text:
        if not isinstance(found.get(name, ""), str | None):
            return f"{name!r} holds a {type(found[name]).__name__}, not text"
    return found


def _json_lines(path: Path, text: tuple[str, ...]) -> Iterator[tuple[list[dict[str, Any]], list[int], list[SetAside]]]:
    """Lines of jsonl, their numbers, and those that cannot be read, some thousands at a time."""
    number, lines, rows, set_aside = 0, [], [], []
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            number += 1
            found = _parse_line(line, text)
            if isinstance(found, str):
                set_aside.append(SetAside(number, found, line.rstrip("\n")))
            else:
                lines.append(found)
                rows.append(number)
            if len(rows) + len(set_aside) == LINES_AT_ONCE:
                yield lines, rows, set_aside
                lines, rows, set_aside = [], [], []
    if rows or set_aside:
        yield lines, rows, set_aside


def _json_schema(path: Path, text: tuple[str, ...], first: list[str]) -> pa.Schema:
    """The keys of the first line and of all others, with types."""
    types: dict[str, pa.DataType] = dict.fromkeys(first, pa.null())
    too_long: set[str] = set()  # keys with whole numbers that a float cannot hold
    for lines, _, _ in _json_lines(path, text):
        for key in dict.fromkeys(key for line in lines for key in line):
            values = [line.get(key) for line in lines]
            found = _json_column(values).type
            if pa.types.is_integer(found) and any(abs(value) > 2**53 for value in values if value is not None):
                too_long.add(key)
            types[key] = _common(types.get(key, found), found)
    return pa.schema(
        [(key, pa.string() if pa.types.is_floating(kind) and key in too_long else kind) for key, kind in types.items()]
    )


def _common(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """A type for values of both: text where there is no other."""
    schemas = [pa.schema({"": kind}) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _json_pieces(path: Path, schema: pa.Schema, text: tuple[str, ...]) -> Iterator[_Piece]:
    for lines, rows, set_aside in _json_lines(path, text):
        columns = [_json_column([line.get(field.name) for line in lines], field.type) for field in schema]
        yield pa.table(columns, schema=schema), rows, set_aside


def _json_column(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Values of one key, of a type; as JSON text where that is text, or, without one, where no type has them all."""
    if kind != pa.string():
        try:
            return pa.array(values, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            if kind is not None:
                raise
    texts = [v if isinstance(v, str) or v is None else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(texts, pa.string())


def _parsing(kind: str, quoted: bool, **options: Any) -> pacsv.ParseOptions:
    quotes = {"quote_char": '"' if quoted else False, "newlines_in_values": quoted}
    return pacsv.ParseOptions(delimiter=DELIMITERS[kind], **quotes, **options)


def _csv_pieces(path: Path, schema: pa.Schema, quoted: bool) -> Iterator[_Piece]:
    bad: list[pacsv.InvalidRow] = []  # the reader is ahead of us, and tells of rows that come in a later batch

    def keep(row: pacsv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    def set_aside(end: float) -> list[SetAside]:
        """The bad rows up to a number, which are then done with. A row's number counts the header, too."""
        found = [row for row in bad if row.number - 1 <= end]
        del bad[: len(found)]
        reason = "{} fields where {} should be"
        return [
            SetAside(row.number - 1, reason.format(row.actual_columns, row.expected_columns), row.text)
            for row in found
        ]

    kind, start = format_of(path), 0
    reader = pacsv.open_csv(
        path,
        pacsv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        _parsing(kind, quoted, invalid_row_handler=keep),
        pacsv.ConvertOptions(column_types=schema, strings_can_be_null=False, check_utf8=False),
    )
    for batch in reader:
        table = _valid_text(pa.Table.from_batches([batch]))
        end = start + len(table)
        while (reached := start + len(table) + sum(row.number - 1 <= end for row in bad)) > end:
            end = reached
        own = set_aside(end)
        numbers = {found.row for found in own}
        rows = [row for row in range(start + 1, end + 1) if row not in numbers]
        if quoted:
            _check_swallowed(path, table, rows, DELIMITERS[kind])
        yield table, rows, own
        start = end
    if own := set_aside(math.inf):
        yield schema.empty_table(), [], own


def _check_swallowed(path: Path, table: pa.Table, rows: list[int], delimiter: str) -> None:
    """Refuse a cell whose inner lines have as many fields as a row: a stray quote at its start has swallowed rows."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        broken = pc.match_substring(column, "\n").to_numpy(zero_copy_only=False).nonzero()[0].tolist()
        for place in broken:
            _, *inner, _ = column[place].as_py().split("\n")
            if inner and all(line.count(delimiter) == table.num_columns - 1 for line in inner):
                raise ValueError(
                    f"{path}, row {rows[place]}: the cell of column {name!r} holds {len(inner) + 2} lines that look "
                    "like rows. A quote at its start has swallowed them. If quotes are part of the text, start "
                    "anew with --no_quotes --overwrite."
                )


def _valid_text(table: pa.Table) -> pa.Table:
    """Bytes that are no UTF-8 become U+FFFD."""
    for place, column in enumerate(table.columns):
        if column.type not in (pa.string(), pa.large_string()):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            cells = column.cast(pa.large_binary()).to_pylist()
            texts = [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]
            table = table.set_column(place, table.schema.field(place), pa.array(texts, column.type))
    return table


__all__ = ["FORMATS", "Chunk", "SetAside", "format_of", "read_chunks", "read_schema"]
