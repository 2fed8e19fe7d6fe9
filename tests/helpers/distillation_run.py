"""Trains with teachers in as many processes as it is started with, and writes down what came out.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/distillation_run.py BACKBONE TEACHER FOLDER

Each process writes the gradients of each run (FOLDER/<run>.<process>.safetensors), the weights after a run and after
it was resumed, and what was logged and asked (FOLDER/results.<process>.json).
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from safetensors.torch import save_file

from helpers.trainer import (
    MEAN_LOSS_TASKS,
    GradientRecorder,
    make_model,
    make_set,
    make_trainer,
    train_from,
    without_learning,
)
from multitask_sentence.training.distillation.lessons import Lessons
from multitask_sentence.training.distillation.settings import Distillation, TeacherName
from multitask_sentence.training.distillation.starting import recall_single_teachers, take_single_teachers
from multitask_sentence.training.distillation.teachers import open_teacher

SHARES = {"sentiment": 0.6, "tags": 0.4, "rating": 0.5}
RUNS = {
    "two_batches": {"per_device_train_batch_size": 4},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "with_filler": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
}


def make_lessons(teacher: str, model: Any, asked: list[int], **settings: Any) -> Lessons:
    """Lessons of every task; how many rows each question had goes into `asked`."""
    names = {task: (TeacherName(teacher),) for task in model.config.tasks}
    opened = {task: [open_teacher(task, *found, model.config.tasks[task])] for task, found in names.items()}

    def watch(one: Any) -> None:
        ask = one.ask

        def watched(rows: Any, bar: Any) -> Any:
            asked.append(len(rows))
            return ask(rows, bar)

        one.ask = watched

    for one in opened.values():
        watch(one[0])
    return Lessons(Distillation(names, **settings), opened)


def train_step(
    name: str, backbone: Path, teacher: str, folder: Path, **arguments: Any
) -> tuple[dict, list[dict], list[int]]:
    """The gradients of one optimizer step over all rows, in float64, the log, and how many rows were asked about."""
    recorder, asked = GradientRecorder(), []
    model = make_model(backbone, MEAN_LOSS_TASKS)
    lessons = make_lessons(teacher, model, asked, schedule=0.3, temperature=2.0)
    trainer = make_trainer(
        model.double(),
        [make_set(list(MEAN_LOSS_TASKS), SHARES, train=8)],
        folder,
        {"callbacks": [recorder], "lessons": lessons},
        **without_learning(),
        **{**RUNS[name], **arguments},
    )
    trainer.train()
    (gradients,) = recorder.steps
    return gradients, trainer.state.log_history, asked


def train_and_resume(backbone: Path, teacher: str, folder: Path) -> list[dict]:
    """The weights after three epochs with annealing, and after the same from the checkpoint in the middle."""
    weights = []
    for checkpoint in (None, str(folder / "checkpoint-3")):
        model = make_model(backbone, ("sentiment", "pairs"))
        sets = [make_set(["sentiment"], train=8), make_set(["pairs"], seed=100, train=8)]
        trainer = make_trainer(
            model,
            sets,
            folder,
            {"lessons": make_lessons(teacher, model, [])},
            per_device_train_batch_size=4,
            num_train_epochs=3,
            save_strategy="steps",
            save_steps=3,
        )
        train_from(checkpoint, trainer)
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    return weights


def train_single_teachers(backbone: Path, folder: Path, **arguments: Any) -> list[dict[str, str]]:
    """The folders of two tasks' own models, after the student has learnt from them, and as a later run finds them."""
    sets = [make_set(["sentiment", "rating"], {"sentiment": 0.7}, train=10, validation=7)]
    initial = partial(make_model, backbone, ("sentiment", "rating"))
    options = {"lessons": Lessons(Distillation("single"))}
    trainer = make_trainer(initial(), sets, folder, options, **{"per_device_train_batch_size": 2, **arguments})
    taken = take_single_teachers(trainer, initial)
    trainer.train()
    later = make_trainer(initial(), sets, folder, {"lessons": Lessons(Distillation("single"))}, **arguments)
    later.lessons.expect(trainer.lessons.describe()["teachers"])
    recalled = recall_single_teachers(later, folder / "checkpoint-1")
    return [{task: str(found) for task, found in folders.items()} for folders in (taken, recalled)]


def main(backbone: Path, teacher: str, folder: Path) -> None:
    process = os.environ["RANK"]
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    results: dict[str, Any] = {"logs": {}, "asked": {}}
    for name in RUNS:
        gradients, results["logs"][name], results["asked"][name] = train_step(name, backbone, teacher, folder / "runs")
        save_file(gradients, folder / f"{name}.{process}.safetensors")
    for name, weights in zip(
        ("trained", "resumed"), train_and_resume(backbone, teacher, folder / "resume"), strict=True
    ):
        save_file(weights, folder / f"{name}.{process}.safetensors")
    results["single"], results["recalled"] = train_single_teachers(backbone, folder / "student")
    (folder / f"results.{process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
