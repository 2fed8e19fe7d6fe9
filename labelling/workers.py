"""Who answers the chunks: this process, several of them, or actors of a Ray cluster.

    InProcess   the model in this process
    Processes   a process for each worker, which opens the model once
    RayActors   an actor for each worker, anywhere in the cluster

All have `submit(chunk)`, which gives a future, and `replace_lost()`. A worker that is lost raises `WorkerLostError` in
the futures that it had, and its chunks can be given to another.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .inputs import Chunk

Answer = Callable[[Chunk], Any]
_answer: Answer | None = None  # of a process of Processes


def _start(open_worker: Callable[[], Answer]) -> None:
    global _answer
    _answer = open_worker()


def _run(chunk: Chunk) -> Any:
    return _answer(chunk)


class InProcess:
    """Answers in this process, at once."""

    size = 1
    lost_errors: tuple[type[BaseException], ...] = ()

    def __init__(self, open_worker: Callable[[], Answer]):
        self._answer = open_worker()

    def submit(self, chunk: Chunk) -> Future:
        future: Future = Future()
        try:
            future.set_result(self._answer(chunk))
        except Exception as error:
            future.set_exception(error)
        return future

    def replace_lost(self) -> None:
        """Nothing can be lost without this process."""

    def close(self) -> None:
        """Nothing to end."""


class Processes:
    """
    Answers in processes of this machine.

    Args:
        open_worker: called once in each process; gives the function that answers a chunk. It is pickled.
        size: how many.
    """

    lost_errors = (BrokenProcessPool,)

    def __init__(self, open_worker: Callable[[], Answer], size: int):
        self._open_worker, self.size = open_worker, size
        self._pool = self._open()

    def _open(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.size, context, initializer=_start, initargs=(self._open_worker,))

    def submit(self, chunk: Chunk) -> Future:
        try:
            return self._pool.submit(_run, chunk)
        except BrokenProcessPool as error:  # a process was lost since: said by the future, as of those before it
            future: Future = Future()
            future.set_exception(error)
            return future

    def replace_lost(self) -> None:
        """A pool that lost a process answers nothing more: take a new one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._open()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


__all__ = ["InProcess", "Processes"]
