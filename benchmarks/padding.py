"""What padding costs in training on a CPU: forward and backward passes of batches as they are, and as we compute them.

    python benchmarks/padding.py [--data_root FOLDER] [--backbone sentence-transformers/all-mpnet-base-v2] [--rows 64]

FOLDER holds tweeteval_sentiment/test.parquet and ag_news/test.parquet; without it our sample sentences are taken. Each
data set gives batches of sentences as they come, so that long and short ones stand together. `padded` computes a batch
as one (`model.padding_free = False`), `ours` without padding where the backbone can, and else in parts by length.
Before anything is timed, their embeddings must agree to 1e-5. bfloat16 is autocast over float32 weights,
as in training.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import measuring
import torch

from multitask_sentence import MultiTaskModel
from multitask_sentence.training.fast_dropout import use_fast

PADDED, OURS = "padded", "ours"
BATCHES = 4


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["sentences"], dtypes=["float32"], rounds=3)
    parser.add_argument("--rows", type=int, default=64, help="sentences of a batch")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model = MultiTaskModel.from_backbone(options.backbone)
    use_fast(model.backbone)
    rows, bars = [], {}
    for name, sentences in measuring.read_sentences(options.data_root, BATCHES * options.rows).items():
        chunks = [sentences[start : start + options.rows] for start in range(0, len(sentences), options.rows)]
        batches = [
            model.tokenizer(
                chunk,
                padding=True,
                truncation=True,
                max_length=model.config.max_length,
                return_token_type_ids=False,
                return_tensors="pt",
            )
            for chunk in chunks
        ]
        seen = sum(int(batch["attention_mask"].sum()) for batch in batches)
        padding = 1 - seen / sum(batch["attention_mask"].numel() for batch in batches)
        check(name, model, batches[0])
        for dtype in options.dtypes:
            contenders = {way: partial(step, model, way, batches, dtype) for way in (PADDED, OURS)}
            seconds = measuring.time_in_turns(contenders, options.rounds)
            medians = {way: 1000 * statistics.median(seconds[way]) / len(batches) for way in seconds}
            bars[f"{name}, {dtype}"] = medians
            times = measuring.ratio(seconds[PADDED], seconds[OURS])
            cells = [f"{medians[way]:.0f}" for way in (PADDED, OURS)]
            measuring.add_row(rows, [name, dtype, *cells, f"{times:.2f} x", f"{padding:.0%}"])
    measuring.say(f"{measuring.machine(options.threads)}, {options.backbone}, batches of {options.rows}")
    header = ["sentences", "dtype", "ms a batch, padded", OURS, "times as fast", "padding"]
    measuring.report(f"Padding in training, {options.backbone}", header, rows, options.json)
    measuring.plot_bars(options.plot, f"Forward and backward, {options.backbone}", "ms a batch", bars)


def check(name: str, model: MultiTaskModel, batch: dict[str, torch.Tensor]) -> None:
    """Stop where the two ways give other embeddings."""
    found = []
    model.eval()
    for model.padding_free in (False, None):
        with torch.no_grad():
            found.append(model(**batch).sentence_embedding.numpy())
    measuring.check_close(name, found[1], found[0])


def step(model: MultiTaskModel, way: str, batches: Sequence[dict[str, torch.Tensor]], dtype: str) -> None:
    """Forward and backward passes of all batches."""
    model.train()
    model.padding_free = False if way == PADDED else None
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**batch).sentence_embedding.float().square().mean()
        loss.backward()
        model.zero_grad()


if __name__ == "__main__":
    main()
