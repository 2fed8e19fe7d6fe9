"""What training draws from the data sets, by a mixture's settings.

DrawnSet         the tasks and rows of a set that training draws from, and how many rows an epoch takes
draw_sets        one for each set with a task that trains
rows_by_task     the training rows of each task
make_sampler     the batches of an epoch
steps_of_epoch   how many optimizer steps that is; steps_of_training: and the whole run
describe_epoch   what an epoch is, in words
"""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from ...data.rows.canonical import is_labelled, width_of
from ...data.rows.sets import LabelledSet
from ...data.rows.streamed import StreamedRows, StreamedTexts
from ...data.sampling.rates import deal_rows, set_weights
from ...data.sampling.sampler import MixtureBatchSampler, first_rows, rows_labelled_for
from ...problem_types_multitask import LOSSES
from .settings import MixtureConfig

logger = logging.getLogger(__name__)

LEAST_ROWS_TO_COMPARE = 16  # stand together where a loss compares them
MOST_NAMED = 10  # tasks of a set


@dataclass
class DrawnSet:
    """
    A data set as training draws from it.

    Attributes:
        tasks: those of its tasks that train; none for unlabelled text.
        rows: its training rows that are labelled for any of them, cut down to `max_rows`.
        rows_per_epoch: how many rows an epoch takes.
        least_rows: how many stand together in a mixed batch that has any.
        texts: where the texts of streamed rows come from.
        unlabeled: what unlabelled text is called; `None` for a set of tasks.
    """

    tasks: list[str]
    rows: Dataset
    rows_per_epoch: int
    least_rows: int
    texts: StreamedTexts | None = None
    unlabeled: str | None = None

    @property
    def whole_rows(self) -> Dataset | StreamedRows:
        """The rows with their texts."""
        return self.rows if self.texts is None else StreamedRows(self.rows, self.texts)

    @property
    def passes(self) -> float:
        """How often an epoch goes through the rows."""
        return self.rows_per_epoch / len(self.rows)


def _cut_rows(mixture: MixtureConfig, names: list[str], rows: Dataset, which: int, seed: int) -> Dataset:
    """The rows that `max_rows` leaves of set number `which`: those that stand first in a permutation by the seed."""
    max_rows = mixture.of_set("max_rows", names)
    if max_rows is not None and max_rows < len(rows):
        logger.info(
            f"{', '.join(names)}: {max_rows} of {len(rows)} training rows are used, the same in every epoch "
            f"(max_rows, seed {seed})"
        )
        rows = rows.select(first_rows(len(rows), max_rows, which, seed))
    return rows


def _check_labelled(tasks: list[str], rows: Dataset) -> None:
    for task in tasks:
        if not is_labelled(rows, task).any():
            raise ValueError(
                f"Task {task!r} has no labelled row among the {len(rows)} training rows of its data set. Label "
                "some, raise mixture.max_rows, or leave the task out."
            )


def _least_rows(
    mixture: MixtureConfig, tasks: list[str], rows: Dataset, settings: Mapping[str, dict[str, Any]], batch_size: int
) -> int:
    """How many rows of a set stand together, so that each of its tasks has as many labelled ones as it needs.

    The labelled rows of a batch are counted on average: where half of a set is labelled for a task, twice as many rows
    of the set stand together, up to a full batch.
    """
    needed = [1]
    for task in tasks:
        default = min(LEAST_ROWS_TO_COMPARE, batch_size) if LOSSES[settings[task].loss].compares_rows else 1
        least = mixture.rows_per_batch.get(task, default)
        if least > 1:
            share = int(is_labelled(rows, task).sum()) / len(rows)
            needed.append(max(least, min(math.ceil(least / share), batch_size)))
    return max(needed)


def _least_unlabeled(
    mixture: MixtureConfig,
    name: str,
    rows: Dataset,
    labelled: Sequence[DrawnSet],
    settings: Mapping[str, dict[str, Any]],
    batch_size: int,
) -> int:
    """How many rows of unlabelled text stand together: several where a task compares rows of their kind."""
    compared = {
        width_of(entry.rows)
        for entry in labelled
        if any(LOSSES[settings[task].loss].compares_rows for task in entry.tasks)
    }
    default = min(LEAST_ROWS_TO_COMPARE, batch_size) if width_of(rows) in compared else 1
    return mixture.rows_per_batch.get(name, default)


def _rows_per_epoch(mixture: MixtureConfig, tasks: Sequence[list[str]], sizes: Sequence[int]) -> list[int]:
    """How many rows an epoch takes from each set."""
    if mixture.passes:
        passes = [mixture.of_set("passes", names) or 1 for names in tasks]
        return [round(size * share) for size, share in zip(sizes, passes, strict=True)]
    rates = [mixture.of_set("rates", names) for names in tasks]
    weights = set_weights(sizes, mixture.sampling, mixture.temperature, rates)
    return deal_rows(mixture.epoch_rows or sum(sizes), weights)


def draw_sets(
    mixture: MixtureConfig,
    sets: Sequence[LabelledSet],
    trained_tasks: Mapping[str, dict[str, Any]],
    batch_size: int,
    seed: int,
    unlabeled: Mapping[str, Dataset] | None = None,
) -> list[DrawnSet]:
    """
    What training draws from each set with a task that trains.

    Args:
        mixture: the settings, for these sets.
        sets: all labelled sets.
        trained_tasks: settings of the tasks that train, by name, as in `MultiTaskConfig.tasks`.
        batch_size: rows of a batch on one process.
        seed: of the permutations.
        unlabeled: text that only teachers answer, by name, drawn like further sets.

    Raises:
        ValueError: a task has no labelled training row.
    """
    drawn = []
    for labelled_set in sets:
        if trained := [task for task in labelled_set.tasks if task in trained_tasks]:
            found = labelled_set.splits["train"]
            found = found if trained == list(labelled_set.tasks) else rows_labelled_for(found, trained)
            rows = _cut_rows(mixture, trained, found, len(drawn), seed)
            _check_labelled(trained, rows)
            least = _least_rows(mixture, trained, rows, trained_tasks, batch_size)
            drawn.append(DrawnSet(trained, rows, 0, least, labelled_set.texts))
    for name, found in (unlabeled or {}).items():
        rows = _cut_rows(mixture, [name], found, len(drawn), seed)
        least = _least_unlabeled(mixture, name, rows, drawn, trained_tasks, batch_size)
        drawn.append(DrawnSet([], rows, 0, least, unlabeled=name))
    names = [entry.tasks or [entry.unlabeled] for entry in drawn]
    taken = _rows_per_epoch(mixture, names, [len(entry.rows) for entry in drawn])
    return [replace(entry, rows_per_epoch=count) for entry, count in zip(drawn, taken, strict=True)]


def rows_by_task(drawn: Sequence[DrawnSet], sets: Sequence[LabelledSet], idle: Collection[str]) -> dict[str, Dataset]:
    """By task its training rows: what is drawn, and all rows of `idle` tasks, which do not train but have a loss."""
    rows = {task: entry.rows for entry in drawn for task in entry.tasks}
    for entry in sets:
        rows |= dict.fromkeys([task for task in entry.tasks if task in idle], entry.splits["train"])
    return rows


def make_sampler(
    mixture: MixtureConfig, drawn: Sequence[DrawnSet], batch_size: int, num_processes: int, seed: int
) -> MixtureBatchSampler:
    """
    The sampler of an epoch's batches.

    Args:
        mixture: the settings.
        drawn: what is drawn.
        batch_size: rows of a batch on one process.
        num_processes: how many processes batches are dealt to.
        seed: of the permutations.

    Raises:
        ValueError: a set gets no row, or more rows should stand together than a batch holds.
    """
    return MixtureBatchSampler(
        sizes=[len(entry.rows) for entry in drawn],
        batch_size=batch_size,
        rows_per_epoch=[entry.rows_per_epoch for entry in drawn],
        least_rows=[entry.least_rows for entry in drawn],
        single_set=mixture.batches == "single_task",
        num_processes=num_processes,
        seed=seed,
        windows=[None if entry.texts is None else entry.texts.buffer_size for entry in drawn],
    )


class EpochOfSampler(TrainerCallback):
    """Tells a sampler which epoch begins: after resuming, it is wrapped too deeply for the Trainer to reach it."""

    def __init__(self, sampler: MixtureBatchSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


def steps_of_epoch(sampler: MixtureBatchSampler, args: TrainingArguments) -> int:
    """Optimizer steps of an epoch."""
    return -(-len(sampler) // (args.world_size * args.gradient_accumulation_steps))


def steps_of_training(sampler: MixtureBatchSampler, args: TrainingArguments) -> int:
    """Optimizer steps of a run, from its epochs or as they are given."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_of_epoch(sampler, args))


def _joined(tasks: Sequence[str]) -> str:
    """The tasks of a set in a sum; of many the number."""
    return " + ".join(tasks) if len(tasks) <= MOST_NAMED else f"{tasks[0]} + {len(tasks) - 1} tasks"


def describe_epoch(mixture: MixtureConfig, drawn: Sequence[DrawnSet], num_batches: int) -> str:
    """One sentence: the rows and batches of an epoch, and each set's rows with the passes through it."""
    if not drawn:
        return "no rows are drawn"
    epoch = sum(entry.rows_per_epoch for entry in drawn)
    parts = [
        f"{_joined(entry.tasks) or entry.unlabeled} {entry.rows_per_epoch:,} rows "
        f"({entry.rows_per_epoch / epoch:.1%}, {entry.passes:.3g} passes)"
        for entry in drawn
    ]
    temperature = f" {mixture.temperature:g}" if mixture.sampling == "temperature" else ""
    return (
        f"an epoch is {epoch:,} rows in {num_batches:,} {mixture.batches} batches, {mixture.sampling}{temperature}: "
        f"{', '.join(parts)}"
    )
