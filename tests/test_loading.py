"""What goes into a LabelledSet from files on disk, and what a person is told about files that do not fit."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.sources import loading as sources_module
from multitask_sentence.data.sources.data_files import find_files

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
FOUR_ROWS = "text,label\ngood,positive\nbad,negative\nfine,positive\nawful,negative\n"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def source(name: str = "mood", problem_type: str = SINGLE, **changes: Any) -> TaskSource:
    """A task that reads train.csv and validation.csv, columns text and label, unless changed."""
    settings: dict[str, Any] = {
        "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "validation.csv"}},
        "columns": {"sentence": "text", "label": "label"},
    }
    return TaskSource(name, problem_type, **(settings | changes))


def load_csv(tmp_path: Path, text: str, *sources: TaskSource, validation: str | None = None) -> LoadedTasks:
    (tmp_path / "train.csv").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "validation.csv").write_text(validation or text, encoding="utf-8", newline="")
    return load_tasks(list(sources) or [source()], tmp_path, seed=42)


def load_rows(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> LoadedTasks:
    write_rows(tmp_path / "train.jsonl", rows)
    dataset = {"path": "jsonl", "data_files": {"train": "train.jsonl", "validation": "train.jsonl"}}
    return load_tasks([source(**({"dataset": dataset} | changes))], tmp_path, seed=42)


def train_column(loaded: LoadedTasks, name: str) -> list[Any]:
    return loaded.sets[0].splits["train"][name][:]


# What survives reading


def test_csv_sentences_survive_as_they_are(tmp_path: Path) -> None:
    sentences = [
        "NA",
        "None",
        "null",
        "nan",
        "007",
        "1.50",
        'says "no", twice',
        "two\nlines",
        "😀 مرحبا \u200f",
        " a\tb\x07 ",
    ]
    quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), "xy"[row % 2]) for row, text in enumerate(sentences))
    loaded = load_csv(tmp_path, "text,label\n" + quoted)
    assert train_column(loaded, "sentences") == [[text] for text in sentences]


def test_csv_label_named_none_is_a_label_and_not_an_empty_cell(tmp_path: Path) -> None:
    loaded = load_csv(tmp_path, "text,label\na,None\nb,NA\nc,\n")
    assert loaded.labels == {"mood": ["NA", "None"]}
    assert train_column(loaded, "label_mood") == [1, 0]


def test_csv_types_do_not_depend_on_the_first_rows(tmp_path: Path) -> None:
    dataset = source().dataset | {"chunksize": 1}
    loaded = load_csv(tmp_path, "text,label\n1,\na,2\nb,x\n2,\n", source(dataset=dataset))
    assert train_column(loaded, "label_mood") == [0, 1]


def test_tsv_and_json_array_and_parquet_read_like_csv(tmp_path: Path) -> None:
    rows = [{"text": "a, b", "label": "x"}, {"text": "c", "label": "y"}]
    (tmp_path / "rows.tsv").write_text("text\tlabel\na, b\tx\nc\ty\n")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for path in ("tsv", "json", "parquet"):
        files = {"train": f"rows.{path}", "dev": f"rows.{path}"}
        loaded = load_tasks([source(dataset={"path": path, "data_files": files})], tmp_path, 42)
        assert train_column(loaded, "sentences") == [["a, b"], ["c"]]
        assert train_column(loaded, "label_mood") == [0, 1]
        assert set(loaded.sets[0].splits) == {"train", "validation"}


def test_files_of_one_split_may_disagree_on_types_and_errors_name_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "part1.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    write_rows(tmp_path / "part2.jsonl", [{"text": "c", "label": "1"}])
    dataset = {"path": "jsonl", "data_files": {"train": "part*.jsonl", "validation": ["part1.jsonl"]}}
    loaded = load_tasks([source(dataset=dataset)], tmp_path, 42)
    assert train_column(loaded, "label_mood") == [0, 1, 1]
    write_rows(tmp_path / "part2.jsonl", [{"text": "c", "label": "1"}, {"text": None, "label": "1"}])
    with pytest.raises(ValueError, match=r"part2\.jsonl, row 2: column 'text' .* holds None"):
        load_tasks([source(dataset=dataset)], tmp_path, 42)


def test_a_pattern_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl/a.csv").write_text("text,label\na,x\nb,y\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = find_files("t", "train", ["~/crawl/*.csv"], tmp_path / "elsewhere", folders=False)
    assert found == [str(tmp_path / "crawl/a.csv")]


@pytest.mark.parametrize("named", [["*.csv", "a.csv"], ["a.csv", "./a.csv"], ["https://x/a.csv", "https://x/a.csv"]])
def test_a_file_that_is_named_twice_is_refused(tmp_path: Path, named: list[str]) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,y\n")
    with pytest.raises(ValueError, match=r"tasks\.t\.dataset\.data_files, train: .*a\.csv is named twice"):
        find_files("t", "train", named, tmp_path, folders=False)


def test_folder_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "set [1]"
    folder.mkdir()
    assert len(load_csv(folder, FOUR_ROWS).sets[0].splits["train"]) == 4


def test_data_dir_finds_splits_by_file_name(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    load_csv(tmp_path / "set", FOUR_ROWS)
    loaded = load_tasks([source(dataset={"path": "csv", "data_dir": "set"})], tmp_path, 42)
    assert {split: len(rows) for split, rows in loaded.sets[0].splits.items()} == {"train": 4, "validation": 4}


def test_local_folder_of_csv_files_keeps_the_word_none(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    load_csv(tmp_path / "set", "text,label\nNone,1\nnull,0\n")
    loaded = load_tasks([source(dataset={"path": "set"})], tmp_path, 42)
    assert train_column(loaded, "sentences") == [["None"], ["null"]]


# Several tasks


def test_tasks_on_one_file_share_rows_and_empty_cells_are_not_labelled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "text,mood,topic,score\na,good,1.0,0.5\nb,,0.0,\nc,bad,,2\nd,,,\n"
    loaded = load_csv(
        tmp_path,
        text,
        source("mood", columns={"sentence": "text", "label": "mood"}),
        source("topic", columns={"sentence": "text", "label": "topic"}),
        source("rating", "regression", columns={"sentence": "text", "label": "score"}),
    )
    assert [labelled_set.tasks for labelled_set in loaded.sets] == [["mood", "topic", "rating"]]
    assert train_column(loaded, "sentences") == [["a"], ["b"], ["c"]]
    assert train_column(loaded, "label_mood") == [1, None, 0]
    assert train_column(loaded, "label_topic") == [1, 0, None]
    assert train_column(loaded, "label_rating") == [0.5, None, 2.0]
    assert loaded.score_ranges == {"rating": (0.5, 2.0)}
    assert "mood, topic, rating: 1 of 4 train rows carry no label and are left out" in caplog.messages


def test_tasks_on_other_columns_of_one_file_get_their_own_rows(tmp_path: Path) -> None:
    text = "text,label,a,b,score\ngood,x,,,\nbad,y,,,\n,,one,two,3\n"
    pair = source("pair", "similarity", columns={"sentence1": "a", "sentence2": "b", "label": "score"})
    loaded = load_csv(tmp_path, text, source(), pair)
    assert [labelled_set.splits["train"]["sentences"][:] for labelled_set in loaded.sets] == [
        [["good"], ["bad"]],
        [["one", "two"]],
    ]


def test_canonical_types_are_the_same_whatever_the_file_holds(tmp_path: Path) -> None:
    text = "a,b,n,label,score\nx,y,z,0|1,1\nu,v,w,1,2\n"
    pair = {"sentence1": "a", "sentence2": "b"}
    loaded = load_csv(
        tmp_path,
        text,
        source("tags", MULTI, columns=pair | {"label": "label"}),
        source("rating", "similarity", columns=pair | {"label": "score"}),
        source("search", "contrastive", columns={"anchor": "a", "positive": "b", "negative": ["n", "a"]}),
    )
    assert loaded.sets[0].splits["train"].features == Features(
        {
            "sentences": datasets.List(Value("string")),
            "label_tags": datasets.List(Value("float32")),
            "label_rating": Value("float64"),
        }
    )
    assert loaded.sets[1].splits["train"][:] == {
        "sentences": [["x", "y", "z", "x"], ["u", "v", "w", "u"]],
        "label_search": [1.0, 1.0],
    }


def test_shared_rows_with_two_validation_splits_name_both_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Tasks 'mood' and 'topic' .* differ in validation_split"):
        load_csv(tmp_path, FOUR_ROWS, source(validation_split=0.1), source("topic", validation_split=0.2))


# Label lists


@pytest.mark.parametrize(
    ("cells", "given", "names", "ids"),
    [
        (["b", " a ", "b"], None, ["a", "b"], [1, 0, 1]),
        ([10, 9, 10], None, ["9", "10"], [1, 0, 1]),
        (["10", "9.0", "10"], None, ["9.0", "10"], [1, 0, 1]),
        ([1.0, None, 0.0], None, ["0", "1"], [1, 0]),
        ([True, False, None], None, ["false", "true"], [1, 0]),
        ([1, 0, 1], ["no", "maybe"], ["no", "maybe"], [1, 0, 1]),
        ([1.0, "no", "0"], ["no", "maybe"], ["no", "maybe"], [1, 0, 0]),
        ([1, 2, 1], ["2", "1"], ["2", "1"], [1, 0, 1]),
        ([False, True], ["no", "yes"], ["no", "yes"], [0, 1]),
        ([3.5, 4.0], ["3.5", "4"], ["3.5", "4"], [0, 1]),
    ],
)
def test_class_cells_become_ids(
    tmp_path: Path, cells: list, given: list | None, names: list, ids: list, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_rows(tmp_path, [{"text": f"s{row}", "label": cell} for row, cell in enumerate(cells)], labels=given)
    assert loaded.labels["mood"] == names
    assert train_column(loaded, "label_mood") == ids
    assert any("from the train split" in line for line in caplog.messages) == (given is None)


def test_class_label_feature_gives_names_and_minus_one_is_not_labelled(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features)
    rows.to_parquet(tmp_path / "rows.parquet")
    dataset = {"path": "parquet", "data_files": {"train": "rows.parquet", "validation": "rows.parquet"}}
    for given, names, ids in (
        (None, ["neg", "pos"], [1, 0]),
        (["pos", "neg"], ["pos", "neg"], [0, 1]),
        (["bad", "good"], ["bad", "good"], [1, 0]),
    ):
        loaded = load_tasks([source(dataset=dataset, labels=given)], tmp_path, 42)
        assert (loaded.labels["mood"], train_column(loaded, "label_mood")) == (names, ids)


def test_label_without_training_row_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_csv(tmp_path, FOUR_ROWS, source(labels=["negative", "neutral", "positive"]))
    assert "mood: no training row has the label neutral" in caplog.messages


@pytest.mark.parametrize(
    ("cells", "given", "message"),
    [
        (
            ["good", "god"],
            ["bad", "good"],
            r"row 2: label 'god' is not a label of task 'mood'\. Did you mean 'good'\?",
        ),
        ([0, 2], ["bad", "good"], r"row 2: label 2 is not .* Known labels: \['bad', 'good'\]"),
        ([0, -1], ["bad", "good"], "row 2: label -1 is not a label"),
        ([1, 0], ["1", "2"], "row 2: label 0 is not a label"),
        (["no", "true"], [False, True], "row 1: label 'no' .* YAML reads an unquoted yes or no"),
        ([1, 2.5], None, "row 2: found 2.5: a score column for a classification task.*problem_type: regression"),
        (["1", "2.5"], None, "row 2: found '2.5': a score column"),
        ([0.0, float("nan")], ["a", "b"], "row 2: nan is no label"),
        (["a", ["b", "a"]], ["a", "b"], r"row 2: found list \['b', 'a'\] where task 'mood' needs one label"),
        (["a", "a"], None, r"found 1 label\(s\) \['a'\]"),
        (["a", "b"], ["a", "b", "a"], r"hold \['a'\] twice"),
        (["a", "b"], ["a"], "nothing to tell apart"),
    ],
)
def test_wrong_class_is_an_error_with_its_row(tmp_path: Path, cells: list, given: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, [{"text": f"s{row}", "label": cell} for row, cell in enumerate(cells)], labels=given)


def test_validation_label_unknown_to_train_names_the_validation_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"validation\.csv, row 1: label 'sad' .* or list the label under tasks\.mood"
    ):
        load_csv(tmp_path, FOUR_ROWS, validation="text,label\nx,sad\n")


# Multi-label


@pytest.mark.parametrize(
    ("cells", "given", "names", "rows"),
    [
        ([["b", "a"], [], None], None, ["a", "b"], [[1, 1], [0, 0]]),
        ([[2], [0, 1]], ["x", "y", "z"], ["x", "y", "z"], [[0, 0, 1], [1, 1, 0]]),
        (["x|z", "|", "", " y "], None, ["x", "y", "z"], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
        (["2|10", "2"], None, ["2", "10"], [[1, 1], [1, 0]]),
    ],
)
def test_multi_label_cells_become_flags(
    tmp_path: Path, cells: list, given: list | None, names: list, rows: list
) -> None:
    data = [{"text": f"s{row}", "label": cell} for row, cell in enumerate(cells)]
    loaded = load_rows(tmp_path, data, problem_type=MULTI, labels=given)
    assert loaded.labels["mood"] == names
    assert train_column(loaded, "label_mood") == rows


def test_flag_columns_become_labels_and_all_empty_is_not_labelled(tmp_path: Path) -> None:
    task = source(problem_type=MULTI, columns={"sentence": "text", "label": ["joy", "fear"]})
    loaded = load_csv(tmp_path, "text,joy,fear\na,1,0\nb,0.0,True\nc,,\nd,0,0\n", task)
    assert loaded.labels["mood"] == ["joy", "fear"]
    assert train_column(loaded, "label_mood") == [[1, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([["a"], ["a", "c"]], "row 2: label 'c' is not a label"),
        ([["a"], ["b", None]], "row 2: .* hold an empty or true/false entry"),
        ([[0], [0, 1, 0]], "row 2: .* hold one twice.* a row of zeros and ones is read from separate columns"),
        ([1, 0], r"row 1: found int 1 where multi-label task 'mood' needs a list"),
    ],
)
def test_wrong_multi_label_cell_is_an_error_with_its_row(tmp_path: Path, cells: list, message: str) -> None:
    data = [{"text": f"s{row}", "label": cell} for row, cell in enumerate(cells)]
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, data, problem_type=MULTI, labels=["a", "b"])


@pytest.mark.parametrize("row", ["b,2,0", "b,,0", "b,yes,0"])
def test_flag_that_is_not_zero_or_one_is_an_error(tmp_path: Path, row: str) -> None:
    task = source(problem_type=MULTI, columns={"sentence": "text", "label": ["joy", "fear"]})
    with pytest.raises(ValueError, match=r"row 2: column 'joy' holds .* needs 0 or 1"):
        load_csv(tmp_path, f"text,joy,fear\na,1,0\n{row}\n", task)


def test_label_list_of_another_length_than_the_flag_columns_is_an_error(tmp_path: Path) -> None:
    task = source(problem_type=MULTI, columns={"sentence": "text", "label": ["joy", "fear"]}, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"3 labels .* for 2 columns"):
        load_csv(tmp_path, "text,joy,fear\na,1,0\n", task)


# Scores


@pytest.mark.parametrize("cell", ["nan", "inf", "high", "1,5", "1_5", float("nan"), True, [1.0]])
def test_score_that_is_no_finite_number_is_an_error_with_its_row(tmp_path: Path, cell: Any) -> None:
    rows = [{"text": "a", "label": 1.5}, {"text": "b", "label": cell}]
    with pytest.raises(ValueError, match=r"row 2: found .* needs a number as its score"):
        load_rows(tmp_path, rows, problem_type="regression")


# Sentences


@pytest.mark.parametrize("cell", [5, None, "", " \t\n", ["a"]])
def test_sentence_that_is_no_text_or_empty_is_an_error_with_its_row(tmp_path: Path, cell: Any) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": cell, "label": "y"}]
    with pytest.raises(
        ValueError, match=r"train\.jsonl, row 2: column 'text' of task 'mood' holds .* sentence should be"
    ):
        load_rows(tmp_path, rows)


def test_rows_are_counted_without_header_and_with_newlines_in_cells(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv, row 3: column 'text'"):
        load_csv(tmp_path, 'text,label\n"a\nb\nc",x\nd,y\n,x\n')


def test_csv_column_of_numbers_is_not_taken_for_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.csv, row 1: column 'text' .* holds only numbers, like '12'"):
        load_csv(tmp_path, "text,label\n12,x\n7.5,y\n")


def test_empty_positive_is_an_error_but_an_empty_pair_is_left_out(tmp_path: Path) -> None:
    search = source("search", "contrastive", columns={"anchor": "a", "positive": "b"})
    loaded = load_csv(tmp_path, "a,b,c\nx,y,\n,,z\n", search)
    assert train_column(loaded, "sentences") == [["x", "y"]]
    with pytest.raises(ValueError, match=r"row 2: column 'b' of task 'search' holds None"):
        load_csv(tmp_path, "a,b,c\nx,y,\nu,,z\n", search)


# Files, columns, splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"columns": {"sentence": "txet", "label": "label"}},
            r"column 'txet', which is missing\. Did you mean 'text'\?",
        ),
        (
            {"columns": {"sentence": "text", "label": "mood"}},
            r"Columns: \['text', 'label'\].* tasks\.mood\.columns\.label",
        ),
        ({"columns": {"sentence": "text"}}, r"columns should name \['sentence', 'label'\] or .*Found \['sentence'\]"),
        ({"columns": {"sentence": "text", "label": ["a", "b"]}}, r"columns\.label should be a column's name"),
        ({"problem_type": "similarity"}, "columns should name"),
        ({"problem_type": "regresion"}, "unknown problem_type 'regresion'. Did you mean 'regression'"),
        ({"dataset": {"path": "csv", "data_files": {"train": "gone.csv"}}}, r"no file .*/gone\.csv.*--data_root"),
        ({"dataset": {"path": "csv", "data_files": {"train": "gone*.csv"}}}, r"no file .*/gone\*\.csv"),
        (
            {"dataset": {"path": "csv", "data_files": {"trian": "train.csv"}}},
            "unknown split 'trian'. Did you mean 'train'",
        ),
        ({"dataset": {"path": "csv"}}, "name the files under tasks.mood.dataset.data_files"),
        ({"dataset": {"path": "csv", "data_dir": "gone"}}, "no folder .*/gone"),
        ({"dataset": {"path": "cvs", "data_files": "train.csv"}}, "unknown file format 'cvs'. Did you mean 'csv'"),
        ({"dataset": {"path": "./gone"}}, "no folder .*gone.*--data_root"),
        ({"dataset": {"path": "train.csv"}}, r"train\.csv is a file.*path: csv"),
        ({"dataset": {"data_files": "train.csv"}}, "should hold the arguments of datasets.load_dataset"),
        (
            {"dataset": {"path": "csv", "data_files": "train.csv", "split": "train"}},
            r"dataset\.split is not supported",
        ),
        ({"dataset": {"path": "csv", "data_files": "train.csv", "wrong": 1}}, "no option 'wrong'.*Known: .*delimiter"),
        (
            {"dataset": {"path": "csv", "data_files": {"a": "train.csv"}, "splits": {"train": "b"}}},
            r"no split 'b'.*It has: \['a'\]",
        ),
        ({"dataset": {"path": "csv", "data_files": {"test": "train.csv"}}}, r"no train split \(found: \['test'\]\)"),
        (
            {"dataset": {"path": "csv", "data_files": "train.csv"}},
            "no validation split: add .*`validation_split: 0.1`",
        ),
        ({"validation_split": 0.1}, "Remove tasks.mood.validation_split"),
        ({"validation_split": 1.0}, "above 0 and below 1. Found 1.0"),
        ({"validation_split": True}, "above 0 and below 1. Found True"),
    ],
)
def test_wrong_source_is_an_error_that_says_what_to_mend(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_csv(tmp_path, FOUR_ROWS, source(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "could not load .*EmptyDataError"),
        ("text,label\n", "it holds no rows"),
        ("text,label\na,\nb,\n", r"the validation split .* has no labelled row \(rows: 2\)"),
        ("text,label\nHello, world,good\n", "row 1: the row has more fields than the header"),
        ("text,label\na,good\nb, c,good\n", "could not load .*Expected 2 fields in line 3, saw 3"),
    ],
)
def test_unreadable_or_empty_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(FOUR_ROWS)
    (tmp_path / "validation.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_tasks([source()], tmp_path, 42)
    assert "validation.csv" in str(caught.value)
    assert "mood" in str(caught.value) or "row 1" in str(caught.value)


def test_hub_set_uses_alias_splits_and_a_failed_load_tells_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    found = datasets.DatasetDict({"train": rows, "dev": rows.select([0]), "extra": rows, "test": rows})
    calls = []

    def fake_load(**arguments: Any) -> datasets.DatasetDict:
        calls.append(arguments)
        return found

    monkeypatch.setattr(sources_module, "load_dataset", fake_load)
    monkeypatch.setattr(sources_module, "load_dataset_builder", lambda **_: SimpleNamespace(config=None))
    task = source(dataset={"path": "someone/set", "revision": "abc"})
    loaded = load_tasks([task], tmp_path, 42)
    assert calls == [{"path": "someone/set", "revision": "abc"}]
    assert {split: len(data) for split, data in loaded.sets[0].splits.items()} == {
        "train": 2,
        "validation": 1,
        "test": 2,
    }
    assert "mood: the data set's splits extra are not used" in caplog.messages

    task.dataset["splits"] = {"train": "extra", "validation": "test"}
    assert set(load_tasks([task], tmp_path, 42).sets[0].splits) == {"train", "validation"}

    def failing_load(**_: Any) -> None:
        raise ConnectionError("cannot reach the Hub\nlong trace")

    monkeypatch.setattr(sources_module, "load_dataset_builder", failing_load)
    with pytest.raises(
        ValueError, match=r"Task 'mood': could not load .*someone/set.*ConnectionError: cannot reach"
    ) as e:
        load_tasks([task], tmp_path, 42)
    assert "long trace" not in str(e.value)


def test_evaluation_needs_neither_train_nor_validation(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(FOUR_ROWS)
    dataset = {"path": "csv", "data_files": {"test": "test.csv"}}
    loaded = load_tasks([source(dataset=dataset, labels=["negative", "positive"])], tmp_path, 42, require_train=False)
    assert loaded.sets[0].splits["test"]["label_mood"][:] == [1, 0, 1, 0]
    with pytest.raises(ValueError, match=r"without a train split the labels must stand under tasks.mood.labels"):
        load_tasks([source(dataset=dataset)], tmp_path, 42, require_train=False)


def test_rows_to_set_aside_without_a_train_split_are_an_error_in_evaluation(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\na,x\nb,y\n")
    own = source(dataset={"path": "csv", "data_files": {"test": "rows.csv"}}, labels=["x", "y"], validation_split=0.1)
    with pytest.raises(ValueError, match=r"validation_split: 0\.1 sets training rows aside, but .*\['test'\]"):
        load_tasks([own], tmp_path, 42, require_train=False)
