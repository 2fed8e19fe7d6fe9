"""Linear layers on prepacked weights: the numbers of the plain ones, and never those of a weight that has changed."""

import copy
import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn as nn

from helpers import warm
from multitask_sentence import MultiTaskModel
from multitask_sentence import prepacked_multitask as prepacked_module
from multitask_sentence.prepacked_multitask import (
    PrepackedLinear,
    _has_bfloat16,
    _has_operators,
    computed_rows,
    prepacked,
)

SENTENCES = ["a cat", "the dog sees a cat and the dog", "dog"]


@pytest.fixture
def tiny_model(tiny_model: MultiTaskModel) -> MultiTaskModel:
    """In bfloat16, in which a model packs its weights where the CPU knows it."""
    if not _has_bfloat16():
        pytest.skip("this CPU computes no bfloat16 in oneDNN")
    return tiny_model.bfloat16()


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
            layer(torch.ones(2, layer.in_features, dtype=torch.bfloat16)).sum().backward()
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
        used = forward.call_count
        tiny_model.float().encode(SENTENCES)
    assert 0 < encoded < used
    assert forward.call_count == used, "float32 is no faster so"


# ---- few numbers of rows ----


def test_computed_rows_are_few_and_not_far_above() -> None:
    sizes = [computed_rows(rows) for rows in range(2049)]
    assert sizes[:34] == [*range(33), 36]
    assert [sizes[rows] for rows in (64, 65, 100, 500, 1024, 1025, 2000, 2048)] == [
        64,
        72,
        104,
        512,
        1024,
        1088,
        2000,
        2048,
    ]
    assert len(set(sizes[1:])) == 32 + 8 * 5 + 12 + 16
    assert all(rows <= size <= rows * 9 / 8 for rows, size in enumerate(sizes))
    assert [computed_rows(size) for size in sizes] == sizes


def products(model: MultiTaskModel, sentences: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of rows that packed weights are multiplied with."""
    rows, multiply = set(), torch.ops.mkldnn._linear_pointwise

    def counted(states: torch.Tensor, *args: object) -> torch.Tensor:
        rows.add(states.numel() // states.shape[-1])
        return multiply(states, *args)

    with monkeypatch.context() as patch:
        patch.setattr("torch.ops.mkldnn._linear_pointwise", counted)
        for window in sentences:
            model.encode(window)
    return rows


@pytest.mark.parametrize("padding_free", [None, False], ids=["packed", "padded"])
def test_requests_of_any_length_meet_few_numbers_of_rows(tiny_model, monkeypatch, padding_free: bool | None) -> None:
    requests = [["a cat sat " * (1 + number % 5)] * number for number in range(3, 60)]
    expected = [[tiny_model.encode(sentence) for sentence in request[:1]] for request in requests]
    tiny_model.padding_free = padding_free
    rows = products(tiny_model, requests, monkeypatch)
    assert all(row % (4 if row <= 64 else 8 if row <= 128 else 16) == 0 for row in rows if row > 32)
    assert len({number for number in rows if number > 64}) > 8, "premise: many lengths"
    for request, alone in zip(requests, expected, strict=True):
        found = tiny_model.encode(request, convert_to="tensor")[-1].float()
        torch.testing.assert_close(found, torch.tensor(alone[0]).float(), rtol=0, atol=0.05)


@pytest.mark.parametrize("rows", [31, 33, 70, 1025])
def test_result_of_filled_rows_is_that_of_the_plain_layer(layer: nn.Linear, rows: int) -> None:
    states = torch.randn(rows, 37)
    for shape in ((rows, 37), (1, rows, 37)):
        found = packed_result(layer, states.view(shape))
        torch.testing.assert_close(found, layer(states.view(shape)).detach(), rtol=1e-5, atol=1e-6)


# ---- other versions of PyTorch ----


@pytest.mark.parametrize("name", ["_reorder_linear_weight", "_linear_pointwise"])
@pytest.mark.parametrize("broken", [AttributeError("no such operator"), RuntimeError("other arguments"), None])
def test_layers_stay_plain_where_torch_has_other_operators(tiny_model, name: str, broken, monkeypatch) -> None:
    expected = tiny_model.encode(SENTENCES)
    monkeypatch.setattr(prepacked_module, "_has_operators", functools.cache(_has_operators.__wrapped__))
    wrong = mock.Mock(side_effect=broken, return_value=torch.zeros(3, 16))
    with monkeypatch.context() as patch:
        patch.setattr(f"torch.ops.mkldnn.{name}", wrong)
        assert (abs(tiny_model.encode(SENTENCES) - expected) < 0.05).all()
        assert wrong.call_count == 1, "tried once"


# ---- forks ----


def run_warm(script: str, saved: str, folder: Path) -> str:
    """What a script printed that is given a saved model, in another process; a hang fails after 100 seconds."""
    (folder / "script.py").write_text(script, encoding="utf-8")
    environment, printed = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}, folder / "printed.txt"
    process = warm.start([str(folder / "script.py"), saved], environment, printed)
    assert warm.end([process], 100) and process.exitcode == 0, printed.read_text()[-3000:]
    return printed.read_text()


def run_fresh(script: str, saved: str) -> str:
    """The same in a process without a history, whose numbers of threads are its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", script, saved]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


FORK = """
import os, signal, sys, threading
import numpy as np
import torch
import torch.nn as nn
from multitask_sentence import MultiTaskModel, prepacked_multitask, tokenizer_multitask

model = MultiTaskModel.from_pretrained(sys.argv[1])
sentences = ["a cat", "the dog sees a cat and the dog " * 3, "dog"] * 20
expected = model.encode(sentences)

def child_encodes():
    "How a child ends that encodes: 0, or the signal of its alarm."
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        plain = {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
        same = np.abs(model.encode(sentences) - expected).max() < 1e-6
        os._exit(0 if same and plain else 1)
    return os.waitpid(child, 0)[1]
"""


@pytest.fixture
def saved(tiny_model: MultiTaskModel, tmp_path: Path) -> str:
    tiny_model.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_child_forked_while_another_thread_holds_the_locks_encodes(saved: str, tmp_path: Path) -> None:
    script = """
held, done = threading.Event(), threading.Event()

def hold():
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad(), prepacked_multitask.prepacked(layers):
        with prepacked_multitask._LOCK, tokenizer_multitask._LOCK:
            held.set()
            done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait()
tokenizer_multitask._OWN.clear()
print("child", child_encodes())
done.set()
thread.join()
assert np.array_equal(model.encode(sentences), expected)
"""
    assert "child 0\n" in run_warm(FORK + script, saved, tmp_path)


def test_children_forked_while_threads_encode_encode_too(saved: str, tmp_path: Path) -> None:
    script = """
stop = threading.Event()

def encode():
    while not stop.is_set():
        model.encode(sentences)

threads = [threading.Thread(target=encode) for _ in range(2)]
for thread in threads:
    thread.start()
print("children", [child_encodes() for _ in range(8)])
stop.set()
"""
    assert f"children {[0] * 8}\n" in run_warm(FORK + script, saved, tmp_path)


def test_child_forked_after_computing_with_several_threads_encodes(saved: str) -> None:
    script = """
torch.set_num_threads(2)
states = torch.ones(600, 600)
(states @ states).exp().sum()  # large enough that several threads are started
model.encode(sentences * 10)
print("child", child_encodes(), torch.get_num_threads())
"""
    assert run_fresh(FORK + script, saved) == "child 0 2\n"


def test_child_that_is_forked_inside_leaves_plain_layers_behind() -> None:
    layer = nn.Linear(4, 3)
    with torch.no_grad(), prepacked([layer]):
        prepacked_module._renew_in_child()  # as in a child that goes on here
        assert type(layer) is nn.Linear
    assert type(layer) is nn.Linear
    assert packed_result(layer, torch.ones(2, 4)).shape == (2, 3)
