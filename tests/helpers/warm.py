"""Scripts in processes that start warm: forked from a server that has imported already what takes seconds to import.

A script runs as with `python SCRIPT ARGUMENTS`, in an environment of its own. What libraries read from the environment
when they are imported (`HF_HOME`, ...) is that of the server.
"""

import gc
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
CONTEXT.set_forkserver_preload(["multitask_sentence.train", "multitask_sentence.training.comparison.compare"])


def _run(command: list[str], environment: dict[str, str], folder: str, printed: str) -> None:
    with open(printed, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    gc.freeze()  # no collection of garbage goes through what the server imported
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def start(
    command: list[str], environment: Mapping[str, str], printed: Path, folder: Path | None = None
) -> BaseProcess:
    """A process that runs a script with its arguments, in a folder (this one), and prints into a file."""
    process = CONTEXT.Process(target=_run, args=(command, dict(environment), str(folder or os.getcwd()), str(printed)))
    process.start()
    return process


def end(processes: list[BaseProcess], seconds: float) -> bool:
    """Wait for processes; whether they ended in time. Those that did not are killed."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    hang = [process for process in processes if process.exitcode is None]
    for process in hang:
        process.kill()
        process.join()
    return not hang
