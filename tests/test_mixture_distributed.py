"""Two real processes: negatives of both, the gradients of one big batch, every row once, one task at a time."""

import json
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from helpers import mixture_distributed_run
from helpers.trainer import make_backbone

RUNS = ("contrastive", "plain", "uneven", "hard_negatives", "filler", "elsewhere", "weighted")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def two_processes(backbone, run_in_two_processes, tmp_path_factory):
    """The folder with what two processes wrote, and what each reported."""
    folder = tmp_path_factory.mktemp("two_processes")
    printed = run_in_two_processes(mixture_distributed_run, backbone, folder)
    assert "warn" not in printed.lower()
    return folder, [json.loads((folder / f"results.{process}.json").read_text()) for process in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_gradients_and_losses_of_two_processes_equal_those_of_one_big_batch(name, backbone, two_processes, tmp_path):
    folder, results = two_processes
    expected, logged = mixture_distributed_run.train_step(name, backbone, tmp_path, in_one_batch=True)
    assert logged["loss"] > 0.1
    for process in range(2):
        found = load_file(folder / f"{name}.{process}.safetensors")
        assert set(found) == set(expected)
        for parameter, gradient in expected.items():
            torch.testing.assert_close(
                found[parameter], gradient, rtol=1e-5, atol=1e-7, msg=lambda text, of=parameter: f"{of}: {text}"
            )
        losses = {key: value for key, value in logged.items() if key.startswith("loss")}
        assert {key: results[process]["logs"][name][key] for key in losses} == pytest.approx(losses, rel=1e-5)


def test_contrastive_weights_of_two_processes_equal_those_of_one_after_several_steps(
    two_processes, backbone, tmp_path
):
    expected = mixture_distributed_run.trained_weights(backbone, tmp_path, in_one_batch=True)
    start = mixture_distributed_run.make_model(backbone, ("search",)).state_dict()
    assert any((expected[name] - start[name]).abs().max() > 5e-3 for name in expected), "premise: nine steps"
    for process in range(2):
        found = load_file(two_processes[0] / f"trained.{process}.safetensors")
        for name, weight in expected.items():
            torch.testing.assert_close(
                found[name], weight, rtol=1e-6, atol=1e-6, msg=lambda text, of=name: f"{of}: {text}"
            )


def test_negatives_of_the_other_process_count(two_processes, backbone, tmp_path):
    # Premise of the test above: without them the gradients would be others.
    half = mixture_distributed_run.RUNS["contrastive"] | {"one": 6}
    mixture_distributed_run.RUNS["half"] = half | {"accumulation": 2}
    found, _ = mixture_distributed_run.train_step("half", backbone, tmp_path)
    expected = load_file(two_processes[0] / "contrastive.0.safetensors")
    assert any(not torch.allclose(found[name], expected[name], rtol=1e-2) for name in expected)


@pytest.mark.parametrize("name", ["mixed", "single_task"])
def test_every_row_comes_once_an_epoch_over_both_processes(name, two_processes):
    shares = [results["batches"][name] for results in two_processes[1]]
    assert len(shares[0]) == len(shares[1])
    for epoch in range(2):
        half = slice(epoch * len(shares[0]) // 2, (epoch + 1) * len(shares[0]) // 2)
        rows = [tuple(row) for share in shares for batch in share[half] for found in batch.values() for row in found]
        assert len(rows) == len(set(rows)) == 31


def test_uniform_epoch_goes_round_the_small_set_again_over_both_processes(two_processes):
    batches = [batch for results in two_processes[1] for batch in results["batches"]["uniform"]]
    large = Counter(tuple(row) for batch in batches for row in batch.get("rating", ()))
    small = Counter(tuple(row) for batch in batches for row in batch.get("pairs", ()))
    assert (sum(large.values()), sum(small.values())) == (2 * 16, 2 * 15)
    assert (len(large), set(large.values())) == (21, {1, 2})
    assert set(small.values()) == {3}


@pytest.mark.parametrize("name", ["single_task", "max_rows"])
def test_single_task_batches_are_of_the_same_task_on_both_processes(name, two_processes):
    steps = list(zip(*(results["batches"][name] for results in two_processes[1]), strict=True))
    for step in steps:
        assert len({task for batch in step for task in batch}) == 1
    assert {task for step in steps for batch in step for task in batch} == {"rating", "pairs"}


def test_max_rows_are_the_same_rows_on_both_processes_and_in_both_epochs(two_processes):
    batches = [batch for results in two_processes[1] for batch in results["batches"]["max_rows"]]
    counts = Counter(tuple(row) for batch in batches for row in batch.get("rating", ()))
    assert sorted(counts.values()) == [2] * 9
