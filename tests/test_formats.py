"""What is read from Excel, fastText, JSON, SQLite and SQL, from folders, and from what annotation tools export."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from multitask_sentence.data.files.formats import FORMATS, check_options
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
BOTH = ("train", "validation")


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(
    tmp_path: Path, dataset: dict[str, Any], sentence: Any = "text", label: Any = "label", **changes: Any
) -> LoadedTasks:
    """The rows of a task `t`; a split that `data_files` does not name serves as train and validation split."""
    if isinstance(files := dataset.get("data_files"), str):
        dataset = dataset | {"data_files": dict.fromkeys(BOTH, files)}
    settings = {"problem_type": SINGLE, "columns": {"sentence": sentence, "label": label}} | changes
    return load_tasks([TaskSource(name="t", dataset=dataset, **settings)], tmp_path, seed=42)


def rows(loaded: LoadedTasks, split: str = "train") -> list[tuple[str, Any]]:
    """Sentence and label name (of a multi-label task the list, else the value) of each row."""
    names, found = loaded.labels.get("t"), []
    for sentences, label in zip(
        *(loaded.sets[0].splits[split][name] for name in ("sentences", "label_t")), strict=True
    ):
        if names is not None:
            label = [n for n, on in zip(names, label, strict=True) if on] if isinstance(label, list) else names[label]
        found.append((sentences[0], label))
    return found


def write_json(path: Path, content: Any) -> None:
    lines = isinstance(content, list) and path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content), encoding="utf-8")


# Tables


def test_excel_sheets_keep_text_and_numbers(tmp_path: Path) -> None:
    with pd.ExcelWriter(tmp_path / "book.xlsx") as book:
        frame = pd.DataFrame(
            {"text": ["NA", "007", "two\nlines"], "label": ["None", "x", None], "score": [1.5, 2, None]}
        )
        frame.to_excel(book, sheet_name="first", index=False)
        frame[::-1].to_excel(book, sheet_name="second", index=False)
    loaded = load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx"})
    assert rows(loaded) == [("NA", "None"), ("007", "x")]
    loaded = load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx"}, label="score", problem_type="regression")
    assert rows(loaded) == [("NA", 1.5), ("007", 2.0)]
    by_split = {"train": "first", "validation": "second"}
    loaded = load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx", "sheet_name": by_split})
    assert rows(loaded, "validation") == [("007", "x"), ("NA", "None")]
    with pytest.raises(ValueError, match=r"could not load .*book\.xlsx.*Worksheet named 'third' not found"):
        load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx", "sheet_name": "third"})
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"book\.xlsx.* The file is no whole \.xlsx workbook"):
        load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx"})


def test_excel_column_of_text_and_numbers_is_text(tmp_path: Path) -> None:
    pd.DataFrame({"text": [12, "a b"], "label": ["x", 7]}).to_excel(tmp_path / "book.xlsx", index=False)
    assert rows(load(tmp_path, {"path": "xlsx", "data_files": "book.xlsx"})) == [("12", "x"), ("a b", "7")]


def write_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE reviews (text, label, stars, split)")
        found = [("007", "x", 1, "train"), ("a 'b'", "y", 10**15 + 1, "train"), ("c", None, None, "train")]
        connection.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", [*found, ("d", "x", 2, "dev")])
    connection.close()


def test_sqlite_reads_a_table_or_a_query_for_each_split(tmp_path: Path) -> None:
    write_database(tmp_path / "a b.db")
    files = {"path": "sqlite", "data_files": "a b.db"}
    assert rows(load(tmp_path, files | {"sql": "reviews"})) == [("007", "x"), ("a 'b'", "y"), ("d", "x")]
    assert load(tmp_path, files | {"sql": "reviews"}, label="stars").labels == {"t": ["1", "2", str(10**15 + 1)]}
    sql = {split: f"SELECT text, label FROM reviews WHERE split = '{split}'" for split in ("train", "dev")}
    loaded = load(tmp_path, {"path": "sqlite", "data_files": dict.fromkeys(sql, "a b.db"), "sql": sql})
    assert (rows(loaded), rows(loaded, "validation")) == ([("007", "x"), ("a 'b'", "y")], [("d", "x")])
    with pytest.raises(ValueError, match=r"could not load .*no such table: gone"):
        load(tmp_path, files | {"sql": "SELECT text FROM gone"})
    with pytest.raises(ValueError, match=r"attempt to write a readonly database"):
        load(tmp_path, files | {"sql": "DELETE FROM reviews"})
    with pytest.raises(ValueError, match=r"tasks\.t\.dataset\.sql should be a query, like .* Found None"):
        load(tmp_path, files)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    write_database(tmp_path / "a.db")
    sql = "SELECT text, label, label FROM reviews"
    with pytest.raises(ValueError, match=r"a\.db, SELECT .*: two columns are called 'label'\. .*`AS`"):
        load(tmp_path, {"path": "sqlite", "data_files": "a.db", "sql": sql})


def test_sql_address_never_holds_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = {"path": "sql", "sql": {"train": "SELECT 1", "validation": "SELECT 1"}}
    with pytest.raises(ValueError, match=r"con holds a password.*`con: \$DATABASE_ADDRESS`") as caught:
        load(tmp_path, dataset | {"con": "postgresql://me:secret@host/db"})
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="the environment has no variable GONE"):
        load(tmp_path, dataset | {"con": "$GONE"})
    with pytest.raises(ValueError, match=r"dataset\.con should be an address"):
        load(tmp_path, dataset)


def test_sql_reads_an_address_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra sql")
    write_database(tmp_path / "reviews.db")
    monkeypatch.setenv("DATABASE_ADDRESS", f"sqlite:///{tmp_path}/reviews.db")
    query = "SELECT text, label FROM reviews"
    loaded = load(tmp_path, {"path": "sql", "con": "$DATABASE_ADDRESS", "sql": {"train": query, "validation": query}})
    assert rows(loaded) == [("007", "x"), ("a 'b'", "y"), ("d", "x")]


# Text with labels


def test_fasttext_lines_give_texts_with_one_or_several_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lines.txt").write_text(
        "__label__a the red  box\n__label__b , a cat\n\n__label__a no label__x\nbare\n"
    )
    dataset = {"path": "fasttext", "data_files": "lines.txt"}
    loaded = load(tmp_path, dataset)
    assert rows(loaded) == [("the red  box", "a"), (", a cat", "b"), ("no label__x", "a")]
    assert "t: 2 of 5 train rows carry no label and are left out" in caplog.messages
    (tmp_path / "lines.txt").write_text("#a #b the red box\n#c|d,e a cat\n")
    loaded = load(tmp_path, dataset | {"label_prefix": "#"}, problem_type=MULTI)
    assert rows(loaded) == [("the red box", ["a", "b"]), ("a cat", ["c|d,e"])]
    with pytest.raises(ValueError, match=r"lines\.txt: no line holds a word that starts with '__label__'"):
        load(tmp_path, dataset)


def test_folder_for_each_class_gives_the_texts_of_its_files(tmp_path: Path) -> None:
    for name in ("train/pos/b.txt", "train/pos/a.txt", "train/neg/deep/c.txt", "test/pos/d.txt", "train/pos/.hidden"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(f"text of\n{name}")
    wanted = [("text of\ntrain/neg/deep/c.txt", "neg"), *((f"text of\ntrain/pos/{n}.txt", "pos") for n in "ab")]
    loaded = load(tmp_path, {"path": "folder", "data_dir": "set"}, validation_split=0.5)
    assert sorted(rows(loaded) + rows(loaded, "validation")) == wanted
    assert rows(loaded, "test") == [("text of\ntest/pos/d.txt", "pos")]
    assert rows(load(tmp_path, {"path": "folder", "data_files": "set/train"})) == wanted
    (tmp_path / "set/train/neg/bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"could not load .*set/train/neg/bad\.txt.*UnicodeDecodeError"):
        load(tmp_path, {"path": "folder", "data_files": "set/train"})
    with pytest.raises(ValueError, match=r"set/test/pos: there are no folders with files in them"):
        load(tmp_path, {"path": "folder", "data_files": "set/test/pos"})
    with pytest.raises(ValueError, match=r"there is no folder .*/gone \(train split\)"):
        load(tmp_path, {"path": "folder", "data_files": "gone"})
    with pytest.raises(ValueError, match=r"set holds text files, and .*`path: folder`"):
        load(tmp_path, {"path": "set"})


@pytest.mark.parametrize("splits", [True, False])
def test_folder_of_save_to_disk_is_read_with_its_features(tmp_path: Path, splits: bool) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    saved = Dataset.from_dict({"text": ["a", "b", "c", "d"], "label": [1, 0, 1, 0]}, features)
    (DatasetDict({"train": saved, "dev": saved}) if splits else saved).save_to_disk(tmp_path / "saved")
    loaded = load(tmp_path, {"path": "saved"}, validation_split=None if splits else 0.5)
    assert loaded.labels == {"t": ["neg", "pos"]}
    found = rows(loaded) if splits else sorted(rows(loaded) + rows(loaded, "validation"))
    assert found == [("a", "pos"), ("b", "neg"), ("c", "pos"), ("d", "neg")]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"path": "text", "data_files": "x.txt"}, r"`path: fasttext` for lines .*column_names: \[label, text\]`"),
        ({"path": "yaml", "data_files": "nlu.yml"}, "write the examples as rows with a text and a label"),
        ({"path": "excel", "data_files": "x.xlsx"}, "write `path: xlsx`"),
        ({"path": "xls", "data_files": "x.xls"}, r"save the workbook as \.xlsx and write `path: xlsx`"),
        ({"path": "rows.jsonl"}, r"rows\.jsonl is a file.*path: jsonl, data_files: \{train: rows\.jsonl\}"),
        ({"path": "rows.db"}, r"rows\.db is a file.*path: sqlite"),
        ({"path": "xlsx", "data_dir": "."}, "name xlsx files under data_files"),
        ({"path": "xlsx", "data_files": "rows.db", "sheet": "x"}, "no option 'sheet'. Did you mean 'sheet_name'"),
        ({"path": "jsonl", "data_files": "rows.jsonl", "fields": "x"}, "no option 'fields'. Did you mean 'field'"),
        ({"path": "jsonl", "data_files": "rows.jsonl", "use_threads": False}, "no option 'use_threads'"),
        ({"path": "csv", "data_files": "rows.jsonl", "revision": "main"}, "no option 'revision'"),
        ({"path": "csv", "data_dir": 5}, r"data_dir should be a folder's path\. Found 5"),
        ({"path": "csv", "data_files": "x.csv", 5: 1}, r"the key 5 is no name of an option"),
        ({"path": "csv", "data_files": "rows.jsonl", "dialect": "x"}, r"dialect should be one of \['excel'"),
        ({"path": "csv", "data_files": "rows.jsonl", "names": {}}, r"names should be a list of names\. Found \{\}"),
        ({"path": "json", "data_files": "rows.jsonl", "column_names": True}, "column_names should be a list of names"),
        (
            {"path": "fasttext", "data_files": "rows.jsonl", "label_prefix": 1.5},
            r"label_prefix should be text\. Found",
        ),
        ({"path": "folder", "data_files": "s3://x"}, "there is no folder"),
        ({"path": "a/b", "token": "hf_x"}, "a token does not belong in a recipe"),
    ],
)
def test_what_is_not_read_says_what_to_write(tmp_path: Path, dataset: dict, message: str) -> None:
    for name in ("rows.jsonl", "rows.db"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, dataset)


# JSON

PAIR = [{"text": "007", "label": "1"}, {"text": "b", "label": "01"}]


def test_rows_below_a_field_are_read_with_their_text_as_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"meta": 1, "data": {"rows": PAIR}})
    loaded = load(tmp_path, {"path": "json", "data_files": "x.json", "field": "data.rows"}, labels=["1", "01"])
    assert rows(loaded) == [("007", "1"), ("b", "01")]
    with pytest.raises(
        ValueError, match=r"x\.json, field data\.row: there is no 'row' with rows\. Did you mean 'rows'"
    ):
        load(tmp_path, {"path": "json", "data_files": "x.json", "field": "data.row"})
    with pytest.raises(
        ValueError, match=r"found '1' where a list of rows should be\. Correct tasks\.t\.dataset\.field"
    ):
        load(tmp_path, {"path": "json", "data_files": "x.json", "field": "meta"})


def test_field_may_differ_from_split_to_split(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"train": PAIR, "val": PAIR[:1]})
    with pytest.raises(ValueError, match=r"add `field: \{train: train, validation: val\}` to tasks\.t\.dataset"):
        load(tmp_path, {"path": "json", "data_files": {"train": "x.json"}}, validation_split=0.5)
    field = {"train": "train", "validation": "val"}
    source = TaskSource("t", SINGLE, {"path": "json", "data_files": "x.json", "field": field}, {}, ["1", "01"])
    source.columns = {"sentence": "text", "label": "label"}
    loaded = load_tasks([source], tmp_path, seed=42)
    assert (rows(loaded), rows(loaded, "validation")) == ([("007", "1"), ("b", "01")], [("007", "1")])
    source.dataset |= {"data_files": {"train": "x.json", "test": "x.json"}}
    with pytest.raises(ValueError, match=r"dataset\.field has no entry for the split 'test'"):
        load_tasks([source], tmp_path, seed=42)


@pytest.mark.parametrize("dataset", [{"path": "jsonl"}, {"path": "jsonl", "streaming": True}, {"path": "of_the_hub"}])
def test_rows_that_look_like_traces_of_agents_are_rows(tmp_path: Path, dataset: dict[str, Any]) -> None:
    found = [
        {"type": "question", "payload": {"text": "How?", "stars": 4}},
        {"type": "complaint", "payload": {"text": "It broke.", "reply": "Sorry"}},
    ]
    (tmp_path / "of_the_hub").mkdir()
    for split in BOTH:
        write_json(tmp_path / "of_the_hub" / f"{split}.jsonl", found)
    if dataset["path"] == "jsonl":
        dataset = dataset | {"data_files": {split: f"of_the_hub/{split}.jsonl" for split in BOTH}}
    loaded = load(tmp_path, dataset, sentence="payload.text", label="type")
    assert rows(loaded, "validation") == [("How?", "question"), ("It broke.", "complaint")]
    assert loaded.labels["t"] == ["complaint", "question"] and len(loaded.sets[0].splits["train"]) == 2


def test_large_object_names_its_field(tmp_path: Path) -> None:
    write_json(
        tmp_path / "x.json", {"data": [{"text": "a b c " * 600 + str(n), "label": n % 2} for n in range(4_000)]}
    )
    assert (tmp_path / "x.json").stat().st_size > 10 << 20  # more than one chunk of the reader
    with pytest.raises(ValueError, match="add `field: data` to"):
        load(tmp_path, {"path": "json", "data_files": "x.json"})
    loaded = load(tmp_path, {"path": "json", "data_files": "x.json", "field": "data"}, validation_split=None)
    assert len(loaded.sets[0].splits["train"]) == 4_000


def test_lists_of_cells_get_column_names(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"train": [["007", "x"], ["b", "y"]]})
    dataset = {"path": "json", "data_files": "x.json"}
    with pytest.raises(ValueError, match=r"add `field: \{train: train\}` and `column_names: \[\.\.\.\]`"):
        load(tmp_path, dataset)
    with pytest.raises(ValueError, match=r"row 1: found .* an object with names\. .* add `column_names: \[\.\.\.\]`"):
        load(tmp_path, dataset | {"field": "train"})
    named = dataset | {"field": "train", "column_names": ["text", "label"]}
    assert rows(load(tmp_path, named)) == [("007", "x"), ("b", "y")]
    write_json(tmp_path / "x.json", [["007", "x"], ["b"]])
    with pytest.raises(ValueError, match=r"x\.json, row 2: .* should be a list of 2 cells, .*Correct the row"):
        load(tmp_path, dataset | {"column_names": ["text", "label"]})


def test_dotted_columns_lead_into_nested_cells(tmp_path: Path) -> None:
    nested = [
        {"data": {"text": "a", "more": [{"x": "p"}]}, "text.en": "A", "n": {"k.l": 1}},
        {"data": {"text": "b", "more": [{"x": "q"}, {"x": "r"}]}, "text.en": "B", "n": {"k.l": 2}},
        {"data": {"text": "c", "more": []}, "text.en": "C", "n": None},
    ]
    write_json(tmp_path / "x.jsonl", nested)
    dataset = {"path": "jsonl", "data_files": "x.jsonl"}
    assert rows(load(tmp_path, dataset, "data.text", "data.more.0.x")) == [("a", "p"), ("b", "q")]
    assert rows(load(tmp_path, dataset, "text.en", "data.more.0.x")) == [("A", "p"), ("B", "q")]
    assert rows(load(tmp_path, dataset, "text.en", "n.k.l")) == [("A", "1"), ("B", "2")]
    with pytest.raises(ValueError, match=r"column 'text', which is missing\. Did you mean 'data\.text'\?"):
        load(tmp_path, dataset, "text", "data.more.0.x")
    with pytest.raises(
        ValueError, match=r"column 'data' .* holds objects, .* Name what it holds: data\.text, data\.more\.0\.x"
    ):
        load(tmp_path, dataset, "data", "data.more.0.x")
    with pytest.raises(ValueError, match=r"column 'data\.txt', which is missing\. Did you mean 'data\.text'\?"):
        load(tmp_path, dataset, "data.txt", "data.more.0.x")


def test_column_of_text_lists_is_exploded_where_the_recipe_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    intents = [{"tag": "hello", "patterns": ["hi", "hey"]}, {"tag": "bye", "patterns": ["see you"]}]
    write_json(tmp_path / "x.json", {"intents": [*intents, {"tag": "none", "patterns": []}]})
    dataset = {"path": "json", "data_files": "x.json", "field": "intents"}
    with pytest.raises(
        ValueError, match=r"column 'patterns' .*holds lists, like \['hi', 'hey'\].*`explode: patterns`"
    ):
        load(tmp_path, dataset, "patterns", "tag")
    loaded = load(tmp_path, dataset | {"explode": "patterns"}, "patterns", "tag")
    assert rows(loaded) == [("hi", "hello"), ("hey", "hello"), ("see you", "bye")]
    assert any("the 3 rows of" in line and "give 3, one for each 'patterns'" in line for line in caplog.messages)
    write_json(
        tmp_path / "nested.json", [{"tag": own["tag"], "data": {"patterns": own["patterns"]}} for own in intents]
    )
    dataset |= {"explode": "data.patterns", "data_files": "nested.json", "field": None}
    assert rows(load(tmp_path, dataset, "data.patterns", "tag")) == rows(loaded)
    dataset = {"path": "json", "data_files": "x.json", "field": "intents"}
    with pytest.raises(ValueError, match=r"column 'tag' holds 'hello' and no list"):
        load(tmp_path, dataset | {"explode": "tag"}, "patterns", "tag")


PAGE = (Path(__file__).parents[1] / "docs/training.md").read_text(encoding="utf-8")


SHOWN = [yaml.safe_load(line) for line in re.findall(r"^\| [^|]+ \| `(\{path: .*\})` \|$", PAGE, flags=re.MULTILINE)]


@pytest.mark.parametrize("dataset", [pytest.param(own, id=str(own)) for own in SHOWN if own["path"] in FORMATS])
def test_page_on_recipes_gives_options_that_exist(dataset: dict[str, Any]) -> None:
    options = {
        key: value for key, value in dataset.items() if key not in ("path", "data_files", "data_dir", "explode")
    }
    check_options("t", dataset["path"], options)


def test_page_on_recipes_names_every_format() -> None:
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`\w+`[^|]*) \|", PAGE, flags=re.MULTILINE)))
    assert set(FORMATS) <= set(named)


# Annotation tools, read with the lines that docs/training.md gives


def documented(export: str) -> dict[str, Any]:
    """The lines of the task that the page has for an export, as settings of a TaskSource."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {export} |"))
    return yaml.safe_load("\n".join(line.split("`")[1::2]))


def load_export(tmp_path: Path, export: str, content: list[dict[str, Any]], **changes: Any) -> LoadedTasks:
    """Read an export with the page's lines, as JSON and as JSONL, with the same result."""
    settings, found = documented(export) | changes, []
    for path in ("json", "jsonl"):
        write_json(tmp_path / f"x.{path}", content)
        found.append(load(tmp_path, {"path": path, "data_files": f"x.{path}"}, **settings))
    assert rows(found[0]) == rows(found[1])
    return found[0]


def annotation(task: int, text: str, topic: list[str], first: bool = True, cancelled: bool = False) -> dict[str, Any]:
    """A task of Label Studio's JSON export with two controls, whose order is not fixed."""
    result = [
        {"id": f"r{task}", "type": "choices", "value": {"choices": topic}, "from_name": "topic", "to_name": "text"},
        {"id": f"s{task}", "type": "rating", "value": {"rating": 3}, "from_name": "stars", "to_name": "text"},
    ]
    given = {"id": task, "was_cancelled": cancelled, "result": result if first else result[::-1]}
    return {"id": task, "annotations": [given], "data": {"text": text}}


def test_label_studio_export_is_read_by_the_name_of_its_control(tmp_path: Path) -> None:
    tasks = [annotation(1, "a", ["up"]), annotation(2, "b", ["down", "up"], first=False)]
    tasks += [annotation(3, "c", ["up"], cancelled=True), {"id": 4, "annotations": [], "data": {"text": "d"}}]
    write_json(tmp_path / "x.json", tasks)
    dataset = {"path": "json", "data_files": "x.json"}
    label = "annotations.0.result.from_name=topic.value.choices"
    loaded = load_export(tmp_path, "Label Studio, JSON", tasks, problem_type=MULTI)
    assert rows(loaded) == [("a", ["up"]), ("b", ["down", "up"])]
    with pytest.raises(ValueError, match=rf"column 'topic', which is missing\. Did you mean '{label}'\?"):
        load(tmp_path, dataset, "data.text", "topic")
    rating = "annotations.0.result.from_name=stars.value.rating"
    loaded = load(tmp_path, dataset, "data.text", rating, problem_type="regression")
    assert rows(loaded) == [("a", 3.0), ("b", 3.0), ("c", 3.0)]


def test_label_studio_short_export_is_read_by_column(tmp_path: Path) -> None:
    content = [{"id": 1, "text": "a", "topic": "up"}, {"id": 2, "text": "b", "topic": "down"}]
    assert rows(load_export(tmp_path, "Label Studio, JSON-MIN", content)) == [("a", "up"), ("b", "down")]


def test_prodigy_export_keeps_what_was_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = [("a", "SPORT", "accept"), ("b", "NEWS", "accept"), ("c", "SPORT", "reject"), ("d", "NEWS", "ignore")]
    content = [{"text": text, "label": name, "answer": answer} for text, name, answer in answers]
    loaded = load_export(tmp_path, "Prodigy, labels accepted or rejected", content)
    assert rows(loaded) == [("a", "SPORT"), ("b", "NEWS")]
    assert "t: 2 of 4 train rows are left out by where {'answer': 'accept'}" in caplog.messages


def test_prodigy_choices_are_read_as_several_labels(tmp_path: Path) -> None:
    chosen = [("a", ["x"], "accept"), ("b", ["y", "x"], "accept"), ("c", [], "accept"), ("d", [], "ignore")]
    options = [{"id": "x", "text": "X"}, {"id": "y", "text": "Y"}]
    content = [{"text": text, "accept": ids, "answer": answer, "options": options} for text, ids, answer in chosen]
    loaded = load_export(tmp_path, "Prodigy, choices", content, problem_type=MULTI)
    assert rows(loaded) == [("a", ["x"]), ("b", ["x", "y"]), ("c", [])]


def test_argilla_export_is_read_from_its_fields_and_responses(tmp_path: Path) -> None:
    def record(text: str, value: str, status: str = "completed") -> dict[str, Any]:
        responses = {"topic": [{"value": value, "user_id": "u"}]} if status == "completed" else {}
        return {"id": text, "fields": {"text": text}, "responses": responses, "suggestions": {}, "status": status}

    content = [record("a", "up"), record("b", "down"), record("c", "up", "pending")]
    assert rows(load_export(tmp_path, "Argilla 2, JSON", content)) == [("a", "up"), ("b", "down")]
    old = [("a", "up", "Validated"), ("b", "down", "Validated"), ("c", None, "Default")]
    content = [{"text": text, "annotation": label, "status": status} for text, label, status in old]
    assert rows(load_export(tmp_path, "Argilla 1", content)) == [("a", "up"), ("b", "down")]


def test_doccano_lists_of_one_label_are_read_as_one(tmp_path: Path) -> None:
    content = [
        {"id": n, "text": text, "label": [label], "Comments": []} for n, text, label in [(1, "a", "x"), (2, "b", "y")]
    ]
    assert rows(load_export(tmp_path, "doccano, JSONL", content)) == [("a", "x"), ("b", "y")]
    loaded = load_export(tmp_path, "doccano, JSONL", content, problem_type=MULTI)
    assert rows(loaded) == [("a", ["x"]), ("b", ["y"])]


def test_argilla_data_set_has_lists_of_responses(tmp_path: Path) -> None:
    content = [{"text": "a", "topic.responses": ["up"], "status": "completed"}]
    content += [{"text": "b", "topic.responses": ["down"], "status": "completed"}]
    content += [{"text": "c", "topic.responses": None, "status": "pending"}]
    assert rows(load_export(tmp_path, "Argilla 2, as a data set", content)) == [("a", "up"), ("b", "down")]


def test_spacy_cats_are_read_as_one_or_several_labels(tmp_path: Path) -> None:
    content = [{"text": "a", "cats": {"x": 1.0, "y": 0.0}}, {"text": "b", "cats": {"x": 0.0, "y": 1.0}}]
    loaded = load_export(tmp_path, "spaCy, categories", content, problem_type=MULTI)
    assert rows(loaded) == [("a", ["x"]), ("b", ["y"])]
    assert rows(load_export(tmp_path, "spaCy, categories", content)) == [("a", "x"), ("b", "y")]
    content = [{"text": "a", "cats": {"x": 1.0}}, {"text": "b", "cats": {"y": 1}}, {"text": "c", "cats": {}}]
    loaded = load_export(tmp_path, "spaCy, categories", content, problem_type=MULTI)
    assert rows(loaded)[:2] == [("a", ["x"]), ("b", ["y"])]


def test_label_studio_choices_of_one_label_are_read_as_one(tmp_path: Path) -> None:
    content = [annotation(1, "a", ["up"]), annotation(2, "b", ["down"], first=False)]
    assert rows(load_export(tmp_path, "Label Studio, JSON", content)) == [("a", "up"), ("b", "down")]
