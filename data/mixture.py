"""The mixture: all tasks' training sets and the rule that draws mixed batches from them.

    labelled_rows        the rows of a set that are labelled for any of some tasks
    MixtureDataset       the rows of all sets under one running index; -1 is a row without sentence and label
    MixtureBatchSampler  one epoch's batches: every set spread evenly over the epoch, in the shares that were asked for

Rows of a set come from an endless stream of its permutations, so that `passes` of 1.5 covers every row once, then the
first half of a fresh permutation, and the next epoch goes on where this one stopped. Nothing is lost or doubled within
a pass, and everything follows from the seed and the epoch.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .collation import LABEL_PREFIX

FILLER_ROW = -1  # stands in the batches that only make the number of batches the same on every process


def labelled_rows(dataset: Any, tasks: Sequence[str]) -> Any:
    """The rows of a `datasets.Dataset` in canonical columns that are labelled for any of the tasks."""
    columns = [dataset[LABEL_PREFIX + task] for task in tasks]
    labelled = [place for place, labels in enumerate(zip(*columns, strict=True)) if any(x is not None for x in labels)]
    return dataset if len(labelled) == len(dataset) else dataset.select(labelled)


class MixtureDataset(Dataset):
    """Rows of several `datasets.Dataset`s under one running index; `FILLER_ROW` gives a row that carries no label."""

    def __init__(self, sets: Sequence[Any]):
        self.sets = list(sets)
        self.starts = np.cumsum([0, *map(len, self.sets)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == FILLER_ROW:
            return {"sentences": [""]}
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sets[which][int(index - self.starts[which])]


class MixtureBatchSampler:
    """
    Batches of row numbers for one epoch, the same on every process; accelerate deals them out.

    Args:
        sizes: rows of each set.
        batch_size: rows of a batch on one process.
        passes: how often an epoch goes through each set; fractions are fine. Defaults to once each.
        least_rows: how many rows of a set stand together in a batch where it has any. Losses over pairs need more than
            the two or three rows that a small set gets in proportion; such sets come in fewer batches, with so many.
        num_processes: the number of batches is filled up to a multiple of it, with batches of unlabelled rows.
        seed: of the permutations.

    Raises:
        ValueError: more `least_rows` than fit in a batch, or a set that gets no row at all.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        passes: Sequence[float] | None = None,
        least_rows: Sequence[int] | None = None,
        num_processes: int = 1,
        seed: int = 42,
    ):
        self.sizes = list(sizes)
        self.rows_per_epoch = [
            round(size * share) for size, share in zip(sizes, passes or [1.0] * len(sizes), strict=True)
        ]
        self.least_rows = list(least_rows or [1] * len(sizes))
        self.num_processes = num_processes
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
        self.layout = self._lay_out(batch_size)

    def _lay_out(self, batch_size: int) -> list[list[tuple[int, int]]]:
        """Batches as lists of (set, number of rows): the same in every epoch, only the rows differ."""
        chunks = []  # (place in the epoch from 0 to 1, set, rows)
        for which, (rows, least) in enumerate(zip(self.rows_per_epoch, self.least_rows, strict=True)):
            num_chunks = max(rows // least, -(-rows // batch_size))
            sizes = [len(part) for part in np.array_split(np.arange(rows), num_chunks)]
            chunks += [((number + 0.5) / num_chunks, which, size) for number, size in enumerate(sizes)]
        batches: list[list[tuple[int, int]]] = []
        batch: list[tuple[int, int]] = []
        waiting: list[tuple[int, int]] = []  # chunks that did not fit in the batch that was being filled
        room = batch_size

        def fill() -> None:
            """Move waiting chunks into the batch while they fit; a full batch is closed and the next one filled."""
            nonlocal batch, room
            while fitting := next((chunk for chunk in waiting if chunk[1] <= room), None):
                waiting.remove(fitting)
                batch.append(fitting)
                room -= fitting[1]
                if room == 0:
                    batches.append(batch)
                    batch, room = [], batch_size

        for _, which, rows in sorted(chunks):
            waiting.append((which, rows))
            fill()
        while batch:
            batches.append(batch)
            batch, room = [], batch_size
            fill()
        return batches

    @property
    def num_fillers(self) -> int:
        """Batches of unlabelled rows at the end of an epoch."""
        return -len(self.layout) % self.num_processes

    def __len__(self) -> int:
        return len(self.layout) + self.num_fillers

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
            yield rows
        for _ in range(self.num_fillers):
            yield [FILLER_ROW]

    def _permutation(self, which: int, cycle: int) -> np.ndarray:
        return np.random.default_rng([self.seed, which, cycle]).permutation(self.sizes[which])
