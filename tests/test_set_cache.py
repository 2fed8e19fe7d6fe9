"""Rows in canonical columns: written in batches, kept on disk, and opened from there by the next run."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
from datasets.arrow_writer import ArrowWriter

from multitask_sentence.data.cache import sets
from multitask_sentence.data.cache.arrays import BATCH_ROWS, cached_text
from multitask_sentence.data.cache.sets import cached_splits, set_key
from multitask_sentence.data.cache.shards import file_hash
from multitask_sentence.data.files.parts import Cells
from multitask_sentence.data.loading import tasks
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.report import describe
from multitask_sentence.data.rows.sets import LoadedTasks
from multitask_sentence.data.text.sameness import row_hash, row_hashes

ROWS = [(f"a film number {number}", ("bad", "good")[number % 2], number / 10) for number in range(40)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def write(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    path.write_text("\n".join(["text,mood,score", *(",".join(map(str, row)) for row in rows)]), encoding="utf-8")
    return path


def source(name: str = "mood", **changes: Any) -> TaskSource:
    kinds = {"mood": "single_label_classification", "score": "regression"}
    settings = {
        "problem_type": kinds.get(name, kinds["mood"]),
        "dataset": {"path": "csv", "data_files": {"train": "rows.csv"}},
        "columns": {"sentence": "text", "label": name},
        "validation_split": 0.2,
    }
    return TaskSource(name, **{**settings, **changes})


def load(folder: Path, *sources: TaskSource, seed: int = 42) -> LoadedTasks:
    return load_tasks(list(sources or [source(), source("score")]), folder, seed)


def rows_of(loaded: LoadedTasks) -> list[dict[str, list[Any]]]:
    return [{split: rows[:] for split, rows in entry.splits.items()} for entry in loaded.sets]


def replace_without_a_trace(path: Path, old: str, new: str) -> None:
    """Other content of the same length with the same time."""
    status = path.stat()
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size


def test_the_second_load_opens_what_the_first_kept_and_tells_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "rows.csv", [*ROWS, ("a film number 1", "bad", 7.5)])
    first, told = load(tmp_path), caplog.messages.copy()
    assert sum("texts have different labels" in line for line in told) == 2, "once for each task"
    replace_without_a_trace(file, "a film", "A CAT!")
    caplog.clear()
    second = load(tmp_path)
    assert rows_of(second) == rows_of(first)
    assert vars(second) | {"sets": None} == vars(first) | {"sets": None}
    assert caplog.messages == told


def test_a_file_with_another_time_or_length_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.csv", ROWS)
    load(tmp_path)
    replace_without_a_trace(file, "a film", "A CAT!")
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 10**9))
    assert all(row[0].startswith("A CAT!") for row in load(tmp_path).sets[0].splits["train"]["sentences"])


@pytest.mark.parametrize("path", ["csv", "jsonl", "parquet", "a local folder"])
def test_a_file_of_another_length_with_the_same_time_is_read_again(tmp_path: Path, path: str) -> None:
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / f"rows.{'jsonl' if path == 'a local folder' else path}"
    dataset = {"path": "set"} if path == "a local folder" else {"path": path, "data_files": f"set/{file.name}"}

    def load_texts(word: str) -> list[str]:
        rows = datasets.Dataset.from_dict({"text": [f"{word} {n}" for n in range(20)], "mood": ["bad", "good"] * 10})
        {".csv": rows.to_csv, ".jsonl": rows.to_json, ".parquet": rows.to_parquet}[file.suffix](file)
        os.utime(file, ns=(0, 10**18))
        splits = load(tmp_path, source(dataset=dataset)).sets[0].splits
        return sorted(cells[0] for rows in splits.values() for cells in rows["sentences"])

    assert "a text 0" in load_texts("a text")
    assert "another text 0" in load_texts("another text")


def test_files_in_linked_folders_are_read_and_read_again_where_they_change(tmp_path: Path) -> None:
    for name in ("good", "bad", "more"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / f"elsewhere/{name}/{number}.txt").write_text(f"{name} text {number}")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/good").symlink_to(tmp_path / "elsewhere/good")
    (tmp_path / "set/bad").symlink_to(tmp_path / "elsewhere/bad")
    (tmp_path / "elsewhere/bad/more").symlink_to(tmp_path / "elsewhere/more")
    (tmp_path / "elsewhere/more/above").symlink_to(tmp_path / "elsewhere/bad")  # a circle
    columns = {"sentence": "text", "label": "label"}
    folder = source(dataset={"path": "folder", "data_files": "set"}, columns=columns)

    def texts() -> set[str]:
        splits = load(tmp_path, folder).sets[0].splits
        found = [cells[0] for rows in splits.values() for cells in rows["sentences"]]
        assert len(found) == len(set(found)), "each file once"
        return set(found)

    assert len(texts()) == 18
    (tmp_path / "elsewhere/good/new.txt").write_text("a new text")
    (tmp_path / "elsewhere/more/new.txt").write_text("another new text")
    assert {"a new text", "another new text"} <= texts()


def test_other_settings_and_seeds_have_rows_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "rows.csv", ROWS)
    first = rows_of(load(tmp_path, source()))
    assert rows_of(load(tmp_path, source(), seed=1)) != first
    mapped = load(tmp_path, source(label_map={"bad": "poor"}))
    assert mapped.labels["mood"] == ["good", "poor"]
    assert rows_of(load(tmp_path, source())) == first


def test_rows_are_files_that_are_mapped_and_so_are_their_hashes(tmp_path: Path, private_cache: Path) -> None:
    write(tmp_path / "rows.csv", ROWS)
    for rows in load(tmp_path).sets[0].splits.values():
        assert Path(rows.cache_files[0]["filename"]).is_relative_to(private_cache / "multitask_rows")
        hashes = row_hashes(rows)
        assert hashes.tolist() == [row_hash(sentences) for sentences in rows["sentences"]]
        assert Path(hashes.filename).parent == Path(rows.cache_files[0]["filename"]).parent
    assert not list(private_cache.rglob("*.part")), "nothing unfinished is left behind"


def flip_a_bit(path: Path) -> None:
    """In the middle of what the file holds."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "gone", "facts", "train.arrow", "facts.json"])
def test_kept_rows_that_are_damaged_are_read_from_the_file_again(
    tmp_path: Path, private_cache: Path, damage: str
) -> None:
    write(tmp_path / "rows.csv", ROWS)
    first = rows_of(load(tmp_path))
    (file,) = private_cache.rglob("train.arrow")
    whole = file_hash(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "gone":
        file.unlink()
    elif damage == "facts":
        (file.parent / "facts.json").write_text("{")
    else:
        flip_a_bit(file.parent / damage)
    assert rows_of(load(tmp_path)) == first
    assert file_hash(file) == whole, "written anew"


def test_kept_arrays_and_texts_that_are_damaged_are_computed_again(tmp_path: Path, private_cache: Path) -> None:
    write(tmp_path / "rows.csv", ROWS)
    rows = load(tmp_path).sets[0].splits["train"]
    hashes = row_hashes(rows).tolist()
    assert cached_text(rows, "words", lambda: "as it is") == "as it is"
    for path in (*private_cache.rglob("*row_hash*.npy"), *private_cache.rglob("*words.txt")):
        flip_a_bit(path)
    assert cached_text(rows, "words", lambda: "made anew") == "made anew"
    assert cached_text(rows, "words", lambda: "not again") == "made anew"
    assert row_hashes(rows).tolist() == hashes


def test_a_second_set_keeps_the_sides_of_the_first_whether_that_was_read_or_kept(
    tmp_path: Path, private_cache: Path
) -> None:
    write(tmp_path / "rows.csv", ROWS)
    write(tmp_path / "more.csv", [*ROWS[::-1], *((f"a bank number {number}", "bad", 1) for number in range(40))])
    other = source(
        "other", columns={"sentence": "text", "label": "mood"}, dataset={"path": "csv", "data_files": "more.csv"}
    )
    found = [rows_of(load(tmp_path, source(), other)) for _ in range(2)]
    assert found[0] == found[1]
    shutil.rmtree(private_cache / "multitask_rows")
    load(tmp_path, source())  # the first set is kept, the second is read
    assert rows_of(load(tmp_path, source(), other)) == found[0]
    sentences = [{row[0] for row in entry["validation"]["sentences"]} for entry in found[0]]
    assert sentences[0] == {text for text in sentences[1] if text.startswith("a film")}


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, label_parts = write(tmp_path / "rows.csv", ROWS), tasks.label_parts

    def touch_and_label(*arguments: Any) -> Any:
        os.utime(file, (1, 1))
        return label_parts(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(tasks, "label_parts", touch_and_label)
        with pytest.raises(ValueError, match=r"'mood': its files changed while they were read\. Start again"):
            load(tmp_path)
    load(tmp_path)


def build_small(folder: Path) -> dict[str, Any]:
    with ArrowWriter(path=str(folder / "train.arrow")) as writer:
        writer.write({"text": "a film"})
        writer.finalize()
    return {"labels": ["bad"]}


@pytest.mark.parametrize("moment", ["replace", "read_text"])
def test_a_set_that_another_process_finishes_first_is_opened_and_stays(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    others, own = [], getattr(Path, moment)

    def after_another(path: Path, *args: Any, **options: Any) -> Any:
        """The other process finishes just before this one moves its folder, or just after it has looked for one."""
        if others or (path.name not in ("facts.json", "key") and not path.name.startswith("key-")):
            return own(path, *args, **options)
        others.append("begun")
        try:
            return own(path, *args, **options) if moment == "read_text" else None
        finally:
            cached_splits("key", lambda folder: build_small(folder) | {"by": "another"})
            if moment == "replace":
                own(path, *args, **options)

    monkeypatch.setattr(Path, moment, after_another)
    splits, facts = cached_splits("key", build_small)
    assert (splits["train"]["text"][:], facts) == (["a film"], {"labels": ["bad"], "by": "another"})
    assert [path.name for path in (private_cache / "multitask_rows").iterdir()] == ["key"]


def test_a_kept_set_stays_where_it_cannot_be_opened_for_the_moment(
    private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_splits("key", build_small)

    def refuse(path: Path, **options: Any) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Too many open files"):
        patched.setattr(Path, "read_text", refuse)
        cached_splits("key", build_small)
    assert cached_splits("key", lambda folder: pytest.fail("it is there"))[1] == {"labels": ["bad"]}


def test_key_changes_with_all_code_and_packages_that_read_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [set_key("content")]
    for package in (datasets, pandas, pyarrow):
        monkeypatch.setattr(package, "__version__", f"{package.__version__}.1")
        keys.append(set_key("content"))
    monkeypatch.setattr(sets, "DATA_CODE", tmp_path / "data")
    names = ("data/labels.py", "problem_types_multitask.py", "checks_multitask.py")
    (tmp_path / "data").mkdir()
    for name in (*names, *names):  # written, then changed
        (tmp_path / name).write_text(f"A = {len(keys)}\n")
        if all((tmp_path / own).exists() for own in names):
            keys.append(set_key("content"))
    assert len(keys) == 8
    assert len(set(keys)) == len(keys)


def test_rows_beyond_a_batch_keep_their_order_and_their_number_in_messages(tmp_path: Path) -> None:
    count = 2 * BATCH_ROWS + 10
    rows = [(f"text {number}", ("bad", "good", "")[number % 3], number) for number in range(count)]
    write(tmp_path / "rows.csv", rows)
    given = source(
        validation_split=None, dataset={"path": "csv", "data_files": {"train": "rows.csv", "validation": "rows.csv"}}
    )
    (entry,) = load(tmp_path, given).sets
    kept = [row for row in rows if row[1]]
    assert [row[0] for row in entry.splits["train"]["sentences"]] == [text for text, *_ in kept]
    assert entry.splits["train"]["label_mood"][:] == [("bad", "good").index(mood) for _, mood, _ in kept]
    rows[BATCH_ROWS + 4] = ("", "good", 1)
    write(tmp_path / "rows.csv", rows)
    with pytest.raises(ValueError, match=rf"rows\.csv, row {BATCH_ROWS + 5}: column 'text' of task 'mood' holds None"):
        load(tmp_path, given)


def test_tokens_are_counted_once_and_described_alike(tmp_path: Path, tiny_tokenizer: Any, private_cache: Path) -> None:
    write(tmp_path / "rows.csv", ROWS)
    first = describe(load(tmp_path), tiny_tokenizer, 8)
    (counts,) = private_cache.rglob("*train-tokens-*.npy")
    before = counts.stat().st_mtime_ns
    assert describe(load(tmp_path), tiny_tokenizer, 8) == first
    assert counts.stat().st_mtime_ns == before
    assert first[0]["tokens_mean"] > 3


def test_cells_are_sliced_like_a_list() -> None:
    listed = list(range(3 * BATCH_ROWS))
    cells = Cells(len(listed), lambda start, stop: listed[start:stop])
    assert list(cells) == listed
    for piece in (slice(5, 5), slice(2, 9), slice(1, None, 7), slice(9, 2), slice(None, BATCH_ROWS + 3)):
        assert cells[piece] == listed[piece]
