"""Linear layers on prepacked weights: the numbers of the plain ones, and never those of a weight that has changed."""

import copy
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
import torch.nn as nn

from multitask_sentence import MultiTaskModel
from multitask_sentence import prepacked_multitask as prepacked_module
from multitask_sentence.prepacked_multitask import PrepackedLinear, prepacked

SENTENCES = ["a cat", "the dog sees a cat and the dog", "dog"]


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(37, 32)


@torch.no_grad()
def packed_result(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    with prepacked([layer]):
        assert type(layer) is PrepackedLinear
        return layer(states)


@pytest.mark.parametrize("shape", [(1, 37), (5, 37), (1, 9, 37), (2, 3, 37)])
@pytest.mark.parametrize("bias", [True, False])
def test_result_is_that_of_the_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer, states = nn.Linear(37, 32, bias=bias), torch.randn(shape)
    torch.testing.assert_close(packed_result(layer, states), layer(states).detach(), rtol=1e-5, atol=1e-6)


def test_layer_is_a_plain_one_again_also_after_an_error(layer: nn.Linear) -> None:
    with pytest.raises(KeyError), torch.no_grad(), prepacked([layer]):
        raise KeyError
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.data.mul_(2),  # which the version counter does not see
        lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
        lambda layer: layer.weight.data[:, 5].add_(10),
        lambda layer: layer.weight.data[7].add_(10),
        lambda layer: layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()}),
    ],
    ids=["in place", "in place through data", "data replaced", "parameter replaced", "a column", "a row", "loaded"],
)
def test_changed_weight_is_packed_anew(layer: nn.Linear, change) -> None:
    states = torch.randn(4, 37)
    before = packed_result(layer, states)
    with torch.no_grad():
        change(layer)
    after = packed_result(layer, states)
    torch.testing.assert_close(after, layer(states).detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before, after)


def test_change_through_data_of_any_one_row_is_seen() -> None:
    layer, states = nn.Linear(384, 1536), torch.randn(2, 384)
    for row in (1, 2, 700, 1534):
        before = packed_result(layer, states)
        layer.weight.data[row] = 1.0
        after = packed_result(layer, states)
        assert (after - before)[:, row].abs().min() > 1e-3


def test_compiled_layer_does_not_look_at_what_is_packed(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, states = torch.compile(layer, backend="eager", fullgraph=True), torch.randn(4, 37)
    with torch.no_grad(), prepacked([layer]), monkeypatch.context() as patch:
        patch.setattr(prepacked_module, "_PACKED", None)
        found = compiled(states)
    torch.testing.assert_close(found, layer(states).detach(), rtol=1e-5, atol=1e-6)


def test_weight_that_changed_inside_is_packed_anew_by_who_comes_next(layer: nn.Linear) -> None:
    states = torch.randn(4, 37)
    with torch.no_grad(), prepacked([layer]):
        layer.weight.mul_(2)
        with prepacked([layer]):
            result = layer(states)
        assert type(layer) is PrepackedLinear  # whoever leaves first does not take it from the others
    torch.testing.assert_close(result, layer(states).detach(), rtol=1e-5, atol=1e-6)
    assert type(layer) is nn.Linear


def test_layers_are_plain_ones_after_an_interrupt_while_packing() -> None:
    layers = [nn.Linear(5, 3), nn.Linear(5, 3)]
    pack = torch.ops.mkldnn._reorder_linear_weight
    with (
        mock.patch("torch.ops.mkldnn._reorder_linear_weight", side_effect=[pack(layers[0].weight), KeyboardInterrupt]),
        pytest.raises(KeyboardInterrupt),
        torch.no_grad(),
        prepacked(layers),
    ):
        pass
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Linear]


def test_threads_encode_and_train_at_once(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.encode(SENTENCES)
    layers = [module for module in tiny_model.backbone.modules() if isinstance(module, nn.Linear)]

    def encode() -> bool:
        return all(abs(tiny_model.encode(SENTENCES) - expected).max() < 1e-6 for _ in range(20))

    def with_gradients() -> bool:
        for layer in layers * 20:
            layer(torch.ones(2, layer.in_features)).sum().backward()
        return True

    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(work) for work in (encode, encode, with_gradients)]
        assert all(future.result() for future in done)
    assert {type(layer) for layer in layers} == {nn.Linear}


def test_unchanged_weight_is_packed_once(layer: nn.Linear) -> None:
    packed_result(layer, torch.randn(4, 37))
    with mock.patch("torch.ops.mkldnn._reorder_linear_weight", side_effect=AssertionError("packed again")):
        packed_result(layer, torch.randn(9, 37))


def test_plain_layer_runs_with_gradients_and_in_other_precisions(layer: nn.Linear) -> None:
    states = torch.randn(4, 37)
    with prepacked([layer]):
        assert type(layer) is nn.Linear
    with torch.no_grad(), prepacked([layer.double()]):
        assert type(layer) is nn.Linear
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), prepacked([layer.float()]):
        assert type(layer) is nn.Linear
    with torch.no_grad(), prepacked([layer]), torch.enable_grad():
        layer(states).sum().backward()
    assert layer.weight.grad is not None


def test_onednn_switched_off_switches_it_off(layer: nn.Linear) -> None:
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), prepacked([layer]):
        assert type(layer) is nn.Linear


def test_used_model_can_be_copied(tiny_model: MultiTaskModel) -> None:
    embeddings = tiny_model.encode(SENTENCES)
    twin = copy.deepcopy(tiny_model)
    twin.tokenizer = tiny_model.tokenizer
    assert (twin.encode(SENTENCES) == embeddings).all()


def test_encode_and_predict_use_it(tiny_model: MultiTaskModel) -> None:
    with mock.patch.object(PrepackedLinear, "forward", autospec=True, side_effect=nn.Linear.forward) as forward:
        tiny_model.encode(SENTENCES)
        encoded = forward.call_count
        tiny_model.predict(SENTENCES)
    assert 0 < encoded < forward.call_count
