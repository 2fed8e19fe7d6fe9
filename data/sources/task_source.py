"""What a recipe says of a task's data, checked as far as that needs no look at the data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...checks_multitask import suggest
from ...problem_types_multitask import PROBLEM_TYPES, ProblemType
from ..files.formats import FORMATS
from ..files.parts import Part
from ..text.problems import brief

BUFFER_SIZE = 10_000  # rows of a streamed split that stand in memory and are shuffled with each other


@dataclass
class TaskSource:
    """Where one task's labelled rows come from (one task of a recipe).

    `dataset` holds the arguments of `datasets.load_dataset`; beyond them, `path` may be tsv or jsonl, and `splits` may
    say what the data set calls its splits (`{train: train, validation: matched}`; splits not listed are not read).
    `streaming` and `buffer_size` are ours: the training rows are read onward, and shuffled so many at a time.
    `columns` names the sentence columns (`sentence` | `sentence1`, `sentence2` | `anchor`, `positive` and optionally
    `negative`, one column or a list) and, except for contrastive, `label`: a column, or for a multi-label task also
    a list of 0/1 columns. A list of columns is one sentence, joined; a list of negatives is several. A dotted name
    (`data.text`) leads into nested cells. `augmentation` holds the settings that `complete_augmentation` has checked.

    `where` keeps the rows whose columns hold given values; `label_separator`, `label_map` and `missing_labels` say how
    label cells are read; `empty_text` and `contradictions` say what happens to rows without text and to texts with
    several labels; `validation_split`, `test_split` (shares) and `group` (a column) say how rows are set aside.
    `label_order` is the order in which a model has the labels, where cells are read by a list of another order.
    """

    name: str
    problem_type: str
    dataset: dict[str, Any]
    columns: dict[str, Any]
    labels: list[str] | None = None
    validation_split: float | None = None
    test_split: float | None = None
    group: str | None = None
    where: dict[str, Any] | None = None
    label_separator: str | None = None
    label_map: dict[str, Any] | None = None
    missing_labels: list[Any] | None = None
    empty_text: str | None = None
    contradictions: str | None = None
    augmentation: dict[str, Any] | None = None
    label_order: list[str] | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether its training rows are read onward and not kept."""
        return self.dataset.get("streaming") is True

    @property
    def kind(self) -> ProblemType:
        """What its problem type means."""
        return PROBLEM_TYPES[self.problem_type]


def check_source(source: TaskSource) -> None:
    """Check a recipe's `dataset` and `where` as far as that needs no look at the data.

    Raises:
        ValueError: they have no such form.
    """
    task, dataset, conditions = source.name, source.dataset, source.where
    if not isinstance(dataset, dict) or not isinstance(dataset.get("path"), str):
        raise ValueError(
            f"tasks.{task}.dataset should hold the arguments of datasets.load_dataset, at least path (a Hub id, a "
            f"folder or one of {list(FORMATS)}). Found {brief(dataset)}."
        )
    if unnamed := [key for key in dataset if not isinstance(key, str)]:
        raise ValueError(f"tasks.{task}.dataset: the key {brief(unnamed[0])} is no name of an option. Take it out.")
    if "split" in dataset:
        raise ValueError(
            f"tasks.{task}.dataset.split is not supported: all splits are loaded as a whole. "
            f"Choose splits with tasks.{task}.dataset.splits, like {{train: train, validation: dev}}."
        )
    _check_streaming(source)
    if isinstance(dataset.get("token"), str):
        raise ValueError(
            f"tasks.{task}.dataset.token: a token does not belong in a recipe, which is published with the model. "
            "Log in with `hf auth login`, or set HF_TOKEN."
        )
    if not isinstance(dataset.get("data_dir"), str | None):
        raise ValueError(
            f"tasks.{task}.dataset.data_dir should be a folder's path. Found {brief(dataset['data_dir'])}."
        )
    if conditions is None:
        return
    if (
        not isinstance(conditions, dict)
        or not conditions
        or not all(isinstance(column, str) for column in conditions)
        or any(isinstance(value, dict) or value == [] for value in conditions.values())
    ):
        raise ValueError(
            f"tasks.{task}.where should say which values of a column to keep, like {{answer: accept}} or "
            f"{{language: [en, de]}}. Found {brief(conditions)}."
        )


def _check_streaming(source: TaskSource) -> None:
    """Refuse what cannot be had of rows that are only read onward."""
    where, dataset = f"tasks.{source.name}", source.dataset
    if not isinstance(dataset.get("streaming", False), bool):
        raise ValueError(f"{where}.dataset.streaming should be true or false. Found {brief(dataset['streaming'])}.")
    size = dataset.get("buffer_size", BUFFER_SIZE)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{where}.dataset.buffer_size should be a whole number of rows above 0. Found {brief(size)}.")
    if not source.is_streamed:
        if "buffer_size" in dataset:
            raise ValueError(f"{where}.dataset.buffer_size has no effect without `streaming: true`. Take it out.")
        return
    refused = {
        "validation_split": (source.validation_split, "name a validation split of its own"),
        "test_split": (source.test_split, "name a test split of its own"),
        "augmentation": (source.augmentation, "augment the rows beforehand"),
        "dataset.explode": (dataset.get("explode"), "write one row for each text"),
    }
    for key, (value, remedy) in refused.items():
        if value is not None:
            raise ValueError(
                f"{where}.{key} needs the texts of all training rows, which streaming does not keep. Take "
                f"{where}.dataset.streaming out, or {remedy}."
            )


def check_file_names(names: Iterable[str]) -> None:
    """
    Refuse names of tasks and groups that a file system without upper and lower case takes for one.

    Raises:
        ValueError: two names are equal in lower case.
    """
    folded: dict[str, str] = {}
    for name in names:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise ValueError(
                f"tasks: {other!r} and {name!r} differ in upper and lower case alone. A run writes files named like "
                "its tasks and groups, and on macOS and Windows these would be one. Rename one."
            )


def sentence_columns(source: TaskSource) -> list[tuple[str, str | list[str]]]:
    """The (key, column) pairs that make up a row's sentences, in order; checks the whole `columns` block.

    A list of columns is one sentence, joined (`Part.column`); a list under `negative` is one sentence each.
    """
    task, columns = source.name, source.columns
    if source.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"Task {task!r}: unknown problem_type {brief(source.problem_type)}."
            f"{suggest(source.problem_type, PROBLEM_TYPES)} Known: {sorted(PROBLEM_TYPES)}."
        )
    forms = [[*form, *(["label"] if source.kind.has_label_column else [])] for form in source.kind.columns]
    if set(columns) not in [set(form) for form in forms]:
        raise ValueError(
            f"Task {task!r} ({source.problem_type}): columns should name {' or '.join(map(str, forms))}. "
            f"Found {sorted(columns)}. Correct tasks.{task}.columns."
        )
    pairs = []
    for key, value in columns.items():
        many = source.kind.is_multi_label if key == "label" else True
        names = value if many and isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"tasks.{task}.columns.{key} should be a column's name. Found {brief(value)}.")
        if key == "negative":
            pairs += [(key, name) for name in names]
        elif key != "label":
            pairs.append((key, value))
    order = ["sentence", "sentence1", "sentence2", "anchor", "positive", "negative"]
    return sorted(pairs, key=lambda pair: order.index(pair[0]))


def check_text_columns(source: TaskSource, parts: list[Part]) -> None:
    """Refuse columns of lists or objects where sentences should be."""
    for key, names in source.columns.items():
        for name in names if isinstance(names, list) else [names]:
            for part in parts if key != "label" else []:
                part.check_texts(source.name, key, name)


__all__ = ["BUFFER_SIZE", "TaskSource", "check_file_names", "check_source", "check_text_columns", "sentence_columns"]
