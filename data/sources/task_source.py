"""What a recipe says of a task's data, checked as far as that needs no look at the data."""

from dataclasses import dataclass
from typing import Any

from ...problem_types_multitask import PROBLEM_TYPES, ProblemType
from ..files.formats import FORMATS
from ..files.parts import Part
from ..text.problems import brief


@dataclass
class TaskSource:
    """Where one task's labelled rows come from (one task of a recipe).

    `dataset` holds the arguments of `datasets.load_dataset`; beyond them, `path` may be tsv or jsonl, and `splits` may
    say what the data set calls its splits (`{train: train, validation: matched}`; splits not listed are not read).
    `columns` names the sentence columns (`sentence` | `sentence1`, `sentence2` | `anchor`, `positive` and optionally
    `negative`, one column or a list) and, except for contrastive, `label`: a column, or for a multi-label task also
    a list of 0/1 columns. A list of columns is one sentence, joined; a list of negatives is several. A dotted name
    (`data.text`) leads into nested cells. `augmentation` holds the settings that `complete_augmentation` has checked.

    `where` keeps the rows whose columns hold given values; `label_separator`, `label_map` and `missing_labels` say how
    label cells are read; `empty_text` and `contradictions` say what happens to rows without text and to texts with
    several labels; `validation_split`, `test_split` (shares) and `group` (a column) say how rows are set aside.
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
    if dataset.get("streaming", False) is not False:
        raise ValueError(
            f"tasks.{task}.dataset.streaming is {brief(dataset['streaming'])}, but training draws from a permutation "
            "of all rows and sets rows aside by their text, so it has to know every row. Leave it out: rows are "
            "written to the disk once, and read from there through a memory map, however many there are. "
            "HF_DATASETS_CACHE says to which disk."
        )
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


def check_text_columns(source: TaskSource, parts: list[Part]) -> None:
    """Refuse columns of lists or objects where sentences should be."""
    for key, names in source.columns.items():
        for name in names if isinstance(names, list) else [names]:
            for part in parts if key != "label" else []:
                part.check_texts(source.name, key, name)


__all__ = ["TaskSource", "check_source", "check_text_columns"]
