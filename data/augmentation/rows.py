"""Augmentation: further training rows, whose sentences say in other words what those of a chosen share of rows say.

    complete_augmentation   a task's `augmentation` block, checked, with defaults
    open_augmentations      what the blocks of all tasks name, opened before any data is loaded
    augment_sets            the chosen rows of loaded sets, made into further rows

An augmentation is named on a task. It chooses among the training rows that are labelled for the task, after a
validation split has been set aside, and adds a row for each that came back changed; the row it was made from stays. Of
a set with labels for several tasks, the new row carries only those of the tasks that name the augmentation: what
another task learns from does not change. Sentences that stand in any validation or test split are neither augmented
nor taken from what comes back.
"""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from ...checks_multitask import check_count, check_keys, is_number, suggest
from ..loading.tasks import group_sources
from ..rows.canonical import LABEL_PREFIX
from ..rows.held_out import held_out_sentences
from ..rows.sets import LabelledSet, LoadedTasks
from ..sources.task_source import TaskSource
from ..text.half_characters import whole
from ..text.sameness import text_key
from .back_translation import DEFAULTS, BackTranslation, open_back_translation

logger = logging.getLogger(__name__)

BACK_TRANSLATION = "back_translation"
MOST_EXAMPLES = 3
MOST_CHARACTERS = 100  # of an example's sentence


@dataclass
class Augmentation:
    """An opened augmentation: `augment` turns a list of sentences into as many texts, on all processes together."""

    tasks: list[str]
    settings: dict[str, Any]
    augment: Callable[[list[str]], Any]


# ---- what a recipe says ----


def _check_two(where: str, value: Any, example: str) -> None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{where} is {value!r}, but should hold two, such as [{example}].")


def complete_augmentation(where: str, block: Any) -> dict[str, Any] | None:
    """
    A task's `augmentation` block with the defaults of what it leaves out; `None` for none.

    Args:
        where: what errors begin with, such as `tasks.sentiment.augmentation`.
        block: what the recipe says.

    Raises:
        ValueError: something unknown, missing or out of range.
    """
    if block is None:
        return None
    if not isinstance(block, dict):
        raise ValueError(f"{where} is {block!r}, but should be a mapping, such as {{method: ..., share: 0.3}}.")
    method = block.get("method")
    known = (
        ["method", "share"] if isinstance(method, str) and "." in method else ["method", "share", "models", *DEFAULTS]
    )
    check_keys(where, block, known)
    if method != BACK_TRANSLATION and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", str(method)):
        raise ValueError(
            f"{where}.method is {method!r}, which is unknown.{suggest(method, [BACK_TRANSLATION])} Give "
            f"{BACK_TRANSLATION}, or a function of yours, such as my_module.my_function."
        )
    share = block.get("share")
    if not is_number(share) or not 0 < share <= 1:
        raise ValueError(f"{where}.share is {share!r}, but should be above 0 and at most 1: the share of rows.")
    if method != BACK_TRANSLATION:
        return dict(block)
    settings = {**DEFAULTS, **{key: value for key, value in block.items() if value is not None}}
    _check_two(f"{where}.models", settings.get("models"), "Helsinki-NLP/opus-mt-en-de, Helsinki-NLP/opus-mt-de-en")
    if settings["languages"] is not None:
        _check_two(f"{where}.languages", settings["languages"], "en, de")
    for key in ("batch_size", "num_beams", "max_length"):
        check_count(f"{where}.{key}", settings[key])
    return settings


# ---- opening it ----


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Look for modules in a folder first."""
    sys.path.insert(0, path := str(folder.absolute()))
    try:
        yield
    finally:
        sys.path.remove(path)


def _own_function(where: str, method: str, folder: Path) -> Callable[[list[str]], Any]:
    """The function of a dotted path, whose module is looked for in the recipe's folder, then in the environment."""
    module_name, name = method.rsplit(".", 1)
    try:
        with _importable(folder):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{where}.method: the module {module_name} cannot be imported ({error}). Put it into {folder}, or install "
            "it where this command runs."
        ) from error
    except Exception as error:  # somebody's code
        raise ValueError(
            f"{where}.method: the module {module_name} cannot be imported ({type(error).__name__}: {error}). Correct "
            "it."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = f"has no {name!r}.{suggest(name, dir(module))}" if function is None else f"holds no function {name!r}."
        raise ValueError(f"{where}.method: {module.__file__ or module_name} {found} Name a function of it.")

    # One process asks it, and the others get its answer: it may cost money, or answer differently each time.
    def ask(sentences: list[str]) -> Any:
        if not PartialState().is_main_process:
            return None
        try:
            with _importable(folder):  # for what it imports only now
                return function(list(sentences))
        except Exception as error:  # somebody's code: what it raises says nothing of where it was called
            raise RuntimeError(f"{where}.method: {method} failed for {len(sentences)} sentences: {error!r}") from error

    return ask


def open_augmentations(sources: Sequence[TaskSource], folder: Path) -> list[Augmentation]:
    """
    Open what the tasks' `augmentation` blocks name, each once for all tasks that read the same sentences.

    Args:
        sources: the tasks of a recipe.
        folder: the recipe's, where a function of its own may stand.

    Raises:
        ValueError: a model or function is not there, or is not what it should be; tasks that read the same sentences
            name different augmentations.
        ImportError: a tokenizer needs sentencepiece.
    """
    opened = []
    for group in group_sources(list(sources)):
        named = [source for source in group if source.augmentation is not None]
        for source in named[1:]:
            if source.augmentation != named[0].augmentation:
                raise ValueError(
                    f"Tasks {named[0].name!r} and {source.name!r} read the same sentences but differ in augmentation. "
                    "Give both the same, or only one of them any."
                )
        if named:
            settings, where = named[0].augmentation, f"tasks.{named[0].name}.augmentation"
            is_ours = settings["method"] == BACK_TRANSLATION
            augment = (
                open_back_translation(where, settings) if is_ours else _own_function(where, settings["method"], folder)
            )
            opened.append(Augmentation([source.name for source in named], settings, augment))
    return opened


# ---- doing it ----


def choose_rows(rows: Sequence[int], share: float, seed: int, name: str) -> list[int]:
    """A share of the rows, at least one, ascending. A larger share holds all rows of a smaller one."""
    shuffled = np.random.default_rng([seed, *name.encode()]).permutation(rows)
    return sorted(shuffled[: max(1, round(share * len(rows)))].tolist())


def _texts(augmentation: Augmentation, sentences: list[str]) -> dict[str, str]:
    """What the augmentation made of each sentence, the same on every process; checked, because it may be anybody's."""
    where, method = f"tasks.{augmentation.tasks[0]}.augmentation.method", augmentation.settings["method"]
    (texts,) = broadcast_object_list([augmentation.augment(sentences)])
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        found = type(texts).__name__
        if isinstance(texts, list | tuple):
            found += f" with a {next(type(text).__name__ for text in texts if not isinstance(text, str))}"
        raise TypeError(f"{where}: {method} returned a {found}, but should return a list of texts.")
    if len(texts) != len(sentences):
        raise ValueError(
            f"{where}: {method} returned {len(texts)} texts for {len(sentences)} sentences. It should return one for "
            "each, in their order; the sentence itself leaves a row as it is."
        )
    return dict(zip(sentences, (whole(text).strip() for text in texts), strict=True))


def _shown(sentences: list[str]) -> str:
    return " | ".join(shorten(sentence, MOST_CHARACTERS, placeholder=" ...") for sentence in sentences)


def _augment_set(
    labelled_set: LabelledSet, augmentation: Augmentation, held_out: set[str], loaded: LoadedTasks, seed: int
) -> None:
    """Add rows to a set's train split, in place, and note in `loaded` what was done."""
    tasks, train = augmentation.tasks, labelled_set.splits["train"]
    labels = {task: train[LABEL_PREFIX + task][:] for task in tasks}
    labelled = [row for row in range(len(train)) if any(labels[task][row] is not None for task in tasks)]
    chosen = choose_rows(labelled, augmentation.settings["share"], seed, tasks[0])
    rows = {row: train[row]["sentences"] for row in chosen}
    width = None if loaded.kinds[tasks[0]].has_label_column else 2  # else anchor and positive, and no negative
    sentences = dict.fromkeys(sentence for row in rows.values() for sentence in row[:width])
    set_seed(seed)  # so that a function that draws at random does so alike, whatever was drawn before
    texts = _texts(augmentation, [sentence for sentence in sentences if text_key(sentence) not in held_out])
    texts = {old: new for old, new in texts.items() if new and new != old.strip() and text_key(new) not in held_out}

    added: dict[str, list[Any]] = {name: [] for name in train.column_names}
    counts = dict.fromkeys(tasks, 0)
    examples = []
    for row, before in rows.items():
        after = [texts.get(sentence, sentence) for sentence in before[:width]]
        after += before[len(after) :]
        if after == before:
            continue
        added["sentences"].append(after)
        for name in train.column_names[1:]:
            task = name.removeprefix(LABEL_PREFIX)
            added[name].append(labels[task][row] if task in labels else None)
            if task in labels:
                counts[task] += labels[task][row] is not None
        examples.append((before, after))
    if examples:
        further = Dataset.from_dict(added, train.features)
        labelled_set.splits["train"] = concatenate_datasets([train, further])

    logger.info(
        f"{', '.join(tasks)}: {len(chosen)} of {len(labelled)} training rows chosen for "
        f"{augmentation.settings['method']}, {len(examples)} came back changed and are added"
        + "".join(f"\n    {_shown(before)}\n -> {_shown(after)}" for before, after in examples[:MOST_EXAMPLES])
    )
    noted = {**augmentation.settings, "chosen": len(chosen)}
    if isinstance(augmentation.augment, BackTranslation):
        noted["revisions"] = [augmentation.augment.there.revision, augmentation.augment.back.revision]
    loaded.augmentations |= {task: {**noted, "rows": counts[task]} for task in tasks}


def augment_sets(loaded: LoadedTasks, augmentations: Sequence[Augmentation], seed: int) -> None:
    """
    Add the rows that the augmentations make to the train splits of loaded sets, in place.

    Which rows are chosen follows from the seed and the name of the first task that names the augmentation. What was
    done is logged and noted, by task, in `loaded.augmentations`: the settings, `chosen` (rows),
    `rows` (added rows that are labelled for the task) and the models' `revisions`. Every process has to call this.

    Raises:
        ValueError, TypeError: a function returned something else than one text for each sentence.
    """
    held_out = held_out_sentences(loaded)
    for augmentation in augmentations:
        labelled_set = next(found for found in loaded.sets if augmentation.tasks[0] in found.tasks)
        _augment_set(labelled_set, augmentation, held_out, loaded, seed)


def describe_augmentations(loaded: LoadedTasks) -> list[tuple[str, str]]:
    """A line for the settings of each augmented task."""
    lines = []
    for task, noted in loaded.augmentations.items():
        through = f" through {' and '.join(noted['models'])}" if "models" in noted else ""
        lines.append(
            (
                f"augmentation of {task}",
                f"{noted['method']}{through}, share {noted['share']}: {noted['rows']} rows added",
            )
        )
    return lines


__all__ = [
    "Augmentation",
    "augment_sets",
    "choose_rows",
    "complete_augmentation",
    "describe_augmentations",
    "open_augmentations",
]
