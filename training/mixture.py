"""The recipe's `mixture` block: checked, brought from tasks to data sets, and made into the sampler of batches.

    complete_mixture   the block, checked, with every default filled in
    training_sets      each set's training rows, cut down to `max_rows`
    make_sampler       rates, rows that stand together and the kind of batches, as a MixtureBatchSampler
    describe_epoch     what an epoch is, in words

Tasks that read the same sentences share one data set, whose rows are drawn once for all of them. So what says how much
is drawn (`rates`, `passes`, `max_rows`) belongs to a set: it is given for one of its tasks, or for several alike.
"""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainingArguments

from ..checks_multitask import check_choice, check_keys, check_mapping, is_number
from ..data.collation import LABEL_PREFIX
from ..data.sampling.rates import SAMPLINGS, deal_rows, set_weights
from ..data.sampling.sampler import MixtureBatchSampler, first_rows
from ..problem_types_multitask import LOSSES

BATCHES = ("mixed", "single_task")
LEAST_ROWS_TO_COMPARE = 16  # stand together where a loss compares them

_DEFAULTS = {
    "sampling": "proportional",
    "temperature": None,
    "rates": {},
    "passes": {},
    "max_rows": {},
    "epoch_rows": None,
    "batches": "mixed",
    "rows_per_batch": {},
}
_WHOLE = ("max_rows", "rows_per_batch", "epoch_rows")  # the others are any number


def _check_number(where: str, key: str, value: Any) -> None:
    is_whole = key in _WHOLE
    if not is_number(value) or value <= 0 or (is_whole and not isinstance(value, int)):
        raise ValueError(f"{where} is {value!r}, but should be a {'whole number' if is_whole else 'number'} above 0.")


def _value_of_set(key: str, values: dict[str, Any], tasks: Sequence[str]) -> Any:
    """What the tasks of one set say alike; `None` if none of them says anything."""
    said = {task: values[task] for task in tasks if task in values}
    if len(set(said.values())) > 1:
        raise ValueError(
            f"mixture.{key}: {', '.join(said)} share one data set, whose rows are drawn once for all of them, but "
            f"have different values: {said}. Give the value to one of them."
        )
    return next(iter(said.values()), None)


def _check_rates(rates: dict[str, float], groups: Sequence[Sequence[str]]) -> None:
    found = [_value_of_set("rates", rates, tasks) for tasks in groups]
    for tasks, rate in zip(groups, found, strict=True):
        if rate is None:
            raise ValueError(
                f"mixture.rates gives none for {' or '.join(map(repr, tasks))}. Every data set needs one; leave out a "
                "task that should not be trained."
            )
    if not math.isclose(sum(found), 1.0, abs_tol=1e-6):
        shared = [" and ".join(tasks) for tasks in groups if len(tasks) > 1]
        raise ValueError(
            f"mixture.rates sum to {sum(found):g}, but should sum to 1: a rate is a data set's share of an epoch's "
            + (f"rows ({'; '.join(shared)} read one data set, which counts once)." if shared else "rows.")
        )


def complete_mixture(mixture: Any, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """
    Check a mixture and fill in its defaults.

    Args:
        mixture: `sampling` (one of `SAMPLINGS`); `temperature` and `rates`, which belong to the samplings of the same
            name; `passes` (proportional only: how often an epoch goes through a set, 1 where nothing is said);
            `max_rows` (a set's training rows are cut down to so many); `epoch_rows` (rows of an epoch; as many as the
            sets hold together where nothing is said); `batches` (`mixed`, or `single_task`: rows of one data set
            only, the same one on every process at the same step); `rows_per_batch` (how many labelled rows of a task
            stand together in a mixed batch). `rates`, `passes`, `max_rows` and `rows_per_batch` are mappings by task.
        groups: the names of the tasks, those that share a data set together.

    Returns:
        A new dictionary with every key.

    Raises:
        ValueError: names the key, what was found and what would be right.
    """
    mixture = {} if mixture is None else mixture
    check_mapping("mixture", mixture)
    check_keys("mixture", mixture, _DEFAULTS)
    mixture = {**_DEFAULTS, **{key: value for key, value in mixture.items() if value is not None}}
    check_choice("mixture.sampling", mixture["sampling"], SAMPLINGS)
    check_choice("mixture.batches", mixture["batches"], BATCHES)
    for key in ("temperature", "epoch_rows"):
        if mixture[key] is not None:
            _check_number(f"mixture.{key}", key, mixture[key])
    tasks = [task for group in groups for task in group]
    for key in ("rates", "passes", "max_rows", "rows_per_batch"):
        if not isinstance(mixture[key], dict):
            raise ValueError(f"mixture.{key} is {mixture[key]!r}, but should be a mapping (lines of `task: number`).")
        check_keys(f"mixture.{key}", mixture[key], tasks)
        for task, value in mixture[key].items():
            _check_number(f"mixture.{key}.{task}", key, value)

    for key, sampling in (("temperature", "temperature"), ("rates", "rates"), ("passes", "proportional")):
        if mixture[key] and mixture["sampling"] != sampling:
            raise ValueError(
                f"mixture.{key} goes with sampling: {sampling}, but sampling is {mixture['sampling']}. Remove one."
            )
    if mixture["sampling"] == "temperature" and mixture["temperature"] is None:
        raise ValueError(
            "mixture.temperature is missing: sampling: temperature draws a set at a rate ~ size^(1/temperature), "
            "where 1 is proportional, 2 is sqrt, and more is nearer to uniform."
        )
    if mixture["passes"] and mixture["epoch_rows"] is not None:
        raise ValueError("mixture.passes and mixture.epoch_rows both say how long an epoch is. Remove one.")
    if mixture["rows_per_batch"] and mixture["batches"] == "single_task":
        raise ValueError(
            "mixture.rows_per_batch has no meaning with batches: single_task, where a batch holds the rows of one "
            "data set only. Remove one."
        )
    if mixture["sampling"] == "rates":
        _check_rates(mixture["rates"], groups)
    for key in ("rates", "passes", "max_rows"):  # from here on said for each task of a set, whichever of them train
        values = {task: _value_of_set(key, mixture[key], group) for group in groups for task in group}
        mixture[key] = {task: value for task, value in values.items() if value is not None}
    return mixture


def given_labels(rows: Any, task: str) -> list[Any]:
    """The labels of the rows that are labelled for a task."""
    return [label for label in rows.with_format(None)[LABEL_PREFIX + task][:] if label is not None]


def training_sets(mixture: dict[str, Any], sets: Sequence[Any], seed: int) -> tuple[list[Any], list[str]]:
    """
    Each set's training rows, and what a person should know about them.

    Where `max_rows` cuts a set down, the rows that stand first in a permutation by the seed are kept, the same ones in
    every epoch.

    Raises:
        ValueError: a task has no labelled row among them.
    """
    kept, announcements = [], []
    for which, labelled_set in enumerate(sets):
        rows, names = labelled_set.splits["train"], ", ".join(labelled_set.tasks)
        max_rows = _value_of_set("max_rows", mixture["max_rows"], labelled_set.tasks)
        if max_rows is not None and max_rows < len(rows):
            announcements.append(
                f"{names}: {max_rows} of {len(rows)} training rows are used, the same in every epoch (max_rows, seed "
                f"{seed})"
            )
            rows = rows.select(first_rows(len(rows), max_rows, which, seed))
        for task in labelled_set.tasks:
            if not given_labels(rows, task):
                raise ValueError(
                    f"Task {task!r} has no labelled row among the {len(rows)} training rows of its data set. Label "
                    "some, raise mixture.max_rows, or leave the task out."
                )
        kept.append(rows)
    return kept, announcements


def _least_rows(
    mixture: dict[str, Any], rows: Any, tasks: Sequence[str], settings: dict[str, Any], batch_size: int
) -> int:
    """How many rows of a set stand together, so that each of its tasks has as many labelled ones as it needs.

    The labelled rows of a batch are counted on average: where half of a set is labelled for a task, twice as many rows
    of the set stand together, up to a full batch.
    """
    needed = [1]
    for task in tasks:
        default = min(LEAST_ROWS_TO_COMPARE, batch_size) if LOSSES[settings[task]["loss"]].compares_rows else 1
        least = mixture["rows_per_batch"].get(task, default)
        if least > 1:
            share = len(given_labels(rows, task)) / len(rows)
            needed.append(max(least, min(math.ceil(least / share), batch_size)))
    return max(needed)


def make_sampler(
    mixture: dict[str, Any],
    sets: Sequence[Any],
    train_sets: Sequence[Any],
    settings: dict[str, Any],
    batch_size: int,
    num_processes: int,
    seed: int,
) -> MixtureBatchSampler:
    """
    The sampler that a mixture asks for.

    Args:
        mixture: from `complete_mixture`.
        sets: labelled sets; their `tasks` are read.
        train_sets: the training rows of each, from `training_sets`.
        settings: task settings by name, as in `MultiTaskConfig.tasks`.
        batch_size: rows of a batch on one process.
        num_processes: how many processes batches are dealt to.
        seed: of the permutations.

    Raises:
        ValueError: a set gets no row, or more rows should stand together than a batch holds.
    """
    sizes = [len(rows) for rows in train_sets]
    if mixture["passes"]:
        passes = [_value_of_set("passes", mixture["passes"], labelled_set.tasks) for labelled_set in sets]
        rows_per_epoch = [round(size * (share or 1)) for size, share in zip(sizes, passes, strict=True)]
    else:
        rates = [_value_of_set("rates", mixture["rates"], labelled_set.tasks) for labelled_set in sets]
        weights = set_weights(sizes, mixture["sampling"], mixture["temperature"], rates)
        rows_per_epoch = deal_rows(mixture["epoch_rows"] or sum(sizes), weights)
    return MixtureBatchSampler(
        sizes=sizes,
        batch_size=batch_size,
        rows_per_epoch=rows_per_epoch,
        least_rows=[
            _least_rows(mixture, rows, labelled_set.tasks, settings, batch_size)
            for labelled_set, rows in zip(sets, train_sets, strict=True)
        ],
        single_set=mixture["batches"] == "single_task",
        num_processes=num_processes,
        seed=seed,
    )


def steps_of_epoch(sampler: MixtureBatchSampler, args: TrainingArguments) -> int:
    """Optimizer steps of an epoch."""
    return -(-len(sampler) // (args.world_size * args.gradient_accumulation_steps))


def describe_epoch(mixture: dict[str, Any], sets: Sequence[Any], sampler: MixtureBatchSampler) -> str:
    """One sentence: the rows and batches of an epoch, and each set's rows with the passes through it."""
    if not sets:
        return "no rows are drawn"
    epoch = sum(sampler.rows_per_epoch)
    parts = [
        f"{' + '.join(labelled_set.tasks)} {rows:,} rows ({rows / epoch:.1%}, {rows / size:.3g} passes)"
        for labelled_set, rows, size in zip(sets, sampler.rows_per_epoch, sampler.sizes, strict=True)
    ]
    temperature = f" {mixture['temperature']:g}" if mixture["sampling"] == "temperature" else ""
    return (
        f"an epoch is {epoch:,} rows in {len(sampler):,} {mixture['batches']} batches, {mixture['sampling']}"
        f"{temperature}: {', '.join(parts)}"
    )
