"""Dynamic batching: requests that wait while the model computes are answered together by its next pass.

An idle model takes what is there at once, so one caller has the latency of a single pass. Callers that were just
answered often ask again, a moment later than those that waited meanwhile. Two halves would then be computed by turns,
which takes longer. So the next pass waits for as many requests as there were, but at most an eighth of the time that
the last one took. Answers do not depend on the company that a sentence is in, so joining requests changes nothing but
the speed.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = str | tuple[str, str]
Abstain = dict[str, float] | bool | None  # as `predict` takes it
# rows, names of tasks, whether embeddings are wanted, when to abstain -> for each row what the response says about it
Answer = Callable[[list[Row], list[str], bool, Abstain], list[dict[str, Any]]]


LONGEST_WAIT = 1 / 8  # of the last pass's time


class QueueFullError(Exception):
    """More rows are waiting than the server takes in."""


class ClosedError(Exception):
    """The server is going down and takes in nothing more."""


@dataclass
class _Request:
    rows: Sequence[Row]
    tasks: Sequence[str]
    embeddings: bool
    abstain: Abstain
    future: asyncio.Future
    loop: asyncio.AbstractEventLoop

    @property
    def kind(self) -> tuple[bool, Abstain]:
        """Whether it holds pairs, and when it abstains: one pass answers one kind."""
        return isinstance(self.rows[0], tuple), self.abstain

    def settle(self, found: list[dict[str, Any]] | Exception) -> None:
        """Hand the answers, or what went wrong, to whoever waits; nobody waits where the caller has gone."""
        if self.future.done():
            return
        if isinstance(found, Exception):
            self.future.set_exception(found)
        else:
            self.future.set_result(found)


def _settle_all(settled: Sequence[tuple[_Request, list[dict[str, Any]] | Exception]]) -> None:
    """Settle requests in the loop that they came from, which is woken once."""
    for loop in {request.loop for request, _ in settled}:
        own = [(request, found) for request, found in settled if request.loop is loop]
        loop.call_soon_threadsafe(lambda own=own: [request.settle(found) for request, found in own])


@dataclass
class Counts:
    """What happened so far, for `/metrics`."""

    passes: int = 0
    rows: int = 0
    refused: int = 0
    waiting_rows: int = 0


class Batcher:
    """
    A queue of requests and the one thread that answers them.

    Args:
        answer: computes the answers of some rows, all of one kind.
        max_waiting_rows: how many rows may wait; what comes on top of them is refused.
        max_batch_rows: how many rows of several requests are computed together. A request with more is computed alone.
    """

    def __init__(self, answer: Answer, max_waiting_rows: int, max_batch_rows: int):
        self.counts = Counts()
        self._answer, self._max_waiting_rows, self._max_batch_rows = answer, max_waiting_rows, max_batch_rows
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._expected, self._expected_until = 0, 0.0  # so many requests may come until then
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    async def submit(
        self, rows: Sequence[Row], tasks: Sequence[str], embeddings: bool, abstain: Abstain = None
    ) -> list[dict[str, Any]]:
        """
        The answers of one request's rows (not none), all strings or all pairs.

        Raises:
            QueueFullError: too many rows are waiting.
            ClosedError: `close` was called.
        """
        loop = asyncio.get_running_loop()
        request = _Request(rows, tasks, embeddings, abstain, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise ClosedError
            if self._waiting and self.counts.waiting_rows + len(rows) > self._max_waiting_rows:
                self.counts.refused += 1
                raise QueueFullError
            self._waiting.append(request)
            self.counts.waiting_rows += len(rows)
            self._changed.notify()
        return await request.future

    def close(self) -> None:
        """Take in nothing more, answer what is waiting, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _is_complete(self) -> bool:
        """Whether all requests that may come are there, or as many rows as one pass takes."""
        return len(self._waiting) >= self._expected or self.counts.waiting_rows >= self._max_batch_rows

    def _take(self) -> list[_Request]:
        """The next requests to compute together: those of one kind, in their order; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            left_to_wait = max(0.0, self._expected_until - time.monotonic())
            self._changed.wait_for(lambda: self._is_complete() or self._closing, left_to_wait)
            taken: list[_Request] = []
            left: deque[_Request] = deque()
            count = 0
            for request in self._waiting:
                fits = not taken or count + len(request.rows) <= self._max_batch_rows
                if request.future.cancelled():
                    self.counts.waiting_rows -= len(request.rows)
                elif fits and (not taken or request.kind == taken[0].kind):
                    taken.append(request)
                    count += len(request.rows)
                else:
                    left.append(request)
            self._waiting = left
            self.counts.waiting_rows -= count
            return taken

    def _work(self) -> None:
        while True:
            requests = self._take()
            if not requests:
                with self._changed:
                    if self._closing and not self._waiting:
                        return
                continue
            started = time.monotonic()
            try:
                self._compute(requests)
            except Exception:  # one request must not spoil the others: each is tried alone, and gets its own error
                for request in requests:
                    try:
                        self._compute([request])
                    except Exception as error:
                        _settle_all([(request, error)])
            with self._changed:
                ended = time.monotonic()
                self._expected = len(requests) + len(self._waiting)
                self._expected_until = ended + LONGEST_WAIT * (ended - started)

    def _compute(self, requests: Sequence[_Request]) -> None:
        rows = [row for request in requests for row in request.rows]
        tasks = list(dict.fromkeys(task for request in requests for task in request.tasks))
        embeddings = any(request.embeddings for request in requests)
        answers = self._answer(rows, tasks, embeddings, requests[0].abstain)
        self.counts.passes += 1
        self.counts.rows += len(rows)
        start, settled = 0, []
        for request in requests:
            own = answers[start : start + len(request.rows)]
            start += len(request.rows)
            wanted = {*request.tasks, *(["embedding"] if request.embeddings else [])}
            found = [{name: answer for name, answer in row.items() if name in wanted} for row in own]
            settled.append((request, found))
        _settle_all(settled)


__all__ = ["Abstain", "Batcher", "ClosedError", "Counts", "QueueFullError", "Row"]
