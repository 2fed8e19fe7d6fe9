"""Dropout that draws its random numbers fast on a CPU.

    dropout         as `torch.nn.functional.dropout`
    FastDropout     as `torch.nn.Dropout`
    use_fast        puts `FastDropout` in place of every `torch.nn.Dropout` of a backbone

PyTorch draws one number of its generator, and a float from it, for each element; in a training step of a small encoder
that is a tenth of the time. Here one number of 64 bits decides about four elements.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

LEVELS = 2**16  # 16 bits decide about an element


def dropout(states: torch.Tensor, probability: float) -> torch.Tensor:
    """
    Set elements to 0 with a probability, scale the others so that the expected value stays.

    On a CPU the probability is rounded to a multiple of 1/65536; the numbers come from torch's own generator. On other
    devices, where everything or nothing is dropped, and in compiled graphs, this is `torch.nn.functional.dropout`.
    """
    dropped = round(probability * LEVELS)  # of 65536 levels
    if states.device.type != "cpu" or not 0 < dropped < LEVELS or torch.compiler.is_compiling():
        return F.dropout(states, probability)
    count = states.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    levels = drawn.view(torch.int16)[:count].view(states.shape)  # -32768..32767, each as likely as the others
    noise = (levels >= dropped - LEVELS // 2).to(states.dtype).mul_(LEVELS / (LEVELS - dropped))
    return states * noise


class FastDropout(nn.Dropout):
    """`torch.nn.Dropout` by way of `dropout`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return dropout(states, self.p) if self.training and not self.inplace else super().forward(states)


def use_fast(module: nn.Module) -> None:
    """
    Put `FastDropout` in place of every plain `torch.nn.Dropout` inside a module, in the same mode.

    An adapter's own, which peft keeps in dictionaries, stay as they are.
    """
    for parent in module.modules():
        if isinstance(parent, nn.ModuleDict):
            continue
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, FastDropout(child.p, child.inplace).train(child.training))
