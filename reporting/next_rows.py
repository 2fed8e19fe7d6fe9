"""The rows of an unlabelled file that are worth labelling next.

read_unlabeled   its texts, without those that stand among the run's own rows
tasks_to_answer  the tasks that it is about
committee        the models that may disagree
choose_next      the rows to label, in their order
write_csv        them as a file

A row is worth more the less sure the model is of its labels, and the more the models of `best/` disagree with it
(query by committee, Seung et al. 1992). Of ten times as many candidates, those are taken that cover the embedding
space: each next one is the candidate that is furthest from all taken so far (k-centre greedy, Sener and Savarese 2018,
arXiv 1708.00489).
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data.files.formats import FORMATS
from ..data.sources.loading import load_parts
from ..data.sources.task_source import TaskSource
from ..data.text.sameness import row_hash
from ..data.text.spelling import is_empty
from ..modeling_multitask import MultiTaskModel
from ..tasks_multitask import TaskConfig
from ..training.evaluation.scores import decisions, task_confidences, task_logits
from ..training.run.output_folder import BEST_FOLDER

CANDIDATES = 10  # for each row that is wanted
ALL = "unlabeled"
TEXT_COLUMNS = ("text", "text1", "text2")


def read_unlabeled(path: Path, text: Sequence[str], known: np.ndarray) -> tuple[list[tuple[str, ...]], str]:
    """
    The texts of a file, and a sentence that counts what is left out: rows without text, repeated ones, and those that
    stand among rows that are known.

    Args:
        path: a csv, tsv, jsonl or parquet file, or another that a recipe reads.
        text: the column to read, or two for pairs.
        known: hashes of rows that have labels.

    Raises:
        ValueError: the file cannot be read, a column is missing, or no row is left.
    """
    ending = path.suffix[1:].lower()
    known_endings = [name for name, found in FORMATS.items() if found.source == "file"]
    if ending not in known_endings:
        raise ValueError(f"--unlabeled: {path} should end with one of {', '.join(known_endings)}.")
    keys = ["sentence"] if len(text) == 1 else ["sentence1", "sentence2"]
    dataset = {"path": ending, "data_files": {"test": [str(path.absolute())]}}
    # Any problem type reads sentences and pairs alike; there are no labels that it would have to fit.
    source = TaskSource(ALL, "regression", dataset, dict(zip(keys, text, strict=True)))
    try:
        parts = [part for own in load_parts([source], Path()).values() for part in own]
        cells = [
            [cell for part in parts for cell in part.column(ALL, key, name)]
            for key, name in zip(keys, text, strict=True)
        ]
    except ValueError as error:
        said = str(error).replace("take the split out of the recipe", "give another file")
        said = re.sub(rf"[Tt]ask '{ALL}'", "--unlabeled", said)
        raise ValueError(re.sub(rf"tasks\.{ALL}\.columns\.\w+", "--text", said)) from error
    rows: dict[int, tuple[str, ...]] = {}
    counts = {"without text": 0, "repeated": 0, "that have labels already": 0}
    labelled = set(known.tolist())
    for row in zip(*cells, strict=True):
        if any(is_empty(cell) or not isinstance(cell, str) for cell in row):
            counts["without text"] += 1
        elif (hashed := row_hash(row)) in labelled:
            counts["that have labels already"] += 1
        elif hashed in rows:
            counts["repeated"] += 1
        else:
            rows[hashed] = row
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    total = sum(counts.values()) + len(rows)
    if not rows:
        raise ValueError(f"--unlabeled: none of the {total} rows of {path} is left ({left_out or 'it is empty'}).")
    return list(rows.values()), f"{len(rows):,} of {total:,} rows" + f" (left out: {left_out})" * bool(left_out)


def committee(folder: Path) -> list[Path]:
    """The folders of the models that the run has kept as the best of a task."""
    return sorted({path.parent for path in (folder / BEST_FOLDER).glob("*/*.safetensors")})


def tasks_to_answer(tasks: Mapping[str, TaskConfig], text: Sequence[str]) -> dict[str, TaskConfig]:
    """
    The classification tasks that read this many columns.

    Raises:
        ValueError: there is none, or one is called like a column of the table.
    """
    found = {name: task for name, task in tasks.items() if task.kind.has_labels and task.pair == (len(text) == 2)}
    if not found:
        kind = "pairs" if len(text) == 2 else "single sentences"
        raise ValueError(f"--unlabeled: no classification task reads {kind}. Tasks: {', '.join(tasks)}.")
    own = {*TEXT_COLUMNS, "uncertainty", "disagreement", *(f"{name}_confidence" for name in found)}
    if taken := sorted(own & found.keys()):
        raise ValueError(
            f"--unlabeled: a column of the table is called like task {taken[0]!r}. Leave it out with --tasks."
        )
    return found


def _embedded(model: MultiTaskModel, rows: Sequence[tuple[str, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the distinct sentences, and `(rows, sentences of a row)` places in them."""
    places = {sentence: place for place, sentence in enumerate(dict.fromkeys(one for row in rows for one in row))}
    embeddings = torch.as_tensor(np.asarray(model.encode(list(places), normalize=False)))
    return embeddings, torch.tensor([[places[sentence] for sentence in row] for row in rows])


def _answers(
    model: MultiTaskModel, task: str, embeddings: torch.Tensor, places: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """What a model decides for each row, and how sure it is."""
    settings = model.config.tasks[task]
    logits = torch.cat(list(task_logits(model, task, embeddings, places, 256)))
    return decisions(settings, logits), task_confidences(settings, logits).numpy()


def _names(settings: TaskConfig, decided: Any) -> Any:
    """The label of a row, or the list of its labels."""
    if settings.kind.is_multi_label:
        return [label for label, given in zip(settings.labels, decided, strict=True) if given]
    return settings.labels[decided]


def _unsure(settings: TaskConfig, confidences: np.ndarray) -> np.ndarray:
    """0 where the model is sure, 1 where it could not be less so."""
    least = 0.5 if settings.kind.is_multi_label else 1 / len(settings.labels)
    return np.clip((1 - confidences) / (1 - least), 0, 1)


def spread_out(vectors: np.ndarray, count: int) -> list[int]:
    """
    The first row, and then each time the one that is furthest from all taken so far (k-centre greedy).

    Args:
        vectors: `(rows, dim)`, of length 1.
        count: how many are wanted.

    Returns their places, in the order in which they were taken.
    """
    taken, distances = [0], 1 - vectors @ vectors[0]
    while len(taken) < min(count, len(vectors)):
        distances[taken[-1]] = -np.inf
        taken.append(int(distances.argmax()))
        distances = np.minimum(distances, 1 - vectors @ vectors[taken[-1]])
    return taken


def write_csv(found: pd.DataFrame, file: Path) -> None:
    """What `choose_next` gave: texts in quotes, whichever line breaks they hold, and several labels as JSON."""
    cells = found.map(lambda cell: json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell)
    cells.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC)


def choose_next(
    model: MultiTaskModel,
    others: Iterable[MultiTaskModel],
    tasks: Mapping[str, TaskConfig],
    rows: Sequence[tuple[str, ...]],
    count: int,
) -> pd.DataFrame:
    """
    The rows to label next.

    Args:
        model: the finished model.
        others: models that may disagree with it, such as the best of single tasks; held one at a time.
        tasks: the classification tasks that count, by name.
        rows: texts, or pairs of them.
        count: how many are wanted.

    Returns a line for each row: `text`, or `text1` and `text2`; by task `<task>` and `<task>_confidence`;
    `uncertainty`, the mean over tasks, from 0 to 1; and with other models `disagreement`, the share of their labels
    that differ.
    """
    embeddings, places = _embedded(model, rows)
    own = {task: _answers(model, task, embeddings, places) for task in tasks}
    uncertainty = np.mean([_unsure(tasks[task], sure) for task, (_, sure) in own.items()], axis=0)
    differences = []
    for other in others:
        other_embeddings, other_places = _embedded(other, rows)
        for task in tasks:
            if task in other.config.tasks:
                differs = _answers(other, task, other_embeddings, other_places)[0] != own[task][0]
                differences.append(differs.any(axis=1) if differs.ndim == 2 else differs)
    disagreement = np.mean(differences, axis=0) if differences else np.zeros(len(rows))
    candidates = np.argsort(-(uncertainty + disagreement), kind="stable")[: CANDIDATES * count]
    vectors = embeddings[places[candidates]].float().mean(dim=1).numpy()
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    chosen = candidates[spread_out(vectors, count)]
    columns: dict[str, Any] = {}
    for place in range(len(rows[0])):
        columns["text" if len(rows[0]) == 1 else f"text{place + 1}"] = [rows[row][place] for row in chosen]
    for task, (decided, sure) in own.items():
        columns[task] = [_names(tasks[task], decided[row]) for row in chosen]
        columns[f"{task}_confidence"] = sure[chosen].round(4)
    columns["uncertainty"] = uncertainty[chosen].round(4)
    if differences:
        columns["disagreement"] = disagreement[chosen].round(4)
    return pd.DataFrame(columns)


__all__ = ["choose_next", "committee", "read_unlabeled", "spread_out", "tasks_to_answer", "write_csv"]
