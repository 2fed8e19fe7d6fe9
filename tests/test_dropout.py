"""Dropout that draws its random numbers fast: the distribution and the interface of PyTorch's own."""

import pytest
import torch
import torch.nn as nn

from multitask_sentence import MultiTaskModel
from multitask_sentence.dropout_multitask import FastDropout, dropout, use_fast


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


def test_a_models_backbone_drops_fast(tiny_model: MultiTaskModel) -> None:
    kinds = {type(module) for module in tiny_model.backbone.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {FastDropout}
