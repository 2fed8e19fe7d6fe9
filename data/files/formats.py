"""The file formats that a recipe may name: a reader for each, and the options it takes.

A reader is a function `(task, file, options, columns)` that returns a Part. `task` is a name for messages,
`options` holds what the recipe's `dataset` says beside files and splits, and `columns` are the task's own, for hints.
"""

import codecs
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from datasets import BuilderConfig, Dataset, Features, List, Value, load_dataset
from datasets.packaged_modules.arrow.arrow import ArrowConfig
from datasets.packaged_modules.json.json import JsonConfig
from datasets.packaged_modules.parquet.parquet import ParquetConfig

from ...checks_multitask import suggest
from ..text.half_characters import count_halves, encoding_errors_for, read_bytes, without_halves
from ..text.problems import brief
from .csv_files import CSV_OPTIONS, CSV_TYPES, read_csv, stream_csv
from .json_files import read_json, stream_json
from .parts import SPLIT_NAMES, Part, attempt, encoding_hint, format_hint, one_file
from .streams import ParquetRows, Stream
from .tables import read_excel, read_sql, read_sqlite

# Options that may differ from split to split: `field: {train: train, validation: val}`.
SPLIT_OPTIONS = ("field", "sheet_name", "sql")
LABEL_PREFIX = "__label__"
LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass
class Format:
    """
    How files of one format are read; `defaults` are options, `source` says what `data_files` names.

    `stream` reads them onward, where that can be done; its arguments are those of `read`.
    """

    read: Callable[[str, str, dict[str, Any], dict[str, Any]], Part]
    options: tuple[str, ...]
    defaults: dict[str, Any]
    source: str = "file"
    stream: Callable[[str, str, dict[str, Any], dict[str, Any]], Stream] | None = None


def _packaged(builder: str, task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load one file with the builder of `datasets` for its format."""
    load = partial(load_dataset, builder, **one_file(file), **options)
    hint = None if "://" in file else lambda cause: format_hint(task, read_bytes(file)[:100])
    rows = attempt(task, {"path": file} | options, load, hint)["train"]
    return Part(file, without_halves(task, file, rows))


def _stream_packaged(builder: str, task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Stream:
    """The rows of one file, read onward by the builder of `datasets` for its format."""
    load = partial(load_dataset, builder, **one_file(file), streaming=True, **options)
    hint = None if "://" in file else lambda cause: format_hint(task, read_bytes(file)[:100])
    if builder == "parquet" and "://" not in file and not options:
        return Stream(task, file, attempt(task, {"path": file}, partial(ParquetRows, file), hint), failure=hint)
    rows = attempt(task, {"path": file} | options, load, hint)["train"]
    return Stream(task, file, rows, failure=hint)


def _read_text(task: str, file: str, options: dict[str, Any]) -> str:
    """The text of a file, without a byte order mark."""
    encoding = options.get("encoding", "utf-8")

    def load() -> str:
        content = read_bytes(file)
        return content.decode(encoding, encoding_errors_for(content, encoding)).removeprefix("\ufeff")

    return attempt(task, {"path": file} | options, load, partial(encoding_hint, task, file))


def _read_fasttext(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load lines of `__label__a __label__b text` as columns `text` and `label`, a list of names."""
    prefix = options.get("label_prefix", LABEL_PREFIX)
    marked = re.compile(rf"(?:^|(?<=\s)){re.escape(prefix)}(\S+)")
    texts: list[str | None] = []
    labels: list[list[str] | None] = []
    for line in LINE_END.split(_read_text(task, file, options).removesuffix("\n")):
        texts.append(marked.sub("", line).strip() or None)
        labels.append(marked.findall(line) or None)
    if not any(labels):
        raise ValueError(
            f"{file}: no line holds a word that starts with {brief(prefix)}. Correct tasks.{task}.dataset.path, or "
            f"name what marks a label under tasks.{task}.dataset.label_prefix."
        )
    count_halves(task, file, texts)
    features = Features({"text": Value("string"), "label": List(Value("string"))})
    return Part(file, Dataset.from_dict({"text": texts, "label": labels}, features))


def files_below(folder: Path, above: tuple[str, ...] = ()) -> list[Path]:
    """All files in a folder and those in it, sorted. Links to folders are followed, but not in a circle (`above`)."""
    own, files = os.path.realpath(folder), []
    for path in sorted(folder.iterdir()) if own not in above else ():
        if path.is_dir():
            files += files_below(path, (*above, own))
        elif path.is_file():
            files.append(path)
    return files


def _read_folder(task: str, file: str, options: dict[str, Any], columns: dict[str, Any]) -> Part:
    """Load a folder with a folder of text files for each class as columns `text`, `label` and `file`."""
    found = [
        (path, folder.name)
        for folder in sorted(Path(file).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for path in files_below(folder)
        if not path.name.startswith(".")
    ]
    if not found:
        raise ValueError(
            f"{file}: there are no folders with files in them. Name the folder that holds one folder for each class "
            f"under tasks.{task}.dataset.data_files."
        )
    texts = [_read_text(task, str(path), options) for path, _ in found]
    count_halves(task, file, texts)
    names = [str(path.relative_to(file)) for path, _ in found]
    return Part(file, Dataset.from_dict({"text": texts, "label": [label for _, label in found], "file": names}))


def _own(config: type[BuilderConfig]) -> tuple[str, ...]:
    """The options of a builder of `datasets` beyond those of all builders."""
    general = {option.name for option in fields(BuilderConfig)}
    not_ours = {"use_threads", "newlines_in_values", "parse_agent_traces"}  # without effect; always as AS_ROWS
    return tuple(sorted({option.name for option in fields(config)} - general - not_ours))


FORMATS = {
    "csv": Format(read_csv, CSV_OPTIONS, {"delimiter": ","}, stream=stream_csv),
    "tsv": Format(read_csv, CSV_OPTIONS, {"delimiter": "\t"}, stream=stream_csv),
    "json": Format(read_json, (*_own(JsonConfig), "column_names"), {}, stream=stream_json),
    "jsonl": Format(read_json, _own(JsonConfig), {}, stream=stream_json),
    "parquet": Format(
        partial(_packaged, "parquet"), _own(ParquetConfig), {}, stream=partial(_stream_packaged, "parquet")
    ),
    "arrow": Format(partial(_packaged, "arrow"), _own(ArrowConfig), {}, stream=partial(_stream_packaged, "arrow")),
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
            raise ValueError(f"tasks.{task}.dataset.{key} should be a list of names. Found {brief(names)}.")
    for key in ("encoding", "label_prefix", "delimiter", "sep"):
        if not isinstance(options.get(key), str | None):
            raise ValueError(f"tasks.{task}.dataset.{key} should be text. Found {brief(options[key])}.")
    if encoding := options.get("encoding"):
        try:
            codecs.lookup(encoding)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"tasks.{task}.dataset.encoding: there is no encoding {brief(encoding)}. Name the one that the file "
                "was saved in, such as utf-8-sig, utf-16, cp1252 or latin-1."
            ) from error
    # What load_dataset takes for all builders has no effect on a reader that does not use it.
    packaged = path in ("csv", "tsv", "json", "jsonl", "parquet", "arrow")
    for key in options:
        if key in known or (packaged and key in _LOADING) or (path in ("csv", "tsv") and key in CSV_TYPES):
            continue
        meant = _SYNONYMS.get(key)
        meant = f" Did you mean {brief(meant)}?" if meant in known else suggest(key, known)
        raise ValueError(
            f"tasks.{task}.dataset: files of format {brief(path)} have no option {key!r}.{meant} Known: "
            f"{', '.join(known)}."
        )


__all__ = ["FORMATS", "SPLIT_NAMES", "SPLIT_OPTIONS", "UNREAD", "Format", "check_options", "files_below"]
