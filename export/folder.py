"""Writing onnx/ and openvino/ beside the weights: whole and checked, or not at all."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..modeling_multitask import MultiTaskModel
from ..runtime import MultiTaskRuntime
from ..runtime.graphs import GRAPHS
from ..runtime.record import RECORD_FILE, RECORD_VERSION, graph_settings, hash_file, hash_weights
from .bundle import RUNTIME_FILE, bundle
from .check import check_answers, check_tokens
from .graphs import graphs_of, save_onnx, save_openvino, trace

FILES = {  # of the float32 graphs, by engine
    "onnx": {"sentences": "model.onnx", "pairs": "pairs.onnx"},
    "openvino": {"sentences": "openvino_model.xml", "pairs": "openvino_pairs.xml"},
}
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def open_model(folder: Path) -> MultiTaskModel:
    """
    The model of a trained folder, in float32 on the CPU.

    Raises:
        ValueError: the folder holds no multi-task model, or no tokenizer.json.
        OSError: its weights are missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no model. Give the folder of a trained model.")
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type != "multitask":
        raise ValueError(f"{folder} holds a {model_type!r} model, not one that was trained here.")
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder} holds no tokenizer.json, which a runtime without transformers reads texts with. Save the model "
            "with a fast tokenizer."
        )
    return MultiTaskModel.from_pretrained(folder, dtype=torch.float32).eval()


def check_engines(engines: Sequence[str]) -> None:
    """Raise an ImportError that names the packages that are missing, before anything is done."""
    packages = ["onnx", "onnxscript", *(GRAPHS[engine].package for engine in engines)]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"export needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}, or the extras "
            "onnx and openvino of this package."
        )


def write_record(folder: Path, **content: Any) -> None:
    """The record of a folder of graphs, with size and sha256 of each file that stands there."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in sorted(folder.iterdir())
        if path.name != RECORD_FILE
    }
    text = json.dumps({"record_version": RECORD_VERSION, **content, "files": files}, indent=2)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def describe_export(model: MultiTaskModel, folder: Path) -> dict[str, Any]:
    """What the record of every engine says: what the graphs are made from."""
    found = [package for package in PACKAGES if importlib.util.find_spec(package) is not None]
    return {
        "weights": hash_weights(folder),
        "settings": graph_settings(json.loads((folder / "config.json").read_text(encoding="utf-8"))),
        "embedding_dim": model.config.embedding_dim,
        "tokenizer": {
            "pad_token_id": model.tokenizer.pad_token_id or 0,
            "truncation_side": model.tokenizer.truncation_side,
        },
        "made_with": {package: importlib.metadata.version(package) for package in found},
    }


def put_in_place(made: Path, folder: Path, aside: Path) -> None:
    """Move a finished folder to its place; what stood there goes aside, and is back where that fails."""
    if folder.exists():
        os.rename(folder, aside)
    try:
        os.rename(made, folder)
    except OSError:
        if aside.exists():
            os.rename(aside, folder)
        raise


def export_folder(
    folder: Path, engines: Sequence[str] = ("onnx",), say: Callable[[str], None] = lambda text: None
) -> MultiTaskModel:
    """
    Write the graphs of a trained folder into `onnx/` and `openvino/` of the same folder, and the runtime beside them.

    Args:
        folder: of a trained model.
        engines: `onnx`, `openvino` or both.
        say: takes a line for the reader.

    Returns the model.

    Raises:
        ValueError: this is no trained model, it cannot be exported, or a graph gives other answers than the model.
            Nothing was written.
        ImportError: a package is missing.
    """
    check_engines(engines)
    model = open_model(folder)
    with TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        staging = Path(temporary)
        for name in ("config.json", "tokenizer.json"):
            shutil.copyfile(folder / name, staging / name)
        traced = staging / "traced"
        traced.mkdir()
        for name, graph in graphs_of(model).items():
            say(f"Tracing {name}.")
            save_onnx(trace(graph), traced / FILES["onnx"][name])
        about = describe_export(model, folder)
        for engine in engines:
            files = {name: FILES[engine][name] for name in graphs_of(model)}
            if engine == "onnx":
                shutil.copytree(traced, staging / engine)
            else:
                (staging / engine).mkdir()
                for name, file in files.items():
                    save_openvino(traced / FILES["onnx"][name], staging / engine / file)
            graphs = {"float32" if name == "sentences" else name: file for name, file in files.items()}
            write_record(staging / engine, engine=engine, graphs=graphs, **about)
            runtime = MultiTaskRuntime(staging, engine, "float32", None, about["weights"])
            check_tokens(model, runtime)
            found = check_answers(model, runtime, str(folder / engine))
            write_record(staging / engine, engine=engine, graphs=graphs, differences=found, **about)
            say(f"{folder / engine}: {', '.join(files.values())}; largest difference {max(found.values()):.1e}.")
            del runtime
        for engine in engines:
            put_in_place(staging / engine, folder / engine, staging / f"old-{engine}")
        (folder / RUNTIME_FILE).write_text(bundle(), encoding="utf-8")
    return model
