"""Labels that are likely wrong, by cleanlab's confident learning (Northcutt et al. 2021, arXiv 1911.00068).

It needs probabilities of rows that the model was not trained on, which validation and test rows are. cleanlab is the
extra `report`.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from .rows import TaskRows

MOST_ROWS = 100  # of a task


def _find_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """
    Places of the rows whose label is likely wrong, the likeliest first.

    Args:
        labels: `(rows,)` class numbers, or `(rows, num_labels)` of 0 and 1.
        probabilities: `(rows, num_labels)`.

    Raises:
        ValueError: says why cleanlab cannot look for them.
    """
    name = "cleanlab.filter"
    if labels.ndim == 2:
        differs = labels.min(axis=0) != labels.max(axis=0)  # cleanlab takes no label that every row carries
        labels, probabilities = labels[:, differs], probabilities[:, differs]
        if differs.sum() == 1:
            labels, probabilities = labels[:, 0], np.hstack([1 - probabilities, probabilities])
    if not labels.size or (labels == labels[0]).all():
        raise ValueError("all rows are labelled alike")
    given = labels
    if labels.ndim == 2:  # of which cleanlab wants lists of classes
        name, given = "cleanlab.multilabel_classification.filter", [np.flatnonzero(row).tolist() for row in labels]
    find = import_module(name).find_label_issues
    return find(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)


def find_label_errors(rows: Mapping[str, Mapping[str, TaskRows]], trained: np.ndarray) -> list[dict[str, Any]] | None:
    """
    The rows of each classification task whose label is likely wrong.

    Args:
        rows: by task and split; all splits of a task are looked at together.
        trained: the hashes of rows that the model was trained on, which are left out.

    Returns by task `task`, `splits`, `count` of all rows, `reason` why they could not be looked at (else `None`),
    `likely` of those with a label that is likely wrong, and `rows`, at most 100: `split`, `text`, `label`,
    `prediction`, and of a single-label task `of_label` and `of_prediction`, the probabilities of both. Tasks with more
    labels than probabilities are stored of are left out.
    Without cleanlab returns `None`.
    """
    try:
        import_module("cleanlab")
    except ImportError:
        return None
    found = []
    for task, by_split in rows.items():
        own = [one for one in by_split.values() if one.has_all_probabilities]
        places = [
            (one, row) for one in own for row in np.flatnonzero(~np.isin(one.hashes, trained)) if one.split != "train"
        ]
        if not places:
            continue
        is_multi_label = own[0].settings.kind.is_multi_label
        probabilities = np.stack([one.probabilities[row] for one, row in places])
        labels = np.stack([one.labels[row] for one, row in places])
        reason = None
        try:
            issues = _find_issues(labels, probabilities)
        except ValueError as error:  # one task that cannot be looked at does not cost the page
            issues, reason = np.empty(0, np.int64), str(error).strip(".")
        shown = []
        for place in issues[:MOST_ROWS].tolist():
            one, row = places[place]
            label, prediction = one.answers[row]
            entry = {"split": one.split, "text": one.texts[row], "label": label, "prediction": prediction}
            entry["of_label"] = entry["of_prediction"] = None
            if not is_multi_label:
                entry["of_label"] = float(probabilities[place, labels[place]])
                entry["of_prediction"] = float(probabilities[place].max())
            shown.append(entry)
        found.append(
            {
                "task": task,
                "splits": list(dict.fromkeys(one.split for one, _ in places)),
                "count": len(places),
                "reason": reason,
                "likely": len(issues),
                "rows": shown,
            }
        )
    return found


__all__ = ["find_label_errors"]
