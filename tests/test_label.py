"""The label command: every row exactly once, whatever the format, whatever was killed."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from helpers import command, warm
from helpers.answered import answered_chunks
from helpers.every_task import TASKS
from helpers.little_room import little_room
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands.label import main
from multitask_sentence.labelling import inputs, job
from multitask_sentence.labelling.parts import LOCK, JobFolder
from multitask_sentence.labelling.workers import InProcess, Processes

WORDS = "the cat sat on mat a dog ran good film today bad news bank fine story".split()  # noqa: SIM905
SINGLE = ["mood_label", "mood_probability", "tags_labels", "tags_probabilities", "rating_value"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("labelling") / "model"
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(folder)


def make_rows(count: int) -> pd.DataFrame:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count)]
    return pd.DataFrame({"id": [f"{place:03}" for place in range(count)], "text": texts})


def write(rows: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    elif path.suffix == ".jsonl":
        rows.to_json(path, orient="records", lines=True)
    else:
        rows.to_csv(path, index=False, sep={".csv": ",", ".tsv": "\t"}[path.suffix])
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype={"id": str})
    return pd.read_csv(path, sep={".csv": ",", ".tsv": "\t"}[path.suffix], dtype={"id": str})


def label(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


@pytest.mark.parametrize("output", inputs.FORMATS)
@pytest.mark.parametrize("source", inputs.FORMATS)
def test_rows_keep_their_columns_and_get_the_answers_of_predict(
    folder: Path, model: MultiTaskModel, tmp_path: Path, source: str, output: str
) -> None:
    rows = make_rows(23)
    label(folder, write(rows, tmp_path / f"in{source}"), tmp_path / f"out{output}", "--rows_per_part", 10)
    found, expected = read(tmp_path / f"out{output}"), model.predict(rows["text"].tolist())
    assert found.columns.tolist() == ["id", "text", *SINGLE]
    assert found[["id", "text"]].equals(rows)
    assert found["mood_label"].tolist() == expected["mood"]["labels"]
    best = expected["mood"]["probabilities"].max(axis=1)
    np.testing.assert_allclose(found["mood_probability"], best, atol=1e-5)
    np.testing.assert_allclose(found["rating_value"], expected["rating"]["values"], atol=1e-5)
    tags = [json.loads(cell) if isinstance(cell, str) else list(cell) for cell in found["tags_labels"]]
    assert tags == expected["tags"]["labels"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in{source}", f"out{output}"])


def test_embeddings_are_a_list_column_of_fixed_size(folder: Path, model: MultiTaskModel, tmp_path: Path) -> None:
    rows = make_rows(12)
    label(folder, write(rows, tmp_path / "in.csv"), tmp_path / "out.parquet", "--tasks", "mood", "--embeddings")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "text", "mood_label", "mood_probability", "embedding"]
    assert table.schema.field("embedding").type.list_size == 24
    found = np.array(table["embedding"].to_pylist())
    np.testing.assert_allclose(found, model.encode(rows["text"].tolist()), atol=1e-5)


def test_pairs_stand_in_two_columns(folder: Path, model: MultiTaskModel, tmp_path: Path) -> None:
    rows = make_rows(9).assign(other=make_rows(9)["text"][::-1].tolist())
    label(folder, write(rows, tmp_path / "in.tsv"), tmp_path / "out.jsonl", "--text", "text", "other")
    found = read(tmp_path / "out.jsonl")
    expected = model.predict(list(zip(rows["text"], rows["other"], strict=True)))
    np.testing.assert_allclose(found["similarity_score"], expected["similarity"]["scores"], atol=1e-5)
    assert found["entails_label"].tolist() == expected["entails"]["labels"]


def test_output_without_ending_is_a_folder_of_parts(folder: Path, tmp_path: Path) -> None:
    label(folder, write(make_rows(25), tmp_path / "in.csv"), tmp_path / "out", "--rows_per_part", 10)
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [len(pd.read_parquet(part)) for part in parts] == [10, 10, 5]


def test_rows_that_cannot_be_read_are_set_aside_with_the_reason(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "in.csv").write_bytes(b'id,text\n1,cat\n2,a,b\n3,"a dog\nran"\n4\n5,caf\xe9\n6, \n')
    label(folder, tmp_path / "in.csv", tmp_path / "out.jsonl", "--rows_per_part", 2)
    found = read(tmp_path / "out.jsonl")
    assert found["text"].tolist() == ["cat", "a dog\nran", "caf\N{REPLACEMENT CHARACTER}"]
    set_aside = [json.loads(line) for line in (tmp_path / "out.jsonl.set_aside.jsonl").read_text().splitlines()]
    assert [row["row"] for row in set_aside] == [2, 4, 6]
    assert [row["reason"] for row in set_aside] == [
        "3 fields where 2 should be",
        "1 fields where 2 should be",
        "column 'text' holds no text",
    ]
    assert "6 rows in = 3 labelled + 3 set aside" in capsys.readouterr().out


def test_lines_that_are_no_json_and_cells_that_are_no_text_are_set_aside(folder: Path, tmp_path: Path) -> None:
    lines = [
        '{"text": "cat"}',
        "{oops",
        "[1]",
        '{"text": 3}',
        '{"text": null, "more": 1}',
        '{"text": "dog", "more": "x"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    label(folder, tmp_path / "in.jsonl", tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")["text"].tolist() == ["cat", "dog"]
    set_aside = [json.loads(line) for line in (tmp_path / "out.parquet.set_aside.jsonl").read_text().splitlines()]
    assert [row["row"] for row in set_aside] == [2, 3, 4, 5]
    assert set_aside[0]["content"] == "{oops"


def test_bad_lines_keep_their_numbers_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 64)
    bad = {2, 7, 8, 30, 59, 60}
    lines = [f"{row},x,y" if row in bad else f"{row},the cat" for row in range(1, 61)]
    (tmp_path / "in.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    schema = inputs.read_schema(tmp_path / "in.csv", ("text",))
    chunks = list(inputs.read_chunks(tmp_path / "in.csv", 7, schema, ("text",)))
    assert [len(chunk.rows) + len(chunk.set_aside) for chunk in chunks] == [7] * 8 + [4]
    for chunk in chunks:
        assert [int(number) for number in chunk.table["id"].to_pylist()] == chunk.rows
    assert {row.row for chunk in chunks for row in chunk.set_aside} == bad


# ---- threads of one process ----


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Meeting:
    """Answers two chunks when both are being answered, or, for a chunk of number 9, when it is told to stop."""

    def __init__(self) -> None:
        self._together, self._stopped = threading.Barrier(2, timeout=20), threading.Event()

    def __call__(self, chunk: inputs.Chunk) -> int:
        if chunk.number == 9:
            return self._stopped.wait(20)
        self._together.wait()
        return torch.get_num_threads()

    def stop(self) -> None:
        self._stopped.set()


def test_two_chunks_are_answered_at_once_with_half_of_the_threads_each(two_threads: None) -> None:
    workers = InProcess(Meeting)
    futures = [workers.submit(inputs.Chunk(number, 0, None, [])) for number in range(2)]
    assert [future.result() for future in futures] == [1, 1]
    stopped = workers.submit(inputs.Chunk(9, 0, None, []))
    while not stopped.running():
        time.sleep(0.001)
    workers.close()
    assert stopped.result() is True
    assert torch.get_num_threads() == 2


def test_chunk_ends_at_the_next_pass_once_the_job_is_stopped(folder: Path, tmp_path: Path) -> None:
    rows = inputs.Chunk(0, 0, pa.table({"text": ["cat"]}), [1])
    asked = job.Job(str(folder), tmp_path / "in.csv", tmp_path / "out", ("text",))
    with asked.folder.locked():
        labeller = job.ChunkLabeller(asked)
        labeller.stop()
        with pytest.raises(RuntimeError, match="was stopped"):
            labeller(rows)
        assert not asked.folder.left()
        assert job.ChunkLabeller(asked)(rows).labelled == 1


# ---- killed, resumed, damaged ----


def start(folder: Path, *arguments: object) -> BaseProcess:
    """`label` in a process of its own, which prints into printed.txt of a folder."""
    return warm.start([command.__file__, "label", *map(str, arguments)], os.environ, folder / "printed.txt")


def wait_for_parts(folder: Path, count: int, process: BaseProcess) -> None:
    while len(list(folder.glob("part-*.json"))) < count and process.is_alive():
        time.sleep(0.005)


@pytest.mark.parametrize("parts", [2, 5])
def test_killed_job_goes_on_and_gives_the_same_file(folder: Path, tmp_path: Path, parts: int) -> None:
    write(make_rows(400), tmp_path / "in.csv")
    label(folder, tmp_path / "in.csv", tmp_path / "whole.csv", "--rows_per_part", 40)
    arguments = (folder, tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 40)
    process = start(tmp_path, *arguments)
    wait_for_parts(tmp_path / "out.csv.job", parts, process)
    process.kill()
    process.join()
    finished = {int(path.stem[-6:]) for path in (tmp_path / "out.csv.job").glob("part-*.json")}
    assert len(finished) >= parts, "premise: the job was killed before its end"
    with answered_chunks() as answered:
        label(*arguments, "--resume")
    assert sorted(answered) == sorted(set(range(10)) - finished)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.job").exists()


def children(process: BaseProcess) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


@pytest.mark.slow
def test_rows_of_a_lost_worker_are_given_to_another(folder: Path, tmp_path: Path) -> None:
    write(make_rows(1200), tmp_path / "in.csv")
    label(folder, tmp_path / "in.csv", tmp_path / "whole.csv", "--rows_per_part", 40)
    process = start(
        tmp_path, folder, tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 40, "--processes", 2
    )
    wait_for_parts(tmp_path / "out.csv.job", 2, process)
    os.kill(process.pid, signal.SIGSTOP)  # so that it does not end before a worker is lost
    os.kill(children(process)[-1], signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT)
    assert warm.end([process], 300)
    assert process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_pool_that_broke_before_a_chunk_came_says_so_in_the_future() -> None:
    workers = Processes(partial(os._exit, 1), 1)
    chunk = inputs.Chunk(0, 0, None, [])
    assert isinstance(workers.submit(chunk).exception(timeout=60), workers.lost_errors)
    assert isinstance(workers.submit(chunk).exception(timeout=60), workers.lost_errors)
    workers.replace_lost(Future())
    workers.close()


@pytest.fixture
def unfinished(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The arguments of a job that ended before its parts were put together."""
    write(make_rows(50), tmp_path / "in.csv")
    arguments = (folder, tmp_path / "in.csv", tmp_path / "out.jsonl", "--rows_per_part", 10)
    with monkeypatch.context() as patch:

        def fail(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(job, "put_together", fail)
        with pytest.raises(SystemExit, match=r"No space left on device.*with --resume goes on"):
            label(*arguments)
    return arguments


@pytest.mark.parametrize(("rows_per_part", "parts"), [(20, 5), (100, 0)])  # where parts are put together, and before
@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_full_disk_ends_in_one_line_and_the_job_goes_on_once_there_is_room(
    folder: Path, tmp_path: Path, output: str, rows_per_part: int, parts: int, capsys: pytest.CaptureFixture
) -> None:
    write(make_rows(100), tmp_path / "in.csv")
    arguments = (folder, tmp_path / "in.csv", tmp_path / output, "--rows_per_part", rows_per_part)
    label(*arguments[:2], tmp_path / f"whole-{output}", *arguments[3:])
    with little_room(6000), pytest.raises(SystemExit, match=r"File too large.*with --resume goes on") as ended:
        label(*arguments)
    assert "\n" not in ended.value.code
    left = [path.name for path in (tmp_path / f"{output}.job").iterdir()]
    assert len([name for name in left if name.endswith(".json")]) == 1 + parts
    assert not (tmp_path / output).exists() and not [name for name in left if name.startswith(".")]
    with answered_chunks() as answered:
        label(*arguments, "--resume")
    assert len(answered) == (0 if parts else 1), "whole parts are kept"
    assert (tmp_path / output).read_bytes() == (tmp_path / f"whole-{output}").read_bytes()


def test_damaged_part_is_made_again(unfinished: tuple[object, ...], tmp_path: Path) -> None:
    part = tmp_path / "out.jsonl.job" / "part-000002.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])
    with answered_chunks() as answered:
        label(*unfinished, "--resume")
    assert answered == [2]
    assert len(read(tmp_path / "out.jsonl")) == 50
    assert whole in (tmp_path / "out.jsonl").read_bytes()


def test_another_model_or_input_is_refused_on_resume(
    unfinished: tuple[object, ...], tmp_path: Path, tiny_backbone: str
) -> None:
    torch.manual_seed(9)
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(SystemExit, match=r"goes on with the same job only. Different: model"):
        label(tmp_path / "other", *unfinished[1:], "--resume")
    write(make_rows(51), tmp_path / "in.csv")
    with pytest.raises(SystemExit, match=r"goes on with the same job only. Different: input"):
        label(*unfinished, "--resume")


def test_what_an_earlier_job_left_is_not_replaced_unasked(unfinished: tuple[object, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--resume goes on with it, --overwrite starts anew"):
        label(*unfinished)
    label(*unfinished, "--overwrite")
    with pytest.raises(SystemExit, match=r"out\.jsonl exists. Give another output, or --overwrite"):
        label(*unfinished)


@pytest.mark.parametrize("flag", [None, "--resume", "--overwrite"])
def test_second_job_on_one_output_is_refused_and_harms_nothing(
    unfinished: tuple[object, ...], tmp_path: Path, flag: str | None
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.jsonl.job").iterdir()}
    assert len(before) == 2 + 2 * 5, "premise: lock, manifest, and parts with records"
    flags = [] if flag is None else [flag]
    running = job.Job(*unfinished[:3], ("text",)).folder
    with running.locked(), pytest.raises(SystemExit, match="another job is writing there"):
        label(*unfinished, *flags)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.jsonl.job").iterdir()}
    lock = running.path / LOCK
    assert after | {lock: None} == before | {lock: None}
    with answered_chunks() as answered:
        label(*unfinished, "--resume")
    assert answered == []
    assert len(read(tmp_path / "out.jsonl")) == 50


def test_lock_that_the_job_before_took_away_with_its_folder_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flock = JobFolder(tmp_path / "job", ".csv", tmp_path / "job"), fcntl.flock

    def end_before(file: object, flags: int) -> None:
        shutil.rmtree(folder.path)
        folder.path.mkdir()
        flock(file, flags)

    monkeypatch.setattr(fcntl, "flock", end_before)
    with pytest.raises(ValueError, match="another job is writing there"), folder.locked():
        pass


def test_what_a_killed_job_was_writing_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    arguments = (folder, write(make_rows(20), tmp_path / "in.csv"), tmp_path / "out", "--rows_per_part", 10)
    (tmp_path / "out").mkdir()
    for name in (".part-000001.parquet.99", ".set_aside-000000.jsonl.99"):
        (tmp_path / "out" / name).write_text("half")
    label(*arguments, "--resume")
    assert not list((tmp_path / "out").glob(".*.99"))
    assert len(pd.read_parquet(sorted((tmp_path / "out").glob("*.parquet")))) == 20


def test_input_that_changes_while_it_is_read_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(make_rows(20), tmp_path / "in.csv")
    answer = job.ChunkLabeller.__call__

    def answer_and_add(self: job.ChunkLabeller, chunk: inputs.Chunk) -> object:
        with (tmp_path / "in.csv").open("a") as file:
            file.write("999,one more\n")
        return answer(self, chunk)

    monkeypatch.setattr(job.ChunkLabeller, "__call__", answer_and_add)
    with pytest.raises(SystemExit, match=r"in\.csv changed while it was read"):
        label(folder, tmp_path / "in.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


# ---- mistakes ----


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("id,text\n1,cat\n", ("--text", "txt"), r"has no column 'txt'. Its columns are: id, text"),
        ("mood_label,text\n1,cat\n", (), r"has the column 'mood_label' already"),
        ("", (), r"in\.csv is empty. It should hold a header and rows"),
        ("text,text\na,b\n", (), r"the header has a name twice"),
        ("id,text\n1,cat\n", ("--tasks", "moood"), r"'moood' is no task that reads single sentences"),
        ("id,text\n1,cat\n", ("--text", "id", "text", "--tasks", "mood"), r"'mood' is no task that reads pairs"),
        ('id,text\n1,"cat\n2,dog\n3,"bird\n', (), r"row 1: the cell of column 'text' holds 3 lines .* --no_quotes"),
    ],
)
def test_mistake_is_one_line_before_anything_is_written(
    folder: Path, tmp_path: Path, content: str, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "in.csv").write_text(content)
    with pytest.raises(SystemExit, match=message):
        label(folder, tmp_path / "in.csv", tmp_path / "out.csv", *arguments)
    assert not (tmp_path / "out.csv").exists()


def test_quotes_may_be_part_of_the_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,text\n1,"cat\n2,dog\n3,"bird\n')
    label(folder, tmp_path / "in.csv", tmp_path / "out.jsonl", "--no_quotes")
    assert read(tmp_path / "out.jsonl")["text"].tolist() == ['"cat', "dog", '"bird']


def test_file_of_another_kind_is_refused_with_the_kinds_that_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("cat\n")
    with pytest.raises(SystemExit, match=r"in\.txt: the name should end in \.csv, \.tsv, \.jsonl, \.parquet"):
        label(folder, tmp_path / "in.txt", tmp_path / "out.csv")
