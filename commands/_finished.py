"""What `evaluate`, `compare` and `report` share: which rows, which model, and where the result goes."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUTPUTS = ("evaluation.json", "comparison.json", "predictions")
DTYPES = ("float32", "bfloat16", "float16")


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Options on the rows, and on how they are answered."""
    parser.add_argument("--data_root", type=Path, help="What a recipe's relative paths start from (its folder).")
    parser.add_argument("--text", nargs="+", default=["text"], help="Of files: the column to read, or two for pairs.")
    parser.add_argument(
        "--label",
        nargs="+",
        default=[],
        metavar="TASK=COLUMN",
        help="Of files: columns of labels (called like the task; of a single task, label).",
    )
    parser.add_argument("--tasks", nargs="+", help="Only these tasks (all that the data has).")
    parser.add_argument("--splits", nargs="+", help="Of a recipe: the splits to measure (validation test).")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="(float32)")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """The same, and where the result goes."""
    add_row_options(parser)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="Where JSON and predictions go (nowhere).")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output.")


def check_row_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what can be refused before anything is loaded."""
    if len(options.text) > 2:
        parser.error(f"--text: one column, or two for pairs. Found {len(options.text)}.")
    for name in ("splits", "label") if options.data is None else ():
        if getattr(options, name):
            parser.error(f"--{name} is about the rows of --data, which is not given.")
    for pair in options.label:
        if "=" not in pair:
            parser.error(f"--label: {pair!r} should be like TASK=COLUMN, such as topic=category.")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """The same, and an output that exists."""
    check_row_options(parser, options)
    if options.output is not None and options.output.exists() and not options.overwrite:
        parser.error(f"--output: {options.output} exists. Name another folder, or replace it with --overwrite.")


def check_output(options: argparse.Namespace) -> None:
    """Refuse to replace what no evaluation has written."""
    if options.output is None or not options.output.exists():
        return
    if options.output.is_file():
        raise ValueError(f"--output: {options.output} is a file, but should be a folder.")
    if others := sorted(path.name for path in options.output.iterdir() if path.name not in OUTPUTS):
        raise ValueError(f"--overwrite: {options.output} holds {others[0]}, which no evaluation has written.")


def claim_output(options: argparse.Namespace) -> Path | None:
    """The empty folder that the result goes to, where one is wanted."""
    if options.output is None:
        return None
    check_output(options)
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    return options.output


def short_name(source: str) -> str:
    """The last part of a folder's path, or of a Hub id without the commit."""
    return Path(source).resolve().name if Path(source).is_dir() else source.partition("@")[0].split("/")[-1]


def wanted_tasks(options: argparse.Namespace, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The model's tasks that are asked for."""
    from ..answers_multitask import check_tasks

    check_tasks(tasks, options.tasks or ())
    return {name: task for name, task in tasks.items() if options.tasks is None or name in options.tasks}


def read_data(
    options: argparse.Namespace, folder: str, tasks: Mapping[str, Any], data: list[Path], with_train: bool = False
) -> Any:
    """The rows of a recipe, also those of its train split where they are wanted, or of files; see
    `training.finished.data`."""
    from ..training.finished.data import RECIPE_ENDINGS, files_data, recipe_data

    tasks = wanted_tasks(options, tasks)
    if not any(path.suffix in RECIPE_ENDINGS for path in data):
        return files_data(folder, tasks, data, options.text, dict(pair.split("=", 1) for pair in options.label))
    if len(data) > 1:
        raise ValueError(f"Give one recipe, or any number of files. Found {', '.join(map(str, data))}.")
    for_files = ["--text"] * (options.text != ["text"] and not getattr(options, "unlabeled", None))
    if for_files := for_files + ["--label"] * bool(options.label):
        raise ValueError(
            f"{for_files[0]} is about files, but {data[0]} is a recipe, which names its columns. Leave it out."
        )
    return recipe_data(folder, tasks, data[0], options.data_root, with_train or "train" in (options.splits or ()))


def open_model(source: str, dtype: str) -> Any:
    """A finished model on this machine's accelerator, where there is one."""
    import torch
    from accelerate import PartialState

    from ..modeling_multitask import MultiTaskModel

    model = MultiTaskModel.from_pretrained(source, dtype=getattr(torch, dtype))
    return model.to(PartialState().device).eval()
