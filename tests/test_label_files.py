"""The label command and the files around it: none is lost, none is mixed with another, and all can be read."""

import errno
import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState

from helpers.answered import answered_chunks
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands.label import main
from multitask_sentence.labelling import inputs, job

MOOD = {"problem_type": "single_label_classification", "labels": ["bad", "good"]}
TEN = "id,text\n" + "".join(f"{number},the cat\n" for number in range(10))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("label_files") / "model"
    MultiTaskModel.from_backbone(tiny_backbone, tasks={"mood": MOOD}).save_pretrained(folder)
    return folder


def label(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def interrupt(patch: pytest.MonkeyPatch, *arguments: object) -> None:
    """A job that ends before its parts are put together."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with patch.context() as patched:
        patched.setattr(job, "put_together", fail)
        with pytest.raises(SystemExit, match="No space left"):
            label(*arguments)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the device ----


def test_model_is_opened_on_the_accelerator_or_on_the_device_that_is_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = job.Job(str(model), Path("in.csv"), Path("out.csv"), ("text",))
    assert PartialState().device.type == "cpu", "premise: tests have no accelerator"
    assert job.open_model(replace(asked, device="meta")).device.type == "meta"
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    assert job.open_model(asked).device.type == "meta"
    assert job.open_model(replace(asked, device="cpu")).device.type == "cpu"


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_device_that_is_not_there_is_one_line_and_leaves_nothing(model: Path, tmp_path: Path, device: str) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    with pytest.raises(SystemExit, match=rf"^error: --device: '{device}' is no device of this machine: [^\n]+$"):
        label(model, tmp_path / "in.csv", tmp_path / "out.csv", "--device", device)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_job_that_names_its_device_has_the_same_answers(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    label(model, tmp_path / "in.csv", tmp_path / "plain.csv")
    label(model, tmp_path / "in.csv", tmp_path / "named.csv", "--device", "cpu")
    assert (tmp_path / "named.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


def test_actors_take_no_device(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        label(model, tmp_path / "in.csv", tmp_path / "out.csv", "--ray", "--device", "cuda")
    assert "the actors of --ray compute on processors" in capsys.readouterr().err


# ---- outputs ----


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",)])
@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("in.csv", "in.csv"),
        ("in.csv", "link.csv"),
        ("out.csv.set_aside.jsonl", "out.csv"),
        ("out/part-000000.parquet", "out"),
        ("out.csv.job/part-000000.csv", "out.csv"),
    ],
)
def test_output_that_would_replace_the_input_is_refused(
    model: Path, tmp_path: Path, source: str, output: str, flags: tuple[str, ...]
) -> None:
    path = tmp_path / source
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame({"text": ["the cat"]}).to_parquet(path)
    else:
        path.write_text('{"text": "the cat"}\n' if path.suffix == ".jsonl" else TEN)
    if output == "link.csv":
        (tmp_path / output).symlink_to(path)
    before = content_of(tmp_path)
    with pytest.raises(SystemExit, match=r"is the input|The input .* lies in"):
        label(model, path, tmp_path / output, *flags)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--overwrite",)])
@pytest.mark.parametrize(("folder", "output"), [("runs", "runs"), ("out.csv.job", "out.csv")])
@pytest.mark.parametrize("name", ["best", "job.json", "part-000000.parquet"])
def test_folder_of_something_else_is_refused_and_stays_as_it_was(
    model: Path, tmp_path: Path, name: str, folder: str, output: str, flags: tuple[str, ...]
) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_text('"weeks of work"')
    before = content_of(tmp_path)
    with pytest.raises(SystemExit, match=rf"{folder} is no folder of a labelling job: it holds '{name}'"):
        label(model, tmp_path / "in.csv", tmp_path / output, *flags)
    assert content_of(tmp_path) == before


def test_overwrite_leaves_what_others_put_beside_the_parts(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    label(model, tmp_path / "in.csv", tmp_path / "out", "--rows_per_part", 2)
    (tmp_path / "out" / "README.md").write_text("mine")
    label(model, tmp_path / "in.csv", tmp_path / "out", "--rows_per_part", 5, "--overwrite")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "README.md",
        "part-000000.parquet",
        "part-000001.parquet",
    ]


def test_resume_does_not_replace_a_finished_output(model: Path, tmp_path: Path) -> None:
    for name in ("in.csv", "other.csv"):
        (tmp_path / name).write_text(TEN)
    label(model, tmp_path / "in.csv", tmp_path / "out.parquet")
    before = content_of(tmp_path)
    with pytest.raises(SystemExit, match=r"out\.parquet exists, and no unfinished job is left to go on with"):
        label(model, tmp_path / "other.csv", tmp_path / "out.parquet", "--resume")
    assert content_of(tmp_path) == before


def test_resume_goes_on_where_a_job_ended_between_its_output_and_clearing_up(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text(TEN + "10\n")
    arguments = (model, tmp_path / "in.csv", tmp_path / "out.csv")
    interrupt(monkeypatch, *arguments)
    for name in ("out.csv", "out.csv.set_aside.jsonl"):
        (tmp_path / name).write_text("of the job")
    with answered_chunks() as answered:
        label(*arguments, "--resume")
    assert answered == []
    assert len(pd.read_csv(tmp_path / "out.csv")) == 10
    assert len((tmp_path / "out.csv.set_aside.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "out.csv.job").exists()


def test_outputs_of_two_formats_keep_their_own_rows_set_aside(model: Path, tmp_path: Path) -> None:
    for output, bad in (("out.csv", "1,2,3\n"), ("out.parquet", "4,5,6\n")):
        (tmp_path / "in.csv").write_text(TEN + bad)
        label(model, tmp_path / "in.csv", tmp_path / output)
    contents = [
        json.loads((tmp_path / f"{output}.set_aside.jsonl").read_text())["content"]
        for output in ("out.csv", "out.parquet")
    ]
    assert contents == ["1,2,3", "4,5,6"]


def test_job_killed_while_it_clears_up_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    arguments = (model, tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 2)

    class Killed(BaseException):
        pass

    unlink = Path.unlink

    def unlink_or_die(path: Path, missing_ok: bool = False) -> None:
        if path.name == "job.json":
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "unlink", unlink_or_die)
        label(*arguments)
    assert [path.name for path in (tmp_path / "out.csv.job").glob("part-*")] == [], "premise: parts go first"
    whole = (tmp_path / "out.csv").read_bytes()
    label(*arguments, "--resume")
    assert (tmp_path / "out.csv").read_bytes() == whole
    assert not (tmp_path / "out.csv.job").exists()


def test_rows_set_aside_earlier_are_not_replaced_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TEN + "10\n")
    (tmp_path / "out.csv.set_aside.jsonl").write_text("of an earlier job")
    with pytest.raises(SystemExit, match=r"out\.csv\.set_aside\.jsonl exists"):
        label(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv.set_aside.jsonl").read_text() == "of an earlier job"


def test_folder_of_parts_opens_as_one_table_and_keeps_rows_set_aside_in_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in.csv").write_text(TEN + "10\n")
    label(model, tmp_path / "in.csv", tmp_path / "out", "--rows_per_part", 4)
    assert f"Rows set aside: {tmp_path}/out/_set_aside.jsonl" in capsys.readouterr().out
    assert pd.read_parquet(tmp_path / "out")["id"].tolist() == [str(number) for number in range(10)]
    assert json.loads((tmp_path / "out" / "_set_aside.jsonl").read_text())["row"] == 11
    label(model, tmp_path / "in.csv", tmp_path / "out", "--rows_per_part", 4, "--resume")
    assert len(pd.read_parquet(tmp_path / "out")) == 10


def test_job_of_an_earlier_version_is_refused_and_can_be_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    arguments = (model, tmp_path / "in.csv", tmp_path / "out", "--rows_per_part", 4)
    (tmp_path / "out").mkdir()
    for name in ("lock", "part-000000.parquet", "part-000000.json", "set_aside-000000.jsonl"):
        (tmp_path / "out" / name).write_text("")
    (tmp_path / "out" / "job.json").write_text('{"rows_per_part": 4}')
    with pytest.raises(SystemExit, match="of an earlier version, which cannot go on here"):
        label(*arguments, "--resume")
    label(*arguments, "--overwrite")
    assert len(pd.read_parquet(tmp_path / "out")) == 10


def test_job_runs_where_the_file_system_has_no_locks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: object, flags: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    (tmp_path / "in.csv").write_text(TEN)
    monkeypatch.setattr(fcntl, "flock", refuse)
    label(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert len(pd.read_csv(tmp_path / "out.csv")) == 10
    assert "this file system has no locks" in caplog.text


def test_output_is_on_the_disk_before_its_parts_are_removed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text(TEN)
    fsync, seen = os.fsync, []

    def note(descriptor: int) -> None:
        parts = list((tmp_path / "out.csv.job").glob("part-*.csv"))
        seen.append((os.fstat(descriptor).st_ino, (tmp_path / "out.csv").exists(), bool(parts)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    label(model, tmp_path / "in.csv", tmp_path / "out.csv")
    assert ((tmp_path / "out.csv").stat().st_ino, False, True) in seen, "the rows"
    assert (tmp_path.stat().st_ino, True, True) in seen, "their name"


# ---- inputs ----


def test_another_reading_of_quotes_is_refused_on_resume(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.csv").write_text('id,text\n1,"cat\ndog"\n2,"cat"\n')
    arguments = (model, tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 1)
    interrupt(monkeypatch, *arguments)
    with pytest.raises(SystemExit, match="Different: quoted was True, now False"):
        label(*arguments, "--no_quotes", "--resume")


@pytest.mark.parametrize("output", ["out.csv", "out.tsv", "out.jsonl", "out.parquet"])
def test_keys_of_later_lines_have_their_column_in_every_format(model: Path, tmp_path: Path, output: str) -> None:
    lines = ['{"text": "cat"}', '{"text": "dog", "more": "x"}', '{"text": "a", "other": "y"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    label(model, tmp_path / "in.jsonl", tmp_path / output, "--rows_per_part", 1)
    reader = {
        ".csv": pd.read_csv,
        ".tsv": lambda path: pd.read_csv(path, sep="\t"),
        ".jsonl": lambda path: pd.read_json(path, lines=True),
        ".parquet": pd.read_parquet,
    }
    found = reader[Path(output).suffix](tmp_path / output)
    assert found.columns.tolist() == ["text", "more", "other", "mood_label", "mood_probability"]
    assert found["more"].fillna("").tolist() == ["", "x", ""]
    assert found["other"].fillna("").tolist() == ["", "", "y"]
    assert set(found["mood_label"]) <= {"bad", "good"}


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_label_in_a_later_line_is_not_overwritten(model: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "cat"}\n{"text": "dog", "mood_label": "mine"}\n')
    with pytest.raises(SystemExit, match=r"has the column 'mood_label' already"):
        label(model, tmp_path / "in.jsonl", tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_key_whose_type_changes_late_is_text_from_the_first_row_on(
    model: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "LINES_AT_ONCE", 2)
    lines = [json.dumps({"id": number, "text": "cat"}) for number in range(5)]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, '{"id": "A-17", "text": "dog"}']))
    label(model, tmp_path / "in.jsonl", tmp_path / output, "--rows_per_part", 3)
    if output == "out.parquet":
        found = pq.read_table(tmp_path / output)["id"].to_pylist()
    else:
        found = [json.loads(line)["id"] for line in (tmp_path / output).read_text().splitlines()]
    assert found == ["0", "1", "2", "3", "4", "A-17"]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "0.5"], [1.0, 0.5]),
        (["1", "123456789012345678901"], ["1", "123456789012345678901"]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["[]", '["a"]'], [[], ["a"]]),
        (['{"a": 1}', '{"b": "c"}'], [{"a": 1, "b": None}, {"a": None, "b": "c"}]),
        (['{"a": 1}', '"b"'], ['{"a": 1}', "b"]),
        (["null", "true"], [None, True]),
    ],
)
@pytest.mark.parametrize("lines_at_once", [1, 2])
def test_values_of_a_key_have_one_type_that_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[str], expected: list[object], lines_at_once: int
) -> None:
    monkeypatch.setattr(inputs, "LINES_AT_ONCE", lines_at_once)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "cat", "key": {cell}}}\n' for cell in cells))
    schema = inputs.read_schema(tmp_path / "in.jsonl", ("text",))
    (chunk,) = inputs.read_chunks(tmp_path / "in.jsonl", 9, schema, ("text",))
    assert chunk.table["key"].to_pylist() == expected


def test_half_characters_are_read_as_predict_reads_them(model: Path, tmp_path: Path) -> None:
    lines = [r'{"text": "caf\ud83d", "by": {"n\ud83dame": "\ud83d\ude00"}}', r'{"text": "a \\ud83d", "by": null}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    label(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert first["text"] == "caf\N{REPLACEMENT CHARACTER}"
    assert first["by"] == {"n\N{REPLACEMENT CHARACTER}ame": "\N{GRINNING FACE}"}
    assert second["text"] == r"a \ud83d"


def test_bytes_of_parquet_that_are_no_text_are_read_as_those_of_csv(model: Path, tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xed\xa0\xbd", b"cat"]).buffers())
    more = pa.Array.from_buffers(pa.large_string(), 2, pa.array([b"\xed", None], pa.large_binary()).buffers())
    pq.write_table(pa.table({"id": [1, 2], "text": texts, "more": more}), tmp_path / "in.parquet")
    label(model, tmp_path / "in.parquet", tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"].rstrip("\N{REPLACEMENT CHARACTER}") for row in found] == ["caf", "cat"]
    assert [(row["id"], row["more"]) for row in found] == [(1, "\N{REPLACEMENT CHARACTER}"), (2, None)]


# ---- the summary ----


def test_rows_without_a_label_are_counted_once_after_going_on(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    unsure = MOOD | {"abstain": {"confidence": 1.0}}
    MultiTaskModel.from_backbone(tiny_backbone, tasks={"mood": unsure}).save_pretrained(tmp_path / "model")
    (tmp_path / "in.csv").write_text(TEN)
    arguments = (tmp_path / "model", tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 5)
    interrupt(monkeypatch, *arguments)
    (tmp_path / "out.csv.job" / "part-000001.json").unlink()
    with answered_chunks() as answered:
        label(*arguments, "--resume")
    assert answered == [1]
    found = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("mood")]
    assert found == [["mood", "(no", "label)", "10", "100.0%"]]
