"""Milliseconds for one sentence: `encode` and `predict` against sentence-transformers, sentence by sentence in turns.

    python benchmarks/latency.py [--data_root FOLDER] [--sentences 200] [--plot latency.png]

FOLDER holds tweeteval_sentiment/test.parquet and ag_news/test.parquet; without it our sample sentences are taken.
Each has a model of its own. All embeddings must agree (1e-5 in float32, a cosine of 0.9998 in bfloat16), or nothing is
reported.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import measuring
import numpy as np
import torch
from predict import task_settings
from sentence_transformers import SentenceTransformer

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone

OURS, THEIRS, PREDICT = "ours, encode", "sentence-transformers, encode", "ours, predict (3 heads)"
WARMUPS = 10


def answer_next(run: Callable[[str], Any], left: Iterator[str], answers: list[Any]) -> None:
    answers.append(run(next(left)))


def main(argv: Sequence[str] | None = None) -> None:
    options = measuring.options(__doc__, sentences=200, rounds=1).parse_args(argv)
    torch.set_num_threads(options.threads)
    sets = measuring.read_sentences(options.data_root, options.sentences)
    rows, bars = [], {}
    for dtype in options.dtypes:
        model = MultiTaskModel.from_backbone(options.backbone, task_settings(3), dtype=measuring.DTYPES[dtype])
        answering = MultiTaskModel.from_backbone(options.backbone, task_settings(3), dtype=measuring.DTYPES[dtype])
        path = find_backbone(options.backbone)
        theirs = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": measuring.DTYPES[dtype]})
        theirs.max_seq_length = model.config.max_length
        contenders = {
            OURS: lambda sentence, model=model: model.encode(sentence, normalize=True),
            THEIRS: lambda sentence, theirs=theirs: theirs.encode(
                sentence, normalize_embeddings=True, show_progress_bar=False
            ),
            PREDICT: lambda sentence, model=answering: model.predict(sentence),
        }
        for name, sentences in sets.items():
            warmups = sentences[:WARMUPS]
            found: dict[str, list[Any]] = {side: [] for side in contenders}
            turns = {
                side: partial(answer_next, run, iter([*warmups, *sentences * options.rounds]), found[side])
                for side, run in contenders.items()
            }
            seconds = measuring.time_in_turns(turns, len(sentences) * options.rounds, len(warmups))
            taken = {side: [1000 * own for own in values] for side, values in seconds.items()}
            check = measuring.check_close if dtype == "float32" else measuring.check_cosine
            agreement = check(f"{name}, {dtype}", np.stack(found[OURS]), np.stack(found[THEIRS]))
            p50 = {side: float(np.percentile(values, 50)) for side, values in taken.items()}
            bars[f"{name}\n{dtype}"] = p50
            agreement = f"{agreement:.0e}" if dtype == "float32" else f"cosine {agreement:.5f}"
            for side, values in taken.items():
                faster, p99 = f"{p50[THEIRS] / p50[side]:.2f} x", f"{np.percentile(values, 99):.2f}"
                measuring.add_row(rows, [name, dtype, side, f"{p50[side]:.2f}", p99, faster, agreement])
    header = ["sentences", "dtype", "", "p50 ms", "p99 ms", "p50 ratio", "agreement"]
    measuring.report(
        f"one sentence: {options.backbone}, {measuring.machine(options.threads)}", header, rows, options.json
    )
    measuring.plot_bars(options.plot, "one sentence, p50", "milliseconds", bars)


if __name__ == "__main__":
    main()
