"""A recipe that is a dictionary, with data that is in memory: written down, so that it is read as any other.

write_recipe   the recipe's file and the files of its data
quietly        a block in which nothing is printed but warnings
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import yaml
from datasets import Dataset, DatasetDict
from transformers.utils import logging


def _as_dataset(where: str, rows: Any) -> Dataset:
    """A table as a `datasets.Dataset`."""
    if isinstance(rows, pd.DataFrame):
        return Dataset.from_pandas(rows, preserve_index=False)
    if not isinstance(rows, Dataset):
        raise TypeError(f"{where} should be a DataFrame or a datasets.Dataset. Found {type(rows).__name__}.")
    return rows


def _is_in_memory(dataset: Any) -> bool:
    """Whether a task's `dataset` holds tables by split, not the arguments of `load_dataset`."""
    tables = (pd.DataFrame, Dataset)
    return isinstance(dataset, (DatasetDict, *tables)) or (
        isinstance(dataset, Mapping) and any(isinstance(rows, tables) for rows in dataset.values())
    )


def _place_of(value: Any, content: Any, place: str = "") -> str | None:
    """Where a value stands in a recipe, as `tasks.mood.labels`; `None` where it is no value of it."""
    if content is value:
        return place
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if type(content) is list else ()
    found = (_place_of(value, item, f"{place}.{key}" if place else str(key)) for key, item in items)
    return next(filter(None, found), None)


def write_recipe(recipe: Mapping[str, Any], folder: Path) -> Path:
    """
    Write a recipe as a YAML file, and its data beside it as parquet.

    Args:
        recipe: what a recipe's file would hold; a task's `dataset` may be a table, or tables by split. Tasks that are
            given the same tables share their rows.
        folder: an empty folder, which relative data paths of the recipe then start from.

    Returns the recipe's path.

    Raises:
        TypeError: the recipe is no mapping, a split no table, or a value nothing that YAML has.
    """
    if not isinstance(recipe, Mapping):
        raise TypeError(f"A recipe should be a dictionary. Found {type(recipe).__name__}.")
    written: dict[int, str] = {}

    def file_of(name: str, where: str, rows: Any) -> str:
        if id(rows) not in written:
            written[id(rows)] = f"{name}.parquet"
            _as_dataset(where, rows).to_parquet(folder / written[id(rows)])
        return written[id(rows)]

    content = dict(recipe)
    if isinstance(recipe.get("tasks"), Mapping):
        content["tasks"] = tasks = dict(recipe["tasks"])
        for name, task in tasks.items():
            dataset = task.get("dataset") if isinstance(task, Mapping) else None
            if not _is_in_memory(dataset):
                continue
            splits = dataset if isinstance(dataset, Mapping) else {"train": dataset}
            files = {
                split: file_of(f"{name}_{split}", f"tasks.{name}.dataset[{split!r}]", rows)
                for split, rows in splits.items()
            }
            tasks[name] = {**task, "dataset": {"path": "parquet", "data_files": files}}
    path = folder / "recipe.yaml"
    try:
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except yaml.representer.RepresenterError as error:
        value = error.args[1]
        raise TypeError(
            f"{_place_of(value, content) or 'a key'} is {str(value)!r}, a {type(value).__name__}, which no recipe's "
            "file holds. Take text, numbers, true or false, lists and dictionaries: str(path), number.item(), "
            "array.tolist()."
        ) from error
    return path


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, nothing is printed, and no bar is drawn; warnings stay."""
    bars = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if bars[0]:
            logging.enable_progress_bar()
        if bars[1]:
            datasets.enable_progress_bars()


__all__ = ["quietly", "write_recipe"]
