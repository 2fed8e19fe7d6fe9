"""Rows of one split that stand, word for word or nearly, in another: what a model is measured on and has seen.

Word for word is decided by the hashes of rows. Near ones are looked for among the nearest rows in the embedding space;
as a trained embedding also brings rows of one class together, they have to share most of their words as well.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.rows.canonical import labels_of, sentences_of
from ..data.rows.sets import LabelledSet
from ..data.text.sameness import row_hashes, row_key
from ..modeling_multitask import MultiTaskModel
from ..tasks_multitask import TaskConfig

LEAST_COSINE = 0.8
LEAST_SHARED = 0.7  # of the distinct words of both rows
NEAREST = 3  # rows of the other split that are compared word by word
MOST_SHOWN = 50
ROWS_AT_ONCE = 512


@dataclass
class _Split:
    """Some rows of a split: their keys, hashes, embeddings `(rows, embedding_dim)` of length 1, and places in it."""

    name: str
    rows: Dataset
    places: np.ndarray
    texts: list[list[str]]
    hashes: np.ndarray
    embeddings: np.ndarray


def _read_split(model: MultiTaskModel, name: str, rows: Dataset, most: int) -> _Split:
    """At most so many rows of a split, drawn at random where it has more."""
    places = np.arange(len(rows))
    if len(rows) > most:
        places = np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))
    texts = sentences_of(rows).take(places).to_pylist()
    distinct = {key: place for place, key in enumerate(dict.fromkeys(key for row in texts for key in row_key(row)))}
    vectors = np.asarray(model.encode(list(distinct), normalize=True))
    # A pair counts in either order, as its hash does.
    embeddings = np.stack([vectors[[distinct[key] for key in row_key(row)]].mean(axis=0) for row in texts])
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return _Split(name, rows, places, texts, row_hashes(rows)[places], embeddings)


def _shared_words(first: list[str], second: list[str]) -> float:
    """The share of the distinct words of both rows that stand in both (Jaccard), from 0 to 1."""
    words = [set(re.findall(r"\w+", " ".join(row_key(row)))) for row in (first, second)]
    return len(words[0] & words[1]) / max(len(words[0] | words[1]), 1)


def _near(first: _Split, second: _Split) -> list[tuple[float, float, int, int]]:
    """Of each row of the first split the nearest of the second that is nearly the same: words, cosine and places."""
    found = []
    for start in range(0, len(first.texts), ROWS_AT_ONCE):
        cosines = first.embeddings[start : start + ROWS_AT_ONCE] @ second.embeddings.T
        most = min(NEAREST, cosines.shape[1])
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        for row, others in enumerate(nearest):
            near = [
                (_shared_words(first.texts[start + row], second.texts[other]), float(cosines[row, other]), other)
                for other in others.tolist()
                if cosines[row, other] >= LEAST_COSINE and first.hashes[start + row] != second.hashes[other]
            ]
            if near and (best := max(near))[0] >= LEAST_SHARED:
                found.append((best[0], best[1], start + row, best[2]))
    return sorted(found, reverse=True)


def _label(settings: TaskConfig, cell: Any) -> Any:
    """A label as it stands in a data set, as the page shows it."""
    if cell is None or not settings.labels:
        return cell if cell is None else round(cell, 4)
    if isinstance(cell, list):
        return [label for label, given in zip(settings.labels, cell, strict=True) if given]
    return settings.labels[cell]


def _labels(entry: LabelledSet, tasks: Mapping[str, TaskConfig], rows: Dataset, place: int) -> list[Any]:
    """The labels of a row for each of the set's tasks that has any."""
    own = [task for task in entry.tasks if task in tasks and tasks[task].kind.has_label_column]
    return [_label(tasks[task], labels_of(rows, task)[place].as_py()) for task in own]


def find_duplicates(
    model: MultiTaskModel, sets: list[LabelledSet], tasks: Mapping[str, TaskConfig], most_rows: int
) -> list[dict[str, Any]]:
    """
    The rows that stand in two splits of a set.

    Args:
        model: gives the embeddings.
        sets: labelled sets.
        tasks: the model's tasks.
        most_rows: of a split that are embedded; of more, some are drawn at random.

    Returns for each set and pair of its splits, whether they share rows or not: `tasks`, `splits`, `exact` (rows of
    the second split that stand in the first), `near`, `compared` (rows of both splits that were embedded), `counts`
    (all rows of both), and `rows`, at most 50 near ones: `texts`, `labels` of both, `cosine` and `shared` words.
    """
    found = []
    for entry in sets:
        names = [name for name in ("train", "validation", "test") if len(entry.splits.get(name, ()))]
        if len(names) < 2:
            continue
        read = {name: _read_split(model, name, entry.splits[name], most_rows) for name in names}
        for one, other in combinations(names, 2):
            earlier, later = read[one], read[other]
            exact = int(np.isin(row_hashes(later.rows), row_hashes(earlier.rows)).sum())
            near = _near(later, earlier)
            found.append(
                {
                    "tasks": entry.tasks,
                    "splits": [one, other],
                    "exact": exact,
                    "near": len(near),
                    "compared": [len(earlier.texts), len(later.texts)],
                    "counts": [len(earlier.rows), len(later.rows)],
                    "rows": [
                        {
                            "texts": [earlier.texts[second], later.texts[first]],
                            "labels": [
                                _labels(entry, tasks, split.rows, int(split.places[row]))
                                for split, row in ((earlier, second), (later, first))
                            ],
                            "cosine": cosine,
                            "shared": shared,
                        }
                        for shared, cosine, first, second in near[:MOST_SHOWN]
                    ],
                }
            )
    return found


__all__ = ["find_duplicates"]
