"""Train a multi-task sentence model from a recipe: data -> model -> MultiTaskTrainer -> evaluate -> save.

    python train.py recipes/quickstart.yaml
    accelerate launch train.py recipes/quickstart.yaml --learning_rate 5e-5
    accelerate launch -m multitask_sentence.train recipes/quickstart.yaml
    torchrun --nproc_per_node 2 train.py recipes/quickstart.yaml      # two processes on a CPU
    python train.py recipes/quickstart.yaml --seeds 3                 # three runs; mean and range of each score
    python train.py recipes/quickstart.yaml --check                   # look at recipe and data, and stop

Flags win over the recipe's `training` block. The finished folder opens with
`AutoModel.from_pretrained(folder, trust_remote_code=True)`. `run` tells the story of a run.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from multitask_sentence.data.augmentation.rows import augment_sets, describe_augmentations
from multitask_sentence.data.loading.tasks import load_tasks
from multitask_sentence.data.report import describe, format_report
from multitask_sentence.data.rows.held_out import announce_held_out, announce_trained_on, drop_held_out
from multitask_sentence.data.rows.row_hashes import collect_row_hashes
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.staging_multitask import write_whole
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.calibration.scope import abstains_by_scope
from multitask_sentence.training.card.model_card import CARD_FILE, edited_card, write_model_card
from multitask_sentence.training.comparison.compare import report_comparison, watch_joint_run
from multitask_sentence.training.comparison.single_runs import SINGLE_FOLDER
from multitask_sentence.training.distillation.report import report_distillation
from multitask_sentence.training.distillation.starting import (
    make_lessons,
    recall_single_teachers,
    take_single_teachers,
)
from multitask_sentence.training.evaluation.best_checkpoints import format_best
from multitask_sentence.training.recipe.before_data import Checked, check_before_data
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser
from multitask_sentence.training.recipe.from_memory import quietly, write_recipe
from multitask_sentence.training.recipe.recipe import Recipe
from multitask_sentence.training.recipe.starting import describe_origin, describe_start, scores_before, start_model
from multitask_sentence.training.report.abstention import describe_abstention, format_abstention
from multitask_sentence.training.report.calibration import describe_calibration, format_calibration
from multitask_sentence.training.report.predictions import write_predictions
from multitask_sentence.training.report.publish import check_can_push, describe_push, push_folder
from multitask_sentence.training.report.results import (
    format_scores,
    format_settings,
    save_result,
    scores_by_task,
    stored_arguments,
)
from multitask_sentence.training.resuming.files import last_checkpoint
from multitask_sentence.training.run.console import say, show_facts
from multitask_sentence.training.run.log_lines import shorten_log_lines
from multitask_sentence.training.run.machine import look_at_processes
from multitask_sentence.training.run.mistakes import told_in_one_line
from multitask_sentence.training.run.output_folder import (
    RESULTS_FILE,
    claim_output_dir,
    hold_output_dir,
    release_output_dir,
    write_json,
)
from multitask_sentence.training.seeds import (
    SEEDS_FILE,
    check_seeds,
    format_seeds,
    is_finished,
    seed_folder,
    summarise_seeds,
)
from multitask_sentence.training.strategy.plan import format_plan
from multitask_sentence.training.trainer import MultiTaskTrainer


def load_data(checked: Checked, recipe: Recipe, options: argparse.Namespace, seed: int) -> LoadedTasks:
    """The rows of all tasks, after what the recipe says of held-out rows and of augmentation."""
    with PartialState().main_process_first():
        loaded = load_tasks(checked.start.sources, options.data_root, seed, earlier=checked.start.earlier)
    if recipe.drop_held_out:
        drop_held_out(loaded)
    else:
        announce_held_out(loaded)
    announce_trained_on(loaded)
    if checked.augmentations and not options.check:
        augment_sets(loaded, checked.augmentations, seed)
    return loaded


def make_model(checked: Checked, recipe: Recipe, loaded: LoadedTasks, seed: int) -> MultiTaskModel:
    """The model to train. Whatever was drawn before, it starts from the same random numbers."""
    set_seed(seed)
    return start_model(checked.start, recipe, loaded)


def make_trainer(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    checked: Checked,
    recipe: Recipe,
    loaded: LoadedTasks,
    options: argparse.Namespace,
) -> MultiTaskTrainer:
    """The trainer of the run, checked against the checkpoint that it goes on from."""
    output_dir, lessons = args.output_dir, None
    if recipe.distillation is not None:
        lessons = make_lessons(recipe.distillation, model, loaded, options.data_root, options.joint)
    with TemporaryDirectory() as nowhere:  # a Trainer makes its folder when it is made, and a check leaves none behind
        args.output_dir = nowhere if options.check else output_dir
        trainer = MultiTaskTrainer(
            model=model,
            args=args,
            train_dataset=loaded.sets,
            mixture=recipe.mixture,
            tasks=list(recipe.settings),
            strategy=recipe.strategy,
            plan=checked.start.plan,
            balancing=checked.balancer,
            origin=describe_origin(recipe),
            lessons=lessons,
            groups=recipe.groups,
        )
        args.output_dir = output_dir
    shorten_log_lines(trainer, trainer.tasks)
    if checked.checkpoint and not (options.check and checked.augmentations):  # rows a check does not make
        trainer.check_resume(checked.checkpoint)
    if options.compare_single:
        watch_joint_run(trainer)
    return trainer


def show_run(checked: Checked, recipe: Recipe, loaded: LoadedTasks, trainer: MultiTaskTrainer) -> None:
    """Print settings, parts, and the table of the data."""
    model = trainer.model
    notes = [*describe_start(checked.start, recipe, model), *describe_augmentations(loaded)]
    say(format_settings(recipe, model, trainer, notes))
    say("\n" + format_plan(trainer.plan, model.parts()))
    if PartialState().is_main_process:
        say("\n" + format_report(describe(loaded, model.tokenizer, model.config.max_length)))


def end_check(checked: Checked) -> None:
    """The last lines of `--check`."""
    for augmentation in checked.augmentations:
        say(f"{', '.join(augmentation.tasks)}: the run adds rows by augmentation, which a check does not make")
    say("\nChecked: recipe and data fit together. Nothing was trained or saved; leave out --check to train.")


def keep_row_hashes(trainer: MultiTaskTrainer, loaded: LoadedTasks) -> None:
    """Hashes of the rows, beside every model that the run saves; nothing where they are not wanted."""
    if trainer.args.keep_row_hashes:
        trained = trainer.trained_tasks.keys()
        trainer.row_hashes = collect_row_hashes(trainer.args.output_dir, loaded.sets, trained, loaded.earlier)


def has_single_teachers(trainer: MultiTaskTrainer) -> bool:
    """Whether each task learns from its own model, trained alone first."""
    return trainer.lessons is not None and trainer.lessons.settings.has_single_teachers


def train(trainer: MultiTaskTrainer, checked: Checked) -> None:
    """Train, from the start or from a checkpoint; nothing where all is frozen."""
    if checked.start.plan.stages:
        trainer.train(resume_from_checkpoint=str(checked.checkpoint) if checked.checkpoint else None)
    else:
        say("\nNothing is trained, because strategy.freeze is all: the model is evaluated and saved as it is.")


def settle(trainer: MultiTaskTrainer, recipe: Recipe) -> dict[str, str]:
    """Choose what follows from validation data once the weights are final; by task, why it was not calibrated."""
    forgotten = trainer.drop_old_scopes(unwanted=recipe.out_of_scope is False)
    asking = [name for name, task in trainer.tasks.items() if abstains_by_scope(task) and not task.out_of_scope]
    if recipe.out_of_scope or (recipe.out_of_scope is None and forgotten):
        trainer.fit_out_of_scope()
    elif asking:
        trainer.fit_out_of_scope(tasks=asking)
    left_out = trainer.calibrate(calibration=recipe.calibration)  # a promised risk is that of rows in scope
    trainer.settle_best(calibration=recipe.calibration)
    for name in forgotten:
        task, unwanted = trainer.model.config.tasks[name], recipe.out_of_scope is False and name in trainer.tasks
        if not task.out_of_scope:
            why = "the recipe says out_of_scope: false" if unwanted else "the embedding has moved"
            silent = ", and it gives no label, because it abstains by that" * abstains_by_scope(task)
            say(f"{name}: what is out of its scope is no longer known, because {why}{silent}")
    return left_out


def evaluate(trainer: MultiTaskTrainer, before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By split every task's scores, each split after the scores from before training, and by split the answers."""
    scores, answers = {}, {}
    for split in splits_to_measure(trainer):
        if f"{split} before" in before:
            scores[f"{split} before"] = before[f"{split} before"]
        prefix = "eval" if split == "validation" else split
        metrics, answers[split] = trainer.evaluate_and_answer(split, prefix)
        scores[split] = scores_by_task(metrics, prefix, trainer.scored)
    return scores, answers


def splits_to_measure(trainer: MultiTaskTrainer) -> list[str]:
    return ["validation"] + ["test"] * any("test" in labelled_set.splits for labelled_set in trainer.sets)


def show_scores(trainer: MultiTaskTrainer, scores: dict[str, Any]) -> None:
    """Print every task's scores, and where each task was best."""
    say("\n" + format_scores(trainer.tasks, scores, trainer.trained_tasks, trainer.groups))
    if best := trainer.best_of_tasks.summary:
        say("\n" + format_best(best, trainer.best_of_tasks.chosen_step))


def take_over_push(args: MultiTaskTrainingArguments) -> tuple[str | None, bool]:
    """The repository and whether the finished folder goes there, in one commit at the end; the Trainer pushes none."""
    pushes, args.push_to_hub = args.push_to_hub, False
    repo_id = args.hub_model_id or (Path(args.output_dir).resolve().name if pushes else None)
    if pushes and PartialState().is_main_process:
        check_can_push(repo_id, args.hub_token)
    return repo_id, pushes


def publish(args: MultiTaskTrainingArguments, repo_id: str) -> None:
    """Push the finished folder, and say how to open it from there."""
    url = push_folder(Path(args.output_dir), repo_id, args.hub_private_repo, args.hub_revision, args.hub_token)
    say(describe_push(url))


def run(argv: Sequence[str] | None = None) -> MultiTaskTrainer | None:
    """One run, from the recipe to the finished folder; its trainer. With `--seeds` several, and no trainer."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options, recipe, args = RecipeArgumentParser().parse(argv)
    if options.seeds is None:
        return run_once(options, recipe, args)
    return run_seeds(argv, options, recipe, args)


def run_seeds(
    argv: Sequence[str], options: argparse.Namespace, recipe: Recipe, args: MultiTaskTrainingArguments
) -> None:
    """The same run with several seeds; those that are finished are kept, and the others go on where they stopped."""
    check_seeds(options.seeds, args, options.compare_single, PartialState().num_processes)
    output_dir, results = Path(args.output_dir), {}
    if options.check:
        args.output_dir = str(seed_folder(output_dir, args.seed))
        run_once(options, recipe, args)
        return
    for seed in range(args.seed, args.seed + options.seeds):
        folder = seed_folder(output_dir, seed)
        if not options.overwrite and is_finished(folder, recipe.text, stored_arguments(args)):
            say(f"\nseed {seed}: finished before, in {folder}")
        else:
            say(f"\nseed {seed}")
            goes_on = not options.overwrite and last_checkpoint(folder) is not None
            how = "--resume_from_checkpoint" if goes_on else "--overwrite"
            own = [*argv, "--seed", str(seed), "--output_dir", str(folder), how]
            run_once(*RecipeArgumentParser().parse(own), split_seed=args.seed)
        results[seed] = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    summary = summarise_seeds(results)
    write_json(output_dir / SEEDS_FILE, summary)
    listed = {name: found["metrics"] for name, found in {**results[seed]["tasks"], **results[seed]["groups"]}.items()}
    say(f"\n{format_seeds(summary, listed)}\n\nWritten to {output_dir / SEEDS_FILE}.")


def run_once(
    options: argparse.Namespace, recipe: Recipe, args: MultiTaskTrainingArguments, split_seed: int | None = None
) -> MultiTaskTrainer:
    """One run, in a folder of its own, and its trainer. With `split_seed`, rows are set aside as with that seed."""
    writes = PartialState().is_main_process and not options.check
    with hold_output_dir(Path(args.output_dir)) if writes else nullcontext():
        return run_in_folder(options, recipe, args, split_seed)


def run_in_folder(
    options: argparse.Namespace, recipe: Recipe, args: MultiTaskTrainingArguments, split_seed: int | None
) -> MultiTaskTrainer:
    """All steps of one run, in order."""
    started = time.time()
    checked = check_before_data(options, recipe, args)
    output_dir, is_main = Path(args.output_dir), PartialState().is_main_process
    repo_id, pushes = take_over_push(args)
    look_at_processes(args.device)
    show_facts()

    loaded = load_data(checked, recipe, options, args.seed if split_seed is None else split_seed)
    make_initial = partial(make_model, checked, recipe, loaded, args.seed)
    model = make_initial()
    trainer = make_trainer(model, args, checked, recipe, loaded, options)
    show_run(checked, recipe, loaded, trainer)
    if options.check:
        end_check(checked)
        trainer.accelerator.end_training()
        return trainer

    singles = {}
    if has_single_teachers(trainer) and checked.checkpoint:
        singles = recall_single_teachers(trainer, checked.checkpoint)
    card = edited_card(output_dir)
    keep_row_hashes(trainer, loaded)
    if is_main:  # an earlier run is given up only now that all is in order
        keep = [SINGLE_FOLDER] * (recipe.distillation is not None and recipe.distillation.has_single_teachers)
        claim_output_dir(output_dir, empty=checked.starts_anew and options.overwrite, keep=keep)
    trainer.accelerator.wait_for_everyone()
    if has_single_teachers(trainer) and not checked.checkpoint:
        singles = take_single_teachers(trainer, make_initial)
    known = list(checked.start.tasks)
    before = scores_before(trainer, splits_to_measure(trainer), known) if known else {}
    train(trainer, checked)
    history = list(trainer.state.log_history)
    if recipe.peft is not None and recipe.peft.get("save") != "adapter":
        model.merge_adapter()
    left_out = settle(trainer, recipe)
    scores, answers = evaluate(trainer, before)
    calibration = describe_calibration(trainer.tasks, answers, left_out)
    abstention = describe_abstention(trainer.tasks, answers)

    write_card = partial(write_model_card, output_dir, repo_id, data_root=options.data_root)
    if is_main:
        measured = {"scores": scores, "calibration": calibration, "abstention": abstention}
        save_result(recipe, model, trainer, loaded, measured, answers, time.time() - started)
        write_predictions(output_dir, trainer.tasks, trainer.evaluations, answers)
        if card is not None:
            write_whole(output_dir / CARD_FILE, card)
        write_card()
        release_output_dir(output_dir)
        show_scores(trainer, scores)
        if calibration:
            say("\n" + format_calibration(calibration))
        if abstention:
            say("\n" + format_abstention(abstention))
    if is_main and trainer.lessons is not None:
        report_distillation(trainer, answers, scores, singles, options.joint, write_card)
    if options.compare_single:
        report_comparison(trainer, make_initial, history, scores, write_card, singles)
    if is_main:
        where = f"AutoModel.from_pretrained({str(output_dir)!r}, trust_remote_code=True)"
        say(f"\nSaved to {output_dir}. Open it with {where}.")
    trainer.accelerator.wait_for_everyone()  # the others may read what is written
    if is_main and pushes:
        publish(args, repo_id)
    trainer.accelerator.end_training()
    return trainer


def train_recipe(
    recipe: dict[str, Any], quiet: bool = False, overwrite: bool = False
) -> tuple[MultiTaskTrainer, dict[str, Any]]:
    """
    Train a recipe that is a dictionary: `from multitask_sentence import train; train(recipe)`.

    Args:
        recipe: what the file would hold. A task's `dataset` may be a DataFrame or a `datasets.Dataset` (the training
            rows), or a dictionary or `DatasetDict` of them by split. Other data is named by Hub id or whole path.
        quiet: whether to print nothing and to draw no bar; warnings stay.
        overwrite: whether to replace an earlier run in the output folder.

    Returns the trainer, whose `model` is the finished one, and what `results.json` holds.

    Raises:
        TypeError, ValueError: as of a recipe's file; says where, what was found and what would be right.
    """
    with TemporaryDirectory() as folder, quietly() if quiet else nullcontext():
        path = write_recipe(recipe, Path(folder))
        flags = ["--overwrite"] * overwrite + ["--disable_tqdm", "true"] * quiet
        trainer = run([str(path), *flags])
    results = Path(trainer.args.output_dir) / RESULTS_FILE
    return trainer, json.loads(results.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1, without a stack trace."""
    with told_in_one_line():
        run(argv)


class _Callable(ModuleType):
    """This file as a module that can be called: `from multitask_sentence import train` gives it."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[MultiTaskTrainer, dict[str, Any]]:
        return train_recipe(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
