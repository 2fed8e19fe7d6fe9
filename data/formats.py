"""The file formats that a recipe may name: a reader for each, and the options it takes.

A reader is a function `(task, file, options, columns, notes)` that returns a Part. `task` is a name for messages,
`options` holds what the recipe's `dataset` says beside files and splits, `columns` are the task's own, for hints, and
`notes` takes what a person should know of the file.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from datasets import BuilderConfig, Dataset, Features, List, Value, load_dataset
from datasets.packaged_modules.arrow.arrow import ArrowConfig
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.parquet.parquet import ParquetConfig

from ..checks_multitask import suggest
from .csv_files import CSV_OPTIONS, CSV_TYPES, read_csv
from .parts import Part, attempt, no_pattern
from .tables import read_excel, read_sql, read_sqlite

SPLIT_NAMES = {"train": ["train"], "validation": ["validation", "valid", "dev", "val"], "test": ["test"]}
# Options that may differ from split to split: `field: {train: train, validation: val}`.
SPLIT_OPTIONS = ("field", "sheet_name", "sql")
LABEL_PREFIX = "__label__"


@dataclass
class Format:
    """How files of one format are read; `defaults` are options, `source` says what `data_files` names."""

    read: Callable[[str, str, dict[str, Any], dict[str, Any], list[str]], Part]
    options: tuple[str, ...]
    defaults: dict[str, Any]
    source: str = "file"


def _packaged(
    builder: str, task: str, file: str, options: dict[str, Any], columns: dict[str, Any], notes: list[str]
) -> Part:
    """Load one file with the builder of `datasets` for its format."""
    load = partial(load_dataset, builder, data_files={"train": [no_pattern(file)]}, **options)
    rows = attempt(task, {"path": file} | options, load)["train"]
    return Part(file, rows, hint=partial(_json_hint, task, rows) if builder == "json" else None)


def _read_json(task: str, file: str, options: dict[str, Any], columns: dict[str, Any], notes: list[str]) -> Part:
    """Load a JSON file: a list of rows, or the one below `field`, with `column_names` where each row is a list."""
    field, names = options.get("field"), options.get("column_names")
    if field is None and names is None:
        return _packaged("json", task, file, options, columns, notes)
    encoding = options.get("encoding", "utf-8")
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding

    def load() -> Any:
        with fsspec.open(file, "rt", compression="infer", encoding=encoding) as opened:
            return json.load(opened)

    content = attempt(task, {"path": file} | options, load)
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
            f"{where}: found {str(content)[:60]!r} where a list of rows should be. Correct {setting}.field."
        )
    for row, cells in enumerate(content, start=1):
        if isinstance(cells, dict) if names is None else isinstance(cells, list) and len(cells) == len(names):
            continue
        wanted = "an object with names" if names is None else f"a list of {len(names)} cells, {names}"
        remedy = "Correct the row."
        if names is None and isinstance(cells, list):
            remedy = f"Give the cells of a row names, in their order: add `column_names: [...]` to {setting}."
        raise ValueError(f"{where}, row {row}: found {str(cells)[:60]!r} where a row should be {wanted}. {remedy}")
    if names is not None:
        content = [dict(zip(names, cells, strict=True)) for cells in content]
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


def _read_fasttext(task: str, file: str, options: dict[str, Any], columns: dict[str, Any], notes: list[str]) -> Part:
    """Load lines of `__label__a __label__b text` as columns `text` and `label`, a list of names."""
    prefix, encoding = options.get("label_prefix", LABEL_PREFIX), options.get("encoding", "utf-8")

    def load() -> list[str]:
        with fsspec.open(file, "rt", compression="infer", encoding=encoding) as opened:
            return list(opened)

    marked = re.compile(rf"(?:^|(?<=\s)){re.escape(prefix)}(\S+)")
    texts: list[str | None] = []
    labels: list[list[str] | None] = []
    for line in attempt(task, {"path": file} | options, load):
        texts.append(marked.sub("", line).strip() or None)
        labels.append(marked.findall(line) or None)
    if not any(labels):
        raise ValueError(
            f"{file}: no line holds a word that starts with {prefix!r}. Correct tasks.{task}.dataset.path, or name "
            f"what marks a label under tasks.{task}.dataset.label_prefix."
        )
    features = Features({"text": Value("string"), "label": List(Value("string"))})
    return Part(file, Dataset.from_dict({"text": texts, "label": labels}, features))


def _read_folder(task: str, file: str, options: dict[str, Any], columns: dict[str, Any], notes: list[str]) -> Part:
    """Load a folder with a folder of text files for each class as columns `text`, `label` and `file`."""
    found = [
        (path, folder.name)
        for folder in sorted(Path(file).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if not found:
        raise ValueError(
            f"{file}: there are no folders with files in them. Name the folder that holds one folder for each class "
            f"under tasks.{task}.dataset.data_files."
        )
    encoding = options.get("encoding", "utf-8")
    texts = [
        attempt(task, {"path": str(path)} | options, partial(path.read_text, encoding=encoding)) for path, _ in found
    ]
    names = [str(path.relative_to(file)) for path, _ in found]
    return Part(file, Dataset.from_dict({"text": texts, "label": [label for _, label in found], "file": names}))


def _own(config: type[BuilderConfig]) -> tuple[str, ...]:
    """The options of a builder of `datasets` beyond those of all builders."""
    general = {option.name for option in fields(BuilderConfig)}
    without_effect = {"use_threads", "newlines_in_values"}
    return tuple(sorted({option.name for option in fields(config)} - general - without_effect))


FORMATS = {
    "csv": Format(read_csv, CSV_OPTIONS, {"delimiter": ","}),
    "tsv": Format(read_csv, CSV_OPTIONS, {"delimiter": "\t"}),
    "json": Format(_read_json, (*_own(JsonConfig), "column_names"), {}),
    "jsonl": Format(partial(_packaged, "json"), _own(JsonConfig), {}),
    "parquet": Format(partial(_packaged, "parquet"), _own(ParquetConfig), {}),
    "arrow": Format(partial(_packaged, "arrow"), _own(ArrowConfig), {}),
    "xlsx": Format(read_excel, ("header", "nrows", "sheet_name", "skipfooter", "skiprows", "usecols"), {}),
    "fasttext": Format(_read_fasttext, ("encoding", "label_prefix"), {}),
    "folder": Format(_read_folder, ("encoding",), {}, source="folder"),
    "sqlite": Format(read_sqlite, ("sql",), {}),
    "sql": Format(read_sql, ("sql",), {}, source="address"),
}
# What a recipe may say in place of a format's name, and what to do instead.
UNREAD = {
    "text": "a line of text has no label. Write `path: fasttext` for lines such as `__label__name text`, `path: tsv` "
    "with `column_names: [label, text]` for lines with a tab, `path: folder` for a folder of files for each class.",
    "yaml": "write the examples as rows with a text and a label (csv, tsv, jsonl); Rasa's `intent` and `examples` are "
    "such labels and, one line each, such texts.",
    "xls": "save the workbook as .xlsx and write `path: xlsx`.",
    "xml": "write its texts and labels as rows (csv, tsv, jsonl).",
}
UNREAD |= {"txt": UNREAD["text"], "yml": UNREAD["yaml"], "excel": "write `path: xlsx`.", "pandas": UNREAD["xml"]}
# What other readers call an option.
_SYNONYMS = {"separator": "delimiter", "fieldnames": "column_names", "sheet": "sheet_name", "query": "sql"}
# Arguments of load_dataset that have an effect on files of any format.
_LOADING = (
    *("cache_dir", "download_mode", "features", "keep_in_memory", "num_proc", "storage_options", "token"),
    "verification_mode",
)


def check_options(task: str, path: str, options: dict[str, Any]) -> None:
    """Refuse an option that the format's reader does not know, and names and marks that are no text.

    Raises:
        ValueError: the option, with the nearest known one and all known ones, or with what was found.
    """
    known = FORMATS[path].options
    for key in ("column_names", "names"):
        names = options.get(key)
        if names is not None and (
            not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(f"tasks.{task}.dataset.{key} should be a list of names. Found {names!r}.")
    for key in ("encoding", "label_prefix", "delimiter", "sep"):
        if not isinstance(options.get(key), str | None):
            raise ValueError(f"tasks.{task}.dataset.{key} should be text. Found {options[key]!r}.")
    # What load_dataset takes for all builders has no effect on a reader that does not use it.
    packaged = path in ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
    for key in options:
        if key in known or (packaged and key in _LOADING) or (path in ("csv", "tsv") and key in CSV_TYPES):
            continue
        meant = _SYNONYMS.get(key)
        meant = f" Did you mean {meant!r}?" if meant in known else suggest(key, known)
        raise ValueError(
            f"tasks.{task}.dataset: files of format {path!r} have no option {key!r}.{meant} Known: {', '.join(known)}."
        )


__all__ = ["FORMATS", "SPLIT_NAMES", "SPLIT_OPTIONS", "UNREAD", "Format", "check_options"]
