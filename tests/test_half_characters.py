"""Half characters (lone surrogates) in training data are read as U+FFFD and counted, whatever file they stand in."""

import csv
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.text.half_characters import (
    HALVES,
    encoding_errors_for,
    holds_escaped_halves,
    without_halves,
)

HALF = "\ud83d"
BYTES = b"\xed\xa0\xbd"


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def load(tmp_path: Path, path: str, problem_type: str = "single_label_classification", **options: Any) -> LoadedTasks:
    dataset = {"path": path, "data_files": {"train": f"rows.{path}", "validation": f"rows.{path}"}} | options
    columns = {"sentence": "text", "label": "label"}
    return load_tasks([TaskSource("t", problem_type, dataset, columns)], tmp_path, seed=42)


def check(loaded: LoadedTasks, caplog: pytest.LogCaptureFixture, rows: int = 1, first: int = 2) -> None:
    assert [row[0] for row in loaded.sets[0].splits["train"]["sentences"]] == ["fine \U0001f600", "cut \ufffd!"]
    told = [line for line in caplog.messages if "U+FFFD" in line]
    assert told and all(line.endswith(f"first in row {first}") and f" {rows} rows of " in line for line in told)
    caplog.clear()


@pytest.mark.parametrize("path", ["csv", "fasttext"])
def test_bytes_of_half_a_character_in_text_files(tmp_path: Path, path: str, caplog: pytest.LogCaptureFixture) -> None:
    fine = "fine \U0001f600".encode()
    lines = {
        "csv": b"text,label\n" + fine + b",x\ncut " + BYTES + b"!,y\n",
        "fasttext": b"__label__x " + fine + b"\n__label__y cut " + BYTES + b"!\n",
    }
    (tmp_path / f"rows.{path}").write_bytes(lines[path])
    check(load(tmp_path, path), caplog)


def test_two_halves_that_belong_together_are_one_character(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = "\ud83d\ude00".encode("utf-8", "surrogatepass")
    (tmp_path / "rows.csv").write_bytes(b"text,label\nfine " + pair + b",x\ncut " + BYTES + b"!,y\n")
    check(load(tmp_path, "csv"), caplog)


def test_half_characters_in_utf16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f"text,label\nfine \U0001f600,x\ncut {HALF}!,y\n"
    (tmp_path / "rows.csv").write_bytes(text.encode("utf-16", "surrogatepass"))
    check(load(tmp_path, "csv", encoding="utf-16"), caplog)


def test_a_reader_in_pieces_finds_every_half(tmp_path: Path) -> None:
    rows = 30_001  # at many different places of a piece
    (tmp_path / "rows.csv").write_bytes(
        b"text,label\n" + b"".join(b"%d " % row + BYTES + b",x\n" for row in range(rows))
    )
    with (tmp_path / "rows.csv").open(encoding="utf-8", errors=HALVES, newline="") as file:
        assert [cells[0] for cells in csv.reader(file)][1:] == [f"{row} \ufffd" for row in range(rows)]


@pytest.mark.parametrize("form", ["lines", "list", "field"])
def test_escaped_half_characters_in_json(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "fine \U0001f600", "label": "x"}, {"text": f"cut {HALF}!", "label": "y"}]
    content = (
        "\n".join(map(json.dumps, rows)) if form == "lines" else json.dumps(rows if form == "list" else {"d": rows})
    )
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    check(load(tmp_path, "json", **({"field": "d"} if form == "field" else {})), caplog)


def test_half_characters_in_parquet_and_saved_data_sets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = pa.array(["fine \U0001f600".encode(), b"cut " + BYTES + b"!"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, texts.buffers())
    table = pa.table({"text": texts, "label": ["x", "y"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    check(load(tmp_path, "parquet"), caplog)
    datasets.DatasetDict(dict.fromkeys(("train", "validation"), datasets.Dataset(table))).save_to_disk(
        tmp_path / "saved"
    )
    columns = {"sentence": "text", "label": "label"}
    check(
        load_tasks([TaskSource("t", "single_label_classification", {"path": "saved"}, columns)], tmp_path, seed=42),
        caplog,
    )


def spoilt(cells: list[bytes]) -> pa.Array:
    """Bytes, whatever they are, as Arrow holds text."""
    return pa.Array.from_buffers(pa.string(), len(cells), pa.array(cells, pa.binary()).buffers())


@pytest.mark.parametrize("changed", ["shuffled", "selected"])
def test_texts_keep_their_labels_where_rows_were_reordered(changed: str) -> None:
    texts = [b"cut " + BYTES, *(b"text %d" % number for number in range(1, 20))]
    rows = datasets.Dataset(pa.table({"sentence": spoilt(texts), "label": [f"label {n}" for n in range(20)]}))
    rows = rows.shuffle(seed=3) if changed == "shuffled" else rows.select([0, 3, 5])
    found = without_halves("t", "here", rows)
    assert len(found) == len(rows) and "cut \ufffd" in found["sentence"][:]
    for text, label in zip(found["sentence"], found["label"], strict=True):
        assert text.replace("cut \ufffd", "text 0").split()[1] == label.split()[1]


def test_half_characters_in_lists_and_objects_of_parquet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = spoilt(["fine \U0001f600".encode(), b"cut " + BYTES + b"!"])
    nested = pa.StructArray.from_arrays([texts, pa.array([[1], [2, 3]])], names=["text", "numbers"])
    listed = pa.ListArray.from_arrays(pa.array([0, 1, 2]), texts)
    pq.write_table(pa.table({"nested": nested, "listed": listed, "label": ["x", "y"]}), tmp_path / "rows.parquet")
    dataset = {"path": "parquet", "data_files": dict.fromkeys(("train", "validation"), "rows.parquet")}
    for column in ("nested.text", "listed.0"):
        columns = {"sentence": column, "label": "label"}
        check(load_tasks([TaskSource("t", "single_label_classification", dataset, columns)], tmp_path, 42), caplog)


def test_other_bytes_in_parquet_are_told_with_file_row_and_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": spoilt([b"fine", b"caf\xe9"]), "label": ["x", "y"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: column 'text' holds bytes that are no UTF-8: b'caf"):
        load(tmp_path, "parquet")


def test_half_characters_in_sqlite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(tmp_path / "rows.sqlite")) as connection:
        connection.execute("CREATE TABLE r (text, label)")
        connection.execute("INSERT INTO r VALUES (?, 'x')", ["fine \U0001f600"])
        connection.execute(f"INSERT INTO r VALUES (CAST(x'{(b'cut ' + BYTES + b'!').hex()}' AS TEXT), 'y')")
        connection.commit()
    check(load(tmp_path, "sqlite", sql="r"), caplog)


def test_half_a_character_in_a_label_name_can_be_written_anywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.csv").write_text('text,label\na,"[""x\\ud83d"", ""y""]"\nb,"[""y""]"\n', encoding="utf-8")
    loaded = load(tmp_path, "csv", "multi_label_classification")
    assert loaded.labels["t"] == ["x\ufffd", "y"]
    "\n".join(caplog.messages).encode()


def test_other_bytes_that_are_no_utf8_stay_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"text,label\na " + BYTES + b" \xff,x\nb,y\n")
    with pytest.raises(ValueError, match="not in UTF-8: add `encoding: "):
        load(tmp_path, "csv")
    with pytest.raises(ValueError, match="surrogatepass gives halves of characters"):
        load(tmp_path, "csv", encoding_errors="surrogatepass")


def test_whole_characters_need_no_other_reader() -> None:
    assert encoding_errors_for("\U0001f600 \ud7ff".encode(), "utf-8") == "strict"
    assert encoding_errors_for(b"caf\xe9", "utf-8") == "strict"
    assert not holds_escaped_halves(rb'"\ud83d\ude00"')
    assert holds_escaped_halves(rb'"\ud83d\ud83d\ude00"') and holds_escaped_halves(rb'"\ude00"')
