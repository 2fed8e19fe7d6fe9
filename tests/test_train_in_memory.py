"""A recipe as a dictionary with tables as data: the run of the same recipe's file, and silence on request."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from accelerate import Accelerator
from datasets import Dataset

from helpers.small_job import make_recipe, write_rows
from multitask_sentence import train
from multitask_sentence.train import run
from multitask_sentence.training.finished.data import recipe_data
from multitask_sentence.training.recipe.from_memory import write_recipe


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str) -> Path:
    write_rows(tmp_path)
    path = make_recipe(tmp_path, tiny_backbone, ("mood", "tags", "similarity"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["training"]["disable_tqdm"]
    content["training"]["num_train_epochs"] = 1
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def in_memory(job: Path, output_dir: Path) -> dict[str, Any]:
    """The recipe as a dictionary: two tasks share their DataFrames, and one has Datasets."""
    recipe = yaml.safe_load(job.read_text(encoding="utf-8"))
    recipe["training"]["output_dir"] = str(output_dir)
    texts, pairs = (
        {split: pd.read_csv(job.parent / f"{name}_{split}.csv") for split in ("train", "validation", "test")}
        for name in ("texts", "pairs")
    )
    recipe["tasks"]["mood"]["dataset"] = recipe["tasks"]["tags"]["dataset"] = texts
    recipe["tasks"]["similarity"]["dataset"] = {
        split: Dataset.from_pandas(rows, preserve_index=False) for split, rows in pairs.items()
    }
    return recipe


def test_dictionary_with_tables_gives_the_run_of_the_file(job: Path, tmp_path: Path, capfd) -> None:
    run([str(job)])
    (tmp_path / "rows").mkdir()
    capfd.readouterr()
    trainer, results = train(in_memory(job, tmp_path / "memory"), quiet=True)
    printed = capfd.readouterr()
    assert printed.out == "" and "%|" not in printed.err
    expected = json.loads((tmp_path / "result/results.json").read_text(encoding="utf-8"))
    for split, scores in expected["scores"].items():
        for task, found in scores.items():
            assert results["scores"][split][task] == pytest.approx(found, nan_ok=True), task
    assert results["rows"] == expected["rows"] and results["rows_per_epoch"] == expected["rows_per_epoch"]
    assert trainer.model.predict("the cat ran")["mood"]["labels"] in ("positive", "negative")
    saved = yaml.safe_load((tmp_path / "memory/recipe.yaml").read_text(encoding="utf-8"))
    assert saved["tasks"]["tags"]["dataset"]["data_files"]["train"] == "mood_train.parquet", "no machine path"
    for path in tmp_path.glob("*_*.csv"):  # the tables, under the names that the recipe gives them
        name = path.stem.replace("texts", "mood").replace("pairs", "similarity")
        pd.read_csv(path).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    tasks = trainer.model.config.tasks
    found = recipe_data(str(tmp_path / "memory"), tasks, tmp_path / "memory/recipe.yaml", tmp_path / "rows")
    assert len(found.loaded.sets[0].splits["test"]) == len(pd.read_csv(tmp_path / "texts_test.csv"))


def test_processes_part_only_when_the_results_are_written(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that write nothing read results.json as soon as they are let go."""
    calls = []

    def watch(name: str) -> None:
        plain = getattr(Accelerator, name)

        def watched(self) -> None:
            calls.append((name, (tmp_path / "result/results.json").is_file()))
            plain(self)

        monkeypatch.setattr(Accelerator, name, watched)

    watch("wait_for_everyone")
    watch("end_training")
    run([str(job)])
    assert calls[-2:] == [("wait_for_everyone", True), ("end_training", True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"output_dir": Path("runs/x")}}, r"training\.output_dir is 'runs/x', a PosixPath, which no r"),
        ({"tasks": {"mood": {"labels": [np.str_("a")]}}}, r"tasks\.mood\.labels\.0 is 'a', a str_, which no recipe's"),
        ({"tasks": {np.str_("mood"): {}}}, r"a key is 'mood', a str_, which no recipe's file holds\. Take"),
    ],
    ids=["path", "numpy", "key"],
)
def test_value_that_no_file_holds_is_refused_by_its_place(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        write_recipe(change, tmp_path)


def test_what_is_no_table_is_refused(job: Path, tmp_path: Path) -> None:
    recipe = in_memory(job, tmp_path / "memory")
    recipe["tasks"]["mood"]["dataset"] = {"train": recipe["tasks"]["mood"]["dataset"]["train"], "validation": [1, 2]}
    message = r"tasks\.mood\.dataset\['validation'\] should be a DataFrame or a datasets\.Dataset\. Found list\."
    with pytest.raises(TypeError, match=message):
        train(recipe)
    with pytest.raises(TypeError, match=r"A recipe should be a dictionary\. Found str\."):
        train("recipe.yaml")
