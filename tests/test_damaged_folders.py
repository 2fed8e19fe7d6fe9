"""What a damaged or doctored folder gets: one clear error, never a model with weights made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from multitask_sentence import MultiTaskConfig, MultiTaskModel


@pytest.fixture
def folder(tiny_model: MultiTaskModel, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def load(folder: Path) -> MultiTaskModel:
    return AutoModel.from_pretrained(folder, trust_remote_code=True)


def test_missing_head_weights_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("heads.mood.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights are missing for heads\.mood\.layers\.1\.bias"):
        load(folder)


def test_label_list_that_does_not_match_the_weights_is_named(folder: Path) -> None:
    change_config(folder, lambda config: config["tasks"]["mood"]["labels"].append("mixed"))
    with pytest.raises(ValueError, match=r"heads\.mood\.layers\.1\.bias has the shape \(3,\).*asks for \(4,\)"):
        load(folder)


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"x" * 1000])
def test_damaged_safetensors_are_an_error(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(OSError, match="the weights are damaged or not complete"):
        load(folder)


def test_pickle_in_place_of_safetensors_is_never_opened(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (folder / "opened",))

    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load(folder)
    assert not (folder / "opened").exists()


def test_model_of_a_newer_version_is_refused(folder: Path) -> None:
    change_config(folder, lambda config: config.update(format_version=2))
    with pytest.raises(ValueError, match=r"saved by a newer version of this code \(format 2; this one knows 1\)"):
        MultiTaskConfig.from_pretrained(folder)


def test_code_is_not_run_without_trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(folder)


def test_loading_report_and_other_sizes_can_still_be_asked_for(folder: Path) -> None:
    model, report = MultiTaskModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    change_config(folder, lambda config: config["tasks"]["mood"]["labels"].append("mixed"))
    wider = MultiTaskModel.from_pretrained(folder, ignore_mismatched_sizes=True)
    assert wider.heads["mood"].layers[-1].out_features == 4
    assert torch.equal(wider.projection.linear.weight, model.projection.linear.weight)
