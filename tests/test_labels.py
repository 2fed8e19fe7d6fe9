"""How label cells are read: their forms, their spelling, what a recipe says about them, and what is told of doubts."""

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.training.recipe.recipe import load_recipe

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
WORDS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def task(problem_type: str = SINGLE, **changes: Any) -> TaskSource:
    settings = {
        "name": "mood",
        "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "train.csv"}},
        "columns": {"sentence": "text", "label": "label"},
    }
    return TaskSource(problem_type=problem_type, **(settings | changes))


def load_cells(tmp_path: Path, cells: list[str], problem_type: str = SINGLE, **changes: Any) -> LoadedTasks:
    """A CSV file with these label cells, each beside a text of its own."""
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([f"text {row}", cell] for row, cell in enumerate(cells))])
    return load_tasks([task(problem_type, **changes)], tmp_path, seed=42)


def load_values(
    tmp_path: Path,
    values: list[Any],
    problem_type: str = SINGLE,
    feature: Any = None,
    texts: list[str] | None = None,
    **changes: Any,
) -> LoadedTasks:
    """A parquet file with these label values, each beside a text of its own."""
    columns = {"text": texts or [f"text {row}" for row in range(len(values))], "label": values}
    features = Features({"text": Value("string"), "label": feature}) if feature is not None else None
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "train.parquet")
    files = {"train": "train.parquet", "validation": "train.parquet"}
    source = task(problem_type, **({"dataset": {"path": "parquet", "data_files": files}} | changes))
    return load_tasks([source], tmp_path, seed=42)


def labels_of(loaded: LoadedTasks, split: str = "train") -> list[Any]:
    return loaded.sets[0].splits[split]["label_mood"][:]


def names_of(loaded: LoadedTasks) -> list[Any]:
    """What the train labels mean: a name, or the names that apply, of every row."""
    names = loaded.labels["mood"]
    return [
        [name for name, flag in zip(names, label, strict=True) if flag] if isinstance(label, list) else names[label]
        for label in labels_of(loaded)
    ]


def announced(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """The one line logged since the last call that holds the words."""
    lines = list(caplog.messages)
    caplog.clear()
    found = [line for line in lines if words in line]
    assert len(found) == 1, lines
    return found[0]


# ---- multi-label cells ----


@pytest.mark.parametrize(
    "cells",
    [
        ["a|b", "b", "b|c", "|"],
        ["['a', 'b']", "['b']", "['b', 'c']", "[]"],
        ["('a', 'b')", "('b',)", "('b', 'c')", "()"],
        ["{'b', 'a'}", "{'b'}", "{'c', 'b'}", "[]"],
        ['["a", "b"]', '["b"]', '["b", "c"]', "[]"],
        ["['a' 'b']", "['b']", "['b'\n 'c']", "[]"],
        ["[a, b]", "[b]", "[b,c]", "[]"],
        ["{a,b}", "{b}", '{"b",c}', "[]"],
        ['{"choices": ["a", "b"]}', "b", '{"choices": ["b", "c"]}', '{"choices": []}'],
        ["{'a': 1, 'b': 1, 'c': 0}", "{'b': 1.0}", "{'b': True, 'c': True}", '{"a": 0, "b": 0.0, "c": false}'],
    ],
)
def test_every_way_to_write_several_labels_gives_the_same_classes(tmp_path: Path, cells: list[str]) -> None:
    loaded = load_cells(tmp_path, cells, MULTI)
    assert loaded.labels["mood"] == WORDS
    assert labels_of(loaded) == [[1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("separator", [", ", ";", "#", " ", " and ", "\n"])
def test_label_separator_takes_cells_apart(tmp_path: Path, separator: str) -> None:
    cells = ["a", separator.join("ab"), separator.join("bc")]
    loaded = load_cells(tmp_path, cells, MULTI, label_separator=separator)
    assert names_of(loaded) == [["a"], ["a", "b"], ["b", "c"]]


def test_label_separator_leaves_written_out_lists_as_they_are(tmp_path: Path) -> None:
    loaded = load_cells(tmp_path, ["['a', 'b']", "b;c", "[x];a"], MULTI, label_separator=";")
    assert names_of(loaded) == [["a", "b"], ["b", "c"], ["[x]", "a"]]


@pytest.mark.parametrize(
    ("separator", "written"),
    [
        (", ", "', '"),
        (",", "','"),
        (";", "';'"),
        ("#", "'#'"),
        ("/", "'/'"),
        (" ", "' '"),
        ("\t", '"\\\\t"'),
        ("\u3001", "'\u3001'"),
        ("-", "'-'"),
    ],
)
def test_joined_labels_are_an_error_that_names_the_separator(tmp_path: Path, separator: str, written: str) -> None:
    cells = ["a", separator.join("ab"), separator.join("bc"), "c"]
    if separator not in " -":  # words recur in whole names too
        with pytest.raises(ValueError, match=rf"label_separator: {written}\."):
            load_cells(tmp_path, [separator.join(pair) for pair in ("ab", "bc", "ca")], MULTI)
    with pytest.raises(ValueError, match=rf"labels with {written} between.*tasks\.mood\.label_separator: {written}\."):
        load_cells(tmp_path, cells, MULTI)


def test_separator_beside_the_one_of_the_recipe_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_cells(tmp_path, ["a, b", "b,c", "c", "b"], MULTI, label_separator=", ")
    assert "1 of 4 label names hold ',', such as 'b,c'" in announced(caplog, "label_separator: ','")


def test_names_that_merely_hold_a_separator_are_whole_and_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = ["credit, card", "late, payment", "credit, limit", "fees"]
    loaded = load_cells(tmp_path, cells, MULTI)
    assert loaded.labels["mood"] == sorted(cells)
    assert "3 of 4 label names hold ', '" in announced(caplog, "label_separator: ', '")
    load_cells(tmp_path, ["x y", "x z", "w"], MULTI)
    assert caplog.messages and not any("label_separator" in line for line in caplog.messages)


@pytest.mark.parametrize("settings", [{"label_separator": "|"}, {"labels": ["a", "b", "a, b"]}])
def test_recipe_can_say_that_names_hold_a_comma(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert names_of(load_cells(tmp_path, ["a", "a, b", "b"], MULTI, **settings)) == [["a"], ["a, b"], ["b"]]


@pytest.mark.parametrize(
    ("problem_type", "further"), [(MULTI, r"\."), (SINGLE, " and tasks.mood.problem_type: multi")]
)
def test_cell_that_joins_known_labels_names_the_separator(tmp_path: Path, problem_type: str, further: str) -> None:
    with pytest.raises(ValueError, match=rf"row 1: label 'a; b'.*tasks\.mood\.label_separator: '; '{further}"):
        load_cells(tmp_path, ["a; b", "c"], problem_type, labels=WORDS)


def test_lists_that_datasets_writes_to_csv_read_back(tmp_path: Path) -> None:
    values = [["it's", "b c"], ["b c"], [], ["d|e", "b c"]]
    Dataset.from_dict({"text": ["s", "t", "u", "v"], "label": values}).to_csv(tmp_path / "train.csv")
    loaded = load_tasks([task(MULTI)], tmp_path, seed=42)
    assert loaded.labels["mood"] == ["b c", "d|e", "it's"]
    assert [sorted(names) for names in names_of(loaded)] == [sorted(names) for names in values]


def test_mapping_column_gives_all_its_names_and_empty_means_not_labelled(tmp_path: Path) -> None:
    loaded = load_values(tmp_path, [{"A": 0.0, "B": 1.0}, {"A": 0.0, "B": 0.0}, {"A": None, "B": None}], MULTI)
    assert loaded.labels["mood"] == ["A", "B"]
    assert labels_of(loaded) == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("['a', 'b'", "row 2: .* looks like a list and cannot be read"),
        ("[a ... b]", r"row 2: found '\[a \.\.\. b\]', which looks like a list and cannot be read"),
        ("['a', ['b']]", "row 2: .* an empty or true/false entry, or one that is no name"),
        ("{'a': 0.7, 'b': 0}", "row 2: .* where 'a' is neither 0 nor 1"),
        ("{{'a': 1}, 'b'}", "row 2: .* cannot be read"),
        ("{'a': 0x" + "f" * 9000 + "}", "row 2: .* where 'a' is neither 0 nor 1"),
        ("{'': 0, 'a': 1}", "row 2: .* an empty or true/false entry"),
        ("[" * 5000 + "]" * 5000, "row 2: .* cannot be read"),
    ],
)
def test_cell_that_cannot_be_read_as_labels_names_its_row(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_cells(tmp_path, ["a", cell], MULTI, labels=["a", "b"])


# ---- one label from lists and mappings ----


@pytest.mark.parametrize(
    "cells",
    [
        ["['x']", '["y"]', "x"],
        ["['x']", "('y',)", "[]"],
        ['{"choices": ["x"]}', '{"choices": "y"}', "x"],
        ["{'x': 1, 'y': 0}", "{'x': 0.0, 'y': 1.0}", "{}"],
    ],
)
def test_single_label_cells_may_hold_one_label_in_a_list_or_mapping(tmp_path: Path, cells: list[str]) -> None:
    loaded = load_cells(tmp_path, cells)
    assert loaded.labels["mood"] == ["x", "y"]
    assert labels_of(loaded)[:2] == [0, 1]
    assert len(labels_of(loaded)) == (3 if cells[2] == "x" else 2)


def test_single_label_list_and_mapping_columns_read_without_text(tmp_path: Path) -> None:
    assert names_of(load_values(tmp_path, [["x"], ["y"], []])) == ["x", "y"]
    assert names_of(load_values(tmp_path, [{"x": 1, "y": 0}, {"x": 0, "y": 1}])) == ["x", "y"]


@pytest.mark.parametrize("cell", ["['x', 'y']", "{'x': 1, 'y': 1}", "{'x': 0, 'y': 0}"])
def test_single_label_cell_with_two_labels_or_none_points_to_multi_label(tmp_path: Path, cell: str) -> None:
    with pytest.raises(ValueError, match=r"row 2: found str .* needs one label.*problem_type: multi_label"):
        load_cells(tmp_path, ["x", cell, "y"])


def test_brackets_that_are_no_list_stay_part_of_a_single_label(tmp_path: Path) -> None:
    assert load_cells(tmp_path, ["[UNK]", "(x)", "{y}", "(1)"]).labels["mood"] == ["(1)", "(x)", "[UNK]", "{y}"]


# ---- vectors of zeros and ones ----


@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]],
        [[1, 0], [0, 1], [1, 0]],
        [[True, False], [False, True], [True, False]],
        [["1", "0"], ["0", "1"], ["1", "0"]],
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_vectors_as_long_as_the_label_list_are_flags(tmp_path: Path, values: list[Any], as_text: bool) -> None:
    if as_text:
        Dataset.from_dict({"text": ["s", "t", "u"], "label": values}).to_csv(tmp_path / "train.csv")
        loaded = load_tasks([task(MULTI, labels=["a", "b"])], tmp_path, seed=42)
    else:
        loaded = load_values(tmp_path, values, MULTI, labels=["a", "b"])
    assert labels_of(loaded) == [[1, 0], [0, 1], [1, 0]]


def test_vectors_may_hold_none_or_all_labels_and_more_than_two(tmp_path: Path) -> None:
    rows = [[0, 0, 0], [1, 1, 1], [0, 1, 0]]
    assert labels_of(load_values(tmp_path, rows, MULTI, labels=WORDS)) == rows


def test_lists_of_ids_stay_ids(tmp_path: Path) -> None:
    rows = labels_of(load_values(tmp_path, [[0], [2, 1], [0, 1], []], MULTI, labels=WORDS))
    assert rows == [[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_list_that_could_be_ids_or_flags_is_refused_with_both_readings(tmp_path: Path) -> None:
    values = [[0], [0, 1], [1]]
    with pytest.raises(ValueError, match=r"row 2: .* two ways: as a row of zeros and ones.* or as ids.*label_map"):
        load_values(tmp_path, values, MULTI, labels=["a", "b"])
    loaded = load_values(tmp_path, values, MULTI, labels=["a", "b"], label_map={0: "a", 1: "b"})
    assert labels_of(loaded) == [[1, 0], [1, 1], [0, 1]]


def test_vectors_without_a_label_list_are_refused_with_both_readings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two ways: as rows of zeros and ones for 2 labels .* or as labels called 0"):
        load_values(tmp_path, [[1, 0], [0, 1]], MULTI)
    with pytest.raises(ValueError, match=r"two ways: .* or as labels called \['0', '1'\]"):
        load_values(tmp_path, [[1, 0], [0, 1]], MULTI, labels=["0", "1"])


def test_lists_of_fractions_are_no_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1: found \[0\.7, 0\.3\]: a score column"):
        load_values(tmp_path, [[0.7, 0.3], [0.1, 0.9]], MULTI)


# ---- spelling ----


@pytest.mark.parametrize(
    "cells",
    [
        ["007", "7"],
        ["00501", "501"],
        ["1E2", "100"],
        ["10000000000000000001", "10000000000000000002"],
        ["7", "7.0"],
        ["+7", "7"],
    ],
)
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_codes_in_text_are_classes_as_they_are_written(tmp_path: Path, cells: list[str], problem_type: str) -> None:
    loaded = load_cells(tmp_path, cells, problem_type)
    assert set(loaded.labels["mood"]) == set(cells)
    assert names_of(loaded) == ([[cell] for cell in cells] if problem_type == MULTI else cells)
    loaded = load_cells(tmp_path, cells, problem_type, labels=cells)
    assert loaded.labels["mood"] == cells
    assert names_of(loaded) == ([[cell] for cell in cells] if problem_type == MULTI else cells)


def test_text_code_is_neither_another_code_nor_a_position(tmp_path: Path) -> None:
    for given in (["1", "2"], ["x", "y"]):
        with pytest.raises(ValueError, match="row 2: label '01' is not a label"):
            load_cells(tmp_path, ["1", "01"], labels=given)


def test_numbers_of_the_file_are_numbers(tmp_path: Path) -> None:
    assert load_values(tmp_path, [10, 9, 10]).labels["mood"] == ["9", "10"]
    assert names_of(load_values(tmp_path, [1.0, None, 2.0])) == ["1", "2"]
    decimals = [Decimal("1.00"), Decimal("2.00")]
    assert names_of(load_values(tmp_path, decimals)) == ["1", "2"]
    assert labels_of(load_values(tmp_path, decimals, "regression")) == [1.0, 2.0]
    large = 2**62
    assert load_values(tmp_path, [large, large + 1]).labels["mood"] == [str(large), str(large + 1)]
    with pytest.raises(ValueError, match=r"row 1: found 1e[+]20 .* too large to have kept all of its digits"):
        load_values(tmp_path, [1e20, 1.0])


def test_fraction_that_pandas_writes_beside_empty_cells_is_no_part_of_the_name(tmp_path: Path) -> None:
    assert names_of(load_cells(tmp_path, ["1.0", "", "10.0", "2.0"])) == ["1", "10", "2"]
    assert load_cells(tmp_path, ["1.0", "10.0", "2.0"]).labels["mood"] == ["1.0", "2.0", "10.0"]
    assert names_of(load_cells(tmp_path, ["1.0", "2"], labels=["1", "2"])) == ["1", "2"]
    assert labels_of(load_cells(tmp_path, ["1.0", "0"], labels=["x", "y"])) == [1, 0]


def test_names_in_two_unicode_forms_or_with_invisible_characters_are_one_class(tmp_path: Path) -> None:
    cells = ["caf\u00e9", "cafe\u0301", "\ufeffcaf\u00e9", "caf\u00e9\u200b", "caf\u00e9 ", "tea"]
    assert names_of(load_cells(tmp_path, cells)) == ["caf\u00e9"] * 5 + ["tea"]
    given = load_cells(tmp_path, cells, labels=["tea", "cafe\u0301"])
    assert (given.labels["mood"], labels_of(given)) == (["tea", "cafe\u0301"], [1, 1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match="twice"):
        load_cells(tmp_path, cells, labels=["tea", "cafe\u0301", "caf\u00e9"])


def test_joiners_within_a_name_are_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_cells(tmp_path, ["a\u200db", "ab", "c"])
    assert len(loaded.labels["mood"]) == 3
    assert "(1 row)" in announced(caplog, "separate classes that differ only in")


# ---- what is told of names, and mended in the recipe ----

DOUBTFUL = ["neg", "pos", "N/A", "nan", "None", "NaN", "N/A"]


def test_names_that_look_like_missing_values_are_announced_with_their_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_cells(tmp_path, DOUBTFUL)
    line = announced(caplog, "look like missing values")
    assert "'N/A' (2 rows), 'NaN' (1 row), 'None' (1 row), 'nan' (1 row)" in line
    assert "tasks.mood.missing_labels: ['N/A', 'NaN', 'None', 'nan']" in line
    load_cells(tmp_path, DOUBTFUL, labels=["neg", "pos", "N/A", "nan", "None", "NaN"])
    assert not any("missing values" in line for line in caplog.messages)


def test_missing_labels_are_rows_without_a_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_cells(tmp_path, DOUBTFUL, missing_labels=["N/A", "nan", "None", "NaN"])
    assert loaded.labels["mood"] == ["neg", "pos"]
    assert labels_of(loaded) == [0, 1]
    assert "mood: 5 of 7 train rows carry no label and are left out" in caplog.messages
    assert not any("missing" in line for line in caplog.messages)


def test_missing_labels_hold_for_scores_flags_lists_features_and_floats(tmp_path: Path) -> None:
    scores = load_cells(tmp_path, ["1.5", "-", "2"], "regression", missing_labels=["-"])
    assert labels_of(scores) == [1.5, 2.0]
    assert labels_of(load_values(tmp_path, [0.5, -1.0], "regression", missing_labels=[-1])) == [0.5]
    assert names_of(load_cells(tmp_path, ["a|?", "?", "b"], MULTI, missing_labels=["?"])) == [["a"], ["b"]]
    assert names_of(load_values(tmp_path, [1.0, float("nan"), 2.0], missing_labels=["nan"])) == ["1", "2"]
    hidden = load_values(tmp_path, [2, 0, 1], feature=ClassLabel(names=["x", "y", "?"]), missing_labels=["?"])
    assert (hidden.labels["mood"], labels_of(hidden)) == (["x", "y"], [0, 1])
    columns = {"sentence": "text", "label": ["joy", "fear"]}
    (tmp_path / "train.csv").write_text("text,joy,fear\na,1,0\nb,-,-\n")
    assert labels_of(load_tasks([task(MULTI, columns=columns, missing_labels=["-"])], tmp_path, 42)) == [[1, 0]]


@pytest.mark.parametrize(
    ("cells", "pairs"),
    [
        (["neg", "neg", "NEG", "Neg.", "pos"], "{'NEG': 'neg', 'Neg.': 'neg'}"),
        (["set up", "set-up", "set up", "pos"], "{'set-up': 'set up'}"),
        (["\uff41b", "ab", "ab", "pos"], "{'\uff41b': 'ab'}"),
        (["7", "7", "007", "7.0", "8"], "{'007': '7', '7.0': '7'}"),
    ],
)
def test_names_that_differ_in_hardly_anything_are_announced_with_the_line_that_joins_them(
    tmp_path: Path, cells: list[str], pairs: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_cells(tmp_path, cells)
    assert f"tasks.mood.label_map: {pairs}" in announced(caplog, "separate classes that differ")


@pytest.mark.parametrize("cells", [["C", "C++", "C#"], ["1", "-1"], ["1.10", "11", "x"], ["very good", "good"]])
def test_names_that_differ_in_more_are_not_announced(
    tmp_path: Path, cells: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_cells(tmp_path, cells)
    assert caplog.messages and not any("differ" in line for line in caplog.messages)


def test_label_map_merges_and_renames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_cells(
        tmp_path,
        ["NEG", "neg", "1", "2", "5"],
        label_map={"NEG": "negative", "neg": "negative", 1: "negative", "2": "negative", "5": "positive"},
    )
    assert loaded.labels["mood"] == ["negative", "positive"]
    assert labels_of(loaded) == [0, 0, 0, 0, 1]
    assert not any("differ" in line for line in caplog.messages)


def test_recipe_mends_names_as_the_lines_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells = ["neg", "pos", "NEG", "Neg.", "pos ", "N/A", "NaN", "1", "2", "-"]
    load_cells(tmp_path, cells)
    assert len([line for line in caplog.messages if "missing_labels" in line or "label_map" in line]) == 2
    recipe = """
    tasks:
      mood:
        problem_type: single_label_classification
        dataset: {path: csv, data_files: {train: train.csv, validation: train.csv}}
        columns: {sentence: text, label: label}
        missing_labels: [N/A, NaN, '-']
        label_map: {NEG: neg, Neg.: neg, "1": neg, 2: pos}
    """
    (tmp_path / "recipe.yaml").write_text(recipe)
    caplog.clear()
    loaded = load_tasks(load_recipe(tmp_path / "recipe.yaml").sources, tmp_path, seed=42)
    assert names_of(loaded) == ["neg", "pos", "neg", "neg", "pos", "neg", "pos"]
    assert not any("missing_labels" in line or "label_map" in line for line in caplog.messages)


def test_label_map_holds_for_lists_numbers_and_features(tmp_path: Path) -> None:
    assert names_of(load_cells(tmp_path, ["NEG|neg|x", "x"], MULTI, label_map={"NEG": "neg"})) == [["neg", "x"], ["x"]]
    assert names_of(load_values(tmp_path, [1, 2, 5], label_map={1: "low", 2: "low", 5: "high"})) == [
        "low",
        "low",
        "high",
    ]
    feature = List(ClassLabel(names=["x", "y", "z"]))
    loaded = load_values(tmp_path, [[0, 1], [2]], MULTI, feature=feature, label_map={"y": "x"})
    assert (loaded.labels["mood"], names_of(loaded)) == (["x", "z"], [["x"], ["z"]])


def test_names_in_the_recipe_that_no_cell_holds_are_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_cells(tmp_path, ["a", "b"], label_map={"B": "b"}, missing_labels=["N/A"])
    assert "mood: no cell holds ['B'] of tasks.mood.label_map" in caplog.messages
    assert "mood: no cell holds ['N/A'] of tasks.mood.missing_labels" in caplog.messages


# ---- several wrong rows, and rows without text ----


def test_all_wrong_rows_are_told_in_one_error_across_files_and_tasks(tmp_path: Path) -> None:
    rows = [{"text": "a" if row % 3 else "", "label": "x" if row % 4 else "w", "score": "?"} for row in range(20)]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, [{"text": "s", "label": "y", "score": "1"}, *rows])))
    (tmp_path / "two.jsonl").write_text(json.dumps({"text": "t", "label": "v", "score": "2"}))
    dataset = {"path": "jsonl", "data_files": {"train": "one.jsonl", "validation": "two.jsonl"}}
    score = task("regression", name="rating", dataset=dataset, columns={"sentence": "text", "label": "score"})
    with pytest.raises(ValueError, match="cells cannot be read") as caught:
        load_tasks([task(dataset=dataset, labels=["x", "y"]), score], tmp_path, seed=42)
    first, count, *lines = str(caught.value).splitlines()
    bad_texts = len([row for row in range(20) if row % 3 == 0 and row % 4])  # of rows that keep some label
    assert "one.jsonl, row 2: label 'w' is not a label of task 'mood'. Known labels: ['x', 'y']. Correct" in first
    assert count == f"{5 + 1 + 20 + bad_texts} cells cannot be read; the others are:"
    assert len([line for line in lines if line.startswith("  ") and ", row " in line]) == 9
    assert any("two.jsonl, row 1: label 'v'" in line for line in lines)
    assert lines[9] == f"  and {26 + bad_texts - 10} more"
    assert any(line.startswith("Correct the row, leave the cell empty") for line in lines[10:])


def test_rows_without_text_are_all_told_or_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts, values = ["a", "", "b", " \t\u200b", None], ["x", "y", "y", "x", "y"]
    with pytest.raises(ValueError, match=r"(?s)row 2.*mood.empty_text: drop.*3 cells cannot be read.*row 4.*row 5"):
        load_values(tmp_path, values, texts=texts)
    loaded = load_values(tmp_path, values, texts=texts, empty_text="drop")
    assert loaded.sets[0].splits["train"]["sentences"][:] == [["a"], ["b"]]
    assert "mood: 3 of 5 train rows have an empty text and are left out" in caplog.messages


def test_number_where_a_text_should_be_is_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": 5, "label": "x"}\n{"text": 6, "label": "y"}')
    dataset = {"path": "jsonl", "data_files": {"train": "train.jsonl", "validation": "train.jsonl"}}
    with pytest.raises(ValueError, match="row 1: column 'text' of task 'mood' holds 5"):
        load_tasks([task(dataset=dataset, empty_text="drop")], tmp_path, seed=42)


def test_shared_rows_with_two_rules_for_empty_text_name_both_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Tasks 'mood' and 'topic' .* differ in empty_text"):
        load_tasks([task(), task(name="topic", empty_text="drop")], tmp_path, seed=42)


# ---- contradictions ----

TEXTS = ["a b", "A  b", "a b ", "c", "C", "d"]
RATED = ["x", "y", "y", "x", "y", "x"]


@pytest.mark.parametrize(
    ("rule", "labels", "outcome"),
    [
        (None, [0, 1, 1, 0, 1, 0], "They stay; tasks.mood.contradictions: drop or majority settles them"),
        ("keep", [0, 1, 1, 0, 1, 0], "They stay"),
        ("drop", [0], "All of them are no longer labelled for this task (5 rows)"),
        ("majority", [1, 1, 0], "are all rows of 1 texts without a majority (3 rows)"),
    ],
)
def test_texts_with_several_labels_are_counted_and_settled(
    tmp_path: Path, rule: str | None, labels: list[int], outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_values(tmp_path, RATED, texts=TEXTS, contradictions=rule)
    assert labels_of(loaded) == labels
    line = announced(caplog, "different labels in the train split")
    assert "mood: 2 texts have different labels in the train split (5 rows)." in line
    assert outcome in line


def test_contradictions_of_lists_and_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = [["x"], ["y", "x"], ["x", "y"], ["x"], ["x"], ["y"]]
    assert len(labels_of(load_values(tmp_path, lists, MULTI, texts=TEXTS, contradictions="majority"))) == 5
    scores = [1.0, 2.0, 3.0, 5.0, 5.0, 6.0]
    caplog.clear()
    loaded = load_values(tmp_path, scores, "regression", texts=TEXTS, contradictions="mean")
    assert labels_of(loaded) == [2.0, 2.0, 2.0, 5.0, 5.0, 6.0]
    assert "1 texts have different labels in the train split (3 rows)" in announced(caplog, "train split (3 rows)")


def test_similarity_pairs_contradict_in_either_order_and_other_pairs_do_not(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,score,label\nx,y,1,no\ny,x,3,yes\nu,v,2,no\n")
    columns = {"sentence1": "a", "sentence2": "b", "label": "score"}
    score = task("similarity", columns=columns, contradictions="mean")
    entails = task(name="entails", columns=columns | {"label": "label"}, contradictions="drop")
    loaded = load_tasks([score, entails], tmp_path, seed=42)
    assert labels_of(loaded) == [2.0, 2.0, 2.0]
    assert loaded.sets[0].splits["train"]["label_entails"][:] == [0, 1, 0]


def test_contradictions_are_settled_for_each_task_on_shared_rows(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label,topic\na,x,u\nA,y,u\nb,x,v\nc,y,u\n")
    topic = task(name="topic", columns={"sentence": "text", "label": "topic"})
    loaded = load_tasks([task(contradictions="drop"), topic], tmp_path, seed=42)
    assert labels_of(loaded) == [None, None, 0, 1]
    assert loaded.sets[0].splits["train"]["label_topic"][:] == [0, 0, 1, 0]


def test_contradictions_that_leave_no_row_are_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no labelled row \(rows: 2\)\. Every text .*mood\.contradictions: drop leaves"
    ):
        load_values(tmp_path, ["x", "y"], texts=["a", "A"], contradictions="drop")
