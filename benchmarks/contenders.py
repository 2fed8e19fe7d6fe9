"""The contenders of benchmarks/serving.py as processes, and what they are asked with.

Contender, opened   a process (contender.py) that answers
pools, draw         sentences by kind of text, others in each turn
rate, about         cells and titles of the tables
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import contender
import measuring
import numpy as np

from multitask_sentence.export.gate import cpu_features

LONG = 5  # so many news are joined to a long text


class LeftOutError(Exception):
    """A contender that cannot be opened here; says why."""


class Contender:
    """A contender's process."""

    def __init__(self, name: str, options: argparse.Namespace):
        self.name, self.megabytes = name, 0.0
        python = options.optimum_python if name in contender.OPTIMUM else sys.executable
        command = [python, contender.__file__, name, str(options.folder), str(options.plain)]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, str(options.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(options),
        )

    def wait_until_open(self) -> None:
        self.seconds_to_open = self._reply()["seconds"][0]

    def ask(self, call: str, sentences: Sequence[str], **request: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"call": call, "sentences": sentences, **request}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def embeddings(self, sentences: Sequence[str], place: Path, **request: Any) -> np.ndarray:
        self.ask("encode", sentences, save=str(place), **request)
        return np.load(place)

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended with code {self.process.wait()}.")
        reply = json.loads(line)
        if "failure" in reply:
            raise LeftOutError(reply["failure"])
        self.megabytes = reply["megabytes"]
        return reply

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def environment(options: argparse.Namespace) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def opened(names: Sequence[str], options: argparse.Namespace) -> Iterator[dict[str, Contender]]:
    """The contenders that can be opened, by name."""
    started = {name: Contender(name, options) for name in names}
    contenders: dict[str, Contender] = {}
    try:
        for name, one in started.items():
            try:
                one.wait_until_open()
                contenders[name] = one
            except LeftOutError as error:
                measuring.say(f"Left out: {name}. {error}")
        yield contenders
    finally:
        for one in started.values():
            one.close()


def pools(options: argparse.Namespace) -> dict[str, list[str]]:
    """By name of a kind of text, what its sentences are drawn from."""
    found = measuring.read_sentences(options.data_root, 0)
    random = np.random.default_rng(1)
    if options.data_root is None:
        short = list(found["samples"])
        news = [" ".join(random.choice(short, 3)) for _ in range(200)]
    else:
        short, news = found["tweeteval_sentiment"], found["ag_news"]
    long = [" ".join(random.choice(news, LONG)) for _ in range(2_000 if not options.quick else 20)]
    mixed = [*random.choice(short, len(long)), *random.choice(news, len(long)), *long]
    names = ("tweets", "news") if options.data_root else ("short", "three sentences")
    return {names[0]: short, names[1]: news, "mixed": [str(text) for text in mixed], "long": long}


def draw(pool: Sequence[str], count: int, turn: int) -> list[str]:
    """Sentences that no other turn has, as far as the pool reaches."""
    order = np.random.default_rng(0).permutation(len(pool))
    return [pool[order[place % len(pool)]] for place in range(turn * count, (turn + 1) * count)]


def rate(seconds: dict[str, list[float]], name: str, baseline: str, count: int) -> str:
    """Sentences per second, and how many times the baseline's that is."""
    found = f"{count / median(seconds[name]):.0f}"
    return f"{found} ({measuring.ratio(seconds[baseline], seconds[name]):.2f} x)" if baseline in seconds else found


def about(options: argparse.Namespace) -> str:
    features = ", ".join(cpu_features()) or "no int8 instructions"
    return f"{measuring.machine(options.threads)}, {features}"
