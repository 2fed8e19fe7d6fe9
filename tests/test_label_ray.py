"""Labelling with the actors of a local Ray: the same file as in one process, whoever is lost on the way."""

import os
import signal
import sys
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from test_label import label, make_rows, write
from test_label_files import interrupt

from helpers.answered import answered_chunks
from helpers.every_task import TASKS
from multitask_sentence import MultiTaskModel
from multitask_sentence.labelling.inputs import Chunk
from multitask_sentence.labelling.workers import RayActors

# Pickled by value, unlike a named function: an actor cannot import this file.
open_worker = lambda: lambda chunk: (os.getpid(), chunk.number)  # noqa: E731


def chunk(number: int) -> Chunk:
    return Chunk(number, 0, None, [])


def test_without_ray_the_command_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write(make_rows(2), tmp_path / "in.csv")
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[ray\]'"):
        label(tmp_path, tmp_path / "in.csv", tmp_path / "out.csv", "--ray")
    assert not (tmp_path / "out.csv.job").exists()


@pytest.fixture(scope="module")
def local_ray():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def test_chunks_of_a_lost_actor_are_lost_alone_and_another_takes_its_place(local_ray) -> None:
    workers = RayActors(open_worker, 2)
    first, second = (workers.submit(chunk(number)) for number in range(2))
    (lost, _), (kept, _) = first.result(60), second.result(60)
    assert lost != kept
    os.kill(lost, signal.SIGKILL)
    found = [workers.submit(chunk(number)) for number in range(4)]
    wait(found)
    failed = [future for future in found if isinstance(future.exception(), workers.lost_errors)]
    assert {future.result()[0] for future in found if future not in failed} == {kept}
    assert failed
    for future in failed:
        workers.replace_lost(future)
    answers = [workers.submit(chunk(number)) for number in range(4)]
    processes = {future.result(60)[0] for future in answers}
    assert [future.result()[1] for future in answers] == list(range(4))
    assert kept in processes and lost not in processes and len(processes) == 2
    workers.close()


def test_more_processes_than_the_cluster_has_are_refused(local_ray) -> None:
    with pytest.raises(ValueError, match="--processes is 3, but the cluster has 2 processors"):
        RayActors(open_worker, 3)


def test_error_of_an_actor_is_one_line_and_its_parts_are_those_of_one_process(
    local_ray, tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS).save_pretrained(tmp_path / "model")
    write(make_rows(50), tmp_path / "in.csv")
    arguments = (tmp_path / "model", tmp_path / "in.csv", tmp_path / "out.csv", "--rows_per_part", 10, "--resume")
    label(*arguments[:2], tmp_path / "whole.csv", *arguments[3:])
    interrupt(monkeypatch, *arguments)
    for part in (tmp_path / "out.csv.job").glob("part-*"):
        part.unlink()
    in_the_way = tmp_path / "out.csv.job" / "part-000004.csv"
    in_the_way.mkdir()
    with pytest.raises(SystemExit, match=r"^error: \[Errno 21\] Is a directory: [^\n]*$"):
        label(*arguments, "--ray", "--processes", 1)
    finished = {int(path.stem[-6:]) for path in (tmp_path / "out.csv.job").glob("part-*.json")}
    assert len(finished) >= 3
    in_the_way.rmdir()
    with answered_chunks() as answered:
        label(*arguments)
    assert sorted(answered) == sorted(set(range(5)) - finished)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
