"""Which rows of a file count, and which columns make up a sentence."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from multitask_sentence.data.loading.tasks import TaskSource, group_sources, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.training.recipe.recipe import load_recipe

SINGLE = "single_label_classification"
ANSWERS = (
    "text,label,answer,language,n\na,x,accept,en,1\nb,y, accept ,de,2\nc,,reject,en,1\nd,y,accept,fr,1.0\n,?,,en,\n"
)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def task(name: str = "t", problem_type: str = SINGLE, **changes: Any) -> TaskSource:
    settings: dict[str, Any] = {
        "dataset": {"path": "csv", "data_files": {"train": "rows.csv", "validation": "rows.csv"}},
        "columns": {"sentence": "text", "label": "label"},
    }
    return TaskSource(name, problem_type, **(settings | changes))


def load(tmp_path: Path, content: str, *tasks: TaskSource) -> LoadedTasks:
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    return load_tasks(list(tasks), tmp_path, seed=42)


def sentences(loaded: LoadedTasks, place: int = 0) -> list[list[str]]:
    return loaded.sets[place].splits["train"]["sentences"][:]


@pytest.mark.parametrize(
    ("where", "kept", "left_out"),
    [
        ({"answer": "accept"}, ["a", "b", "d"], 2),
        ({"language": ["de", "fr"]}, ["b", "d"], 3),
        ({"answer": "accept", "language": ["en", "fr"]}, ["a", "d"], 3),
        ({"n": 1, "answer": "accept"}, ["a"], 4),
        ({"answer": ["accept", None], "text": ["a", "b"]}, ["a", "b"], 3),
    ],
)
def test_where_keeps_the_rows_with_the_wanted_values_and_counts_the_others(
    tmp_path: Path, where: dict, kept: list, left_out: int, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tmp_path, ANSWERS, task(where=where, labels=["x", "y"]))
    assert sentences(loaded) == [[text] for text in kept]
    assert f"t: {left_out} of 5 train rows are left out by where {where}" in caplog.messages
    assert not any("carry no label" in line for line in caplog.messages)


def test_row_that_where_leaves_out_is_not_read_and_later_ones_keep_their_numbers(tmp_path: Path) -> None:
    content = "text,label,answer\n,not a class,reject\na,x,accept\nb,y,accept\nc,z,accept\n"
    with pytest.raises(ValueError, match=r"rows\.csv, row 4: label 'z' is not a label"):
        load(tmp_path, content, task(where={"answer": "accept"}, labels=["x", "y"]))


def test_unlabelled_rows_are_counted_apart_from_those_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "text,label,answer\na,x,accept\nb,y,accept\nc,,accept\nd,x,reject\n"
    load(tmp_path, content, task(where={"answer": "accept"}))
    assert "t: 1 of 4 train rows are left out by where {'answer': 'accept'}" in caplog.messages
    assert "t: 1 of 3 train rows carry no label and are left out" in caplog.messages


def test_where_compares_json_values_and_class_names_as_text(tmp_path: Path) -> None:
    cells = [(True, 1, "pos"), (False, 1.0, "neg"), (True, 2, "pos"), (None, None, None), (True, 1, "neg")]
    features = Features({"text": Value("string"), "ok": Value("bool"), "n": Value("float64")})
    features |= {"label": ClassLabel(names=["neg", "pos"])}
    found = {
        "text": list("abcde"),
        "ok": [c[0] for c in cells],
        "n": [c[1] for c in cells],
        "label": [c[2] for c in cells],
    }
    Dataset.from_dict(found, Features(features)).to_parquet(tmp_path / "rows.parquet")
    dataset = {"path": "parquet", "data_files": {"train": "rows.parquet", "validation": "rows.parquet"}}
    loaded = load(tmp_path, "", task(dataset=dataset, where={"ok": True, "n": 1}))
    assert sentences(loaded) == [["a"], ["e"]]
    loaded = load(tmp_path, "", task(dataset=dataset, where={"label": ["pos", "neg"], "n": ["1", 2]}))
    assert sentences(loaded) == [["a"], ["b"], ["c"], ["e"]]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"anser": "accept"}, r"needs a column 'anser', .*Did you mean 'answer'.* Correct tasks\.t\.where\.anser"),
        ({"answer": "accepted"}, r"keeps none of the 5 train rows .*'answer' holds 'accept', 'reject', None"),
        ({}, r"tasks\.t\.where should say which values of a column to keep, like .*Found \{\}"),
        ({"answer": []}, r"tasks\.t\.where should say"),
        ("accept", r"tasks\.t\.where should say .*Found 'accept'"),
        ({5: 5, "answer": "accept"}, r"tasks\.t\.where should say"),
        ({"answer": {"is": "accept"}}, r"tasks\.t\.where should say"),
    ],
)
def test_where_that_cannot_be_meant_is_an_error(tmp_path: Path, where: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, ANSWERS, task(where=where, labels=["x", "y"]))


def test_where_that_empties_one_split_names_it(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,label,answer\na,x,reject\n")
    dataset = {"path": "csv", "data_files": {"train": "rows.csv", "validation": "other.csv"}}
    with pytest.raises(ValueError, match=r"keeps none of the 1 validation rows \(.*other\.csv\)"):
        load(tmp_path, ANSWERS, task(dataset=dataset, where={"answer": "accept"}))


def test_tasks_with_another_where_have_sets_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = [task("all", where=None), task("en", where={"language": ["en"]}), task("too", where={"language": ["en"]})]
    content = "text,label,language\na,x,en\nb,y,de\nc,y,en\n"
    assert [[one.name for one in group] for group in group_sources(tasks)] == [["all"], ["en", "too"]]
    loaded = load(tmp_path, content, *tasks)
    assert (sentences(loaded), sentences(loaded, 1)) == ([["a"], ["b"], ["c"]], [["a"], ["c"]])
    assert "en, too: 1 of 3 train rows are left out by where {'language': ['en']}" in caplog.messages


def test_recipe_passes_where_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "tasks:\n  t:\n    problem_type: single_label_classification\n"
        "    dataset: {path: csv, data_files: {train: rows.csv, validation: rows.csv}}\n"
        "    columns: {sentence: [text, language], label: label}\n    labels: [x, y]\n"
        "    where: {answer: accept, n: 1}\n"
    )
    assert sentences(load(tmp_path, ANSWERS, *load_recipe(tmp_path / "recipe.yaml").sources)) == [["a en"]]


# Joined columns

POSTS = "title,body,label,score\nBig news, it rains ,x,1\n,no title,y,2\nonly title,,x,3\n"


def test_columns_of_a_sentence_are_joined_with_a_space_without_empty_ones(tmp_path: Path) -> None:
    columns = {"sentence": ["title", "body"], "label": "label"}
    loaded = load(tmp_path, POSTS, task(columns=columns))
    assert sentences(loaded) == [["Big news it rains"], ["no title"], ["only title"]]
    columns["sentence"] = ["body", "title"]
    assert sentences(load(tmp_path, POSTS, task(columns=columns))) == [
        ["it rains Big news"],
        ["no title"],
        ["only title"],
    ]


def test_pairs_and_anchors_are_joined_and_negatives_stay_several(tmp_path: Path) -> None:
    content = "a,b,c,d,label\none,two,three,four,1\nfive,six,seven,eight,0\n"
    pair = task("pair", columns={"sentence1": ["a", "b"], "sentence2": "c", "label": "label"})
    columns = {"anchor": "a", "positive": ["b", "c"], "negative": ["c", "d"]}
    loaded = load(tmp_path, content, pair, task("search", "contrastive", columns=columns))
    assert sentences(loaded) == [["one two", "three"], ["five six", "seven"]]
    assert sentences(loaded, 1) == [["one", "two three", "three", "four"], ["five", "six seven", "seven", "eight"]]


def test_joined_columns_share_a_set_only_with_the_same_ones(tmp_path: Path) -> None:
    both = {"sentence": ["title", "body"], "label": "label"}
    scored = task("stars", "regression", columns=both | {"label": "score"})
    tasks = [task("one", columns=both), scored, task("two", columns=both | {"sentence": "body"})]
    assert [[one.name for one in group] for group in group_sources(tasks)] == [["one", "stars"], ["two"]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"title": "", "body": None}, r"row 2: column \['title', 'body'\] .* holds None where a sentence should be"),
        (
            {"title": "a", "body": 5},
            r"row 2: column \['title', 'body'\] .* holds \['a', 5\] where a sentence should be",
        ),
    ],
)
def test_joined_columns_without_text_are_an_error_with_their_row(tmp_path: Path, cells: dict, message: str) -> None:
    found = [{"title": "a", "body": "b", "label": "x"}, cells | {"label": "y"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, found)))
    dataset = {"path": "jsonl", "data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}}
    with pytest.raises(ValueError, match=message):
        load(tmp_path, "", task(dataset=dataset, columns={"sentence": ["title", "body"], "label": "label"}))


@pytest.mark.parametrize("sentence", [[], ["title", 5], {"a": "b"}])
def test_sentence_that_names_no_columns_is_an_error(tmp_path: Path, sentence: Any) -> None:
    with pytest.raises(ValueError, match=r"tasks\.t\.columns\.sentence should be a column's name"):
        load(tmp_path, POSTS, task(columns={"sentence": sentence, "label": "label"}))
