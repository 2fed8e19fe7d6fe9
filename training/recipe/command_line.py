"""The command line of a run: the recipe, flags of our own, and every training argument. Flags win over the recipe."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ...checks_multitask import suggest
from ..arguments import MultiTaskTrainingArguments
from .recipe import Recipe, load_recipe


class RecipeArgumentParser(HfArgumentParser):
    """Our own arguments first, then every field of TrainingArguments; an unknown flag gets the nearest known one."""

    def __init__(self):
        super().__init__(
            MultiTaskTrainingArguments,
            description="Train a multi-task sentence model from a recipe. Flags win over the recipe.",
            usage="multitask-sentence train RECIPE [--data_root FOLDER] [--overwrite] [--check] [--seeds N] "
            "[--compare_single] [--joint FOLDER] [--require_pinned] [--any_training_argument VALUE ...]",
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
        own.add_argument("--seeds", type=int, metavar="N", help="Train with N seeds; mean and range of each score.")
        own.add_argument("--compare_single", action="store_true", help="Also train each task alone, and compare.")
        own.add_argument(
            "--joint",
            type=Path,
            metavar="FOLDER",
            help="With a distillation block: the finished run without teachers that the report compares with.",
        )
        own.add_argument(
            "--require_pinned",
            action="store_true",
            help="Refuse backbone, continue_from and teachers by the name of a Hub repository, which may change.",
        )
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
        options.data_root = options.data_root or recipe.path.parent
        return options, recipe, arguments
