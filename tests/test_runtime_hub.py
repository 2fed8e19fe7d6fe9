"""The runtime and the Hub's cache: what opens without a network, what is said of one, and what is verified."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from helpers.hub_server import HubServer
from multitask_sentence import MultiTaskModel
from multitask_sentence.export.folder import export_folder
from multitask_sentence.runtime import MultiTaskRuntime
from multitask_sentence.training.report.publish import push_folder

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was exported. Read only."""
    folder = tmp_path_factory.mktemp("runtime_hub") / "model"
    tasks = {"mood": {"problem_type": "single_label_classification", "labels": ["bad", "good"]}}
    MultiTaskModel.from_backbone(tiny_backbone, tasks, max_length=20).save_pretrained(folder)
    export_folder(folder, ["onnx"])
    return folder


@pytest.fixture
def hub(folder: Path, nearby: HubServer) -> HubServer:
    push_folder(str(folder), "team/model")
    return nearby


def open_model(tmp_path: Path, **options: Any) -> MultiTaskRuntime:
    return MultiTaskRuntime.from_pretrained("team/model", cache_dir=str(tmp_path / "cache"), **options)


def stop(hub: HubServer) -> None:
    """From now on there is nobody at its address, on the connections that are open neither."""
    hub.__exit__()
    close_session()


@pytest.mark.parametrize("verify", [False, True])
def test_repository_that_was_opened_once_opens_without_a_network(hub: HubServer, tmp_path: Path, verify: bool) -> None:
    expected = open_model(tmp_path, verify=verify).encode("a cat")
    stop(hub)
    assert (open_model(tmp_path, verify=verify).encode("a cat") == expected).all()


def test_hub_that_cannot_be_reached_is_no_repository_without_an_export(hub: HubServer, tmp_path: Path) -> None:
    stop(hub)
    with pytest.raises(OSError, match=r"team/model cannot be reached, .*check your connection"):
        open_model(tmp_path)


def test_repository_without_an_export_is_refused(hub: HubServer, tmp_path: Path) -> None:
    files = hub.repositories["team/model"].branches["main"][-1].files
    del files["onnx/export.json"]
    with pytest.raises(ValueError, match="so it was not exported"):
        open_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_changed_file_of_a_repository_is_found(hub: HubServer, tmp_path: Path, name: str) -> None:
    open_model(tmp_path, verify=True)
    (path,) = (tmp_path / "cache").glob(f"models--team--model/snapshots/*/{name}")
    path.write_bytes(path.read_bytes().replace(b"\n", b" \n", 1))
    open_model(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is not what was exported: its sha256 is another"):
        open_model(tmp_path, verify=True)


def test_what_cannot_be_verified_is_not_opened(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_model(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    open_model(tmp_path)
    with pytest.raises(OSError, match=r"manifest\.json"):
        open_model(tmp_path, verify=True)
