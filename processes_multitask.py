"""A model in other processes: forked ones, and those that get it pickled.

use_one_thread_in_forked_children   what OpenMP needs where a process forks after it has computed
make_importable                     lets dill, and with it `datasets.map`, name a class of a repository's own code
"""

import importlib
import os
import sys
from functools import cache

import torch


@cache
def use_one_thread_in_forked_children() -> None:
    """
    Processes that are forked from now on compute with one thread, as those of PyTorch's `DataLoader` do.

    GNU OpenMP, which PyTorch computes with, keeps threads that a forked child does not have and yet waits for. The
    child may choose another number by `torch.set_num_threads` before it computes, at that risk.
    """

    def use_one_thread() -> None:
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=use_one_thread)


def make_importable(kind: type) -> None:
    """
    Let an import statement find the module of a class.

    transformers reads a repository's modules by their path and does not tell their folder of them. pickle finds them
    all the same. dill does not, and writes the whole class with all that it refers to, which has no end.
    """
    folder, _, name = kind.__module__.rpartition(".")
    if folder and not hasattr(importlib.import_module(folder), name):
        setattr(sys.modules[folder], name, sys.modules[kind.__module__])


__all__ = ["make_importable", "use_one_thread_in_forked_children"]
