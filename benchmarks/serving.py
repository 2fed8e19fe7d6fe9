"""What serving costs: engines, one sentence, cold start and the server, against what people use now.

    multitask-sentence export runs/quickstart --engines onnx openvino --int8
    python benchmarks/serving.py runs/quickstart [--data_root FOLDER] [--sections engines,latency,cold_start,server]

Every contender is a process of its own (contender.py), and they take turns, so that whatever else the machine does
falls on all of them alike. Each turn has sentences that none had before. Contenders are this library with torch, ONNX
Runtime and OpenVINO, sentence-transformers on the same weights (`export --plain`), and one ONNX model for each task.
What cannot be opened is left out, and said so. FOLDER holds tweeteval_sentiment/test.parquet and ag_news/test.parquet;
without it our sample sentences are taken.

sentence-transformers on OpenVINO needs optimum-intel, whose 2.2 takes no transformers above 5.5. Give it an
environment of its own, with `--optimum_python PLACE/bin/python`:

    python -m venv PLACE && PLACE/bin/pip install "sentence-transformers<5.5" "optimum-intel>=2.2" "openvino==2026.4.1"

    engines      sentences per second of `encode` and `predict` for short, mixed and long text; memory; size on disk
    latency      milliseconds for one sentence, p50 and p99
    cold_start   seconds from the start of a process to its first answer
    server       rows per second and p99 at 1, 8 and 32 callers, each row a request, against `predict` in a process;
                 milliseconds of processor time for a row, of the server, of its callers, and of `predict`

In the same run, float32 embeddings must agree to 1e-5, those of bfloat16 must have a cosine of at least 0.99 with
them, and those of int8 one of 0.8; and every answer of the server must be the one that `predict` gives. `--quick`
tries all of it with numbers that mean nothing.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import count as count_up
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import measuring
import numpy as np
from contender import CONTENDERS, ONE_MODEL_A_TASK, SENTENCE_TRANSFORMERS
from contenders import Contender, about, draw, opened, pools, rate
from server import server

from multitask_sentence.export.folder import open_model
from multitask_sentence.export.plain import write_embedding

OURS = "torch float32"  # whose numbers the others must have
SMALLEST_COSINES = {"bfloat16": 0.99, "int8": 0.8}
COLD = (OURS, "ONNX float32", "ONNX int8", "OpenVINO float32", SENTENCE_TRANSFORMERS)


def precision_of(name: str) -> str:
    if name == "sentence-transformers OpenVINO":
        return "bfloat16"  # OpenVINO's own choice on CPUs that have it
    return next((precision for precision in SMALLEST_COSINES if precision in name), "float32")


def check(contenders: dict[str, Contender], sentences: Sequence[str], options: argparse.Namespace) -> dict[str, str]:
    """By contender, how its embeddings agree with those of torch in float32; a RuntimeError where they do not."""
    expected = contenders[OURS].embeddings(sentences, options.place / "embeddings.npy")
    found = {}
    for name, one in contenders.items():
        precision = precision_of(name)
        given = one.embeddings(sentences, options.place / "embeddings.npy")
        if precision == "float32":
            found[name] = f"difference {measuring.check_close(name, given, expected):.0e}"
        else:
            smallest = SMALLEST_COSINES[precision]
            found[name] = f"cosine {measuring.check_cosine(name, given, expected, smallest):.4f}"
    return found


def check_labels(contenders: dict[str, Contender], sentences: Sequence[str]) -> dict[str, str]:
    """By contender, the share of labels that are those of torch in float32: all of them, in float32."""
    expected = contenders[OURS].ask("predict", sentences)["labels"]
    shares = {}
    for name, one in contenders.items():
        given = one.ask("predict", sentences)["labels"]
        if not given:
            continue
        same = [a == b for task in expected for a, b in zip(given[task], expected[task], strict=True)]
        if "float32" in name and not all(same):
            raise RuntimeError(f"{name}: {same.count(False)} labels are not those of {OURS}.")
        shares[name] = f"{np.mean(same):.1%}" if same else "-"
    return shares


def take_turns(
    contenders: dict[str, Contender], call: str, pool: Sequence[str], count: int, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of each contender for each turn's sentences."""
    turns = {name: count_up() for name in contenders}  # in a turn, all have the same sentences

    def run(name: str) -> float:
        size = options.batch_size if name.startswith("sentence-transformers") else None
        return contenders[name].ask(call, draw(pool, count, next(turns[name])), batch_size=size)["seconds"][0]

    return measuring.time_in_turns({name: partial(run, name) for name in contenders}, options.rounds)


def size_on_disk(name: str, options: argparse.Namespace) -> str:
    """Megabytes of the files that a contender computes with."""
    folder: Path = options.folder
    if name.startswith("sentence-transformers"):
        files = list(options.plain.glob("*.safetensors"))
    elif name.startswith("torch"):
        files = list(folder.glob("*.safetensors"))
    else:
        engine = folder / name.split()[0].rstrip(",").lower()
        files = [
            path for path in engine.iterdir() if path.suffix != ".json" and ("int8" in path.name) == ("int8" in name)
        ]
        files += list(engine.glob("*pairs.*")) if "int8" in name else []
    number = 1
    if name == ONE_MODEL_A_TASK:
        tasks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["tasks"]
        number = sum(not task["pair"] for task in tasks.values())
    return f"{number * sum(path.stat().st_size for path in files) / 1e6:.0f} MB"


def engines(contenders: dict[str, Contender], options: argparse.Namespace) -> None:
    texts = pools(options)
    counts = dict(zip(texts, options.counts, strict=True))
    rows, predict_rows, bars = [], [], {}
    first = next(iter(texts))
    sample = [*draw(texts[first], 24, 0), *draw(texts["mixed"], 24, 0), "", "no"]
    agreement, labels = check(contenders, sample, options), check_labels(contenders, sample)
    baseline = contenders.get(SENTENCE_TRANSFORMERS)
    if baseline:
        ask = partial(baseline.ask, "encode", draw(texts["mixed"], counts["mixed"], 0))
        options.batch_size = measuring.best_batch_size(lambda size: ask(batch_size=size), options.batch_sizes)
        measuring.say(f"sentence-transformers takes batches of {options.batch_size}.")
    encoding = {name: one for name, one in contenders.items() if name != ONE_MODEL_A_TASK}
    predicting = {name: one for name, one in contenders.items() if name in labels}
    seconds = {text: take_turns(encoding, "encode", texts[text], counts[text], options) for text in texts}
    answered = {text: take_turns(predicting, "predict", texts[text], counts[text], options) for text in texts}
    for name in encoding:
        cells = [rate(seconds[text], name, SENTENCE_TRANSFORMERS, counts[text]) for text in texts]
        bars[name] = {text: counts[text] / median(seconds[text][name]) for text in texts}
        memory = f"{contenders[name].megabytes:.0f} MB"
        measuring.add_row(rows, [name, *cells, agreement[name], memory, size_on_disk(name, options)])
    for name in predicting:
        cells = [rate(answered[text], name, ONE_MODEL_A_TASK, counts[text]) for text in texts]
        memory = f"{contenders[name].megabytes:.0f} MB"
        measuring.add_row(predict_rows, [name, *cells, labels[name], memory, size_on_disk(name, options)])
    header = ["encode, sentences/s", *texts, "agreement with torch float32", "peak memory", "on disk"]
    title = f"encode, and how many times {SENTENCE_TRANSFORMERS}: {about(options)}"
    measuring.report(title, header, rows, options.json)
    header = ["predict, sentences/s", *texts, "same labels", "peak memory", "on disk"]
    title = f"predict, and how many times one model a task: {about(options)}"
    measuring.report(title, header, predict_rows, options.json)
    groups = {text: {name: rates[text] for name, rates in bars.items()} for text in texts}
    measuring.plot_bars(options.plot, "encode", "sentences per second", groups)


def latency(contenders: dict[str, Contender], options: argparse.Namespace) -> None:
    rows = []
    for text, pool in list(pools(options).items())[:2]:
        sentences = draw(pool, options.single_sentences, 0)
        agreement = check(contenders, sentences[:20], options)
        taken: dict[str, list[float]] = {name: [] for name in contenders if name != ONE_MODEL_A_TASK}
        step = 10  # sentences in a row, so that what is timed is a process that is awake
        for turn, start in enumerate(range(0, len(sentences), step)):
            names = list(taken)
            for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                ask = partial(contenders[name].ask, "encode", one_by_one=True)
                ask(sentences=sentences[:3])
                taken[name] += ask(sentences=sentences[start : start + step])["seconds"]
        p50 = {name: 1e3 * float(np.percentile(values, 50)) for name, values in taken.items()}
        for name, values in taken.items():
            faster = f"{p50[SENTENCE_TRANSFORMERS] / p50[name]:.2f} x" if SENTENCE_TRANSFORMERS in p50 else "-"
            p99 = f"{1e3 * np.percentile(values, 99):.2f}"
            measuring.add_row(rows, [text, name, f"{p50[name]:.2f}", p99, faster, agreement[name]])
    header = ["sentences", "", "p50 ms", "p99 ms", "p50 ratio", "agreement with torch float32"]
    measuring.report(f"one sentence, encode: {about(options)}", header, rows, options.json)


def cold_start(options: argparse.Namespace) -> None:
    sentence = "What a lovely evening!"
    names = [name for name in COLD if name in options.contenders]
    opening: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, np.ndarray] = {}

    def start(name: str) -> float:
        with opened([name], options) as found:
            if name not in found:
                return 0.0
            one = found[name]
            answers[name] = one.embeddings([sentence], options.place / "embeddings.npy")
            taken = time.perf_counter() - one.started
            opening[name].append(one.seconds_to_open)
        return taken

    warmups = 0 if options.quick else 1
    seconds = measuring.time_in_turns({name: partial(start, name) for name in names}, options.rounds, warmups)
    rows = []
    for name in answers:
        if precision_of(name) == "int8":
            measuring.check_cosine(name, answers[name], answers[OURS], SMALLEST_COSINES["int8"])
        else:
            measuring.check_close(name, answers[name], answers[OURS])
        share = 1 / measuring.ratio(seconds[OURS], seconds[name])
        loaded = median(opening[name][warmups:])
        measuring.add_row(rows, [name, f"{median(seconds[name]):.2f} s", f"{loaded:.2f} s", f"{share:.2f}"])
    header = ["", "start to first answer", "of it imports and loading", "share of AutoModel"]
    measuring.report(f"cold start: {about(options)}", header, rows, options.json)


SECTIONS = ("engines", "latency", "cold_start", "server")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a trained and exported folder")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="%(default)s")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--data_root", type=Path, help="folder of data sets as parquet files (default: data/samples)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contender")
    parser.add_argument("--optimum_python", default=sys.executable, help="a Python that has optimum-intel")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[16, 32, 64], help="of sentence-transformers")
    parser.add_argument("--quick", action="store_true", help="a handful of sentences: whether all of it runs")
    parser.add_argument("--plot", type=Path, help="also draw the table of engines as this PNG file")
    parser.add_argument("--json", type=Path, help="also write the tables into this file, beside those that it holds")
    options = parser.parse_args(argv)
    sections = options.sections.split(",")
    unknown = sorted(set(sections) - set(SECTIONS))
    if unknown:
        parser.error(f"--sections: there is no {', '.join(unknown)}. Known: {', '.join(SECTIONS)}.")
    if OURS not in options.contenders and set(sections) != {"server"}:
        parser.error(f"--contenders lacks {OURS}, whose numbers the others must have in all sections but server.")
    # Sentences a turn for each kind of text, so that none takes much longer than another.
    options.counts = (4, 4, 4, 4) if options.quick else (300, 200, 150, 60)
    options.single_sentences, options.requests = (20, 400) if options.quick else (200, 20_000)
    options.rounds = 1 if options.quick else options.rounds
    options.batch_size = options.batch_sizes[0]
    with TemporaryDirectory() as place:
        options.place, options.plain = Path(place), Path(place) / "plain"
        write_embedding(open_model(options.folder), options.plain)
        if {"engines", "latency"} & set(sections):
            with opened(options.contenders, options) as contenders:
                if "engines" in sections:
                    engines(contenders, options)
                if "latency" in sections:
                    latency(contenders, options)
        if "cold_start" in sections:
            cold_start(options)
        if "server" in sections:
            server(options)


if __name__ == "__main__":
    main()
