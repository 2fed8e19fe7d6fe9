"""Mutated recipes through everything that is checked before data is loaded: each passes, or is refused in one line.

    python tests/helpers/recipe_fuzz.py --mutations 6000 --seed 1      # prints a table, and every kind of crash once

A mutation is a whole file, so that it can be shown and tried again. Half of them change the tree (a value, a key, a
type, an entry), half the text (tags, anchors, indentation, bytes). `Fuzzer` makes them from a seed; `outcome_of` runs
one; tests/test_recipe_fuzz.py runs a few hundred.
"""

import argparse
import contextlib
import copy
import io
import os
import random
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.errors import StrictDataclassError

from multitask_sentence.training.card.metadata import read_source
from multitask_sentence.training.recipe.before_data import check_before_data
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser
from multitask_sentence.training.recipe.yaml_file import read_yaml

REFUSED = (ValueError, TypeError, OSError, ImportError, StrictDataclassError)  # what the command ends with one line
LONGEST_MESSAGE = 12_000  # one that repeats a value of 5,000 characters

TEXT_TASK = {
    "problem_type": "single_label_classification",
    "dataset": {"path": "csv", "data_files": {"train": "texts.csv", "test": ["a.csv", "b.csv"]}, "delimiter": ";"},
    "columns": {"sentence": "text", "label": "topic"},
    "labels": ["animals", "money", "weather"],
    "validation_split": 0.1,
    "head": {"hidden_dims": [8], "activation": "relu", "dropout": 0.1},
    "loss": "cross_entropy",
    "loss_options": {"class_weights": {"animals": 1.0, "money": 2.0, "weather": 0.5}, "label_smoothing": 0.1},
    "loss_weight": 1.0,
    "metrics": ["accuracy", "macro_f1"],
}
PAIR_DATA = {"dataset": {"path": "user/pairs", "name": "english", "splits": {"train": "train", "validation": "dev"}}}
TRAINING = {
    "output_dir": "nowhere/result",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1e-4,
    "head_learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 0.5},
    "eval_strategy": "steps",
    "eval_steps": 10,
    "save_strategy": "steps",
    "save_steps": 10,
    "save_total_limit": 2,
    "metric_for_best_model": "eval_score",
    "early_stopping_patience": 3,
    "report_to": "none",
    "seed": 42,
    "use_cpu": True,
}
BASES = [
    {
        "pooling": "mean",
        "projection": {"out_features": 24, "bias": True, "activation": "tanh"},
        "normalize": True,
        "max_length": 20,
        "tasks": {
            "topic": TEXT_TASK,
            "tags": {
                "problem_type": "multi_label_classification",
                "dataset": {"path": "json", "data_files": "tags.jsonl"},
                "columns": {"sentence": "text", "label": ["red", "green"]},
                "loss_options": {"pos_weight": "balanced"},
                "augmentation": {"method": "copy.copy", "share": 0.5},
            },
            "stars": {
                "problem_type": "regression",
                "dataset": {"path": "parquet", "data_files": {"train": "stars.parquet"}},
                "columns": {"sentence1": "a", "sentence2": "b", "label": "stars"},
            },
            "alike": {
                "problem_type": "similarity",
                **PAIR_DATA,
                "columns": {"sentence1": "a", "sentence2": "b", "label": "score"},
                "loss": "cosent",
                "loss_options": {"temperature": 0.05},
                "score_range": [0, 5],
            },
            "search": {
                "problem_type": "contrastive",
                **PAIR_DATA,
                "columns": {"anchor": "a", "positive": "b", "negative": ["c", "d"]},
                "loss_options": {"symmetric": True},
            },
        },
        "drop_held_out": True,
        "mixture": {
            "sampling": "temperature",
            "temperature": 3,
            "max_rows": {"topic": 100},
            "epoch_rows": 50,
            "batches": "mixed",
            "rows_per_batch": {"alike": 4},
        },
        "balancing": {"method": "uncertainty", "lr": 0.01},
        "training": TRAINING,
        "card": {"language": ["en", "de"], "license": "apache-2.0"},
    },
    {
        "tasks": {"topic": TEXT_TASK, "other": {**TEXT_TASK, "columns": {"sentence": "title", "label": "other"}}},
        "mixture": {"sampling": "rates", "rates": {"topic": 0.5, "other": 0.5}},
        "strategy": {
            "freeze": ["embeddings", {"heads": ["other"]}],
            "learning_rates": {"backbone": 1e-5, "topic": 1e-3},
            "layer_decay": 0.9,
            "unfreeze": [{"epochs": 1, "train": "heads"}, {"train": "all", "learning_rates": {"backbone": 1e-6}}],
        },
        "training": {"use_cpu": True, "output_dir": "nowhere/result", "num_train_epochs": 3},
    },
    {
        "tasks": {"topic": TEXT_TASK},
        "peft": {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["query"], "save": "merged"},
        "training": {"use_cpu": True, "output_dir": "nowhere/result"},
    },
]
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e308, 1e-320, float("inf"), float("-inf"), float("nan")),
    *(2**31, 2**63 - 1, 2**63, -(2**64), 10**400, 10**18),
    *("", " ", "a", "x" * 5000, "no", "1e-1", "1" * 400, "none", "all", "balanced", "backbone", "heads", "steps"),
    *("\0", "a\0b", "\x1b[31m", "\ud83d", "\u202e", "é", "a\nb", "\t", "🙂", "{", "{}", "[", '{"a": 1}', "%s", "{x}"),
    *(".", "..", "/", "/dev/null", "~", "~nobody/x", "a/b/c", "a/b", "a b/c", "https://example.org/x", "x" * 300),
    *([], [None], [[]], [1, 2, 3], ["a"], ["a", "a"], [{}], [True, False], ["a", 1, None], list(range(500))),
    *({}, {"": ""}, {1: 2}, {None: None}, {"a": "b"}, {"a": {"b": {"c": []}}}, {"topic": 1}, {"topic": float("nan")}),
    *({"method": "sum"}, {"heads": ["topic"]}, {"layers": 1}, {"layers": -1}, {"top_layers": 99}),
]
SCALARS = [
    *("!!bool maybe", "!!int x", "!!int ''", "!!float x", "!!null x", "!!str 5", "!!binary x", "!!timestamp x"),
    *("!!set {a}", "!!omap [a: b]", "!!pairs [a: b]", "!!map x", "!!seq x", "!!map [a]", "!!seq {a: b}", "!mine x"),
    *("!!python/name:os.system", "!!python/object/apply:os.getcwd []", "!<tag:x,2000:y> z", "! x", "!!", "!!merge x"),
    *(
        "&a [*a]",
        "&b {c: *b}",
        "*missing",
        "&x",
        "{<<: 5}",
        "{<<: [1]}",
        "{<<: {a: 1}}",
        "{? [a] : b}",
        "{? {a: b} : c}",
    ),
    *(
        "2001-13-45",
        "2001-01-01",
        "12:30:45",
        "190:20:30.5",
        "0x",
        "0x1F",
        "0o17",
        "017",
        "0b11",
        "1_000",
        "1__0",
        "_",
    ),
    *(
        "1e99999",
        "-1e-99999",
        ".nan",
        "-.inf",
        "1.",
        ".5",
        "+",
        "-",
        "~",
        "=",
        "<<",
        "null",
        "Null",
        "yes",
        "On",
        "TRUE",
    ),
    *(
        "'open",
        '"open',
        '"\\x"',
        '"\\ud83d"',
        '"\\0"',
        "[",
        "]",
        "{",
        "}",
        "|",
        "|2",
        ">-",
        "? a",
        "- a",
        "a: b: c",
        "@a",
    ),
    *(
        "`a`",
        "%a",
        "#",
        ",",
        "[,]",
        "{,}",
        "[a, , b]",
        "7" * 400,
        "7" * 5000,
        "[" * 60 + "]" * 60,
        "[" * 2000 + "]" * 2000,
    ),
]


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """The paths to everything in a tree but its root."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*place, key)
        yield from _places(entry, (*place, key))


class Fuzzer:
    """Recipes as bytes, the same ones for a seed; `backbone` is the encoder that they name."""

    def __init__(self, backbone: str, seed: int):
        self.random = random.Random(seed)
        self.bases = [{"backbone": backbone, **base} for base in BASES]

    def mutation(self) -> tuple[str, bytes]:
        """What was changed, in words, and the file."""
        tree, said = copy.deepcopy(self.random.choice(self.bases)), []
        if self.random.random() < 0.5:
            for _ in range(self.random.choice([1, 1, 1, 2, 3])):
                said.append(self._change_tree(tree))
            return "; ".join(said), self._dumped(tree).encode("utf-8", "surrogatepass")
        text = self._dumped(tree)
        for _ in range(self.random.choice([1, 1, 2])):
            what, text = self._change_text(text)
            said.append(what)
        if self.random.random() < 0.2:
            what, data = self._change_bytes(text)
            return "; ".join([*said, what]), data
        return "; ".join(said), text.encode("utf-8", "surrogatepass")

    def _dumped(self, tree: Any) -> str:
        return yaml.safe_dump(tree, sort_keys=False, width=1000)

    def _change_tree(self, tree: dict[str, Any]) -> str:
        place = self.random.choice(list(_places(tree)))
        holder = tree
        for key in place[:-1]:
            holder = holder[key]
        key, where = place[-1], ".".join(map(str, place))
        kind = self.random.choice(["value", "value", "value", "value", "wrapped", "gone", "key", "other key", "moved"])
        value = copy.deepcopy(self.random.choice(VALUES))
        if kind == "value":
            holder[key] = value
        elif kind == "wrapped":
            holder[key] = self.random.choice(
                [[holder[key]], {"a": holder[key]}, [holder[key], value], str(holder[key])]
            )
        elif kind == "gone":
            del holder[key]
        elif kind == "moved":
            source = tree
            for part in (other := self.random.choice(list(_places(tree)))):
                source = source[part]
            holder[key], where = copy.deepcopy(source), f"{where} from {'.'.join(map(str, other))}"
        elif isinstance(holder, dict):
            name = value if isinstance(value, str | int | float | None) else "a"
            entries = [(name if entry == key else entry, content) for entry, content in holder.items()]
            if kind == "other key":
                entries = [*holder.items(), (name, copy.deepcopy(self.random.choice(VALUES)))]
            holder.clear()
            holder.update(entries)
        return f"{kind} at {where}"

    def _change_text(self, text: str) -> tuple[str, str]:
        lines = text.splitlines()
        number = self.random.randrange(len(lines))
        kind = self.random.choice(
            ["scalar", "scalar", "scalar", "gone", "twice", "indented", "swapped", "cut", "inserted"]
        )
        if kind == "scalar":
            head, colon, _ = lines[number].partition(": ")
            scalar = self.random.choice(SCALARS)
            lines[number] = f"{head}{colon}{scalar}" if colon else f"{lines[number].split('- ')[0]}- {scalar}"
            kind += f" {scalar[:20]}"
        elif kind == "gone":
            del lines[number]
        elif kind == "twice":
            lines.insert(number, lines[number])
        elif kind == "indented":
            lines[number] = " " * self.random.choice([0, 1, 2, 3, 9]) + lines[number].strip()
        elif kind == "swapped":
            other = self.random.randrange(len(lines))
            lines[number], lines[other] = lines[other], lines[number]
        elif kind == "cut":
            lines[number] = lines[number][: self.random.randrange(len(lines[number]) + 1)]
            lines = lines[: number + 1] if self.random.random() < 0.5 else lines
        else:
            place = self.random.randrange(len(lines[number]) + 1)
            character = self.random.choice(
                [*":-[]{},&*#?|>%@`!'\"\t\0\x07\x85\u2028\ufeff\ud800é", "---\n", "\n...\n"]
            )
            lines[number] = lines[number][:place] + character + lines[number][place:]
            kind += f" {character!r}"
        return f"{kind} in line {number + 1}", "\n".join(lines) + "\n"

    def _change_bytes(self, text: str) -> tuple[str, bytes]:
        data = text.encode("utf-8", "surrogatepass")
        kind = self.random.choice(["mark", "utf-16", "latin-1", "crlf", "cut", "byte", "empty", "blank", "twice"])
        place = self.random.randrange(len(data) + 1)
        return kind, {
            "mark": b"\xef\xbb\xbf" + data,
            "utf-16": text.encode("utf-16", "surrogatepass"),
            "latin-1": data + "# é\n".encode("latin-1"),
            "crlf": data.replace(b"\n", b"\r\n"),
            "cut": data[:place],
            "byte": data[:place] + bytes([self.random.randrange(256)]) + data[place:],
            "empty": b"",
            "blank": b"\n# nothing\n---\n",
            "twice": data + b"---\n" + data,
        }[kind]


def check(recipe: Path) -> None:
    """Everything that train.py checks before it loads data, and what the card later reads of the recipe."""
    options, read, arguments = RecipeArgumentParser().parse([str(recipe), "--check"])
    check_before_data(options, read, arguments)
    for task in read_yaml(recipe)[1]["tasks"].values():
        read_source(task, recipe.parent)
    ModelCardData(**read.card).to_yaml()


def outcome_of(recipe: Path) -> tuple[str, str]:
    """`passed`, `refused`, or what is wrong, with the message or the end of the stack trace."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(recipe)
    except REFUSED as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        message = str(cause)
        if not message.strip():
            return f"{type(error).__name__} without a word", traceback.format_exc()
        if "\n" in message.replace("a\nb", ""):  # which is a value of ours
            return "refused in several lines", message
        return ("refused" if len(message) <= LONGEST_MESSAGE else "refused at too great length"), message
    except (Exception, SystemExit) as error:
        return f"crashed: {type(error).__name__}", traceback.format_exc()
    return "passed", ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Try mutated recipes.")
    parser.add_argument("--mutations", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backbone", required=True, help="An encoder to name in the recipes, best a tiny one.")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    fuzzer, counts, shown = Fuzzer(options.backbone, options.seed), Counter(), set()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        recipe = Path(folder, "mutated.yaml")
        for number in range(options.mutations):
            what, data = fuzzer.mutation()
            recipe.write_bytes(data)
            outcome, message = outcome_of(recipe)
            counts[outcome] += 1
            key = (
                (outcome, *message.splitlines()[-4:-2]) if outcome.startswith("crashed") else (outcome, message[-60:])
            )
            if outcome not in ("passed", "refused") and key not in shown:
                shown.add(key)
                print(f"--- {number}: {what}\n{outcome}\n{message[-1500:]}\n", flush=True)  # noqa: T201
    for outcome, count in counts.most_common():
        print(f"{count:6}  {outcome}")  # noqa: T201
    sys.exit(any(outcome not in ("passed", "refused") for outcome in counts))


if __name__ == "__main__":
    main()
