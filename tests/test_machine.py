"""A run says at its start when the machine is busy."""

import os

import pytest
import torch
from transformers.utils import logging as transformers_logging

from multitask_sentence.train import run
from multitask_sentence.training.run.machine import describe_busy_machine, look_at_machine, look_at_processes


@pytest.mark.parametrize(("load", "cores", "threads"), [(2.0, 2, 2), (0.1, 2, 2), (9.0, 2, 1), (3.9, 4, 4)])
def test_nothing_is_said_with_cores_to_spare_or_one_thread(load: float, cores: int, threads: int) -> None:
    assert describe_busy_machine(load, cores, threads) is None


def test_a_busy_machine_is_told_of_with_the_variable_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    line = describe_busy_machine(5.23, 2, 2)
    assert "its load is 5.2 on 2 cores, and this process has 2 threads" in line
    assert "OMP_NUM_THREADS=1" in line
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert "its load is 1000000.0 on" in look_at_machine(torch.device("cpu"))
    assert look_at_machine(torch.device("cuda")) is None
    monkeypatch.delattr(os, "getloadavg")  # as on Windows
    assert look_at_machine(torch.device("cpu")) is None


def test_processes_that_accelerate_did_not_start_are_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transformers_logging.enable_propagation()
    try:
        look_at_processes(torch.device("cuda"))
        assert not caplog.messages
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        look_at_processes(torch.device("cuda"))
    finally:
        transformers_logging.disable_propagation()
    (message,) = caplog.messages
    assert "started a single process" in message and "torchrun --nproc_per_node 2 train.py RECIPE" in message


def test_the_command_says_it_before_it_loads_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path, tiny_backbone: str, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1e6, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    (tmp_path / "recipe.yaml").write_text(
        f"backbone: {tiny_backbone}\ntraining: {{use_cpu: true}}\ntasks:\n  mood:\n    problem_type: regression\n"
        "    dataset: {path: csv, data_files: no.csv}\n    columns: {sentence: s, label: l}\n"
        "    validation_split: 0.1\n"
    )
    with pytest.raises(ValueError, match=r"there is no file"):
        run([str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out")])
    assert "This machine is busy" in capsys.readouterr().out
