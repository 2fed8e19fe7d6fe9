"""Layers that training runs compiled: the same gradients, few graphs, and nothing of it left in the process."""

import copy
from unittest import mock

import pytest
import torch
from accelerate.utils import DynamoBackend
from torch._dynamo.utils import counters

from helpers import trainer as helpers
from multitask_sentence import passes_multitask
from multitask_sentence.training.trainer import MultiTaskTrainer

COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}  # inductor would compile C++ for a minute


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="PyTorch 2.7 breaks graphs at configurations")
def test_compiled_steps_have_the_same_gradients_and_one_graph_for_all_mixes_of_tasks(backbone, tmp_path, caplog):
    tasks, shares = ("sentiment", "rating", "pairs"), {"sentiment": 0.3, "rating": 0.3}
    sets = [helpers.make_set(["sentiment", "rating"], shares, train=20), helpers.make_set(["pairs"], train=5)]
    options = {"per_device_train_batch_size": 4, **helpers.without_learning()}
    batches = helpers.make_trainer(
        helpers.make_model(backbone, tasks), sets, tmp_path, **options
    ).get_train_dataloader()
    counts = {len(labels) for batch in batches for labels in batch["labels"].values()}
    assert counts >= {0, 1, 2}, "premise: PyTorch makes another graph for each of these numbers of rows"
    model = helpers.make_model(backbone, tasks)
    plain = helpers.train_gradients(helpers.make_model(backbone, tasks), sets, tmp_path, **options)
    torch._dynamo.reset()
    counters.clear()
    found = helpers.train_gradients(model, sets, tmp_path, **options, **COMPILED)
    assert "Leave torch_compile out" in caplog.text, "a CPU"
    for own, expected in zip(found, plain, strict=True):
        assert set(own) == set(expected)
        for name, gradient in expected.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6)
    with_and_without_padding = {bool(batch["attention_mask"].all()) for batch in batches}
    assert counters["stats"]["unique_graphs"] == len(with_and_without_padding)
    assert not counters["graph_break"]
    assert model.padding_free, "evaluations and predictions run as without torch_compile"
    torch._dynamo.reset()


def test_second_trainer_of_a_process_compiles_too(backbone, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=2)]
    first = helpers.make_trainer(helpers.make_model(backbone, ["sentiment"]), sets, tmp_path, **COMPILED)
    model = helpers.make_model(backbone, ["sentiment"])
    second = MultiTaskTrainer(model, copy.copy(first.args), sets)  # as a single run's, with a copy
    layer = model.backbone.encoder.layer[0]
    with second.compiled_layers():
        assert layer._compiled_call_impl is not None
    assert layer._compiled_call_impl is None
    assert second.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO, "accelerate compiles nothing"


def test_layers_that_cannot_do_without_padding_any_more_leave_the_wish_as_it_was(backbone, tmp_path):
    model = helpers.make_model(backbone, ["sentiment"])
    model.padding_free = True
    trainer = helpers.make_trainer(model, [helpers.make_set(["sentiment"], train=2)], tmp_path, **COMPILED)
    with mock.patch.object(passes_multitask, "cannot_pack", lambda backbone: "of this test"):
        with trainer.compiled_layers():
            assert model._padding_free is False
        assert model._padding_free is True
