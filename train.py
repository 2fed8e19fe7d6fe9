"""Train a multi-task sentence model from a recipe: data -> model -> MultiTaskTrainer -> evaluate -> save.

    python train.py recipes/quickstart.yaml
    accelerate launch train.py recipes/quickstart.yaml --learning_rate 5e-5
    accelerate launch -m multitask_sentence.train recipes/quickstart.yaml

Flags win over the recipe's `training` block. The finished folder opens with
`AutoModel.from_pretrained(folder, trust_remote_code=True)`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint

from multitask_sentence.configuration_multitask import suggest
from multitask_sentence.data.loading import LoadedTasks, load_tasks
from multitask_sentence.data.report import describe, format_report
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.recipe import Recipe, load_recipe
from multitask_sentence.training.results import (
    check_output_dir,
    format_scores,
    format_settings,
    save_result,
    scores_by_task,
)
from multitask_sentence.training.trainer import MultiTaskTrainer, MultiTaskTrainingArguments


class RecipeArgumentParser(HfArgumentParser):
    """Our own arguments first, then every field of TrainingArguments; an unknown flag gets the nearest known one."""

    def __init__(self):
        super().__init__(
            MultiTaskTrainingArguments,
            description="Train a multi-task sentence model from a recipe. Flags win over the recipe.",
            usage="train.py RECIPE [--data_root FOLDER] [--overwrite] [--any_training_argument VALUE ...]",
            allow_abbrev=False,
        )
        own = self.add_argument_group("this command")
        own.add_argument("recipe", help="The recipe, a YAML file.")
        own.add_argument("--data_root", type=Path, help="What relative data paths start from (the recipe's folder).")
        own.add_argument("--overwrite", action="store_true", help="Replace an earlier run in the output folder.")
        # The group of our own arguments is printed before the long list of training arguments.
        self._action_groups.insert(0, self._action_groups.pop())

    def error(self, message: str) -> None:
        if message.startswith("unrecognized arguments: "):
            flags = [flag for action in self._actions for flag in action.option_strings]
            found = message.split(": ", 1)[1].split()[0]
            message += f".{suggest(found, flags)} See --help for all."
        super().error(message)

    def parse(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Recipe, MultiTaskTrainingArguments]:
        """The command line over the recipe over the defaults."""
        argv = list(sys.argv[1:] if argv is None else argv)
        for index, word in enumerate(argv):  # a bare --resume_from_checkpoint means the last one
            if word == "--resume_from_checkpoint" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
                argv[index] = "--resume_from_checkpoint=last"
        recipe = load_recipe(self.parse_args(argv).recipe)
        self.set_defaults(**recipe.training)
        options = self.parse_args(argv)
        if options.output_dir is None:
            options.output_dir = str(Path("runs") / recipe.path.stem)
        names = {argument.name for argument in fields(MultiTaskTrainingArguments) if argument.init}
        arguments = MultiTaskTrainingArguments(**{key: value for key, value in vars(options).items() if key in names})
        return options, recipe, arguments


def task_settings(recipe: Recipe, loaded: LoadedTasks) -> dict[str, dict[str, Any]]:
    """The recipe's task settings with the labels and score ranges that the data gave."""
    settings = {name: dict(task) for name, task in recipe.settings.items()}
    for name, task in settings.items():
        if name in loaded.labels:
            task["labels"] = loaded.labels[name]
        if task["problem_type"] == "similarity" and "score_range" not in task:
            task["score_range"] = list(loaded.score_ranges[name])
    return settings


def last_checkpoint(arguments: MultiTaskTrainingArguments) -> str | None:
    """The checkpoint to resume from, checked; `None` to start anew."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() in ("last", "true"):
        wanted = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        if wanted is None:
            raise ValueError(f"{arguments.output_dir} holds no checkpoint to resume from.")
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ValueError(f"resume_from_checkpoint: {wanted} is no checkpoint of a Trainer.")
    return str(wanted)


def run(argv: Sequence[str] | None = None) -> None:
    started = time.time()
    options, recipe, arguments = RecipeArgumentParser().parse(argv)
    state = PartialState()

    def say(text: str = "") -> None:
        if state.is_main_process:
            print(text, flush=True)  # noqa: T201 - what this command is for

    checkpoint = last_checkpoint(arguments)
    if checkpoint is None:
        with state.main_process_first():
            check_output_dir(Path(arguments.output_dir), overwrite=options.overwrite, remove=state.is_main_process)
    set_seed(arguments.seed)

    with state.main_process_first():
        loaded = load_tasks(recipe.sources, options.data_root or recipe.path.parent, arguments.seed)
    model = MultiTaskModel.from_backbone(
        recipe.backbone,
        tasks=task_settings(recipe, loaded),
        pooling=recipe.pooling,
        projection=recipe.projection,
        normalize=recipe.normalize,
        max_length=recipe.max_length,
    )
    trainer = MultiTaskTrainer(
        model=model,
        args=arguments,
        sets=loaded.sets,
        passes=recipe.mixture.get("passes"),
        rows_per_batch=recipe.mixture.get("rows_per_batch"),
    )
    say(format_settings(recipe, model, trainer))
    for announcement in loaded.announcements:
        say(announcement)
    if state.is_main_process:
        say("\n" + format_report(describe(loaded, model.tokenizer, model.config.max_length)))

    trainer.train(resume_from_checkpoint=checkpoint)

    trainer.choose_thresholds()
    scores = {"validation": trainer.evaluate("validation")}
    if any("test" in labelled_set.splits for labelled_set in loaded.sets):
        scores["test"] = trainer.evaluate("test", metric_key_prefix="test")
    scores = {
        "validation": scores_by_task(scores["validation"], "eval", model.config.tasks),
        **({"test": scores_by_task(scores["test"], "test", model.config.tasks)} if "test" in scores else {}),
    }
    if state.is_main_process:
        folder = save_result(recipe, model, trainer, loaded, scores, seconds=time.time() - started)
        say("\n" + format_scores(model.config.tasks, scores))
        say(f"\nSaved to {folder}. Open it with AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).")
    trainer.accelerator.end_training()


def main() -> None:
    """The command: a person's mistake ends with one message and exit status 1, without a stack trace."""
    try:
        run()
    except (ValueError, TypeError, OSError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        if "--debug" in sys.argv:
            raise
        sys.exit(f"error: {cause}")


if __name__ == "__main__":
    main()
