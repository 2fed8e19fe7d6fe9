"""Where the positives of a contrastive set rank among all candidates."""

from collections.abc import Sequence

import numpy as np

# Equal vectors may differ by a rounding error within one matrix product, by the block that they fall into.
TIE_TOLERANCE = 1e-9


def _normalise(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def positive_ranks(
    anchors: np.ndarray,
    candidates: np.ndarray,
    positive_index: np.ndarray | Sequence[int],
    chunk_size: int = 1024,
    left_out: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """
    Rank each anchor's positive among all candidates by cosine: what `accuracy_at_1` and `mrr` are computed from.

    Ties count against us: the rank is 1 plus the number of other candidates whose cosine is at least the positive's
    (within 1e-9; NaN counts as a tie). An embedding that maps all sentences to one vector thus ranks last, not first.
    For the same reason candidates must be distinct sentences: a second copy of the positive pushes it to rank 2. Where
    anchors share a positive, list it once and let the `positive_index` of each point at it.

    Args:
        anchors: `(rows, dim)`, normalised or not; a zero vector has cosine 0 with everything.
        candidates: `(candidates, dim)`, normalised or not.
        positive_index: `(rows,)`, the place of each anchor's positive in `candidates`, counted from 0.
        chunk_size: anchors compared at once; memory is bounded by one `(chunk_size, candidates)` float64 matrix.
        left_out: for each anchor, the places of candidates that its positive is not compared with: answers that are
            right as well, or the anchor's own sentence.

    Returns:
        `(rows,)` int64 ranks, from 1 (best) to the number of candidates.

    Raises:
        ValueError: the shapes do not fit together, or `positive_index` points outside them, or `chunk_size` < 1.

    Example:
        >>> candidates = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> positive_ranks(np.array([[2.0, 0.1], [1.0, 0.9]]), candidates, positive_index=[0, 1])
        array([1, 3])
    """
    anchors, candidates, positive_index = np.asarray(anchors), np.asarray(candidates), np.asarray(positive_index)
    if anchors.ndim != 2 or candidates.ndim != 2 or anchors.shape[1] != candidates.shape[1]:
        raise ValueError(
            "Parameters `anchors` and `candidates` should be (rows, dim) and (candidates, dim) with the same dim. "
            f"Found {anchors.shape} and {candidates.shape}."
        )
    if positive_index.shape != (len(anchors),) or ((positive_index < 0) | (positive_index >= len(candidates))).any():
        raise ValueError(
            f"Parameter `positive_index` should hold, for each of {len(anchors)} anchors, a place among "
            f"{len(candidates)} candidates, counted from 0. Found shape {positive_index.shape} and values from "
            f"{positive_index.min(initial=0)} to {positive_index.max(initial=0)}."
        )
    if chunk_size < 1:
        raise ValueError(f"Parameter `chunk_size` should be at least 1. Found {chunk_size}.")
    candidates = _normalise(candidates)
    ranks = np.empty(len(anchors), dtype=np.int64)
    for start in range(0, len(anchors), chunk_size):
        chunk = slice(start, start + chunk_size)
        cosines = _normalise(anchors[chunk]) @ candidates.T  # (chunk, candidates)
        positives = np.take_along_axis(cosines, positive_index[chunk, None], axis=1)  # (chunk, 1)
        # Counting those below leaves the positive itself in the rank, and NaN, which is below nothing.
        is_below = cosines < positives - TIE_TOLERANCE
        for row, places in enumerate(left_out[chunk] if left_out is not None else ()):
            is_below[row, places] = True
        ranks[chunk] = len(candidates) - np.count_nonzero(is_below, axis=1)
    return ranks


__all__ = ["positive_ranks"]
