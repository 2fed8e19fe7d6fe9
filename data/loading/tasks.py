"""From the tasks of a recipe to checked data sets in canonical columns.

`load_tasks` groups the tasks that read the same sentences of the same data (a sentence with labels for two tasks is
one row), loads each group (sources/), turns label cells into ids, 0/1 lists and scores (labels/columns.py), settles
texts with several labels (labels/contradictions.py), leaves out rows that no task has a label for, and sets
validation and test rows aside where the recipe asks for them (splits/); label_parts.py has the order of these. What
comes out is kept on disk (cache/sets.py), and opened from there as long as recipe and files are the same. What one
should know is logged; what they must mend is an error that names task, file and row.
"""

import json
import logging
import uuid
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset

from ..cache.sets import cached_splits, recorded_lines, set_key
from ..files.parts import Part
from ..files.streams import CountedPart, Stream
from ..labels.rules import reading_rules
from ..rows.row_hashes import RowHashes
from ..rows.sets import LabelledSet, LoadedTasks
from ..rows.sides import SIDES, Sides
from ..rows.streamed import StreamedTexts
from ..sources.data_files import data_identity
from ..sources.loading import load_parts, open_streams, stream_identity
from ..sources.task_source import TaskSource, check_source, sentence_columns
from ..splits.splitting import check_splits
from ..text.problems import with_short_values
from ..text.sameness import row_hashes
from .counting import StreamCounter
from .label_parts import label_parts

logger = logging.getLogger(__name__)

SPLIT_SETTINGS = ("validation_split", "test_split", "group")


def _load_set(
    sources: list[TaskSource],
    data_root: Path,
    seed: int,
    require_train: bool,
    loaded: LoadedTasks,
    known: Sides,
) -> LabelledSet:
    """Load one group of tasks; label names, kinds and score ranges go into `loaded`.

    `known` says of some rows on which side they are, and learns where the rows are that are set aside here.
    """
    tasks, found = [source.name for source in sources], LoadedTasks([])
    set_aside = [split for split in SIDES[1:] if getattr(sources[0], f"{split}_split") is not None]
    is_streamed = sources[0].is_streamed and require_train
    identify = partial(stream_identity if is_streamed else data_identity, sources[0], data_root)
    identity = identify()

    def load(count: Callable[[Stream], CountedPart] | None = None) -> dict[str, list[Part]]:
        parts = load_parts(sources, data_root, count)
        check_splits(sources, parts, require_train)
        return parts

    def build(folder: Path | None, parts: dict[str, list[Part]]) -> dict[str, Dataset]:
        splits = label_parts(sources, parts, seed, found, known, folder)
        if "test" not in splits:
            logger.info(f"{', '.join(tasks)}: no test split")
        return splits

    def build_files(folder: Path) -> dict[str, Any]:
        with recorded_lines() as lines, TemporaryDirectory(dir=folder) as scratch:
            build(
                folder,
                load(StreamCounter(sources, Path(scratch)) if is_streamed else None) if parts is None else parts,
            )
        if parts is None and identify() != identity:
            raise ValueError(f"Task {tasks[0]!r}: its files changed while they were read. Start again.")
        return {"labels": found.labels, "score_ranges": found.score_ranges, "lines": lines}

    parts = load() if identity is None else None  # it takes loading to know which data it is
    identity = _identity_of_parts(parts) if parts is not None else identity
    if identity is None:
        splits, facts = build(None, parts), {"labels": found.labels, "score_ranges": found.score_ranges}
    else:
        settings = [asdict(source) | {"augmentation": None} for source in sources]
        for own in settings:
            own["dataset"] = {key: value for key, value in own["dataset"].items() if key != "buffer_size"}
        # A file of which a server says nothing may be another one at the next run.
        once = uuid.uuid4().hex if is_streamed and identity[-1] is False else None
        content = [settings, identity, once, data_root, require_train, [seed, known.digest()] if set_aside else None]
        splits, facts = cached_splits(set_key(content), build_files)
        for line in facts["lines"]:
            logger.info(line)
    for split in ("train", *set_aside) if set_aside else ():
        known.add(row_hashes(splits[split]), np.full(len(splits[split]), SIDES.index(split)))
    loaded.labels |= facts["labels"]
    loaded.kinds |= {source.name: source.kind for source in sources}
    loaded.score_ranges |= {task: tuple(found) for task, found in facts["score_ranges"].items()}
    texts = StreamedTexts(sources[0], partial(open_streams, sources, data_root)) if is_streamed else None
    return LabelledSet(tasks, splits, texts)


def _identity_of_parts(parts: dict[str, list[Part]]) -> list[Any] | None:
    """Fingerprints of what `datasets` has in its cache; `None` where some rows stand in memory."""
    found = [[split, part.where, part.rows] for split, own in parts.items() for part in own]
    if not all(rows.cache_files for *_, rows in found):
        return None
    return [[split, where, rows._fingerprint] for split, where, rows in found]


def group_sources(sources: list[TaskSource]) -> list[list[TaskSource]]:
    """The tasks that read the same sentences of the same rows, together: each group becomes one set."""
    groups: dict[str, list[TaskSource]] = {}
    for source in sources:
        check_source(source)
        sentences = [column for _, column in sentence_columns(source)]
        group = groups.setdefault(
            json.dumps([source.dataset, sentences, source.where], sort_keys=True, default=str), []
        )
        for key in SPLIT_SETTINGS if group else ():
            found = [getattr(one, key) for one in (group[0], source)]
            if found[0] != found[1]:
                raise ValueError(
                    f"Tasks {group[0].name!r} and {source.name!r} read the same sentences but differ in {key} "
                    f"({found[0]} and {found[1]}). Give both the same."
                )
        rules = [reading_rules(one).empty_text for one in (*group[:1], source)]
        if rules[0] != rules[-1]:
            raise ValueError(
                f"Tasks {group[0].name!r} and {source.name!r} read the same sentences but differ in empty_text "
                f"({rules[0]} and {rules[-1]}). Give both the same."
            )
        group.append(source)
    return list(groups.values())


def load_tasks(
    sources: list[TaskSource],
    data_root: Path,
    seed: int,
    require_train: bool = True,
    earlier: RowHashes | None = None,
) -> LoadedTasks:
    """Load and check the data of all tasks.

    Relative paths are looked up in `data_root`; `seed` decides which rows `validation_split` and `test_split` set
    aside, but for the rows of an `earlier` model, which stay where that had them.
    `require_train=False` is for evaluation: train and validation splits may then be missing (where there is no train
    split, label names come from the source or a ClassLabel feature, and there are no score ranges).

    Raises ValueError for anything that is wrong with sources, files or rows.
    """
    data_root = Path(data_root).expanduser().absolute()
    loaded = LoadedTasks([], earlier=earlier)
    known = earlier.sides() if earlier else Sides()
    try:
        for group in group_sources(sources):
            loaded.sets.append(_load_set(group, data_root, seed, require_train, loaded, known))
    except ValueError as error:
        raise ValueError(with_short_values(str(error), list(map(vars, sources)))) from error
    return loaded


__all__ = ["LabelledSet", "LoadedTasks", "TaskSource", "group_sources", "load_tasks"]
