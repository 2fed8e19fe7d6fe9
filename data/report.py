"""The table that is shown before training: rows, labels, lengths, unknown tokens and overlaps by task and split."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from .cache.arrays import BATCH_ROWS
from .rows.canonical import is_labelled, label_counts, labels_of
from .rows.sets import LoadedTasks
from .rows.streamed import StreamedRows
from .text.sameness import among, distinct, row_hash, sorted_hashes, whole_row_hash
from .text.spelling import first_names
from .text.tokens import TokenCounter

MOST_LABELS = 6
MOST_UNKNOWN = 0.1  # of a split's tokens; English text with emojis has up to a few per cent, a foreign script 60
MULTILINGUAL_BACKBONE = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


def _label_summary(labels: pa.ChunkedArray, task: str, loaded: LoadedTasks) -> dict[str, Any] | None:
    """Rows per label name, or the spread of the scores; None for contrastive."""
    kind = loaded.kinds[task]
    if not kind.has_label_column:
        return None
    if kind.has_scores:
        scores = labels.drop_null().to_numpy()
        return {"min": float(scores.min()), "mean": float(np.mean(scores)), "max": float(scores.max())}
    names = loaded.labels[task]
    return {name: int(count) for name, count in zip(names, label_counts(labels, len(names)), strict=True)}


def _describe_tokens(counts: np.ndarray, special: int, max_length: int) -> dict[str, Any]:
    """Lengths of sentences, from their tokens and unknown ones, in the last dimension `(..., 2)`."""
    lengths, unknown = np.zeros(1, np.int64), 0
    for start in range(0, len(counts), BATCH_ROWS):
        tokens, own = counts[start : start + BATCH_ROWS].reshape(-1, 2).T
        found = np.bincount(tokens, minlength=len(lengths))
        found[: len(lengths)] += lengths
        lengths, unknown = found, unknown + int(own.sum())
    total, steps = int(lengths.sum()), np.arange(len(lengths))
    place = math.ceil((total - 1) * 0.95)  # of the ascending lengths
    return {
        "tokens_mean": float(lengths @ steps) / total,
        "tokens_p95": int(np.searchsorted(np.cumsum(lengths), place, side="right")),
        "tokens_max": int(np.flatnonzero(lengths)[-1]),
        "truncated_share": float(lengths[max_length + 1 :].sum() / total),
        "unknown_share": float(unknown / max(1, int(lengths @ (steps - special)))),
    }


def _is_sorted(labels: pa.ChunkedArray, window: int) -> bool:
    """Whether class ids stand in runs so long that a window holds few of them."""
    if not pa.types.is_integer(labels.type) or len(labels) <= window:
        return False
    found = labels.drop_null().to_numpy()
    changes = int(np.count_nonzero(found[1:] != found[:-1]))
    by_chance = len(found) * (1 - float(((np.bincount(found) / len(found)) ** 2).sum()))
    return changes < 0.05 * by_chance and len(found) > (changes + 1) * window / 4


def describe(loaded: LoadedTasks, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """One dict per task and split.

    `task`, `split`, `rows` (labelled for this task); `labels` ({name: rows}, for scores {"min", "mean", "max"}, None
    for contrastive); over the sentences of these rows `tokens_mean`, `tokens_p95`, `tokens_max` and `truncated_share`
    (longer than `max_length`, special tokens included), and `unknown_share` (of the tokens but for special ones, those
    that stand for what the tokenizer does not know); `duplicates` (rows that stood in the split before); for
    validation and test also `in_train` (rows that stand in the task's train split). Rows are the same whatever the
    case and white space of their text, pairs in either order, as `row_key` has it. Tokens of a streamed split are
    those of its first `tokens_of` rows (of any task, where none of the first 10,000 is labelled for this one), and
    `sorted_in` is the size of a window where its labels stand in long runs.
    """
    counter = TokenCounter(tokenizer)
    special = counter.count([""])[0][0]
    described = []
    for labelled_set in loaded.sets:
        splits = labelled_set.splits
        tokens = {split: counter.of_rows(rows) for split, rows in splits.items() if "sentences" in rows.column_names}
        if labelled_set.texts is not None:
            head = splits["train"].select(range(min(BATCH_ROWS, len(splits["train"]))))
            tokens["train"] = counter.of_rows(StreamedRows(head, labelled_set.texts).read_all())
        for task in labelled_set.tasks:
            in_train: np.ndarray | None = None
            for split, rows in splits.items():
                labelled = is_labelled(rows, task)
                known = sorted_hashes(rows, row_hash, labelled)
                counts = tokens[split]
                if not labelled.all():  # which copies
                    counts = counts[labelled[: len(counts)]]
                rule = whole_row_hash if counts.shape[1] > 2 else row_hash
                row = {
                    "task": task,
                    "split": split,
                    "rows": int(labelled.sum()),
                    "labels": _label_summary(labels_of(rows, task), task, loaded),
                    **_describe_tokens(counts if len(counts) else tokens[split], special, max_length),
                    "duplicates": int(labelled.sum()) - len(distinct(sorted_hashes(rows, rule, labelled))),
                }
                if split == "train" and (texts := labelled_set.texts) is not None:
                    if len(tokens[split]) < len(rows):
                        row["tokens_of"] = len(counts) or len(tokens[split])
                    if _is_sorted(labels_of(rows, task), texts.buffer_size):
                        row["sorted_in"] = texts.buffer_size
                if split == "train":
                    in_train = known
                elif in_train is not None:
                    row["in_train"] = int(among(known, in_train).sum())
                described.append(row)
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
    notes = [
        f"Tokens of the {row['split']} rows of {row['task']}, which are streamed, are those of the first "
        f"{row['tokens_of']:,}."
        for row in rows
        if "tokens_of" in row
    ]
    warnings = [
        f"{row['in_train']} of {row['rows']} {row['split']} rows of {row['task']} stand in its training split too: "
        "scores there are flattering."
        for row in rows
        if row.get("in_train")
    ]
    warnings += [
        f"The train rows of {row['task']}, which are streamed, stand sorted by label, and {row['sorted_in']:,} of "
        f"them at a time are shuffled. Shuffle the files once, or raise tasks.{row['task']}.dataset.buffer_size."
        for row in rows
        if "sorted_in" in row
    ]
    unread = [row for row in rows if row["unknown_share"] > MOST_UNKNOWN]
    alike: dict[str, list[str]] = {}  # tasks that read the same texts are told of together
    for task in dict.fromkeys(row["task"] for row in unread):
        found = [f"{_percent(row['unknown_share'])} of its {row['split']}" for row in unread if row["task"] == task]
        alike.setdefault(", ".join(found), []).append(task)
    for found, tasks in alike.items():
        warnings.append(
            f"The backbone cannot read much of {first_names(tasks)}: {found} tokens are unknown to its tokenizer, and "
            "nothing is learnt from them. Start from a backbone of the text's language, or from one of many, such as "
            f"`backbone: {MULTILINGUAL_BACKBONE}`."
        )
    return "\n".join([text, *notes, *warnings])


__all__ = ["describe", "format_report"]
