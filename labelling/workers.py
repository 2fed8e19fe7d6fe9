"""Who answers the chunks: this process, several of them, or actors of a Ray cluster.

    InProcess   threads of this process, which share one model
    Processes   a process for each worker, which opens the model once
    RayActors   an actor for each worker, anywhere in the cluster

All have `submit(chunk)`, which gives a future. A worker that is lost raises one of `lost_errors` in the futures of its
chunks; after `replace_lost(future)` they can be given to another. With `loses_all`, the chunks of all others are lost
with it.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from typing import Any

import torch

from .inputs import Chunk

Answer = Callable[[Chunk], Any]
_answer: Answer | None = None  # of a process of Processes


def _start(open_worker: Callable[[], Answer]) -> None:
    global _answer
    _answer = open_worker()


def _run(chunk: Chunk) -> Any:
    return _answer(chunk)


class InProcess:
    """
    Answers in two threads of this process, each with half of torch's threads: where one waits for the disk or for the
    tokenizer, the other computes.

    Args:
        open_worker: called once; gives the function that answers a chunk, with `stop`, which ends its calls.
    """

    loses_all = False
    lost_errors: tuple[type[BaseException], ...] = ()

    def __init__(self, open_worker: Callable[[], Any]):
        self._answer, self._torch_threads = open_worker(), torch.get_num_threads()
        self.size = min(2, self._torch_threads)
        own = -(-self._torch_threads // self.size)
        self._pool = ThreadPoolExecutor(self.size, initializer=torch.set_num_threads, initargs=(own,))

    def submit(self, chunk: Chunk) -> Future:
        return self._pool.submit(self._answer, chunk)

    def replace_lost(self, future: Future) -> None:
        """Nothing can be lost without this process."""

    def close(self) -> None:
        self._answer.stop()
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)


class Processes:
    """
    Answers in processes of this machine.

    Args:
        open_worker: called once in each process; gives the function that answers a chunk. It is pickled.
        size: how many.
    """

    loses_all = True
    lost_errors: tuple[type[BaseException], ...] = (BrokenProcessPool,)

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

    def replace_lost(self, future: Future) -> None:
        """A pool that lost a process answers nothing more: take a new one."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._open()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def import_ray() -> Any:
    """Ray, or a ValueError that says how to install it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return import_module("ray")
    except ImportError:
        raise ValueError("--ray needs Ray. Install it: pip install -e '.[ray]'.") from None


class RayActors:
    """
    Answers in actors of a Ray cluster: the one that `RAY_ADDRESS` names or that runs here, else one of this machine.

    Args:
        open_worker: called once in each actor; gives the function that answers a chunk. It is pickled.
        size: how many actors of one processor each; 0 for as many as the cluster has.

    Raises:
        ValueError: Ray is not installed, or the cluster has fewer processors.
        ConnectionError: there is no cluster at the address.
    """

    loses_all = False

    def __init__(self, open_worker: Callable[[], Answer], size: int):
        self._ray = ray = import_ray()
        self._open_worker = open_worker
        self.lost_errors: tuple[type[BaseException], ...] = (ray.exceptions.RayActorError,)
        self._is_own = not ray.is_initialized()
        if self._is_own:
            ray.init(log_to_driver=False, logging_level="ERROR")
        processors = int(ray.cluster_resources().get("CPU", 0))
        self.size = size or processors
        if not 0 < self.size <= processors:
            self.close()
            raise ValueError(
                f"--processes is {self.size}, but the cluster has {processors} processors. Ask for fewer."
            )
        self._actors = [self._open() for _ in range(self.size)]
        self._given: dict[Future, Any] = {}  # by future the actor that has its chunk

    def _open(self) -> Any:
        return self._ray.remote(num_cpus=1)(_RayWorker).remote(self._open_worker)

    def submit(self, chunk: Chunk) -> Future:
        given = self._given.items()
        self._given = {future: actor for future, actor in given if not future.done() or future.exception()}
        busy = list(self._given.values())
        actor = min(self._actors, key=busy.count)
        future = actor.answer.remote(chunk).future()
        self._given[future] = actor
        return future

    def replace_lost(self, future: Future) -> None:
        """Another actor in place of the one that had this chunk; the chunks of the others go on."""
        lost = self._given.pop(future)
        if lost in self._actors:  # not yet told of by another of its chunks
            self._actors[self._actors.index(lost)] = self._open()

    def close(self) -> None:
        for actor in getattr(self, "_actors", ()):
            self._ray.kill(actor)
        if self._is_own:
            self._ray.shutdown()


class _RayWorker:
    """What an actor runs."""

    def __init__(self, open_worker: Callable[[], Answer]):
        self._answer = open_worker()

    def answer(self, chunk: Chunk) -> Any:
        return self._answer(chunk)


Workers = InProcess | Processes | RayActors

__all__ = ["InProcess", "Processes", "RayActors", "Workers", "import_ray"]
