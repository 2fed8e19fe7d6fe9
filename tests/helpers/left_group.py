"""Runs a script in a process of torch.distributed, and leaves the group before Python ends.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/left_group.py SCRIPT ARGUMENTS

A thread of gloo gives back the tensors of its last collective, and waits for the interpreter's lock to do so. If
Python ends meanwhile, it ends the waiting thread too, inside a destructor. C++ does not allow that and aborts the
process: "terminate called without an active exception". `destroy_process_group` waits for the thread instead.
"""

import runpy
import sys

import torch.distributed as dist

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    if dist.is_initialized():
        dist.destroy_process_group()
