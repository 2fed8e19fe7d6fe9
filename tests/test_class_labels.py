"""Ids of a ClassLabel feature: the names they stand for, at any depth, and where a recipe gives other names."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks

NEG_POS = ClassLabel(names=["neg", "pos"])


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(folder: Path, cells: list[Any], feature: Any, column: str = "label", **changes: Any) -> list[str]:
    """The names of the rows' labels, the cells beside texts `0`, `1`, ... in a Parquet file."""
    features = Features({"text": Value("string"), column.split(".")[0]: feature})
    texts = [f"text {row}" for row in range(len(cells))]
    Dataset.from_dict({"text": texts, column.split(".")[0]: cells}, features).to_parquet(folder / "rows.parquet")
    settings = {
        "problem_type": "single_label_classification",
        "dataset": {"path": "parquet", "data_files": {"train": "rows.parquet", "validation": "rows.parquet"}},
        "columns": {"sentence": "text", "label": column},
    }
    loaded = load_tasks([TaskSource("mood", **settings | changes)], folder, 42)
    names = loaded.labels["mood"]
    labels = loaded.sets[0].splits["train"]["label_mood"][:]
    assert all(label is not None for label in labels)
    return [names[label] for label in labels]


def test_other_names_of_the_recipe_rename_the_ids_by_their_order_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(tmp_path, [0, 1], NEG_POS, labels=["bad", "good"]) == ["bad", "good"]
    assert any("'neg' is 'bad', 'pos' is 'good'" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("own", "given", "names"),
    [
        (["Negative", "Positive"], ["positive", "negative"], ["negative", "positive"]),
        (["Negative", "Positive"], ["positive", "neutral", "negative"], ["negative", "positive"]),
        (["1", "0"], [0, 1], ["1", "0"]),
    ],
)
def test_names_that_the_recipe_spells_otherwise_are_taken_by_name(
    tmp_path: Path, own: list[str], given: list[Any], names: list[str]
) -> None:
    assert load(tmp_path, [0, 1], ClassLabel(names=own), labels=given) == names


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (["neg", "pos"], ["positive", "negative"]),
        (["neg", "pos"], ["bad", "so-so", "good"]),
        (["Negative", "pos"], ["positive", "negative"]),
    ],
)
def test_names_that_cannot_rename_the_ids_by_their_order_are_refused(
    tmp_path: Path, own: list[str], given: list[str]
) -> None:
    with pytest.raises(ValueError, match=rf"rows\.parquet: .*{re.escape(str(own))}.*tasks\.mood\.label_map"):
        load(tmp_path, [0, 1], ClassLabel(names=own), labels=given)
    label_map = dict(zip(own, ["negative", "positive"], strict=True))
    found = load(tmp_path, [0, 1], ClassLabel(names=own), labels=["positive", "negative"], label_map=label_map)
    assert found == ["negative", "positive"]


@pytest.mark.parametrize("given", [None, ["pos", "neg"]])
@pytest.mark.parametrize(
    ("column", "feature", "cells"),
    [
        ("meta.topic", {"topic": NEG_POS}, [{"topic": 0}, {"topic": 1}]),
        ("meta.a.b.0", {"a.b": List(NEG_POS)}, [{"a.b": [0]}, {"a.b": [1, 0]}]),
        (
            "meta.by=x.topic",
            List({"by": Value("string"), "topic": NEG_POS}),
            [[{"by": "x", "topic": n}] for n in (0, 1)],
        ),
    ],
)
def test_ids_below_a_dotted_name_are_read_by_their_names(
    tmp_path: Path, column: str, feature: Any, cells: list[Any], given: list[str] | None
) -> None:
    assert load(tmp_path, cells, feature, column, labels=given) == ["neg", "pos"]
    assert load(tmp_path, cells, feature, column, where={column: ["pos", "neg"]}) == ["neg", "pos"]


@pytest.mark.parametrize("cell", [-2, -100])
def test_negative_ids_beyond_minus_one_are_told_with_their_row(tmp_path: Path, cell: int) -> None:
    feature = Value("int64")
    features = Features({"text": Value("string"), "label": feature})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, cell]}, features)
    table = rows.data.table.replace_schema_metadata(
        Features({"text": Value("string"), "label": NEG_POS}).arrow_schema.metadata
    )
    rows = Dataset(table)  # a ClassLabel whose storage holds the number, as a file of another tool may
    rows.to_parquet(tmp_path / "rows.parquet")
    dataset = {"path": "parquet", "data_files": {"train": "rows.parquet", "validation": "rows.parquet"}}
    columns = {"sentence": "text", "label": "label"}
    source = TaskSource("mood", "single_label_classification", dataset, columns)
    with pytest.raises(ValueError, match=rf"row 3: label {cell} is not a label of task 'mood'"):
        load_tasks([source], tmp_path, 42)
    source.missing_labels = [cell]
    assert load_tasks([source], tmp_path, 42).sets[0].splits["train"]["label_mood"][:] == [0, 1]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (["1.0", "2.0"], ["1.0", "", "2.0"], ["1", "2"]),  # as pandas writes them beside an empty cell, in one file
        (["1", "2"], ["1.0", "", "2.0"], ["1", "2"]),
        (["1.0", "2.0"], ["1.0", "2.0", "2.0"], ["1.0", "2.0"]),
        (["1.0", "2.0"], ["", "", ""], ["1.0", "2.0"]),
        (["1.0", "1.5"], ["a", "", "2.0"], ["1.0", "1.5", "2.0", "a"]),
    ],
)
def test_fractions_that_pandas_wrote_are_undone_in_all_files_of_a_task(
    tmp_path: Path, first: list[str], second: list[str], names: list[str]
) -> None:
    for name, cells in (("a", first), ("b", second)):
        rows = "".join(f"{name} text {row},{cell}\n" for row, cell in enumerate(cells))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    dataset = {"path": "csv", "data_files": {"train": ["a.csv", "b.csv"], "validation": "a.csv"}}
    columns = {"sentence": "text", "label": "label"}
    loaded = load_tasks([TaskSource("mood", "single_label_classification", dataset, columns)], tmp_path, 42)
    assert loaded.labels["mood"] == names
