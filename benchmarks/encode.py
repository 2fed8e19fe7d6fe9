"""Sentences per second of `encode` against sentence-transformers with the same weights.

    python benchmarks/encode.py [--data_root FOLDER] [--sentences 500] [--plot encode.png]
    python benchmarks/encode.py --device cuda --data_root FOLDER --sentences 0 --batch_sizes 64 256 1024   # on a GPU

FOLDER holds tweeteval_sentiment/test.parquet and ag_news/test.parquet; without it our sample sentences are taken.
sentence-transformers (its PyTorch backend) sorts by length and pads; it has the same precision, and the batch size of
`--batch_sizes` that was fastest on the same sentences. Before anything is timed, its float32 embeddings and ours must
agree to 1e-5, and each of our bfloat16 embeddings must have a cosine of at least 0.9998 with the float32 one. On a GPU
our passes in bfloat16 run without padding too (`model.padding_free = True`), which is not their default there, and so
do those of sentence-transformers where the package flash-attn is installed and the backbone takes it.
"""

import contextlib
import statistics
from collections.abc import Sequence
from functools import partial

import measuring
import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import is_flash_attn_2_available

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone

OURS, THEIRS = "ours", "sentence-transformers"


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__)
    measuring.add_batch_sizes(parser)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    sets = measuring.read_sentences(options.data_root, options.sentences)
    encode_options = {"normalize": True, "show_progress": False}
    model = MultiTaskModel.from_backbone(options.backbone).to(options.device)
    expected = {name: model.encode(sentences, **encode_options) for name, sentences in sets.items()}  # float32

    rows, bars = [], {}
    for dtype in options.dtypes:
        model = MultiTaskModel.from_backbone(options.backbone, dtype=measuring.DTYPES[dtype]).to(options.device)
        if options.device != "cpu":
            with contextlib.suppress(ValueError):  # a backbone or a type of weights that takes padded batches only
                model.padding_free = True
        path = find_backbone(options.backbone)
        model_kwargs = {"dtype": measuring.DTYPES[dtype]}
        has_flash = is_flash_attn_2_available() and model.backbone._supports_flash_attn
        if has_flash and options.device != "cpu" and dtype != "float32":
            model_kwargs["attn_implementation"] = "flash_attention_2"
        theirs = SentenceTransformer(path, device=options.device, model_kwargs=model_kwargs)
        theirs.max_seq_length = model.config.max_length
        peak = measuring.matrix_peak(measuring.DTYPES[dtype], device=options.device)
        for name, sentences in sets.items():
            ours = partial(model.encode, sentences, **encode_options)
            padded = partial(theirs.encode, sentences, normalize_embeddings=True, show_progress_bar=False)
            where = f"{name}, {dtype}"
            if dtype == "float32":
                agreement = f"difference {measuring.check_close(where, padded(), expected[name]):.0e}"
            else:
                agreement = f"cosine {measuring.check_cosine(where, ours(), expected[name]):.5f}"
            size = measuring.best_batch_size(lambda size, run=padded: run(batch_size=size), options.batch_sizes)
            seconds = measuring.time_in_turns({OURS: ours, THEIRS: partial(padded, batch_size=size)}, options.rounds)

            flops = measuring.pass_flops(model.backbone, measuring.token_lengths(model, sentences))
            median = {side: statistics.median(taken) for side, taken in seconds.items()}
            bars[f"{name}\n{dtype}"] = {side: len(sentences) / taken for side, taken in median.items()}
            measuring.add_row(
                rows,
                [
                    name,
                    dtype,
                    f"{len(sentences) / median[OURS]:.0f}",
                    f"{len(sentences) / median[THEIRS]:.0f} (batch {size})",
                    f"{measuring.ratio(seconds[THEIRS], seconds[OURS]):.2f} x",
                    f"{flops / median[OURS] / peak:.0%}, {flops / median[THEIRS] / peak:.0%}",
                    f"{peak / 1e9:.0f}",
                    agreement,
                ],
            )
    header = ["sentences", "dtype", f"{OURS}/s", f"{THEIRS}/s", "ratio", "share of peak", "peak GFLOPS", "agreement"]
    measuring.report(
        f"encode: {options.backbone}, {measuring.machine(options.threads, options.device)}", header, rows, options.json
    )
    measuring.plot_bars(options.plot, "encode", "sentences per second", bars)


if __name__ == "__main__":
    main()
