"""Multiple negatives ranking: each anchor should find its own positive among those of all rows, on all processes.

What an anchor must not be pushed away from is masked out of its candidates: itself, its positive, and every positive
that any row of the batch gives for the same anchor, recognised by their text and wherever they stand, on this process
or another. So a batch may hold duplicates and rows with a common anchor: they are trained on, and are never negatives
of each other. Dealing such rows to different batches instead would need a pass over the text of the whole set, for
batches that differ from process to process; a mask is exact, and costs a candidate where one would have been wrong.
A positive that only rows of other batches give for an anchor is not known here.
"""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather


def gather_rows(vectors: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """
    The rows of all processes, in the order of the processes; gradients flow to those of this process only.

    Every process has to come here, also one without rows.

    Args:
        vectors: `(rows, sentences of a row, dim)` of this process.
        ids: `(rows, sentences of a row)`.

    Returns:
        The vectors and ids of all rows, and where the rows of this process stand in them.
    """
    state = PartialState()
    shapes = gather(
        torch.tensor([ids.shape], device=ids.device)
    ).tolist()  # (rows, sentences of a row) of each process
    most = max(rows for rows, _ in shapes)
    if most == 0:
        return vectors, ids, slice(0, 0)
    width = max(width for rows, width in shapes if rows)

    def gathered(own: torch.Tensor) -> list[torch.Tensor]:
        padded = own.new_zeros(most, width, *own.shape[2:])
        padded[: own.shape[0], : own.shape[1]] = own.detach()
        parts = gather(padded).unflatten(0, (state.num_processes, most))
        return [part[:rows] for part, (rows, _) in zip(parts, shapes, strict=True)]

    all_vectors, all_ids = gathered(vectors), gathered(ids)
    start = sum(rows for rows, _ in shapes[: state.process_index])
    if len(vectors):
        all_vectors[state.process_index] = vectors
    # Without rows the sum of nothing keeps the graph connected.
    return torch.cat(all_vectors) + vectors.sum() * 0, torch.cat(all_ids), slice(start, start + len(vectors))


def _find(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_ids: torch.Tensor,
    candidate_ids: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Cross-entropy of each query finding its own answer, the candidate with its number: `(rows,)`."""
    logits = (1 / temperature) * queries @ candidates.T  # (rows, candidates)
    targets = torch.arange(len(queries), device=queries.device)
    is_answer = (candidate_ids[: len(queries), None] == candidate_ids[None, :]).float()  # (rows, candidates)
    same_query = (query_ids[:, None] == query_ids[None, :]).float()  # (rows, rows)
    no_negative = (same_query @ is_answer > 0) | (candidate_ids[None, :] == query_ids[:, None])
    no_negative[targets, targets] = False
    return F.cross_entropy(logits.masked_fill(no_negative, float("-inf")), targets, reduction="none")


def _ranking(vectors: torch.Tensor, ids: torch.Tensor, temperature: float, symmetric: bool) -> torch.Tensor:
    """The loss of each row, `(rows,)`, from unit vectors `(rows, 2 + negatives, dim)` and their sentences' ids."""
    anchors, positives = vectors[:, 0], vectors[:, 1]  # (rows, dim)
    candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)  # all positives first, then all negatives
    losses = _find(anchors, candidates, ids[:, 0], ids[:, 1:].T.flatten(), temperature)
    if symmetric:
        losses = (losses + _find(positives, anchors, ids[:, 1], ids[:, 0], temperature)) / 2
    return losses


def multiple_negatives_ranking(
    embeddings: torch.Tensor,
    rows: torch.Tensor,
    temperature: float = 0.05,
    symmetric: bool = False,
    sentence_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    InfoNCE with in-batch negatives: each anchor should find its own positive among all positives and negatives of the
    batch (Henderson et al. 2017, arXiv 1705.00652, section 4.4). Cross-entropy of the cosines divided by the
    temperature, summed over rows.

    Symmetric: the mean of that and of each positive finding its own anchor among all anchors (as in CLIP, Radford et
    al. 2021, arXiv 2103.00020, figure 3); hard negatives take part only in the first.

    A candidate that is the anchor itself, the same sentence as the positive, or the same sentence as another positive
    of the same anchor in the batch is no negative and left out, wherever it stands. The other way round likewise.

    With `sentence_ids` the batch is that of all processes together. The value is the sum over this process's rows;
    its gradient is that of the sum over all processes' rows by this process's embeddings, so that the gradients of
    all processes add up to those of one big batch, without any communication in the backward pass.

    Args:
        embeddings: `(sentences, embedding_dim)`, any length.
        rows: `(rows, 2 + negatives)`: where the anchor, the positive and its hard negatives stand.
        temperature: what cosines are divided by.
        symmetric: whether positives look for their anchors as well.
        sentence_ids: in the shape of `rows`, equal for equal sentences on all processes; to gather the rows of all
            processes, which must then all come here.
    """
    vectors = F.normalize(embeddings, dim=-1)[rows]  # (rows, 2 + negatives, embedding_dim)
    if sentence_ids is None:
        return _ranking(vectors, rows, temperature, symmetric).sum()
    vectors, ids, own = gather_rows(vectors, sentence_ids)
    losses = _ranking(vectors, ids, temperature, symmetric)
    total = losses.sum()
    return total - total.detach() + losses[own].sum().detach()


__all__ = ["gather_rows", "multiple_negatives_ranking"]
