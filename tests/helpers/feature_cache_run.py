"""Trains on cached features in as many processes as it is started with, and writes down what came out.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/feature_cache_run.py BACKBONE FOLDER CACHE

Each process writes its weights (FOLDER/weights.<process>.safetensors), how many sentences it encoded and the last
scores (FOLDER/results.<process>.json).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import datasets
from safetensors.torch import save_file

from helpers.trainer import MEAN_LOSS_TASKS, make_model, make_set, make_trainer
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.trainer import MultiTaskTrainer


def make_sets() -> list[LabelledSet]:
    """28 rows: 4 steps of 8, the last of which holds a filler for one of two processes that take 4 each."""
    return [make_set(list(MEAN_LOSS_TASKS), {"tags": 0.5}, train=28, validation=9)]


def train(backbone: Path, folder: Path, **arguments: Any) -> MultiTaskTrainer:
    """Two epochs with an evaluation after each."""
    model = make_model(backbone, MEAN_LOSS_TASKS)
    model.backbone.requires_grad_(False)
    trainer = make_trainer(
        model, make_sets(), folder, **{"num_train_epochs": 2, "eval_strategy": "epoch", **arguments}
    )
    trainer.train()
    return trainer


def main(backbone: Path, folder: Path, cache: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = cache
    process = os.environ["RANK"]
    encoded: list[int] = []
    plain = MultiTaskModel._pooled_batch

    def counted(model, token_ids):
        encoded.append(len(token_ids))
        return plain(model, token_ids)

    MultiTaskModel._pooled_batch = counted
    trainer = train(backbone, folder / "run", per_device_train_batch_size=4)
    save_file(trainer.model.state_dict(), folder / f"weights.{process}.safetensors")
    timed = ("runtime", "per_second")
    last = next(entry for entry in reversed(trainer.state.log_history) if "eval_score" in entry)
    scores = {key: value for key, value in last.items() if key.startswith("eval_") and not key.endswith(timed)}
    (folder / f"results.{process}.json").write_text(json.dumps({"encoded": sum(encoded), "scores": scores}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
