"""The server's section of benchmarks/serving.py: callers that cost little themselves, and answers checked one by one.

    run_load   a request for each sentence, so many at a time, over connections that stay open
    server     rows per second, waits and processor time at 1, 8 and 32 callers, against `predict` in a process

Answers are read as bytes while the clock runs, and understood after it has stopped.
"""

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import measuring
import numpy as np
import psutil  # comes with accelerate
from contenders import Contender, LeftOutError, about, draw, environment, opened, pools

CALLERS = {1: 0.05, 8: 0.2, 32: 0.75}  # and their share of the requests
# By contender. In bfloat16 and int8 the last digits depend on the company that a sentence is in, and so may a label.
SERVERS = {"torch float32": "torch", "ONNX float32": "onnx", "OpenVINO float32": "openvino"}
LARGEST_SCORE_DIFFERENCE = 1e-4  # of a probability: a sentence is in other company there


@dataclass
class Load:
    """
    What callers got.

    Attributes:
        seconds: from the first request to the last answer.
        waits: of each request, in seconds.
        answers: to each sentence; `None` where there was none.
        callers_seconds: of processor time that the callers took.
        server_seconds: of processor time that the server took.
        wrong: how many are not what they should be.
    """

    seconds: float
    waits: list[float]
    answers: list[Any]
    callers_seconds: float
    server_seconds: float = 0.0
    wrong: int = 0


def run_load(host: str, port: int, sentences: list[str], callers: int) -> Load:
    """Ask the server for all tasks' answers to each sentence, so many at a time."""
    requests = []
    for sentence in sentences:
        body = json.dumps({"sentences": [sentence]}).encode()
        requests.append(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    waits, bodies = [0.0] * len(requests), [b""] * len(requests)

    async def call(places: Iterator[int]) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for place in places:
            started = time.perf_counter()
            writer.write(requests[place])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            waits[place] = time.perf_counter() - started
            bodies[place] = body if head.startswith(b"HTTP/1.1 200") else b""
        writer.close()

    async def call_all() -> None:
        places = iter(range(len(requests)))  # each caller takes the next when it is free
        await asyncio.gather(*(call(places) for _ in range(callers)))

    started, processor = time.perf_counter(), time.process_time()
    asyncio.run(call_all())
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    return Load(seconds, waits, [json.loads(body)["answers"][0] if body else None for body in bodies], processor)


@contextlib.contextmanager
def served(engine: str, options: argparse.Namespace) -> Iterator[tuple[str, int, Callable[[], float]]]:
    """Host and port of a running server, and the seconds of processor time that it has taken."""
    command = [sys.executable, "-m", "multitask_sentence", "serve", str(options.folder), "--port", "0"]
    command += ["--engine", engine]
    log = options.place / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, stdout=file, env=environment(options))
    try:
        while not (found := re.search(r"running on http://([\d.]+):(\d+)", log.read_text())):
            if process.poll() is not None:
                raise LeftOutError(log.read_text().strip().splitlines()[-1])
            time.sleep(0.1)
        running = psutil.Process(process.pid)
        yield found[1], int(found[2]), lambda: sum(running.cpu_times()[:2])
    finally:
        process.terminate()
        process.wait()


def server(options: argparse.Namespace) -> None:
    pool = next(iter(pools(options).values()))
    sentences = draw(pool, min(len(pool), 2_000), 0)
    rows = []
    for name in options.contenders:
        if name not in SERVERS:
            continue
        try:
            with opened([name], options) as contenders, served(SERVERS[name], options) as address:
                if name in contenders:
                    measure_server(name, contenders[name], address, sentences, rows, options)
        except LeftOutError as error:
            measuring.say(f"Left out: the server with {name}. {error}")
    header = ["server", "callers", "rows/s", "share of predict", "p50 ms", "p99 ms"]
    header += [f"processor ms a row, {who}" for who in ("server", "callers", "predict")]
    header += ["requests", "wrong or lost"]
    measuring.report(f"server, one sentence a request: {about(options)}", header, rows, options.json)


def measure_server(
    name: str,
    one: Contender,
    address: tuple[str, int, Callable[[], float]],
    sentences: list[str],
    rows: list[Sequence[Any]],
    options: argparse.Namespace,
) -> None:
    """`predict` in its process and the server with each number of callers, by turns; every answer is checked."""
    host, port, processor_seconds = address
    expected = one.ask("answers", sentences)["answers"]
    loads: dict[int, list[Load]] = {callers: [] for callers in CALLERS}
    predicting: list[float] = []  # seconds of processor time for a row
    turn = iter(range(10**6))

    def predict() -> float:
        part = draw(sentences, min(len(sentences), options.requests // 40 or 1), next(turn))
        reply = one.ask("predict", part)
        predicting.append(reply["processor_seconds"] / len(part))
        return reply["seconds"][0] / len(part)

    def ask(callers: int) -> float:
        count = max(callers, round(CALLERS[callers] * options.requests / (1 + options.rounds)))
        order = np.random.default_rng(next(turn)).integers(len(sentences), size=count).tolist()
        before = processor_seconds()
        load = run_load(host, port, [sentences[place] for place in order], callers)
        load.server_seconds = processor_seconds() - before
        answered = zip(order, load.answers, strict=True)
        load.wrong = sum(not is_same(answer, expected[place]) for place, answer in answered)
        loads[callers].append(load)
        return load.seconds / count

    contenders: dict[str, Callable[[], float]] = {"predict": predict}
    contenders |= {str(callers): partial(ask, callers) for callers in CALLERS}
    seconds = measuring.time_in_turns(contenders, options.rounds)
    for callers in CALLERS:
        of_predict = measuring.ratio(seconds["predict"], seconds[str(callers)])
        waits = [wait for load in loads[callers][1:] for wait in load.waits]
        p50, p99 = (f"{1e3 * np.percentile(waits, level):.1f}" for level in (50, 99))
        number, wrong = (sum(map(count, loads[callers])) for count in (lambda x: len(x.answers), lambda x: x.wrong))
        counted = loads[callers][1:]
        took = (
            median(load.server_seconds / len(load.answers) for load in counted),
            median(load.callers_seconds / len(load.answers) for load in counted),
            median(predicting[1:]),
        )
        found = [f"{1 / median(seconds[str(callers)]):.0f}", f"{of_predict:.2f}", p50, p99]
        found += [*(f"{1e3 * taken:.2f}" for taken in took), f"{number:,}", str(wrong)]
        measuring.add_row(rows, [name, str(callers), *found])
        if wrong:
            raise RuntimeError(
                f"server with {name}, {callers} callers: {wrong} of {number} answers are wrong or lost."
            )


def is_same(found: Any, expected: Any) -> bool:
    """Whether two answers have the same form and words, and nearly the same numbers."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict) and [*found] == [*expected] and all(is_same(found[k], expected[k]) for k in found)
        )
    if isinstance(expected, float):
        return isinstance(found, float) and abs(found - expected) <= LARGEST_SCORE_DIFFERENCE
    return found == expected
