"""Does `out_of_scope` find what a task was not trained on, better than the highest probability does?

    python benchmarks/out_of_scope.py --data_root FOLDER [--rows 4000] [--backbone FOLDER_OR_ID] [--json out.json]

FOLDER holds ag_news, tweeteval_sentiment, trec and tweeteval_emoji, each with train, validation and test.parquet. The
encoder stays as it is; each task's head is a logistic regression on its embeddings. Two protocols:

    far    news topics; foreign are tweets and questions
    near   each class of TREC, and the five first of the emoji, left out of training in turn; foreign are its rows

For both scores, on test rows: AUROC (foreign rows against rows of the task), and recall, the share of foreign rows
that are found at a threshold with 5 % false alarms. Beside it: the share of the task's own test rows beyond the 95th
percentile, which should be 5 %. At the end, how long `predict` takes with a scope beside each head, and without.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tabulate import tabulate

from multitask_sentence import MultiTaskModel
from multitask_sentence.scope_multitask import Scope
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training.calibration.scope import fit_scope

NEWS, TWEETS, QUESTIONS, EMOJI = "ag_news", "tweeteval_sentiment", "trec", "tweeteval_emoji"
EMOJI_LEFT_OUT = 5
FALSE_ALARMS = 0.05
KEYS = ("auroc", "recall")
SCOPE, PROBABILITY = "out_of_scope", "1 - highest probability"


class Texts:
    """Rows of a data set with their embeddings, each split drawn once and embedded once."""

    def __init__(self, model: MultiTaskModel, data_root: Path, name: str, rows: int):
        self.splits = {}
        for split, most in (("train", rows), ("validation", rows // 4), ("test", rows // 4)):
            found = pd.read_parquet(data_root / name / f"{split}.parquet")
            found = found.sample(min(most, len(found)), random_state=0)
            embeddings = model.encode(list(found["text"]), normalize=False, show_progress=False)
            self.splits[split] = embeddings, found["label_name"].to_numpy()
        self.classes = sorted(set(self.splits["train"][1]))

    def of(self, split: str, classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and class numbers of the rows of some classes."""
        embeddings, labels = self.splits[split]
        chosen = np.isin(labels, classes)
        return embeddings[chosen], np.array([classes.index(label) for label in labels[chosen]], dtype=int)


def scores_of(task: Texts, classes: list[str], foreign: np.ndarray) -> dict[str, Any]:
    """AUROC, recall and share beyond the 95th percentile, of a task with these classes against foreign embeddings."""
    train, labels = task.of("train", classes)
    held_out, own = task.of("validation", classes)[0], task.of("test", classes)[0]
    settings = TaskConfig(problem_type="single_label_classification", labels=classes)
    scope = Scope(train.shape[1], len(classes))
    tensors = [torch.from_numpy(values) for values in (train, labels, held_out)]
    scope.load_state_dict(fit_scope(settings, *tensors))
    head = LogisticRegression(max_iter=1000).fit(train, labels)
    found: dict[str, Any] = {"rows": len(own), "foreign": len(foreign)}
    for name, score in (
        (SCOPE, lambda rows: scope(torch.from_numpy(rows)).numpy()),
        (PROBABILITY, lambda rows: 1 - head.predict_proba(rows).max(axis=1)),
    ):
        inside, outside = score(own), score(foreign)
        is_foreign = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
        threshold = np.quantile(inside, 1 - FALSE_ALARMS)
        found[name] = {
            "auroc": float(roc_auc_score(is_foreign, np.r_[inside, outside])),
            "recall": float((outside > threshold).mean()),
        }
        if name == SCOPE:
            found["beyond_95"] = float((inside > 95).mean())
    return found


def measure(model: MultiTaskModel, data_root: Path, rows: int) -> dict[str, dict[str, Any]]:
    """By protocol and foreign rows, what `scores_of` gives."""
    news, tweets, questions, emoji = (Texts(model, data_root, name, rows) for name in (NEWS, TWEETS, QUESTIONS, EMOJI))
    found = {
        f"far: {name}": scores_of(news, news.classes, foreign.splits["test"][0])
        for name, foreign in (("tweets", tweets), ("questions", questions))
    }
    for title, task, left_out in (
        ("question", questions, questions.classes),
        ("emoji", emoji, emoji.classes[:EMOJI_LEFT_OUT]),
    ):
        for one in left_out:
            rest = [name for name in task.classes if name != one]
            found[f"near: {title} {one}"] = scores_of(task, rest, task.of("test", [one])[0])
    return found


def time_predict(backbone: str, sentences: list[str], rounds: int) -> float:
    """The median of how many times as long `predict` of four tasks takes with a scope beside each head."""
    settings = {"problem_type": "single_label_classification", "labels": ["a", "b", "c"]}
    tasks = {f"task{number}": settings for number in range(4)}
    plain, scoped = (MultiTaskModel.from_backbone(backbone, tasks) for _ in range(2))
    embeddings = torch.from_numpy(plain.encode(sentences, normalize=False, show_progress=False))
    for name in tasks:
        scoped._set_scope(name, fit_scope(scoped.config.tasks[name], embeddings, torch.arange(len(sentences)) % 3))
    contenders = {
        name: partial(model.predict, sentences, show_progress=False)
        for name, model in (("without", plain), ("with", scoped))
    }
    times = measuring.time_in_turns(contenders, rounds)
    return measuring.ratio(times["with"], times["without"])


def cells_of(found: list[dict[str, Any]]) -> list[str]:
    """Means of AUROC and recall, each of both scores."""
    return [f"{np.mean([each[score][key] for each in found]):.3f}" for key in KEYS for score in (SCOPE, PROBABILITY)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of data sets as parquet files")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2", help="Hub id or folder")
    parser.add_argument(
        "--rows", type=int, default=4000, help="training rows of each set; a quarter validates, and tests"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of predict; 0 leaves them out")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    model = MultiTaskModel.from_backbone(options.backbone)
    found = measure(model, options.data_root, options.rows)
    rows = [
        [name, each["rows"], each["foreign"], *cells_of([each]), f"{each['beyond_95']:.3f}"]
        for name, each in found.items()
    ]
    for protocol in ("far", "near"):
        own = [each for name, each in found.items() if name.startswith(protocol)]
        rows.append([f"{protocol}: mean", "", "", *cells_of(own), f"{np.mean([e['beyond_95'] for e in own]):.3f}"])
    header = [
        "foreign rows",
        "own rows",
        "foreign",
        "AUROC",
        "of probability",
        "recall",
        "of probability",
        "beyond 95",
    ]
    measuring.say(tabulate(rows, header, disable_numparse=True))
    ratio = None
    if options.rounds:
        texts = pd.read_parquet(options.data_root / TWEETS / "test.parquet")["text"][:1000]
        ratio = time_predict(options.backbone, list(texts), options.rounds)
        measuring.say(f"predict of 4 tasks with scopes takes {ratio:.3f} times as long as without")
    if options.json:
        content = {"backbone": options.backbone, "rows": options.rows, "found": found, "predict_ratio": ratio}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
