"""Writing onnx/ and openvino/ beside the weights: whole and checked, or not at all."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..data.cache.locks import fcntl
from ..manifest_multitask import MANIFEST_FILE, update_manifest
from ..modeling_multitask import MultiTaskModel
from ..runtime import MultiTaskRuntime
from ..runtime.graphs import GRAPHS
from ..runtime.record import RECORD_FILE, RECORD_VERSION, graph_settings, hash_file, hash_weights
from ..runtime.scopes import SCOPES_FILE
from ..staging_multitask import as_disk_error, files_of, write_whole
from .bundle import RUNTIME_FILE, bundle
from .check import check_answers, check_tokens
from .gate import POINTS, GateRows, answers_of, compare, cpu_features, failing, format_gate
from .graphs import graphs_of, save_onnx, save_openvino, trace
from .int8 import INT8_FILES, METHODS, quantise

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


def check_engines(engines: Sequence[str], int8: bool = False) -> None:
    """Raise an ImportError that names the packages that are missing, before anything is done."""
    packages = ["onnx", "onnxscript", *(GRAPHS[engine].package for engine in engines)]
    packages += ["nncf"] if int8 and "openvino" in engines else []
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


def _lock(folder: str | os.PathLike) -> int | None:
    """The descriptor of a folder that nobody else holds, until it is closed; `None` where somebody does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also of file systems without locks
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def staging_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `folder` for what is not finished. Those that killed processes have left there are removed."""
    for left in folder.glob(f"{prefix}*"):
        if (descriptor := _lock(left)) is not None:
            shutil.rmtree(left)
            os.close(descriptor)
    with TemporaryDirectory(dir=folder, prefix=prefix) as temporary:
        descriptor = _lock(temporary)
        try:
            yield Path(temporary)
        finally:
            if descriptor is not None:
                os.close(descriptor)


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


def _write_handler(folder: Path, say: Callable[[str], None]) -> None:
    """What an Inference Endpoint calls, where there is none of somebody's own."""
    content, path = Path(__file__).with_name("handler.py").read_bytes(), folder / "handler.py"
    if path.is_file() and path.read_bytes() != content:
        say(f"{path} is not as export writes it, so it stays. To replace it, remove it and export again.")
        return
    write_whole(path, content)


def save_scopes(model: MultiTaskModel, path: Path) -> None:
    """The buffers of the model's scopes, by `task.buffer`, for a runtime without torch and safetensors."""
    scopes = {name: head.scope.state_dict() for name, head in model.heads.items() if head.scope is not None}
    np.savez(path, **{f"{task}.{key}": value.numpy() for task, own in scopes.items() for key, value in own.items()})


class LossError(ValueError):
    """No int8 graph passes the gate."""


def smallest(candidates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The smallest of the measured graphs; of those within 1 % of it, the fastest."""
    least = min(row["bytes"] for row in candidates)
    near = [row for row in candidates if row["bytes"] <= 1.01 * least]
    return max(near, key=lambda row: row["sentences_per_second"]["after"])


def add_int8(
    model: MultiTaskModel,
    staging: Path,
    record: dict[str, Any],
    rows: GateRows,
    accept_loss: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """
    Write the smallest int8 graph that passes the gate beside the float32 one.

    Args:
        model: the model.
        staging: the folder above that of the graphs.
        record: of the float32 graphs.
        rows: what is measured on.
        accept_loss: tasks that may lose.
        say: takes a line for the reader.

    Returns the record, with the graph and what was measured.

    Raises:
        LossError: none passes; names the tasks that lose too much.
    """
    engine, file = record["engine"], INT8_FILES[record["engine"]]
    folder, tried = staging / record["engine"], staging / f"tried-{record['engine']}"
    plain = MultiTaskRuntime(staging, engine, "float32", None, record["weights"])
    before = answers_of(model, plain, rows.evaluation)
    feeds = [plain.inputs([ids]) for ids in plain.tokenize(rows.calibration)]
    candidates: list[dict[str, Any]] = []
    for method in METHODS[engine]:
        say(f"Quantising for {engine}: {method}.")
        target = tried / method
        target.mkdir(parents=True)
        quantise(engine, method, folder / record["graphs"]["float32"], target / file, feeds, plain.embedding_output)
        made = sorted(target.iterdir())
        for path in made:
            os.rename(path, folder / path.name)
        write_record(folder, **{**record, "graphs": {**record["graphs"], "int8": file}})
        runtime = MultiTaskRuntime(staging, engine, "int8", None, record["weights"])
        compared = compare(model, before, answers_of(model, runtime, rows.evaluation))
        del runtime
        for path in made:
            os.rename(folder / path.name, path)
        size = sum(path.stat().st_size for path in made)
        candidates.append({"method": method, "bytes": size, **compared})
    say(format_gate(candidates))
    passing = [row for row in candidates if not set(failing(row)) - set(accept_loss)]
    if not passing:
        lost = min((failing(row) for row in candidates), key=len)
        counts = ", ".join(f"{task} {len(rows.evaluation.rows[task])}" for task in lost)
        raise LossError(
            f"No int8 graph for {engine} keeps every task within {POINTS} points of float32 (validation rows: "
            f"{counts}), so only float32 was written. Where the loss is worth it: --accept_loss {' '.join(lost)}."
        )
    chosen = smallest(passing)
    for path in (tried / chosen["method"]).iterdir():
        os.rename(path, folder / path.name)
    say(f"Kept {chosen['method']}, {chosen['bytes'] / 1e6:.1f} MB.")
    gate = {"points": POINTS, "cpu": cpu_features(), "accepted": list(accept_loss), "tried": candidates}
    return {**record, "graphs": {**record["graphs"], "int8": file}, "int8": {"method": chosen["method"], **gate}}


def export_folder(
    folder: Path,
    engines: Sequence[str] = ("onnx",),
    rows: GateRows | None = None,
    accept_loss: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> MultiTaskModel:
    """
    Write the graphs of a trained folder into `onnx/` and `openvino/` of the same folder, and the runtime beside them.

    Args:
        folder: of a trained model.
        engines: `onnx`, `openvino` or both.
        rows: what int8 is measured on, from `load_rows`; `None` for no int8.
        accept_loss: tasks that int8 may take more from than `POINTS`.
        say: takes a line for the reader.

    Returns the model.

    Raises:
        ValueError: this is no trained model, it cannot be exported, or a graph gives other answers than the model.
            Nothing was written.
        LossError: int8 was asked for, and no graph of it passes the gate. The float32 graphs were written.
        ImportError: a package is missing.
    """
    check_engines(engines, int8=rows is not None)
    model = open_model(folder)
    model._check_tasks(accept_loss)
    refused: list[str] = []
    with as_disk_error(folder), staging_folder(folder, ".export-") as staging:
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
            record = {"engine": engine, "graphs": graphs, **about}
            if any(task.out_of_scope for task in model.config.tasks.values()):
                save_scopes(model, staging / engine / SCOPES_FILE)
                record["scopes"] = SCOPES_FILE
            write_record(staging / engine, **record)
            runtime = MultiTaskRuntime(staging, engine, "float32", None, about["weights"])
            check_tokens(model, runtime)
            record["differences"] = check_answers(model, runtime, str(folder / engine))
            largest = max(record["differences"].values())
            say(f"{folder / engine}: {', '.join(files.values())}; largest difference {largest:.1e}.")
            if rows is not None:
                try:
                    record = add_int8(model, staging, record, rows, accept_loss, say)
                except LossError as error:
                    refused.append(str(error))
            write_record(staging / engine, **record)
            del runtime
        for engine in engines:
            earlier = folder / engine / INT8_FILES[engine]
            if earlier.exists() and not (staging / engine / earlier.name).exists():
                say(f"{earlier} is removed. To have one again: export with --int8.")
            put_in_place(staging / engine, folder / engine, staging / f"old-{engine}")
        write_whole(folder / RUNTIME_FILE, bundle())
        _write_handler(folder, say)
        if not (folder / "requirements.txt").exists():  # what an Inference Endpoint installs
            packages = ["numpy", "tokenizers", *(GRAPHS[engine].package for engine in engines)]
            write_whole(folder / "requirements.txt", "\n".join(packages) + "\n")
    if (folder / MANIFEST_FILE).is_file():
        made = [f"{engine}/{name}" for engine in engines for name in files_of(folder / engine)]
        update_manifest(folder, [*made, RUNTIME_FILE, "handler.py", "requirements.txt"])
    if refused:
        raise LossError(" ".join(refused))
    return model
