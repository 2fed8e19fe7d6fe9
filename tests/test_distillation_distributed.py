"""Two real processes share the teachers' answers, and learn from them what one process learns."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from helpers import distillation_run
from helpers.trainer import MEAN_LOSS_TASKS, make_backbone, make_model
from multitask_sentence import MultiTaskModel


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def teacher(backbone, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher")
    model = make_model(backbone)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def two_processes(backbone, teacher, run_in_two_processes, tmp_path_factory):
    """The folder with what two processes wrote, what each reported, and what they printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    printed = run_in_two_processes(distillation_run, backbone, teacher, folder)
    return folder, [json.loads((folder / f"results.{process}.json").read_text()) for process in range(2)], printed


@pytest.mark.parametrize("name", list(distillation_run.RUNS))
def test_gradients_of_two_processes_equal_those_of_one_big_batch(
    name, backbone, teacher, two_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, results, _ = two_processes
    one, history, _ = distillation_run.train_step(
        name, backbone, teacher, tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    expected = next(entry for entry in history if "loss" in entry)
    for process in range(2):
        two = load_file(folder / f"{name}.{process}.safetensors")
        for parameter, gradient in one.items():
            torch.testing.assert_close(
                two[parameter], gradient, rtol=1e-5, atol=1e-7, msg=lambda text, of=parameter: f"{of}: {text}"
            )
        logged = next(entry for entry in results[process]["logs"][name] if "loss" in entry)
        for key in ("loss", "label_share", *(f"loss_{task}" for task in MEAN_LOSS_TASKS)):
            assert logged[key] == pytest.approx(expected[key], rel=1e-5), key


def test_each_process_asks_about_its_share_and_neither_asks_again(two_processes):
    asked = [results["asked"] for results in two_processes[1]]
    assert [found["two_batches"] for found in asked] == [[4, 4, 4], [4, 4, 4]]
    assert [found["accumulated"] for found in asked] == [[], []]


def test_two_processes_resume_with_the_share_and_the_rows_that_were_left(two_processes):
    folder = two_processes[0]
    trained = load_file(folder / "trained.0.safetensors")
    for name in ("trained.1", "resumed.0", "resumed.1"):
        for key, weights in load_file(folder / f"{name}.safetensors").items():
            torch.testing.assert_close(weights, trained[key], rtol=0, atol=0, msg=f"{name}: {key}")


def test_two_processes_train_single_teachers_and_both_learn_from_them(two_processes):
    folder, results, printed = two_processes
    expected = {task: str(folder / "student" / "single" / task) for task in ("sentiment", "rating")}
    assert [found["single"] for found in results] == [expected, expected]
    assert [found["recalled"] for found in results] == [expected, expected]
    for task, saved in expected.items():
        assert list(MultiTaskModel.from_pretrained(saved).config.tasks) == ["sentiment", "rating"], task
    assert "unused" not in printed.lower()
