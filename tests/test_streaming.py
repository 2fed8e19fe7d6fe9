"""Training rows that are read onward: what is loaded, refused and kept on the disk, and which rows batches get."""

import json
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from multitask_sentence.data import report
from multitask_sentence.data.files import streams
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.report import describe, format_report
from multitask_sentence.data.rows.held_out import drop_held_out
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.rows.streamed import StreamedRows
from multitask_sentence.data.sampling.sampler import MixtureBatchSampler, MixtureDataset

COLUMNS = ["text", "mood"]
HELD_OUT = [["a film that is held out", "good"], ["a story that is kept back", "bad"]]
ROWS = [[f"a film number {number} of many", ("bad", "good")[number % 2]] for number in range(50)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are read 7 rows at a time."""
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)


def write(folder: Path, rows: list[list[Any]], name: str = "train.csv", columns: list[str] = COLUMNS) -> None:
    """A file of the format that its name ends with."""
    frame, path = pd.DataFrame(rows, columns=columns), folder / name
    writers: dict[str, Callable[[], Any]] = {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".tsv": lambda: frame.to_csv(path, sep="\t", index=False),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records"),
        ".parquet": lambda: frame.to_parquet(path),
        ".arrow": lambda: write_arrow(frame, path),
    }
    writers[path.suffix]()


def write_arrow(frame: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def source(task: str = "mood", streaming: bool = True, **changes: Any) -> TaskSource:
    dataset = {"path": "csv", "data_files": {"train": "train.csv", "validation": "validation.csv"}}
    dataset |= changes.pop("dataset", {})
    settings = {
        "problem_type": "single_label_classification",
        "dataset": dataset | ({"streaming": True} if streaming else {}),
        "columns": {"sentence": "text", "label": task},
    }
    return TaskSource(task, **{**settings, **changes})


def load(folder: Path, *sources: TaskSource) -> LoadedTasks:
    return load_tasks(list(sources or [source()]), folder, 42)


def train_rows(loaded: LoadedTasks) -> list[dict[str, Any]]:
    """The training rows of the first set, with their texts."""
    entry = loaded.sets[0]
    rows = entry.splits["train"]
    return (rows if entry.texts is None else StreamedRows(rows, entry.texts).read_all()).to_list()


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "arrow"])
def test_streamed_file_gives_the_rows_labels_and_lines_of_a_mapped_one(ending: str, tmp_path: Path, caplog):
    rows = [*ROWS[:20], ["a film without a label", None], ["A FILM number 3  of many", "bad"], *ROWS[20:]]
    write(tmp_path, rows[:30], f"train-1.{ending}")
    write(tmp_path, rows[30:], f"train-2.{ending}")
    write(tmp_path, HELD_OUT, f"validation.{ending}")
    dataset = {"path": ending, "data_files": {"train": f"train-*.{ending}", "validation": f"validation.{ending}"}}
    mapped = load(tmp_path, source(dataset=dataset, streaming=False, contradictions="drop"))
    told = caplog.messages.copy()
    caplog.clear()
    streamed = load(tmp_path, source(dataset=dataset, contradictions="drop"))
    assert any("texts have different labels" in line for line in told)
    assert caplog.messages == told
    assert train_rows(streamed) == train_rows(mapped)
    assert len(train_rows(streamed)) == 49, "one has no label, two contradict each other"
    assert streamed.labels == mapped.labels
    assert streamed.sets[0].splits["validation"].to_list() == mapped.sets[0].splits["validation"].to_list()
    caplog.clear()
    load(tmp_path, source(dataset=dataset, contradictions="drop"))
    assert caplog.messages == told, "the second load opens what the first has kept"


NESTED = [
    {"data": {"title": f"film {number}", "text": f"it was number {number}"}, "meta": {"tags": tags, "stars": number}}
    for number, tags in enumerate([["new"], ["new", "old"], [], ["old"]] * 10)
]


def test_nested_cells_joined_columns_conditions_and_several_tasks_are_read_as_of_a_mapped_file(tmp_path: Path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, NESTED)), encoding="utf-8")
    settings = {
        "dataset": {"path": "jsonl", "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
        "where": {"meta.stars": list(range(3, 30))},
    }
    sentence = ["data.title", "data.text"]

    def both(streaming: bool) -> LoadedTasks:
        tags = {"columns": {"sentence": sentence, "label": "meta.tags"}, "problem_type": "multi_label_classification"}
        stars = {"columns": {"sentence": sentence, "label": "meta.stars"}, "problem_type": "regression"}
        return load(
            tmp_path,
            source("tags", streaming, **settings, **tags),
            source("stars", streaming, **settings, **stars),
        )

    mapped, streamed = both(False), both(True)
    assert train_rows(streamed) == train_rows(mapped)
    assert train_rows(mapped)[0]["sentences"] == ["film 3 it was number 3"]
    assert (streamed.labels, streamed.score_ranges) == (mapped.labels, {"stars": (3.0, 29.0)})


def test_table_of_the_data_is_that_of_mapped_rows_and_says_whose_tokens_it_counts(
    tmp_path: Path, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
):
    columns = ["query", "answer", "wrong"]
    rows = [[f"query {number % 9}", f"answer {number % 7}", f"wrong {number % 4}"] for number in range(280)]
    for name in ("train.csv", "validation.csv"):
        write(tmp_path, rows, name, columns)
    settings = {
        "problem_type": "contrastive",
        "columns": {"anchor": "query", "positive": "answer", "negative": ["wrong", "answer"]},
        "where": {"wrong": ["wrong 1", "wrong 3"]},
    }
    mapped = describe(load(tmp_path, source("search", False, **settings)), tiny_tokenizer, 20)
    loaded = load(tmp_path, source("search", **settings))
    assert describe(loaded, tiny_tokenizer, 20) == mapped
    assert mapped[0]["duplicates"] == 14, "rows with other negatives are other rows"
    monkeypatch.setattr(report, "BATCH_ROWS", 10)
    told = format_report(describe(loaded, tiny_tokenizer, 20))
    assert "Tokens of the train rows of search, which are streamed, are those of the first 10." in told


def test_rows_that_stand_sorted_by_label_are_told(tmp_path: Path, tiny_tokenizer):
    write(tmp_path, HELD_OUT, "validation.csv")
    rare = [[text, "bad" if number in (10, 40) else "good"] for number, (text, _) in enumerate(ROWS)]
    for rows, is_told in ((sorted(ROWS, key=lambda row: row[1]), True), (ROWS, False), (rare, False)):
        write(tmp_path, rows)
        told = format_report(describe(load(tmp_path, source(dataset={"buffer_size": 20})), tiny_tokenizer, 20))
        assert ("train rows of mood, which are streamed, stand sorted by label, and 20 of them" in told) == is_told


BAD = {
    "no text": ([*ROWS[:30], [None, "good"], ["  ", "bad"], *ROWS[30:]], {}),
    "unknown label": ([*ROWS[:30], ["a film", "goood"]], {"labels": ["bad", "good"]}),
    "only numbers": ([[str(number), mood] for number, (_, mood) in enumerate(ROWS, 100)], {}),
    "no score": (ROWS, {"problem_type": "regression"}),
    "missing column": (ROWS, {"columns": {"sentence": "txt", "label": "mood"}}),
    "no label": ([[text, None] for text, _ in ROWS], {}),
    "swallowed rows": ([*ROWS[:12], ["a film,good\na story,bad\nit was", "good"], *ROWS[12:]], {}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_told_as_of_a_mapped_file(name: str, tmp_path: Path):
    rows, settings = BAD[name]
    write(tmp_path, rows)
    write(tmp_path, HELD_OUT, "validation.csv")
    with pytest.raises(ValueError) as mapped:
        load(tmp_path, source(streaming=False, **settings))
    with pytest.raises(ValueError) as streamed:
        load(tmp_path, source(**settings))
    assert str(streamed.value) == str(mapped.value)


def test_texts_of_json_that_are_none_are_told_as_of_a_mapped_file(tmp_path: Path):
    for name in ("train", "validation"):
        lines = [
            {"text": text if number % 9 else {"is": number}, "mood": mood} for number, (text, mood) in enumerate(ROWS)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    dataset = {"path": "jsonl", "data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}}
    errors = []
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"train\.jsonl, row 10: .* where a sentence should be") as error:
            load(tmp_path, source(streaming=streaming, dataset=dataset))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_odd_quotes_and_lines_of_a_csv_file_are_told_as_of_a_mapped_one(tmp_path: Path, caplog):
    lines = [f"{text},{mood},x" for text, mood in ROWS]
    lines[10] = '"a film" they say,good,x'
    lines[20] = '"a film\n\nof two lines",good,x'
    lines[30:32] = ['a film, "good",x', "a line,of,too,many,cells"]
    (tmp_path / "train.csv").write_text("\n".join(["text,mood,mood", *lines]), encoding="utf-8")
    write(tmp_path, HELD_OUT, "validation.csv")
    settings = {"labels": ["bad", "good", '"good"'], "dataset": {"on_bad_lines": "skip"}}
    load(tmp_path, source(streaming=False, **settings))
    told = [line for line in caplog.messages if "the longest" not in line]
    caplog.clear()
    load(tmp_path, source(**settings))
    assert sorted(caplog.messages) == sorted(told)
    for line in ("1 lines of", "text follows a closing quote", "quotes behind a space", "two columns 'mood'"):
        assert any(line in message for message in told), line


def test_file_without_rows_is_refused(tmp_path: Path):
    write(tmp_path, [])
    write(tmp_path, HELD_OUT, "validation.csv")
    with pytest.raises(ValueError, match=r"Task 'mood': .*train\.csv holds no rows\. Add rows"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validation_split": 0.1},
            r"tasks\.mood\.validation_split needs the texts of all training rows.*Take tasks\.",
        ),
        ({"test_split": 0.1}, r"tasks\.mood\.test_split needs .*name a test split of its own"),
        ({"augmentation": {"method": "x"}}, r"tasks\.mood\.augmentation needs .*augment the rows beforehand"),
        ({"dataset": {"explode": "text"}}, r"tasks\.mood\.dataset\.explode needs .*one row for each text"),
        ({"dataset": {"buffer_size": 0}}, r"buffer_size should be a whole number of rows above 0\. Found 0"),
        ({"streaming": False, "dataset": {"buffer_size": 9}}, r"buffer_size has no effect without `streaming: true`"),
        ({"streaming": False, "dataset": {"streaming": "yes"}}, r"streaming should be true or false\. Found 'yes'"),
        (
            {"dataset": {"path": "xlsx", "data_files": {"train": "train.csv"}}},
            r"streaming: xlsx files are read as a whole.*\['csv', 'tsv', 'json', 'jsonl', 'parquet', 'arrow'\]",
        ),
        (
            {"dataset": {"path": "json", "data_files": {"train": "train.csv"}, "field": "rows"}},
            r"field needs the whole file in memory.*write the rows as jsonl",
        ),
    ],
)
def test_what_cannot_be_had_of_a_stream_is_refused(settings: dict[str, Any], message: str, tmp_path: Path):
    write(tmp_path, ROWS)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, source(**settings))


def test_evaluation_needs_no_streamed_training_rows(tmp_path: Path):
    write(tmp_path, HELD_OUT, "validation.csv")
    found = load_tasks([source(labels=["bad", "good"])], tmp_path, 42, require_train=False)
    assert found.sets[0].splits.keys() == {"validation"}, "train.csv is not even there"


# ---- what is kept, and what changes ----


def test_no_text_lands_on_the_disk(tmp_path: Path, private_cache: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    load(tmp_path)
    kept = [path for path in private_cache.rglob("*") if path.is_file()]
    assert not [path for path in kept if b"of many" in path.read_bytes()]
    assert [path for path in kept if b"held out" in path.read_bytes()], "validation rows are kept as always"
    train = next(path for path in kept if path.name == "train.arrow")
    assert Dataset.from_file(str(train)).column_names == ["row", "row_hash", "label_mood"]


def test_only_a_window_of_texts_stands_in_memory(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    entry = load(tmp_path, source(dataset={"buffer_size": 10})).sets[0]
    rows, held = StreamedRows(entry.splits["train"], entry.texts), []
    for place in range(50):
        assert rows[place]["sentences"] == [ROWS[place][0]]
        held.append(len(rows._held))
    assert max(held) <= 10 + 2 * streams.BATCH_ROWS
    assert rows[45]["sentences"] == [ROWS[45][0]], "within the window, the order is free"
    assert rows[3]["sentences"] == [ROWS[3][0]], "an earlier row starts the stream anew"


def test_changed_text_and_missing_rows_are_errors_that_name_file_and_row(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    entry = load(tmp_path).sets[0]
    write(tmp_path, [*ROWS[:20], ["another text", "bad"], *ROWS[21:40]])
    rows = StreamedRows(entry.splits["train"], entry.texts)
    assert rows[19]["sentences"] == [ROWS[19][0]]
    with pytest.raises(ValueError, match=r"train\.csv, row 21: the text is not what it was when .*Start again"):
        rows[20]
    with pytest.raises(ValueError, match=r"it ends after 40 rows, before row 46, which was there when"):
        rows[45]


def test_changed_file_is_counted_anew(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    load(tmp_path)
    write(tmp_path, ROWS[:30])
    assert len(load(tmp_path).sets[0].splits["train"]) == 30


def test_files_of_a_server_that_tells_no_etag_are_counted_by_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}/train.csv"
            streamed = source(dataset={"data_files": {"train": address, "validation": "validation.csv"}})
            assert [row["sentences"] for row in train_rows(load(tmp_path, streamed))] == [[text] for text, _ in ROWS]
            write(tmp_path, ROWS[:30])
            assert len(load(tmp_path, streamed).sets[0].splits["train"]) == 30
        finally:
            server.shutdown()
            thread.join()


def test_held_out_rows_are_dropped_from_a_stream(tmp_path: Path):
    write(tmp_path, [*ROWS[:9], ["A film that  is HELD out", "good"], *ROWS[9:]])
    write(tmp_path, HELD_OUT, "validation.csv")
    loaded = load(tmp_path)
    drop_held_out(loaded)
    assert [row["sentences"][0] for row in train_rows(loaded)] == [text for text, _ in ROWS]


# ---- what batches get ----


def batches_of(loaded: LoadedTasks, batch_size: int, epochs: int, processes: int = 1) -> list[list[list[str]]]:
    """By process, the sentences of its batches; each reads for itself."""
    entry = loaded.sets[0]
    sampler = MixtureBatchSampler(
        [len(entry.splits["train"])], batch_size, num_processes=processes, windows=[entry.texts.buffer_size]
    )
    readers = [MixtureDataset([StreamedRows(entry.splits["train"], entry.texts)]) for _ in range(processes)]
    found: list[list[list[str]]] = [[] for _ in range(processes)]
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(sampler):
            rows = readers[number % processes].__getitems__(batch)
            found[number % processes].append([row["sentences"][0] for row in rows])
    return found


def test_every_pass_meets_every_row_once_in_another_order(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    loaded = load(tmp_path, source(dataset={"buffer_size": 8}))
    (found,) = batches_of(loaded, 4, epochs=3)
    dealt = [text for batch in found for text in batch]
    passes = [dealt[start : start + 50] for start in range(0, 150, 50)]
    assert [sorted(own) for own in passes] == [sorted(text for text, _ in ROWS)] * 3
    assert len({tuple(own) for own in passes}) == 3
    places = [[[text for text, _ in ROWS].index(text) for text in own] for own in passes]
    moved = [abs(place - number) for own in places for number, place in enumerate(own)]
    assert max(moved) < 8, "a row stays within its window"


def test_processes_share_the_rows_of_one(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    loaded = load(tmp_path, source(dataset={"buffer_size": 8}))
    (one,), two = batches_of(loaded, 5, 2), batches_of(loaded, 5, 2, processes=2)
    assert [batch for pair in zip(*two, strict=True) for batch in pair] == one


def test_windows_cover_a_set_whose_pass_ends_within_a_batch():
    sampler = MixtureBatchSampler([23], 7, rows_per_epoch=[46], windows=[5])
    rows = [row for batch in sampler for row in batch]
    assert [sorted(rows[:23]), sorted(rows[23:])] == [list(range(23))] * 2


def test_workers_that_are_forked_from_a_process_that_reads_start_their_own_streams(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(streams, "BATCH_ROWS", 1000)
    texts = [f"{number} {'is a long film ' * 9}" for number in range(21_000)]  # more than a reader takes at once
    write(tmp_path, [[text, "good"] for text in texts])
    write(tmp_path, HELD_OUT, "validation.csv")
    entry = load(tmp_path, source(labels=["bad", "good"])).sets[0]
    rows = StreamedRows(entry.splits["train"], entry.texts)
    assert rows[0]["sentences"] == [texts[0]]
    batches = DataLoader(MixtureDataset([rows]), batch_size=1000, num_workers=2, collate_fn=list)
    assert [row["sentences"][0] for batch in batches for row in batch] == texts


def test_files_are_closed_with_the_rows_that_were_read_from_them(tmp_path: Path):
    write(tmp_path, ROWS)
    write(tmp_path, HELD_OUT, "validation.csv")
    entry = load(tmp_path).sets[0]
    rows = StreamedRows(entry.splits["train"], entry.texts)
    rows[0]
    pieces = rows._pieces
    assert pieces.gi_frame is not None, "premise"
    del rows
    assert pieces.gi_frame is None
