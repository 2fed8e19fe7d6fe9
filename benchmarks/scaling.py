"""How cost grows with the length of sentences and with the number of heads.

    python benchmarks/scaling.py [--lengths 8 16 32 64 128 256] [--heads 1 2 4 8 16 32] [--plot scaling.png]

Lengths: `--tokens` tokens in sentences of one length each, made of random words of the vocabulary, so that no
contender has anything to pad: ours against sentence-transformers at the fastest of `--batch_sizes`. Heads: `predict`
of so many linear heads against `encode`, on sentences of `--data_root` or our samples. Embeddings of both must agree
(float32 to 1e-5; bfloat16 with a cosine of 0.9998), and a head's answers must not depend on how many others there are.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import measuring
import numpy as np
import torch
from predict import task_settings
from sentence_transformers import SentenceTransformer

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone

OURS, THEIRS = "ours", "sentence-transformers"


def sentences_of_length(model: MultiTaskModel, length: int, tokens: int) -> list[str]:
    """Random sentences of exactly `length` tokens, as many as make up `tokens`; a ValueError where that cannot be."""
    words = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha() and word.isascii())
    generator = np.random.default_rng(length)
    added = measuring.token_lengths(model, [words[0]])[0] - 1
    sentences = [" ".join(generator.choice(words, length - added)) for _ in range(max(1, tokens // length))]
    if found := set(measuring.token_lengths(model, sentences)) - {length}:
        raise ValueError(
            f"Sentences of {length} tokens came out with {sorted(found)}: --lengths should be between {added + 1} and "
            f"the model's max_length, {model.config.max_length}, and the vocabulary one of whole words."
        )
    return sentences


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, sentences=500)
    measuring.add_batch_sizes(parser)
    parser.add_argument("--lengths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256])
    parser.add_argument("--tokens", type=int, default=8192, help="of all sentences of one length together")
    parser.add_argument("--heads", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    where = f"{options.backbone}, {measuring.machine(options.threads)}"
    rows, head_rows, length_lines, head_lines = [], [], {}, {}
    for dtype in options.dtypes:
        model = MultiTaskModel.from_backbone(options.backbone, dtype=measuring.DTYPES[dtype])
        path = find_backbone(options.backbone)
        theirs = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": measuring.DTYPES[dtype]})
        theirs.max_seq_length = model.config.max_length
        peak = measuring.matrix_peak(measuring.DTYPES[dtype])
        check = measuring.check_close if dtype == "float32" else measuring.check_cosine
        for length in options.lengths:
            sentences = sentences_of_length(model, length, options.tokens)
            ours = partial(model.encode, sentences, normalize=True, show_progress=False)
            padded = partial(theirs.encode, sentences, normalize_embeddings=True, show_progress_bar=False)
            check(f"{length} tokens, {dtype}", ours(), padded())
            size = measuring.best_batch_size(lambda size, run=padded: run(batch_size=size), options.batch_sizes)
            seconds = measuring.time_in_turns({OURS: ours, THEIRS: partial(padded, batch_size=size)}, options.rounds)
            flops = measuring.pass_flops(model.backbone, [length] * len(sentences))
            median = {side: statistics.median(taken) for side, taken in seconds.items()}
            for side, taken in median.items():
                rate = len(sentences) * length / taken
                length_lines.setdefault(f"{side}, {dtype}", {})[length] = rate
            measuring.add_row(
                rows,
                [
                    length,
                    dtype,
                    *(f"{len(sentences) * length / median[side]:.0f}" for side in (OURS, THEIRS)),
                    f"{measuring.ratio(seconds[THEIRS], seconds[OURS]):.2f} x",
                    f"{flops / median[OURS] / peak:.0%}, {flops / median[THEIRS] / peak:.0%}",
                ],
            )

        model = MultiTaskModel.from_backbone(
            options.backbone, task_settings(max(options.heads)), dtype=measuring.DTYPES[dtype]
        )
        sentences = next(iter(measuring.read_sentences(options.data_root, options.sentences).values()))
        contenders = {"encode": partial(model.encode, sentences, show_progress=False)}
        expected = model.predict(sentences, tasks="task0", show_progress=False)["task0"]["probabilities"]
        for count in options.heads:
            tasks = list(model.config.tasks)[:count]
            contenders[str(count)] = partial(model.predict, sentences, tasks=tasks, show_progress=False)
            found = contenders[str(count)]()["task0"]["probabilities"]
            measuring.check_close(f"{count} heads, {dtype}", found, expected)
        seconds = measuring.time_in_turns(contenders, options.rounds)
        for count in options.heads:
            cost = measuring.ratio(seconds[str(count)], seconds["encode"])
            head_lines.setdefault(dtype, {})[count] = cost
            measuring.add_row(
                head_rows, [count, dtype, f"{statistics.median(seconds[str(count)]):.3f} s", f"{cost:.3f} x"]
            )
    header = ["tokens", "dtype", f"{OURS}, tokens/s", f"{THEIRS}, tokens/s", "ratio", "share of peak"]
    measuring.report(f"length of sentences: {where}", header, rows, options.json)
    measuring.report("number of heads", ["heads", "dtype", "predict", "against encode"], head_rows, options.json)
    if options.plot is not None:
        plot: Path = options.plot
        measuring.plot_lines(plot, "encode", "tokens of a sentence", "tokens per second", length_lines)
        plot = plot.with_stem(f"{plot.stem}_heads")
        measuring.plot_lines(plot, "predict", "heads", "time, in times of encode", head_lines)


if __name__ == "__main__":
    main()
