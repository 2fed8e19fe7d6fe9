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


def find_label_errors(rows: Mapping[str, Mapping[str, TaskRows]], trained: np.ndarray) -> list[dict[str, Any]] | None:
    """
    The rows of each classification task whose label is likely wrong.

    Args:
        rows: by task and split; all splits of a task are looked at together.
        trained: the hashes of rows that the model was trained on, which are left out.

    Returns by task `task`, `splits`, `count` of all rows, `likely` of those with a label that is likely wrong, and
    `rows`, at most 100: `split`, `text`, `label`, `prediction`, and of a single-label task `of_label` and
    `of_prediction`, the probabilities of both. Tasks with more labels than probabilities are stored of are left out.
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
        # Of multi-label rows, cleanlab wants lists of classes, and has a module of its own.
        module = import_module("cleanlab.multilabel_classification.filter" if is_multi_label else "cleanlab.filter")
        given = [np.flatnonzero(row).tolist() for row in labels] if is_multi_label else labels
        issues = module.find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
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
                "likely": len(issues),
                "rows": shown,
            }
        )
    return found


__all__ = ["find_label_errors"]
