"""One task of a joint run trained alone.

    check_single_runs  refuses a strategy that a task's own run cannot carry out
    train_single       the run; it leaves `single/<task>` with the model, scores and predictions
    single_places      the folders in which a task's own run may stand
    is_finished        whether a folder holds one with the same settings, which need not be repeated
    find_finished      the first of some folders that does

A single run has the joint run's start, seed, strategy and arguments, and the same number of the task's rows in as many
passes.
"""

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.numpy import save
from transformers import set_seed

from ...data.cache.arrays import BATCH_ROWS
from ...data.rows.canonical import LABEL_PREFIX
from ...data.rows.sets import LabelledSet
from ...data.sampling.sampler import rows_labelled_for
from ...manifest_multitask import listed
from ...modeling_multitask import MultiTaskModel
from ...records_multitask import settings_of
from ...tasks_multitask import CHOSEN_SETTINGS
from ..arguments import FOLLOWS_METRIC, MultiTaskTrainingArguments
from ..mixture.drawing import draw_sets, make_sampler, steps_of_epoch, steps_of_training
from ..mixture.settings import MixtureConfig
from ..report.results import changed_arguments, scores_by_task, write_json
from ..resuming.identity import describe_adapter
from ..strategy.plan import plan_of_tasks
from ..strategy.stages import stage_starts
from ..trainer import MultiTaskTrainer

SINGLE_FOLDER = "single"
RESULT_FILE = "results.json"
PREDICTIONS_FILE = "predictions.safetensors"
OF_ONE_RUN = ("output_dir", "resume_from_checkpoint")  # arguments that runs of the same settings differ in
MEAN_COSINES = ("mean_cosine_related", "mean_cosine_unrelated")


def single_set(joint: MultiTaskTrainer, task: str) -> tuple[LabelledSet, float]:
    """The task's rows, labelled for nothing else, and how often an epoch of the joint run goes through them."""
    drawn = next(drawn for drawn in joint.drawn if task in drawn.tasks)
    splits = next(labelled_set.splits for labelled_set in joint.sets if task in labelled_set.tasks)
    splits = {split: rows_labelled_for(rows, [task]) for split, rows in {**splits, "train": drawn.rows}.items()}
    for split, rows in splits.items():
        others = [name for name in rows.column_names if name.startswith(LABEL_PREFIX) and name != LABEL_PREFIX + task]
        splits[split] = rows.remove_columns(others)
    return LabelledSet([task], splits, drawn.texts), max(drawn.passes, 1 / len(splits["train"]))


def single_mixture(joint: MultiTaskTrainer, task: str, passes: float) -> MixtureConfig:
    """The joint run's mixture as far as it says something about this task."""
    rows_per_batch = {key: value for key, value in joint.mixture.rows_per_batch.items() if key == task}
    return MixtureConfig(passes={task: passes}, batches=joint.mixture.batches, rows_per_batch=rows_per_batch)


def check_single_runs(joint: MultiTaskTrainer) -> None:
    """
    Refuse, before the joint run, a strategy with a stage that would have no step in a task's own, shorter run.

    Raises:
        ValueError: names the task and the stage.
    """
    if len(joint.plan.stages) < 2:
        return
    for task in joint.trained_tasks:
        labelled_set, passes = single_set(joint, task)
        args = single_arguments(joint, task, Path(joint.args.output_dir))
        mixture, batch_size = single_mixture(joint, task, passes), args.per_device_train_batch_size
        drawn = draw_sets(mixture, [labelled_set], {task: joint.tasks[task]}, batch_size, args.seed)
        sampler = make_sampler(mixture, drawn, batch_size, args.world_size, args.seed)
        steps = steps_of_epoch(sampler, args), steps_of_training(sampler, args)
        try:
            stage_starts(plan_of_tasks(joint.plan, [task]), *steps)
        except ValueError as error:
            raise ValueError(f"--compare_single, {task} alone: {error}") from error


def single_arguments(joint: MultiTaskTrainer, task: str, folder: Path) -> MultiTaskTrainingArguments:
    """The joint run's arguments, for another folder, with epochs in place of steps and the task's own score."""
    # Not dataclasses.replace, which would reset accelerate's state under the joint run's trainer.
    args = copy.copy(joint.args)
    args.output_dir, args.resume_from_checkpoint = str(folder), None
    args.metric_for_best_model, args.greater_is_better = "eval_score", True  # of one task, its primary metric
    if args.lr_scheduler_type in FOLLOWS_METRIC:
        args.lr_scheduler_kwargs = {**args.lr_scheduler_kwargs, "mode": "max"}
    args.keep_best_of_tasks = False
    if args.early_stopping_task != task:
        args.early_stopping_task = None
    if args.max_steps > 0:
        args.num_train_epochs, args.max_steps = args.max_steps / steps_of_epoch(joint.sampler, joint.args), -1
    return args


def scale_steps(args: MultiTaskTrainingArguments, max_steps: int, joint_steps: int) -> None:
    """
    Bring what is counted in steps from a run of `joint_steps` to one of `max_steps`, in place.

    There are as many evaluations, as far as the steps suffice, and a checkpoint at each evaluation that had one.
    Shares of all steps stay as they are.
    """

    def scaled(steps: float) -> float:
        return max(1, round(steps * max_steps / joint_steps)) if steps >= 1 else steps

    eval_steps, save_steps = args.eval_steps, args.save_steps
    args.logging_steps, args.warmup_steps, args.save_steps = map(
        scaled, (args.logging_steps, args.warmup_steps, save_steps)
    )
    if args.eval_strategy == "steps":
        args.eval_delay = args.eval_delay * max_steps / joint_steps
        if eval_steps >= 1:
            args.eval_steps = math.ceil(max_steps / math.ceil(joint_steps / eval_steps))
            if save_steps >= 1 and save_steps % eval_steps == 0:
                args.save_steps = args.eval_steps * int(save_steps // eval_steps)


def train_single(joint: MultiTaskTrainer, initial: MultiTaskModel, task: str, folder: Path, split: str) -> None:
    """Train one task alone from the initial model; it goes into a folder, with scores and predictions on a split."""
    started = time.time()
    if joint.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted, or had other settings
    joint.accelerator.wait_for_everyone()
    labelled_set, passes = single_set(joint, task)
    args = single_arguments(joint, task, folder)
    set_seed(args.seed)
    trainer = MultiTaskTrainer(
        model=copy.deepcopy(initial),
        args=args,
        train_dataset=[labelled_set],
        mixture=single_mixture(joint, task, passes),
        tasks=[task],
        strategy=joint.strategy,
    )
    scale_steps(args, steps_of_training(trainer.sampler, args), joint_steps(joint))
    has_cosines = trainer.tasks[task].kind.has_score_range
    before = trainer.measure(split, [task])[task] if has_cosines else {}
    trainer.train()
    trainer.choose_thresholds()
    splits = {"validation": "eval", "test": "test"}
    scores = {
        name: scores_by_task(trainer.evaluate(name, metric_key_prefix=prefix), prefix, trainer.tasks)[task]
        for name, prefix in splits.items()
        if name in labelled_set.splits
    }
    answers = trainer.predictions(split, [task])[task]
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return
    arrays = {"predictions": answers.predictions}
    if answers.references is not None:
        arrays["references"] = answers.references
    content = {
        "task": task,
        "settings": single_settings(joint, initial, task),
        "start": {name: before[name] for name in MEAN_COSINES if name in before},
        "scores": scores,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step if args.load_best_model_at_end else None,
        "rows_per_epoch": sum(drawn.rows_per_epoch for drawn in trainer.drawn),
        "passes": passes,
        "seconds": round(time.time() - started, 1),
        "training": changed_arguments(args),
        "history": trainer.state.log_history,
    }
    trainer.model.adopt_heads()
    with listed(folder) as unfinished:
        trainer.model.save_pretrained(unfinished)
        Path(unfinished, PREDICTIONS_FILE).write_bytes(save(arrays))
        write_json(Path(unfinished, RESULT_FILE), content)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def joint_steps(joint: MultiTaskTrainer) -> int:
    """Optimizer steps of the joint run, without those that unlabelled text adds."""
    args, sampler = joint.args, joint.sampler
    drawn = [entry for entry in joint.drawn if entry.tasks]
    if len(drawn) < len(joint.drawn):
        sampler = make_sampler(
            joint.mixture, drawn, args.per_device_train_batch_size, args.world_size, joint.sampler.seed
        )
    return steps_of_training(sampler, args)


def rows_hash(rows: Any) -> str:
    """A hash of sentences and labels of a `datasets.Dataset`, in their order."""
    found = hashlib.sha256()
    for name in sorted(rows.column_names):
        found.update(f"[{json.dumps(name)}, [".encode())
        for number, batch in enumerate(rows.select_columns(name).with_format(None).iter(BATCH_ROWS)):
            found.update((", " * (number > 0) + json.dumps(batch[name])[1:-1]).encode())
        found.update(b"]]")
    return found.hexdigest()


def weights_hash(model: MultiTaskModel) -> str:
    """A hash of a model's weights."""
    found = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        found.update(name.encode() + weights.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def single_settings(joint: MultiTaskTrainer, initial: MultiTaskModel, task: str) -> dict[str, Any]:
    """All that a single run follows from, as JSON has it: one with other settings is made again."""
    labelled_set, passes = single_set(joint, task)
    training = {key: value for key, value in changed_arguments(joint.args).items() if key not in OF_ONE_RUN}
    mixture = asdict(joint.mixture)
    for by_task in filter(lambda value: isinstance(value, dict), mixture.values()):
        for name in set(by_task) - set(joint.model.config.tasks):  # unlabelled text
            del by_task[name]
    settings = {
        # Thresholds and the like are what a run finds, not what it follows from.
        "task": {key: value for key, value in joint.tasks[task].to_dict().items() if key not in CHOSEN_SETTINGS},
        "rows": {split: len(rows) for split, rows in labelled_set.splits.items()},
        "rows_hash": {split: rows_hash(rows) for split, rows in labelled_set.splits.items()},
        "start": weights_hash(initial),
        "embedding": {
            name: settings_of(getattr(initial.config, name))
            for name in ("pooling", "projection", "normalize", "max_length")
        },
        "passes": passes,
        "mixture": mixture,
        "strategy": joint.strategy,
        "training": training,
        "joint_steps": joint_steps(joint),
        "processes": joint.args.world_size,
    }
    if (adapter := describe_adapter(initial.backbone)) is not None:
        settings["peft"] = adapter
    return json.loads(json.dumps(settings, default=str))


def single_places(output_dir: Path, task: str) -> list[Path]:
    """Where a task's single run may stand: in an output folder, or in one beside it."""
    beside = sorted(output_dir.resolve().parent.iterdir())
    return [folder / SINGLE_FOLDER / task for folder in (output_dir, *beside)]


def read_single(folder: Path) -> dict[str, Any] | None:
    """The results of a finished single run whose model is there; `None` where there is none, or a damaged one."""
    try:
        if all((folder / name).is_file() for name in (PREDICTIONS_FILE, "config.json")):
            found = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else None
    except (OSError, ValueError):  # also a neighbour's folder that may not be read
        pass
    return None


def is_finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds a finished single run with these settings, and its model."""
    found = read_single(folder)
    return found is not None and found.get("settings") == settings


def find_finished(joint: MultiTaskTrainer, folders: Sequence[Path], settings: dict[str, Any]) -> Path | None:
    """The first of some folders that holds a finished single run with these settings. One process looks for all."""
    found = [None]
    if joint.accelerator.is_main_process:
        found = [next((folder for folder in folders if is_finished(folder, settings)), None)]
    return broadcast_object_list(found)[0]
