"""Rows per second of `predict` against one fine-tuned classifier per task, and what further heads cost.

    python benchmarks/predict.py [--data_root FOLDER] [--sentences 500] [--plot predict.png]

FOLDER holds tweeteval_sentiment/test.parquet and ag_news/test.parquet; without it our sample sentences are taken.
The classifiers are `AutoModelForSequenceClassification`s of a BERT with the encoder's weights, one a task, each of
which runs over all sentences: sorted by length, padded by batch, at the batch size of `--batch_sizes` that was
fastest. Our heads (first token, dense layer, tanh, one linear layer a task) are given their weights, so that all
probabilities must agree to 1e-5 in float32, and to 0.05 in bfloat16, before anything is timed. Beside it: `predict`
of eight heads against `encode`.
"""

import statistics
from collections.abc import Sequence
from functools import partial

import measuring
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone

LARGEST_BFLOAT16_DIFFERENCE = 0.05  # of a probability; a bfloat16 has three significant digits
MANY_HEADS = 8
OURS, THEIRS, ENCODE, PREDICT_MANY = "ours", "one model a task", "encode", "predict"


def task_settings(count: int) -> dict[str, dict]:
    """So many classification tasks with three labels each."""
    labels = ["negative", "neutral", "positive"]
    return {
        f"task{number}": {"problem_type": "single_label_classification", "labels": labels} for number in range(count)
    }


def single_task_models(backbone: str, tasks: Sequence[str], dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    """One classifier a task: same encoder and pooler, own random last layer."""
    logging.set_verbosity_error()  # that the last layers are new is the intention
    models = {}
    for number, task in enumerate(tasks):
        torch.manual_seed(0)  # a pooler that was not pretrained is drawn alike for all of them
        model = AutoModelForSequenceClassification.from_pretrained(find_backbone(backbone), num_labels=3)
        torch.manual_seed(number)
        torch.nn.init.normal_(model.classifier.weight, std=0.2)
        models[task] = model.to(dtype).eval()
    return models


def same_model(backbone: str, singles: dict[str, PreTrainedModel], dtype: torch.dtype) -> MultiTaskModel:
    """Our model with the weights of all the classifiers."""
    first = next(iter(singles.values()))
    projection = {"out_features": first.config.hidden_size, "activation": "tanh"}
    model = MultiTaskModel.from_backbone(
        backbone, task_settings(len(singles)), pooling="cls", projection=projection, dtype=dtype
    )
    model.projection.linear.load_state_dict(first.base_model.pooler.dense.state_dict())
    for task, single in singles.items():
        model.heads[task].layers[-1].load_state_dict(single.classifier.state_dict())
    return model


@torch.inference_mode()
def classify(model: PreTrainedModel, tokenizer, max_length: int, sentences: list[str], batch_size: int) -> np.ndarray:
    """Probabilities `(sentences, labels)` in the order of the sentences, as a careful user would compute them."""
    token_ids = tokenizer(sentences, truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(sentences)), key=lambda index: -len(token_ids[index]))
    probabilities = torch.empty(len(sentences), model.config.num_labels)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": [token_ids[index] for index in batch]}, return_tensors="pt")
        probabilities[batch] = model(**inputs).logits.float().softmax(dim=-1)
    return probabilities.numpy()


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__)
    measuring.add_batch_sizes(parser)
    parser.add_argument("--tasks", type=int, default=3, help="how many tasks, and classifiers")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    sets = measuring.read_sentences(options.data_root, options.sentences)

    rows, head_rows, bars = [], [], {}
    for dtype in options.dtypes:
        singles = single_task_models(options.backbone, list(task_settings(options.tasks)), measuring.DTYPES[dtype])
        model = same_model(options.backbone, singles, measuring.DTYPES[dtype])
        many = MultiTaskModel.from_backbone(options.backbone, task_settings(MANY_HEADS), dtype=measuring.DTYPES[dtype])
        peak = measuring.matrix_peak(measuring.DTYPES[dtype])
        for name, sentences in sets.items():
            ours = partial(model.predict, sentences, show_progress=False)

            def run_singles(size: int, sentences: list[str] = sentences, singles=singles, model=model) -> dict:
                arguments = (model.tokenizer, model.config.max_length, sentences, size)
                return {task: classify(single, *arguments) for task, single in singles.items()}

            answers = ours()
            largest = measuring.LARGEST_DIFFERENCE if dtype == "float32" else LARGEST_BFLOAT16_DIFFERENCE
            difference = max(
                measuring.check_close(f"{name}, {dtype}, {task}", answers[task]["probabilities"], found, largest)
                for task, found in run_singles(32).items()
            )
            size = measuring.best_batch_size(run_singles, options.batch_sizes)
            contenders = {
                OURS: ours,
                THEIRS: partial(run_singles, size),
                ENCODE: partial(many.encode, sentences, show_progress=False),
                PREDICT_MANY: partial(many.predict, sentences, show_progress=False),
            }
            seconds = measuring.time_in_turns(contenders, options.rounds)

            flops = measuring.pass_flops(model.backbone, measuring.token_lengths(model, sentences))
            median = {side: statistics.median(taken) for side, taken in seconds.items()}
            bars[f"{name}\n{dtype}"] = {side: len(sentences) / median[side] for side in (OURS, THEIRS)}
            measuring.add_row(
                rows,
                [
                    name,
                    dtype,
                    f"{len(sentences) / median[OURS]:.0f}",
                    f"{len(sentences) / median[THEIRS]:.0f} (batch {size})",
                    f"{measuring.ratio(seconds[THEIRS], seconds[OURS]):.2f} x",
                    f"{flops / median[OURS] / peak:.0%}, {len(singles) * flops / median[THEIRS] / peak:.0%}",
                    f"{difference:.0e}",
                ],
            )
            cost = measuring.ratio(seconds[PREDICT_MANY], seconds[ENCODE])
            measuring.add_row(
                head_rows, [name, dtype, f"{median[ENCODE]:.3f} s", f"{median[PREDICT_MANY]:.3f} s", f"{cost:.3f} x"]
            )
    where = f"{options.backbone}, {measuring.machine(options.threads)}"
    header = ["sentences", "dtype", f"{OURS}, rows/s", f"{THEIRS}, rows/s", "ratio", "share of peak", "difference"]
    measuring.report(f"predict, {options.tasks} tasks: {where}", header, rows, options.json)
    header = ["sentences", "dtype", "encode", f"predict, {MANY_HEADS} heads", "ratio"]
    measuring.report("all heads from one pass", header, head_rows, options.json)
    measuring.plot_bars(options.plot, f"predict, {options.tasks} tasks", "rows per second", bars)


if __name__ == "__main__":
    main()
