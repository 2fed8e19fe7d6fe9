"""Files as people have them: what is read in another way than it was meant is told, and an error names what "
"mends it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.training.recipe.recipe import load_recipe

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LONG = "x" * 5000


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(
    tmp_path: Path, content: str | bytes | None, path: str = "csv", problem_type: str = SINGLE, **changes: Any
) -> LoadedTasks:
    """A file with this content as train and validation split; `changes` are options of `dataset` or of the task."""
    if content is not None:
        (tmp_path / f"rows.{path}").write_bytes(content.encode() if isinstance(content, str) else content)
    own = {key: changes.pop(key) for key in ("columns", "labels", "where", "label_map") if key in changes}
    dataset = {"path": path, "data_files": {"train": f"rows.{path}", "validation": f"rows.{path}"}} | changes
    settings = {"columns": {"sentence": "text", "label": "label"}} | own
    return load_tasks([TaskSource("t", problem_type, dataset, **settings)], tmp_path, seed=42)


def load_cells(tmp_path: Path, cells: list[str], problem_type: str = MULTI, **changes: Any) -> LoadedTasks:
    frame = pd.DataFrame({"text": [f"text {row}" for row in range(len(cells))], "label": cells})
    return load(tmp_path, frame.to_csv(index=False), problem_type=problem_type, **changes)


def rows(loaded: LoadedTasks) -> list[tuple[str, Any]]:
    names, train = loaded.labels["t"], loaded.sets[0].splits["train"]
    labels = [
        [name for name, on in zip(names, label, strict=True) if on] if isinstance(label, list) else names[label]
        for label in train["label_t"]
    ]
    return [(row[0], label) for row, label in zip(train["sentences"], labels, strict=True)]


def told(caplog: pytest.LogCaptureFixture, words: str) -> str:
    """The first line logged since the last call that holds the words."""
    lines = list(caplog.messages)
    caplog.clear()
    found = [line for line in lines if words in line]
    assert found, lines
    return found[0]


# ---- csv ----


def test_backslash_before_a_quote_is_told_and_its_option_reads_the_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = 'text,label\n"He said \\"hi\\" twice",x\n"b",y\n'
    load(tmp_path, content)
    line = told(caplog, "text follows a closing quote")
    assert "in 1 cells" in line and "add `escapechar: '\\'` to tasks.t.dataset" in line
    loaded = load(tmp_path, content, escapechar="\\")
    assert rows(loaded) == [('He said "hi" twice', "x"), ("b", "y")]
    assert "closing quote" not in "".join(caplog.messages)
    with pytest.raises(ValueError, match=r"written with a backslash: add `escapechar: '\\'`"):
        load(tmp_path, 'text,label\n"He said \\"hi\\", twice",x\n"b",y\n')


def test_quotes_that_enclose_a_part_of_a_cell_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = 'label,text\nx,"great" they said\ny,a 5" screen\n'
    load(tmp_path, content)
    assert "add `quoting: 3`" in told(caplog, "in 1 cells")
    assert rows(load(tmp_path, content, quoting=3)) == [('"great" they said', "x"), ('a 5" screen', "y")]
    load(tmp_path, 'text,label\n"a ""b"", c","x"\r\n"d\n, e",y\n')
    assert "closing quote" not in "".join(caplog.messages)


def test_quotes_and_names_behind_a_space(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = 'text,label\nok, "x"\nbad, "y"\n'
    load(tmp_path, content)
    assert "add `skipinitialspace: true`" in told(caplog, "2 cells")
    assert rows(load(tmp_path, content, skipinitialspace=True)) == [("ok", "x"), ("bad", "y")]
    with pytest.raises(ValueError, match="A space stands before the column's name: add `skipinitialspace: true`"):
        load(tmp_path, "text, label\nok, x\nbad, y\n")


@pytest.mark.parametrize(
    ("content", "options", "remedy"),
    [
        ("sep=;\ntext;label\na;x\nb;y\n", {"delimiter": ";", "skiprows": 1}, "skiprows: 1` and `delimiter: ';'`"),
        ("Reviews,,\ntext,label,n\na,x,1\nb,y,2\n", {"skiprows": 1}, "line 2: add `skiprows: 1`"),
        ("# by us\n\ntext,label\na,x\nb,y\n", {"skiprows": 2}, "line 3: add `skiprows: 2`"),
        ("text~label\na~x\nb~y\n", {"delimiter": "~"}, "delimiter: '~'"),
        ("text,label\na,x,\nb,y,\n", {"index_col": False}, "Every row ends with a delimiter: add `index_col: false`"),
        ("__label__x a\n__label__y b\n", {"path": "fasttext"}, "write `path: fasttext`"),
    ],
)
def test_header_elsewhere_names_the_option_that_reads_the_file(
    tmp_path: Path, content: str, options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, content)
    assert remedy in str(error.value)
    assert rows(load(tmp_path, content, **options)) == [("a", "x"), ("b", "y")]


def test_column_that_stands_twice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load(tmp_path, "text,label,label\na,x,1\nb,y,2\n")
    assert "the first is read" in told(caplog, "two columns 'label'")
    assert rows(loaded) == [("a", "x"), ("b", "y")]


def test_empty_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The file is empty"):
        load(tmp_path, "")


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ("0,5", "add `decimal: ','` to tasks.t.dataset"),
        ("1.234,5", "add `decimal: ','` and `thousands: '.'`"),
        ("1,234.5", "add `thousands: ','`"),
        ("35 %", "Write it as a plain number"),
        ("€4", "Write it as a plain number"),
        ("n/a", "missing_labels"),
    ],
)
def test_score_that_is_no_number_says_what_reads_it(tmp_path: Path, cell: str, remedy: str) -> None:
    with pytest.raises(ValueError) as error:
        load_cells(tmp_path, ["1", cell], "regression")
    assert remedy in str(error.value)
    with pytest.raises(ValueError, match="row 1: found") as error:  # where these options do not exist
        load(tmp_path, json.dumps([{"text": "a", "label": cell}]), "json", "regression")
    assert "decimal" not in str(error.value) and "thousands" not in str(error.value)


# ---- labels ----


@pytest.mark.parametrize("separator", [" and ", " und ", "·", "•", "\u060c"])
def test_unusual_separators_are_named(tmp_path: Path, separator: str) -> None:
    cells = [separator.join(names) for names in ("ab", "b", "abc", "c", "a", "cb")]
    with pytest.raises(ValueError) as error:
        load_cells(tmp_path, cells)
    assert f"tasks.t.label_separator: '{separator}'" in str(error.value)


def test_few_cells_with_another_separator_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_cells(tmp_path, ["a|b", "b|c", "a, b", "a|c", "a"])
    line = told(caplog, "1 label names are others with ','")
    assert "such as 'a, b' (1 cells in all)" in line


@pytest.mark.parametrize("separator", ["|", ", ", "/"])
def test_joined_labels_of_a_single_label_task_are_told(
    tmp_path: Path, separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_cells(tmp_path, ["a", f"a{separator}b", "b", "x/y"], SINGLE)
    line = told(caplog, "1 label names are others with")
    assert f"'a{separator}b'" in line and "write tasks.t.problem_type: multi_label_classification" in line


def test_lists_within_json_text_and_flags_as_text(tmp_path: Path) -> None:
    cells = [json.dumps(json.dumps(names)) for names in (["a", "b"], ["b"])]
    assert [names for _, names in rows(load_cells(tmp_path, cells))] == [["a", "b"], ["b"]]
    cells = ['{"a": "1", "b": "0"}', '{"a": "false", "b": "true"}']
    assert [names for _, names in rows(load_cells(tmp_path, cells))] == [["a"], ["b"]]


def test_ids_with_a_separator_name_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label_separator: ','"):
        load_cells(tmp_path, ["0,2", "1", "2,1"], labels=["a", "b", "c"])


def test_lists_as_python_numpy_and_torch_show_them(tmp_path: Path) -> None:
    cells = ["{'a', 'b'}", "set()", "array(['b'], dtype=object)", "['a']"]
    assert [names for _, names in rows(load_cells(tmp_path, cells))] == [["a", "b"], [], ["b"], ["a"]]
    cells = ["tensor([1, 0])", "array([0., 1.])", "[1 1]"]
    loaded = load_cells(tmp_path, cells, labels=["a", "b"])
    assert [names for _, names in rows(loaded)] == [["a"], ["b"], ["a", "b"]]
    assert [name for _, name in rows(load_cells(tmp_path, ["set(s)", "b"], SINGLE))] == ["set(s)", "b"]


@pytest.mark.parametrize("separator", [",", " "])
def test_flags_with_a_separator_name_it(tmp_path: Path, separator: str) -> None:
    cells = [separator.join(flags) for flags in ("101", "000", "011")]
    with pytest.raises(ValueError, match=f"label_separator: '{separator}'"):
        load_cells(tmp_path, cells, labels=["a", "b", "c"])


def test_list_with_broken_quotes_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looks like a list and cannot be read as one"):
        load_cells(tmp_path, ['["a, "b"]', "b"])


# ---- json, fastText, folders, Excel ----


@pytest.mark.parametrize(
    "content",
    [
        {"text": ["a", "b"], "label": ["x", "y"]},
        {"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}},
        {"r1": {"text": "a", "label": "x"}, "r2": {"text": "b", "label": "y"}},
    ],
)
def test_json_that_is_no_list_of_rows_is_read_as_a_table(
    tmp_path: Path, content: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load(tmp_path, json.dumps(content), "json")
    assert rows(loaded) == [("a", "x"), ("b", "y")]
    assert "read as a table of 2 rows" in told(caplog, "no list of rows")


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b'{"text": "a", "label": "x"},\n{"text": "b", "label": "y"},\n', "The lines end in commas"),
        (b"[{'text': 'a', 'label': 'x'}]", "as Python shows its objects. Write it with json.dump"),
        (b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"\n', "Line 2 is no JSON"),
        ('[{"text": "schön", "label": "x"}]'.encode("latin-1"), "add `encoding: latin-1`"),
    ],
)
def test_damaged_json_says_what_mends_it(tmp_path: Path, content: bytes, remedy: str) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, content, "json")
    assert remedy in str(error.value)


def test_byte_order_mark_takes_no_label_and_stands_in_no_text(tmp_path: Path) -> None:
    assert rows(load(tmp_path, "\ufeff__label__x a\r\nb __label__y\r\n", "fasttext")) == [("a", "x"), ("b", "y")]
    for name, text in (("x", "\ufeffa"), ("y", "b")):
        (tmp_path / "reviews" / name).mkdir(parents=True)
        (tmp_path / "reviews" / name / "1.txt").write_text(text, encoding="utf-8")
    splits = {"data_files": {"train": "reviews", "validation": "reviews"}}
    assert rows(load(tmp_path, None, "folder", **splits)) == [("a", "x"), ("b", "y")]


def test_workbook_names_its_sheets_and_where_a_column_stands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    with pd.ExcelWriter(tmp_path / "rows.xlsx") as book:
        pd.DataFrame({"note": ["by us"]}).to_excel(book, sheet_name="Info", index=False)
        frame.to_excel(book, sheet_name="Data", index=False, startrow=2)
    with pytest.raises(ValueError, match="row 3 of sheet 'Data': add `sheet_name: Data, header: 2`"):
        load(tmp_path, None, "xlsx")
    assert rows(load(tmp_path, None, "xlsx", sheet_name="Data", header=2)) == [("a", "x"), ("b", "y")]
    with pd.ExcelWriter(tmp_path / "rows.xlsx") as book:
        frame.to_excel(book, sheet_name="one", index=False)
        frame.to_excel(book, sheet_name="two", index=False)
    load(tmp_path, None, "xlsx")
    assert "only the first is read" in told(caplog, "of the sheets ['one', 'two']")
    load(tmp_path, None, "xlsx", sheet_name="two")
    assert "sheets" not in "".join(caplog.messages)
    (tmp_path / "rows.xlsx").write_text("text,label\na,x\n", encoding="utf-8")
    with pytest.raises(ValueError, match="The file is no Excel file, whatever its name says"):
        load(tmp_path, None, "xlsx")


@pytest.mark.parametrize(
    ("column", "good", "bad"), [("answer", "accept", "reject"), ("status", "completed", "pending")]
)
def test_rejected_rows_are_told_where_no_condition_leaves_them_out(
    tmp_path: Path, column: str, good: str, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = [{"text": "a", "label": "x", column: good}, {"text": "b", "label": "y", column: good}]
    content = json.dumps([*found, {"text": "c", "label": "x", column: bad}])
    load(tmp_path, content, "json")
    line = told(caplog, "count like all others")
    assert f"{bad} (2 rows)" in line and f"tasks.t.where: {{{column}: {good}}}" in line  # once in each split
    loaded = load(tmp_path, content, "json", where={column: good})
    assert len(rows(loaded)) == 2 and "count like" not in "".join(caplog.messages)


@pytest.mark.parametrize("path", ["csv", "parquet", "json"])
@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "get it with `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "This is a web page or XML, not a table"),
    ],
)
def test_what_is_no_data_at_all_is_named(tmp_path: Path, path: str, content: bytes, remedy: str) -> None:
    with pytest.raises(ValueError) as error:
        load(tmp_path, content, path)
    assert remedy in str(error.value)


def test_files_of_another_format_name_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="This looks like JSON: write `path: json`"):
        load(tmp_path, json.dumps([{"text": "a", "label": "x"}]))
    pd.DataFrame({"text": ["a"], "label": ["x"]}).to_parquet(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="write `path: parquet`"):
        load(tmp_path, None)


# ---- long values ----


@pytest.mark.parametrize(
    ("cells", "changes"),
    [
        (["a", "b", LONG], {"labels": ["a", "b"]}),
        ([LONG, LONG], {}),
        ([LONG], {"problem_type": "regression"}),
        ([f"{LONG}, b", LONG, "b", f"b, {LONG}"], {"problem_type": MULTI}),
        ([f'["{LONG}", "b"]', "b"], {}),
        (["a", "b"], {"labels": [LONG, LONG]}),
        (["a", "b"], {"where": {"text": LONG}}),
        (["a", "b"], {"where": {LONG: "a"}}),
        (["a", "b"], {"label_map": {LONG: "c"}, "labels": ["a", "b"]}),
        (["a", "b"], {"columns": {"sentence": LONG, "label": "label"}}),
        (["a", "b"], {LONG: 1}),
        (["a", "b"], {"data_files": {"train": LONG}}),
        (["a", "b"], {"data_files": {LONG: "rows.csv"}}),
        (["a", "b"], {"path": LONG, "data_files": None}),
        (["a", "b"], {"explode": LONG}),
    ],
)
def test_long_values_are_cut_in_errors(tmp_path: Path, cells: list[str], changes: dict[str, Any]) -> None:
    frame = pd.DataFrame({"text": [f"text {row}" for row in range(len(cells))], "label": cells})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    own = {"problem_type": SINGLE, "columns": {"sentence": "text", "label": "label"}}
    own |= {key: changes[key] for key in ("problem_type", "columns", "labels", "where", "label_map") if key in changes}
    dataset = {"path": "csv", "data_files": {"train": "rows.csv", "validation": "rows.csv"}}
    dataset |= {key: value for key, value in changes.items() if key not in own}
    dataset = {key: value for key, value in dataset.items() if value is not None}
    with pytest.raises(ValueError) as error:
        load_tasks([TaskSource("t", dataset=dataset, **own)], tmp_path, seed=42)
    assert "xxxxx" in str(error.value) and len(str(error.value)) < 2000


def test_long_lines_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_cells(tmp_path, [f"{LONG}1", f"{LONG}2"], SINGLE)
    assert loaded.labels["t"] == [f"{LONG}1", f"{LONG}2"]
    assert max(map(len, caplog.messages)) < 1000


@pytest.mark.parametrize(
    "line", ["pooling: {}", "card: {{license: [{}]}}", "mixture: {{sampling: {}}}", "max_length: {}"]
)
def test_long_values_are_cut_in_errors_of_a_recipe(tmp_path: Path, line: str) -> None:
    tasks = "tasks: {t: {problem_type: regression, dataset: {path: csv}, columns: {sentence: a, label: b}}}"
    (tmp_path / "recipe.yaml").write_text(f"{tasks}\n{line.format(LONG)}\n", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        load_recipe(tmp_path / "recipe.yaml")
    assert "xxxxx" in str(error.value) and len(str(error.value)) < 3000
