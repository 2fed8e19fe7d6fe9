"""Does balancing the losses beat their plain sum? Every method trains a small trio for the same number of steps.

    python benchmarks/balancing.py --data_root DATA [--seeds 1 2 3] [--methods sum uncertainty dwa famo pcgrad]
        [--epochs 3] [--max_steps N] [--bf16] [--results runs/benchmark_balancing.jsonl]

DATA holds umsab_english_sentiment, trec and stsb as folders with train, validation and test.parquet. All loss weights
are 1, so that no method is helped by weights that were chosen for it. The checkpoint with the best mean of the
validation scores is kept, and the test split is read once at the end of each run. Every run is printed as it ends and
appended to the results file; runs that stand in it already with the same settings are not repeated, so that an
interrupted benchmark goes on.

A method would replace the plain sum as the default only if its mean validation score were higher beyond the noise:
the table gives the difference to the sum with the same seed, its mean and its standard deviation over seeds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate
from transformers import TrainerCallback, set_seed

from multitask_sentence.data.loading.tasks import load_tasks
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.balancing.settings import METHODS
from multitask_sentence.training.evaluation.scores import combined_score
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE, load_recipe
from multitask_sentence.training.recipe.starting import new_tasks
from multitask_sentence.training.report.results import scores_by_task
from multitask_sentence.training.trainer import MultiTaskTrainer

TASKS: dict[str, dict[str, Any]] = {
    "sentiment": {
        "problem_type": "single_label_classification",
        "columns": {"sentence": "text", "label": "label_name"},
        "metrics": ["macro_recall"],
    },
    "question": {
        "problem_type": "single_label_classification",
        "columns": {"sentence": "text", "label": "label_name"},
        "metrics": ["accuracy"],
    },
    "similarity": {
        "problem_type": "similarity",
        "columns": {"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"},
    },
}
FOLDERS = {"sentiment": "umsab_english_sentiment", "question": "trec", "similarity": "stsb"}
SPLITS = ("train", "validation", "test")
DEFAULT_METHODS = ("sum", "uncertainty", "dwa", "famo", "pcgrad")


class StepTimer(TrainerCallback):
    """Seconds from the beginning to the end of each optimizer step, FAMO's second pass included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self._now() - self.started)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What runs have to share to be compared."""
    names = ("backbone", "epochs", "max_steps", "bf16")
    return {**{name: getattr(options, name) for name in names}, "data_root": str(options.data_root.resolve())}


def known_runs(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs of these settings that stand in the results file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [result for result in map(json.loads, lines) if result.items() >= settings(options).items()]


def run(method: str, seed: int, options: argparse.Namespace, recipe: Any, loaded: Any) -> dict[str, Any]:
    """Train once; primary metrics by split and task, and the median seconds of a step."""
    set_seed(seed)
    model = MultiTaskModel.from_backbone(recipe.backbone, new_tasks(recipe, loaded), max_length=128)
    with tempfile.TemporaryDirectory() as folder:
        arguments = MultiTaskTrainingArguments(
            output_dir=folder,
            seed=seed,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            bf16=options.bf16,
            use_cpu=options.bf16 and not torch.cuda.is_available(),
            learning_rate=5e-5,
            head_learning_rate=1e-3,
            save_total_limit=1,
            keep_best_of_tasks=False,
            disable_tqdm=True,
            logging_strategy="no",
        )
        timer = StepTimer()
        trainer = MultiTaskTrainer(model, arguments, loaded.sets, callbacks=[timer], balancing=method)
        trainer.train()
        metrics = {"validation": trainer.evaluate(), "test": trainer.evaluate("test", metric_key_prefix="test")}
    tasks = model.config.tasks
    scores = {
        split: scores_by_task(found, "eval" if split == "validation" else split, tasks)
        for split, found in metrics.items()
    }
    return {
        "method": method,
        "seed": seed,
        **settings(options),
        "steps": trainer.state.global_step,
        "seconds_per_step": statistics.median(timer.seconds),
        "scores": {
            split: {
                **{task: found[task][tasks[task].primary_metric] for task in tasks},
                "mean": combined_score(tasks, found),
            }
            for split, found in scores.items()
        },
    }


def plus_minus(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def table(results: list[dict[str, Any]], split: str) -> str:
    """A line per method: each task's score, their mean, the difference to the sum, and the cost of a step."""
    sums = {result["seed"]: result for result in results if result["method"] == "sum"}
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [result for result in results if result["method"] == method]
        names = [*TASKS, "mean"]
        row = [method, len(runs), *(plus_minus([result["scores"][split][name] for result in runs]) for name in names)]
        paired = [(result, sums[result["seed"]]) for result in runs if result["seed"] in sums and method != "sum"]
        if paired:
            gains = [result["scores"][split]["mean"] - base["scores"][split]["mean"] for result, base in paired]
            ratios = [result["seconds_per_step"] / base["seconds_per_step"] for result, base in paired]
            row += [plus_minus(gains), f"{statistics.mean(ratios):.2f}"]
        rows.append(row)
    header = ["method", "runs", *TASKS, "mean", "mean minus sum", "seconds a step / sum"]
    return f"{split}, mean ± standard deviation over seeds\n" + tabulate(rows, header, disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS, choices=METHODS)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("runs/benchmark_balancing.jsonl"))
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            task: {
                **settings,
                "dataset": {
                    "path": "parquet",
                    "data_files": {split: f"{FOLDERS[task]}/{split}.parquet" for split in SPLITS},
                },
            }
            for task, settings in TASKS.items()
        }
        path = Path(folder, "trio.yaml")
        path.write_text(
            yaml.safe_dump({"backbone": options.backbone, "tasks": tasks}, sort_keys=False), encoding="utf-8"
        )
        recipe = load_recipe(path)
        loaded = load_tasks(recipe.sources, options.data_root, seed=0)

    results = known_runs(options.results, options)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for method in options.methods:
            if any((result["method"], result["seed"]) == (method, seed) for result in results):
                continue
            results.append(run(method, seed, options, recipe, loaded))
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
            print(json.dumps(results[-1]), flush=True)  # noqa: T201 - what this command is for
    for split in ("validation", "test"):
        print("\n" + table(results, split))  # noqa: T201


if __name__ == "__main__":
    main()
