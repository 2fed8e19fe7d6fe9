"""benchmarks/tweeteval.py: the official rules, the leaderboard's files, and rows that stand in train."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from multitask_sentence import MultiTaskModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tweeteval() -> ModuleType:
    specification = importlib.util.spec_from_file_location("tweeteval", ROOT / "benchmarks" / "tweeteval.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("task", "predictions", "score"),
    [
        ("sentiment", [0, 1, 0, 1, 2, 2], (1 / 2 + 1 / 2 + 1) / 3),  # recall of each class
        ("emotion", [0, 1, 2, 1, 2, 2], (2 / 3 + 1 / 2 + 4 / 5) / 3),  # F1 of each class
        ("stance", [0, 1, 2, 1, 2, 2], (1 / 2 + 4 / 5) / 2),  # F1 of against and favor only
    ],
)
def test_scores_follow_the_official_rules(
    tweeteval: ModuleType, task: str, predictions: list[int], score: float
) -> None:
    assert tweeteval.official_score(task, [0, 0, 1, 1, 2, 2], predictions) == pytest.approx(100 * score)


def test_irony_is_scored_by_one_class(tweeteval: ModuleType) -> None:
    assert tweeteval.official_score("irony", [0, 0, 0, 1, 1], [0, 0, 1, 1, 0]) == pytest.approx(50)


@pytest.fixture
def data_root(tmp_path: Path, tweeteval: ModuleType) -> Path:
    """Two classes a task (three for stance), few rows, and one test row of hate that stands in train."""
    words = ["the cat sat", "a dog ran", "good film today", "bad news", "the bank", "a fine story"]
    for task in tweeteval.TASKS:
        folder = tmp_path / "data" / f"tweeteval_{task}"
        folder.mkdir(parents=True)
        names = ["none", "against", "favor"] if task == "stance" else ["first", "second"]
        first = "A  DOG ran" if task == "hate" else "the park"
        for split, rows in (("train", words[:2]), ("test", [first, *words[2:]])):
            labels = [place % len(names) for place in range(len(rows))]
            table = {"text": rows, "label": labels, "label_name": [names[label] for label in labels]}
            if task == "stance":
                table["target"] = [tweeteval.TARGETS[place % 5] for place in range(len(rows))]
            pd.DataFrame(table).to_parquet(folder / f"{split}.parquet")
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path, tiny_backbone: str, tweeteval: ModuleType) -> Path:
    torch.manual_seed(0)
    settings = {"problem_type": "single_label_classification", "labels": ["first", "second"]}
    tasks = {task: settings for task in tweeteval.TASKS if task != "stance"}
    tasks |= {f"stance_{target}": {**settings, "labels": ["none", "against", "favor"]} for target in tweeteval.TARGETS}
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_command_scores_a_folder_and_writes_the_files_of_the_leaderboard(
    tweeteval: ModuleType, data_root: Path, folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    arguments = [str(folder), "--data_root", str(data_root), "--json", str(tmp_path / "found.json")]
    monkeypatch.setattr("sys.argv", ["tweeteval.py", *arguments, "--predictions", str(tmp_path / "answers")])
    tweeteval.main()

    written = {str(file.relative_to(tmp_path / "answers")) for file in (tmp_path / "answers").rglob("*.txt")}
    stance = {f"stance/{target}.txt" for target in tweeteval.TARGETS}
    assert written == {f"{task}.txt" for task in tweeteval.TASKS if task != "stance"} | stance

    model = MultiTaskModel.from_pretrained(folder)
    rows = pd.read_parquet(data_root / "tweeteval_irony" / "test.parquet")
    answers = model.predict(rows["text"].tolist(), tasks="irony")["irony"]["labels"]
    numbers = [["first", "second"].index(answer) for answer in answers]
    assert (tmp_path / "answers" / "irony.txt").read_text().split() == [str(number) for number in numbers]

    found = json.loads((tmp_path / "found.json").read_text())
    [run], [unseen] = found["runs"], found["rows_not_in_train"]
    assert run["irony"] == pytest.approx(tweeteval.official_score("irony", rows["label"], numbers))
    assert run["ALL"] == pytest.approx(np.mean([run[task] for task in tweeteval.TASKS]))
    assert unseen["irony"] == run["irony"]
    labels = pd.read_parquet(data_root / "tweeteval_hate" / "test.parquet")["label"]
    numbers = [int(number) for number in (tmp_path / "answers" / "hate.txt").read_text().split()]
    assert unseen["hate"] == pytest.approx(tweeteval.official_score("hate", labels[1:], numbers[1:])) != run["hate"]
    printed = capsys.readouterr().out
    assert "hate 1 of 5" in printed and "irony 1" not in printed  # found in spite of case and white space
    assert "67.9" in printed  # the published ones stand beside ours


def test_validation_split_is_not_compared_with_published_test_scores(
    tweeteval: ModuleType, data_root: Path, folder: Path, monkeypatch, capsys
) -> None:
    for task in tweeteval.TASKS:
        own = data_root / f"tweeteval_{task}"
        (own / "test.parquet").rename(own / "validation.parquet")
    arguments = [str(folder), "--data_root", str(data_root), "--split", "validation"]
    monkeypatch.setattr("sys.argv", ["tweeteval.py", *arguments])
    tweeteval.main()
    assert "BERTweet" not in capsys.readouterr().out


def test_recipe_has_the_tasks_that_are_scored(tweeteval: ModuleType) -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "tweeteval.yaml").read_text(encoding="utf-8"))
    tasks = {task for task in tweeteval.TASKS if task != "stance"} | {f"stance_{name}" for name in tweeteval.TARGETS}
    assert recipe["tasks"].keys() == tasks
