"""A small job for train.py: two tasks on one partly labelled set, and two on sets of pairs."""

from pathlib import Path
from typing import Any

import yaml

TASKS = ("mood", "tags", "similarity", "search")
KINDS = {"cat": "animal", "dog": "animal", "bird": "animal", "bank": "money", "market": "money"}
MOODS = {"good": "positive", "fine": "positive", "bad": "negative"}


def write_rows(folder: Path) -> None:
    for split, verb in (("train", "ran"), ("validation", "sang"), ("test", "sat")):
        texts, pairs, queries = ["text,mood,tags"], ["a,b,score"], ["query,answer"]
        for place, (subject, kind) in enumerate(KINDS.items()):
            for word, mood in MOODS.items():
                labels = [mood, kind]
                if len(texts) % 4 == 0:
                    labels[0] = ""  # every fourth row has tags only
                texts.append(f"the {subject} {verb} {word} today,{','.join(labels)}")
            pairs.append(f"a {subject} {verb} in the park,the {subject} {verb} in a park,{4 + place / 5}")
            pairs.append(f"a {subject} {verb} in the park,it is news of film {place * 'very '}story,{place / 5}")
            queries.append(f"a {subject} {verb},the {subject} {verb} on the mat")
        for name, rows in (("texts", texts), ("pairs", pairs), ("queries", queries)):
            if (name, split) != ("queries", "test"):  # one set without a test split
                (folder / f"{name}_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def make_recipe(folder: Path, backbone: str, tasks: tuple[str, ...] = TASKS) -> Path:
    def files(name: str, *splits: str) -> dict[str, Any]:
        return {"path": "csv", "data_files": {split: f"{name}_{split}.csv" for split in ("train", *splits)}}

    texts = files("texts", "validation", "test")
    known = {
        "mood": {
            "problem_type": "single_label_classification",
            "dataset": texts,
            "columns": {"sentence": "text", "label": "mood"},
            "metrics": ["macro_f1", "accuracy"],
        },
        "tags": {
            "problem_type": "multi_label_classification",
            "dataset": texts,
            "columns": {"sentence": "text", "label": "tags"},
        },
        "similarity": {
            "problem_type": "similarity",
            "dataset": files("pairs", "validation", "test"),
            "columns": {"sentence1": "a", "sentence2": "b", "label": "score"},
        },
        "search": {
            "problem_type": "contrastive",
            "dataset": files("queries", "validation"),
            "columns": {"anchor": "query", "positive": "answer"},
        },
    }
    recipe = {
        "backbone": backbone,
        "max_length": 20,
        "tasks": {task: known[task] for task in tasks},
        "training": {
            "output_dir": str(folder / "result"),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 2,
            "disable_tqdm": True,
            "use_cpu": True,
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def change(job: Path, **blocks: Any) -> Path:
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    job.write_text(yaml.safe_dump({**content, **blocks}, sort_keys=False), encoding="utf-8")
    return job
