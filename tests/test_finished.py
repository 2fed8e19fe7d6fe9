"""Finished models scored without training, and compared: the figures of the run, other rows, intervals, refusals."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import constants

from helpers.hub_server import HubServer
from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands.compare import main as compare
from multitask_sentence.commands.evaluate import main as evaluate
from multitask_sentence.commands.report import main as report
from multitask_sentence.data.metrics import compute_metric
from multitask_sentence.data.metrics.bootstrap import score_interval
from multitask_sentence.data.rows.row_hashes import RowHashes, write_row_hashes
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.data.sources.task_source import TaskSource
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.train import run
from multitask_sentence.training.finished.comparing import compare_models
from multitask_sentence.training.finished.data import _without_train
from multitask_sentence.training.finished.measuring import choose_splits
from multitask_sentence.training.report.publish import push_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A folder with job.yaml, its data, and `result`, trained. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder)
    job = make_recipe(folder, tiny_backbone)
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    del content["tasks"]["similarity"]["dataset"]["data_files"]["validation"]
    content["tasks"]["similarity"]["validation_split"] = 0.3  # rows that only the run's hashes find again
    change(job, tasks=content["tasks"])
    run([str(job)])
    return folder


@pytest.fixture(scope="module")
def other(trained: Path) -> Path:
    """The same model after its heads were drawn anew, without the run's predictions. Read only."""
    folder = trained / "other"
    model = MultiTaskModel.from_pretrained(trained / "result")
    torch.manual_seed(3)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def evaluation_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def words_of(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().out.split())


def refused(capsys: pytest.CaptureFixture, command: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        command([str(argument) for argument in arguments])
    return str(exited.value.code) + capsys.readouterr().err


# ---- evaluate ----


def test_evaluation_on_the_recipe_gives_the_scores_of_the_run(trained: Path, tmp_path: Path, capsys) -> None:
    change(shutil.copy(trained / "job.yaml", trained / "seed.yaml"), training={"seed": 7})  # the hashes know better
    evaluate([str(trained / "result"), str(trained / "seed.yaml"), "--output", str(tmp_path / "scored")])
    found, results = evaluation_of(tmp_path / "scored"), json.loads((trained / "result/results.json").read_text())
    assert results["scores"].keys() == found["scores"].keys() == {"validation", "test"}
    for split, scores in results["scores"].items():
        assert scores.keys() == found["scores"][split].keys()
        for task, by_metric in scores.items():
            assert found["scores"][split][task] == pytest.approx(by_metric, abs=1e-5), task
    assert found["confusion"] == results["confusion"]
    printed = words_of(capsys)
    assert re.search(r"similarity cosine_spearman \S+ \[", printed)
    written = tmp_path / "scored" / "predictions" / "mood.parquet"
    assert pq.read_table(written).drop_columns("probabilities") == pq.read_table(
        trained / "result/predictions/mood.parquet"
    ).drop_columns("probabilities")


def test_training_files_of_a_recipe_are_not_needed(trained: Path, tmp_path: Path) -> None:
    for path in trained.glob("*.csv"):
        shutil.copy(path, tmp_path)
    (tmp_path / "texts_train.csv").unlink()
    job = shutil.copy(trained / "job.yaml", tmp_path)
    evaluate([str(trained / "result"), job, "--tasks", "mood", "--splits", "test", "--output", str(tmp_path / "out")])
    assert list(evaluation_of(tmp_path / "out")["scores"]) == ["test"]


def test_data_without_a_split_to_measure_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"neither a validation nor a test split, but train\..* with --splits\."):
        choose_splits([LabelledSet(["topic"], {"train": None})])


def test_training_files_are_left_out_beside_empty_splits() -> None:
    dataset = {"path": "csv", "data_files": {"train": "train.csv", "test": "test.csv"}, "splits": None}
    source = TaskSource("mood", "regression", dataset, {"sentence": "text", "label": "mood"})
    assert _without_train(source).dataset["data_files"] == {"test": "test.csv"}


def test_file_is_scored_by_its_own_columns(trained: Path, tmp_path: Path, capsys) -> None:
    rows = ["id,words,feeling,kind", "1,the cat sat good today,positive,animal", "2,the bank ran bad,negative,money"]
    (tmp_path / "new.csv").write_text("\n".join(rows), encoding="utf-8")
    arguments = ["--text", "words", "--label", "mood=feeling", "tags=kind", "--output", str(tmp_path / "out")]
    evaluate([str(trained / "result"), str(tmp_path / "new.csv"), *arguments])
    model = MultiTaskModel.from_pretrained(trained / "result")
    answers = model.predict(["the cat sat good today", "the bank ran bad"])
    accuracy = np.mean([found == right for found, right in zip(answers["mood"]["labels"], ["positive", "negative"])])  # noqa: B905
    found = evaluation_of(tmp_path / "out")
    assert found["scores"]["test"]["mood"]["accuracy"] == accuracy
    assert found["rows"] == {"test": {"mood": 2, "tags": 2}}
    assert "mood" in words_of(capsys)


def test_pairs_of_a_file_and_a_column_called_like_the_task(trained: Path, tmp_path: Path) -> None:
    lines = (trained / "pairs_test.csv").read_text(encoding="utf-8").replace("a,b,score", "a,b,label", 1)
    (tmp_path / "new.csv").write_text(lines, encoding="utf-8")
    arguments = ["--text", "a", "b", "--tasks", "similarity", "--output", str(tmp_path / "out")]
    evaluate([str(trained / "result"), str(tmp_path / "new.csv"), *arguments])
    results = json.loads((trained / "result/results.json").read_text())
    expected = results["scores"]["test"]["similarity"]["cosine_spearman"]
    assert evaluation_of(tmp_path / "out")["scores"]["test"]["similarity"]["cosine_spearman"] == pytest.approx(
        expected
    )


def test_rows_that_the_model_was_trained_on_are_counted(trained: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(trained / "texts_train.csv", tmp_path / "new.csv")
    evaluate([str(trained / "result"), str(tmp_path / "new.csv"), "--label", "mood=mood"])
    assert "test rows were training rows of" in words_of(capsys)


def test_a_revision_gives_rows_and_weights_of_one_commit(
    trained: Path, tmp_path: Path, nearby: HubServer, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(trained / "result", tmp_path / "result")
    push_folder(folder, "team/mine")
    commit = nearby.repositories["team/mine"].branches["main"][-1].oid
    write_row_hashes(folder, RowHashes("another run", {}))
    push_folder(folder, "team/mine")
    data = [str(shutil.copy(trained / "texts_train.csv", tmp_path / "new.csv")), "--label", "mood=mood"]
    pinned = ["--revision", commit, "--require_pinned"]
    evaluate(["team/mine", *data, *pinned])
    assert "test rows were training rows of" in words_of(capsys)
    page = tmp_path / "page.html"
    report(["team/mine", "--data", *data, *pinned, "--output", str(page), "--most_rows", "0"])
    trained_on = re.search(r"It was trained on (\d+) of (\d+) rows", page.read_text(encoding="utf-8"))
    assert trained_on and trained_on[1] == trained_on[2] != "0"
    assert "<title>mine" in page.read_text(encoding="utf-8")


def test_score_interval_holds_the_score_and_is_that_of_drawn_rows() -> None:
    generator = np.random.default_rng(3)
    references = generator.integers(0, 2, 10_000)
    predictions = np.where(generator.random(10_000) < 0.8, references, 1 - references)
    low, high = score_interval("accuracy", predictions, references)
    accuracy = compute_metric("accuracy", predictions, references)["accuracy"]
    deviation = (accuracy * (1 - accuracy) / 10_000) ** 0.5
    assert (low, high) == pytest.approx((accuracy - 1.96 * deviation, accuracy + 1.96 * deviation), abs=0.001)


def test_wrong_data_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    result, rows = trained / "result", trained / "texts_test.csv"
    assert "no task 'mod'. Did you mean 'mood'?" in refused(capsys, evaluate, result, rows, "--label", "mod=mood")
    assert "should be like TASK=COLUMN" in refused(capsys, evaluate, result, rows, "--label", "mood")
    assert "needs a column 'word', which is missing" in refused(
        capsys, evaluate, result, rows, "--text", "word", "--label", "mood=mood"
    )
    (tmp_path / "unlabelled.csv").write_text("text,mood\nthe cat,\na dog,\n", encoding="utf-8")
    message = refused(capsys, evaluate, result, tmp_path / "unlabelled.csv", "--label", "mood=mood")
    assert "no labelled row" in message
    assert "end with md, but should all end with one of" in refused(capsys, evaluate, result, tmp_path / "a.md")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    output = ["--output", tmp_path / "out"]
    assert "exists. Name another folder" in refused(capsys, evaluate, result, rows, *output)
    assert "which no evaluation has written" in refused(capsys, evaluate, result, rows, *output, "--overwrite")
    job = yaml.safe_load((trained / "job.yaml").read_text(encoding="utf-8"))
    job["tasks"] = {"mood": {**job["tasks"]["similarity"]}}
    (trained / "kind.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    message = refused(capsys, evaluate, result, trained / "kind.yaml")
    assert "tasks.mood is similarity of pairs, but the model's task of that name is single_label_classif" in message


# ---- compare ----


def test_comparison_of_a_run_with_itself_differs_by_nothing(trained: Path, tmp_path: Path, capsys) -> None:
    twin = shutil.copytree(trained / "result", tmp_path / "twin")
    compare([str(trained / "result"), str(twin), "--output", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    results = json.loads((trained / "result/results.json").read_text())["scores"]
    assert found.keys() == {"mood", "tags", "similarity", "search"}
    for task, compared in found.items():
        assert compared["differences"]["twin"] == {"difference": 0.0, "interval": [0.0, 0.0]}, task
        assert compared["split"] == ("validation" if task == "search" else "test")
        score = results[compared["split"]][task][compared["metric"]]
        assert compared["scores"]["result"] == pytest.approx(score, abs=1e-6), task
    assert "(+0.0 [0.0, 0.0])" in words_of(capsys)


def test_models_are_compared_on_the_rows_of_a_recipe(trained: Path, other: Path, tmp_path: Path) -> None:
    data = ["--data", str(trained / "job.yaml"), "--splits", "validation", "test"]
    compare([str(trained / "result"), str(other), *data, "--output", str(tmp_path / "out")])
    evaluate([str(other), str(trained / "job.yaml"), "--output", str(tmp_path / "scored"), "--tasks", "mood"])
    mood = json.loads((tmp_path / "out/comparison.json").read_text())["mood"]
    scores = mood["scores"]
    assert scores["other"] == evaluation_of(tmp_path / "scored")["scores"]["test"]["mood"]["macro_f1"]
    assert mood["differences"]["other"]["difference"] == scores["other"] - scores["result"] != 0
    low, high = mood["differences"]["other"]["interval"]
    assert low <= mood["differences"]["other"]["difference"] <= high and low < high


def test_models_that_list_their_labels_in_another_order_are_compared() -> None:
    def answers(labels: list[str]) -> tuple[dict[str, Any], dict[str, pa.Table]]:
        cells = [[label for label in labels if label in row] for row in ("ab", "b", "a", "")]
        rows = {"split": ["test"] * 4, "text": ["i", "j", "k", "l"], "label": cells, "prediction": cells}
        task = complete_task("tags", {"problem_type": "multi_label_classification", "labels": labels})
        return {"tags": task}, {"tags": pa.table(rows)}

    tasks, tables = zip(answers(["a", "b"]), answers(["b", "a"]), strict=True)
    found = compare_models(["one", "other"], tasks, tables)["tags"]
    assert found["scores"] == {"one": 1.0, "other": 1.0} and found["differences"]["other"]["difference"] == 0


def test_comparison_on_other_rows_or_without_predictions_is_refused(
    trained: Path, other: Path, tmp_path: Path, capsys
) -> None:
    result = trained / "result"
    assert "other holds no predictions/" in refused(capsys, compare, result, other)
    twin = shutil.copytree(result, tmp_path / "twin")
    table = pq.read_table(twin / "predictions/mood.parquet")
    pq.write_table(table.slice(0, len(table) - 1), twin / "predictions/mood.parquet")
    assert "result and twin were measured on other rows" in refused(capsys, compare, result, twin)
    compare([str(result), str(twin), "--tasks", "tags"])
    assert "tags" in words_of(capsys)
    assert "two different models" in refused(capsys, compare, result, result)
