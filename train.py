"""Train a multi-task sentence model from a recipe: data -> model -> MultiTaskTrainer -> evaluate -> save.

    python train.py recipes/quickstart.yaml
    accelerate launch train.py recipes/quickstart.yaml --learning_rate 5e-5
    accelerate launch -m multitask_sentence.train recipes/quickstart.yaml
    torchrun --nproc_per_node 2 train.py recipes/quickstart.yaml      # two processes on a CPU
    python train.py recipes/quickstart.yaml --check                   # look at recipe and data, and stop

Flags win over the recipe's `training` block. The finished folder opens with
`AutoModel.from_pretrained(folder, trust_remote_code=True)`.
"""

import argparse
import copy
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import Any, get_args, get_type_hints

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, set_seed
from transformers.hf_argparser import string_to_bool
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from multitask_sentence.checks_multitask import suggest
from multitask_sentence.data.augmentation.rows import (
    Augmentation,
    augment_sets,
    describe_augmentations,
    open_augmentations,
)
from multitask_sentence.data.held_out import announce_held_out, announce_trained_on, drop_held_out
from multitask_sentence.data.loading import load_tasks
from multitask_sentence.data.report import describe, format_report
from multitask_sentence.data.row_hashes import collect_row_hashes
from multitask_sentence.training.argument_checks import check_packages
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.balancing.making import make_balancer
from multitask_sentence.training.best_checkpoints import check_best_metric, format_best
from multitask_sentence.training.comparison.gradient_cosines import GradientCosines
from multitask_sentence.training.comparison.report import format_comparison
from multitask_sentence.training.comparison.single_runs import check_comparison, check_single_runs, compare_single
from multitask_sentence.training.early_stopping import check_early_stopping
from multitask_sentence.training.kept_rows import KeepRowHashes
from multitask_sentence.training.machine import look_at_machine
from multitask_sentence.training.output_folder import check_output_dir, claim_output_dir
from multitask_sentence.training.recipe.recipe import Recipe, load_recipe
from multitask_sentence.training.recipe.starting import (
    Start,
    check_start,
    check_strategy,
    describe_origin,
    describe_start,
    scores_before,
    start_model,
)
from multitask_sentence.training.report.model_card import CARD_FILE, is_generated, write_model_card
from multitask_sentence.training.report.predictions import write_predictions
from multitask_sentence.training.report.publish import check_can_push, push_folder
from multitask_sentence.training.report.results import (
    add_result,
    format_scores,
    format_settings,
    save_result,
    scores_by_task,
)
from multitask_sentence.training.resuming.files import RUN_FILE, check_files, last_checkpoint
from multitask_sentence.training.strategy import format_plan
from multitask_sentence.training.trainer import MultiTaskTrainer

logger = logging.get_logger(__name__)


class RecipeArgumentParser(HfArgumentParser):
    """Our own arguments first, then every field of TrainingArguments; an unknown flag gets the nearest known one."""

    def __init__(self):
        super().__init__(
            MultiTaskTrainingArguments,
            description="Train a multi-task sentence model from a recipe. Flags win over the recipe.",
            usage="train.py RECIPE [--data_root FOLDER] [--overwrite] [--check] [--compare_single] "
            "[--any_training_argument VALUE ...]",
            allow_abbrev=False,
        )
        own = self.add_argument_group("this command")
        own.add_argument("recipe", help="The recipe, a YAML file.")
        own.add_argument("--data_root", type=Path, help="What relative data paths start from (the recipe's folder).")
        own.add_argument("--overwrite", action="store_true", help="Replace an earlier run in the output folder.")
        own.add_argument(
            "--check",
            action="store_true",
            help="Load the data, print settings, data table and warnings, and stop: nothing is trained or saved.",
        )
        own.add_argument("--compare_single", action="store_true", help="Also train each task alone, and compare.")
        # The group of our own arguments is printed before the long list of training arguments.
        self._action_groups.insert(0, self._action_groups.pop())

    def error(self, message: str) -> None:
        if message.startswith("unrecognized arguments: "):
            flags = [flag for action in self._actions for flag in action.option_strings]
            found = message.split(": ", 1)[1].split()[0].split("=")[0]
            message += f".{suggest(found, flags)} See --help for all."
        super().error(message)

    def _typed(self, recipe: Recipe) -> dict[str, Any]:
        """The recipe's training arguments, each of the type that its flag has."""
        kinds = {int: "a whole number", float: "a number", string_to_bool: "true or false", str: "text"}
        types = {action.dest: action.type for action in self._actions if action.nargs != 0}
        hints = get_type_hints(MultiTaskTrainingArguments)
        typed = dict(recipe.training)
        for key, value in recipe.training.items():
            if types[key] not in kinds or (value is None and NoneType in get_args(hints[key])):
                continue
            if types[key] is str and (isinstance(value, (bool, list, dict)) or value is None):
                continue  # what else such an argument takes is for TrainingArguments to say
            try:
                typed[key] = types[key](str(value))
            except (ValueError, argparse.ArgumentTypeError):
                kind = kinds[types[key]]
                raise ValueError(f"{recipe.path}: training.{key} is {value!r}, but should be {kind}.") from None
        return typed

    def parse(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Recipe, MultiTaskTrainingArguments]:
        """The command line over the recipe over the defaults."""
        argv = list(sys.argv[1:] if argv is None else argv)
        for index, word in enumerate(argv):  # a bare --resume_from_checkpoint means the last one
            if word == "--resume_from_checkpoint" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
                argv[index] = "--resume_from_checkpoint=last"
        flags = self.parse_args(argv)
        recipe = load_recipe(flags.recipe)
        typed = self._typed(recipe)
        given = {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}
        for kind in ("eval", "save", "logging"):
            if f"{kind}_strategy" in given and getattr(flags, f"{kind}_strategy") != "steps":
                typed.pop(f"{kind}_steps", None)  # it belongs to the strategy that the flag replaces
        self.set_defaults(**typed)
        options = self.parse_args(argv)
        if options.output_dir is None:
            options.output_dir = str(Path("runs") / recipe.path.stem)
        names = {argument.name for argument in fields(MultiTaskTrainingArguments) if argument.init}
        arguments = MultiTaskTrainingArguments(**{key: value for key, value in vars(options).items() if key in names})
        return options, recipe, arguments


def edited_card(output_dir: Path) -> str | None:
    """The text of a model card that somebody edited, so that replacing a run does not lose it."""
    card = output_dir / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    return None if text is None or is_generated(text) else text


def chosen_checkpoint(arguments: MultiTaskTrainingArguments) -> Path | None:
    """The checkpoint to resume from, checked; `None` to start anew."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() in ("last", "true"):
        if (last := last_checkpoint(Path(arguments.output_dir))) is None:
            raise ValueError(
                f"{arguments.output_dir} holds no checkpoint to resume from. Leave --resume_from_checkpoint out (and "
                "replace with --overwrite what a run has left that did not come as far), or name the folder of a "
                "checkpoint."
            )
        return last
    if not any((Path(wanted) / name).is_file() for name in (RUN_FILE, TRAINER_STATE_NAME)):
        raise ValueError(
            f"resume_from_checkpoint: {wanted or 'an empty name'} is no checkpoint of a Trainer. Name a folder, such "
            f"as {Path(arguments.output_dir, 'checkpoint-500')}, or give the flag without a value for the last one."
        )
    return Path(wanted)


@dataclass
class Checked:
    """
    A run, checked as far as it can be without data.

    Attributes:
        checkpoint: the one to resume from, `None` to start anew.
        starts_anew: whether the output folder is begun: no checkpoint in it is resumed from.
        start: what the model starts from.
        trains: whether anything trains.
        augmentations: what makes further training rows.
    """

    checkpoint: Path | None
    starts_anew: bool
    start: Start
    trains: bool
    augmentations: list[Augmentation]


def check_before_data(options: argparse.Namespace, recipe: Recipe, arguments: MultiTaskTrainingArguments) -> Checked:
    """
    Refuse all that can be refused before any data is loaded; nothing is written.

    Raises:
        ValueError: recipe, arguments and output folder do not fit each other; says where and what would be right.
        ImportError: a package is missing.
    """
    checkpoint, output_dir = chosen_checkpoint(arguments), Path(arguments.output_dir)
    starts_anew = checkpoint is None or output_dir.resolve() not in checkpoint.resolve().parents
    if starts_anew:
        check_output_dir(output_dir, overwrite=options.overwrite or options.check)
    check_packages(arguments)
    make_balancer(recipe.balancing, len(recipe.settings), arguments)
    check_best_metric(arguments, recipe.settings)
    check_early_stopping(arguments, tuple(recipe.settings))
    start = check_start(recipe, output_dir, pushes=arguments.push_to_hub)
    trains = check_strategy(start, recipe, arguments)
    if checkpoint and not trains:
        raise ValueError("resume_from_checkpoint: strategy.freeze is all, so there is no training to go on with.")
    if options.compare_single:
        check_comparison(start, recipe, arguments)
    if checkpoint:
        check_files(checkpoint, arguments.world_size)
    augmentations = open_augmentations(start.sources, recipe.path.parent) if trains else []
    return Checked(checkpoint, starts_anew, start, trains, augmentations)


def run(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    options, recipe, arguments = RecipeArgumentParser().parse(argv)
    state = PartialState()
    # accelerate sets an address for its processes to meet at, and then starts one, unless it may use MPI.
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and state.num_processes == 1:
        logger.warning(
            "accelerate launch --cpu started a single process, whatever its --num_processes. For several on a CPU, "
            "start them with torchrun --nproc_per_node 2 train.py RECIPE."
        )

    def say(text: str = "") -> None:
        if state.is_main_process:
            print(text, flush=True)  # noqa: T201 - what this command is for

    checked = check_before_data(options, recipe, arguments)
    checkpoint, start, augmentations = checked.checkpoint, checked.start, checked.augmentations
    output_dir = Path(arguments.output_dir)
    push_to, arguments.push_to_hub = arguments.push_to_hub, False  # one commit of the finished folder, at the end
    repo_id = arguments.hub_model_id or (output_dir.resolve().name if push_to else None)
    if push_to and state.is_main_process:
        check_can_push(repo_id, arguments.hub_token)
    set_seed(arguments.seed)
    if (busy := look_at_machine(arguments.device)) is not None:
        say(busy)

    with state.main_process_first():
        data_root = options.data_root or recipe.path.parent
        loaded = load_tasks(start.sources, data_root, arguments.seed, earlier=start.earlier)
    if recipe.drop_held_out:
        drop_held_out(loaded)
    else:
        announce_held_out(loaded)
    announce_trained_on(loaded)
    if augmentations and not options.check:
        augment_sets(loaded, augmentations, arguments.seed)
        set_seed(arguments.seed)  # whether texts were made or read, the model starts from the same numbers
    model = start_model(start, recipe, loaded)
    initial = copy.deepcopy(model) if options.compare_single and not options.check else None
    kept_card = edited_card(output_dir)
    with TemporaryDirectory() as nowhere:  # a Trainer makes its folder when it is made, and a check leaves none behind
        arguments.output_dir = nowhere if options.check else str(output_dir)
        trainer = MultiTaskTrainer(
            model=model,
            args=arguments,
            train_dataset=loaded.sets,
            mixture=recipe.mixture,
            tasks=list(recipe.settings),
            strategy=recipe.strategy,
            balancing=recipe.balancing,
            origin=describe_origin(recipe),
        )
        arguments.output_dir = str(output_dir)
    if checkpoint and not (options.check and augmentations):  # whose rows a check does not make
        trainer.check_resume(checkpoint)
    if options.compare_single:
        check_single_runs(trainer)
        trainer.add_callback(GradientCosines(trainer))
    row_hashes = None
    if arguments.keep_row_hashes and not options.check:
        row_hashes = collect_row_hashes(str(output_dir), loaded.sets, trainer.trained_tasks.keys(), loaded.earlier)
        trainer.add_callback(KeepRowHashes(row_hashes))
    if state.is_main_process and not options.check:
        # An earlier run is given up only now that all is in order.
        claim_output_dir(output_dir, empty=checked.starts_anew and options.overwrite)
    state.wait_for_everyone()
    notes = [*describe_start(start, recipe, model), *describe_augmentations(loaded)]
    say(format_settings(recipe, model, trainer, notes))
    say("\n" + format_plan(trainer.plan, model.parts()))
    for announcement in [*loaded.announcements, *trainer.announcements]:
        say(announcement)
    if state.is_main_process:
        say("\n" + format_report(describe(loaded, model.tokenizer, model.config.max_length)))

    if options.check:
        for augmentation in augmentations:
            say(f"{', '.join(augmentation.tasks)}: the run adds rows by augmentation, which a check does not make")
        say("\nChecked: recipe and data fit together. Nothing was trained or saved; leave out --check to train.")
        trainer.accelerator.end_training()
        return

    splits = ["validation"] + ["test"] * any("test" in labelled_set.splits for labelled_set in loaded.sets)
    before = scores_before(trainer, splits, list(start.tasks)) if start.tasks else {}

    if checked.trains:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        say("\nNothing is trained, because strategy.freeze is all: the model is evaluated and saved as it is.")
    history = list(trainer.state.log_history)

    if recipe.peft is not None and recipe.peft.get("save") != "adapter":
        model.merge_adapter()
    trainer.choose_thresholds()
    scores, answers = {}, {}
    for split, prefix in zip(splits, ("eval", "test"), strict=False):
        if f"{split} before" in before:
            scores[f"{split} before"] = before[f"{split} before"]
        metrics, answers[split] = trainer.evaluate_and_answer(split, prefix)
        scores[split] = scores_by_task(metrics, prefix, trainer.tasks)

    def save_card() -> None:
        write_model_card(output_dir, repo_id=repo_id, data_root=options.data_root or recipe.path.parent, **recipe.card)

    if state.is_main_process:
        save_result(recipe, model, trainer, loaded, scores, time.time() - started, row_hashes)
        write_predictions(output_dir, trainer.tasks, trainer.evaluations, answers)
        if kept_card is not None:
            (output_dir / CARD_FILE).write_text(kept_card, encoding="utf-8")
        save_card()
        say("\n" + format_scores(trainer.tasks, scores, trainer.trained_tasks))
        if trainer.best_of_tasks.summary:
            say("\n" + format_best(trainer.best_of_tasks.summary, trainer.best_of_tasks.chosen_step))
    if options.compare_single:
        compared = compare_single(trainer, initial, history, scores, say)
        if state.is_main_process:
            add_result(output_dir, "compare_single", compared)
            save_card()
            say("\n" + format_comparison(compared))
    if state.is_main_process:
        where = f"AutoModel.from_pretrained({str(output_dir)!r}, trust_remote_code=True)"
        say(f"\nSaved to {output_dir}. Open it with {where}.")
        if push_to:
            revision = arguments.hub_revision
            url = push_folder(output_dir, repo_id, arguments.hub_private_repo, revision, arguments.hub_token)
            *_, owner, name, _, commit = url.split("/")
            say(
                f"Pushed to {url}. Open it with AutoModel.from_pretrained({f'{owner}/{name}'!r}, revision={commit!r}, "
                "trust_remote_code=True)."
            )
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1, without a stack trace."""
    try:
        run(argv)
    except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        sys.exit(f"error: {cause}")


if __name__ == "__main__":
    main()
