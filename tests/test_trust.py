"""No code runs and nothing is unpickled unless the caller says `trust_remote_code=True`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel

from multitask_sentence import MultiTaskModel, backbone_multitask

TASKS = {"mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]}}
LORA = LoraConfig(r=3, target_modules=["query", "value"])
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

open({mark!r}, "w").close()


class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


class Unpickled:
    """Leaves a mark where it is unpickled without care."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture(autouse=True)
def never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any) -> str:
        raise AssertionError(f"asked on the terminal: {words}")

    monkeypatch.setattr("builtins.input", fail)


def pickle_weights(folder: Path, sharded: bool = False) -> None:
    """Puts pytorch_model.bin in the place of model.safetensors."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin"
    torch.save(weights, folder / name)
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_tokenizer_of_its_own(folder: Path) -> Path:
    """Gives a folder's tokenizer code of its own; where that leaves a mark when it is run."""
    mark = folder.with_name(f"{folder.name} ran")
    (folder / "tokenization_mine.py").write_text(TOKENIZER.format(mark=str(mark)))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "tokenizer_class": "MineTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_mine.MineTokenizer"]},
    }
    path.write_text(json.dumps(settings))
    return mark


@pytest.fixture
def backbone(tiny_backbone: str, tmp_path: Path) -> Path:
    """A copy of the tiny backbone to change."""
    return shutil.copytree(tiny_backbone, tmp_path / "mine")


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_backbone_is_refused_with_the_remedy_unless_trusted(
    backbone: Path, tiny_backbone: str, sharded: bool
) -> None:
    pickle_weights(backbone, sharded)
    message = r"mine: its weights are pickled \(pytorch_model\.bin.*SentenceTransformer\(name\)\.save_pretrained\(fol"
    with pytest.raises(ValueError, match=message):
        MultiTaskModel.from_backbone(backbone)
    opened = MultiTaskModel.from_backbone(backbone, trust_remote_code=True)
    expected = MultiTaskModel.from_backbone(tiny_backbone).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in opened.state_dict().items())


def test_backbone_without_any_weights_is_not_called_pickled(backbone: Path) -> None:
    (backbone / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        MultiTaskModel.from_backbone(backbone)


def test_pickle_that_runs_code_does_not_run_even_where_it_is_trusted(backbone: Path, tmp_path: Path) -> None:
    (backbone / "model.safetensors").unlink()
    torch.save({"weight": Unpickled(tmp_path / "ran")}, backbone / "pytorch_model.bin")
    for trusted in (False, True):
        with pytest.raises(Exception, match=r"pickled|Weights only load failed|weights_only"):
            MultiTaskModel.from_backbone(backbone, trust_remote_code=trusted)
    assert not (tmp_path / "ran").exists()


def test_remedy_for_a_pickled_backbone_works(backbone: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = MultiTaskModel.from_backbone(backbone).encode("the cat sat")
    pickle_weights(backbone)
    SentenceTransformer(str(backbone), device="cpu").save_pretrained(str(tmp_path / "folder"))
    assert (MultiTaskModel.from_backbone(tmp_path / "folder").encode("the cat sat") == expected).all()


def save_adapter(base: Path, folder: Path) -> None:
    model = MultiTaskModel.from_backbone(base, tasks=TASKS)
    model.add_adapter(LORA)
    model.save_pretrained(folder)


@pytest.mark.parametrize("trusted", [{}, {"trust_remote_code": True}])
def test_pickled_base_of_an_adapter_is_refused(backbone: Path, tmp_path: Path, trusted: dict[str, bool]) -> None:
    save_adapter(backbone, tmp_path / "adapter")
    pickle_weights(backbone)
    with pytest.raises(ValueError, match=r"saved as an adapter on \S+mine, which cannot .*its weights are pickled"):
        MultiTaskModel.from_pretrained(tmp_path / "adapter", **trusted)


def test_base_of_an_adapter_that_points_elsewhere_runs_no_code(backbone: Path, tmp_path: Path) -> None:
    save_adapter(backbone, tmp_path / "adapter")
    elsewhere = shutil.copytree(backbone, tmp_path / "elsewhere")
    (elsewhere / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Mine: pass\n")
    for path, auto_map in ((elsewhere, {"AutoModel": "modeling_mine.Mine"}), (tmp_path / "adapter", None)):
        config = json.loads((path / "config.json").read_text())
        config |= {"auto_map": auto_map} if auto_map else {"base_name_or_path": str(elsewhere)}
        config.get("backbone_config", {})["auto_map"] = {"AutoModel": f"{elsewhere}--modeling_mine.Mine"}
        (path / "config.json").write_text(json.dumps(config))
    opened = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert type(opened.backbone).__name__ == "BertModel"
    assert not (tmp_path / "ran").exists()


def test_trained_base_of_an_adapter_whose_tokenizer_has_code_is_refused(backbone: Path, tmp_path: Path) -> None:
    MultiTaskModel.from_backbone(backbone, tasks=TASKS).save_pretrained(tmp_path / "base")
    model = MultiTaskModel.from_pretrained(tmp_path / "base")
    model.add_adapter(LORA)
    model.save_pretrained(tmp_path / "adapter")
    mark = write_tokenizer_of_its_own(tmp_path / "base")
    with pytest.raises(ValueError, match=r"saved as an adapter on \S+base, which cannot be opened: .*tokenizer"):
        AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert not mark.exists()


def test_tokenizer_of_a_backbone_runs_its_code_only_where_it_is_trusted(
    backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, warnings = write_tokenizer_of_its_own(backbone), []
    monkeypatch.setattr(backbone_multitask.logger, "warning", warnings.append)
    plain = MultiTaskModel.from_backbone(backbone).tokenizer
    assert (type(plain).__name__, mark.exists()) == ("TokenizersBackend", False)
    assert len(warnings) == 1
    assert "mine: its tokenizer brings code of its own, which was not run" in warnings[0]
    own = MultiTaskModel.from_backbone(backbone, trust_remote_code=True).tokenizer
    assert (type(own).__name__, mark.exists(), len(warnings)) == ("MineTokenizer", True, 1)


def test_tokenizer_with_code_travels_with_the_model_and_is_run_only_where_it_is_trusted(
    backbone: Path, tmp_path: Path
) -> None:
    mark = write_tokenizer_of_its_own(backbone)
    saved = MultiTaskModel.from_backbone(backbone, tasks=TASKS, trust_remote_code=True)
    saved.save_pretrained(tmp_path / "saved")
    shutil.rmtree(backbone)
    mark.unlink()
    for options in ({}, {"trust_remote_code": False}):
        with pytest.raises(OSError, match=r"(?s)tokenizer cannot be read .*trust_remote_code=True"):
            MultiTaskModel.from_pretrained(tmp_path / "saved", **options)
    assert not mark.exists()
    for kind in (MultiTaskModel, AutoModel):
        opened = kind.from_pretrained(tmp_path / "saved", trust_remote_code=True)
        assert type(opened.tokenizer).__name__ == "MineTokenizer"
        assert (opened.encode("the cat sat") == saved.encode("the cat sat")).all()
    assert mark.exists()
