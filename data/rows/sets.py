"""What loading gives: a labelled set for each group of tasks that read the same sentences, and what is known of it."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ...problem_types_multitask import ProblemType
from .row_hashes import RowHashes
from .streamed import StreamedTexts


@dataclass
class LabelledSet:
    """One data set in canonical columns and the tasks that its rows carry labels for.

    Every split has the column `sentences` (a list: one sentence, a pair, or anchor, positive and negatives) and per
    task a column `label_<task>`: class id, list of 0/1 as float32, score, or for contrastive 1.0; null where the row
    is not labelled for that task.

    A train split that is streamed has the columns `row` and `row_hash` in place of `sentences`, and `texts` says where
    these come from.
    """

    tasks: list[str]
    splits: dict[str, Dataset]
    texts: StreamedTexts | None = None


@dataclass
class LoadedTasks:
    """All data of a recipe: label names in id order, and the smallest and largest score of each train split.

    `augmentations` holds by task what `augment_sets` did to its training rows, `earlier` the rows of the model that is
    gone on from, where they are known.
    """

    sets: list[LabelledSet]
    labels: dict[str, list[str]] = field(default_factory=dict)
    score_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    kinds: dict[str, ProblemType] = field(default_factory=dict)
    augmentations: dict[str, dict[str, Any]] = field(default_factory=dict)
    earlier: RowHashes | None = None


__all__ = ["LabelledSet", "LoadedTasks"]
