"""TweetEval by its official rules: one model's answers to all seven tasks, beside the published ones.

    python train.py recipes/tweeteval.yaml --data_root FOLDER
    python benchmarks/tweeteval.py runs/tweeteval --data_root FOLDER --predictions runs/tweeteval/leaderboard
    python benchmarks/tweeteval.py RUN_OF_SEED_1 RUN_OF_SEED_2 --data_root FOLDER --json docs/data/tweeteval.json

The model's tasks have the names of recipes/tweeteval.yaml. The rules (Barbieri et al. 2020, arXiv 2010.12421, and
github.com/cardiffnlp/tweeteval) are macro recall for sentiment; macro F1 for emoji, emotion, hate and offensive; F1 of
the class irony; and for stance the mean F1 of against and favor over the rows of all five targets together. ALL is the
plain mean of the seven. `--predictions` writes the answers in the leaderboard's format: `<task>.txt` and
`stance/<target>.txt`, one class number a line.

Choose models by `--split validation`; the test split is there to be read once.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, recall_score
from tabulate import tabulate
from transformers import AutoModel

from multitask_sentence.data.text.sameness import text_key

TASKS = ("emoji", "emotion", "hate", "irony", "offensive", "sentiment", "stance")
TARGETS = ("abortion", "atheism", "climate", "feminist", "hillary")
ALL = "ALL"
# As the leaderboard has them, in the order of TASKS, then ALL. Each row is one fine-tuned model a task and one a
# stance target, 11 in all. ALL of RoBERTa-base is as published, although its seven figures have the mean 61.7.
PUBLISHED = {
    "BERTweet (135 M)": (33.4, 79.3, 56.4, 82.1, 79.5, 73.4, 71.2, 67.9),
    "TimeLMs-2021 (125 M)": (34.0, 80.2, 55.1, 64.5, 82.2, 73.7, 72.9, 66.2),
    "RoBERTa retrained on tweets (125 M)": (31.4, 78.5, 52.3, 61.7, 80.5, 72.8, 69.3, 65.2),
    "RoBERTa-base (125 M)": (30.9, 76.1, 46.6, 59.7, 79.5, 71.3, 68.0, 61.3),
    "fastText": (25.8, 65.2, 50.6, 63.1, 73.4, 62.9, 65.4, 58.1),
    "LSTM": (24.7, 66.0, 52.6, 62.8, 71.7, 58.3, 59.4, 56.5),
    "SVM": (29.3, 64.7, 36.7, 61.7, 52.3, 62.9, 67.3, 53.5),
}


def official_score(task: str, labels: Sequence[int], predictions: Sequence[int]) -> float:
    """The task's official figure in percent, from class numbers; those of stance are 0 none, 1 against, 2 favor."""
    if task == "sentiment":
        return 100 * recall_score(labels, predictions, average="macro")
    if task == "irony":
        return 100 * f1_score(labels, predictions, pos_label=1)
    if task == "stance":
        return 100 * f1_score(labels, predictions, labels=[1, 2], average="macro")
    return 100 * f1_score(labels, predictions, average="macro")


def read_split(data_root: Path, task: str, split: str) -> pd.DataFrame:
    """Rows of a split: `text`, `label` (class number), `label_name`, and `target` for stance."""
    return pd.read_parquet(data_root / f"tweeteval_{task}" / f"{split}.parquet")


def predict_rows(model: AutoModel, task: str, rows: pd.DataFrame) -> np.ndarray:
    """The model's class numbers for the rows; a row of stance is answered by the head of its target."""
    numbers = dict(zip(rows["label_name"], rows["label"], strict=True))
    heads = [task] * len(rows) if task != "stance" else [f"stance_{target}" for target in rows["target"]]
    missing = sorted(set(heads) - model.config.tasks.keys())
    if missing:
        raise ValueError(f"The model has no task {', '.join(missing)}. Train it with recipes/tweeteval.yaml.")
    predictions = np.empty(len(rows), dtype=np.int64)
    for head in dict.fromkeys(heads):
        places = np.flatnonzero(np.array(heads) == head)
        answers = model.predict(rows["text"].iloc[places].tolist(), tasks=head)[head]["labels"]
        predictions[places] = [numbers[answer] for answer in answers]
    return predictions


def in_train(data_root: Path, task: str, rows: pd.DataFrame) -> np.ndarray:
    """Whether each row's text stands in the training split of its own task, by the rule that training uses."""
    known = set(map(text_key, read_split(data_root, task, "train")["text"]))
    return np.array([text_key(text) in known for text in rows["text"]])


def write_predictions(folder: Path, task: str, rows: pd.DataFrame, predictions: np.ndarray) -> None:
    """In the leaderboard's own files."""
    files = {folder / f"{task}.txt": predictions}
    if task == "stance":
        files = {folder / task / f"{target}.txt": predictions[rows["target"] == target] for target in TARGETS}
    for file, numbers in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{number}\n" for number in numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="trained folders or Hub ids; several are runs with other seeds")
    parser.add_argument("--data_root", type=Path, required=True, help="holds tweeteval_sentiment/ and so on")
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--predictions", type=Path, help="write the first model's answers here, for the leaderboard")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    splits = {task: read_split(options.data_root, task, options.split) for task in TASKS}
    known = {task: in_train(options.data_root, task, rows) for task, rows in splits.items()}
    figures, unseen = [], []
    for place, source in enumerate(options.models):
        model = AutoModel.from_pretrained(source, trust_remote_code=True, dtype="float32")
        scores, without = {}, {}
        for task, rows in splits.items():
            predictions, labels = predict_rows(model, task, rows), rows["label"].to_numpy()
            scores[task] = official_score(task, labels, predictions)
            without[task] = official_score(task, labels[~known[task]], predictions[~known[task]])
            if options.predictions and place == 0:
                write_predictions(options.predictions, task, rows, predictions)
        figures.append({**scores, ALL: mean(scores.values())})
        unseen.append({**without, ALL: mean(without.values())})

    columns = [*TASKS, ALL]
    table = [["this model", *(f"{mean(run[name] for run in figures):.1f}" for name in columns)]]
    if len(figures) > 1:
        spans = [[run[name] for run in figures] for name in columns]
        table.append(["  its range", *(f"{min(span):.1f}-{max(span):.1f}" for span in spans)])
    table.append(["  rows not in train", *(f"{mean(run[name] for run in unseen):.1f}" for name in columns)])
    if options.split == "test":
        table += [[name, *map("{:.1f}".format, scores)] for name, scores in PUBLISHED.items()]
    print(f"TweetEval, {options.split} split, {len(figures)} run{'s' * (len(figures) > 1)}\n")  # noqa: T201
    print(tabulate(table, [options.split, *columns], disable_numparse=True))  # noqa: T201
    counts = ", ".join(f"{task} {found.sum()} of {len(found)}" for task, found in known.items() if found.any())
    print(f"\nRows of {options.split} whose text stands in the training split: {counts or 'none'}")  # noqa: T201
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        measured = {"split": options.split, "runs": figures, "rows_not_in_train": unseen}
        options.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
