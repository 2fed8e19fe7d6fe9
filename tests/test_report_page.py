"""The report page of a run: what it shows, hostile text, refusals, and how it is used in a browser."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset

from helpers.every_task import TASKS
from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands.report import main as report
from multitask_sentence.configuration_multitask import MultiTaskConfig
from multitask_sentence.data.rows.row_hashes import RowHashes, read_row_hashes, write_row_hashes
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.reporting.duplicates import find_duplicates
from multitask_sentence.reporting.next_rows import choose_next, spread_out
from multitask_sentence.reporting.run import stored_run
from multitask_sentence.reporting.slices import read_slices
from multitask_sentence.train import run
from multitask_sentence.training.finished.data import files_data
from multitask_sentence.training.report.publish import stays_behind

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WORDS = ("the", "cat", "ran", "good", "news", "bank")
UNLABELED = [f"the {noun} {verb} <b>in</b> the park" for noun in ("cat", "dog", "bird") for verb in ("ran", "sang")]
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A folder with job.yaml, its data and `result`, trained on labels and texts that look like HTML. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder)
    for path in folder.glob("texts_*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for place, row in enumerate(rows):
            row["mood"] = row["mood"].replace("positive", HOSTILE)
            row["text"] += f" {HOSTILE}" * (place % 2) + " and it is news of the market" * (place % 3)
            row["channel"] = ("mail", f"chat {HOSTILE}")[place % 2]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    job = make_recipe(folder, tiny_backbone)
    training = yaml.safe_load(job.read_text(encoding="utf-8"))["training"]
    run([str(change(job, training={**training, "num_train_epochs": 1}))])
    return folder


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    texts = [*UNLABELED, UNLABELED[0], "", "the cat sat good today"]  # the last one stands in the test split
    pd.DataFrame({"message": texts}).to_csv(path.with_name("new.csv"), index=False)
    arguments = ["--recipe", trained / "job.yaml", "--slices", "channel", "--output", path]
    arguments += ["--unlabeled", path.with_name("new.csv"), "--text", "message", "--next", 4]
    report([str(argument) for argument in [trained / "result", *arguments]])
    return path


def words_of(page: Path) -> str:
    return " ".join(Elements(page.read_text(encoding="utf-8")).words.split())


class Elements(HTMLParser):
    """Tags, texts, and what the scripts hold."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.words += data


def errors_of(page: Path) -> dict[str, Any]:
    tasks = json.loads(Elements(page.read_text(encoding="utf-8")).scripts[0])["errors"]
    return {task["task"]: task for task in tasks}


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        report([str(argument) for argument in arguments])
    return str(exited.value.code) + capsys.readouterr().err


def test_page_has_the_scores_of_the_run(trained: Path, page: Path) -> None:
    results = json.loads((trained / "result/results.json").read_text(encoding="utf-8"))
    words = Elements(page.read_text(encoding="utf-8")).words
    for split, task, metric in (("test", "mood", "macro_f1"), ("validation", "search", "mrr")):
        assert f"{results['scores'][split][task][metric]:.4f}" in words
    error = results["calibration"]["mood"]["before"]["expected_calibration_error"]
    assert f"expected calibration error {error:.4f}" in words


def test_errors_are_the_rows_that_the_run_answered_wrongly_the_surest_first(trained: Path, page: Path) -> None:
    results = json.loads((trained / "result/results.json").read_text(encoding="utf-8"))
    mood = errors_of(page)["mood"]
    assert 0 < mood["wrong"] == len(mood["rows"]) < mood["count"]
    right = sum(results["confusion"]["mood"]["right"])
    assert sum(row["split"] == "test" for row in mood["rows"]) == results["rows"]["mood"]["test"] - right
    assert all(row["label"] != row["prediction"] for row in mood["rows"])
    sure = [row["distance"] for row in mood["rows"]]
    assert sure == sorted(sure, reverse=True) and sure[0] > 1 / 3


def test_tasks_without_labels_are_ordered_by_how_far_they_are_off(page: Path) -> None:
    errors = errors_of(page)
    assert [errors[task]["heading"] for task in ("tags", "similarity", "search")] == [
        "confidence",
        "ranks off",
        "before it",
    ]
    assert all(row["distance"] == row["prediction"] - 1 > 0 for row in errors["search"]["rows"])
    assert all(len(row["text"]) == 2 and 0 < row["distance"] <= 100 for row in errors["similarity"]["rows"])


def test_hostile_labels_and_texts_stay_text(page: Path) -> None:
    found = Elements(page.read_text(encoding="utf-8"))
    assert [attributes["src"][:5] for tag, attributes in found.tags if tag == "img"] == ["data:"] * 3
    assert [tag for tag, _ in found.tags].count("script") == 2 == len(found.scripts)
    assert HOSTILE in found.words  # as a label of what is confused
    rows = [row for task in json.loads(found.scripts[0])["errors"] for row in task["rows"]]
    assert any(HOSTILE in text for row in rows for text in row["text"])


def test_page_loads_nothing_from_elsewhere(page: Path) -> None:
    found = Elements(page.read_text(encoding="utf-8"))
    addresses = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", page.read_text(encoding="utf-8"))


def test_slices_are_scored_by_a_column_of_the_data(trained: Path, page: Path) -> None:
    predictions = pd.read_parquet(trained / "result/predictions/tags.parquet")
    data = pd.read_csv(trained / "texts_test.csv")
    both = predictions[predictions["split"] == "test"].merge(data, left_on="text", right_on="text", validate="1:1")
    mail = both[both["channel"] == "mail"]
    wrong = [set(label) != set(found) for label, found in zip(mail["label"], mail["prediction"], strict=True)]
    assert 0 < len(mail) < len(both)
    assert re.search(rf"channel ?mail ?[\d.]+ ?\[[^]]+\] ?{len(mail)} ?{100 * np.mean(wrong):.1f} %", words_of(page))
    assert "9 to 16 words" in words_of(page)


def test_texts_with_several_values_of_a_column_are_told(trained: Path) -> None:
    frame = pd.read_csv(trained / "texts_test.csv")
    twice = pd.concat([frame, frame.assign(channel="post").head(1)])
    twice.to_csv(trained / "twice.csv", index=False)
    model = MultiTaskConfig.from_pretrained(trained / "result")
    run = stored_run(trained / "result", {"tags": model.tasks["tags"]})
    data = files_data(str(trained / "result"), run.tasks, [trained / "twice.csv"], labels={"tags": "tags"})
    found = read_slices(data, ["channel"], run.rows)["tags"]["channel"]
    assert list(found.values()).count("(several)") == 1 and len(found) == len(frame)


def test_page_of_rows_of_one_split_says_what_was_not_looked_for(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    rows = [f"the {word} sat {mood} today" for word in ("cat", "dog") for mood in ("good", "bad", "fine")]
    lines = [f'"{row}\x1b[31m\u202e",negative' for row in rows]
    (tmp_path / "new.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    (tmp_path / "more.csv").write_text("text\nthe cat sat good today\nthe bank\n", encoding="utf-8")
    arguments = ["--data", tmp_path / "new.csv", "--tasks", "mood", "--output", tmp_path / "report.html"]
    report([str(argument) for argument in [trained / "result", *arguments, "--unlabeled", tmp_path / "more.csv"]])
    words = words_of(tmp_path / "report.html")
    assert "Not looked for, as all rows are labelled alike: 6 rows of test." in words
    assert "There are no two splits of one set to compare." in words
    assert "(left out: 1 that have labels already)" in words, "in the run's own test split"
    (text,) = errors_of(tmp_path / "report.html")["mood"]["rows"][0]["text"]
    assert text.endswith(r"today\u001b[31m\u202e")


def test_duplicates_across_splits_are_found_word_for_word_and_nearly(tiny_backbone: str) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"mood": TASKS["mood"], "rating": TASKS["rating"]})

    def split(*rows: tuple[str, int | None]) -> Dataset:
        return Dataset.from_dict(
            {"sentences": [[text] for text, _ in rows], "label_mood": [label for _, label in rows]}
        )

    train = split(("the cat sat on the mat today", 0), ("it is news of the market", 1), ("a very fine film", 2))
    test = split(("The cat  sat on the mat TODAY", 0), ("the cat sat on a mat today", 2), ("the bank", 1))
    sets = [LabelledSet(["mood"], {"train": train, "test": test})]
    (found,) = find_duplicates(model, sets, model.config.tasks, 100)
    assert (found["splits"], found["exact"], found["near"]) == (["train", "test"], 1, 1)
    (row,) = found["rows"]
    assert row["texts"] == [["the cat sat on the mat today"], ["the cat sat on a mat today"]]
    assert row["labels"] == [["negative"], ["positive"]]
    assert row["shared"] == pytest.approx(6 / 7) and row["cosine"] > 0.8
    (found,) = find_duplicates(model, sets, model.config.tasks, 2)
    assert found["compared"] == [2, 2] and found["counts"] == [3, 3] and found["exact"] == 1


def test_next_rows_are_new_ones_of_the_file(trained: Path, page: Path) -> None:
    found = pd.read_csv(page.with_name("report_next.csv"))
    assert len(set(found["text"])) == 4 and set(found["text"]) <= set(UNLABELED)
    assert {"mood", "mood_confidence", "tags", "uncertainty", "disagreement"} <= set(found.columns)
    answers = MultiTaskModel.from_pretrained(trained / "result").predict(list(found["text"]), head="mood")["mood"]
    assert answers["labels"] == list(found["mood"])
    words = words_of(page)
    assert (
        "4 rows of new.csv, from 6 of 9 rows (left out: 1 without text, 1 repeated, 1 that have labels already)"
        in words
    )
    assert all(" ".join(text.split()) in words for text in found["text"])


def test_next_rows_are_unsure_disputed_and_spread_out(tiny_backbone: str) -> None:
    torch.manual_seed(2)
    rows = [(f"{first} {second} {third}",) for first in WORDS for second in WORDS for third in WORDS]
    texts = [text for (text,) in rows]
    model, other = (MultiTaskModel.from_backbone(tiny_backbone, tasks={"mood": TASKS["mood"]}) for _ in range(2))
    for one in (model, other):  # heads whose answers differ from text to text
        weight, bias = one.heads.parameters()
        torch.nn.init.normal_(weight, std=3)
        bias.data = -weight.data @ torch.from_numpy(one.encode(texts, normalize=False).mean(axis=0))
    sure, its = (one.predict(texts)["mood"] for one in (model, other))
    disputed = np.array(sure["labels"]) != np.array(its["labels"])
    found = choose_next(model, [other], model.config.tasks, rows, 3)
    worth = 1.5 * (1 - sure["probabilities"].max(axis=1)) + disputed
    candidates = [texts[place] for place in np.argsort(-worth)[:30]]
    assert 0 < sum(disputed) < len(rows) and set(found["text"]) <= set(candidates)
    assert found["text"][0] == candidates[0] != texts[sure["probabilities"].max(axis=1).argmin()]
    assert found["disagreement"][0] == disputed[texts.index(candidates[0])]
    vectors = model.encode(candidates, normalize=True)
    assert found["text"][1] == candidates[int((vectors @ vectors[0]).argmin())]


def test_rows_that_spread_out_are_each_time_the_furthest() -> None:
    angles = np.deg2rad([0, 1, 2, 90, 45, 44])
    assert spread_out(np.stack([np.cos(angles), np.sin(angles)], axis=1), 3) == [0, 3, 4]


def test_unlabelled_files_that_give_no_row_are_refused(trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.csv").write_text("message\n", encoding="utf-8")
    (tmp_path / "notes.doc").write_text("x", encoding="utf-8")
    arguments = [trained / "result", "--output", tmp_path / "report.html", "--unlabeled"]
    (tmp_path / "known.csv").write_text("message\nthe cat sat good today\n", encoding="utf-8")
    assert "it holds no rows. Add rows, or give" in refused(
        capsys, *arguments, tmp_path / "empty.csv", "--text", "message"
    )
    assert "a column 'text', which is missing. Columns: ['message']. Correct --text." in refused(
        capsys, *arguments, tmp_path / "known.csv"
    )
    said = refused(capsys, *arguments, tmp_path / "known.csv", "--text", "message")
    assert "none of the 1 rows" in said and "(1 that have labels already)" in said
    assert "should end with one of" in refused(capsys, *arguments, tmp_path / "notes.doc")
    assert "no classification task reads pairs" in refused(
        capsys, *arguments, tmp_path / "empty.csv", "--text", "message", "message"
    )


def test_page_says_what_is_missing_for_a_section(trained: Path, page: Path, tmp_path: Path, monkeypatch) -> None:
    assert "train and test" in words_of(page)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    report([str(trained / "result"), "--output", str(tmp_path / "report.html")])
    words = words_of(tmp_path / "report.html")
    assert 'pip install -e ".[report]"' in words
    # The recipe's copy stands in another folder than the run's data.
    assert "cannot be read. Relative paths start from the recipe's folder: give --recipe" in words


def test_missing_column_names_the_near_one(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--recipe", trained / "job.yaml", "--slices", "chanel", "--output", tmp_path / "report.html"]
    assert "no column 'chanel'. Did you mean 'channel'?" in refused(capsys, trained / "result", *arguments)


def test_slices_without_the_data_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--slices", "channel", "--output", tmp_path / "report.html"]
    assert "texts_train.csv" in refused(capsys, trained / "result", *arguments)


def test_page_is_never_pushed() -> None:
    assert stays_behind("report.html") and not stays_behind("results.json")


def test_page_that_exists_is_kept(trained: Path, page: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = shutil.copy(page, tmp_path)
    assert "exists. Name another page" in refused(capsys, trained / "result", "--output", path)
    said = refused(capsys, trained / "result", "--output", tmp_path / "none/report.html")
    assert "no folder" in said and "name the page's file with --output" in said
    assert "is a folder, but should be a file" in refused(
        capsys, trained / "result", "--output", tmp_path, "--overwrite"
    )


def test_folder_without_results_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "result", folder, ignore=shutil.ignore_patterns("results.json", "checkpoint-*", "best"))
    assert "holds no results.json" in refused(capsys, folder)
    shutil.copy(trained / "result/results.json", folder)
    shutil.rmtree(folder / "predictions")
    assert "holds no predictions/" in refused(capsys, folder)


def test_page_says_how_many_rows_the_model_was_trained_on(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "result", folder, ignore=shutil.ignore_patterns("checkpoint-*", "best"))
    tasks = {"tags": MultiTaskConfig.from_pretrained(folder).tasks["tags"]}
    assert stored_run(folder, tasks).origin.endswith("It was trained on none of 30 rows.")
    known = read_row_hashes(str(folder))
    test = known.rows["tags", "test"]
    for is_complete, said in (
        (True, "It was trained on 15 of 30 rows."),
        (False, "is not known (at least 15 of 30)."),
    ):
        write_row_hashes(folder, RowHashes("model", {("tags", "train"): test}, is_complete))
        run = stored_run(folder, tasks)
        assert run.origin.endswith(said) and (run.trained == test).all()
    (folder / "row_hashes.parquet").unlink()
    assert stored_run(folder, tasks).origin.endswith("Which of them it was trained on is not known.")


@pytest.fixture
def opened(page: Path) -> Iterator[Any]:
    """The page in a browser; what the console says of errors fails the test."""
    playwright, said = pytest.importorskip("playwright.sync_api"), []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: None if request.url.startswith("data:") else said.append(request.url))
        tab.goto(page.as_uri())
        yield tab
        browser.close()
    assert said == [page.as_uri()]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_errors_are_searched_and_filtered_in_a_browser(page: Path, opened: Any) -> None:
    rows = errors_of(page)["mood"]["rows"]

    def count() -> int:
        assert opened.locator("#rows tbody tr").count() == min(int(opened.inner_text("#count").split()[0]), 50)
        return int(opened.inner_text("#count").split()[0])

    assert count() == len(rows)
    opened.fill("#search", "ONERROR the")
    matching = [row for row in rows if "onerror" in row["text"][0]]
    assert count() == len(matching) < len(rows)
    label = matching[0]["label"]
    opened.select_option("#label", label)
    assert 0 < count() == sum(row["label"] == label for row in matching)
    opened.select_option("#columns select", "mail")
    assert count() == sum(row["label"] == label and row["slices"] == ["mail"] for row in matching)
    opened.fill("#longest", "0")
    assert count() == 0
    opened.click("button[type=reset]")
    opened.wait_for_function(f"document.getElementById('count').textContent.startsWith('{len(rows)} of')")
    tags = errors_of(page)["tags"]["rows"]
    opened.select_option("#task", label="tags")
    opened.select_option("#label", "money")
    assert 0 < count() == sum("money" in row["label"] for row in tags) < len(tags)
    opened.select_option("#task", label="similarity")
    assert count() == len(errors_of(page)["similarity"]["rows"])
    assert not opened.locator("#label").is_visible()
