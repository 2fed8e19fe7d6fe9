"""Trains and evaluates in as many processes as it is started with, and writes down what came out.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/distributed_run.py BACKBONE FOLDER

Each process writes every run's gradients (FOLDER/<run>.<process>.safetensors) and what was logged and scored
(FOLDER/results.<process>.json).
"""

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from helpers.trainer import (
    MEAN_LOSS_TASKS,
    TASKS,
    GradientRecorder,
    make_model,
    make_set,
    make_trainer,
    train_from,
    without_learning,
)
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training import evaluation_loop
from multitask_sentence.training import trainer as trainer_module
from multitask_sentence.training.comparison.compare import compare_single
from multitask_sentence.training.comparison.gradient_cosines import GradientCosines, cosines_of_history
from multitask_sentence.training.report.results import scores_by_task

# Rows of one optimizer step: 8 sentences, labelled for few of the tasks each, so that some batches lack a task.
SENTENCES = {"tasks": MEAN_LOSS_TASKS, "shares": {"sentiment": 0.7, "tags": 0.3, "rating": 0.4}}
# Three sets of 4 rows that stand together: a batch holds the rows of one set, so every other task has none in it.
SEPARATE = {"tasks": tuple(TASKS), "mixture": {"rows_per_batch": dict.fromkeys(TASKS, 4)}}
AT_ONCE = 7  # sentences of a split that are encoded, and gathered, at once
BALANCED = ("uncertainty", "dwa", "famo", "geometric_mean", "random")
RUNS = {
    "two_batches": (SENTENCES, {"per_device_train_batch_size": 4}),
    "accumulated": (SENTENCES, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "with_filler": (SENTENCES, {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}),
    "separate": (SEPARATE, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
}


def train_step(name: str, backbone: Path, folder: Path, **arguments: Any) -> tuple[dict, list[dict]]:
    """The gradients of one optimizer step over all rows of a run, in float64, and the log."""
    data, own_arguments = RUNS[name]
    sets = [make_set(list(MEAN_LOSS_TASKS), data.get("shares"), train=8 if data is SENTENCES else 4)]
    if data is SEPARATE:
        sets += [make_set([task], seed=seed, train=4) for seed, task in ((100, "pairs"), (200, "search"))]
    recorder = GradientRecorder()
    model = make_model(backbone, data["tasks"]).double()
    options = {"callbacks": [recorder], "mixture": data.get("mixture")}
    trainer = make_trainer(model, sets, folder, options, **without_learning(), **{**own_arguments, **arguments})
    trainer.train()
    (gradients,) = recorder.steps
    return gradients, trainer.state.log_history


def evaluate(backbone: Path, folder: Path) -> dict[str, float]:
    """Scores of all tasks on a split with an odd number of sentences."""
    sets = [make_set(list(MEAN_LOSS_TASKS), {"tags": 0.5}, train=8, validation=14)]
    sets += [make_set([task], seed=seed, train=8, validation=9) for seed, task in ((100, "pairs"), (200, "search"))]
    trainer = make_trainer(make_model(backbone), sets, folder, per_device_eval_batch_size=5)
    gather, most = trainer.accelerator.gather, []

    def watched(rows: torch.Tensor) -> torch.Tensor:
        most.append(len(rows))
        return gather(rows)

    with (
        mock.patch.object(trainer.accelerator, "gather", watched),
        mock.patch.object(evaluation_loop, "SENTENCES_AT_ONCE", AT_ONCE),
    ):
        scores = trainer.evaluate()
    scores["most_gathered"] = max(most, default=0)
    thresholds = trainer.choose_thresholds()["tags"]
    return scores | {f"threshold_{label}": threshold for label, threshold in enumerate(thresholds)}


def train_in_stages(backbone: Path, folder: Path, checkpoint: str | None = None, **arguments: Any) -> dict:
    """The weights after two epochs of 4 steps in which heads, the upper layer and the rest join one after another."""
    stages = [{"epochs": 0.5, "train": "heads"}, {"epochs": 1, "train": {"top_layers": 1}}, {"train": "all"}]
    options = {"strategy": {"freeze": "embeddings", "unfreeze": stages, "layer_decay": 0.5}}
    trainer = make_trainer(
        make_model(backbone, MEAN_LOSS_TASKS).double(),
        [make_set(list(MEAN_LOSS_TASKS), train=20)],
        folder,
        options,
        **{"per_device_train_batch_size": 3, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4},
        **arguments,
    )
    train_from(checkpoint, trainer)
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train_and_resume(backbone: Path, folder: Path) -> tuple[dict, dict]:
    """The weights after two epochs of 4 steps, and after the same from the checkpoint at step 6."""
    weights = []
    for checkpoint in (None, str(folder / "checkpoint-6")):
        trainer = make_trainer(
            make_model(backbone, ("sentiment",)),
            [make_set(["sentiment"], train=20)],
            folder,
            per_device_train_batch_size=3,
            num_train_epochs=2,
            save_strategy="steps",
            save_steps=6,
        )
        train_from(checkpoint, trainer)
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    return tuple(weights)


def train_balanced(method: str, backbone: Path, folder: Path, **arguments: Any) -> list[dict[str, float]]:
    """What is logged in four epochs of one optimizer step over the same 8 rows, with the weights of each step."""
    sets = [make_set(list(MEAN_LOSS_TASKS), SENTENCES["shares"], train=8)]
    model = make_model(backbone, MEAN_LOSS_TASKS).double()
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 4, **arguments}
    trainer = make_trainer(model, sets, folder, {"balancing": method}, **options)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def compare(backbone: Path, folder: Path, **arguments: Any) -> tuple[list[dict], dict]:
    """Gradient cosines over two epochs of 3 steps, and joint and single training compared (on the main process)."""
    sets = [make_set(["sentiment", "rating"], {"sentiment": 0.7}, train=10, validation=7)]
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 2, **arguments}
    model = make_model(backbone, ("sentiment", "rating"))
    initial = copy.deepcopy(model)
    trainer = make_trainer(model, sets, folder, **options)
    trainer.add_callback(GradientCosines(trainer))
    trainer.train()
    history = list(trainer.state.log_history)
    scores = {"validation": scores_by_task(trainer.evaluate("validation"), "eval", trainer.tasks)}
    return cosines_of_history(history), compare_single(trainer, lambda: copy.deepcopy(initial), history, scores, {})


def stop_at_nan(backbone: Path, folder: Path) -> str:
    """The error of a run in which the second step's loss is NaN on the last process only."""
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    task_loss = trainer_module.task_loss

    def failing(task: TaskConfig, *rest: Any, **options: Any):
        is_bad = is_last and trainer.state.global_step == 1 and task.problem_type == "regression"
        return task_loss(task, *rest, **options) * (float("nan") if is_bad else 1.0)

    sets = [make_set(list(MEAN_LOSS_TASKS), train=16)]
    trainer = make_trainer(make_model(backbone, MEAN_LOSS_TASKS), sets, folder, per_device_train_batch_size=2)
    trainer_module.task_loss = failing
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    finally:
        trainer_module.task_loss = task_loss
    return "no error"


def main(backbone: Path, folder: Path) -> None:
    process = os.environ["RANK"]
    results: dict[str, Any] = {"logs": {}}
    for name in RUNS:
        gradients, results["logs"][name] = train_step(name, backbone, folder / "runs")
        save_file(gradients, folder / f"{name}.{process}.safetensors")
    for name, weights in zip(("trained", "resumed"), train_and_resume(backbone, folder / "resume"), strict=True):
        save_file(weights, folder / f"{name}.{process}.safetensors")
    for name, step in (("staged", None), ("staged_resumed", 4)):
        checkpoint = step and str(folder / "staged" / f"checkpoint-{step}")
        save_file(train_in_stages(backbone, folder / "staged", checkpoint), folder / f"{name}.{process}.safetensors")
    results["balanced"] = {method: train_balanced(method, backbone, folder / "runs") for method in BALANCED}
    results["compared"] = compare(backbone, folder / "compared")
    results["stopped"] = stop_at_nan(backbone, folder / "runs")
    results["scores"] = evaluate(backbone, folder / "runs")
    (folder / f"results.{process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
