"""The rows to label next, and what the commands on finished models refuse."""

import argparse
import base64
import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from multitask_sentence.commands import compare, evaluate, report
from multitask_sentence.commands._finished import short_name
from multitask_sentence.reporting.next_rows import tasks_to_answer, write_csv
from multitask_sentence.reporting.pictures import training_picture
from multitask_sentence.tasks_multitask import complete_task

TASK = {"problem_type": "single_label_classification", "labels": ["a", "b"]}


def test_table_of_next_rows_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ["one\rline", "two\nlines", 'a "word", 1', "plain"]
    found = pd.DataFrame({"text": texts, "tags": [["a", "it's"], [], ["b"], []], "uncertainty": [0.5, 0.25, 1, 0]})
    write_csv(found, tmp_path / "next.csv")
    with (tmp_path / "next.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts
    assert [json.loads(row["tags"]) for row in rows] == list(found["tags"])
    assert [float(row["uncertainty"]) for row in rows] == list(found["uncertainty"])


@pytest.mark.parametrize("name", ["text", "uncertainty", "disagreement", "mood_confidence"])
def test_task_called_like_a_column_of_the_table_is_refused(name: str) -> None:
    tasks = {task: complete_task(task, TASK) for task in ("mood", name)}
    with pytest.raises(ValueError, match=f"called like task '{name}'. Leave it out with --tasks"):
        tasks_to_answer(tasks, ["message"])


def test_name_of_a_folder_is_its_own_wherever_the_command_is_called(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    assert [short_name(name) for name in (".", "../a", "..", "user/name@0123", "user/name")] == [
        "a",
        "a",
        tmp_path.name,
        "name",
        "name",
    ]


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (report, ["model", "--splits", "test"], "--splits is about the rows of --data"),
        (compare, ["one", "two", "--splits", "test"], "--splits is about the rows of --data"),
        (compare, ["one", "two", "--label", "a=b"], "--label is about the rows of --data"),
        (compare, ["one", "two", "--data", "x.yaml", "--splits", "train"], "compared on validation or test rows"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    command: Any, arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"), [({"text": ["message"]}, "--text is about files"), ({"label": ["a=b"]}, "--label is about")]
)
def test_columns_beside_a_recipe_are_refused(changed: dict[str, Any], said: str) -> None:
    options = argparse.Namespace(**{"text": ["text"], "label": [], "tasks": None, **changed})
    with pytest.raises(ValueError, match=said):
        evaluate.read_data(options, "model", {"mood": None}, [Path("recipe.yaml")])


def test_sum_and_mean_of_all_tasks_are_not_drawn_beside_some() -> None:
    def picture(*names: str) -> str:
        found = training_picture(results, {name: complete_task(name, TASK) for name in names}, {})
        return base64.b64decode(found.split(",")[1]).decode()

    scores = {f"eval_{name}_macro_f1": 0.5 for name in ("a", "b", "c")}
    losses = {f"loss_{name}": 1.0 for name in ("a", "b", "c")}
    history = [{"step": 1, "loss": 3.0, **losses}, {"step": 1, "eval_score": 0.5, **scores}]
    results = {"steps": 1, "history": history, "tasks": dict.fromkeys("abc"), "training": {}}
    assert "mean of these" in picture("a", "b", "c") and "loss (sum)" in picture("a", "b", "c")
    assert "mean of these" not in picture("a", "b") and "loss (sum)" not in picture("a", "b")
