"""Ends while a thread of gloo waits for the interpreter's lock, to give back the tensors of a collective.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/late_answer_run.py

It is run through `left_group.py`, and aborts without it.
"""

import sys
import time

import torch
import torch.distributed as dist


def main() -> None:
    dist.init_process_group("gloo")
    sys.setswitchinterval(1000)  # the main thread keeps the lock while it computes
    if dist.get_rank() == 1:
        time.sleep(1)  # so that the collective of process 0 ends after the next line
    dist.all_gather([torch.zeros(2), torch.zeros(2)], torch.ones(2), async_op=True)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        pass


if __name__ == "__main__":
    main()
