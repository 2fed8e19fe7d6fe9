"""Balancing the tasks' losses: the methods against torchjd, absent tasks, logs, resuming, and what is refused."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchjd.aggregation import AlignedMTL, PCGrad, UPGradWeighting
from torchjd.scalarization import DWA, FAMO, UW
from transformers import set_seed

from helpers import trainer as helpers
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.train import run
from multitask_sentence.training import trainer as trainer_module
from multitask_sentence.training.balancing import balancers
from multitask_sentence.training.balancing.balancers import project_onto_dual_cone
from multitask_sentence.training.balancing.making import STATE_FILE, load_balancer, make_balancer, save_balancer
from multitask_sentence.training.balancing.second_pass import SecondPass
from multitask_sentence.training.balancing.settings import GRADIENT_METHODS, METHODS, BalancingConfig

SCALARIZATIONS = [method for method in METHODS if method not in ("sum", *GRADIENT_METHODS)]
TASKS, SINGLE = helpers.TASKS, list(helpers.MEAN_LOSS_TASKS)
STATIC = {name: complete_task(name, task).loss_weight for name, task in TASKS.items()}
SHARES = {"sentiment": 0.7, "tags": 0.3, "rating": 0.4}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"), dropout=0.3)


@pytest.fixture(scope="module")
def backbone_without_dropout(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


def make_arguments(**kwargs) -> SimpleNamespace:
    """What `make_balancer` looks at, as it is in a plain run."""
    plain = dict.fromkeys(("fp16", "gradient_checkpointing", "torch_compile"), False)
    return SimpleNamespace(**{**plain, "gradient_accumulation_steps": 1, "world_size": 1, "seed": 3, **kwargs})


def make(balancing, num_tasks: int = 3, **kwargs):
    return make_balancer(BalancingConfig.from_recipe(balancing), num_tasks, make_arguments(**kwargs))


def make_values(steps: int, num_tasks: int = 3, seed: int = 0) -> torch.Tensor:
    """Positive values `(steps, tasks)` that fall at different rates."""
    noise = torch.rand(steps, num_tasks, generator=torch.Generator().manual_seed(seed))
    fall = torch.linspace(1.0, 0.2, steps)[:, None] ** torch.arange(1, num_tasks + 1)
    return (0.5 + noise) * fall


# The methods against torchjd, used as its documentation says


def test_uncertainty_weights_are_those_of_torchjd_trained_with_adam():
    ours, theirs = make("uncertainty"), UW(3)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for values in make_values(20):
        loss_values = values.clone().requires_grad_()
        optimizer.zero_grad()
        theirs(loss_values).backward()
        torch.testing.assert_close(ours.weights(0, 0, None), loss_values.grad)
        optimizer.step()
        ours.update(values)
    assert ours.weights(0, 0, None).std() > 0.01, "premise: the weights have moved"


def test_dwa_weights_are_those_of_torchjd_stepped_at_the_end_of_each_epoch():
    ours, theirs = make({"method": "dwa", "temperature": 0.5}), DWA(0.5)
    for epoch, epoch_values in enumerate(make_values(20).view(5, 4, 3)):
        for values in epoch_values:
            loss_values = values.clone().requires_grad_()
            theirs(loss_values).backward()
            torch.testing.assert_close(ours.weights(0, epoch, None), loss_values.grad)
            ours.update(values)
        theirs.step()
    assert ours.weights(0, 4, None).std() > 0.01, "premise: the weights differ"


def test_famo_weights_are_those_of_torchjd():
    ours, theirs = make("famo"), FAMO(3)
    for before, after in make_values(20).view(10, 2, 3):
        loss_values = before.clone().requires_grad_()
        theirs(loss_values).backward()
        torch.testing.assert_close(ours.weights(0, 0, before), loss_values.grad, rtol=0, atol=0)
        theirs.update(after)
        ours.update_after_step(after)
    assert torch.tensor(ours.state()[0]["value"]).abs().min() > 0.01, "premise: the logits have moved"


def test_geometric_mean_weights_are_its_derivatives():
    values = torch.tensor([0.5, 2.0, 4.0])
    expected = values.prod() ** (1 / 3) / (3 * values)
    torch.testing.assert_close(make("geometric_mean").weights(0, 0, values), expected)


def test_random_weights_follow_from_seed_and_step_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    weights = {(seed, step): make("random", seed=seed).weights(step, 0, None) for seed in (3, 4) for step in (0, 1)}
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(make("random", seed=3).weights(1, 0, None), weights[3, 1])
    assert len({tuple(found.tolist()) for found in weights.values()}) == 4
    for found in weights.values():
        assert found.min() > 0
        assert found.sum() == pytest.approx(1)


def test_dual_cone_projection_gives_torchjds_known_answer_and_the_optimum():
    jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    weights = UPGradWeighting(projector=project_onto_dual_cone)(jacobian @ jacobian.T)
    torch.testing.assert_close(weights, torch.tensor([1.1109, 0.7894]), rtol=0, atol=1e-4)  # of torchjd's docs

    jacobian = torch.randn(4, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    jacobian[2] = -jacobian[0] - 0.5 * jacobian[1]
    gramian = jacobian @ jacobian.T
    u = torch.diag(torch.full((4,), 0.25, dtype=torch.float64))
    slope = project_onto_dual_cone(u, gramian) @ (gramian / gramian.trace() + 1e-4 * torch.eye(4).double())
    gap = project_onto_dual_cone(u, gramian) - u
    assert gap.max() > 0.01, "premise: the gradients conflict"
    assert gap.min() >= 0  # the conditions of Karush, Kuhn and Tucker
    assert slope.min() > -1e-9
    assert (gap * slope).abs().max() < 1e-9


# Tasks that are absent from a step


@pytest.mark.parametrize("method", ["famo", "geometric_mean", "pcgrad", "upgrad", "aligned_mtl"])
def test_absent_task_changes_nothing_for_the_others(method):
    """With the third task always absent, three tasks are balanced as the first two alone are."""
    three, two = make(method, 3), make(method, 2)
    for before, after in make_values(10).view(5, 2, 3):
        before[2] = after[2] = 0.0
        if method in GRADIENT_METHODS:
            set_seed(0)
            found, gradients = toy_backward(three, before)
            set_seed(0)
            expected, expected_gradients = toy_backward(two, before[:2])
            for name in ("shared", "head0", "head1"):
                torch.testing.assert_close(gradients[name], expected_gradients[name], rtol=0, atol=0)
            assert torch.equal(gradients["head2"], torch.zeros(2))  # zero, not absent
        else:
            found, expected = three.weights(0, 0, before), two.weights(0, 0, before[:2])
            three.update_after_step(after)
            two.update_after_step(after[:2])
        torch.testing.assert_close(found[:2], expected, rtol=0, atol=0)
        assert found[2] == 0


@pytest.mark.parametrize("method", ["uncertainty", "dwa", "famo"])
def test_what_was_learnt_about_a_task_stays_as_it_is_while_the_task_is_absent(method):
    balancer = make(method)

    def step(before: torch.Tensor, after: torch.Tensor) -> None:
        balancer.weights(0, 0, before)
        balancer.update(before)
        balancer.update_after_step(after)

    for before, after in make_values(8).view(4, 2, 3):
        step(before, after)
    learnt = json.loads(json.dumps(balancer.state()))
    for before, after in make_values(8, seed=1).view(4, 2, 3):
        before[1] = after[1] = 0.0
        step(before, after)
    now = balancer.state()
    if method == "uncertainty":
        assert now[1] == learnt[1]
        assert now[0] != learnt[0]
    elif method == "dwa":
        assert (now["sums"][1], now["counts"]) == (learnt["sums"][1], [8, 4, 8])
    else:
        for name in ("value", "exp_avg", "exp_avg_sq"):
            assert now[0][name][1] == learnt[0][name][1]
            assert now[0][name][0] != learnt[0][name][0]


def test_dwa_rate_of_a_task_absent_for_a_whole_epoch_is_that_of_the_epochs_that_had_it():
    balancer, plain = make("dwa"), make("dwa", 2)
    for epoch, values in enumerate([[4.0, 2.0, 8.0], [2.0, 1.5, 0.0], [1.0, 1.4, 4.0], [1.0, 1.0, 1.0]]):
        weights = balancer.weights(0, epoch, None)
        assert torch.isfinite(weights).all()
        balancer.update(torch.tensor(values))
        if epoch == 2:  # one mean of the third task: its rate counts as 1
            expected = torch.softmax(torch.tensor([2 / 4, 1.5 / 2, 1.0]) / 2, dim=0) * 3
            torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights, torch.softmax(torch.tensor([1 / 2, 1.4 / 1.5, 4 / 8]) / 2, dim=0) * 3)
    assert torch.equal(plain.weights(0, 0, None), torch.ones(2))


@pytest.mark.parametrize("method", METHODS)
def test_step_without_any_task_is_survived(method):
    balancer = make(method)
    if method in GRADIENT_METHODS:
        weights, gradients = toy_backward(balancer, torch.zeros(3))
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())
    else:
        weights = balancer.weights(0, 0, torch.zeros(3))
        balancer.update(torch.zeros(3))
        balancer.update_after_step(torch.zeros(3))
    assert torch.isfinite(weights).all()
    assert torch.isfinite(balancer.weights(1, 0, torch.ones(3))).all()


# Gradient methods


JACOBIAN = torch.tensor([[1.0, 2.0, 0.0], [-3.0, 1.0, 0.5], [0.3, -1.0, 1.0]])


def toy_backward(balancer, values: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Value t is `values[t]`, times something with the gradient `JACOBIAN[t]` on shared and `(1, t)` on its head."""
    shared = torch.nn.Parameter(torch.zeros(3))
    heads = [torch.nn.Parameter(torch.zeros(2)) for _ in values]
    terms = [
        value * (1 + JACOBIAN[task] @ shared + head @ torch.tensor([1.0, task]))
        for task, (value, head) in enumerate(zip(values, heads, strict=True))
    ]
    weights = balancer.backward(torch.stack(terms), [shared], heads)
    return weights, {"shared": shared.grad, **{f"head{task}": head.grad for task, head in enumerate(heads)}}


def test_pcgrad_takes_the_conflicting_part_out_of_shared_gradients_and_leaves_heads_alone():
    values = torch.tensor([1.0, 2.0])
    weights, gradients = toy_backward(make("pcgrad", 2), values)
    first, second = values[:, None] * JACOBIAN[:2]
    inner = first @ second
    assert inner < 0, "premise: the two conflict"
    expected = first - inner / (second @ second) * second + second - inner / (first @ first) * first
    torch.testing.assert_close(gradients["shared"], expected)
    torch.testing.assert_close(gradients["shared"], weights @ torch.stack([first, second]))
    assert torch.equal(gradients["head0"], torch.tensor([1.0, 0.0]))
    assert torch.equal(gradients["head1"], 2 * torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize(("method", "aggregator"), [("pcgrad", PCGrad()), ("aligned_mtl", AlignedMTL())])
def test_shared_gradient_is_what_torchjds_aggregator_makes_of_the_jacobian(method, aggregator):
    values = torch.tensor([1.0, 2.0, 0.5])
    set_seed(0)
    weights, gradients = toy_backward(make(method), values)
    jacobian = values[:, None] * JACOBIAN
    set_seed(0)
    torch.testing.assert_close(gradients["shared"], aggregator(jacobian))
    torch.testing.assert_close(gradients["shared"], weights @ jacobian)


def test_upgrad_makes_no_task_worse_to_first_order():
    values = torch.tensor([1.0, 2.0, 0.5])
    jacobian = values[:, None] * JACOBIAN
    assert (jacobian @ jacobian.mean(dim=0)).min() < -0.01, "premise: the mean gradient does"
    _, gradients = toy_backward(make("upgrad"), values)
    assert (jacobian @ gradients["shared"]).min() > -1e-3


# In the Trainer


def train(method, backbone: Path, folder: Path, tasks=SINGLE, rows: int = 8, seed: int = 0, **kwargs):
    """A run over one set of single sentences; returns trainer and the logs with a loss."""
    model = helpers.make_model(backbone, tasks).double()
    options = {"balancing": method, "callbacks": kwargs.pop("callbacks", [])}
    trainer = helpers.make_trainer(
        model, [helpers.make_set(tasks, SHARES, seed=seed, train=rows)], folder, options, **kwargs
    )
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def all_sets(**counts: int) -> list:
    sets = [helpers.make_set(SINGLE, SHARES, **counts)]
    return sets + [helpers.make_set([task], seed=seed, **counts) for seed, task in ((100, "pairs"), (200, "search"))]


@pytest.mark.parametrize("method", [*SCALARIZATIONS, *GRADIENT_METHODS])
def test_logged_loss_is_the_sum_of_logged_losses_times_logged_weights(method, backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone),
        all_sets(train=12),
        tmp_path,
        {"mixture": {"rows_per_batch": {"pairs": 4, "search": 4}}, "balancing": method},
        per_device_train_batch_size=8,
        num_train_epochs=1,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any(entry["loss_pairs"] == 0.0 for entry in entries), "premise: steps without the task"
    for entry in entries:
        present = [task for task in TASKS if entry[f"loss_{task}"] > 0]
        assert [task for task in TASKS if f"weight_{task}" in entry] == present
        weighted = sum(entry[f"weight_{task}"] * entry[f"loss_{task}"] for task in present)
        assert math.isfinite(entry["loss"])
        assert entry["loss"] == pytest.approx(weighted, rel=1e-5)


def test_sum_logs_no_weights(backbone, tmp_path):
    _, entries = train("sum", backbone, tmp_path)
    assert not [key for key in entries[0] if key.startswith("weight_")]


ONE_STEP = {"per_device_train_batch_size": 8, **helpers.without_learning()}


@pytest.fixture(scope="module")
def task_gradients(backbone_without_dropout, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Each task's own gradient on every parameter, from a run with `sum` in which the others have weight 0."""
    gradients = {}
    for task in SINGLE:
        model = helpers.make_model(backbone_without_dropout, SINGLE).double()
        for other in SINGLE:
            model.config.change_task(other, loss_weight=float(other == task))
        data = helpers.make_set(SINGLE, SHARES, train=8)
        (gradients[task],) = helpers.train_gradients(model, [data], tmp_path_factory.mktemp(task), **ONE_STEP)
    return gradients


@pytest.mark.parametrize("method", [*SCALARIZATIONS, *GRADIENT_METHODS])
def test_gradients_of_a_step_are_the_task_gradients_times_the_logged_weights(
    method, backbone_without_dropout, task_gradients, tmp_path
):
    """On every parameter for scalarizations, on the shared ones for gradient methods, whose heads keep their own."""
    recorder = helpers.GradientRecorder()
    _, (entry,) = train(method, backbone_without_dropout, tmp_path, callbacks=[recorder], **ONE_STEP)
    for name, found in recorder.steps[0].items():
        is_shared = name.startswith("backbone.") or method not in GRADIENT_METHODS
        expected = sum(
            (entry[f"weight_{task}"] if is_shared else STATIC[task]) * task_gradients[task][name] for task in SINGLE
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("method", ["uncertainty", "dwa", "random"])
def test_weights_and_gradients_do_not_depend_on_gradient_accumulation(method, backbone_without_dropout, tmp_path):
    runs = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        recorder = helpers.GradientRecorder()
        _, entries = train(
            method,
            backbone_without_dropout,
            tmp_path,
            callbacks=[recorder],
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=4,
        )
        runs.append((recorder.steps, [[entry[f"weight_{task}"] for task in SINGLE] for entry in entries]))
    (whole, whole_weights), (cut, cut_weights) = runs
    assert len(whole) == len(cut) == 4
    np.testing.assert_allclose(cut_weights, whole_weights, rtol=1e-5)
    assert np.std(np.array(whole_weights)[-1] / [STATIC[task] for task in SINGLE]) > 1e-4, "premise: not static"
    for found, expected in zip(cut, whole, strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


def test_methods_learn_once_a_step_from_its_whole_losses_times_their_static_weights(
    backbone_without_dropout, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(balancers.DynamicWeightAverage, "update", lambda _, values: seen.append(values.tolist()))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    _, entries = train("dwa", backbone_without_dropout, tmp_path, **cut)
    assert len(seen) == len(entries) == 2
    for values, entry in zip(seen, entries, strict=True):
        assert values == pytest.approx([STATIC[task] * entry[f"loss_{task}"] for task in SINGLE], rel=1e-6)


@pytest.mark.parametrize("compiled", [{}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_famo_learns_nothing_from_a_step_that_changed_nothing(backbone, tmp_path, compiled):
    """The second pass is made with the dropout of the first: only a change of the weights changes its losses."""
    options = {"per_device_train_batch_size": 4, **compiled}
    trainer, _ = train("famo", backbone, tmp_path, **options, **helpers.without_learning())
    assert trainer.balancer.state()[0]["value"] == [0.0, 0.0, 0.0]
    trainer, _ = train("famo", backbone, tmp_path, **options)
    assert 0.0 not in trainer.balancer.state()[0]["value"]


def test_second_pass_of_apples_gpus_has_the_dropout_of_the_first(monkeypatch):
    state = ["before"]  # in place of a GPU's
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: state.__setitem__(0, new))
    seen, drawn = [], torch.get_rng_state()

    def losses(inputs, counts):
        seen.append((state[0], torch.equal(torch.get_rng_state(), drawn)))
        return torch.ones(2)

    second_pass = SecondPass(SimpleNamespace(update_after_step=len), {"one": None, "two": None}, losses)
    second_pass.keep({}, {}, torch.device("mps"))
    torch.rand(1)
    state[0], drawn_after = "after", torch.get_rng_state()
    second_pass.on_optimizer_step(None, SimpleNamespace(global_step=0), None)
    assert seen == [("before", True)]
    assert state == ["after"] and torch.equal(torch.get_rng_state(), drawn_after)


def run_three_epochs(method: str, backbone: Path, folder: Path, checkpoint: Path | None = None):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ("sentiment", "rating", "pairs")),
        [helpers.make_set(["sentiment", "rating"], SHARES, train=12), helpers.make_set(["pairs"], seed=9, train=8)],
        folder,
        {"mixture": {"rows_per_batch": {"pairs": 4}}, "balancing": method},
        per_device_train_batch_size=5,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=6,
    )
    helpers.train_from(checkpoint, trainer)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    return weights, trainer.balancer.state(), len(trainer.sampler)


@pytest.mark.parametrize("method", [*SCALARIZATIONS, "pcgrad"])
def test_resuming_in_the_middle_of_an_epoch_gives_the_run_that_was_not_interrupted(method, backbone, tmp_path):
    expected, expected_state, steps = run_three_epochs(method, backbone, tmp_path / "whole")
    assert 6 % steps, "premise: the checkpoint stands in the middle of an epoch"
    checkpoint = tmp_path / "whole" / "checkpoint-6"
    assert set(load_file(checkpoint / "model.safetensors")) <= set(expected)  # nothing of the balancer
    set_seed(987)
    found, found_state, _ = run_three_epochs(method, backbone, tmp_path / "resumed", checkpoint)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert found_state == expected_state


@pytest.mark.parametrize("steps", [4, 8, 9])
def test_dwa_goes_on_from_a_checkpoint_at_the_end_of_an_epoch(steps, tmp_path):
    """An epoch's end is seen by the number of the next, which a resumed run begins with."""

    def go_on(balancer, start: int, end: int) -> list[list[float]]:
        found = []
        for step, values in list(enumerate(make_values(16)))[start:end]:
            found.append(balancer.weights(step, step // 4, None).tolist())
            balancer.update(values)
        return found

    expected = go_on(make("dwa"), 0, 16)
    first, second = make("dwa"), make("dwa")
    go_on(first, 0, steps)
    save_balancer(first, tmp_path, ["a", "b", "c"])
    load_balancer(second, tmp_path, ["a", "b", "c"])
    assert go_on(second, steps, 16) == expected[steps:]


# A loss that is no number


@pytest.mark.parametrize(
    ("method", "accumulation", "value"),
    [
        *(("sum", 1, math.nan), ("sum", 2, math.inf), ("famo", 1, math.nan)),
        *(("pcgrad", 1, math.inf), ("upgrad", 1, math.inf), ("aligned_mtl", 1, math.inf)),
    ],
)
def test_loss_that_is_no_number_stops_training_before_the_step_and_names_the_task(
    method, accumulation, value, backbone, tmp_path, monkeypatch
):
    calls, task_loss = [], trainer_module.task_loss

    def failing(task, *args, **options):
        calls.extend([1] if task.problem_type == "regression" and torch.is_grad_enabled() else [])
        # The first micro-batch of the third step.
        is_bad = task.problem_type == "regression" and len(calls) == 2 * accumulation + 1
        return task_loss(task, *args, **options) * (value if is_bad else 1.0)

    monkeypatch.setattr(trainer_module, "task_loss", failing)
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, SINGLE),
        [helpers.make_set(SINGLE, train=16)],
        tmp_path,
        {"balancing": method},
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        save_strategy="steps",
        save_steps=1,
    )
    with pytest.raises(ValueError, match=rf"Step 3: the mse loss of task 'rating' is {value}\. Training stopped befo"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    last = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, last[name]), name


# What is refused


@pytest.mark.parametrize(
    ("balancing", "message"),
    [
        ("uncertianty", r"balancing is 'uncertianty', but should be one of sum, .* Did you mean 'uncertainty'\?"),
        (["famo"], r"balancing is \['famo'\], but should be one of"),
        (False, "balancing is False, but should be one of"),
        ({"lr": 0.1}, "balancing has no method, but should be one of"),
        ({"method": "dwa", "temprature": 2}, r"unknown key 'temprature'\. Did you mean 'temperature'\?"),
        ({"method": "random", "lr": 2}, r"unknown key 'lr'\. random has no options"),
        ({"method": "dwa", "temperature": 0}, "temperature is 0, but should be above 0"),
        ({"method": "famo", "lr": "fast"}, r"balancing\.lr is 'fast', but should be a number of at least 0"),
        ({"method": "aligned_mtl", "scale_mode": "max"}, "scale_mode is 'max', but should be one of min, median, rms"),
    ],
)
def test_wrong_balancing_is_refused(balancing, message):
    with pytest.raises(ValueError, match=message):
        BalancingConfig.from_recipe(balancing)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        *[
            (method, {"gradient_accumulation_steps": 4}, "does not go with gradient_accumulation_steps 4. Set it to 1")
            for method in ("famo", "geometric_mean", *GRADIENT_METHODS)
        ],
        ("pcgrad", {"world_size": 2}, "a gradient for each task, which does not go with 2 processes"),
        ("upgrad", {"fp16": True}, r"does not go with fp16 \(take bf16\)"),
        ("aligned_mtl", {"activation_checkpointing": True}, "does not go with activation_checkpointing"),
        ("aligned_mtl", {"gradient_checkpointing": True}, "does not go with activation_checkpointing"),
    ],
)
def test_run_that_a_method_cannot_support_is_refused(method, arguments, message):
    with pytest.raises(ValueError, match=f"balancing: {method} .*{message}"):
        make(method, **arguments)


RECIPE = """
backbone: {backbone}
tasks:
  mood: {{problem_type: regression, dataset: {{path: csv, data_files: {{train: nowhere.csv}}}}, validation_split: 0.1,
         columns: {{sentence: text, label: mood}}}}
balancing: {balancing}
training: {{use_cpu: true, gradient_accumulation_steps: 2, early_stopping_patience: 1, early_stopping_task: {watched}}}
"""


@pytest.mark.parametrize(
    ("balancing", "watched", "error", "message"),
    [
        ("{method: famo, lr: 0.1}", "mood", ValueError, "famo needs the losses of a whole optimizer step at once"),
        ("dwb", "mood", ValueError, r"job\.yaml: balancing is 'dwb'.* Did you mean 'dwa'\?"),
        ("uncertainty", "mood", ImportError, r"uncertainty needs torchjd.*`pip install 'torchjd>=0\.18,<0\.19'`"),
        ("sum", "modo", ValueError, r"early_stopping_task: there is no task 'modo'\. Did you mean 'mood'\?"),
        ("sum", "mood", ValueError, r"there is no file .*nowhere\.csv"),  # premise: what loading would say
    ],
)
def test_command_refuses_before_it_looks_at_data_and_sum_needs_no_torchjd(
    balancing, watched, error, message, backbone, tmp_path, monkeypatch
):
    for module in [name for name in sys.modules if name.split(".")[0] == "torchjd"]:
        monkeypatch.setitem(sys.modules, module, None)
    recipe = tmp_path / "job.yaml"
    recipe.write_text(RECIPE.format(backbone=backbone, balancing=balancing, watched=watched), encoding="utf-8")
    with pytest.raises(error, match=message):
        run([str(recipe), "--output_dir", str(tmp_path / "result")])
    assert not (tmp_path / "result").exists()


def test_checkpoint_of_another_method_or_of_other_tasks_is_refused(tmp_path):
    save_balancer(make("famo"), tmp_path, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"comes from a run with balancing famo, but balancing is now dwa\. Resume w"):
        load_balancer(make("dwa"), tmp_path, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"is about the tasks \['a', 'b', 'c'\], but there are \['a', 'c', 'b'\]"):
        load_balancer(make("famo"), tmp_path, ["a", "c", "b"])
    (tmp_path / STATE_FILE).unlink()
    with pytest.raises(ValueError, match="comes from a run with balancing sum, but balancing is now famo"):
        load_balancer(make("famo"), tmp_path, ["a", "b", "c"])


def test_gradient_method_without_shared_trainable_parameters_is_a_clear_error(backbone, tmp_path):
    model = helpers.make_model(backbone, SINGLE)
    data, options = [helpers.make_set(SINGLE, train=4)], {"balancing": "pcgrad"}
    stages = {"unfreeze": [{"epochs": 0.5, "train": "heads"}, {"train": "all"}]}
    with pytest.raises(ValueError, match=r"shared parameters, but none is trainable in stage 1 of strategy\.unfreeze"):
        helpers.make_trainer(model, data, tmp_path, {**options, "strategy": stages})
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"pcgrad balances gradients of shared parameters, but none is trainable\."):
        helpers.make_trainer(model, data, tmp_path, options)


def test_command_refuses_gradient_method_without_shared_parameters_before_it_looks_at_data(backbone, tmp_path):
    recipe = tmp_path / "job.yaml"
    text = RECIPE.format(backbone=backbone, balancing="pcgrad", watched="mood") + "\nstrategy: {freeze: backbone}\n"
    recipe.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="pcgrad balances gradients of shared parameters"):
        run([str(recipe), "--output_dir", str(tmp_path / "result"), "--gradient_accumulation_steps", "1"])


def test_command_balances_as_the_recipe_says(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [f"word{number} word{number + 1},{number}" for number in range(20)]
    (tmp_path / "nowhere.csv").write_text("\n".join(["text,mood", *rows]) + "\n", encoding="utf-8")
    recipe = tmp_path / "job.yaml"
    recipe.write_text(RECIPE.format(backbone=backbone, balancing="random", watched="mood"), encoding="utf-8")
    run([str(recipe), "--output_dir", str(tmp_path / "result"), "--num_train_epochs", "1", "--logging_steps", "1"])
    results = json.loads((tmp_path / "result" / "results.json").read_text(encoding="utf-8"))
    assert results["balancing"] == {"method": "random"}
    assert results["history"][0]["weight_mood"] == pytest.approx(1.0)  # a softmax over one task
    assert results["training"]["early_stopping_task"] == "mood"


@pytest.mark.parametrize("balancing", ["famo", {"method": "dwa", "temperature": 3.0}, None])
def test_balancing_is_written_as_a_recipe_says_it(balancing):
    config = BalancingConfig.from_recipe(balancing)
    assert BalancingConfig.from_recipe(config.to_recipe()) == config == BalancingConfig.from_recipe(config)
    assert config.to_recipe().keys() == {"method", *METHODS[config.method]}
    with pytest.raises(ValueError, match=r"unknown key 'scale_mode'\. sum has no options"):
        BalancingConfig(scale_mode="min")
