"""Slices of the rows: by how long their texts are, and by any column of the data.

read_slices    what columns of the data say of the rows that were measured
slice_scores   each task's primary metric by slice
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..checks_multitask import suggest
from ..data.files.parts import plain_text
from ..data.loading.tasks import group_sources
from ..data.sources.loading import load_parts
from ..data.sources.task_source import sentence_columns
from ..data.text.sameness import row_hash
from ..training.finished.data import FinishedData
from .rows import TaskRows
from .sections import score_rows

MOST_VALUES = 12  # of a column that are shown, those with most rows
SEVERAL = "(several)"
OTHERS = "(others)"
MISSING = "(none)"
LENGTHS = (9, 17, 33)  # words from which the next slice begins

# By task and column, the value of each row by its hash.
Slices = Mapping[str, Mapping[str, Mapping[int, str]]]


def read_slices(
    data: FinishedData, columns: Sequence[str], rows: Mapping[str, Mapping[str, TaskRows]]
) -> dict[str, dict[str, dict[int, str]]]:
    """
    What columns of the data say of the rows that were measured: by task and column, a value by the row's hash.

    A row is found again by its text. Where the same text stands in the data with several values, its value is
    `(several)`.

    Args:
        data: where the rows come from.
        columns: names of columns.
        rows: by task and split.

    Raises:
        ValueError: no task's data has a column.
    """
    found: dict[str, dict[str, dict[int, str]]] = {}
    known: dict[str, None] = {}
    for sources in group_sources(data.sources):
        parts = list(chain.from_iterable(load_parts(sources, data.data_root).values()))
        known |= dict.fromkeys(name for part in parts for name in part.rows.column_names)
        first = sources[0]
        wanted = {
            hashed
            for source in sources
            for own in rows.get(source.name, {}).values()
            for hashed in own.hashes.tolist()
        }
        values: dict[str, dict[int, str]] = {name: {} for name in columns}
        for part in parts:
            sentences = [part.column(first.name, key, name) for key, name in sentence_columns(first)]
            own = {name: part.cells(name) for name in columns if name in part.rows.column_names}
            for texts, *cells in zip(zip(*sentences, strict=True), *own.values(), strict=True):
                if not all(isinstance(text, str) for text in texts):
                    continue
                hashed = row_hash(texts)
                if hashed not in wanted:
                    continue
                for name, cell in zip(own, cells, strict=True):
                    value = plain_text(cell) or MISSING
                    if values[name].setdefault(hashed, value) != value:
                        values[name][hashed] = SEVERAL
        for source in sources:
            if source.name in rows:
                found[source.name] = {name: by_hash for name, by_hash in values.items() if by_hash}
    for name in columns:
        if name not in known:
            raise ValueError(
                f"--slices: the data has no column {name!r}.{suggest(name, known)} It has: {list(known)}."
            )
    return found


LENGTH_NAMES = [f"{low} to {high - 1} words" for low, high in zip((1, *LENGTHS), LENGTHS, strict=False)]
LENGTH_NAMES.append(f"{LENGTHS[-1]} words and more")


def _lines(rows: TaskRows, values: list[str]) -> list[dict[str, Any]]:
    """A line for each value, those with most rows first, the rest together."""
    frequent = dict(Counter(values).most_common(MOST_VALUES))
    values = [value if value in frequent else OTHERS for value in values]
    places: dict[str, list[int]] = {value: [] for value in frequent}
    for place, value in enumerate(values):
        places.setdefault(value, []).append(place)
    lines = []
    for value, chosen in places.items():
        references = None if rows.references is None else rows.references[chosen]
        primary = score_rows(rows.settings, rows.predictions[chosen], references, rows.settings.metrics[:1])[0]
        lines.append({"value": value, "rows": len(chosen), "wrong": int(rows.is_wrong[chosen].sum()), **primary})
    return lines


def slice_scores(rows: Mapping[str, Mapping[str, TaskRows]], slices: Slices) -> list[dict[str, Any]]:
    """
    Each task's primary metric by slice, on the last split that has rows of it.

    Returns by task `task`, `split`, `metric`, `has_labels`, and `parts`: `name` and `lines` of `value`, `rows`,
    `wrong`, `score` and `interval`.
    """
    found = []
    for task, by_split in rows.items():
        own = list(by_split.values())[-1]
        lengths = [LENGTH_NAMES[place] for place in np.searchsorted(LENGTHS, own.words, side="right")]
        by_length = sorted(_lines(own, lengths), key=lambda line: LENGTH_NAMES.index(line["value"]))
        parts = [{"name": "length", "lines": by_length}]
        for name, by_hash in slices.get(task, {}).items():
            parts.append({"name": name, "lines": _lines(own, [by_hash.get(int(h), MISSING) for h in own.hashes])})
        found.append(
            {
                "task": task,
                "split": own.split,
                "metric": own.settings.primary_metric,
                "has_labels": own.settings.kind.has_labels,
                "parts": parts,
            }
        )
    return found


__all__ = ["Slices", "read_slices", "slice_scores"]
