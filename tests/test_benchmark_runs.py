"""Benchmarks do not take the runs of other settings for theirs, take turns fairly, and show every model."""

import argparse
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sentence_transformers import SentenceTransformer

from helpers.benchmarks import ARGUMENTS, BENCHMARKS, SHORT
from multitask_sentence import MultiTaskModel
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--epochs", "1"], "epochs 3, now 1"),
        (["--backbone", "another"], r"backbone 'sentence.*', now 'another'"),
        (["--data_root", "elsewhere"], r"data_root '.*', now '.*elsewhere'"),
        (["--max_rows", "5"], "max_rows None, now 5"),
        (["--seed", "1"], "seed 42, now 1"),
        (["--", "--bf16"], r"arguments \[\], now \['--bf16'\]"),
    ],
)
def test_strategies_do_not_mix_runs_of_other_settings(
    load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[str], said: str
) -> None:
    strategies = load("strategies")
    options = {"backbone": DEFAULT_BACKBONE, "epochs": 3, "max_rows": None, "seed": 42, "arguments": []}
    first = argparse.Namespace(**options, data_root=tmp_path, output_dir=tmp_path / "runs")
    strategies.keep_settings(first)
    strategies.keep_settings(first)  # an interrupted benchmark goes on
    arguments = ["--data_root", str(tmp_path), "--output_dir", str(tmp_path / "runs"), *changed]
    monkeypatch.setattr(sys, "argv", ["strategies.py", *arguments])
    with pytest.raises(SystemExit, match=said):
        strategies.main()


def test_balancing_takes_only_runs_of_the_same_settings(load: Callable, tmp_path: Path) -> None:
    balancing = load("balancing")
    options = argparse.Namespace(backbone="one", data_root=tmp_path, epochs=3.0, max_steps=-1, bf16=False)
    own = {"method": "sum", "seed": 1, **balancing.settings(options)}
    others = [{**own, "backbone": "two"}, {**own, "data_root": "elsewhere"}, {"method": "sum", "epochs": 3.0}]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*others, own]), encoding="utf-8")
    assert balancing.known_runs(path, options) == [own]


def test_contenders_of_the_latency_take_turns_at_going_first(
    load: Callable, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, int]] = []

    def noting(kind: type, name: str, side: str) -> None:
        method = getattr(kind, name)

        def call(self: object, *args: object, **kwargs: object) -> object:
            called.append((side, id(self)))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    noting(MultiTaskModel, "encode", "ours")
    noting(MultiTaskModel, "predict", "predict")
    noting(SentenceTransformer, "encode", "theirs")
    load("latency").main([*SHORT, *ARGUMENTS["latency"], "--backbone", tiny_backbone])
    sides = [side for side, _ in called]
    firsts = sides[::3]
    assert len(set(firsts)) == 3 and all(len(set(sides[place : place + 3])) == 3 for place in range(0, len(sides), 3))
    assert len(set(called)) == 3, "predict has a model of its own"


@pytest.mark.parametrize("section", ["engines", "latency", "cold_start,server"])
def test_serving_without_the_contender_that_gives_the_right_numbers_is_refused(
    load: Callable, section: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        load("serving").main(["folder", "--sections", section, "--contenders", "ONNX float32"])
    assert "--contenders lacks torch float32" in capsys.readouterr().err


def test_runs_of_one_name_are_told_apart(load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"split": ["validation", "test"] * 20, "label": ["a"] * 40, "prediction": ["a"] * 40}
    folders = [tmp_path / name / "run" for name in ("one", "other")]
    for folder in folders:
        (folder / "predictions").mkdir(parents=True)
        pd.DataFrame({**rows, "probabilities": [[0.9, 0.1]] * 40}).to_parquet(folder / "predictions/mood.parquet")
    arguments = [*map(str, folders), "--risks", "0.05", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["abstention.py", *arguments])
    load("abstention").main()
    assert list(json.loads((tmp_path / "out.json").read_text())) == list(map(str, folders))


def test_numbers_of_tasks_take_turns_at_going_first(load: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    scale, order = load("scale"), []

    def train_steps(folder: Path, backbone: str, labels: dict, rows: object, steps: int) -> tuple[float, float]:
        order.append(len(labels))
        return float(len(labels)), 1.0

    monkeypatch.setattr(scale, "train_steps", train_steps)
    contenders = {number: {f"task{place}": ["no", "yes"] for place in range(number)} for number in (1, 2)}
    cells = scale._in_turns(Path(), "", contenders, True, 1, 3)
    assert order == [1, 2, 2, 1, 1, 2] and cells[2][2] == "2.00 x"


@pytest.mark.parametrize(
    ("tasks", "shown"),
    [
        ({"mood": {"problem_type": "single_label_classification", "labels": ["a", "b"]}}, ["\nmood\n"]),
        ({"near": {"problem_type": "similarity"}}, ["\nnear\n"]),
        ({}, []),
    ],
)
def test_model_of_one_kind_of_task_is_shown(
    tasks: dict, shown: list[str], tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(tmp_path)
    runpy.run_path(str(BENCHMARKS.parent / "recipes" / "open_model.py"))["main"](str(tmp_path))
    printed = capsys.readouterr().out
    assert "M parameters" in printed and all(part in printed for part in shown)


SHARED = ("backbone", "data_root", "dtypes", "rounds", "threads", "sentences", "plot", "json")


@pytest.mark.parametrize("name", ["labelling", "padding", "scale", "steps", "streaming", "training"])
def test_benchmark_has_no_flag_that_it_does_not_read(name: str, load: Callable, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        load(name).main(["--help"])
    known = set(re.findall(r"^  --(\w+)", capsys.readouterr().out, re.MULTILINE))
    read = set(re.findall(r"options\.(\w+)", (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")))
    assert known & set(SHARED) == read & set(SHARED)
