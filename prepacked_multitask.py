"""Linear layers whose weights stand in memory as a CPU's matrix products like to read them.

    prepacked       inside, plain linear layers of a module run on such copies of their weights

PyTorch's linear layer brings its weights into that order anew for every product, which for few tokens takes as long as
the product. oneDNN, which is a part of PyTorch, can keep them so. A copy is made when it is first needed, is as large
as the weights, and lives as long as the layer. A weight that changed gets a new one: its version counter tells, or, of
what is written through `weight.data`, a sample of its numbers. Results differ from those of the plain layers in the
last bits. Threads may compute with one model at once. `torch.backends.mkldnn.flags(enabled=False)` switches it off, as
all else of oneDNN.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
import torch.nn.functional as F

SAMPLED = 512  # at least so many numbers of a weight are compared to see a change that its version counter did not


class PackedWeight(NamedTuple):
    """A weight as oneDNN reads it, and what tells whether it is still the layer's."""

    packed: torch.Tensor
    identity: tuple
    sample: torch.Tensor
    step: int  # from one number of the sample to the next


_PACKED: WeakKeyDictionary[nn.Module, PackedWeight] = WeakKeyDictionary()
_USES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how many threads are inside `prepacked` with a layer
_LOCK = Lock()


def _identity(weight: torch.Tensor) -> tuple:
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.shape


def _sample_step(weight: torch.Tensor) -> int:
    """Below the columns, so that a sample takes a number from every row, and without a factor in common with them, so
    that it takes them from columns all over."""
    columns = weight.shape[1]
    step = max(min(weight.numel() // SAMPLED, columns - 1), 1)
    while math.gcd(step, columns) > 1:
        step += 1
    return step


def _is_current(kept: PackedWeight, weight: torch.Tensor) -> bool:
    if kept.identity != _identity(weight):
        return False
    # The version counter does not see what is written through `weight.data`.
    return torch.equal(kept.sample, weight.detach().as_strided(kept.sample.shape, (kept.step,)))


class PrepackedLinear(nn.Linear):
    """What a plain linear layer is inside of `prepacked`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():  # which would come to depend on what else is packed in this process
            return F.linear(states, self.weight, self.bias)
        kept = _PACKED.get(self)
        # Another thread, which is not inside, may compute with the same layer.
        is_plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if kept is None or is_plain or states.dtype is not self.weight.dtype:
            return F.linear(states, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(states, kept.packed, self.bias, "none", [], "")


def _can_pack(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, PrepackedLinear) or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight
    if weight.device.type != "cpu" or not weight.is_contiguous() or not weight.numel():
        return False
    return weight.dtype is torch.float32 or (
        weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _become(layer: nn.Module, kind: type[nn.Linear]) -> None:
    object.__setattr__(layer, "__class__", kind)  # past the search for parameters in a module's own __setattr__


def _pack(layer: nn.Linear) -> None:
    """Keep the layer's weight packed, unless that is done and the weight is still the same."""
    weight, kept = layer.weight, _PACKED.get(layer)
    if kept is None or not _is_current(kept, weight):
        step = _sample_step(weight)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _PACKED[layer] = PackedWeight(packed, _identity(weight), weight.detach().view(-1)[::step].clone(), step)


@contextlib.contextmanager
def prepacked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """
    Inside, the plain linear layers among `modules` read packed copies of their weights.

    Only without gradients, on a CPU, in float32 and bfloat16 (where the CPU has it), and outside of autocast; all else
    runs as ever. The layers are plain ones again afterwards, also after an error.
    """
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if not usable or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        yield
        return
    with _LOCK:
        layers = [module for module in modules if _can_pack(module)]
        for layer in layers:
            _pack(layer)
    entered = []
    try:
        with _LOCK:
            for layer in layers:
                _USES[layer] = _USES.get(layer, 0) + 1
                entered.append(layer)
                _become(layer, PrepackedLinear)
        yield
    finally:
        with _LOCK:
            for layer in entered:
                _USES[layer] -= 1
                if not _USES[layer]:
                    _become(layer, nn.Linear)
