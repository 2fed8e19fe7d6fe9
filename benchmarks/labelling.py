"""What files, processes and exactly-once parts cost: `multitask-sentence label` beside `predict`, with a tiny model.

    python benchmarks/labelling.py --rows 1000000 --threads 2 --json docs/data/scale.json

Contenders take turns: one call of `predict` on texts in memory, with a model that is open; 10,000 of these texts at a
time, which is faster, because Python then collects less garbage; a process that opens the model, reads the texts and
predicts; and the command with each number of `--processes`, from its start to its end. Each has the rows, and a fourth
of them; what the rows between take leaves starting out. Rates are medians, and shares (of `predict` in parts) medians
of each turn's share, by the clock and by the processor time of all processes. Memory is that of the process that was
started.
"""

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import pyarrow.parquet as pq
import scale
import torch
from transformers import BertConfig, BertModel

from multitask_sentence import MultiTaskModel

PREDICT = """
import sys
import pyarrow.parquet as pq
from multitask_sentence import MultiTaskModel
texts = pq.read_table(sys.argv[2], columns=["text"])["text"].to_pylist()
MultiTaskModel.from_pretrained(sys.argv[1]).eval().predict(texts, show_progress=False)
"""


def make_tiny_model(folder: Path, backbone: str) -> MultiTaskModel:
    """Two tasks on two random layers, with the tokenizer of the backbone; saved in the folder `model`."""
    tokenizer = MultiTaskModel.from_backbone(backbone).tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    kind = "single_label_classification"
    tasks = {
        "mood": {"problem_type": kind, "labels": scale.MOODS},
        "topic": {"problem_type": kind, "labels": scale.TOPICS},
    }
    MultiTaskModel.from_backbone(str(folder / "tiny"), tasks=tasks).save_pretrained(folder / "model")
    return MultiTaskModel.from_pretrained(folder / "model").eval()


def run_process(arguments: Sequence[Any], threads: int) -> scale.Run:
    """A Python process to its end, its children's processor time included."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peak = scale.start_watch(process.pid)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args[1:4])} ended with status {process.returncode}.")
    return scale.Run(time.perf_counter() - started, used.ru_utime + used.ru_stime, peak[0])


def measure(
    folder: Path, backbone: str, rows: int, numbers: Sequence[int], rounds: int, threads: int
) -> list[Sequence[Any]]:
    """Rows a second of `predict` and of the command with these numbers of processes: medians, and of ratios, too."""
    model = make_tiny_model(folder, backbone)
    counts = (rows // 4, rows)
    files = {count: scale.write_rows(folder / f"rows-{count}.parquet", count) for count in counts}
    texts = {count: pq.read_table(file, columns=["text"])["text"].to_pylist() for count, file in files.items()}

    def predict(at_once: int, count: int) -> scale.Run:
        started, cpu = time.perf_counter(), time.process_time()
        for place in range(0, count, at_once):
            model.predict(texts[count][place : place + at_once], show_progress=False)
        return scale.Run(
            time.perf_counter() - started, time.process_time() - cpu, scale.status(os.getpid(), "RssAnon")
        )

    def label(number: int, count: int) -> scale.Run:
        output = folder / "labelled.parquet"
        arguments = ["-m", "multitask_sentence", "label", folder / "model", files[count], output, "--overwrite"]
        run = run_process([*arguments, "--processes", number], threads)
        if pq.ParquetFile(output).metadata.num_rows != count:
            raise RuntimeError(f"{output} does not have the {count} rows of the input.")
        return run

    contenders: dict[str, Callable[[int], scale.Run]] = {
        "predict, one call": partial(predict, rows),
        "predict, in parts": partial(predict, 10_000),
        "predict, a process": lambda count: run_process(["-c", PREDICT, folder / "model", files[count]], threads),
    }
    contenders |= {f"label, {number} process{'es' * (number > 1)}": partial(label, number) for number in numbers}
    found: dict[tuple[int, str], list[scale.Run]] = {(count, name): [] for count in counts for name in contenders}
    for turn in range(rounds):
        names = list(contenders)[turn % len(contenders) :] + list(contenders)[: turn % len(contenders)]
        for count, name in itertools.product(counts, names):
            found[count, name].append(run := contenders[name](count))
            measuring.add_row([], [turn + 1, f"{count:,}", name, f"{run.seconds:.1f} s", f"{run.cpu_seconds:.1f} s"])
    for name in contenders:
        pairs = zip(found[counts[0], name], found[rows, name], strict=True)
        between = [scale.Run(b.seconds - a.seconds, b.cpu_seconds - a.cpu_seconds, b.memory) for a, b in pairs]
        found[rows - counts[0], name] = between
    table: list[Sequence[Any]] = []
    for (count, name), runs in found.items():
        first = found[count, "predict, in parts"]
        clock, cpu = ([getattr(run, side) for run in runs] for side in ("seconds", "cpu_seconds"))
        shares = [
            measuring.ratio([getattr(run, side) for run in first], own)
            for side, own in (("seconds", clock), ("cpu_seconds", cpu))
        ]
        rates = [f"{count / statistics.median(own):,.0f}" for own in (clock, cpu)]
        what = f"{count:,}" if count in counts else f"the {count:,} between"
        memory = str(max(run.memory for run in runs))
        measuring.add_row(table, [what, name, *rates, *(f"{share:.2f} x" for share in shares), memory])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["data_root", "dtypes", "sentences", "plot"], rounds=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where generated files go")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    measuring.say(measuring.machine(options.threads))
    with tempfile.TemporaryDirectory(dir=options.folder) as own:
        turns = options.processes, options.rounds, options.threads
        found = measure(Path(own), options.backbone, options.rows, *turns)
    header = ["rows", "what", "rows/s", "of the processor", "times predict", "by the processor", "MiB"]
    measuring.report("The command `label`, with a tiny model", header, found, options.json)


if __name__ == "__main__":
    main()
