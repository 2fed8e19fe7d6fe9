"""Whether the machine that a run starts on has cores to spare, and the processes that were asked for."""

import os

import torch
from accelerate import PartialState
from transformers.utils import logging

from .console import say

logger = logging.get_logger(__name__)


def describe_busy_machine(load: float, cores: int, threads: int) -> str | None:
    """
    A line for a machine that has more to do than it has cores; `None` where a run has nothing to lose.

    Threads of one process wait for each other at every operation. When another process has a core, all of them wait
    for the one that has none: steps of 0.7 s were seen to take 28 s.

    Args:
        load: processes that run or want to, averaged over the last minute.
        cores: how many can run at once.
        threads: of this process.
    """
    if load <= cores or threads == 1:
        return None
    return (
        f"This machine is busy: its load is {load:.1f} on {cores} core{'s' * (cores > 1)}, and this process has "
        f"{threads} threads, which then wait for each other. `OMP_NUM_THREADS=1` in front of the command is often "
        "much faster."
    )


def look_at_machine(device: torch.device) -> str | None:
    """`describe_busy_machine` of this one, if it tells its load and computes on its CPU."""
    if device.type != "cpu" or not hasattr(os, "getloadavg"):
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return describe_busy_machine(os.getloadavg()[0], cores, torch.get_num_threads())


def look_at_processes(device: torch.device) -> None:
    """Tell of a machine that is busy, and of processes that were asked for and are not there."""
    # accelerate sets an address for its processes to meet at, and then starts one, unless it may use MPI.
    is_alone = PartialState().num_processes == 1
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and is_alone:
        logger.warning(
            "accelerate launch --cpu started a single process, whatever its --num_processes. For several on a CPU, "
            "start them with torchrun --nproc_per_node 2 train.py RECIPE."
        )
    if (busy := look_at_machine(device)) is not None:
        say(busy)
