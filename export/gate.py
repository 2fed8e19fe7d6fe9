"""The gate of int8: a graph is kept where every task's validation score stays within 0.3 points of float32.

    load_rows     the rows that a trained folder is measured on, and training text to calibrate with
    answers_of    what a runtime answers to them
    compare       scores before and after, agreement, lowest cosine, size, speed
    failing       the tasks that lose too much
    examine_int8  the gate once more, for graphs that were exported

int8 results differ between CPUs with and without VNNI, so the gate runs where the file is made, and the doctor runs it
again where it is used.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..modeling_multitask import MultiTaskModel
from ..runtime import MultiTaskRuntime
from ..runtime.graphs import GRAPHS
from ..training.evaluation.scores import Evaluation, answer_task, task_scores
from ..training.finished.data import recipe_data

POINTS = 0.3  # of a score between 0 and 100
RECIPE_FILE = "recipe.yaml"


@dataclass
class GateRows:
    """
    What the gate measures on.

    Attributes:
        evaluation: the validation rows of all tasks.
        calibration: training sentences, for ranges of activations.
    """

    evaluation: Evaluation
    calibration: list[str]


@dataclass
class Answers:
    """
    What a runtime answers to the validation rows.

    Attributes:
        embeddings: `(sentences, embedding_dim)`, not normalised.
        scores: by task its primary metric, in points.
        predictions: by task, what its metrics take.
        sentences_per_second: of the encoding.
    """

    embeddings: np.ndarray
    scores: dict[str, float]
    predictions: dict[str, np.ndarray]
    sentences_per_second: float


def load_rows(
    model: MultiTaskModel, folder: Path, recipe_path: Path | None, data_root: Path | None, most: int
) -> GateRows:
    """
    The validation rows of a trained folder's tasks, split as they were for its training.

    Args:
        model: the model of the folder.
        folder: a trained folder.
        recipe_path: `None` for the recipe.yaml in the folder.
        data_root: what relative data paths start from; `None` for the recipe's folder.
        most: so many training sentences to calibrate with.

    Raises:
        ValueError: there is no recipe, its data is not there, or a task has no validation row.
    """
    recipe_path = recipe_path or folder / RECIPE_FILE
    if not recipe_path.is_file():
        raise ValueError(
            f"int8 is measured on validation rows, and there is no {recipe_path} that says where they are. Give the "
            "recipe that the model was trained with: --recipe RECIPE --data_root FOLDER."
        )
    tasks = model.config.tasks
    loaded = recipe_data(str(folder), tasks, recipe_path, data_root, with_train=True).loaded
    evaluation = Evaluation(loaded.sets, tasks, "validation")
    missing = [name for name in tasks if name not in evaluation.rows]
    if missing:
        raise ValueError(
            f"{recipe_path}: there is no validation row for {', '.join(missing)}, so int8 cannot be measured there. "
            "Give the recipe that the model was trained with (--recipe)."
        )
    train = Evaluation(loaded.sets, tasks, "train").sentences
    if not len(train):
        raise ValueError(f"{recipe_path} names no training rows, which int8 is calibrated with. Name them there.")
    step = max(1, len(train) // most)
    return GateRows(evaluation, train[::step][:most])


def answers_of(model: MultiTaskModel, runtime: MultiTaskRuntime, evaluation: Evaluation) -> Answers:
    """What a runtime answers; heads are those of the model, which its graphs have unchanged."""
    runtime.encode(evaluation.sentences[:64])  # the first pass is slow
    started = time.perf_counter()
    embeddings = runtime.encode(evaluation.sentences, normalize=False, show_progress=False)
    seconds = time.perf_counter() - started
    scores, predictions = {}, {}
    for task, rows in evaluation.rows.items():
        settings = model.config.tasks[task]
        found = answer_task(model, task, torch.from_numpy(embeddings), rows, evaluation.labels[task])
        scores[task] = 100 * task_scores(settings, found)[settings.primary_metric]
        predictions[task] = found.predictions
    return Answers(embeddings, scores, predictions, len(evaluation.sentences) / max(seconds, 1e-9))


def compare(model: MultiTaskModel, before: Answers, after: Answers) -> dict[str, Any]:
    """
    What int8 changes.

    Returns:
        `tasks`: by task `before`, `after` (points) and, of classification, `agreement` (share of equal predictions);
        `lowest_cosine` of an embedding to that of float32; `sentences_per_second`, `before` and `after`.
    """
    tasks = {}
    for task, score in before.scores.items():
        tasks[task] = {"before": score, "after": after.scores[task]}
        if model.config.tasks[task].kind.has_labels:
            tasks[task]["agreement"] = float(np.mean(before.predictions[task] == after.predictions[task]))
    norms = np.linalg.norm(before.embeddings, axis=1) * np.linalg.norm(after.embeddings, axis=1)
    cosines = (before.embeddings * after.embeddings).sum(axis=1) / np.maximum(norms, 1e-12)
    speeds = {"before": before.sentences_per_second, "after": after.sentences_per_second}
    return {"tasks": tasks, "lowest_cosine": float(cosines.min()), "sentences_per_second": speeds}


def failing(compared: dict[str, Any]) -> list[str]:
    """The tasks that lose more than `POINTS`; a score that became undefined is lost."""

    def is_kept(score: dict[str, float]) -> bool:
        return math.isnan(score["before"]) or score["after"] >= score["before"] - POINTS

    return [task for task, score in compared["tasks"].items() if not is_kept(score)]


def cpu_features() -> list[str]:
    """Instructions of this CPU that int8 is fast and exact with, as far as Linux names them."""
    wanted = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    return [name for name in wanted if name in text.split()]


def format_gate(rows: list[dict[str, Any]]) -> str:
    """A table, a line for each method and task."""
    from tabulate import tabulate

    lines = []
    for row in rows:
        speeds = row["sentences_per_second"]
        for number, (task, score) in enumerate(row["tasks"].items()):
            lost = task in failing(row)
            lines.append(
                [
                    row["method"] if not number else "",
                    task,
                    f"{score['before']:.2f}",
                    f"{score['after']:.2f}{' !' if lost else ''}",
                    f"{100 * score['agreement']:.1f} %" if "agreement" in score else "-",
                    f"{row['lowest_cosine']:.4f}" if not number else "",
                    f"{row['bytes'] / 1e6:.1f} MB" if not number else "",
                    f"{speeds['after'] / speeds['before']:.2f} x" if not number else "",
                ]
            )
    header = ["int8", "task", "float32", "int8", "same label", "lowest cosine", "size", "speed"]
    features = ", ".join(cpu_features()) or "none that is known"
    return f"{tabulate(lines, header)}\nThe CPU has {features}. Tasks marked ! lose more than {POINTS} points."


def examine_int8(source: str, recipe_path: Path | None, data_root: Path | None) -> str:
    """
    Run the gate of a folder's or repository's int8 graphs on this machine; returns its table.

    Raises:
        ValueError: there is no int8 graph, or a task loses more than `POINTS` that was not accepted at the export; the
            message ends with the table.
    """
    model = MultiTaskModel.from_pretrained(source, dtype=torch.float32).eval()
    rows = load_rows(model, Path(source), recipe_path, data_root, most=1)
    tables, lost = [], {}
    for engine in GRAPHS:
        try:
            runtime = MultiTaskRuntime.from_pretrained(source, engine, "int8")
        except ValueError as error:
            if "holds no" in str(error):
                continue
            raise
        before = answers_of(model, MultiTaskRuntime.from_pretrained(source, engine), rows.evaluation)
        compared = compare(model, before, answers_of(model, runtime, rows.evaluation))
        files = [runtime.folder / engine / name for name in runtime.record["files"] if "int8" in name]
        measured = {
            "method": f"{engine}, {runtime.record['int8']['method']}",
            "bytes": sum(path.stat().st_size for path in files),
            **compared,
        }
        tables.append(measured)
        lost[engine] = sorted(set(failing(measured)) - set(runtime.record["int8"]["accepted"]))
    if not tables:
        raise ValueError(f"{source} holds no int8 graph. Export one: multitask-sentence export FOLDER --int8.")
    table = format_gate(tables)
    for engine, tasks in lost.items():
        if tasks:
            raise ValueError(
                f"On this machine int8 of {engine} loses more than {POINTS} points at {', '.join(tasks)}. Take "
                f"precision='float32' here, or export on this machine.\n{table}"
            )
    return table
