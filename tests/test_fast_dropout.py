"""Dropout that draws its random numbers fast: the distribution and the interface of PyTorch's own."""

from pathlib import Path

import pytest
import torch
import torch.nn as nn

from helpers.trainer import make_backbone, make_model, make_set, make_trainer
from multitask_sentence import MultiTaskModel
from multitask_sentence.training import fast_dropout
from multitask_sentence.training.fast_dropout import FastDropout, dropout, use_fast


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_share_of_zeros_is_the_probability_and_the_mean_stays(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1001, 999, dtype=dtype), probability)
    assert (dropped == 0).double().mean().item() == pytest.approx(probability, abs=0.002)
    kept = dropped[dropped != 0].double().unique()
    assert len(kept) == 1
    assert kept.item() == pytest.approx(1 / (1 - probability), rel=1e-3 if dtype is not torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_everything_or_nothing_is_dropped(probability: float) -> None:
    states = torch.randn(3, 5)
    torch.testing.assert_close(dropout(states, probability), states * (1 - probability), rtol=0, atol=0)


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    is_zero = (dropout(torch.ones(100_000, 8), 0.5) == 0).double()  # eight neighbours share two drawn numbers
    shares = is_zero.T @ is_zero / len(is_zero)
    torch.testing.assert_close(shares, torch.full((8, 8), 0.25).fill_diagonal_(0.5).double(), rtol=0, atol=0.01)


def test_the_generator_of_torch_decides() -> None:
    states = torch.randn(7, 13)
    torch.manual_seed(1)
    first, second = dropout(states, 0.3), dropout(states, 0.3)
    torch.manual_seed(1)
    torch.testing.assert_close(dropout(states, 0.3), first, rtol=0, atol=0)
    assert not torch.equal(first, second)


def test_gradient_is_zero_where_the_state_was_dropped() -> None:
    states = torch.randn(6, 11, requires_grad=True)
    dropped = dropout(states, 0.5)
    dropped.sum().backward()
    torch.testing.assert_close(states.grad, (dropped != 0).float() * 2, rtol=0, atol=0)


def test_plain_dropout_is_replaced_in_its_mode_and_other_kinds_stay() -> None:
    class Other(nn.Dropout):
        pass

    module = nn.Sequential(nn.Dropout(0.3).eval(), nn.Sequential(nn.Dropout(0.2)), Other(0.1))
    use_fast(module)
    assert [type(child) for child in (module[0], module[1][0], module[2])] == [FastDropout, FastDropout, Other]
    assert [(child.p, child.training) for child in (module[0], module[1][0])] == [(0.3, False), (0.2, True)]
    states = torch.randn(4, 4)
    torch.testing.assert_close(module[0](states), states, rtol=0, atol=0)
    assert (module[1](torch.ones(100, 100)) == 0).any()


def test_dropout_of_an_adapter_stays_as_it_is() -> None:
    layer = nn.Module()
    layer.lora_dropout = nn.ModuleDict({"default": nn.Dropout(0.2)})
    use_fast(layer)
    assert type(layer.lora_dropout["default"]) is nn.Dropout


def test_training_draws_fast_also_for_the_attention_of_packed_passes(tmp_path: Path, monkeypatch) -> None:
    model = make_model(make_backbone(tmp_path / "backbone", dropout=0.1), ("sentiment",))
    assert {type(part) for part in model.backbone.modules() if isinstance(part, nn.Dropout)} == {nn.Dropout}
    dropped, elsewhere, plain = [], [], nn.functional.dropout

    def fast(states: torch.Tensor, probability: float) -> torch.Tensor:
        dropped.append(states.dim())
        return dropout(states, probability)

    def slow(states: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if p and training:
            elsewhere.append(tuple(states.shape))
        return plain(states, p, training, inplace)

    monkeypatch.setattr(fast_dropout, "dropout", fast)
    monkeypatch.setattr(nn.functional, "dropout", slow)
    sets = [make_set(["sentiment"], train=8, validation=4)]
    trainer = make_trainer(model, sets, tmp_path / "run", max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    assert not elsewhere
    layers = model.config.backbone_config.num_hidden_layers
    assert dropped.count(3) == 1 + 2 * layers, "embeddings, and twice in each layer"
    assert dropped.count(4) >= layers, "attention weights of each group of equally long sentences"


def test_a_model_that_nobody_trains_has_the_dropout_of_pytorch(tiny_model: MultiTaskModel) -> None:
    assert {type(part) for part in tiny_model.modules() if isinstance(part, nn.Dropout)} == {nn.Dropout}
