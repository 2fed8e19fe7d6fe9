"""Two real processes give the gradients, the logs and the scores of one."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers import distributed_run, late_answer_run, left_group
from helpers.trainer import MEAN_LOSS_TASKS, TASKS, make_backbone, make_model, make_set, make_trainer

ONE_BATCH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
SENTENCE_RUNS = ("two_batches", "accumulated", "with_filler")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def two_processes(backbone, run_in_two_processes, tmp_path_factory):
    """The folder with what two processes wrote, and what they printed."""
    folder = tmp_path_factory.mktemp("two_processes")
    printed = run_in_two_processes(distributed_run, backbone, folder)
    return folder, printed


def logs_of(history: list[dict], tasks) -> dict[str, float]:
    entry = next(entry for entry in history if "loss" in entry)
    return {key: entry[key] for key in ("loss", *(f"loss_{task}" for task in tasks))}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-8, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.parametrize("name", SENTENCE_RUNS)
def test_gradients_of_two_processes_equal_those_of_one_big_batch(name, backbone, two_processes, tmp_path):
    folder, _ = two_processes
    one, history = distributed_run.train_step(name, backbone, tmp_path, **ONE_BATCH)
    for process in range(2):
        two = load_file(folder / f"{name}.{process}.safetensors")
        assert_same(two, one)
        results = json.loads((folder / f"results.{process}.json").read_text())
        tasks = MEAN_LOSS_TASKS
        assert logs_of(results["logs"][name], tasks) == pytest.approx(logs_of(history, tasks), rel=1e-6)


def test_tasks_without_rows_on_one_process_neither_hang_nor_change_the_gradients(backbone, two_processes, tmp_path):
    # Each process has the batches of one or two sets, so that losses over pairs see the same rows as in one process.
    folder, _ = two_processes
    one, history = distributed_run.train_step("separate", backbone, tmp_path, gradient_accumulation_steps=3)
    two = load_file(folder / "separate.0.safetensors")
    assert all(gradient.any() for name, gradient in one.items() if name.startswith("heads."))
    assert_same(two, one)
    logged = json.loads((folder / "results.0.json").read_text())["logs"]["separate"]
    assert logs_of(logged, TASKS) == pytest.approx(logs_of(history, TASKS), rel=1e-6)


def test_two_processes_resume_in_the_middle_of_an_epoch_with_the_rows_that_were_left(two_processes):
    folder, _ = two_processes
    trained = load_file(folder / "trained.0.safetensors")
    for name in ("trained.1", "resumed.0", "resumed.1"):
        assert_same(load_file(folder / f"{name}.safetensors"), trained)


def test_checkpoint_of_two_processes_is_refused_by_one(backbone, two_processes, tmp_path):
    folder, _ = two_processes
    checkpoint = folder / "resume" / "checkpoint-6"
    files = json.loads((checkpoint / "run.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= files.keys()
    model, data = make_model(backbone, ("sentiment",)), make_set(["sentiment"], train=20)
    arguments = {"per_device_train_batch_size": 3, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 6}
    trainer = make_trainer(model, [data], tmp_path, **arguments)
    with pytest.raises(ValueError, match="comes from another run: processes was 2 and is 1 now"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    arguments["per_device_train_batch_size"] = 6  # the same rows in a step
    trainer = make_trainer(make_model(backbone, ("sentiment",)), [data], tmp_path, **arguments)
    with pytest.raises(ValueError, match=r"processes was 2 and is 1 now \(also different: training\.per_device_t"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_two_processes_unfreeze_in_stages_as_one_does_and_resume_in_any(backbone, two_processes, tmp_path):
    folder, _ = two_processes
    one = distributed_run.train_in_stages(backbone, tmp_path, gradient_accumulation_steps=2)
    two = load_file(folder / "staged.0.safetensors")
    assert_same(two, one)
    for name in ("staged.1", "staged_resumed.0", "staged_resumed.1"):
        for key, weights in load_file(folder / f"{name}.safetensors").items():
            torch.testing.assert_close(weights, two[key], rtol=0, atol=0, msg=f"{name}: {key}")


@pytest.mark.parametrize("method", ["uncertainty", "dwa", "famo", "geometric_mean", "random"])
def test_balancing_weights_of_two_processes_agree_and_equal_those_of_one(method, backbone, two_processes, tmp_path):
    folder, _ = two_processes
    first, second = (
        json.loads((folder / f"results.{process}.json").read_text())["balanced"][method] for process in range(2)
    )
    one = distributed_run.train_balanced(method, backbone, tmp_path, **ONE_BATCH)
    keys = [f"{name}_{task}" for name in ("weight", "loss") for task in MEAN_LOSS_TASKS]
    for entry, other, expected in zip(first, second, one, strict=True):
        assert all(other[key] == entry[key] for key in keys)
        for key in keys:
            assert entry[key] == pytest.approx(expected[key], rel=1e-4), key
    assert len({entry["weight_tags"] for entry in first}) > 2, "premise: the weights change"


def test_two_processes_compare_joint_and_single_training_as_one_does(backbone, two_processes, tmp_path):
    folder, _ = two_processes
    cosines, compared = distributed_run.compare(backbone, tmp_path, per_device_train_batch_size=4)
    found = [json.loads((folder / f"results.{process}.json").read_text())["compared"] for process in range(2)]
    assert found[0][0] == found[1][0], "each process measures the same"
    assert len(cosines) == 7, "before each of 6 steps, and after the last"
    for measured, expected in zip(found[0][0], cosines, strict=True):
        assert measured["step"] == expected["step"]
        assert measured["cosines"] == [pytest.approx(row, abs=1e-3) for row in expected["cosines"]]
    assert found[1][1] == {}, "the main process alone reports"
    for task, entry in found[0][1]["tasks"].items():
        assert entry["steps"] == compared["tasks"][task]["steps"]
        for score in ("joint", "single", "difference"):
            assert entry[score] == pytest.approx(compared["tasks"][task][score], abs=1e-3)


def test_loss_that_is_nan_on_one_process_stops_both(two_processes):
    folder, _ = two_processes
    for process in range(2):
        stopped = json.loads((folder / f"results.{process}.json").read_text())["stopped"]
        assert stopped.startswith("Step 2: the mse loss of task 'rating' is nan. Training stopped before the opt")


def test_two_processes_do_not_warn(two_processes):
    _, printed = two_processes
    assert "warn" not in printed.lower()
    assert "unused" not in printed.lower()


def test_scores_of_two_processes_equal_those_of_one(backbone, two_processes, tmp_path):
    folder, _ = two_processes
    one = distributed_run.evaluate(backbone, tmp_path)
    assert one.pop("most_gathered") == 0
    for process in range(2):
        two = json.loads((folder / f"results.{process}.json").read_text())["scores"]
        assert two.pop("most_gathered") == -(-distributed_run.AT_ONCE // 2)
        assert set(two) == set(one)
        timed = [key for key in one if key.endswith(("_runtime", "_per_second"))]
        for key in set(one) - set(timed):
            assert two[key] == pytest.approx(one[key], abs=1e-5), key


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="PyTorch 2.7 keeps Python's lock while it leaves")
def test_processes_end_in_peace_while_a_collective_gives_back_its_tensors():
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", left_group.__file__]
    command = [sys.executable, *launch, late_answer_run.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, "terminate called" in done.stderr) == (0, False), done.stderr[-4000:]
