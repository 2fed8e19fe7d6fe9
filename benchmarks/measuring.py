"""What the benchmarks share: timing in turns, the machine's own peak, sentences to measure on, tables and plots.

    options             the flags that every benchmark has
    time_in_turns       seconds of each contender, round by round
    matrix_peak         the best rate of matrix products that this machine was seen to reach
    pass_flops          what a backbone pass of given sentences has to compute
    report              a table on the screen, and beside it a plot

Contenders take turns in one process, so that whatever else the machine does falls on all of them alike. Times are
medians over rounds; a ratio is the median over rounds of that round's ratio.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
from tabulate import tabulate

from multitask_sentence import MultiTaskModel

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Shapes of the matrix products that the peak is looked for in: (rows, inner size, columns).
PEAK_SHAPES = ((2048, 384, 1536), (2048, 1536, 384), (1024, 1024, 1024))
PEAK_SHAPES_ON_GPU = ((16384, 1024, 4096), (4096, 4096, 4096), (8192, 8192, 8192))
LARGEST_DIFFERENCE = 1e-5  # of float32 embeddings and answers between contenders
SMALLEST_COSINE = 0.9998  # of a bfloat16 embedding to the float32 one


FLAGS: dict[str, dict[str, Any]] = {
    "backbone": {"default": "sentence-transformers/all-MiniLM-L6-v2", "help": "Hub id or folder"},
    "data_root": {"type": Path, "help": "folder of data sets as parquet files (default: data/samples)"},
    "dtypes": {"nargs": "+", "default": list(DTYPES), "choices": DTYPES},
    "rounds": {"type": int, "default": 5, "help": "turns that count, after one that does not"},
    "threads": {"type": int, "default": os.cpu_count(), "help": "threads of torch"},
    "sentences": {"type": int, "default": 500, "help": "how many are drawn; 0 takes all"},
    "plot": {"type": Path, "help": "also draw the table as this PNG file"},
    "json": {"type": Path, "help": "also write the tables into this file, beside those that it holds"},
}


def options(description: str, without: Sequence[str] = (), **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the flags that benchmarks share, but those it does not read; `defaults` sets others for some."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, settings in FLAGS.items():
        if name not in without:
            parser.add_argument(f"--{name}", **settings)
    parser.set_defaults(**defaults)
    return parser


def add_batch_sizes(parser: argparse.ArgumentParser) -> None:
    """The batch sizes that a contender without a token budget chooses from."""
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[8, 16, 32, 64], help="others choose from these")


def machine(threads: int, device: str = "cpu") -> str:
    """One line that says what was measured on."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {threads} threads, torch {torch.__version__}"


# ---- what is measured on ----


def read_sentences(
    data_root: Path | None, count: int, splits: Sequence[str] = ("tweeteval_sentiment", "ag_news")
) -> dict[str, list[str]]:
    """By data set, `count` sentences (0: all) drawn with a fixed seed from its test split, or from our samples."""
    if data_root is None:
        found = {
            "samples": pd.concat([pd.read_csv(path) for path in sorted(SAMPLES.glob("sentences_*.csv"))])["sentence"]
        }
    else:
        found = {name: pd.read_parquet(data_root / name / "test.parquet")["text"] for name in splits}
    drawn = {}
    for name, column in found.items():
        sentences = column.tolist()
        if count and count < len(sentences):
            chosen = np.random.default_rng(0).permutation(len(sentences))[:count]
            sentences = [sentences[index] for index in chosen]
        drawn[name] = sentences
    return drawn


def token_lengths(model: MultiTaskModel, sentences: Sequence[str]) -> list[int]:
    """Tokens of each sentence, truncated as the model does."""
    return [len(ids) for ids in model._tokenize(list(sentences))]


# ---- timing ----


def time_in_turns(contenders: dict[str, Callable[[], Any]], rounds: int, warmups: int = 1) -> dict[str, list[float]]:
    """
    Seconds of each contender in each round, after `warmups` rounds that do not count.

    Who goes first changes from round to round. A contender that returns a float has taken its time itself.
    """
    names, seconds = list(contenders), {name: [] for name in contenders}
    for turn in range(warmups + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            own = contenders[name]()
            taken = own if isinstance(own, float) else time.perf_counter() - started
            if turn >= warmups:
                seconds[name].append(taken)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times longer the first took: the median over rounds."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def best_batch_size(run: Callable[[int], Any], sizes: Sequence[int], rounds: int = 1) -> int:
    """The batch size under which `run(batch_size)` was fastest, after one run of each that does not count."""
    if len(sizes) == 1:
        return sizes[0]
    seconds = time_in_turns({str(size): partial(run, size) for size in sizes}, rounds)
    return min(sizes, key=lambda size: min(seconds[str(size)]))


def matrix_peak(dtype: torch.dtype, rounds: int = 10, device: str = "cpu") -> float:
    """The highest rate of a matrix product, floating point operations per second, over shapes for the device."""
    best = 0.0
    on_gpu = device != "cpu"
    for rows, inner, columns in PEAK_SHAPES_ON_GPU if on_gpu else PEAK_SHAPES:
        left, right = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
        out = torch.empty(rows, columns, dtype=dtype, device=device)
        for _ in range(rounds):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            if on_gpu:
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - started))
    return best


def pass_flops(backbone: nn.Module, lengths: Sequence[int]) -> float:
    """
    Floating point operations of one pass over sentences, padding not counted.

    Two for each weight of a linear layer and token, and in each layer `4 * length^2 * hidden` for the two products of
    attention.
    """
    weights = sum(module.weight.numel() for module in backbone.modules() if isinstance(module, nn.Linear))
    config = backbone.config
    attention = 4 * config.num_hidden_layers * config.hidden_size * sum(length**2 for length in lengths)
    return 2 * weights * sum(lengths) + attention


# ---- correctness ----


def check_close(name: str, found: np.ndarray, expected: np.ndarray, largest: float = LARGEST_DIFFERENCE) -> float:
    """The largest absolute difference; a RuntimeError where it is above `largest`: wrong numbers are not timed."""
    difference = float(np.abs(np.asarray(found, dtype=np.float64) - expected).max())
    if not difference <= largest:
        raise RuntimeError(f"{name}: the contenders' numbers differ by {difference:.1e}, above {largest:.0e}.")
    return difference


def check_cosine(name: str, found: np.ndarray, expected: np.ndarray, smallest: float = SMALLEST_COSINE) -> float:
    """The smallest cosine of a row of one with the same row of the other; a RuntimeError where it is too small."""
    found, expected = (np.asarray(side, dtype=np.float64) for side in (found, expected))
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(axis=1) / norms).min())
    if not cosine >= smallest:
        raise RuntimeError(f"{name}: the smallest cosine is {cosine:.5f}, below {smallest}.")
    return cosine


# ---- results ----


def say(text: str = "") -> None:
    print(text, flush=True)  # noqa: T201 - what a benchmark is for


def add_row(rows: list[Sequence[Any]], row: Sequence[Any]) -> None:
    """Add a row to a table to come, and show it on stderr as soon as it is there."""
    rows.append(row)
    print("  ".join(str(cell) for cell in row), file=sys.stderr, flush=True)  # noqa: T201


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], file: Path | None = None) -> None:
    """A titled table on the screen, and by its title in a JSON file."""
    say(f"\n{title}\n")
    say(tabulate(rows, header, disable_numparse=True, stralign="left"))
    if file is not None:
        tables = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        tables[title] = [dict(zip(header, map(str, row), strict=True)) for row in rows]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


def plot_bars(path: Path | None, title: str, unit: str, groups: dict[str, dict[str, float]]) -> None:
    """Groups of bars, `{group: {contender: value}}`, as a PNG file; nothing without a path."""
    if path is None:
        return
    figure, axes = _figure(path)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(groups))]
        bars = axes.bar(places, [group.get(name, 0.0) for group in groups.values()], width, label=name)
        axes.bar_label(bars, fmt="{:.3g}", fontsize=8)
    axes.set_xticks(range(len(groups)), list(groups))
    _finish(figure, axes, path, title, unit)


def plot_lines(path: Path | None, title: str, x: str, y: str, lines: dict[str, dict[float, float]]) -> None:
    """Lines `{name: {x: y}}` over a logarithmic x axis as a PNG file; nothing without a path."""
    if path is None:
        return
    figure, axes = _figure(path)
    for name, points in lines.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({place for points in lines.values() for place in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    _finish(figure, axes, path, title, y)


def _figure(path: Path) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    return plt.subplots(figsize=(7, 4), dpi=150)


def _finish(figure: Any, axes: Any, path: Path, title: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(y)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
