"""How far rows are from what a task was trained on, in numpy: see `Scope` in scope_multitask.py.

SCOPES_FILE     the buffers of every task's `Scope`, beside the graphs
read_scopes     the same by task
out_of_scope    percentiles of rows
"""

from pathlib import Path

import numpy as np

from .logits import scaled

SCOPES_FILE = "scopes.npz"


def read_scopes(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """By task the buffers of its `Scope`, by name; a ValueError for a file that is damaged."""
    scopes: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                task, buffer = key.rsplit(".", 1)
                scopes.setdefault(task, {})[buffer] = file[key]
    except Exception as error:  # a damaged zip archive ends in any error
        raise ValueError(f"{path} cannot be read ({error}). Download it, or export, again.") from error
    return scopes


def out_of_scope(scope: dict[str, np.ndarray], embeddings: np.ndarray) -> np.ndarray:
    """`(rows,)`, percentiles from 0 to 100, of embeddings `(rows, embedding_dim)`."""
    means, quantiles = scope["means"], scope["quantiles"]
    white = (scaled(embeddings) - scope["centre"]) @ scope["whitening"]  # (rows, embedding_dim)
    squares = (white**2).sum(axis=1, keepdims=True) + (means**2).sum(axis=1) - 2 * white @ means.T  # (rows, centres)
    distances = np.sqrt(np.maximum(squares.min(axis=1), 0))
    last = len(quantiles) - 1
    above = np.searchsorted(quantiles, distances).clip(1, last)
    low, high = quantiles[above - 1], quantiles[above]
    share = ((distances - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return ((above - 1 + share) * (100 / last)).astype(np.float32)
