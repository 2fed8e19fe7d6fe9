"""The export command: graphs that answer as the model does for every backbone, or nothing at all."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from helpers.backbones import CONFIGS
from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.commands import export as command
from multitask_sentence.commands.doctor import seal
from multitask_sentence.export import check, graphs
from multitask_sentence.export.folder import export_folder, staging_folder
from multitask_sentence.runtime import MultiTaskRuntime
from multitask_sentence.runtime.record import hash_file

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# Each backbone with one of the settings, so that every setting is tried.
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {"pooling": "mean", "normalize": True},
    "distilbert": {"pooling": "cls", "projection": {"out_features": 24}},
    "roberta": {"pooling": "max"},
    "xlm-roberta": {"pooling": "cls", "normalize": True},
    "mpnet": {"pooling": "max", "normalize": True, "projection": {"out_features": 40, "activation": "gelu"}},
    "electra": {"pooling": "mean"},
    "deberta-v2": {"projection": {"out_features": 24, "activation": "linear", "bias": False}},
    "modernbert": {"pooling": "mean", "normalize": True},
}
SINGLE = ("mood", "tags", "rating")


def build(
    backbone_config: Any, tokenizer: PreTrainedTokenizerFast, tasks: dict[str, Any], **settings: Any
) -> MultiTaskModel:
    torch.manual_seed(0)
    config = MultiTaskConfig(backbone_config=backbone_config, tasks=tasks, max_length=20, **settings)
    model = MultiTaskModel(config).eval()
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("architecture", CONFIGS)
def test_graphs_of_every_backbone_answer_as_the_model_does(
    architecture: str, tiny_tokenizer: PreTrainedTokenizerFast, all_tasks: dict[str, Any], tmp_path: Path
) -> None:
    # The graph of pairs begins behind the backbone, so one backbone is enough for it.
    tasks = {name: task for name, task in all_tasks.items() if name in SINGLE or architecture == "bert"}
    model = build(CONFIGS[architecture](), tiny_tokenizer, tasks, **SETTINGS[architecture])
    model.save_pretrained(tmp_path)
    export_folder(tmp_path)
    record = json.loads((tmp_path / "onnx" / "export.json").read_text())
    outputs = {"sentence_embedding", *(f"logits.{name}" for name in tasks)}
    assert set(record["differences"]) == outputs
    runtime = MultiTaskRuntime.from_pretrained(tmp_path)
    assert max(check.differences(model, runtime).values()) <= 1e-5
    # A batch of one, and lengths that the trace has not seen.
    for sentences in (["the cat sat"], ["the bird sang in the park today .", "good"], [""]):
        np.testing.assert_allclose(runtime.encode(sentences), model.encode(sentences), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def exported(
    tiny_tokenizer: PreTrainedTokenizerFast, all_tasks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with two tasks, one of pairs, exported. Read only."""
    folder = tmp_path_factory.mktemp("exported")
    tasks = {name: all_tasks[name] for name in ("tags", "entails")}
    build(CONFIGS["bert"](), tiny_tokenizer, tasks).save_pretrained(folder)
    export_folder(folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def test_outputs_are_named_and_sizes_are_dynamic(exported: Path) -> None:
    graph = onnx.load(exported / "onnx" / "model.onnx").graph
    assert [output.name for output in graph.output] == ["sentence_embedding", "logits.tags"]
    sizes = [[size.dim_param for size in value.type.tensor_type.shape.dim] for value in graph.input]
    assert sizes == [["batch", "length"]] * 2
    assert [output.type.tensor_type.shape.dim[0].dim_param for output in graph.output] == ["batch"] * 2
    operations = [node.op_type for node in graph.node]
    assert "Softmax" in operations and "Less" not in operations, "attention in the plain form that engines fuse"
    pairs = onnx.load(exported / "onnx" / "pairs.onnx").graph
    assert [value.name for value in (*pairs.input, *pairs.output)] == ["embedding1", "embedding2", "logits.entails"]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*pairs.input, *pairs.output)} == {"batch"}


def test_record_says_what_the_graphs_were_made_from(exported: Path) -> None:
    record = json.loads((exported / "onnx" / "export.json").read_text())
    assert record["weights"] == {"model.safetensors": hash_file(exported / "model.safetensors")}
    assert record["files"] == {
        name: {
            "sha256": hash_file(exported / "onnx" / name),
            "bytes": (exported / "onnx" / name).stat().st_size,
        }
        for name in ("model.onnx", "pairs.onnx")
    }
    assert record["made_with"]["onnx"] == onnx.__version__
    assert str(exported) not in json.dumps(record)


def test_graphs_of_other_weights_are_refused(folder: Path) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    with torch.no_grad():
        model.heads["tags"].layers[-1].bias[0] += 1
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"from other weights than model\.safetensors beside it: .*Export again"):
        MultiTaskRuntime.from_pretrained(folder)


def test_graphs_of_another_adapter_are_refused(tiny_backbone: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"similarity": {"problem_type": "similarity"}})
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    export_folder(tmp_path)
    MultiTaskRuntime.from_pretrained(tmp_path)
    own = hash_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if "lora_B" in name).mul_(2)
    model.save_pretrained(tmp_path)
    assert hash_file(tmp_path / "model.safetensors") == own, "premise: all weights are those of the adapter"
    with pytest.raises(ValueError, match=r"other weights than adapter/adapter_model\.safetensors beside it"):
        MultiTaskRuntime.from_pretrained(tmp_path)
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    shutil.copytree(tmp_path / "adapter", tmp_path / "merged" / "adapter")  # of a model that was saved there before
    export_folder(tmp_path / "merged")
    assert list(json.loads((tmp_path / "merged/onnx/export.json").read_text())["weights"]) == ["model.safetensors"]


def test_weights_of_another_name_are_other_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match="exported from other weights than model-00001-of-00001"):
        MultiTaskRuntime.from_pretrained(folder)


def test_graphs_without_weights_beside_them_open(folder: Path) -> None:
    expected = MultiTaskRuntime.from_pretrained(folder).encode("good film")
    (folder / "model.safetensors").unlink()
    assert (MultiTaskRuntime.from_pretrained(folder).encode("good film") == expected).all()


def test_settings_that_are_built_into_the_graphs_may_not_change(folder: Path) -> None:
    change_config(folder, lambda config: config.update(pooling="cls"))
    with pytest.raises(ValueError, match=r"with another config\.json: pooling was 'mean', and is 'cls' now"):
        MultiTaskRuntime.from_pretrained(folder)


def test_thresholds_and_label_names_come_from_config_json(folder: Path) -> None:
    change_config(folder, lambda config: config["tasks"]["tags"].update(thresholds=[0.0, 1.0, 0.0, 1.0]))
    assert MultiTaskRuntime.from_pretrained(folder).predict("good film")["tags"]["labels"] == ["animal", "money"]


def test_incomplete_graph_is_told_from_a_complete_one(folder: Path) -> None:
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.onnx has .* bytes, but was exported with .*Download it again"):
        MultiTaskRuntime.from_pretrained(folder)


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/export.json", "config.json", "tokenizer.json"])
def test_content_that_has_changed_is_found_on_request(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]  # a weight of the graph
    changed = flipped if name.endswith(".onnx") else content + b" "
    MultiTaskRuntime.from_pretrained(folder, verify=True)
    (folder / name).write_bytes(changed)
    with pytest.raises(ValueError, match=rf"{name} is not what was exported: its sha256 is another"):
        MultiTaskRuntime.from_pretrained(folder, verify=True)


def test_graph_and_tokenizer_that_cannot_be_read_are_named(folder: Path) -> None:
    graph, tokenizer = folder / "onnx" / "model.onnx", folder / "tokenizer.json"
    content = graph.read_bytes()
    graph.write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=r"model\.onnx: onnx cannot read the graph \(.*If it is damaged"):
        MultiTaskRuntime.from_pretrained(folder)
    graph.unlink()
    with pytest.raises(OSError, match=r"model\.onnx is missing"):
        MultiTaskRuntime.from_pretrained(folder)
    graph.write_bytes(content)
    tokenizer.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json holds no tokenizer"):
        MultiTaskRuntime.from_pretrained(folder)


def test_another_export_replaces_the_first_and_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    with torch.no_grad():
        model.heads["tags"].layers[-1].bias[0] += 1
    model.save_pretrained(folder)
    (folder / "onnx" / "left.onnx").touch()
    command.main([str(folder)])
    printed = capsys.readouterr().out
    assert f"{folder / 'onnx'}: model.onnx, pairs.onnx; largest difference " in printed
    assert "torch.onnx" not in printed and "handler.py" not in printed and "int8" not in printed
    assert {path.name for path in (folder / "onnx").iterdir()} == {"export.json", "model.onnx", "pairs.onnx"}
    assert check.differences(model, MultiTaskRuntime.from_pretrained(folder))["logits.tags"] <= 1e-5
    assert not list(folder.glob(".export-*"))


def test_handler_of_ones_own_stays_and_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "handler.py").write_text("class EndpointHandler: ...\n", encoding="utf-8")
    (folder / "onnx" / "model_int8.onnx").write_bytes(b"measured before")
    seal(str(folder))
    command.main([str(folder)])
    printed = capsys.readouterr().out
    assert (folder / "handler.py").read_text(encoding="utf-8") == "class EndpointHandler: ...\n"
    assert f"{folder / 'handler.py'} is not as export writes it, so it stays." in printed
    assert f"{folder / 'onnx' / 'model_int8.onnx'} is removed. To have one again: export with --int8." in printed


def test_what_a_killed_export_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from multitask_sentence.export.folder import staging_folder\n"
        "with staging_folder(Path(sys.argv[1]), '.export-') as staging:\n"
        "    (staging / 'model.onnx').write_bytes(bytes(1000)); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    (left,) = tmp_path.glob(".export-*/model.onnx")
    with staging_folder(tmp_path, ".export-") as staging:
        assert not left.parent.exists()
        with staging_folder(tmp_path, ".export-"):
            assert staging.exists(), "one that is in use stays"
    assert list(tmp_path.iterdir()) == []


def test_graph_that_answers_otherwise_is_not_kept(
    tiny_tokenizer: PreTrainedTokenizerFast,
    all_tasks: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "model"
    build(CONFIGS["bert"](), tiny_tokenizer, {"tags": all_tasks["tags"]}).save_pretrained(folder)
    before = contents(folder)
    monkeypatch.setattr(check, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"onnx: the output [\w.]+ differs .* Nothing was written"):
        export_folder(folder)
    assert contents(folder) == before
    assert not list(folder.glob(".export-*"))


def test_wrong_output_is_named(exported: Path) -> None:
    model = MultiTaskModel.from_pretrained(exported)
    runtime = MultiTaskRuntime.from_pretrained(exported)
    with torch.no_grad():
        model.heads["entails"].layers[-1].bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"here: the output logits\.entails differs from the model's by 1\.0e-03"):
        check.check_answers(model, runtime, "here")
    with torch.no_grad():
        model.heads["entails"].layers[-1].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"logits\.entails differs from the model's by nan"):
        check.check_answers(model, runtime, "here")


def test_what_cannot_be_traced_is_named_with_its_backbone(
    tiny_tokenizer: PreTrainedTokenizerFast, all_tasks: dict[str, Any]
) -> None:
    class OnlyForPositiveSums(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values if values.sum().item() > 0 else -values

    model = build(CONFIGS["bert"](), tiny_tokenizer, {"mood": all_tasks["mood"]}, projection={"out_features": 24})
    model.projection.activation = OnlyForPositiveSums()
    with pytest.raises(ValueError, match=r"bert cannot be exported as a graph: .*data-dependent"):
        graphs.trace(graphs.SentenceGraph(model))


def test_tokenizer_that_needs_transformers_is_refused(exported: Path) -> None:
    model = MultiTaskModel.from_pretrained(exported)
    runtime = MultiTaskRuntime.from_pretrained(exported)
    check.check_tokens(model, runtime)
    runtime.tokenizer.enable_truncation(10)
    with pytest.raises(ValueError, match=r"reads 'The committee.* but tokenizer\.json alone as"):
        check.check_tokens(model, runtime)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json, so it is no model"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
            "holds a 'bert' model",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "the weights are damaged"),
    ],
)
def test_folder_that_is_no_model_ends_with_one_line(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    before = contents(folder)
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        command.main([str(folder)])
    assert contents(folder) == before


def test_missing_package_is_named_before_anything_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match="error: export needs onnxscript, not installed here: pip install onnxscript"):
        command.main([str(folder)])


def test_bundle_defines_every_name_once_and_imports_no_sibling(exported: Path) -> None:
    tree = ast.parse((exported / "runtime_multitask.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    names += [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert sorted(names) == sorted(set(names))
    assert "MultiTaskRuntime" in names
    packages = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    third_party = packages - sys.stdlib_module_names
    # torch refuses tensors that are handed over, transformers names activations, pandas makes a DataFrame: only where
    # they are installed.
    optional = {"torch", "transformers", "pandas"}
    assert third_party - optional == {"numpy", "tokenizers", "onnxruntime", "openvino", "huggingface_hub", "tqdm"}
