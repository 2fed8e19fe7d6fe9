"""The runtime without torch: the answers, the order and the errors of the model that was exported."""

import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from helpers.hub_server import HubServer
from multitask_sentence import MultiTaskModel
from multitask_sentence import rows_multitask as rows_module
from multitask_sentence.export.folder import export_folder
from multitask_sentence.runtime import MultiTaskRuntime
from multitask_sentence.runtime.record import hash_file
from multitask_sentence.serving.engine import RuntimeEngine
from multitask_sentence.training.calibration.scope import fit_scope
from multitask_sentence.training.report import publish

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SENTENCES = ["the cat sat on the mat", "", "a dog ran", "the bird sang " * 30, "a dog ran", "good film \ud83d !"]
SURE = {"confidence": 0.51}
MANY = ["a cat", "bird", "park today", "bad news", "film", "price .", "market !", "mat and story", "", "?"] * 3
PAIRS = [("the cat sat", "a dog ran"), ("a dog ran", "the cat sat"), ("", "good film")]

# Run in a process that has neither torch nor transformers; prints what it found as JSON.
ASK = """
import json
import sys

sys.path.insert(0, sys.argv[1])
from runtime_multitask import MultiTaskRuntime

model = MultiTaskRuntime.from_pretrained(sys.argv[2], **json.loads(sys.argv[3]))
sentences, pairs = json.loads(sys.argv[4])
found = {
    "encode": model.encode(sentences).tolist(),
    "single": model.predict(sentences, as_list=True),
    "pairs": model.predict([tuple(pair) for pair in pairs], as_list=True),
    "similarity": model.similarity(sentences, sentences[:2]).tolist(),
    "modules": [name for name in ("torch", "transformers", "multitask_sentence") if name in sys.modules],
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def exported(tiny_backbone: str, all_tasks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with every kind of task, normalised, traced once for all engines that are installed. Read only."""
    torch.manual_seed(1)
    tasks = {**all_tasks, "year": {"problem_type": "regression", "target_mean": 1950.0, "target_deviation": 30.0}}
    tasks["tags"] = {**tasks["tags"], "thresholds": [0.4, 0.5, 0.6, 0.55], "temperatures": [2.0, 0.5, 1.0, 1.5]}
    tasks["mood"] = {**tasks["mood"], "temperatures": [1.7], "abstain": {"confidence": 0.335}}
    tasks["entails"] = {**tasks["entails"], "abstain": {"risk": 0.1}}  # not chosen yet: never a label
    folder = tmp_path_factory.mktemp("runtime") / "model"
    options = {"projection": {"out_features": 24}, "max_length": 20, "normalize": True}
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks, **options)
    words = np.array(
        ["the", "cat", "dog", "bird", "sat", "ran", "sang", "on", "mat", "good", "film", "news", "price", "!"]
    )
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, size)) for size in generator.integers(1, 12, 260)]
    embeddings = torch.from_numpy(model.encode(texts, normalize=False))
    known, others = embeddings[:140], embeddings[140:]
    for name in ("mood", "tags"):
        labels = torch.arange(140) % 3 if name == "mood" else (torch.rand(140, 4) > 0.6).float()
        model._set_scope(name, fit_scope(model.config.tasks[name], known, labels, others))
    model.config.change_task("mood", abstain={"confidence": 0.335, "out_of_scope": 99})
    model.save_pretrained(folder)
    export_folder(folder, ["onnx", "openvino"] if importlib.util.find_spec("openvino") else ["onnx"])
    return folder


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, exported for ONNX Runtime alone. Read only."""
    ignore = shutil.ignore_patterns("openvino")
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("onnx") / "model", ignore=ignore))


@pytest.fixture(scope="module")
def model(folder: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def runtime(folder: Path) -> MultiTaskRuntime:
    return MultiTaskRuntime.from_pretrained(folder)


def assert_same(found: Any, expected: Any) -> None:
    """Equal in structure, order and text; numbers to 1e-5."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (np.ndarray, np.floating, float)):
        assert np.shape(found) == np.shape(expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("name", ["encode", "predict", "similarity"])
def test_arguments_and_defaults_are_those_of_the_model(name: str) -> None:
    def arguments(kind: type) -> list[tuple[str, Any]]:
        return [(each.name, each.default) for each in inspect.signature(getattr(kind, name)).parameters.values()]

    assert arguments(MultiTaskRuntime) == arguments(MultiTaskModel)


CALLS: dict[str, Callable[[Any], Any]] = {
    "encode": lambda model: model.encode(SENTENCES),
    "encode one": lambda model: model.encode("good film"),
    "encode raw": lambda model: model.encode(SENTENCES, normalize=False),
    "encode none": lambda model: model.encode([]),
    "encode a generator": lambda model: model.encode(text for text in SENTENCES),
    "encode by two": lambda model: model.encode(SENTENCES, batch_size=2),
    "encode as tensor": lambda model: model.encode(SENTENCES, convert_to="tensor").numpy(),
    "predict": lambda model: model.predict(SENTENCES),
    "predict one": lambda model: model.predict("good film"),
    "predict none": lambda model: model.predict([]),
    "predict as list": lambda model: model.predict(SENTENCES, as_list=True),
    "predict one task": lambda model: model.predict(SENTENCES, tasks="year"),
    "predict in another order": lambda model: model.predict(SENTENCES, tasks=["tags", "mood"]),
    "predict pairs": lambda model: model.predict(PAIRS),
    "predict one pair": lambda model: model.predict(PAIRS[0]),
    "predict pairs as list": lambda model: model.predict([list(pair) for pair in PAIRS], as_list=True),
    "predict one pair task": lambda model: model.predict(PAIRS, tasks=["search"]),
    "predict where it is sure": lambda model: model.predict(SENTENCES, abstain=SURE),
    "predict where it is sure, as list": lambda model: model.predict(SENTENCES, as_list=True, abstain=SURE),
    "predict without abstaining": lambda model: model.predict(PAIRS, abstain=False),
    "predict with embeddings": lambda model: model.predict(SENTENCES, embeddings=True),
    "predict one with embeddings": lambda model: model.predict("good film", embeddings=True, as_list=True),
    "predict pairs with embeddings": lambda model: model.predict(PAIRS, ["entails"], embeddings=True),
    "predict within its scope": lambda model: model.predict(SENTENCES, abstain={"out_of_scope": 50}),
    "predict many": lambda model: model.predict([f"the {word} ran" for word in MANY], "mood", abstain=False),
    "predict as tensors": lambda model: model.predict(SENTENCES, "year", convert_to="tensor")["year"][
        "values"
    ].numpy(),
    "predict as a frame": lambda model: model.predict(SENTENCES, convert_to="pandas", embeddings=True).to_dict("list"),
    "similarity as tensor": lambda model: model.similarity(SENTENCES, SENTENCES, convert_to="tensor").numpy(),
    "similarity": lambda model: model.similarity(SENTENCES, "good film"),
    "similarity of embeddings": lambda model: model.similarity(np.ones((2, 24)), [[1.0] * 24, [0.5] * 24]),
    "similarity with nothing": lambda model: model.similarity([], SENTENCES),
}


@pytest.mark.parametrize("call", CALLS)
def test_answers_are_those_of_the_model(call: str, model: MultiTaskModel, runtime: MultiTaskRuntime) -> None:
    assert_same(CALLS[call](runtime), CALLS[call](model))


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "no string": lambda model: model.encode(["good", 3]),
    "no string later in a generator": lambda model: model.encode(text for text in ["good", None]),
    "a mapping": lambda model: model.predict({"text": ["good"]}),
    "a set": lambda model: model.encode({"good"}),
    "bytes": lambda model: model.encode(b"good"),
    "a number": lambda model: model.encode(3),
    "half a pair": lambda model: model.predict([("good", "film"), ("good",)]),
    "pairs and sentences": lambda model: model.predict([("good", "film"), "good"]),
    "unknown task": lambda model: model.predict(["good"], tasks="moood"),
    "task of another kind": lambda model: model.predict(["good"], tasks="entails"),
    "sentence task for pairs": lambda model: model.predict(PAIRS, tasks=["mood"]),
    "both spellings": lambda model: model.predict(["good"], head="mood", tasks="mood"),
    "tasks of no names": lambda model: model.predict(["good"], tasks=[3]),
    "batch size 0": lambda model: model.predict(["good"], batch_size=0),
    "abstain for a risk": lambda model: model.predict(["good"], abstain={"risk": 0.1}),
    "abstain out of an unknown scope": lambda model: model.predict(["good"], "year", abstain={"out_of_scope": 9}),
    "abstain for nothing": lambda model: model.predict(["good"], abstain={}),
    "batch size half": lambda model: model.encode(["good"], batch_size=0.5),
    "convert_to": lambda model: model.encode("good", convert_to="list"),
    "embeddings of another size": lambda model: model.similarity(np.ones((2, 3)), "good"),
    "similarity of both": lambda model: model.similarity(["good", [1.0] * 24], "good"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_errors_are_those_of_the_model(call: str, model: MultiTaskModel, runtime: MultiTaskRuntime) -> None:
    with pytest.raises((TypeError, ValueError)) as expected:
        BAD_CALLS[call](model)
    with pytest.raises(expected.type) as found:
        BAD_CALLS[call](runtime)
    assert str(found.value) == str(expected.value)


def test_long_texts_are_cut_where_the_tokenizer_beside_the_graphs_cuts_them(folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "copied")
    long = "the cat sat on the mat " * 20 + "a dog ran in the park"
    before = MultiTaskRuntime.from_pretrained(copied).encode(long)
    model = MultiTaskModel.from_pretrained(copied)
    model.tokenizer = AutoTokenizer.from_pretrained(copied, truncation_side="left", trust_remote_code=True)
    model.save_pretrained(copied)
    expected = MultiTaskModel.from_pretrained(copied).encode(long)
    assert np.abs(expected - before).max() > 1e-3, "premise: the model cuts them elsewhere"
    np.testing.assert_allclose(MultiTaskRuntime.from_pretrained(copied).encode(long), expected, atol=1e-5)
    (copied / "tokenizer_config.json").unlink()  # as where an earlier version has downloaded an export
    np.testing.assert_array_equal(MultiTaskRuntime.from_pretrained(copied).encode(long), before)


def test_no_task_for_this_kind_of_input_is_the_models_error(tiny_backbone: str, tmp_path: Path) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"search": {"problem_type": "contrastive"}})
    model.save_pretrained(tmp_path)
    export_folder(tmp_path)
    with pytest.raises(ValueError, match="No task reads single sentences") as expected:
        model.predict(["good"])
    with pytest.raises(ValueError, match="No task reads single sentences") as found:
        MultiTaskRuntime.from_pretrained(tmp_path).predict(["good"])
    assert str(found.value) == str(expected.value)


def test_threads_of_a_server_leave_cores_to_others(folder: Path, runtime: MultiTaskRuntime) -> None:
    models = {"1": runtime, "0": RuntimeEngine(str(folder), "onnx").model}
    for spins, model in models.items():
        options = model._sentences.session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins


def test_passes_hold_as_many_tokens_and_as_much_padding_as_their_engine_likes(
    runtime: MultiTaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, masks = runtime._sentences, []
    token_ids = [[1] * length for length in np.random.default_rng(0).integers(1, 20, 400)]

    def computed(inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        masks.append(inputs["attention_mask"])
        return graph(inputs, outputs)

    for name in ("tokens_per_pass", "most_padding"):
        setattr(computed, name, getattr(graph, name))
    monkeypatch.setattr(runtime, "_sentences", computed)
    runtime.compute(token_ids, ["sentence_embedding"])
    assert max(mask.size for mask in masks) <= graph.tokens_per_pass
    assert max(int((mask == 0).sum()) for mask in masks) <= graph.most_padding
    assert sum(map(len, masks)) == 400 and len(masks) < 60


def test_windows_are_put_together_in_order(runtime: MultiTaskRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, pairs = runtime.predict(SENTENCES), runtime.predict(PAIRS)
    monkeypatch.setattr(rows_module, "SENTENCES_PER_WINDOW", 2)
    assert_same(runtime.predict(SENTENCES), expected)
    assert_same(runtime.predict(PAIRS), pairs)


def ask(
    script: str, place: Path, source: str, cwd: Path, environment: dict[str, str] | None = None, **options: Any
) -> dict[str, Any]:
    """What a process without torch answers that imports the runtime from `place` and opens `source`."""
    texts = json.dumps([SENTENCES, PAIRS])
    command = [sys.executable, "-c", script, str(place), source, json.dumps(options), texts]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_export_that_left_the_scope_out_says_so_and_keeps_to_it(
    folder: Path, model: MultiTaskModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = Path(shutil.copytree(folder, tmp_path / "older"))
    scopes = older / "onnx" / "scopes.npz"
    scopes.write_bytes(bytes(scopes.stat().st_size))
    with pytest.raises(ValueError, match=r"scopes\.npz cannot be read"):
        MultiTaskRuntime.from_pretrained(older)
    record = json.loads((older / "onnx" / "export.json").read_text())
    del record["scopes"], record["files"]["scopes.npz"]
    (older / "onnx" / "export.json").write_text(json.dumps(record))
    runtime = MultiTaskRuntime.from_pretrained(older)
    assert "which left out what tells task 'mood' its scope" in caplog.text and "Export again" in caplog.text
    assert "out_of_scope" not in runtime.predict(SENTENCES, "tags")["tags"]
    with pytest.raises(ValueError, match="none of the tasks tags knows its scope"):
        runtime.predict(SENTENCES, "tags", abstain={"out_of_scope": 50})


def test_percentiles_of_the_runtime_tell_rows_apart(model: MultiTaskModel, runtime: MultiTaskRuntime) -> None:
    found = runtime.predict(MANY, "mood")["mood"]["out_of_scope"]
    assert len(set(found.tolist())) > 3, "premise: not all of them are 0 or 100"
    np.testing.assert_allclose(found, model.predict(MANY, "mood")["mood"]["out_of_scope"], atol=0.1)
    limit = float(np.median(found)) + 0.05
    kept = [
        label is not None for label in runtime.predict(MANY, "mood", abstain={"out_of_scope": limit})["mood"]["labels"]
    ]
    assert kept == (found <= limit).tolist() and 0 < sum(kept) < len(MANY)


@pytest.fixture
def without_torch(block_packages: str) -> str:
    return f"{block_packages}\nBLOCKED |= {{'torch', 'transformers', 'safetensors', 'onnx', 'onnxscript'}}\n{ASK}"


def assert_answers_of(model: MultiTaskModel, found: dict[str, Any]) -> None:
    assert found["modules"] == []
    assert_same(found["encode"], model.encode(SENTENCES).tolist())
    assert_same(found["single"], model.predict(SENTENCES, as_list=True))
    assert_same(found["pairs"], model.predict(PAIRS, as_list=True))
    assert_same(found["similarity"], model.similarity(SENTENCES, SENTENCES[:2]).tolist())


def test_folder_answers_in_a_process_that_cannot_import_torch(
    folder: Path, model: MultiTaskModel, without_torch: str, tmp_path: Path
) -> None:
    assert_answers_of(model, ask(without_torch, folder, str(folder), tmp_path))


def test_package_opens_an_export_without_torch(folder: Path, tmp_path: Path) -> None:
    script = "import sys; from multitask_sentence import MultiTaskRuntime as Runtime\n"
    script += "Runtime.from_pretrained(sys.argv[1]).encode('good'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


HANDLE = """
import json
import sys

sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler

handler, found = EndpointHandler(sys.argv[1]), []
for request in json.loads(sys.argv[2]):
    try:
        found.append(handler(request))
    except (TypeError, ValueError) as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_handler_of_inference_endpoints_answers_as_the_model_does(
    folder: Path, model: MultiTaskModel, block_packages: str, tmp_path: Path
) -> None:
    engines = ["openvino"] if importlib.util.find_spec("openvino") else []
    assert (folder / "requirements.txt").read_text().split() == ["numpy", "tokenizers", "onnxruntime", *engines]
    requests: list[Any] = [
        {"inputs": "good film"},
        {"inputs": SENTENCES[:3], "parameters": {"head": "mood", "embeddings": True}},
        {"inputs": [list(pair) for pair in PAIRS]},
        {"text": "good film"},
        {"inputs": ["good"], "parameters": {"top_k": 1}},
        {"inputs": ["good", 3]},
        {"inputs": ["good"], "parameters": {"head": "moood"}},
    ]
    script = f"{block_packages}\nBLOCKED |= {{'torch', 'transformers'}}\n{HANDLE}"
    command = [sys.executable, "-c", script, str(folder), json.dumps(requests)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, several, pairs, *errors = json.loads(done.stdout)
    assert_same(one, [model.predict("good film", as_list=True)])
    assert_same(several, model.predict(SENTENCES[:3], "mood", embeddings=True, as_list=True))
    assert_same(pairs, model.predict(PAIRS, as_list=True))
    for error, message in zip(errors, ("no inputs", "unknown key 'top_k'", "Sentence 1 is 3", "'mood'"), strict=True):
        assert message in error


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def pushed(folder: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a process that finds the exported folder on the Hub as team/model."""
    environment = hub.environment(tmp_path / "home")
    script = (
        "import sys; from multitask_sentence.training.report.publish import push_folder; push_folder(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, str(folder), "team/model"]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return environment


def test_pushed_folder_opens_from_the_hub_without_torch_and_without_its_weights(
    folder: Path, model: MultiTaskModel, hub: HubServer, pushed: dict[str, str], without_torch: str, tmp_path: Path
) -> None:
    hub.requests.clear()
    assert_answers_of(model, ask(without_torch, folder, "team/model", tmp_path, pushed))
    fetched = "\n".join(path for method, path in hub.requests if method == "GET")
    assert hash_file(folder / "onnx" / "model.onnx") in fetched
    assert hash_file(folder / "model.safetensors") not in fetched


def test_graphs_on_the_hub_that_belong_to_other_weights_are_refused(
    folder: Path, hub: HubServer, pushed: dict[str, str], without_torch: str, tmp_path: Path
) -> None:
    files = hub.repositories["team/model"].branches["main"][-1].files
    files["model.safetensors"].content += b"more"
    command = [sys.executable, "-c", without_torch, str(folder), "team/model", "{}", "[[], []]"]
    done = subprocess.run(command, env={**os.environ, **pushed}, cwd=tmp_path, capture_output=True, text=True)
    assert "was exported from other weights than model.safetensors" in done.stderr.splitlines()[-1]


def test_model_pushes_its_export_along_until_its_weights_change(folder: Path, nearby: HubServer) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    model.push_to_hub("team/same")
    model.heads["mood"].layers[-1].bias.data += 1
    model.push_to_hub("team/other")
    same, other = (set(nearby.repositories[name].branches["main"][-1].files) for name in ("team/same", "team/other"))
    graphs = {"onnx/export.json", "onnx/model.onnx", "onnx/pairs.onnx", "onnx/scopes.npz"}
    assert same - other == graphs | {"runtime_multitask.py", "handler.py", "requirements.txt"}


def test_weights_of_openvino_are_pushed_and_pickles_are_not() -> None:
    assert not publish.stays_behind("openvino/openvino_model.bin")
    assert publish.stays_behind("pytorch_model.bin") and publish.stays_behind("onnx/some.bin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4', but should be one of float32, bfloat16, int8"),
        ({"precision": "int8"}, r"holds no int8 graph, only float32, pairs\. Export one"),
        ({"precision": "bfloat16", "engine": "onnx"}, "no bfloat16 on CPUs"),
        ({"engine": "torch"}, "engine is 'torch', but should be one of onnx, openvino"),
        ({"engine": "openvino"}, r"holds no openvino/export\.json, so it was not exported"),
    ],
)
def test_what_was_not_exported_is_said(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskRuntime.from_pretrained(folder, **options)


def test_folder_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        MultiTaskRuntime.from_pretrained(tmp_path / "nothing")


def test_missing_engine_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime is not installed, .*: pip install onnxruntime"):
        MultiTaskRuntime.from_pretrained(folder)


@pytest.fixture(scope="module")
def openvino_folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, exported for OpenVINO alone. Read only."""
    pytest.importorskip("openvino")
    ignore = shutil.ignore_patterns("onnx")
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("openvino") / "model", ignore=ignore))


def test_openvino_answers_as_the_model_does(openvino_folder: Path, model: MultiTaskModel) -> None:
    runtime = MultiTaskRuntime.from_pretrained(openvino_folder)
    assert runtime.engine == "openvino"
    for call in ("encode", "predict", "predict pairs", "predict none", "encode raw"):
        assert_same(CALLS[call](runtime), CALLS[call](model))
    rough = MultiTaskRuntime.from_pretrained(openvino_folder, precision="bfloat16")
    hints = [opened._sentences.compiled.get_property("INFERENCE_PRECISION_HINT") for opened in (runtime, rough)]
    assert [hint.get_type_name() for hint in hints] == ["f32", "bf16"]
    assert np.abs(rough.encode(SENTENCES) - model.encode(SENTENCES)).max() < 0.1


SIGNAL = """
import os
import signal
import sys

sys.path.insert(0, sys.argv[1])
from runtime_multitask import MultiTaskRuntime

first, second = (MultiTaskRuntime.from_pretrained(sys.argv[1]) for _ in range(2))
first.encode("a cat")
del first
del second
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signal_is_handled_after_openvino_models_were_let_go(openvino_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNAL, openvino_folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
