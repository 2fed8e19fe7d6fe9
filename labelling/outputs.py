"""Writing answers in the format of the output: a part, and all parts together."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from .inputs import DELIMITERS
from .parts import JobFolder, PartRecord, write_whole


def write_table(table: pa.Table, path: Path, kind: str) -> None:
    """In the format of the output; csv and tsv without a header, and with lists as JSON."""
    if kind == ".parquet":
        pq.write_table(table, path)
    elif kind == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
    else:
        for place, column in enumerate(table.columns):
            if pa.types.is_nested(column.type):
                texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in column.to_pylist()]
                table = table.set_column(place, table.column_names[place], pa.array(texts, pa.string()))
        pacsv.write_csv(table, path, pacsv.WriteOptions(include_header=False, delimiter=DELIMITERS[kind]))


def put_together(
    folder: JobFolder, records: list[PartRecord], output: Path | None, set_aside_file: Path, schema: pa.Schema
) -> None:
    """
    One file of all rows that were set aside, if any, and one of all parts.

    Args:
        folder: of the job.
        records: of its parts, in the order of the input.
        output: the file of all parts; `None` where the parts are the output.
        set_aside_file: that of the rows set aside.
        schema: of the output.
    """
    parts = [folder.part(record.number) for record in records]
    place = folder.control / "output"

    def write_parquet(path: Path) -> None:
        with pq.ParquetWriter(path, schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part).cast(schema))

    def write_lines(path: Path) -> None:
        with path.open("wb") as file:
            if folder.suffix in DELIMITERS:
                options = pacsv.WriteOptions(delimiter=DELIMITERS[folder.suffix])
                pacsv.write_csv(pa.table({name: pa.array([], pa.string()) for name in schema.names}), file, options)
            for part in parts:
                with part.open("rb") as opened:
                    shutil.copyfileobj(opened, file)

    set_aside = [folder.set_aside(record.number) for record in records if record.set_aside]
    if set_aside:
        text = b"".join(file.read_bytes() for file in set_aside)
        write_whole(set_aside_file, lambda path: path.write_bytes(text), place)
    if output is not None:
        write_whole(output, write_parquet if folder.suffix == ".parquet" else write_lines, place)


__all__ = ["put_together", "write_table"]
