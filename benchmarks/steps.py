"""Training steps in processes of their own: on 1, 2 and 4 processes, and compiled.

    python benchmarks/steps.py                                # both, in float32
    python benchmarks/steps.py --parts processes --processes 1 2 4 --json docs/data/scale.json
    python benchmarks/steps.py --parts compile --dtypes float32 bfloat16 --json docs/data/scale.json

    processes   the same 32 rows a step, in float32, dealt to any number of processes (torchrun, gloo or NCCL, one
                thread each): steps a second, memory of a process, and what the gradients' way between the processes
                costs: a step against one that leaves it out, in turns within a run
    compile     `torch_compile: true` with inductor against training as it is: seconds to the end of the first step,
                without and with a cache of compiled code, and milliseconds of a step

Sentences have 4 to 28 words. Runs take turns. Memory is what a process holds for itself (`RssAnon`), the most of all.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import torch
from datasets import Dataset
from scale import BATCH_SIZE, MOODS, STEPS_ALONE, STEPS_BEFORE, TOPICS, WORDS, start_watch
from transformers import TrainerCallback

from multitask_sentence import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments

PARTS = ("processes", "compile")
TASKS = {
    task: {"problem_type": "single_label_classification", "labels": labels}
    for task, labels in (("mood", MOODS), ("topic", TOPICS))
}


# ---- one process of a run ----


class StepTimes(TrainerCallback):
    """Seconds of the clock and of the processor of each step; every second one keeps its gradients to itself."""

    trainer: MultiTaskTrainer

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.model_wrapped.require_backward_grad_sync = state.global_step % 2 == 0  # as DDP's own no_sync does
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1]))
        if len(self.times) == 1:
            self.first = time.perf_counter() - self.began

    def medians(self, first: int) -> list[float]:
        """Of every second step from this one on."""
        return [statistics.median(column) for column in zip(*self.times[first::2], strict=True)]


def make_rows(count: int) -> Dataset:
    """Texts of 4 to 28 words, each with a mood and a topic."""
    draw = np.random.default_rng(0)
    texts = [" ".join(WORDS[draw.integers(0, len(WORDS), size)]) for size in draw.integers(4, 29, count)]
    return Dataset.from_dict(
        {
            "sentence": texts,
            **{task: draw.integers(0, len(own["labels"]), count).tolist() for task, own in TASKS.items()},
        }
    )


def train(backbone: str, steps: int, dtype: str, is_compiled: bool, result: str) -> None:
    """Train for some steps, in each process; the first one writes what was measured."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH_SIZE // processes,
            max_steps=steps,
            bf16=dtype == "bfloat16",
            torch_compile=is_compiled,
            use_cpu=not torch.cuda.is_available(),
            **STEPS_ALONE,
            logging_strategy="no",
        )
        times, rows = StepTimes(), make_rows(BATCH_SIZE * (steps + 1))
        times.trainer = trainer = MultiTaskTrainer(
            MultiTaskModel.from_backbone(backbone, tasks=TASKS),
            args,
            train_dataset=dict.fromkeys(TASKS, rows),
            columns={task: {"sentence": "sentence", "label": task} for task in TASKS},
            callbacks=[times],
        )
        peak = start_watch(os.getpid())
        trainer.train()
    first = STEPS_BEFORE + 1  # an even number, of a step that sends its gradients
    found = {
        "first": times.first,
        "step": times.medians(first),
        "without": times.medians(first + 1),
        "memory": int(trainer.accelerator.gather(torch.tensor([peak[0]], device=args.device)).max()),
        "bytes": sum(own.numel() * own.element_size() for own in trainer.model.parameters() if own.requires_grad),
    }
    if trainer.is_world_process_zero():
        Path(result).write_text(json.dumps(found), encoding="utf-8")
    trainer.accelerator.end_training()


def run(folder: Path, processes: int, threads: int, cache: Path, **settings: Any) -> dict[str, Any]:
    """What `train` measured, in this many processes with a folder for compiled code."""
    result = folder / "result.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    finished = subprocess.run(
        [*launcher, __file__, "--worker", json.dumps({**settings, "result": str(result)})],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
    )
    if finished.returncode:
        raise RuntimeError(f"A run with {settings} on {processes} processes ended.\n{finished.stderr[-3000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


# ---- what is measured of runs ----


def measure_processes(
    folder: Path, backbone: str, numbers: Sequence[int], steps: int, rounds: int
) -> list[Sequence[Any]]:
    """A line for each number of processes: medians over rounds."""
    settings = {"backbone": backbone, "steps": steps, "dtype": "float32", "is_compiled": False}
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
    for _ in range(rounds):
        for number in numbers:
            found[number].append(run(folder, number, 1, folder / "cache", **settings))
    table: list[Sequence[Any]] = []
    for number, runs in found.items():
        step, without = (statistics.median(own[key][0] for own in runs) for key in ("step", "without"))
        rates = f"{1 / step:.2f}", f"{BATCH_SIZE / step:.1f}"
        alone = number == 1
        costs = ("0", "0 %") if alone else (f"{runs[0]['bytes'] / 2**20:.1f}", f"{max(1 - without / step, 0):.0%}")
        memory = max(own["memory"] for own in runs)
        measuring.add_row(table, [str(number), str(BATCH_SIZE // number), *rates, str(memory), *costs])
    return table


def measure_compile(
    folder: Path, backbone: str, dtypes: Sequence[str], steps: int, rounds: int, threads: int
) -> list[Sequence[Any]]:
    """Two lines for each type, as it is and compiled: medians over rounds, the first of which has no compiled code."""
    table: list[Sequence[Any]] = []
    for dtype in dtypes:
        settings = {"backbone": backbone, "steps": steps, "dtype": dtype}
        found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for _ in range(rounds):
            for is_compiled, runs in found.items():
                runs.append(run(folder, 1, threads, folder / dtype, is_compiled=is_compiled, **settings))
        for is_compiled, runs in found.items():
            clock, cpu = (1000 * statistics.median(own["step"][side] for own in runs) for side in (0, 1))
            plain = [own["step"][0] for own in found[False]]
            times = measuring.ratio([own["step"][0] for own in runs], plain)
            later = statistics.median(own["first"] for own in runs[1:] or runs)
            cells = [f"{runs[0]['first']:.1f}", f"{later:.1f}", f"{clock:.0f}", f"{cpu:.0f}", f"{times:.2f} x"]
            measuring.add_row(table, [dtype, "inductor" if is_compiled else "as it is", *cells])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["data_root", "sentences", "plot"], rounds=2, dtypes=["float32"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of a run")
    parser.add_argument("--worker", help="settings of a run, which this process is part of")
    options = parser.parse_args(argv)
    if options.worker is not None:
        train(**json.loads(options.worker))
        os._exit(0)  # Python would end the watching thread in the middle of something, and abort at times
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measuring.say(f"{measuring.machine(options.threads, device)}, {options.backbone}")
    with tempfile.TemporaryDirectory() as own:
        folder, runs = Path(own), (options.steps, options.rounds)
        if "processes" in options.parts:
            found = measure_processes(folder, options.backbone, options.processes, *runs)
            header = ["processes", "rows each", "steps/s", "rows/s", "MiB of one", "MiB of gradients", "of a step"]
            measuring.report("A step of 32 rows, by processes", header, found, options.json)
        if "compile" in options.parts:
            found = measure_compile(folder, options.backbone, options.dtypes, *runs, options.threads)
            header = ["dtype", "", "s to the first step", "later", "ms", "ms of the processor", "times as it is"]
            measuring.report("A step of 32 rows, compiled", header, found, options.json)


if __name__ == "__main__":
    main()
