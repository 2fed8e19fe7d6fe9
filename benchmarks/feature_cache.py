"""What training two heads on a frozen encoder costs with the feature cache and without it.

    python benchmarks/feature_cache.py --data_root DATA [--batch_sizes 32 128 512] [--epochs 20]
    python benchmarks/feature_cache.py --data_root DATA --rows 2000 --sentences_without 512      # a short try

DATA holds tweeteval_sentiment/ and ag_news/, each with train.parquet and validation.parquet (columns text and
label_name). Measured on all-MiniLM-L6-v2, wall-clock, training alone (no evaluation, no checkpoints), for each batch
size, always by `MultiTaskTrainer.train()`:

- one encoding pass: `model.encode` over the distinct training sentences, for comparison;
- first run: filling an empty cache (measured once), plus the second run's time;
- second run: all epochs on a full cache;
- without the cache: seconds of a step, measured over `--sentences_without` sentences after two steps of warm-up, times
  the steps of all epochs. This one number is extrapolated.

Batches of 32 are the trainer's default. A step on cached vectors is mostly the Trainer's own work, whatever the batch
holds, so larger batches are where the time goes down; learning rate and quality are then yours to check.
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

import datasets
import torch
from tabulate import tabulate
from transformers import PrinterCallback, TrainerCallback

from multitask_sentence import MultiTaskModel
from multitask_sentence.data.loading.tasks import TaskSource, load_tasks
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.features.batches import sentence_windows
from multitask_sentence.training.features.cache import cache_sentences, open_features
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE
from multitask_sentence.training.trainer import MultiTaskTrainer

WARM_UP_STEPS = 2
TASKS = {"sentiment": "tweeteval_sentiment", "topic": "ag_news"}


def load(data_root: Path, rows: int | None) -> tuple[list[LabelledSet], dict[str, dict]]:
    """The two sets, cut to so many training rows each, and the tasks' settings."""
    sources = [
        TaskSource(
            name=task,
            problem_type="single_label_classification",
            dataset={
                "path": "parquet",
                "data_files": {split: f"{folder}/{split}.parquet" for split in ("train", "validation")},
            },
            columns={"sentence": "text", "label": "label_name"},
        )
        for task, folder in TASKS.items()
    ]
    loaded = load_tasks(sources, data_root, seed=42)
    for entry in loaded.sets:
        train = entry.splits["train"]
        entry.splits["train"] = train.select(range(min(rows or len(train), len(train))))
    settings = {
        task: {"problem_type": "single_label_classification", "labels": labels}
        for task, labels in loaded.labels.items()
    }
    settings["sentiment"]["head"] = {"hidden_dims": [256], "dropout": 0.1}
    return loaded.sets, settings


class StepClock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def train(sets: list[LabelledSet], settings: dict[str, dict], folder: str, **arguments) -> tuple[float, StepClock]:
    """Seconds of one run, and when its steps ended."""
    model = MultiTaskModel.from_backbone(DEFAULT_BACKBONE, settings)
    model.backbone.requires_grad_(False)
    quiet = {
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "learning_rate": 1e-3,
    }
    clock = StepClock()
    arguments = MultiTaskTrainingArguments(output_dir=folder, **quiet, **arguments)
    trainer = MultiTaskTrainer(model, arguments, sets, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started, clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--rows", type=int, help="training rows of each set (all)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--sentences_without", type=int, default=4096, help="timed without the cache, per batch size")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    sets, settings = load(options.data_root, options.rows)
    train_sets = [entry.splits["train"] for entry in sets]
    rows = sum(map(len, train_sets))

    model = MultiTaskModel.from_backbone(DEFAULT_BACKBONE, settings)
    distinct = list(dict.fromkeys(text for window in sentence_windows(train_sets) for text in window))
    model.encode(distinct[:64], normalize=False)
    started = time.perf_counter()
    model.encode(distinct, normalize=False, show_progress=False)
    one_pass = time.perf_counter() - started

    table = []
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        started = time.perf_counter()
        cache = open_features(model)
        cache_sentences(cache, model, lambda: sentence_windows(train_sets), show_progress=False)
        filling = time.perf_counter() - started
        size = sum(path.stat().st_size for path in cache.folder.iterdir()) / 1e6
        for batch_size in options.batch_sizes:
            second, clock = train(
                sets, settings, folder, num_train_epochs=options.epochs, per_device_train_batch_size=batch_size
            )
            num_steps = len(clock.ends)
            timed = min(max(3, options.sentences_without // batch_size), num_steps - WARM_UP_STEPS)
            _, clock = train(
                sets,
                settings,
                folder,
                max_steps=WARM_UP_STEPS + timed,
                per_device_train_batch_size=batch_size,
                feature_cache=False,
            )
            step = (clock.ends[-1] - clock.ends[WARM_UP_STEPS - 1]) / timed
            first, without = filling + second, step * num_steps
            table.append(
                [
                    batch_size,
                    f"{first:.1f} s",
                    f"{first / one_pass:.2f}",
                    f"{second:.1f} s",
                    f"{1000 * second / num_steps:.2f} ms",
                    f"{without:.0f} s ({timed} steps timed)",
                    f"{without / first:.1f}",
                    f"{without / second:.1f}",
                ]
            )
    header = [
        "batch",
        "first run",
        "/ one pass",
        "second run",
        "a step",
        "without, extrapolated",
        "/ first",
        "/ second",
    ]
    print(  # noqa: T201 - what this command is for
        f"{rows} training rows, {len(distinct)} distinct sentences, {options.epochs} epochs, two heads, "
        f"{torch.get_num_threads()} threads. One encoding pass: {one_pass:.1f} s "
        f"({len(distinct) / one_pass:.0f} sentences/s). Filling the cache: {filling:.1f} s, {size:.1f} MB.\n"
    )
    print(tabulate(table, header))  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
