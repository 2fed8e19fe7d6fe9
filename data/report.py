"""The table that is shown before training: rows, labels, lengths and overlaps of every task and split."""

from typing import Any

import numpy as np
from tabulate import tabulate

from .loading import LabelledSet, LoadedTasks

BATCH_SIZE = 2048
MOST_LABELS = 6


def token_counts(sentences: list[str], tokenizer: Any) -> dict[str, int]:
    """Tokens of each distinct sentence with special tokens, untruncated."""
    distinct = list(dict.fromkeys(sentences))
    counts = {}
    for start in range(0, len(distinct), BATCH_SIZE):
        batch = distinct[start : start + BATCH_SIZE]
        input_ids = tokenizer(
            batch,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        counts.update(zip(batch, map(len, input_ids), strict=True))
    return counts


def _label_summary(task: str, labels: list[Any], loaded: LoadedTasks) -> dict[str, Any] | None:
    """Rows per label name, or the spread of the scores; None for contrastive."""
    problem_type = loaded.problem_types[task]
    if problem_type == "contrastive":
        return None
    if problem_type not in ("single_label_classification", "multi_label_classification"):
        return {"min": min(labels), "mean": float(np.mean(labels)), "max": max(labels)}
    names = loaded.labels[task]
    if problem_type == "multi_label_classification":
        counts = np.sum(labels, axis=0)
    else:
        counts = np.bincount(labels, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


def _describe_task(
    task: str, labelled_set: LabelledSet, loaded: LoadedTasks, lengths: dict[str, int], max_length: int
) -> list[dict[str, Any]]:
    rows = []
    in_train: set[str] = set()
    for split, dataset in labelled_set.splits.items():
        labels = dataset[f"label_{task}"][:]
        labelled = [row for row, label in enumerate(labels) if label is not None]
        sentences = dataset["sentences"][:]
        sentences = [sentences[row] for row in labelled]
        tokens = np.array([lengths[sentence] for row in sentences for sentence in row])
        if split == "train":
            in_train = {sentence for row in sentences for sentence in row}
        rows.append(
            {
                "task": task,
                "split": split,
                "rows": len(labelled),
                "labels": _label_summary(task, [labels[row] for row in labelled], loaded),
                "tokens_mean": float(tokens.mean()),
                "tokens_p95": int(np.quantile(tokens, 0.95, method="higher")),
                "tokens_max": int(tokens.max()),
                "truncated_share": float((tokens > max_length).mean()),
                "duplicates": len(sentences) - len(set(map(tuple, sentences))),
            }
        )
        if split != "train" and "train" in labelled_set.splits:
            rows[-1]["in_train"] = sum(not in_train.isdisjoint(row) for row in sentences)
    return rows


def describe(loaded: LoadedTasks, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """One dict per task and split.

    `task`, `split`, `rows` (labelled for this task); `labels` ({name: rows}, for scores {"min", "mean", "max"}, None
    for contrastive); over the sentences of these rows `tokens_mean`, `tokens_p95`, `tokens_max` and `truncated_share`
    (longer than `max_length`, special tokens included); `duplicates` (rows whose sentences stood in an earlier row of
    the split); for validation and test also `in_train` (rows with a sentence that stands in the task's train split).
    """
    datasets = [dataset for labelled_set in loaded.sets for dataset in labelled_set.splits.values()]
    lengths = token_counts(
        [sentence for dataset in datasets for row in dataset["sentences"] for sentence in row], tokenizer
    )
    return [
        row
        for labelled_set in loaded.sets
        for task in labelled_set.tasks
        for row in _describe_task(task, labelled_set, loaded, lengths, max_length)
    ]


def _percent(share: float) -> str:
    """Whole percents, but something never reads as nothing."""
    return "<1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _label_text(row: dict[str, Any]) -> str:
    labels = row["labels"]
    if labels is None:
        return ""
    if set(labels) == {"min", "mean", "max"} and isinstance(labels["mean"], float):
        return f"{labels['min']:g} to {labels['max']:g}, mean {labels['mean']:.2f}"
    names = list(labels)
    if len(names) > MOST_LABELS:
        names = sorted(names, key=lambda name: -labels[name])[:MOST_LABELS]
    text = ", ".join(f"{name} {_percent(labels[name] / row['rows'])}" for name in names)
    return text + (f" and {len(labels) - len(names)} more" if len(labels) > len(names) else "")


def format_report(rows: list[dict[str, Any]]) -> str:
    """The rows of `describe` as a table to print, and a warning for each split that shares sentences with train."""
    header = ["task", "split", "rows", "labels", "tokens mean/95 %/max", "truncated", "duplicates", "in train"]
    table = [
        [
            row["task"],
            row["split"],
            row["rows"],
            _label_text(row),
            f"{row['tokens_mean']:.0f} / {row['tokens_p95']} / {row['tokens_max']}",
            _percent(row["truncated_share"]),
            row["duplicates"],
            row.get("in_train", ""),
        ]
        for row in rows
    ]
    text = tabulate(table, header, disable_numparse=True, maxcolwidths=[None, None, None, 44, None, None, None, None])
    warnings = [
        f"{row['in_train']} of {row['rows']} {row['split']} rows of {row['task']} hold a sentence that stands in its "
        "training split too: scores there are flattering."
        for row in rows
        if row.get("in_train")
    ]
    return "\n".join([text, *warnings])


__all__ = ["describe", "format_report"]
