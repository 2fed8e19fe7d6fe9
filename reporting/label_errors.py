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


def find_label_errors(rows: Mapping[str, Mapping[str, TaskRows]]) -> list[dict[str, Any]] | None:
    """
    The rows of each classification task whose label is likely wrong.

    Args:
        rows: by task and split; all splits of a task are looked at together.

    Returns by task `task`, `splits`, `count` of all rows, `likely` of those with a label that is likely wrong, and
    `rows`, at most 100: `split`, `text`, `label`, `prediction`, and of a single-label task `of_label` and
    `of_prediction`, the probabilities of both. Tasks with more labels than probabilities are stored of are left out.
    Without cleanlab returns `None`.
    """
    try:
        find_label_issues = import_module("cleanlab.filter").find_label_issues
    except ImportError:
        return None
    found = []
    for task, by_split in rows.items():
        own = [one for split, one in by_split.items() if split != "train" and one.has_all_probabilities]
        if not own:
            continue
        is_multi_label = own[0].settings.kind.is_multi_label
        probabilities = np.concatenate([one.probabilities for one in own])
        labels = np.concatenate([one.references for one in own if one.references is not None])
        given = [np.flatnonzero(row).tolist() for row in labels] if is_multi_label else labels
        places = [(one, row) for one in own for row in range(len(one))]
        issues = find_label_issues(
            given, probabilities, return_indices_ranked_by="self_confidence", multi_label=is_multi_label, n_jobs=1
        )
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
                "splits": [one.split for one in own],
                "count": len(places),
                "likely": len(issues),
                "rows": shown,
            }
        )
    return found


__all__ = ["find_label_errors"]
