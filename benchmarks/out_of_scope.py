"""Does `out_of_scope` find what a task was not trained on, better than the highest probability does?

    python benchmarks/out_of_scope.py --data_root FOLDER [--rows 4000] [--backbone FOLDER_OR_ID] [--json out.json]

FOLDER holds ag_news, tweeteval_sentiment, trec and tweeteval_emoji, each with train, validation and test.parquet. The
encoder stays as it is; each task's head is a logistic regression on its embeddings. Two protocols:

    far    news topics; foreign are tweets and questions
    near   each class of TREC, and the five first of the emoji, left out of training in turn; foreign are its rows

For both scores, on test rows: AUROC (foreign rows against rows of the task), and recall, the share of foreign rows
that are found at a threshold with 5 % false alarms. Beside it: the share of the task's own test rows beyond the 95th
percentile, which should be 5 %. A second table has the mean AUROC of other measures from the same pass, on validation,
where one would be chosen, and on test. At the end, how much longer `predict` takes where tasks calibrate, abstain and
have a scope, in turns in one process; this alone, on a quiet machine: --rows 0 --rounds 11.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize
from tabulate import tabulate

from multitask_sentence import MultiTaskModel
from multitask_sentence.scope_multitask import Scope
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training.calibration.scope import fit_scope

NEWS, TWEETS, QUESTIONS, EMOJI = "ag_news", "tweeteval_sentiment", "trec", "tweeteval_emoji"
EMOJI_LEFT_OUT = 5
FALSE_ALARMS = 0.05
PROTOCOLS = ("far", "near: question", "near: emoji", "near")
KEYS = ("auroc", "recall")
SPLITS = ("validation", "test")
NEIGHBOUR = 10
SHRINKAGE_ROWS = 200  # of the shared covariance, in that of each class
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


def distances_to(means: np.ndarray, covariance: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distances `(rows, means)`."""
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-6))
    return (((rows @ whitening)[:, None] - (means @ whitening)[None]) ** 2).sum(axis=-1)


def other_measures(
    train: np.ndarray, labels: np.ndarray, held_out: np.ndarray, head: LogisticRegression
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """
    What else tells foreign rows from the same pass, by name; all but the energy on embeddings of length 1.

    Relative Mahalanobis distance: Ren et al. 2021, arXiv 2106.09022. Nearest neighbours: Sun et al. 2022, arXiv
    2204.06507. Energy: Liu et al. 2020, arXiv 2010.03759. The sum takes both scores as multiples of what lies between
    the median and the 95th percentile of validation rows.
    """
    units = normalize(train)
    means = np.stack([units[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    shared = ledoit_wolf(units - means[labels], assume_centered=True)[0]
    centre = units.mean(axis=0, keepdims=True)
    around = ledoit_wolf(units - centre, assume_centered=True)[0]
    own = []
    for label in range(len(means)):
        residuals = units[labels == label] - means[label]
        total = len(residuals) + SHRINKAGE_ROWS
        own.append((residuals.T @ residuals + SHRINKAGE_ROWS * shared) / total)

    def nearest(rows: np.ndarray) -> np.ndarray:
        return distances_to(means, shared, normalize(rows)).min(axis=1)

    def relative(rows: np.ndarray) -> np.ndarray:
        return nearest(rows) - distances_to(centre, around, normalize(rows))[:, 0]

    def per_class(rows: np.ndarray) -> np.ndarray:
        each = [distances_to(means[[label]], own[label], normalize(rows))[:, 0] for label in range(len(means))]
        return np.min(each, axis=0)

    def neighbour(rows: np.ndarray) -> np.ndarray:
        return -np.partition(normalize(rows) @ units.T, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]

    def energy(rows: np.ndarray) -> np.ndarray:
        return -logsumexp(head.decision_function(rows), axis=1)

    def doubt(rows: np.ndarray) -> np.ndarray:
        return 1 - head.predict_proba(rows).max(axis=1)

    def standard(score: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        median, high = np.quantile(score(held_out), [0.5, 0.95])
        return lambda rows: (score(rows) - median) / (high - median)

    far, unsure = standard(lambda rows: np.sqrt(nearest(rows))), standard(doubt)
    return {
        "relative Mahalanobis": relative,
        "covariance of each class": per_class,
        f"neighbour {NEIGHBOUR}": neighbour,
        "energy": energy,
        "distance + probability / 2": lambda rows: far(rows) + unsure(rows) / 2,
        "distance squared + probability / 2": lambda rows: np.maximum(far(rows), 0) ** 2 + unsure(rows) / 2,
    }


def scores_of(task: Texts, classes: list[str], foreign: dict[str, np.ndarray]) -> dict[str, Any]:
    """
    By split, AUROC, recall and share beyond the 95th percentile, of a task with these classes.

    Args:
        task: its rows.
        classes: those that it was trained on.
        foreign: by split, embeddings of rows that are not its own.
    """
    train, labels = task.of("train", classes)
    held_out = task.of("validation", classes)[0]
    settings = TaskConfig(problem_type="single_label_classification", labels=classes)
    scope = Scope(train.shape[1], len(classes))
    tensors = [torch.from_numpy(values) for values in (train, labels, held_out)]
    scope.load_state_dict(fit_scope(settings, *tensors))
    head = LogisticRegression(max_iter=1000).fit(train, labels)
    measures = {
        SCOPE: lambda rows: scope(torch.from_numpy(rows)).numpy(),
        PROBABILITY: lambda rows: 1 - head.predict_proba(rows).max(axis=1),
        **other_measures(train, labels, held_out, head),
    }
    found: dict[str, Any] = {}
    for split, others in foreign.items():
        own = task.of(split, classes)[0]
        found[split] = {"rows": len(own), "foreign": len(others)}
        for name, score in measures.items():
            inside, outside = score(own), score(others)
            is_foreign = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
            found[split][name] = {
                "auroc": float(roc_auc_score(is_foreign, np.r_[inside, outside])),
                "recall": float((outside > np.quantile(inside, 1 - FALSE_ALARMS)).mean()),
            }
        found[split]["beyond_95"] = float((scope(torch.from_numpy(own)) > 95).float().mean())
    return found


def measure(model: MultiTaskModel, data_root: Path, rows: int) -> dict[str, dict[str, Any]]:
    """By protocol and foreign rows, what `scores_of` gives."""
    news, tweets, questions, emoji = (Texts(model, data_root, name, rows) for name in (NEWS, TWEETS, QUESTIONS, EMOJI))
    found = {
        f"far: {name}": scores_of(news, news.classes, {split: foreign.splits[split][0] for split in SPLITS})
        for name, foreign in (("tweets", tweets), ("questions", questions))
    }
    for title, task, left_out in (
        ("question", questions, questions.classes),
        ("emoji", emoji, emoji.classes[:EMOJI_LEFT_OUT]),
    ):
        for one in left_out:
            rest = [name for name in task.classes if name != one]
            foreign = {split: task.of(split, [one])[0] for split in SPLITS}
            found[f"near: {title} {one}"] = scores_of(task, rest, foreign)
    return found


def time_predict(backbone: str, sentences: list[str], rounds: int) -> float:
    """
    The median of how many times as long `predict` of four tasks takes where each has temperatures, abstains, and has a
    scope beside its head.
    """
    settings = {"problem_type": "single_label_classification", "labels": ["a", "b", "c"]}
    tasks = {f"task{number}": settings for number in range(4)}
    plain, scoped = (MultiTaskModel.from_backbone(backbone, tasks) for _ in range(2))
    embeddings = torch.from_numpy(plain.encode(sentences, normalize=False, show_progress=False))
    for name in tasks:
        scoped._set_scope(name, fit_scope(scoped.config.tasks[name], embeddings, torch.arange(len(sentences)) % 3))
        abstain = {"confidence": 0.34, "out_of_scope": 99}
        scoped.config.change_task(name, temperatures=[1.5], abstain=abstain)
    contenders = {
        name: partial(model.predict, sentences, show_progress=False)
        for name, model in (("without", plain), ("with", scoped))
    }
    times = measuring.time_in_turns(contenders, rounds)
    return measuring.ratio(times["with"], times["without"])


def cells_of(found: list[dict[str, Any]]) -> list[str]:
    """Means of AUROC and recall, each of both scores."""
    return [f"{np.mean([each[score][key] for each in found]):.3f}" for key in KEYS for score in (SCOPE, PROBABILITY)]


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print a row for each kind of foreign rows, and one for each measure."""
    on_test = {name: each["test"] for name, each in found.items()}
    rows = [
        [name, each["rows"], each["foreign"], *cells_of([each]), f"{each['beyond_95']:.3f}"]
        for name, each in on_test.items()
    ]
    for protocol in PROTOCOLS:
        own = [each for name, each in on_test.items() if name.startswith(protocol)]
        rows.append([f"{protocol}: mean", "", "", *cells_of(own), f"{np.mean([e['beyond_95'] for e in own]):.3f}"])
    header = ["foreign rows", "own rows", "foreign"]
    header += ["AUROC", "of probability", "recall", "of probability", "beyond 95"]
    measuring.say(tabulate(rows, header, disable_numparse=True))
    rows = []
    for measure_name in [name for name, value in next(iter(on_test.values())).items() if isinstance(value, dict)]:
        means = []
        for protocol in PROTOCOLS:
            own = [each for name, each in found.items() if name.startswith(protocol)]
            means += [np.mean([each[split][measure_name]["auroc"] for each in own]) for split in SPLITS]
        rows.append([measure_name, *map("{:.3f}".format, means)])
    header = [f"{protocol}, {split}" for protocol in PROTOCOLS for split in SPLITS]
    measuring.say("\nmean AUROC\n" + tabulate(rows, ["measure", *header], disable_numparse=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of data sets as parquet files")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2", help="Hub id or folder")
    parser.add_argument(
        "--rows",
        type=int,
        default=4000,
        help="training rows of each set; a quarter validates, and tests; 0 only times",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of predict; 0 leaves them out")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    found = {}
    if options.rows:
        found = measure(MultiTaskModel.from_backbone(options.backbone), options.data_root, options.rows)
        show(found)
    ratio = None
    if options.rounds:
        texts = pd.read_parquet(options.data_root / TWEETS / "test.parquet")["text"][:1000]
        ratio = time_predict(options.backbone, list(texts), options.rounds)
        measuring.say(f"predict of 4 tasks takes {ratio:.3f} times as long with calibration, abstention and scopes")
    if options.json:
        content = {"backbone": options.backbone, "rows": options.rows, "found": found, "predict_ratio": ratio}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
