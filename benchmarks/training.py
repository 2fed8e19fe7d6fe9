"""Rows per second of training: one model for all tasks, sentence-transformers' trainer, and one Trainer run a task.

    python benchmarks/training.py [--data_root FOLDER] [--rows 1280] [--batch_size 32] [--plot training.png]

FOLDER holds tweeteval_sentiment/, ag_news/ and stsb/, each with train.parquet; without it our sample data is taken,
its sentences dealt out to sentiment and topic. All contenders see the same rows once, in the sets' proportions, with
the same batch size, optimizer and precision (bfloat16 is autocast):

- ours: `MultiTaskTrainer`, mixed batches;
- sentence-transformers: its multi-dataset trainer, with BatchAllTripletLoss for the labelled sentences (it has no
  classification of single sentences) and CoSENTLoss for the pairs;
- one run a task: a `Trainer` of `AutoModelForSequenceClassification` for sentiment and topic, on sentences that were
  tokenized beforehand, and sentence-transformers' trainer for the pairs.

Time counts from the end of the second step to the end of the last. Before anything is timed, gradients of the packed
and the padded pass must agree in float64, relative to the largest, to 1e-8.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import measuring
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss, CoSENTLoss
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone
from multitask_sentence.data.collation import MultiTaskCollator
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.training.trainer import MultiTaskTrainer, MultiTaskTrainingArguments

WARM_UP_STEPS = 2
LARGEST_GRADIENT_DIFFERENCE = 1e-8  # float64, relative to the largest gradient
OURS, THEIRS, SINGLE = "ours", "sentence-transformers", "one run a task"


class StepClock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


# ---- data ----


def read_rows(data_root: Path | None, count: int) -> dict[str, pd.DataFrame]:
    """By task, training rows with the columns of sentences and `label` (a number), `count` of all together."""
    if data_root is None:
        sentences = pd.read_csv(measuring.SAMPLES / "sentences_train.csv")
        tables = {
            "sentiment": sentences[0::2].rename(columns={"sentiment": "label"}).drop(columns="topic"),
            "topic": sentences[1::2].rename(columns={"topic": "label"}).drop(columns="sentiment"),
            "similarity": pd.read_csv(measuring.SAMPLES / "pairs_train.csv").rename(columns={"score": "label"}),
        }
    else:
        tables = {
            task: pd.read_parquet(data_root / folder / "train.parquet")[["text", "label_name"]].set_axis(
                ["sentence", "label"], axis=1
            )
            for task, folder in {"sentiment": "tweeteval_sentiment", "topic": "ag_news"}.items()
        }
        pairs = pd.read_parquet(data_root / "stsb" / "train.parquet")
        tables["similarity"] = pairs[["sentence1", "sentence2", "score"]].rename(columns={"score": "label"})
    tables = {task: table.dropna() for task, table in tables.items()}
    share = min(1.0, count / sum(map(len, tables.values())))
    tables = {task: table.sample(frac=share, random_state=0) for task, table in tables.items()}
    for task in ("sentiment", "topic"):
        tables[task] = tables[task].assign(label=tables[task]["label"].astype("category").cat.codes)
    return {task: table.reset_index(drop=True) for task, table in tables.items()}


def task_settings(tables: dict[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    settings: dict[str, dict[str, Any]] = {
        task: {
            "problem_type": "single_label_classification",
            "labels": [str(label) for label in range(int(tables[task]["label"].max()) + 1)],
        }
        for task in ("sentiment", "topic")
    }
    return {**settings, "similarity": {"problem_type": "similarity", "score_range": [0, 5]}}


def labelled_sets(tables: dict[str, pd.DataFrame]) -> list[LabelledSet]:
    """The rows as `MultiTaskTrainer` reads them."""
    sets = []
    for task, table in tables.items():
        columns = {"sentences": table.drop(columns="label").values.tolist(), f"label_{task}": table["label"].tolist()}
        sets.append(LabelledSet([task], {"train": Dataset.from_dict(columns)}))
    return sets


# ---- contenders: each gives rows and seconds after the warm-up ----


def timed(make_trainer: Callable[[StepClock], Trainer], rows: int, batch_size: int) -> tuple[int, float]:
    """Rows after the warm-up and the seconds that they took, of one run."""
    trainer = make_trainer(clock := StepClock())
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    if not math.isfinite(loss):
        raise RuntimeError(f"{type(trainer).__name__}: the training loss is {loss}.")
    return rows - WARM_UP_STEPS * batch_size, clock.ends[-1] - clock.ends[WARM_UP_STEPS - 1]


def quiet(folder: str, options: Any, dtype: str) -> dict[str, Any]:
    """Arguments that all trainers share."""
    return {
        "output_dir": folder,
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": 2e-5,
        "bf16": dtype == "bfloat16",
        "use_cpu": True,  # whose peak the rates are a share of
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def run_ours(tables: dict[str, pd.DataFrame], folder: str, options: Any, dtype: str) -> tuple[int, float]:
    def make(clock: StepClock) -> Trainer:
        settings = {"load_best_model_at_end": False, "warmup_steps": 0}
        arguments = MultiTaskTrainingArguments(**quiet(folder, options, dtype), **settings)
        model = MultiTaskModel.from_backbone(options.backbone, task_settings(tables), max_length=options.max_length)
        return MultiTaskTrainer(model, arguments, labelled_sets(tables), callbacks=[clock])

    return timed(make, sum(map(len, tables.values())), options.batch_size)


def run_theirs(tables: dict[str, pd.DataFrame], folder: str, options: Any, dtype: str) -> tuple[int, float]:
    def make(clock: StepClock) -> Trainer:
        model = SentenceTransformer(find_backbone(options.backbone), device="cpu")
        model.max_seq_length = options.max_length
        losses = {task: (CoSENTLoss if task == "similarity" else BatchAllTripletLoss)(model) for task in tables}
        arguments = SentenceTransformerTrainingArguments(**quiet(folder, options, dtype))
        data = {task: Dataset.from_pandas(table, preserve_index=False) for task, table in tables.items()}
        return SentenceTransformerTrainer(model, arguments, train_dataset=data, loss=losses, callbacks=[clock])

    return timed(make, sum(map(len, tables.values())), options.batch_size)


def run_single(tables: dict[str, pd.DataFrame], folder: str, options: Any, dtype: str) -> tuple[int, float]:
    tokenizer = AutoTokenizer.from_pretrained(find_backbone(options.backbone))

    def make(task: str, clock: StepClock) -> Trainer:
        labels = int(tables[task]["label"].max()) + 1
        model = AutoModelForSequenceClassification.from_pretrained(find_backbone(options.backbone), num_labels=labels)
        tokens = tokenizer(tables[task]["sentence"].tolist(), truncation=True, max_length=options.max_length)
        data = Dataset.from_dict({**tokens, "labels": tables[task]["label"].tolist()})
        arguments = TrainingArguments(**quiet(folder, options, dtype))
        collator = DataCollatorWithPadding(tokenizer)
        return Trainer(model, arguments, train_dataset=data, data_collator=collator, callbacks=[clock])

    runs = [timed(partial(make, task), len(tables[task]), options.batch_size) for task in ("sentiment", "topic")]
    runs.append(run_theirs({"similarity": tables["similarity"]}, folder, options, dtype))
    return sum(rows for rows, _ in runs), sum(seconds for _, seconds in runs)


# ---- correctness ----


def gradient_difference(options: Any, tables: dict[str, pd.DataFrame], rows: int = 6) -> float:
    """Of the packed and the padded pass, float64, relative to the largest gradient; a RuntimeError where too large."""
    model = MultiTaskModel.from_backbone(
        options.backbone, task_settings(tables), max_length=options.max_length
    ).double()
    batch = [row for entry in labelled_sets(tables) for row in entry.splits["train"].select(range(rows))]
    inputs = MultiTaskCollator(model.tokenizer, model.config.tasks, options.max_length)(batch)
    del inputs["labels"]
    found = []
    for model.padding_free in (True, False):
        model.zero_grad()
        sum(logits.square().sum() for logits in model(**inputs).logits.values()).backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in found[1])
    difference = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / largest
    if not difference <= LARGEST_GRADIENT_DIFFERENCE:
        raise RuntimeError(f"gradients of the packed and the padded pass differ by {difference:.1e} of the largest.")
    return difference


def main(argv: Sequence[str] | None = None) -> None:
    parser = measuring.options(__doc__, ["sentences"], rounds=3)
    parser.add_argument("--rows", type=int, default=1280, help="training rows of all tasks together")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128, help="longest sentence in tokens")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    tables = read_rows(options.data_root, options.rows)
    least, needed = min(map(len, tables.values())), WARM_UP_STEPS * options.batch_size + 1
    if least < needed:
        parser.error(f"--rows {options.rows} leaves {least} to a task, but its first {needed - 1} are not timed.")
    difference = gradient_difference(options, tables)
    sentences = [text for table in tables.values() for column in table.drop(columns="label") for text in table[column]]
    model = MultiTaskModel.from_backbone(options.backbone, max_length=options.max_length)
    flops = 3 * measuring.pass_flops(model.backbone, measuring.token_lengths(model, sentences))  # backward is two
    flops /= sum(map(len, tables.values()))  # a row

    table, bars = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in options.dtypes:
            peak = measuring.matrix_peak(measuring.DTYPES[dtype])

            def seconds_per_row(run: Callable, dtype: str = dtype) -> float:
                rows, seconds = run(tables, folder, options, dtype)
                return seconds / rows

            contenders = {OURS: run_ours, THEIRS: run_theirs, SINGLE: run_single}
            contenders = {name: partial(seconds_per_row, run) for name, run in contenders.items()}
            # Each run warms up by itself.
            seconds = measuring.time_in_turns(contenders, options.rounds, warmups=0)
            bars[dtype] = {name: 1 / statistics.median(taken) for name, taken in seconds.items()}
            for name, taken in seconds.items():
                rate = 1 / statistics.median(taken)
                ratio = measuring.ratio(taken, seconds[OURS])
                measuring.add_row(table, [dtype, name, f"{rate:.1f}", f"{ratio:.2f} x", f"{flops * rate / peak:.0%}"])
    counts = ", ".join(f"{len(rows)} of {task}" for task, rows in tables.items())
    where = f"{options.backbone}, {measuring.machine(options.threads)}"
    header = ["dtype", "", "rows/s", "ours is faster by", "share of peak"]
    measuring.report(
        f"training, batches of {options.batch_size}, rows: {counts}; {where}", header, table, options.json
    )
    measuring.say(f"\ngradients, packed against padded, float64: {difference:.0e} of the largest")
    measuring.say(f"tokens of a sentence: median {np.median(measuring.token_lengths(model, sentences)):.0f}")
    measuring.plot_bars(options.plot, "training", "rows per second", bars)


if __name__ == "__main__":
    main()
