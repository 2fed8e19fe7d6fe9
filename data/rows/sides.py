"""Where rows have been set aside: on the side of training, validation or test, looked up by their hash."""

import numpy as np
import xxhash

SIDES = ("train", "validation", "test")
UNSETTLED = -1  # on no side yet


class Sides:
    """The sides of rows, by `row_hash`; a side is a place in `SIDES`. What was added first counts."""

    def __init__(self) -> None:
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []
        self._sorted = 0  # so many pieces are sorted by hash, which is only done when somebody looks

    def add(self, hashes: np.ndarray, sides: np.ndarray) -> None:
        """Note the sides `(rows,)` of rows with these hashes `(rows,)`, but for those that are known."""
        if len(hashes):
            self._pieces.append((hashes, sides.astype(np.int8)))

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The sides `(rows,)` of rows with these hashes, `UNSETTLED` where none is known."""
        self._sort()
        found = np.full(len(hashes), UNSETTLED, np.int8)
        for own, sides in self._pieces:
            nearest = np.searchsorted(own, hashes).clip(max=len(own) - 1)
            is_new = (own[nearest] == hashes) & (found == UNSETTLED)
            found[is_new] = sides[nearest[is_new]]
        return found

    def digest(self) -> str:
        """A hash of all that is known."""
        self._sort()
        hashed = xxhash.xxh3_128()
        for own, sides in self._pieces:
            hashed.update(np.ascontiguousarray(own).data)
            hashed.update(np.ascontiguousarray(sides).data)
        return hashed.hexdigest()

    def _sort(self) -> None:
        for place in range(self._sorted, len(self._pieces)):
            own, sides = self._pieces[place]
            order = np.lexsort((sides, own))
            self._pieces[place] = own[order], sides[order]
        self._sorted = len(self._pieces)


__all__ = ["SIDES", "UNSETTLED", "Sides"]
