"""How cost grows: rows up to ten million, tasks up to 100, labels up to 10,000.

    python benchmarks/scale.py                                # a csv file of 1,000,000 rows, heads, labels
    python benchmarks/scale.py --parts rows --rows 1000000 --large_rows 10000000
    python benchmarks/scale.py --parts tasks labels --json docs/data/scale.json

    rows      a recipe of two tasks on generated rows: seconds and memory up to the first training step, in a first and
              a second run; for csv and parquet files of `--rows`, and a parquet file of `--large_rows`
    held_out  the search for training rows that another task is measured on
    tasks     an optimizer step on the same rows with 5 to 100 tasks
    labels    an optimizer step of a task with 2 to 10,000 labels

Memory is what a process holds for itself (`RssAnon`): pages of a memory-mapped file are the system's to drop. Beside
the seconds of the clock stand those of the processor, which a busy machine changes less.
"""

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import measuring
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import TrainerCallback

from multitask_sentence import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.held_out import announce_held_out

WORDS = np.array(
    ["the", "a", "cat", "dog", "sat", "ran", "on", "mat", "park", "it", "is", "good", "bad", "film", "news"]
)
MOODS, TOPICS = ["negative", "neutral", "positive"], [f"topic{number}" for number in range(10)]
PARTS = ("rows", "split", "held_out", "tasks", "labels")
ROWS_AT_ONCE = 100_000
BATCH_SIZE = 32
STEPS_BEFORE = 3  # of a training run, which are not timed
# Arguments of a run that trains and does nothing else.
STEPS_ALONE: dict[str, Any] = {
    **{"eval_strategy": "no", "save_strategy": "no", "report_to": "none"},
    **{"load_best_model_at_end": False, "keep_best_of_tasks": False, "disable_tqdm": True},
}


def write_rows(file: Path, count: int) -> Path:
    """Distinct texts of ten words and a number, each with a mood and a topic; csv or parquet, by the file's name."""
    draw, writer = np.random.default_rng(0), None
    for start in range(0, count, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, count - start)
        words = WORDS[draw.integers(0, len(WORDS), (size, 10))]
        table = pa.table(
            {
                "text": [f"{' '.join(row)} {number}." for number, row in enumerate(words, start)],
                "mood": np.array(MOODS)[draw.integers(0, len(MOODS), size)],
                "topic": np.array(TOPICS)[draw.integers(0, len(TOPICS), size)],
            }
        )
        if writer is None:
            open_writer = csv.CSVWriter if file.suffix == ".csv" else pq.ParquetWriter
            writer = open_writer(str(file), table.schema)
        writer.write_table(table)
    writer.close()
    return file


def write_recipe(folder: Path, backbone: str, kind: str, train: Path, validation: Path | float) -> Path:
    """A recipe of two tasks that read the same rows, with a file for validation or a share that is set aside."""
    is_share = isinstance(validation, float)
    files = f"{{train: {train}}}" if is_share else f"{{train: {train}, validation: {validation}}}"
    lines = [f"backbone: {backbone}", "max_length: 64", "tasks:"]
    for task in ("mood", "topic"):
        lines += [
            f"  {task}:",
            "    problem_type: single_label_classification",
            f"    dataset: {{path: {kind}, data_files: {files}}}",
            f"    columns: {{sentence: text, label: {task}}}",
            *([f"    validation_split: {validation}"] if is_share else []),
        ]
    (folder / "recipe.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "recipe.yaml"


@dataclass
class Run:
    """Seconds of the clock and of the processor, and the most memory in MiB, up to a process's first training step."""

    seconds: float
    cpu_seconds: float
    memory: int


def status(process: int, key: str) -> int:
    """A number of /proc/PID/status, in MiB."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) // 1024
    return 0


def start_watch(process: int) -> list[int]:
    """The most memory in MiB that a process was seen to hold for itself: one number, which grows until it ends."""
    peak = [0]

    def watch() -> None:
        with contextlib.suppress(OSError):
            while True:
                peak[0] = max(peak[0], status(process, "RssAnon"))
                time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    return peak


def run_to_first_step(recipe: Path, cache: Path, threads: int) -> Run:
    """Start a training run, and end it at its first step."""
    output = recipe.parent / "run"
    flags = ["--output_dir", str(output), "--overwrite", "--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "multitask_sentence.train", str(recipe), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    printed: list[str] = []
    try:
        peak = start_watch(process.pid)
        for line in process.stdout:
            printed.append(line)
            if line.startswith("{'loss'"):
                break
        else:
            raise RuntimeError(f"{recipe}: the run ended before its first step.\n{''.join(printed[-20:])}")
        seconds = time.perf_counter() - started
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
    finally:
        process.kill()
        process.communicate()
    return Run(seconds, ticks / os.sysconf("SC_CLK_TCK"), peak[0])


def measure_rows(
    folder: Path, backbone: str, files: Sequence[tuple[str, int]], threads: int, share: float | None = None
) -> list[Sequence[Any]]:
    """Two lines, a first run and a second, for files of these kinds and numbers of rows; with a share set aside."""
    table: list[Sequence[Any]] = []
    for kind, count in files:
        own = folder / f"{kind}-{count}"
        own.mkdir()
        train = write_rows(own / f"train.{kind}", count)
        validation = share or write_rows(own / f"validation.{kind}", min(1000, count))
        recipe = write_recipe(own, backbone, kind, train, validation)
        for which in ("first", "second"):
            run = run_to_first_step(recipe, own / "cache", threads)
            cells = [f"{count:,}", kind, which, f"{run.seconds:.1f}", f"{run.cpu_seconds:.1f}", str(run.memory)]
            measuring.add_row(table, cells)
        shutil.rmtree(own)
    return table


def measure_held_out(folder: Path, rows: int) -> list[Sequence[Any]]:
    """Seconds of the search for rows of one set among those of another, without and with hashes that are known."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    train, measured = write_rows(folder / "train.parquet", rows), write_rows(folder / "measured.parquet", rows // 100)
    sources = [
        TaskSource(
            task,
            "single_label_classification",
            {"path": "parquet", "data_files": {"train": str(own), "validation": str(measured)}},
            {"sentence": "text", "label": task},
        )
        for task, own in (("mood", train), ("topic", measured))
    ]
    loaded = load_tasks(sources, folder, 42)
    for hashes in (folder / "cache").rglob("*row_hash*.npy"):
        hashes.unlink()
    table: list[Sequence[Any]] = []
    for which in ("first", "second"):
        started, cpu = time.perf_counter(), time.process_time()
        announce_held_out(loaded)
        seconds = f"{time.perf_counter() - started:.2f}", f"{time.process_time() - cpu:.2f}"
        measuring.add_row(table, [f"{rows:,}", which, *seconds])
    return table


class StepTimes(TrainerCallback):
    """Seconds of the clock and of the processor of every optimizer step, from one end to the next."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.perf_counter(), time.process_time()))

    def medians(self) -> tuple[float, float]:
        found = np.diff(np.array(self.ends[STEPS_BEFORE:]), axis=0)
        return tuple(statistics.median(column) for column in found.T.tolist())


def train_steps(
    folder: Path, backbone: str, labels: dict[str, list[str]], rows: Dataset, steps: int
) -> tuple[float, float]:
    """Median seconds of a step, of the clock and of the processor, for tasks with these labels."""
    torch.manual_seed(0)
    kind = "single_label_classification"
    tasks = {task: {"problem_type": kind, "labels": names} for task, names in labels.items()}
    args = MultiTaskTrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=steps,
        use_cpu=True,
        **STEPS_ALONE,
        logging_steps=10,
    )
    times = StepTimes()
    trainer = MultiTaskTrainer(
        MultiTaskModel.from_backbone(backbone, tasks=tasks),
        args,
        train_dataset=dict.fromkeys(tasks, rows),
        columns={task: {"sentence": "sentence", "label": task} for task in tasks},
        callbacks=[times],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return times.medians()


def labelled_texts(labels: dict[str, list[str]], count: int, every_row: bool) -> Dataset:
    """The same texts for any tasks: every row labelled for all of them, or each for one in turn."""
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {"sentence": [" ".join(row) for row in WORDS[draw.integers(0, len(WORDS), (count, 16))]]}
    for number, (task, names) in enumerate(labels.items()):
        is_empty = np.zeros(count, bool) if every_row else np.arange(count) % len(labels) != number
        columns[task] = pa.array(draw.integers(0, len(names), count), mask=is_empty)
    return Dataset(pa.table(columns))


def _in_turns(
    folder: Path, backbone: str, contenders: dict[Any, dict[str, list[str]]], every_row: bool, steps: int, rounds: int
) -> dict[Any, list[str]]:
    """By contender, milliseconds of a step and how many times those of the first one, by clock and by processor."""
    found: dict[Any, list[tuple[float, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            labels = contenders[name]
            rows = labelled_texts(labels, BATCH_SIZE * (steps + 1), every_row)
            found[name].append(train_steps(folder, backbone, labels, rows, steps))
    base, cells = found[names[0]], {}
    for name, taken in found.items():
        clock, cpu = (f"{1000 * statistics.median(side):.0f}" for side in zip(*taken, strict=True))
        ratios = [measuring.ratio([own[side] for own in taken], [own[side] for own in base]) for side in (0, 1)]
        cells[name] = [clock, cpu, *(f"{ratio:.2f} x" for ratio in ratios)]
    return cells


def measure_tasks(folder: Path, backbone: str, numbers: Sequence[int], steps: int, rounds: int) -> list[Sequence[Any]]:
    """A step with each number of tasks against one with the first number."""
    table: list[Sequence[Any]] = []
    for every_row, what in ((False, "one label a row"), (True, "all labels on every row")):
        contenders = {number: {f"task{place}": ["no", "yes"] for place in range(number)} for number in numbers}
        for number, cells in _in_turns(folder, backbone, contenders, every_row, steps, rounds).items():
            measuring.add_row(table, [what, str(number), *cells])
    return table


def measure_labels(
    folder: Path, backbone: str, numbers: Sequence[int], steps: int, rounds: int
) -> list[Sequence[Any]]:
    """A step of one task with each number of labels against one with the first number."""
    contenders = {number: {"topic": [f"label{place}" for place in range(number)]} for number in numbers}
    table: list[Sequence[Any]] = []
    for number, cells in _in_turns(folder, backbone, contenders, True, steps, rounds).items():
        measuring.add_row(table, [f"{number:,}", *cells])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["data_root", "dtypes", "sentences", "plot"], rounds=3)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--large_rows", type=int, default=10_000_000, help="0: only files of --rows")
    parser.add_argument("--kinds", nargs="+", default=["csv", "parquet"], choices=["csv", "parquet"], help="of --rows")
    parser.add_argument("--tasks", nargs="+", type=int, default=[5, 25, 100])
    parser.add_argument("--labels", nargs="+", type=int, default=[2, 100, 1_000, 10_000])
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a training run that is timed")
    parser.add_argument("--folder", type=Path, help="where generated files go; 10,000,000 rows need 6 GB")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    measuring.say(f"{measuring.machine(options.threads)}, {options.backbone}")
    step = ["ms", "ms of the processor", "times the first", "of the processor"]
    with tempfile.TemporaryDirectory(dir=options.folder) as own:
        folder = Path(own)
        if "rows" in options.parts:
            files = [(kind, options.rows) for kind in options.kinds]
            files += [("parquet", options.large_rows)] if options.large_rows else []
            found = measure_rows(folder, options.backbone, files, options.threads)
            header = ["rows", "file", "run", "s to the first step", "s of the processor", "MiB"]
            measuring.report("Rows of two tasks, up to the first training step", header, found, options.json)
        if "split" in options.parts:
            found = measure_rows(folder, options.backbone, [("csv", options.rows)], options.threads, share=0.01)
            header = ["rows", "file", "run", "s to the first step", "s of the processor", "MiB"]
            title = "Rows of two tasks, 1 % set aside, up to the first training step"
            measuring.report(title, header, found, options.json)
        if "held_out" in options.parts:
            header = ["training rows", "run", "s", "s of the processor"]
            found = measure_held_out(folder, options.rows)
            measuring.report("Search for held-out rows among training rows", header, found, options.json)
        if "tasks" in options.parts:
            found = measure_tasks(folder, options.backbone, options.tasks, options.steps, options.rounds)
            measuring.report("A step of 32 rows, by tasks", ["rows", "tasks", *step], found, options.json)
        if "labels" in options.parts:
            found = measure_labels(folder, options.backbone, options.labels, options.steps, options.rounds)
            measuring.report("A step of 32 rows, by labels", ["labels", *step], found, options.json)


if __name__ == "__main__":
    main()
