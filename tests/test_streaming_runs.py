"""Whole runs on streamed training rows: their weights, several processes, kills, and a Hub that breaks off."""

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import command, small_job, warm
from helpers.hub_server import HubServer
from helpers.trainer import blank_start
from multitask_sentence.data import report
from multitask_sentence.data.files import streams
from multitask_sentence.data.rows.streamed import BrokenStream
from multitask_sentence.train import run
from multitask_sentence.training.resuming.files import RUN_FILE, last_checkpoint
from multitask_sentence.training.run.output_folder import RESULTS_FILE

BUFFER = 4
WAYS = ("mapped", "onward")
SUBJECTS = ["cat", "dog", "bird", "film", "bank", "story", "market", "price"]
ROWS = [[f"a {SUBJECTS[number % 8]} {number // 8 * 'very '}bad", SUBJECTS[number % 2]] for number in range(40)]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def streamed(job: Path, **dataset: Any) -> Path:
    """The same recipe with streamed training rows."""
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    for task in content["tasks"].values():
        task["dataset"] |= {"streaming": True, **dataset}
    job.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return job


def assert_same_weights(found: Path, expected: Path) -> None:
    weights = load_file(found / "model.safetensors")
    for name, tensor in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0, msg=name)


def scores(history: list[dict[str, Any]]) -> list[float]:
    return [entry["eval_score"] for entry in history if "eval_score" in entry]


def test_rows_that_all_fit_into_the_buffer_train_to_the_weights_of_mapped_rows(tiny_backbone: str, tmp_path: Path):
    small_job.write_rows(tmp_path)
    job = small_job.make_recipe(tmp_path, tiny_backbone)
    small_job.change(job, out_of_scope=True, mixture={"max_rows": {"mood": 9}, "sampling": "sqrt"})
    flags = ["--num_train_epochs", "1", "--compare_single", "--output_dir"]
    mapped = run([str(job), *flags, str(tmp_path / "mapped")])
    onward = run([str(streamed(job)), *flags, str(tmp_path / "onward")])
    assert_same_weights(tmp_path / "onward", tmp_path / "mapped")
    assert scores(onward.state.log_history) == scores(mapped.state.log_history)
    compared = [json.loads((tmp_path / way / RESULTS_FILE).read_text())["compare_single"] for way in WAYS]
    assert compared[0]["gradient_cosines"] == compared[1]["gradient_cosines"]
    assert_same_weights(tmp_path / "onward" / "single" / "mood", tmp_path / "mapped" / "single" / "mood")


def test_killed_run_goes_on_to_the_weights_of_one_whose_rows_a_worker_reads(tiny_backbone: str, tmp_path: Path):
    small_job.write_rows(tmp_path)
    job = streamed(small_job.make_recipe(tmp_path, tiny_backbone, ("mood", "tags")), buffer_size=BUFFER)
    flags = ["--save_steps", "5", "--eval_steps", "5", "--save_strategy", "steps", "--eval_strategy", "steps"]
    flags += ["--per_device_train_batch_size", "2"]
    whole = run([str(job), "--output_dir", str(tmp_path / "whole"), "--dataloader_num_workers", "1", *flags])
    assert whole.state.global_step == 24
    killed, printed = tmp_path / "killed", tmp_path / "printed.txt"
    process = warm.start(
        [command.__file__, "train", str(job), "--output_dir", str(killed), *flags], os.environ, printed
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint-5" / RUN_FILE).is_file():
        assert process.exitcode is None and time.monotonic() < deadline, printed.read_text(encoding="utf-8")
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not (killed / "model.safetensors").exists()
    streamed(job, buffer_size=BUFFER + 1)
    with pytest.raises(ValueError, match=r"another run: buffer_size\.mood and tags was 4 and is 5 now"):
        run([str(job), "--output_dir", str(killed), "--resume_from_checkpoint", *flags])
    streamed(job, buffer_size=BUFFER)
    with blank_start():
        run([str(job), "--output_dir", str(killed), "--resume_from_checkpoint", *flags])
    assert_same_weights(killed, tmp_path / "whole")


def test_frozen_backbone_trains_without_cached_vectors_and_teachers_are_refused(
    tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    small_job.write_rows(tmp_path)
    job = streamed(small_job.make_recipe(tmp_path, tiny_backbone, ("mood",)))
    small_job.change(job, strategy={"freeze": "backbone"})
    trainer = run([str(job), "--max_steps", "1"])
    assert not trainer.train_dataset.sets[0]._held, "nothing is left open"
    assert "off, because training rows are streamed" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "multitask_features").exists()
    small_job.change(job, strategy={}, distillation={"teachers": "single"})
    with pytest.raises(ValueError, match=r"distillation keeps what teachers answer.*tasks\.mood\.dataset\.streaming"):
        run([str(job), "--overwrite"])


def test_two_processes_train_streamed_rows_to_the_weights_of_mapped_ones(
    tiny_backbone: str, tmp_path: Path, run_in_two_processes: Callable[..., str]
):
    small_job.write_rows(tmp_path)
    job = small_job.make_recipe(tmp_path, tiny_backbone, ("mood", "tags"))
    flags = ["--max_steps", "6", "--per_device_train_batch_size", "2", "--output_dir"]
    run_in_two_processes(command, "train", job, *flags, tmp_path / "mapped")
    run_in_two_processes(command, "train", streamed(job), *flags, tmp_path / "onward")
    assert_same_weights(tmp_path / "onward", tmp_path / "mapped")


def parquet(rows: list[list[str]]) -> bytes:
    written = io.BytesIO()
    pd.DataFrame(rows, columns=["text", "kind"]).to_parquet(written)
    return written.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the data set team/films, whose training rows stand in two files."""
    with HubServer() as server:
        files = {
            "train-0.parquet": ROWS[:20],
            "train-1.parquet": ROWS[20:],
            "validation.parquet": ROWS[:8],
        }
        server.add_dataset("team/films", {path: parquet(rows) for path, rows in files.items()})
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield server


def test_run_on_the_hub_that_breaks_off_keeps_its_steps_and_goes_on_to_the_same_weights(
    hub: HubServer, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "BATCH_ROWS", 7)
    monkeypatch.setattr(report, "BATCH_ROWS", 7)  # the table of the data looks no further
    task = {
        "problem_type": "single_label_classification",
        "dataset": {"path": "team/films", "streaming": True, "buffer_size": BUFFER},
        "columns": {"sentence": "text", "label": "kind"},
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({"backbone": tiny_backbone, "tasks": {"kind": task}}), encoding="utf-8")
    flags = ["--per_device_train_batch_size", "4", "--num_train_epochs", "2", "--use_cpu", "--disable_tqdm", "true"]
    run([str(job), "--output_dir", str(tmp_path / "whole"), *flags])
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and b"market" in path.read_bytes()]
    assert {path.name for path in kept} == {"validation.arrow"}, "no training text is on the disk"
    broken = tmp_path / "broken"
    hub.lost.add("train-1.parquet")
    with pytest.raises(
        BrokenStream, match=r"team/films, train split.*'rows_before': 14.*Go on from .*checkpoint-[123] "
    ) as error:
        run([str(job), "--output_dir", str(broken), "--dataloader_num_workers", "1", *flags])
    assert str(last_checkpoint(broken)) in str(error.value)
    assert "Traceback" not in str(error.value), "of a worker"
    hub.lost.clear()
    with blank_start():
        run([str(job), "--output_dir", str(broken), "--resume_from_checkpoint", *flags])
    assert_same_weights(broken, tmp_path / "whole")
