"""Fine-tuning strategies side by side: scores, what moved, time and memory, from the same start on the same data.

    python benchmarks/strategies.py --data_root FOLDER
    python benchmarks/strategies.py --data_root FOLDER --backbone all-mpnet-base-v2 --strategies full gradual
    python benchmarks/strategies.py --data_root FOLDER -- --bf16 --use_cpu      # what follows -- goes to train.py

FOLDER holds umsab_english_sentiment/, trec/ and stsb/, each with train.parquet, validation.parquet and test.parquet.
Every strategy is one run of train.py in a process of its own, and continues the same untrained model, so that heads
start from the same numbers. A run that has finished is not repeated, and the output folder takes runs of the same
settings only. Ends with two tables, a picture and
strategies.json in the output folder; choose by the validation scores, the test scores are there to be reported.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate

from multitask_sentence import MultiTaskModel
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
TASKS: dict[str, dict[str, Any]] = {
    "sentiment": {
        "problem_type": "single_label_classification",
        "labels": ["negative", "neutral", "positive"],
        "head": {"hidden_dims": [256], "activation": "relu", "dropout": 0.1},
        "metrics": ["macro_recall"],
    },
    "topic": {
        "problem_type": "single_label_classification",
        "labels": ["abbreviation", "description", "entity", "human", "location", "number"],
        "metrics": ["accuracy"],
    },
    "similarity": {"problem_type": "similarity", "score_range": [0, 5], "metrics": ["cosine_spearman"]},
}
DATA: dict[str, tuple[str, dict[str, str]]] = {
    "sentiment": ("umsab_english_sentiment", {"sentence": "text", "label": "label_name"}),
    "topic": ("trec", {"sentence": "text", "label": "label_name"}),
    "similarity": ("stsb", {"sentence1": "sentence1", "sentence2": "sentence2", "label": "score"}),
}
LORA_TARGETS = {"bert": ["query", "key", "value"], "mpnet": ["q", "k", "v"]}
LORA_LEARNING_RATE = (
    1e-3  # adapters start from zero and are small: the usual rate is some ten times that of full training
)


def strategies(num_layers: int, model_type: str, epochs: int) -> dict[str, dict[str, Any]]:
    """What each strategy adds to the recipe."""
    stage = epochs / 3
    return {
        "all frozen": {"strategy": {"freeze": "all"}},
        "backbone frozen": {"strategy": {"freeze": "backbone"}},
        "topic head frozen": {"strategy": {"freeze": [{"heads": ["topic"]}]}},
        "sentiment head frozen": {"strategy": {"freeze": [{"heads": ["sentiment"]}]}},
        "gradual unfreezing": {
            "strategy": {
                "unfreeze": [
                    {"epochs": stage, "train": "heads"},
                    {"epochs": stage, "train": [{"top_layers": num_layers // 2}]},
                    {"train": "all"},
                ]
            }
        },
        "layer-wise decay": {"strategy": {"layer_decay": 0.8}},
        "LoRA": {
            "peft": {"r": 8, "lora_alpha": 16, "target_modules": LORA_TARGETS.get(model_type, "all-linear")},
            "training": {"learning_rate": LORA_LEARNING_RATE},
        },
        "full": {},
    }


def recipe(
    start: Path, data_root: Path, epochs: int, max_rows: int | None, seed: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """The recipe of one run."""
    tasks = {}
    for name, settings in TASKS.items():
        folder, columns = DATA[name]
        files = {split: str(data_root / folder / f"{split}.parquet") for split in ("train", "validation", "test")}
        tasks[name] = {**settings, "dataset": {"path": "parquet", "data_files": files}, "columns": columns}
    training = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-4,
        "head_learning_rate": 1e-3,
        "seed": seed,
    }
    return {
        "continue_from": str(start),
        "tasks": tasks,
        **({"mixture": {"max_rows": dict.fromkeys(tasks, max_rows)}} if max_rows else {}),
        **{key: value for key, value in changes.items() if key != "training"},
        "training": {**training, **changes.get("training", {})},
    }


def keep_settings(options: argparse.Namespace) -> None:
    """Write what all runs of the output folder share, and refuse to go on with other settings."""
    names = ("backbone", "epochs", "max_rows", "seed", "arguments")
    settings = {**{name: getattr(options, name) for name in names}, "data_root": str(options.data_root.resolve())}
    file = options.output_dir / "settings.json"
    if not file.is_file() and not (options.output_dir / "start").exists():
        options.output_dir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings), encoding="utf-8")
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [name for name in settings if settings[name] != earlier.get(name, "unknown")]
    if changed:
        said = "; ".join(f"{name} {earlier.get(name, 'unknown')!r}, now {settings[name]!r}" for name in changed)
        sys.exit(f"{options.output_dir} holds runs with other settings: {said}. Name another --output_dir.")


def run_strategy(name: str, content: dict[str, Any], folder: Path, arguments: list[str]) -> dict[str, Any]:
    """One run in a process of its own, unless it has finished before; its results, and its peak memory in MB."""
    measured = folder.with_suffix(".json")
    if not measured.is_file():
        file = folder.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        print(f"\n{name}: {' '.join(arguments)}", flush=True)  # noqa: T201 - what this command is for
        command = [sys.executable, str(TRAIN), str(file), "--output_dir", str(folder), "--overwrite", *arguments]
        with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name} failed; the last lines of {log.name}:\n" + Path(log.name).read_text()[-2000:])
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        kibibytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)  # macOS gives bytes
        results["peak_memory"] = kibibytes / 1024
        measured.write_text(json.dumps(results), encoding="utf-8")
    return json.loads(measured.read_text(encoding="utf-8"))


def what_moved(start: Path, end: Path) -> dict[str, float]:
    """By part, the length of the change of its weights over the length of its weights at the start."""
    before, after = (MultiTaskModel.from_pretrained(folder).parts() for folder in (start, end))
    moved = {}
    for part, parameters in before.items():
        change = sum((after[part][name] - weights).double().square().sum() for name, weights in parameters.items())
        length = sum(weights.double().square().sum() for weights in parameters.values())
        moved[part] = (change / length).sqrt().item()
    return moved


def groups_of(parts: list[str]) -> dict[str, list[str]]:
    """Columns of the table: embeddings, the lower, middle and upper layers, and each head."""
    layers = [part for part in parts if part.startswith("layers.")]
    third = max(len(layers) // 3, 1)
    thirds = [layers[:third], layers[third : 2 * third], layers[2 * third :]]
    named = {f"layers {part[0].split('.')[1]}-{part[-1].split('.')[1]}": part for part in thirds if part}
    rest = {part.removeprefix("heads."): [part] for part in parts if part not in layers}
    return {"embeddings": rest.pop("embeddings"), **named, **rest} if "embeddings" in rest else {**named, **rest}


def training_seconds(results: dict[str, Any]) -> float:
    """Seconds of training without loading and final evaluation; 0 where nothing was trained."""
    return next((entry["train_runtime"] for entry in results["history"] if "train_runtime" in entry), 0.0)


def score(results: dict[str, Any], split: str, task: str) -> float:
    return 100 * results["scores"][split][task][TASKS[task]["metrics"][0]]


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Scores and cost by strategy, then how far each part moved."""
    rows = []
    for name, results in found.items():
        idle = set(results.get("only_evaluated", []))
        cells = [
            f"{score(results, 'validation', task):.1f} / {score(results, 'test', task):.1f}" + " *" * (task in idle)
            for task in TASKS
        ]
        means = [sum(score(results, split, task) for task in TASKS) / len(TASKS) for split in ("validation", "test")]
        rows.append(
            [
                name,
                *cells,
                f"{means[0]:.1f} / {means[1]:.1f}",
                f"{training_seconds(results):.0f}",
                f"{results['peak_memory']:.0f}",
            ]
        )
    header = ["validation / test", *TASKS, "mean", "training, s", "peak memory, MB"]
    groups = groups_of(list(next(iter(found.values()))["moved"]))
    moved = [
        [name, *(f"{max(results['moved'][part] for part in parts):.3f}" for parts in groups.values())]
        for name, results in found.items()
    ]
    return (
        tabulate(rows, header, disable_numparse=True, tablefmt="github")
        + "\n* only evaluated: nothing that its answers come from was trained\n\n"
        + tabulate(moved, ["relative change of weights", *groups], disable_numparse=True, tablefmt="github")
    )


def draw(path: Path, found: dict[str, dict[str, Any]]) -> None:
    """Validation scores, time and movement by strategy."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(found)
    figure, (scores, seconds, moved) = plt.subplots(1, 3, figsize=(16, 0.5 * len(names) + 2), sharey=True)
    for task in TASKS:
        values = [score(results, "validation", task) for results in found.values()]
        scores.plot(values, range(len(names)), "o", label=f"{task}: {TASKS[task]['metrics'][0].replace('_', ' ')}")
    scores.set(title="Validation score", yticks=range(len(names)), yticklabels=names)
    scores.invert_yaxis()
    scores.grid(axis="x", alpha=0.3)
    scores.legend(loc="lower left", fontsize=8)
    seconds.barh(range(len(names)), [training_seconds(results) for results in found.values()], color="0.6")
    seconds.set(title="Training, seconds")
    parts = [part for part in found[names[0]]["moved"] if not part.startswith("heads.")]
    matrix = [[results["moved"][part] for part in parts] for results in found.values()]
    image = moved.imshow(matrix, aspect="auto", cmap="Blues")
    moved.set(title="Relative change of the backbone's weights")
    moved.set_xticks(range(len(parts)), parts, rotation=45, ha="right", fontsize=8)
    figure.colorbar(image, ax=moved)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--strategies", nargs="+", help="Words that the strategies' names hold; all without it.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max_rows", type=int, help="At most so many training rows of each task.")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/strategies"))
    parser.add_argument("arguments", nargs="*", help="Arguments of train.py, after --.")
    options = parser.parse_args()

    keep_settings(options)
    torch.manual_seed(options.seed)
    start = options.output_dir / "start"
    if not (start / "config.json").is_file():
        MultiTaskModel.from_backbone(options.backbone, tasks=TASKS, max_length=128).save_pretrained(start)
    config = MultiTaskModel.from_pretrained(start).config.backbone_config
    chosen = {
        name: changes
        for name, changes in strategies(config.num_hidden_layers, config.model_type, options.epochs).items()
        if options.strategies is None or any(word in name for word in options.strategies)
    }
    if not chosen:
        parser.error(f"no strategy's name holds {' or '.join(options.strategies)}")

    found, began = {}, time.time()
    for name, changes in chosen.items():
        folder = (options.output_dir / name.replace(" ", "_")).resolve()
        content = recipe(
            start.resolve(), options.data_root.resolve(), options.epochs, options.max_rows, options.seed, changes
        )
        results = run_strategy(name, content, folder, options.arguments)
        results["moved"] = what_moved(start, folder)
        found[name] = results
        (options.output_dir / "strategies.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        line = ", ".join(f"{task} {score(results, 'validation', task):.1f}" for task in TASKS)
        print(f"{name}: validation {line}; {time.time() - began:.0f} s so far", flush=True)  # noqa: T201
    draw(options.output_dir / "strategies.png", found)
    print("\n" + tables(found))  # noqa: T201


if __name__ == "__main__":
    main()
