"""The record of an export: what its graphs were made from, and whether that is what stands beside them.

graph_settings   what of a config.json is built into the graphs
read_json        a file of JSON that was exported
hash_weights     the sha256 of each file of weights
truncation_side  where long texts are cut
check_sizes      refuses files that are not complete
check_content    refuses files that are not what was exported
check_record     refuses graphs that belong to other weights or settings
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

RECORD_FILE = "export.json"
ADAPTER_WEIGHTS = "adapter/adapter_model.safetensors"
TOKENIZER_SETTINGS = "tokenizer_config.json"
MANIFEST = "manifest.json"  # of the whole folder, where it has one
RECORD_VERSION = 1  # grows when a record means something that older code would read wrongly
EXPORT_IT = "Export it: multitask-sentence export FOLDER."


def hash_file(path: str | os.PathLike) -> str:
    """The sha256 of a file."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # hashlib.file_digest would need Python 3.11
            hashed.update(block)
    return hashed.hexdigest()


def graph_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config.json is built into the graphs, so that they are void when it changes."""
    tasks = {
        name: {
            "problem_type": task["problem_type"],
            "pair": task["pair"],
            "num_labels": len(task.get("labels") or ()),
            "target_mean": task.get("target_mean"),
            "target_deviation": task.get("target_deviation"),
        }
        for name, task in sorted((config.get("tasks") or {}).items())
    }
    settings = {key: config.get(key) for key in ("pooling", "projection", "normalize", "base_revision")}
    return {**settings, "backbone": config["backbone_config"].get("model_type"), "tasks": tasks}


def read_json(path: Path) -> dict[str, Any]:
    """A ValueError for a file that is no mapping, as after damage."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping. Download it again, or export again.")
    return found


def hash_weights(folder: Path) -> dict[str, str]:
    """The sha256 of each file of weights of the model in a folder, by its path; of an adapter its own, too."""
    is_adapter = bool(read_json(folder / "config.json").get("base_name_or_path"))
    paths = [*folder.glob("*.safetensors"), *(folder.glob(ADAPTER_WEIGHTS) if is_adapter else ())]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(paths)}


def truncation_side(folder: Path, record: dict[str, Any]) -> str:
    """Where long texts are cut: as the tokenizer beside the graphs says, or as it did when they were exported."""
    path = folder / TOKENIZER_SETTINGS
    settings = read_json(path) if path.is_file() else record["tokenizer"]
    return settings.get("truncation_side", "right")  # transformers leaves it out where it is not set


def check_sizes(where: Path, record: dict[str, Any]) -> None:
    """A ValueError for a file that is not complete, as after a download that broke off."""
    for name, size in record["files"].items():
        path = where / name
        if path.is_file() and path.stat().st_size != size["bytes"]:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, but was exported with {size['bytes']:,}, so it is not "
                "complete. Download it again, or export again."
            )


def check_content(folder: Path, where: Path, record: dict[str, Any]) -> None:
    """
    Compare the sha256 of all that a runtime reads with the record and, where there is one, the folder's manifest.

    Args:
        folder: of the model.
        where: the folder of the graphs in it.
        record: its export.json.

    Raises:
        ValueError: a file is not what was exported; names it.
    """
    expected = {where / name: entry["sha256"] for name, entry in record["files"].items()}
    if (folder / MANIFEST).is_file():
        files = read_json(folder / MANIFEST).get("files") or {}
        read = ("config.json", "tokenizer.json", TOKENIZER_SETTINGS, f"{where.name}/{RECORD_FILE}")
        expected |= {folder / name: files[name]["sha256"] for name in read if name in files}
    for path, sha256 in expected.items():
        if path.is_file() and hash_file(path) != sha256:  # a download holds only what one engine reads
            raise ValueError(f"{path} is not what was exported: its sha256 is another. Download it, or export, again.")


def check_record(where: str, record: dict[str, Any], config: dict[str, Any], weights: dict[str, str]) -> None:
    """
    Refuse graphs that were made from other weights or settings than those beside them.

    Args:
        where: the folder of the graphs, for the message.
        record: its export.json.
        config: the config.json beside it.
        weights: the sha256 of each file of weights there is; a folder without any has nothing to belong to.

    Raises:
        ValueError: says what differs, and to export again.
    """
    remedy = "Export again: multitask-sentence export FOLDER."
    if record.get("record_version", 0) > RECORD_VERSION:
        raise ValueError(
            f"{where} was exported by a newer version of this code (record {record['record_version']}; this one knows "
            f"{RECORD_VERSION}). Take the runtime_multitask.py that stands beside it."
        )
    for name in weights:
        if weights[name] != record["weights"].get(name):
            raise ValueError(
                f"{where} was exported from other weights than {name} beside it: its sha256 is "
                f"{weights[name][:12]}..., the export's {str(record['weights'].get(name))[:12]}... {remedy}"
            )
    found, expected = graph_settings(config), record["settings"]
    for key in found:
        if found[key] != expected.get(key):
            raise ValueError(
                f"{where} was exported with another config.json: {key} was {expected.get(key)!r}, and is "
                f"{found[key]!r} now. {remedy}"
            )
