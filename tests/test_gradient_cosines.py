"""Cosines between the tasks' gradients: right, where parameters are shared, and without a trace in training."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from helpers import trainer as helpers
from multitask_sentence.training.comparison.gradient_cosines import (
    KEY,
    GradientCosines,
    cosine_matrix,
    cosines_of_history,
    mean_cosines,
)
from multitask_sentence.training.losses.losses import task_loss

TASKS = tuple(helpers.TASKS)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"), dropout=0.1)


def make_trainer(backbone: Path, folder: Path, strategy: dict | None = None, **kwargs):
    sets = [helpers.make_set(["sentiment", "tags", "rating"], {"tags": 0.4}, train=12)]
    sets += [helpers.make_set([task], seed=seed, train=8) for seed, task in ((100, "pairs"), (200, "search"))]
    model = helpers.make_model(backbone, TASKS, projection={"out_features": 24})
    options = {"strategy": strategy} if strategy else {}
    return helpers.make_trainer(model, sets, folder, options, per_device_train_batch_size=8, **kwargs)


def test_cosine_matrix_of_known_gradients():
    first = torch.tensor([3.0, 0.0, 4.0])  # of length 5
    second = torch.tensor([0.0, 5.0, 12.0])  # of length 13
    found = cosine_matrix([first, second, torch.zeros(3)])
    assert found[0][:2] == pytest.approx([1, 48 / 65])
    assert found[1][:2] == pytest.approx([48 / 65, 1])
    assert [row[2] for row in found] == found[2] == [None] * 3


def test_mean_leaves_out_what_is_undefined():
    history = [{"step": 0, KEY: [[1.0, None], [None, None]]}, {"step": 1, "loss": 2.0}]
    history += [{"step": step, KEY: [[1.0, value], [value, None]]} for step, value in ((2, 0.5), (4, -0.1))]
    measured = cosines_of_history(history)
    assert [entry["step"] for entry in measured] == [0, 2, 4]
    assert mean_cosines(measured) == [[1.0, pytest.approx(0.2)], [pytest.approx(0.2), None]]


def test_measured_cosines_are_those_of_the_gradients_that_training_would_take(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path)
    callback = GradientCosines(trainer)
    assert {task: len(probe["labels"][task]) for task, probe in callback.probes.items()} == {
        "sentiment": 12,
        "tags": sum(row["label_tags"] is not None for row in trainer.train_dataset.sets[0]),
        "rating": 12,
        "pairs": 8,
        "search": 8,
    }
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    (measured,) = cosines_of_history(trainer.state.log_history)

    trainer.model.eval()
    gradients = []
    for task, probe in callback.probes.items():
        trainer.model.zero_grad()
        outputs = trainer.model(**{name: value for name, value in probe.items() if name != "labels"})
        logits, rows, labels = outputs.logits[task], probe["task_rows"][task], probe["labels"][task]
        task_loss(trainer.tasks[task], logits, labels, outputs.sentence_embedding, rows).backward()
        shared = [p for name, p in trainer.model.named_parameters() if not name.startswith("heads.")]
        gradients.append(torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in shared]))
    expected = torch.stack(gradients)
    expected = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(measured["cosines"], (expected @ expected.T).numpy(), atol=1e-5)


def test_gradient_of_a_task_is_one_vector_on_the_cpu(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path)
    callback = GradientCosines(trainer)
    shared = [p for name, p in trainer.model.named_parameters() if not name.startswith("heads.")]
    found = callback._gradient("rating", shared)
    assert found.shape == (sum(parameter.numel() for parameter in shared),) and found.device.type == "cpu"


def test_loss_of_a_probe_is_computed_outside_autocast(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path, bf16=True)
    callback, seen = GradientCosines(trainer), []

    def look(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return task_loss(*args, **kwargs)

    with mock.patch("multitask_sentence.training.comparison.gradient_cosines.task_loss", look):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert seen == [False] * len(TASKS)


def test_measuring_leaves_gradients_modes_and_random_numbers_alone(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path)
    callback = GradientCosines(trainer)
    trainer.model.train()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    modes, random_state = [module.training for module in trainer.model.modules()], torch.get_rng_state()
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert cosines_of_history(trainer.state.log_history)
    assert [module.training for module in trainer.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all((parameter.grad == 7.0).all() for parameter in trainer.model.parameters())


def test_probe_does_not_change_with_dropout(backbone: Path, tmp_path: Path):
    trainer = make_trainer(backbone, tmp_path)
    callback = GradientCosines(trainer)
    trainer.model.train()
    for _ in range(2):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    first, second = cosines_of_history(trainer.state.log_history)
    assert first == second


def test_stage_in_which_only_heads_train_has_no_cosines(backbone: Path, tmp_path: Path):
    stages = {"unfreeze": [{"epochs": 1, "train": "heads"}, {"train": "all"}]}
    trainer = make_trainer(backbone, tmp_path, stages, num_train_epochs=2)
    trainer.add_callback(GradientCosines(trainer))
    trainer.train()
    steps = [entry["step"] for entry in cosines_of_history(trainer.state.log_history)]
    assert steps == list(range(steps[0], trainer.state.max_steps + 1))
    assert steps[0] == trainer.state.max_steps // 2 + 1, "the first step of the second epoch"


def test_frozen_backbone_leaves_the_projection_to_be_shared(backbone: Path, tmp_path: Path):
    for freeze, count in ((["backbone"], 1), (["backbone", "projection"], 0)):
        trainer = make_trainer(backbone, tmp_path, {"freeze": freeze})
        GradientCosines(trainer).on_train_begin(trainer.args, trainer.state, trainer.control)
        assert len(cosines_of_history(trainer.state.log_history)) == count
