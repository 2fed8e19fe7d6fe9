"""Reading JSON files: a list of objects, one object a line, the list below a `field`, or a list for each column."""

import ast
import json
import logging
from functools import partial
from typing import Any

from datasets import Dataset, load_dataset
from datasets.packaged_modules.json.json import JsonConfig

from ...checks_multitask import suggest
from ..text.half_characters import (
    count_halves,
    encoding_errors_for,
    holds_escaped_halves,
    map_bytes,
    mended,
    read_bytes,
)
from ..text.problems import brief
from .parts import SPLIT_NAMES, Part, attempt, encoding_hint, format_hint, one_file
from .streams import Stream

logger = logging.getLogger(__name__)

# `datasets` 5.2 takes rows with columns such as `type` and `payload` for what a coding agent did, and makes one row of
# a file of them.
AS_ROWS = {key: False for key in ("parse_agent_traces",) if key in JsonConfig.__dataclass_fields__}


def read_json(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load a JSON file: a list of rows, or the one below `field`, with `column_names` where each row is a list.

    A reader as formats.py describes it. `datasets` reads what it reads well; Python the rest.
    """
    if options.get("field") is not None or options.get("column_names") is not None:
        return _read_field(task, file, options)
    shown, hint = {"path": file} | options, partial(_failure_hint, task, file)
    content = b"" if "://" in file else attempt(task, shown, partial(map_bytes, file), hint)
    encoding = _encoding(options)
    if encoding_errors_for(content, encoding) != "strict" or holds_escaped_halves(content):
        found = mended(attempt(task, shown, partial(_rows, bytes(content), encoding), hint))
        count_halves(task, file, found)
        rows = attempt(task, shown, partial(Dataset.from_list, found, on_mixed_types="use_json"), hint)
    else:
        load = partial(load_dataset, "json", **one_file(file), **AS_ROWS, **options)
        rows = attempt(task, shown, load, hint)["train"]
    if len(rows) == 1 and (turned := _turned(rows[0], columns)) is not None:
        rows = turned
        logger.info(f"{task}: {file} holds no list of rows but one object; it is read as a table of {len(rows)} rows")
    return Part(file, rows, hint=partial(_json_hint, task, rows))


def stream_json(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Stream:
    """The rows of a JSON file, of which `datasets` reads a piece at a time where each line is an object.

    Raises:
        ValueError: the rows stand below a field, or the text holds halves of characters, which only `read_json` mends.
    """
    remedy = f"Take streaming out of tasks.{task}.dataset"
    for key in ("field", "column_names"):
        if options.get(key) is not None:
            raise ValueError(
                f"tasks.{task}.dataset: {key} needs the whole file in memory, which streaming should spare. {remedy}, "
                "or write the rows as jsonl."
            )
    shown, hint = {"path": file} | options, partial(_failure_hint, task, file)
    content = b"" if "://" in file else attempt(task, shown, partial(map_bytes, file), hint)
    if encoding_errors_for(content, _encoding(options)) != "strict" or holds_escaped_halves(content):
        raise ValueError(
            f"{file} holds halves of characters (lone surrogates), which a stream does not mend. {remedy}, or write "
            "the file anew without them."
        )
    load = partial(load_dataset, "json", **one_file(file), streaming=True, **AS_ROWS, **options)
    return Stream(task, file, attempt(task, shown, load, hint)["train"], failure=hint)


def _encoding(options: dict[str, Any]) -> str:
    encoding = options.get("encoding", "utf-8")
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _rows(content: bytes, encoding: str) -> list[Any]:
    """The rows of a file that is one list, one object, or an object a line."""
    text = content.decode(encoding, encoding_errors_for(content, encoding))
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    return found if isinstance(found, list) else [found]


def _turned(found: dict[str, Any], columns: dict[str, Any]) -> Dataset | None:
    """The rows of an object that holds a list or an object for each column, or an object for each row; else None."""
    label = columns.get("label")
    wanted = {name for key in columns.values() for name in (key if isinstance(key, list) else [key])}
    if not isinstance(label, str | None) or not wanted:
        return None
    cells = list(found.values())
    if wanted <= found.keys():
        lists = [list(cell.values()) if isinstance(cell, dict) else cell for cell in cells]
        keys = [list(cell) for cell in cells if isinstance(cell, dict)]
        alike = keys in ([], [keys[0]] * len(cells)) if keys else True
        if alike and all(isinstance(cell, list) for cell in lists) and len({len(cell) for cell in lists}) == 1:
            rows = [dict(zip(found, row, strict=True)) for row in zip(*lists, strict=True)]
            return Dataset.from_list(rows, on_mixed_types="use_json") if len(rows) > 1 else None
    elif len(cells) > 1 and all(isinstance(cell, dict) and wanted <= cell.keys() for cell in cells):
        return Dataset.from_list(cells, on_mixed_types="use_json")
    return None


def _failure_hint(task: str, file: str, cause: BaseException) -> str:
    """What mends a file that is not JSON."""
    try:
        content = read_bytes(file)
    except OSError:
        return ""
    if hint := (content.lstrip()[:1] not in b"[{" and format_hint(task, content)) or encoding_hint(task, file, cause):
        return hint
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return encoding_hint(task, file, error)
    text = content.decode("utf-8-sig").strip()
    first = text.partition("\n")[0].strip()
    if first.endswith(","):
        try:
            json.loads(first[:-1])
        except ValueError:
            pass
        else:
            return " The lines end in commas. Remove these, or write [ before and ] after all of them."
    try:
        python = isinstance(ast.literal_eval(first), dict | list)
        json.loads(first)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        if isinstance(error, json.JSONDecodeError) and python:
            return " The file is written as Python shows its objects. Write it with json.dump."
    for number, line in enumerate(text.split("\n") if text.startswith("{") else [], start=1):
        try:
            json.loads(line or "null")
        except ValueError as error:
            return f" Line {number} is no JSON ({error}): {brief(line[:60])}. Correct it."
    return ""


def _read_field(task: str, file: str, options: dict[str, Any]) -> Part:
    """The rows below `field`, of objects, or of lists of the cells that `column_names` names."""
    field, names = options.get("field"), options.get("column_names")
    encoding = _encoding(options)

    def load() -> Any:
        found = read_bytes(file)
        return json.loads(found.decode(encoding, encoding_errors_for(found, encoding)))

    content = attempt(task, {"path": file} | options, load, partial(_failure_hint, task, file))
    where, setting = file, f"tasks.{task}.dataset"
    for key in [] if field is None else str(field).split("."):
        if not isinstance(content, dict) or key not in content:
            known = list(content) if isinstance(content, dict) else []
            raise ValueError(
                f"{where}: there is no {key!r} with rows.{suggest(key, known)} Found "
                f"{known or type(content).__name__}. Correct {setting}.field."
            )
        content, where = content[key], f"{file}, field {field}"
    if not isinstance(content, list) or not content:
        raise ValueError(
            f"{where}: found {brief(str(content)[:60])} where a list of rows should be. Correct {setting}.field."
        )
    for row, cells in enumerate(content, start=1):
        if isinstance(cells, dict) if names is None else isinstance(cells, list) and len(cells) == len(names):
            continue
        wanted = "an object with names" if names is None else f"a list of {len(names)} cells, {names}"
        remedy = "Correct the row."
        if names is None and isinstance(cells, list):
            remedy = f"Give the cells of a row names, in their order: add `column_names: [...]` to {setting}."
        raise ValueError(
            f"{where}, row {row}: found {brief(str(cells)[:60])} where a row should be {wanted}. {remedy}"
        )
    if names is not None:
        content = [dict(zip(names, cells, strict=True)) for cells in content]
    content = mended(content)
    count_halves(task, where, content)
    rows = Dataset.from_list(content, on_mixed_types="use_json")
    return Part(where, rows, hint=partial(_json_hint, task, rows))


def _json_hint(task: str, rows: Dataset, missing: str) -> str:
    """Where the file is one object with rows below its names: the line of the recipe that reads them."""
    found = rows[0] if len(rows) == 1 else {}
    lists = [name for name, cell in found.items() if isinstance(cell, list) and cell]
    lists = [name for name in lists if isinstance(found[name][0], dict | list)]
    if not lists:
        return ""
    splits = {split: own for split, aliases in SPLIT_NAMES.items() for own in lists if own in aliases}
    field = f"{{{', '.join(f'{split}: {own}' for split, own in splits.items())}}}" if splits else lists[0]
    named = " and `column_names: [...]` for the cells of a row" if isinstance(found[lists[0]][0], list) else ""
    return f" The file holds one object with rows below {lists}: add `field: {field}`{named} to tasks.{task}.dataset."


__all__ = ["AS_ROWS", "read_json", "stream_json"]
