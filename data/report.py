"""The table that is shown before training: rows, labels, lengths, unknown tokens and overlaps by task and split."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from tabulate import tabulate

from .loading import LabelledSet, LoadedTasks
from .texts import row_key, text_key

BATCH_SIZE = 2048
MOST_LABELS = 6
MOST_UNKNOWN = 0.1  # of a split's tokens; English text with emojis has up to a few per cent, a foreign script 60
MULTILINGUAL_BACKBONE = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


def _unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what the tokenizer does not know; None if it knows everything, as one of bytes does."""
    unknown = tokenizer.unk_token_id
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    return None if unknown in (*ends, tokenizer.pad_token_id) else unknown


def token_counts(sentences: list[str], tokenizer: Any) -> dict[str, tuple[int, int]]:
    """Of each distinct sentence, untruncated: its tokens with special ones, and how many of them are unknown."""
    distinct = list(dict.fromkeys(sentences))
    counts, unknown = {}, _unknown_id(tokenizer)
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
        counts.update((text, (len(ids), ids.count(unknown))) for text, ids in zip(batch, input_ids, strict=True))
    return counts


def _label_summary(task: str, labels: list[Any], loaded: LoadedTasks) -> dict[str, Any] | None:
    """Rows per label name, or the spread of the scores; None for contrastive."""
    kind = loaded.kinds[task]
    if not kind.has_label_column:
        return None
    if kind.has_scores:
        return {"min": min(labels), "mean": float(np.mean(labels)), "max": max(labels)}
    names = loaded.labels[task]
    counts = np.sum(labels, axis=0) if kind.is_multi_label else np.bincount(labels, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}


@dataclass
class _Rows:
    """What the tasks of a set have in common in one split: keys of the rows, and tokens of their sentences."""

    keys: list[tuple[str, ...]]
    whole_keys: list[tuple[str, ...]]  # with a contrastive row's negatives
    counts: np.ndarray  # (rows, sentences of a row, 2): tokens, and unknown ones

    @classmethod
    def read(cls, dataset: Dataset, counts: dict[str, tuple[int, int]]) -> "_Rows":
        sentences = dataset["sentences"][:]
        keys = [row_key(row) for row in sentences]
        whole_keys = [(*key, *map(text_key, row[2:])) for key, row in zip(keys, sentences, strict=True)]
        return cls(keys, whole_keys, np.array([[counts[sentence] for sentence in row] for row in sentences]))


def _describe_task(
    task: str,
    labelled_set: LabelledSet,
    rows_of: dict[str, _Rows],
    loaded: LoadedTasks,
    special: int,
    max_length: int,
) -> list[dict[str, Any]]:
    """A row of the table for each split; `special` tokens are those that every sentence has."""
    rows = []
    in_train: set[tuple[str, ...]] = set()
    for split, dataset in labelled_set.splits.items():
        labels = dataset[f"label_{task}"][:]
        labelled = [row for row, label in enumerate(labels) if label is not None]
        tokens, unknown = rows_of[split].counts[labelled].reshape(-1, 2).T
        keys = [rows_of[split].keys[row] for row in labelled]
        if split == "train":
            in_train = set(keys)
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
                "unknown_share": float(unknown.sum() / max(1, (tokens - special).sum())),
                "duplicates": len(keys) - len({rows_of[split].whole_keys[row] for row in labelled}),
            }
        )
        if split != "train" and "train" in labelled_set.splits:
            rows[-1]["in_train"] = sum(key in in_train for key in keys)
    return rows


def describe(loaded: LoadedTasks, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """One dict per task and split.

    `task`, `split`, `rows` (labelled for this task); `labels` ({name: rows}, for scores {"min", "mean", "max"}, None
    for contrastive); over the sentences of these rows `tokens_mean`, `tokens_p95`, `tokens_max` and `truncated_share`
    (longer than `max_length`, special tokens included), and `unknown_share` (of the tokens but for special ones, those
    that stand for what the tokenizer does not know); `duplicates` (rows that stood in the split before); for
    validation and test also `in_train` (rows that stand in the task's train split). Rows are the same whatever the
    case and white space of their text, pairs in either order, as `row_key` has it.
    """
    datasets = [dataset for labelled_set in loaded.sets for dataset in labelled_set.splits.values()]
    counts = token_counts(
        ["", *(sentence for dataset in datasets for row in dataset["sentences"][:] for sentence in row)], tokenizer
    )
    described = []
    for labelled_set in loaded.sets:
        rows_of = {split: _Rows.read(dataset, counts) for split, dataset in labelled_set.splits.items()}
        for task in labelled_set.tasks:
            described += _describe_task(task, labelled_set, rows_of, loaded, counts[""][0], max_length)
    return described


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
    """The rows of `describe` as a table to print, and a warning for what makes scores flattering or learning vain."""
    header = ["task", "split", "rows", "labels", "tokens mean/95 %/max", "truncated", "unknown"]
    header += ["duplicates", "in train"]
    table = [
        [
            row["task"],
            row["split"],
            row["rows"],
            _label_text(row),
            f"{row['tokens_mean']:.0f} / {row['tokens_p95']} / {row['tokens_max']}",
            _percent(row["truncated_share"]),
            _percent(row["unknown_share"]),
            row["duplicates"],
            row.get("in_train", ""),
        ]
        for row in rows
    ]
    text = tabulate(table, header, disable_numparse=True, maxcolwidths=[None, None, None, 44])
    warnings = [
        f"{row['in_train']} of {row['rows']} {row['split']} rows of {row['task']} stand in its training split too: "
        "scores there are flattering."
        for row in rows
        if row.get("in_train")
    ]
    unread = [row for row in rows if row["unknown_share"] > MOST_UNKNOWN]
    for task in dict.fromkeys(row["task"] for row in unread):
        found = [f"{_percent(row['unknown_share'])} of its {row['split']}" for row in unread if row["task"] == task]
        warnings.append(
            f"The backbone cannot read much of {task}: {', '.join(found)} tokens are unknown to its tokenizer, and "
            "nothing is learnt from them. Start from a backbone of the text's language, or from one of many, such as "
            f"`backbone: {MULTILINGUAL_BACKBONE}`."
        )
    return "\n".join([text, *warnings])


__all__ = ["describe", "format_report"]
