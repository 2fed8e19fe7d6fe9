"""int8 behind the gate: what keeps every score is written, the rest is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.signal_stack import signal_stack
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import doctor
from multitask_sentence.commands import export as command
from multitask_sentence.commands._doors import DOORS
from multitask_sentence.export import gate
from multitask_sentence.export.folder import export_folder, smallest
from multitask_sentence.heads_multitask import task_logits
from multitask_sentence.runtime import MultiTaskRuntime

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ANIMALS, PLACES = ["cat", "dog", "bird"], ["park", "mat", "market"]
RECIPE = """
backbone: {backbone}
max_length: 20
tasks:
  mood:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: texts.csv}}}}
    validation_split: 0.4
    columns: {{sentence: text, label: mood}}
  distance:
    problem_type: regression
    dataset: {{path: csv, data_files: {{train: pairs.csv}}}}
    validation_split: 0.4
    columns: {{sentence1: a, sentence2: b, label: score}}
training: {{seed: 3}}
"""


def write_data(folder: Path, backbone: str) -> Path:
    texts = [
        f"the {animal} {verb} in the {place}" for animal in ANIMALS for verb in ("sat", "ran") for place in PLACES
    ]
    lines = ["text,mood", *(f"{text},{'good' if 'ran' in text else 'bad'}" for text in texts)]
    (folder / "texts.csv").write_text("\n".join(lines))
    pairs = [f"{one},{other},{number % 5}" for number, (one, other) in enumerate(zip(texts, texts[3:], strict=False))]
    (folder / "pairs.csv").write_text("\n".join(["a,b,score", *pairs]))
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=backbone))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def made(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with its data, exported with an int8 graph of whatever loss, and what was printed. Read only."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(2)
    tasks = {
        "mood": {"problem_type": "single_label_classification", "labels": ["bad", "good"]},
        "distance": {"problem_type": "regression", "pair": True},
    }
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks, max_length=20, normalize=True).save_pretrained(folder)
    write_data(folder, tiny_backbone)
    printed: list[str] = []
    rows = gate.load_rows(command_model(folder), folder, None, None, 10)
    export_folder(folder, rows=rows, accept_loss=list(tasks), say=printed.append)
    return folder, "\n".join(printed)


def command_model(folder: Path) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture
def folder(made: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made[0], tmp_path / "model"))


def test_smallest_graph_is_written_with_what_was_measured(made: tuple[Path, str]) -> None:
    folder, printed = made
    record = json.loads((folder / "onnx" / "export.json").read_text())
    tried = {row["method"]: row["bytes"] for row in record["int8"]["tried"]}
    assert set(tried) == {"dynamic", "static"}
    assert record["int8"]["method"] == min(tried, key=lambda method: tried[method]), "they are far from equal here"
    assert (folder / "onnx" / "model_int8.onnx").stat().st_size == min(tried.values())
    assert record["int8"]["accepted"] == ["mood", "distance"]
    assert all(text in printed for text in ("lowest cosine", "same label", "mood", "distance", "The CPU has"))
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        "export.json",
        "model.onnx",
        "model_int8.onnx",
        "pairs.onnx",
    }


def test_fastest_of_equally_small_graphs_is_chosen() -> None:
    def measured(method: str, size: int, speed: float) -> dict[str, Any]:
        return {"method": method, "bytes": size, "sentences_per_second": {"after": speed}}

    found = [measured("slow", 1_000, 5.0), measured("fast", 1_009, 6.0), measured("large", 1_011, 9.0)]
    assert smallest(found)["method"] == "fast"


def test_int8_is_near_float32_and_not_the_same(made: tuple[Path, str]) -> None:
    sentences = ["the cat sat", "a dog ran in the park", ""]
    found = MultiTaskRuntime.from_pretrained(made[0], precision="int8").encode(sentences)
    expected = MultiTaskRuntime.from_pretrained(made[0]).encode(sentences)
    assert 1e-5 < np.abs(found - expected).max() < 0.2


def test_heads_of_the_int8_graph_are_those_of_the_model(made: tuple[Path, str]) -> None:
    """The gate measures embeddings with the model's own heads, which must be what the graph has."""
    model, runtime = command_model(made[0]), MultiTaskRuntime.from_pretrained(made[0], precision="int8")
    sentences = ["the cat sat", "a dog ran in the park", ""]
    embeddings = torch.as_tensor(runtime.encode(sentences, normalize=False))
    expected = task_logits(model, embeddings, ["mood"])["mood"].detach().numpy()
    found = runtime.compute(runtime.tokenize(sentences), ["logits.mood"])["logits.mood"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_graph_that_fails_the_gate_is_not_written_and_float32_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "POINTS", -1.0)  # int8 would have to be better by a point
    monkeypatch.setattr("multitask_sentence.export.folder.POINTS", -1.0)
    with pytest.raises(
        SystemExit, match=r"error: No int8 graph for onnx .*validation rows: .*--accept_loss"
    ) as exited:
        command.main([str(folder), "--int8"])
    assert "only float32 was written" in str(exited.value)
    assert not (folder / "onnx" / "model_int8.onnx").exists()
    assert "int8" not in json.loads((folder / "onnx" / "export.json").read_text())["graphs"]
    assert MultiTaskRuntime.from_pretrained(folder).encode("good").shape == (32,)


def compared(**scores: tuple[float, float]) -> dict[str, Any]:
    return {"tasks": {task: {"before": before, "after": after} for task, (before, after) in scores.items()}}


def test_task_fails_from_three_tenths_of_a_point_on() -> None:
    scores = {"kept": (80.0, 79.71), "better": (80.0, 90.0), "lost": (80.0, 79.69), "gone": (80.0, float("nan"))}
    assert gate.failing(compared(**scores)) == ["lost", "gone"]
    assert gate.failing(compared(never=(float("nan"), float("nan")))) == []


def test_rows_are_split_by_the_seed_of_the_recipe(folder: Path) -> None:
    def measured() -> set[str]:
        rows = gate.load_rows(command_model(folder), folder, None, None, 5)
        assert set(rows.evaluation.rows) == {"mood", "distance"}
        assert len(rows.calibration) == 5
        return {rows.evaluation.sentences[place] for place in rows.evaluation.rows["mood"][:, 0]}

    first = measured()
    assert first == measured()
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 3", "seed: 4"))
    assert first != measured()


def test_cells_of_another_order_are_read_by_the_recipes_labels(folder: Path) -> None:
    def labels() -> list[int]:
        return gate.load_rows(command_model(folder), folder, None, None, 5).evaluation.labels["mood"].tolist()

    names = labels()
    assert 0 < sum(names) < len(names), "premise: rows of both classes"
    texts, recipe = folder / "texts.csv", folder / "recipe.yaml"
    texts.write_text(texts.read_text().replace(",good", ",0").replace(",bad", ",1"))  # the model has bad, good
    recipe.write_text(recipe.read_text().replace("label: mood}", "label: mood}\n    labels: [good, bad]"))
    assert labels() == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: None, r"there is no .*recipe\.yaml that says where they are"),
        (lambda text: text.replace("  distance:", "  other:"), "there is no validation row for distance"),
        (lambda text: text.replace("texts.csv", "nowhere.csv"), r"nowhere\.csv"),
        (
            lambda text: text.replace("{train: ", "{validation: ").replace("validation_split: 0.4", "where: null"),
            r"recipe\.yaml names no training rows",
        ),
    ],
)
def test_rows_that_cannot_be_measured_on_are_said_before_anything_is_done(
    folder: Path, change: Any, message: str
) -> None:
    text = change((folder / "recipe.yaml").read_text())
    if text is None:
        (folder / "recipe.yaml").unlink()
    else:
        (folder / "recipe.yaml").write_text(text)
    before = (folder / "onnx" / "export.json").stat().st_mtime_ns
    with pytest.raises(SystemExit, match=f"error: (?s:.)*{message}"):
        command.main([str(folder), "--int8"])
    assert (folder / "onnx" / "export.json").stat().st_mtime_ns == before


def test_options_of_int8_alone_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([str(folder), "--accept_loss", "mood"])
    assert "belong to --int8" in capsys.readouterr().err


def test_doctor_runs_the_gate_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor.main([str(folder), "--int8"])
    assert "onnx, " in capsys.readouterr().out
    record = json.loads((folder / "onnx" / "export.json").read_text())
    record["int8"]["accepted"] = ["mood"]
    (folder / "onnx" / "export.json").write_text(json.dumps(record))
    monkeypatch.setattr(gate, "POINTS", -1000.0)
    with pytest.raises(SystemExit, match=r"error: On this machine int8 of onnx loses .* points at distance"):
        doctor.main([str(folder), "--int8"])


def test_doctor_says_that_there_is_no_int8(folder: Path) -> None:
    record = json.loads((folder / "onnx" / "export.json").read_text())
    del record["graphs"]["int8"]
    (folder / "onnx" / "export.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=r"error: .* holds no int8 graph\. Export one"):
        doctor.main([str(folder), "--int8"])


def test_doctor_opens_the_exports_as_doors(folder: Path) -> None:
    assert "MultiTaskRuntime (onnx)" in doctor.doors_of(str(folder))
    assert "MultiTaskRuntime (openvino)" not in doctor.doors_of(str(folder))
    reference = DOORS["AutoModel"](str(folder))
    found, message = doctor.open_door("MultiTaskRuntime (onnx)", str(folder))
    assert (set(found), message) == ({"embedding", "mood"}, "")
    assert doctor.largest_difference(found, reference) <= 1e-5
    graph = folder / "onnx" / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    assert "model.onnx is damaged" in doctor.open_door("MultiTaskRuntime (onnx)", str(folder))[1]


@pytest.mark.parametrize("engine", ["openvino"])
def test_openvino_gets_an_int8_graph_by_its_own_methods(folder: Path, engine: str) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    stack = signal_stack()
    command.main([str(folder), "--engines", engine, "--int8", "--accept_loss", "mood", "distance"])
    record = json.loads((folder / engine / "export.json").read_text())
    assert {row["method"] for row in record["int8"]["tried"]} == {"dynamic128", "dynamic32"}
    graph = (folder / engine / record["graphs"]["int8"]).read_text()
    assert f'<DYNAMIC_QUANTIZATION_GROUP_SIZE value="{record["int8"]["method"].removeprefix("dynamic")}"' in graph
    found = MultiTaskRuntime.from_pretrained(folder, engine, "int8").encode("the cat sat")
    expected = MultiTaskRuntime.from_pretrained(folder, engine).encode("the cat sat")
    assert 1e-6 < np.abs(found - expected).max() < 0.2
    assert signal_stack() == stack, "OpenVINO frees the stacks that it gives to threads"
