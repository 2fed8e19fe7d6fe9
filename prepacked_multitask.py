"""Linear layers whose weights stand in memory as a CPU's matrix products like to read them.

    prepacked       inside, plain linear layers of a module run on such copies of their weights
    computed_rows   to how many rows a product is filled up

PyTorch's linear layer brings its weights into that order anew for every product, which for few tokens takes as long as
the product. oneDNN, which is a part of PyTorch, can keep them so. A copy is made when it is first needed, is as large
as the weights, and lives as long as the layer. A weight that changed gets a new one: its version counter tells, or, of
what is written through `weight.data`, a sample of its numbers. Results differ from those of the plain layers in the
last bits. Threads may compute with one model at once, and processes may be forked meanwhile.
`torch.backends.mkldnn.flags(enabled=False)` switches it off, as all else of oneDNN.

oneDNN compiles code for every number of rows that it meets, and keeps it: about half a megabyte for each shape of
weights. A server would come to hold all of them, so numbers of rows are rounded up to one of few (`computed_rows`).
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from functools import cache
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers.utils import logging

logger = logging.get_logger(__name__)

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


def _renew_in_child() -> None:
    """A forked child has only the thread that forked: what others held or counted is nobody's there."""
    global _LOCK
    _LOCK = Lock()
    for layer in list(_USES):
        if type(layer) is PrepackedLinear:
            _become(layer, nn.Linear)
    _USES.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_in_child)


@cache
def _has_operators() -> bool:
    """Whether this PyTorch has the operators, which are private and may be renamed, and they do what they should."""
    weight = torch.arange(512, dtype=torch.float32, device="cpu").view(16, 32) / 512
    states = torch.ones(3, 32, dtype=torch.float32, device="cpu")
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(states, packed, None, "none", [], "")
        if torch.allclose(found, F.linear(states, weight), rtol=1e-4):
            return True
        reason = "they give other numbers"
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.info(
        f"Linear layers run as they are: torch {torch.__version__} has no operators to pack weights ({reason})."
    )
    return False


@cache
def _has_bfloat16() -> bool:
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


def computed_rows(rows: int) -> int:
    """
    To how many rows a product is filled up: up to 32 as they are, above one of eight numbers per doubling, above
    1,024 one of sixteen. At most an eighth of the rows are added. A full batch of `encode` holds 1,792 to 2,048
    tokens; there it is the next multiple of 16, which adds less than 1 %.
    """
    if rows <= 32:
        return rows
    if 1792 < rows <= 2048:
        return -(-rows // 16) * 16
    step = 2 ** ((rows - 1).bit_length() - (4 if rows <= 1024 else 5))
    return -(-rows // step) * step


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
        rows = math.prod(states.shape[:-1])
        missing = computed_rows(rows) - rows
        if missing:
            filled = F.pad(states.reshape(rows, -1), (0, 0, 0, missing))
            computed = torch.ops.mkldnn._linear_pointwise(filled, kept.packed, self.bias, "none", [], "")
            return computed[:rows].view(*states.shape[:-1], -1)
        return torch.ops.mkldnn._linear_pointwise(states, kept.packed, self.bias, "none", [], "")


def _can_pack(layer: nn.Module) -> bool:
    if type(layer) not in (nn.Linear, PrepackedLinear) or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight
    if weight.device.type != "cpu" or not weight.is_contiguous() or not weight.numel():
        return False
    return weight.dtype is torch.float32 or (weight.dtype is torch.bfloat16 and _has_bfloat16())


def _become(layer: nn.Module, kind: type[nn.Linear]) -> None:
    object.__setattr__(layer, "__class__", kind)  # past the search for parameters in a module's own __setattr__


def _pack(layer: nn.Linear) -> None:
    """Keep the layer's weight packed, unless that is done and the weight is still the same."""
    weight, kept = layer.weight, _PACKED.get(layer)
    if kept is None or not _is_current(kept, weight):
        step = _sample_step(weight)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _PACKED[layer] = PackedWeight(packed, _identity(weight), weight.detach().view(-1)[::step].clone(), step)


def can_prepack() -> bool:
    """Whether `prepacked` packs anything here and now."""
    usable = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return usable and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and _has_operators()


@contextlib.contextmanager
def prepacked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """
    Inside, the plain linear layers among `modules` read packed copies of their weights.

    Only without gradients, on a CPU, in float32 and bfloat16 (where the CPU has it), and outside of autocast; all else
    runs as ever. The layers are plain ones again afterwards, also after an error.
    """
    if not can_prepack():
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
                left = _USES.pop(layer, 1) - 1  # not there where the process was forked meanwhile
                if left:
                    _USES[layer] = left
                else:
                    _become(layer, nn.Linear)
