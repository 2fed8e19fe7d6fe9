"""What a task was trained on, and how far from it a sentence is.

Scope                the statistics of a task's training embeddings; they stand beside its head
out_of_scope         the percentiles of several tasks, from embeddings
scope_centres        how many centres a task has
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from .tasks_multitask import TaskConfig

NUM_QUANTILES = 101  # of the distances: percentiles 0, 1, ..., 100


def scope_centres(task: TaskConfig) -> int:
    """How many centres a task has: one for each class, of a multi-label task one more for rows without a label."""
    return len(task.labels) + task.kind.is_multi_label


class Scope(nn.Module):
    """
    The Mahalanobis distance of an embedding to the nearest class mean, as a percentile of the distances that rows of
    the task have (Podolskiy et al. 2021, arXiv 2101.03778, section 3: class means and one covariance for all classes).

    Embeddings are scaled to length 1 before, as Mueller and Hein 2025 (arXiv 2505.18032) found to be better.

    Buffers, which training/calibration/scope.py fits:
        centre: `(embedding_dim,)`, the mean of all rows.
        whitening: `(embedding_dim, embedding_dim)`; `(x - centre) @ whitening` has the covariance 1 within classes.
        means: `(centres, embedding_dim)`, of the classes, after that.
        quantiles: `(101,)`, of the distances: from the 0th to the 100th percentile.

    Args of `forward`:
        embeddings: `(rows, embedding_dim)`, of any length.

    Returns `(rows,)` in float32, from 0 to 100: the share of the task's rows that are nearer.
    """

    def __init__(self, embedding_dim: int, centres: int):
        super().__init__()
        self.register_buffer("centre", torch.zeros(embedding_dim, dtype=torch.float32))
        self.register_buffer("whitening", torch.eye(embedding_dim, dtype=torch.float32))
        self.register_buffer("means", torch.zeros(centres, embedding_dim, dtype=torch.float32))
        self.register_buffer("quantiles", torch.arange(NUM_QUANTILES, dtype=torch.float32))

    def _apply(self, fn, recurse: bool = True) -> "Scope":
        """Follow the model to its device, and not into half precision."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype != kept[name].dtype:
                self._buffers[name] = kept[name].to(buffer.device)
        return self

    def distances(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`(rows,)`: the Mahalanobis distance to the nearest centre."""
        # In float32 whatever the model's precision: distances are small differences of large numbers.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(embeddings.float(), dim=-1)
            white = (embeddings - self.centre.float()) @ self.whitening.float()  # (rows, embedding_dim)
            return torch.cdist(white, self.means.float()).amin(dim=-1)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        distances, quantiles = self.distances(embeddings), self.quantiles.float()
        above = torch.searchsorted(quantiles, distances).clamp(1, NUM_QUANTILES - 1)
        low, high = quantiles[above - 1], quantiles[above]
        share = ((distances - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return (above - 1 + share) * (100 / (NUM_QUANTILES - 1))


def out_of_scope(
    heads: Mapping[str, nn.Module], embeddings: torch.Tensor, names: Iterable[str]
) -> dict[str, torch.Tensor]:
    """By task that has a `Scope`, the percentiles `(rows,)` of embeddings `(rows, embedding_dim)`."""
    scopes = {name: heads[name].scope for name in names if name in heads}
    return {name: scope(embeddings) for name, scope in scopes.items() if scope is not None}


__all__ = ["Scope", "out_of_scope", "scope_centres"]
