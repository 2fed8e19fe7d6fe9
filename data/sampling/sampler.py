"""The mixture: all tasks' training sets and the rule that draws batches from them.

    rows_labelled_for    the rows of a set that are labelled for any of some tasks
    MixtureDataset       the rows of all sets under one running index; -1 is a row without sentence and label
    MixtureBatchSampler  one epoch's batches; rates.py says how many rows of each set, layout.py in which batches

Rows of a set come from an endless stream of its permutations: an epoch of 1.5 passes covers every row once, then the
first half of a fresh permutation, and the next epoch goes on where this one stopped. A small set goes round again
reshuffled, and an epoch that takes a part of a large set leaves the rest for the next. Nothing is lost or doubled
within a pass, and everything follows from the seed and the epoch, so that a resumed run meets the same rows.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..rows.canonical import is_labelled
from .layout import Layout, mixed_batches, single_set_batches

FILLER_ROW = -1  # stands in the batches that only make the number of batches the same on every process


def rows_labelled_for(dataset: Any, tasks: Sequence[str]) -> Any:
    """The rows of a `datasets.Dataset` in canonical columns that are labelled for any of the tasks."""
    labelled = np.zeros(len(dataset), bool)
    for task in tasks:
        labelled |= is_labelled(dataset, task)
    return dataset if labelled.all() else dataset.select(np.flatnonzero(labelled))


class MixtureDataset(Dataset):
    """Rows of several `datasets.Dataset`s under one running index; `FILLER_ROW` gives a row that carries no label."""

    def __init__(self, sets: Sequence[Any]):
        self.sets = list(sets)
        self.starts = np.cumsum([0, *map(len, self.sets)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def close(self) -> None:
        """Close the files of streamed sets, which are opened again when a row is asked for."""
        for rows in self.sets:
            if hasattr(rows, "close"):
                rows.close()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == FILLER_ROW:
            return {"sentences": [""]}
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[which][int(index - self.starts[which])]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch. Those of a set are read together: a quarter of the time where there are 100 tasks."""
        rows: list[dict[str, Any]] = [{"sentences": [""]} for _ in indices]
        which = np.searchsorted(self.starts, indices, side="right") - 1  # -1 for a row that only fills up
        for number in set(which.tolist()) - {-1}:
            places = np.flatnonzero(which == number).tolist()
            found = self.sets[number].__getitems__([int(indices[place] - self.starts[number]) for place in places])
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return rows


class MixtureBatchSampler:
    """
    Batches of row numbers for one epoch, the same on every process; accelerate deals them out in turn.

    Args:
        sizes: rows of each set.
        batch_size: rows of a batch on one process.
        rows_per_epoch: how many rows an epoch takes from each set. Defaults to every row once.
        least_rows: how many rows of a set stand together in a mixed batch where it has any. Losses over pairs need
            more than the two or three rows that a small set gets in proportion; such sets come in fewer batches, with
            so many. See `least_pieces` for sets that cannot be cut so.
        single_set: whether each batch holds rows of one set only, the same set on every process at the same step.
        num_processes: the number of batches is a multiple of it; where rows do not suffice, batches of one unlabelled
            row stand in.
        seed: of the permutations.
        windows: of each set, how many rows are shuffled with each other, because a stream holds no more; `None` for
            all. A window of a set ends before the next one begins. Where the first one ends differs from pass to pass.

    Raises:
        ValueError: more `least_rows` than fit in a batch, or a set that gets no row at all.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        rows_per_epoch: Sequence[int] | None = None,
        least_rows: Sequence[int] | None = None,
        single_set: bool = False,
        num_processes: int = 1,
        seed: int = 42,
        windows: Sequence[int | None] | None = None,
    ):
        self.windows = list(windows or [None] * len(sizes))
        self.sizes = list(sizes)
        self.rows_per_epoch = list(rows_per_epoch or sizes)
        self.least_rows = list(least_rows or [1] * len(sizes))
        self.seed = seed
        self.epoch = 0
        if max(self.least_rows, default=0) > batch_size:
            raise ValueError(
                f"mixture.rows_per_batch asks for {max(self.least_rows)} rows of one set in a batch, but a batch "
                f"holds {batch_size}. Raise per_device_train_batch_size or lower rows_per_batch."
            )
        if min(self.rows_per_epoch, default=1) < 1:
            raise ValueError(
                f"mixture: an epoch would hold {self.rows_per_epoch} rows of the sets; each needs at least 1."
            )
        if single_set:
            self.layout = Layout(single_set_batches(self.rows_per_epoch, batch_size, num_processes))
        else:
            self.layout = Layout(mixed_batches(self.rows_per_epoch, self.least_rows, batch_size))
            for _ in range(-len(self.layout) % num_processes):
                self.layout.append([])

    def __len__(self) -> int:
        return len(self.layout)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        starts = np.cumsum([0, *self.sizes])
        taken = [self.epoch * rows for rows in self.rows_per_epoch]
        permutation = lru_cache(maxsize=2 * len(self.sizes))(self._permutation)
        for batch in self.layout:
            rows: list[int] = []
            for which, count in batch:
                for place in range(taken[which], taken[which] + count):
                    cycle, offset = divmod(place, self.sizes[which])
                    rows.append(int(starts[which] + permutation(which, cycle)[offset]))
                taken[which] += count
            yield rows or [FILLER_ROW]

    def _permutation(self, which: int, cycle: int) -> np.ndarray:
        """What `permutation` of the generator gives, in numbers of half the size where these are enough."""
        size, window = self.sizes[which], self.windows[which]
        numbers = np.arange(size, dtype=np.int32 if size <= np.iinfo(np.int32).max else np.int64)
        draw = np.random.default_rng([self.seed, which, cycle])
        if window is None or window >= size:
            draw.shuffle(numbers)
            return numbers
        for start, stop in pairwise([0, *range(int(draw.integers(1, window + 1)), size, window), size]):
            draw.shuffle(numbers[start:stop])
        return numbers


def first_rows(size: int, max_rows: int, which: int, seed: int) -> list[int]:
    """The row numbers, ascending, of the `max_rows` that stand first in a permutation of set number `which`."""
    # The last number keeps this permutation apart from those of the cycles.
    return sorted(np.random.default_rng([seed, which, 0, 1]).permutation(size)[:max_rows].tolist())
