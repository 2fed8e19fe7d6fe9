"""Each benchmark runs on a handful of sentences, and refuses to time wrong numbers."""

import http.server
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer, MPNetConfig, MPNetModel

from helpers.benchmarks import ARGUMENTS, SHORT
from multitask_sentence import MultiTaskModel, passes_multitask
from multitask_sentence import padding_free_multitask as padding_free_module
from multitask_sentence.commands import label
from multitask_sentence.export.folder import export_folder
from multitask_sentence.scope_multitask import Scope
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training.calibration.scope import fit_scope


@pytest.mark.usefixtures("drawn_pictures")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_benchmark_prints_a_table_and_draws_a_plot(
    name: str, load: Callable, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plot, tables = tmp_path / "plots" / f"{name}.png", tmp_path / "data" / f"{name}.json"
    files = ["--plot", str(plot), "--json", str(tables)]
    load(name).main([*SHORT, *ARGUMENTS[name], "--backbone", tiny_backbone, *files])
    printed = capsys.readouterr().out
    assert "ours" in printed
    assert " x " in printed, "a ratio"
    assert "%" in printed or name == "latency", "a share of the peak"
    assert "1 threads, torch" in printed
    assert plot.stat().st_size > 5000
    for title, rows in json.loads(tables.read_text()).items():
        assert title in printed
        assert rows and all(cell in printed for row in rows for cell in row.values())


@pytest.mark.slow
def test_scale_measures_rows_tasks_and_labels(
    load: Callable, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tables = tmp_path / "scale.json"
    sizes = ["--rows", "300", "--kinds", "csv", "--large_rows", "0", "--tasks", "1", "3", "--labels", "2", "9"]
    flags = ["--backbone", tiny_backbone, "--json", str(tables), "--folder", str(tmp_path)]
    parts = ["--parts", "rows", "held_out", "tasks", "labels"]
    load("scale").main(["--rounds", "1", "--threads", "1", "--steps", "5", *parts, *sizes, *flags])
    rows, held_out, tasks, labels = json.loads(tables.read_text()).values()
    assert [(row["rows"], row["file"], row["run"]) for row in rows] == [
        ("300", "csv", run) for run in ("first", "second")
    ]
    assert all(float(row["s of the processor"]) > 0 and int(row["MiB"]) > 50 for row in rows)
    assert [row["run"] for row in held_out] == ["first", "second"]
    assert [row["tasks"] for row in tasks] == ["1", "3", "1", "3"]
    assert [row["labels"] for row in labels] == ["2", "9"]


def test_labelling_is_measured_beside_predict_with_and_without_starting(
    load: Callable, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load("labelling")
    ended = benchmark.run_process(["-c", "held = bytearray(2**27); sum(range(10**6))"], threads=1)
    assert ended.cpu_seconds > 0 and ended.memory > 100
    with pytest.raises(RuntimeError, match="status 3"):
        benchmark.run_process(["-c", "raise SystemExit(3)"], threads=1)
    scripts = []

    def run_here(arguments: list[object], threads: int) -> object:
        """Instead of four starts of seconds each."""
        started, (flag, script, *rest) = time.perf_counter(), map(str, arguments)
        scripts.append(script)
        if flag == "-m":
            label.main(rest[1:])
        else:
            monkeypatch.setattr(sys, "argv", ["-c", *rest])
            exec(script, {})
        seconds = time.perf_counter() - started + 9
        return sys.modules["scale"].Run(seconds, seconds, 60)

    monkeypatch.setattr(benchmark, "run_process", run_here)
    rows = benchmark.measure(tmp_path, tiny_backbone, 400, [1], rounds=1, threads=1)
    names = ["predict, one call", "predict, in parts", "predict, a process", "label, 1 process"]
    assert [row[:2] for row in rows] == [
        [count, name] for count in ("100", "400", "the 300 between") for name in names
    ]
    assert scripts == [benchmark.PREDICT, "multitask_sentence"] * 2
    assert [row[4:6] for row in rows if row[1] == names[1]] == [["1.00 x", "1.00 x"]] * 3
    assert float(rows[7][4].split()[0]) < 0.5, "400 rows take less than the nine seconds of starting"


def test_streaming_reads_a_pass_both_ways_and_keeps_less_on_the_disk(
    load: Callable, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    benchmark, scale = load("streaming"), sys.modules["scale"]
    files = scale.write_rows(tmp_path / "train.csv", 40_000), scale.write_rows(tmp_path / "held.csv", 20)
    for way in benchmark.WAYS:
        recipe = benchmark.write_recipe(tmp_path, tiny_backbone, "csv", files, way)
        rate, _ = benchmark.read_pass(recipe, tmp_path / way)
        assert rate > 0
    assert benchmark.size_of(tmp_path / "streamed") < benchmark.size_of(tmp_path / "mapped") / 2


def test_process_of_a_training_run_writes_what_it_measured(load: Callable, tiny_backbone: str, tmp_path: Path) -> None:
    load("scale")
    load("steps").train(tiny_backbone, 8, "float32", False, str(tmp_path / "result.json"))
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["first"] > 0
    assert all(seconds > 0 for key in ("step", "without") for seconds in found[key])
    assert found["memory"] > 50
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=load("steps").TASKS)
    assert found["bytes"] == 4 * model.num_parameters()


def test_backbone_without_fused_attention_can_be_measured(
    load: Callable, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    backbone = MPNetModel(MPNetConfig(vocab_size=99, **sizes))
    assert not backbone._supports_sdpa, "premise"
    backbone.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path)
    load("encode").main([*SHORT, *ARGUMENTS["encode"], "--backbone", str(tmp_path)])
    assert " x " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["encode", "latency", "scaling"])
def test_wrong_embeddings_are_not_timed(name: str, load: Callable, tiny_backbone: str, monkeypatch) -> None:
    encode = MultiTaskModel.encode
    monkeypatch.setattr(MultiTaskModel, "encode", lambda *args, **kwargs: encode(*args, **kwargs) + 1e-4)
    with pytest.raises(RuntimeError, match=r"numbers differ by 1\.\de-04, above 1e-05"):
        load(name).main([*SHORT, *ARGUMENTS[name], "--backbone", tiny_backbone])


def test_wrong_answers_are_not_timed(load: Callable, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool_row = padding_free_module.pool_row
    monkeypatch.setattr(passes_multitask, "pool_row", lambda states, *args: pool_row(states * 1.01, *args))
    with pytest.raises(RuntimeError, match="task0: the contenders' numbers differ by"):
        load("predict").main([*SHORT, *ARGUMENTS["predict"], "--backbone", tiny_backbone])


def test_training_with_wrong_gradients_is_not_timed(load: Callable, tiny_backbone: str, monkeypatch) -> None:
    pool_row = padding_free_module.pool_row
    monkeypatch.setattr(padding_free_module, "pool_row", lambda states, *args: pool_row(states * (1 + 1e-6), *args))
    with pytest.raises(RuntimeError, match="gradients of the packed and the padded pass differ by"):
        load("training").main([*SHORT, *ARGUMENTS["training"], "--backbone", tiny_backbone])


# ---- serving ----


@pytest.fixture(scope="module")
def exported(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, read only."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported") / "model"
    tasks = {
        "mood": {"problem_type": "single_label_classification", "labels": ["bad", "good"]},
        "tags": {"problem_type": "multi_label_classification", "labels": ["animal", "place", "day"]},
        "similarity": {"problem_type": "similarity"},
    }
    MultiTaskModel.from_backbone(tiny_backbone, tasks, max_length=20, normalize=True).save_pretrained(folder)
    export_folder(folder)
    return folder


@pytest.mark.slow
def test_serving_is_measured_and_what_cannot_be_opened_is_said(
    load: Callable, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["torch float32", "ONNX float32", "ONNX int8", "ONNX float32, one model a task"]
    names.append("sentence-transformers torch")
    arguments = ["--quick", "--threads", "1", "--json", str(tmp_path / "tables.json")]
    sections = ["--sections", "engines,latency"]
    serving = load("serving")
    serving.main([str(exported), *arguments, *sections, "--contenders", *names])
    assert "Left out: ONNX int8." in capsys.readouterr().out
    serving.main([str(exported), *arguments, "--sections", "cold_start", "--contenders", *names[:2]])
    encode, predict, latency, cold = json.loads((tmp_path / "tables.json").read_text()).values()
    measured = [name for name in names if name != "ONNX int8"]
    assert [row["encode, sentences/s"] for row in encode] == [name for name in measured if "a task" not in name]
    assert all(" x)" in row["mixed"] and "difference" in row["agreement with torch float32"] for row in encode)
    assert [row["same labels"] for row in predict] == ["100.0%"] * 3
    assert predict[2]["on disk"] == f"{2 * (exported / 'onnx/model.onnx').stat().st_size / 1e6:.0f} MB"
    memory = {row["encode, sentences/s"]: int(row["peak memory"].removesuffix(" MB")) for row in encode}
    assert memory["ONNX float32"] < memory["torch float32"] / 2, "that of its own process"
    assert all(float(row["p50 ms"]) <= float(row["p99 ms"]) for row in latency) and len(latency) == 6
    assert float(cold[1]["share of AutoModel"]) < 1, "a runtime without torch opens faster"


def test_answers_of_a_server_are_measured_and_compared(load: Callable, exported: Path, tmp_path: Path) -> None:
    arguments = ["--quick", "--threads", "1", "--sections", "server", "--contenders", "ONNX float32"]
    load("serving").main([str(exported), *arguments, "--json", str(tmp_path / "tables.json")])
    (rows,) = json.loads((tmp_path / "tables.json").read_text()).values()
    assert [(row["callers"], row["wrong or lost"]) for row in rows] == [("1", "0"), ("8", "0"), ("32", "0")]
    assert [int(row["requests"]) for row in rows] == [20, 80, 300]
    took = {  # of all requests: the system counts a server's time in hundredths of a second
        who: sum(float(row[f"processor ms a row, {who}"]) * int(row["requests"]) for row in rows)
        for who in ("server", "callers", "predict")
    }
    assert 0 < took["callers"] < took["server"] and took["predict"] > 0


def test_callers_get_their_own_answers_and_miss_those_that_are_refused(load: Callable) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sentence = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["sentences"][0]
            content = json.dumps({"answers": [{"mood": sentence}]}).encode()
            self.send_response(503 if sentence == "7" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        found = load("server").run_load("127.0.0.1", server.server_port, [str(row) for row in range(20)], 4)
        server.shutdown()
    assert found.answers == [None if row == 7 else {"mood": str(row)} for row in range(20)]
    assert all(0 < wait <= found.seconds for wait in found.waits)


def test_answer_of_a_server_is_the_same_up_to_the_last_digits(load: Callable) -> None:
    is_same = load("server").is_same
    expected = {"mood": {"label": "bad", "score": 0.75, "scores": {"bad": 0.75, "good": 0.25}}, "tags": {"labels": []}}
    near, another = json.loads(json.dumps(expected)), json.loads(json.dumps(expected))
    near["mood"]["score"] += 1e-6
    another["mood"]["scores"]["good"] += 1e-3
    assert is_same(near, expected)
    assert not is_same(another, expected)
    assert not any(is_same(found, expected) for found in (None, {}, {**expected, "mood": None}))


def test_contenders_take_turns_and_ratios_go_round_by_round(load: Callable) -> None:
    measuring, order = load("measuring"), []
    times = {"a": iter([9.0, 1.0, 2.0, 8.0]), "b": iter([9.0, 4.0, 4.0, 8.0])}

    def contender(name: str) -> float:
        order.append(name)
        return next(times[name])

    seconds = measuring.time_in_turns({name: lambda name=name: contender(name) for name in "ab"}, rounds=3)
    assert order == list("abbaabba")
    assert seconds == {"a": [1.0, 2.0, 8.0], "b": [4.0, 4.0, 8.0]}, "the first round does not count"
    assert measuring.ratio(seconds["b"], seconds["a"]) == 2.0


def test_peak_and_operations_by_worked_example(load: Callable, tiny_backbone: str) -> None:
    measuring, model = load("measuring"), MultiTaskModel.from_backbone(tiny_backbone)
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 37)
    assert measuring.pass_flops(model.backbone, [3, 5]) == 2 * weights * 8 + 4 * 2 * 32 * (9 + 25)
    assert measuring.matrix_peak(measuring.DTYPES["float32"], rounds=1) > 1e8


@pytest.mark.parametrize("bad", [np.nan, 0.99])
def test_a_small_cosine_and_nothing_at_all_are_refused(load: Callable, bad: float) -> None:
    measuring = load("measuring")
    expected = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert measuring.check_cosine("x", expected * 3, expected) == pytest.approx(1)
    found = np.array([[1.0, 0.0], [np.sqrt(1 - bad**2), bad]])
    with pytest.raises(RuntimeError, match="x: the smallest cosine is"):
        measuring.check_cosine("x", found, expected)
    with pytest.raises(RuntimeError, match="x: the contenders' numbers differ"):
        measuring.check_close("x", found, expected)


def test_memory_benchmark_prints_a_row_for_each_contender(load: Callable, tiny_backbone: str, capsys) -> None:
    memory, sizes = load("memory"), ["--backbone", tiny_backbone, "--requests", "4", "--rows", "2", "--words", "5"]
    memory.main([*sizes, "--contenders", "ours"])  # in a process of its own
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ours")]
    assert all(100 < int(megabytes) < 5000 for megabytes in row.split()[1:5])
    for contender in ("ours, without oneDNN", "sentence-transformers"):
        memory.main([*sizes, "--contender", contender])
        *megabytes, per_second = map(float, capsys.readouterr().out.split("\t"))
        assert len(megabytes) == 4 and min(megabytes) > 100 and per_second > 0
    with pytest.raises(SystemExit):
        memory.main(["--requests", "3"])


def test_measures_of_foreign_rows_by_worked_example(load: Callable, tiny_backbone: str) -> None:
    benchmark = load("out_of_scope")
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 3
    rows = np.eye(8)[[0, 3, 6]][labels] * 5 + generator.normal(size=(600, 8)) * [1, 1, 0.1, 1, 0.1, 1, 1, 0.1]
    foreign = np.eye(8)[[1, 2, 4, 7]].repeat(10, axis=0) * 5 + generator.normal(size=(40, 8)) * 0.1
    head = LogisticRegression().fit(rows[:400], labels[:400])
    measures = benchmark.other_measures(rows[:400], labels[:400], rows[400:], head)
    for name, measure in measures.items():
        own, others = measure(rows[400:]), measure(foreign)
        is_far = np.median(others) > np.quantile(own, 0.9)
        # What is far from everything is near its class for the relative distance, as far as it goes.
        assert own.shape == (200,) and is_far == (name != "relative Mahalanobis"), name
    scope = Scope(8, 3)
    task = TaskConfig(problem_type="single_label_classification", labels=["a", "b", "c"])
    tensors = [torch.from_numpy(values) for values in (rows[:400], labels[:400])]
    scope.load_state_dict(fit_scope(task, *tensors))
    near = scope.distances(torch.from_numpy(rows[400:])).numpy()
    doubt = 1 - head.predict_proba(rows[400:]).max(axis=1)
    median, high = np.quantile(near, [0.5, 0.95])
    unsure, sure = np.quantile(doubt, [0.95, 0.5])
    expected = (near - median) / (high - median) + (doubt - sure) / (unsure - sure) / 2
    np.testing.assert_allclose(measures["distance + probability / 2"](rows[400:]), expected, rtol=1e-3, atol=1e-3)
    assert benchmark.time_predict(tiny_backbone, ["a cat", "good film", "bad news"] * 4, rounds=1) > 0


def test_promise_of_a_risk_is_judged_by_worked_example(load: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    def rows(split: str, wrong: int) -> pd.DataFrame:
        """500 sure rows, of which so many are wrong, and 500 unsure ones, of which every second is."""
        chosen = np.arange(1000)
        is_wrong = np.where(chosen < 500, chosen < wrong, chosen % 2 == 0)
        sure = np.where(chosen < 500, 0.9, 0.6)
        columns = {"split": split, "label": np.where(is_wrong, "b", "a"), "prediction": "a"}
        return pd.DataFrame({**columns, "probabilities": [[high, 1 - high] for high in sure]})

    (tmp_path / "run" / "predictions").mkdir(parents=True)
    for task, wrong in (("same", 5), ("unlucky", 30), ("moved", 50)):
        found = pd.concat([rows("validation", 5), rows("test", wrong)])
        found.to_parquet(tmp_path / "run" / "predictions" / f"{task}.parquet")
    values = pd.DataFrame({"split": ["validation", "test"], "label": [0.5, 1.0], "prediction": [0.4, 0.9]})
    values.to_parquet(tmp_path / "run" / "predictions" / "rating.parquet")
    arguments = [str(tmp_path / "run"), "--risks", "0.005", "0.05", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["abstention.py", *arguments])
    load("abstention").main()
    found = json.loads((tmp_path / "out.json").read_text())["run"]
    verdicts = {task: [promise["verdict"] for promise in promises] for task, promises in found.items()}
    assert verdicts == {
        "moved": ["no label", "broken"],
        "same": ["no label", "kept"],
        "unlucky": ["no label", "by chance"],
    }
    moved = found["moved"][1]
    assert moved["confidence"] == pytest.approx(0.75) and moved["wrong_of_all"] == {"test": 0.3, "validation": 0.255}
    assert (moved["test"]["answered"], moved["test"]["wrong"], moved["test"]["risk"]) == (500, 50, 0.1)
    assert moved["test"]["interval"] == pytest.approx([0.0751, 0.1297], abs=1e-3)
    assert "50.0        10.0 [7.5, 13.0]  broken" in capsys.readouterr().out
