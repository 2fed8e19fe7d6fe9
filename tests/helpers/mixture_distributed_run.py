"""Trains contrastive, weighted and single-task runs in as many processes as it is started with, and writes them down.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/mixture_distributed_run.py BACKBONE FOLDER

Each process writes every run's gradients (FOLDER/<run>.<process>.safetensors), and what was logged and the sentences
of the batches that it was given (FOLDER/results.<process>.json).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors.torch import save_file

from helpers.trainer import (
    GradientRecorder,
    make_model,
    make_sentences,
    make_set,
    make_trainer,
    without_learning,
)
from multitask_sentence.data.rows.sets import LabelledSet

SYMMETRIC = {"temperature": 0.1, "symmetric": True}
WEIGHTED = {
    "sentiment": {"class_weights": [0.5, 2.0, 1.5], "label_smoothing": 0.1},
    "tags": {"pos_weight": [4.0, 0.25]},
}
CONTRASTIVE = {"search": SYMMETRIC}
RUNS: dict[str, dict[str, Any]] = {
    # Rows of one optimizer step; what stands in `one` is how a single process takes them in one batch.
    "contrastive": {"options": CONTRASTIVE, "batch_size": 6, "one": 12},
    "plain": {"options": {"search": {}}, "batch_size": 6, "one": 12},
    "uneven": {  # 7 rows and 5
        "options": CONTRASTIVE,
        "batch_size": 7,
        "one": 12,
        "mixture": {"rows_per_batch": {"search": 1}},
    },
    "hard_negatives": {"options": CONTRASTIVE, "batch_size": 6, "one": 12, "negatives": True},
    # One process has rows of the task, the other a batch without any: a filler, or the rows of another task.
    "filler": {"options": CONTRASTIVE, "batch_size": 12, "one": 12, "negatives": True},
    "elsewhere": {
        "options": {**CONTRASTIVE, "rating": {}},
        "batch_size": 12,
        "one": 24,
        "negatives": True,
        "mixture": {"rows_per_batch": {"search": 12, "rating": 12}},
    },
    "weighted": {"options": WEIGHTED, "batch_size": 3, "accumulation": 2, "one": 12},
}
MIXTURES = {
    "mixed": {},
    "uniform": {"sampling": "uniform"},
    "single_task": {"batches": "single_task"},
    "max_rows": {"max_rows": {"rating": 9}, "batches": "single_task"},
}


def contrastive_rows(negatives: bool) -> list[list[str]]:
    """12 rows with repeated rows, anchors with several positives, shared positives, anchors that are positives, and
    hard negatives that are known positives: whichever way they are dealt, some false negative is on another process.
    """
    a, b, c, d, e, f, g, h, *others = make_sentences(40, 7)
    pairs = [(a, b), (a, b), (a, c), (d, b), (e, a), (f, g), (g, f), (f, h), (d, e)]
    pairs += [(others.pop(), others.pop()) for _ in range(3)]
    hard = [c, b, others[0], a, others[1], h, others[2], g, b, a, others[0], others[3]]
    return [[*pair, negative] if negatives else list(pair) for pair, negative in zip(pairs, hard, strict=True)]


def make_sets(name: str) -> list[LabelledSet]:
    run = RUNS[name]
    if name == "weighted":
        return [make_set(list(WEIGHTED), {"sentiment": 0.6, "tags": 0.5}, train=12)]
    rows = contrastive_rows(run.get("negatives", False))
    sets = [LabelledSet(["search"], {"train": Dataset.from_dict({"sentences": rows, "label_search": [1.0] * 12})})]
    return sets + [make_set(["rating"], seed=300, train=12)] * ("rating" in run["options"])


def train_step(name: str, backbone: Path, folder: Path, in_one_batch: bool = False) -> tuple[dict, dict]:
    """The gradients of one optimizer step over all rows of a run, in float64, and what was logged."""
    run, recorder = RUNS[name], GradientRecorder()
    model = make_model(backbone, tuple(run["options"])).double()
    for task, options in run["options"].items():
        model.config.change_task(task, loss_options=options)
    trainer = make_trainer(
        model,
        make_sets(name),
        folder,
        {"callbacks": [recorder], "mixture": run.get("mixture")},
        per_device_train_batch_size=run["one"] if in_one_batch else run["batch_size"],
        gradient_accumulation_steps=1 if in_one_batch else run.get("accumulation", 1),
        **without_learning(),
    )
    trainer.train()
    (gradients,) = recorder.steps
    return gradients, next(entry for entry in trainer.state.log_history if "loss" in entry)


def trained_weights(backbone: Path, folder: Path, in_one_batch: bool = False) -> dict[str, Any]:
    """The weights after nine steps of AdamW on the contrastive task in float64, each step over six rows of twelve."""
    trainer = make_trainer(
        make_model(backbone, ("search",)).double(),
        make_sets("contrastive"),
        folder,
        per_device_train_batch_size=6 if in_one_batch else 3,
        max_steps=9,
        learning_rate=1e-3,
    )
    trainer.train()
    return trainer.model.state_dict()


def batches_of(mixture: dict[str, Any], backbone: Path, folder: Path) -> list[dict[str, list[list[str]]]]:
    """By batch of this process, the rows of every task that has any, over two epochs."""
    sets = [make_set([task], seed=seed, train=count) for task, seed, count in (("rating", 0, 21), ("pairs", 100, 10))]
    trainer = make_trainer(
        make_model(backbone, ("rating", "pairs")),
        sets,
        folder,
        {"mixture": mixture},
        per_device_train_batch_size=4,
        num_train_epochs=2,
    )
    collate, batches = trainer.data_collator, []

    def keep(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batches.append(
            {
                task: found
                for task in ("rating", "pairs")
                if (found := [row["sentences"] for row in rows if row.get(f"label_{task}") is not None])
            }
        )
        return collate(rows)

    trainer.data_collator = keep
    trainer.train()
    return batches


def main(backbone: Path, folder: Path) -> None:
    process = os.environ["RANK"]
    results: dict[str, Any] = {"logs": {}, "batches": {}}
    for name in RUNS:
        gradients, results["logs"][name] = train_step(name, backbone, folder / "runs")
        save_file(gradients, folder / f"{name}.{process}.safetensors")
    save_file(trained_weights(backbone, folder / "runs"), folder / f"trained.{process}.safetensors")
    for name, mixture in MIXTURES.items():
        results["batches"][name] = batches_of(mixture, backbone, folder / "runs")
    (folder / f"results.{process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
