"""The batches of an epoch as lists of (set, rows): which set gives how many rows where, but not yet which rows.

Layout              the batches of an epoch, packed
mixed_batches       rows of several sets in a batch, each set spread evenly over the epoch
single_set_batches  rows of one set in a batch, and the same set on every process at the same step
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

Batch = list[tuple[int, int]]


class Layout:
    """Batches of (set, rows), in 8 bytes a piece; an empty batch stands for one without any row."""

    def __init__(self, batches: Iterable[Batch]):
        self._pieces, self._ends = array("i"), array("q")
        for batch in batches:
            self.append(batch)

    def append(self, batch: Batch) -> None:
        for piece in batch:
            self._pieces.extend(piece)
        self._ends.append(len(self._pieces))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Batch]:
        start = 0
        for end in self._ends:
            found = self._pieces[start:end]
            yield list(zip(found[::2], found[1::2], strict=True))
            start = end


def least_pieces(rows: Sequence[int], least_rows: Sequence[int], batch_size: int) -> list[int]:
    """
    The fewest rows of each set in a batch that has any of it.

    That is `least_rows`, and less only where a set cannot be cut so: one smaller than that stands in one batch, and 33
    rows at 16 a batch with at least 16 are cut into 11, 11 and 11.
    """
    pieces = []
    for count, least in zip(rows, least_rows, strict=True):
        num_pieces = max(count // least, -(-count // batch_size))
        pieces.append(min(least, count // num_pieces))
    return pieces


def mixed_batches(rows: Sequence[int], least_rows: Sequence[int], batch_size: int) -> Iterator[Batch]:
    """
    Batches that mix the sets, full ones as far as pieces fit together: at most one more per set than the rows need.

    The set that is furthest behind comes next: with an even share of what is left of it, with less where the batch has
    no room for that, or in the next batch. A set that is in the batch already may add any number of rows. What is left
    of a set can always be cut into pieces between `least_pieces` and the size of a batch.

    Args:
        rows: rows of each set in the epoch, at least 1.
        least_rows: rows of each set that should stand together, at least 1 and at most `batch_size`.
        batch_size: rows of a batch.
    """
    least = least_pieces(rows, least_rows, batch_size)
    left = list(rows)

    def can_be_cut(which: int, count: int) -> bool:
        return -(-count // batch_size) * least[which] <= count

    def even_piece(which: int) -> int:
        if least[which] == 1:
            return 1
        return -(-left[which] // max(left[which] // least[which], -(-left[which] // batch_size)))

    def place(which: int) -> float:
        """Of the middle of the set's next piece, from 0 to 1 over the epoch."""
        return (rows[which] - left[which] + even_piece(which) / 2) / rows[which]

    def largest_piece(which: int, room: int, smallest: int) -> int:
        """Of the sizes from `smallest` to `room`; 0 if there is none."""
        if least[which] == 1:  # anything can be cut so
            return min(room, left[which])
        sizes = range(min(room, left[which]), smallest - 1, -1)
        return next((size for size in sizes if can_be_cut(which, left[which] - size)), 0)

    waiting = [(place(which), which) for which in range(len(rows))]
    heapify(waiting)
    while waiting:
        batch: dict[int, int] = {}
        room, passed_over = batch_size, []
        while room and waiting:
            found = heappop(waiting)
            which, smallest = found[1], 1 if found[1] in batch else least[found[1]]
            is_last = least[which] == 1 and not waiting and not passed_over
            if count := largest_piece(which, room if is_last else min(room, even_piece(which)), smallest):
                batch[which] = batch.get(which, 0) + count
                room -= count
                left[which] -= count
                if left[which]:
                    heappush(waiting, (place(which), which))
            else:
                passed_over.append(found)
        for found in passed_over:
            heappush(waiting, found)
        yield sorted(batch.items())


def single_set_batches(rows: Sequence[int], batch_size: int, num_processes: int) -> list[Batch]:
    """
    Batches of one set each, in groups of one batch for every process.

    Each set is cut as evenly as possible into the fewest groups that hold it, and its groups are spread evenly over
    the epoch. A set with fewer rows than processes leaves some of its batches empty.
    """
    groups = []  # (place in the epoch from 0 to 1, set, the group's batches)
    for which, count in enumerate(rows):
        num_groups = -(-count // (batch_size * num_processes))
        share, larger = divmod(count, num_groups * num_processes)
        sizes = [share + (place < larger) for place in range(num_groups * num_processes)]
        for number in range(num_groups):
            # Every num_groups-th, so that the larger batches are spread as well.
            batches = [[(which, size)] if size else [] for size in sizes[number::num_groups]]
            groups.append(((number + 0.5) / num_groups, which, batches))
    return [batch for *_, batches in sorted(groups) for batch in batches]


__all__ = ["Layout", "least_pieces", "mixed_batches", "single_set_batches"]
