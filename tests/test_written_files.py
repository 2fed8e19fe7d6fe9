"""What holds for every file that a run writes: the permissions that the umask gives, and no token."""

import os
import stat
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import AutoModel

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.train import main

TOKEN = "hf_madeupMadeUpMadeup"
RECIPE = {
    "max_length": 16,
    "tasks": {
        "mood": {
            "problem_type": "single_label_classification",
            "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "validation.csv"}},
            "columns": {"sentence": "text", "label": "mood"},
        }
    },
    "strategy": {"freeze": "backbone"},  # so that there is a feature cache
    "training": {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    },
}


def write_job(folder: Path, backbone: str, **changes: object) -> Path:
    """A recipe of one task, with its data; the result goes to `result` beside them."""
    for split, verb in (("train", "ran"), ("validation", "sat")):
        rows = [f"the {noun} {verb} {mood},{mood}" for noun in ("cat", "dog", "bird") for mood in ("good", "bad")]
        (folder / f"{split}.csv").write_text("\n".join(["text,mood", *rows]) + "\n")
    recipe = {**RECIPE, "backbone": backbone, **changes}
    recipe["training"] = {**RECIPE["training"], "output_dir": str(folder / "result")}
    (folder / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "job.yaml"


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets and pooled vectors of the test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("umask", [0o002, 0o027], ids=oct)
@pytest.mark.parametrize("saves", ["model", "adapter"])
def test_saved_files_have_the_permissions_that_the_umask_gives(
    umask: int, saves: str, tiny_backbone: str, caches: Path, tmp_path: Path
):
    changes = {}
    if saves == "adapter":
        pytest.importorskip("peft")
        peft = {"peft_type": "lora", "r": 2, "target_modules": ["query"], "save": "adapter"}
        changes = {"peft": peft, "strategy": {}}
    before = os.umask(umask)
    try:
        main([str(write_job(tmp_path, tiny_backbone, **changes))])
    finally:
        os.umask(before)
    found = files_of(tmp_path / "result")
    names = {path.name for path in found}
    assert {"optimizer.pt", "model.safetensors", "best.json"} <= names
    assert ("adapter_model.safetensors" in names) == (saves == "adapter")
    if saves == "model":
        shards = list(caches.rglob("*.arrow"))
        assert shards, "premise: pooled vectors were cached"
        found += shards
    others = {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in found}
    assert {path: mode for path, mode in others.items() if mode != oct(0o666 & ~umask)} == {}


def test_token_of_python_arguments_is_in_no_pickle_and_no_text(tiny_backbone: str, tmp_path: Path):
    backbone = helpers.make_backbone(tmp_path / "backbone")
    options = {"hub_token": TOKEN, "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ("sentiment",)),
        [helpers.make_set(["sentiment"], train=8, validation=4)],
        tmp_path / "run",
        **options,
    )
    trainer.train()
    assert trainer.args.hub_token == TOKEN, "premise: it is still there for a push"
    assert TOKEN not in repr(trainer.args) + str(trainer.args) + trainer.args.to_json_string()
    MultiTaskModel.from_pretrained(tmp_path / "run" / "checkpoint-1", token=TOKEN).save_pretrained(tmp_path / "again")
    opened = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True, token=TOKEN)
    opened.encode("word1 word2")  # the tokenizer is read with the same token
    opened.save_pretrained(tmp_path / "once more")
    found = files_of(tmp_path)
    assert {"training_args.bin", "tokenizer_config.json"} <= {path.name for path in found}
    assert [path for path in found if TOKEN.encode() in path.read_bytes()] == []
