"""Labels in another order than the model's: cells are read by the recipe's list, and mean the same classes."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.tasks_multitask import TaskConfig, complete_task
from multitask_sentence.training.evaluation.scores import metric_options
from multitask_sentence.training.finished.data import FinishedData, recipe_data

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_recipe(folder: Path, rows: dict[str, list[Any]], task: dict[str, Any], **blocks: Any) -> Path:
    """A recipe for `mood` on a Parquet file with these columns beside a text."""
    count = len(next(iter(rows.values())))
    features = task.pop("features", None)
    columns = {"text": [f"text {row}" for row in range(count)], **rows}
    Dataset.from_dict(columns, features).to_parquet(folder / "rows.parquet")
    task = {
        "dataset": {"path": "parquet", "data_files": {"test": "rows.parquet"}},
        "columns": {"sentence": "text", "label": "label"},
        **task,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"mood": task}, **blocks}), encoding="utf-8")
    return path


def read_for(recipe: Path, problem_type: str, labels: list[str]) -> FinishedData:
    """The rows for a model whose task has these labels."""
    tasks = {"mood": TaskConfig(problem_type=problem_type, labels=labels)}
    return recipe_data(str(recipe.parent), tasks, recipe)


def names_of(found: FinishedData, labels: list[str]) -> list[Any]:
    """What the labels of the rows mean to a model with these labels."""
    assert found.loaded.labels["mood"] == labels
    return [
        [name for name, flag in zip(labels, label, strict=True) if flag] if isinstance(label, list) else labels[label]
        for label in found.loaded.sets[0].splits["test"]["label_mood"]
    ]


CASES = {
    "ids": (SINGLE, {"label": [0, 1, 1, 2]}, {}, ["a", "b", "b", "c"]),
    "names": (SINGLE, {"label": ["a", "b", "b", "c"]}, {}, ["a", "b", "b", "c"]),
    "ids of a feature": (
        SINGLE,
        {"label": [0, 1, 1, 2]},
        {"features": Features({"text": Value("string"), "label": ClassLabel(names=["x", "y", "z"])})},
        ["a", "b", "b", "c"],
    ),
    "lists of zeros and ones": (MULTI, {"label": [[1, 0, 0], [0, 1, 1], [0, 0, 0]]}, {}, [["a"], ["b", "c"], []]),
    "columns": (
        MULTI,
        {"is_a": [1, 0, 0], "is_b": [0, 1, 0], "is_c": [0, 1, 0]},
        {"columns": {"sentence": "text", "label": ["is_a", "is_b", "is_c"]}},
        [["a"], ["b", "c"], []],
    ),
}


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["c", "a", "b"], ["d", "c", "b", "a"]])
@pytest.mark.parametrize("case", CASES)
def test_cells_are_read_by_the_recipes_list_and_mean_the_same_to_any_model(
    tmp_path: Path, case: str, labels: list[str]
) -> None:
    kind, rows, task, expected = CASES[case]
    recipe = write_recipe(tmp_path, rows, {"problem_type": kind, "labels": ["a", "b", "c"], **task})
    found = [
        sorted(name) if isinstance(name, list) else name for name in names_of(read_for(recipe, kind, labels), labels)
    ]
    assert found == expected


@pytest.mark.parametrize("labels", [["joy", "fear"], ["fear", "joy"]])
def test_columns_that_are_called_like_the_labels_are_read_by_name(tmp_path: Path, labels: list[str]) -> None:
    rows = {"joy": [1, 0, 1], "fear": [0, 1, 1]}
    columns = {"sentence": "text", "label": ["joy", "fear"]}
    recipe = write_recipe(tmp_path, rows, {"problem_type": MULTI, "columns": columns})
    expected = [["joy"], ["fear"], ["fear", "joy"]]
    assert [sorted(names) for names in names_of(read_for(recipe, MULTI, labels), labels)] == expected
    dataset = {"path": "parquet", "data_files": {"train": "rows.parquet", "validation": "rows.parquet"}}
    source = TaskSource("mood", MULTI, dataset, columns, labels=labels)  # as a run that goes on from a model reads
    train = load_tasks([source], tmp_path, seed=0).sets[0].splits["train"]["label_mood"][:]
    assert [[row[labels.index(name)] for name in ("joy", "fear")] for row in train] == [[1, 0], [0, 1], [1, 1]]


def test_labels_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"label": [0, 1]}, {"problem_type": SINGLE, "labels": ["b", "a"]})
    with pytest.raises(
        ValueError, match=r"job\.yaml: tasks\.mood\.labels holds 'b', which .*has: \['a', 'c'\]\. Corr"
    ):
        read_for(recipe, SINGLE, ["a", "c"])


def test_group_is_scored_by_the_models_order(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {"label": [0, 1, 2]}, {"problem_type": SINGLE, "labels": ["none", "pro", "con"]})
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["tasks"]["cats"] = {**content["tasks"]["mood"], "where": {"text": ["text 1"]}}
    content["groups"] = {"all": {"tasks": ["mood", "cats"], "metrics": ["f1"], "f1_labels": ["pro", "con"]}}
    recipe.write_text(json.dumps(content), encoding="utf-8")
    task = complete_task("mood", {"problem_type": SINGLE, "labels": ["con", "none", "pro"]})
    group = recipe_data(str(tmp_path), {"mood": task, "cats": task}, recipe).groups["all"]
    assert metric_options(group.scoring, "f1") == {"labels": [2, 0]}
