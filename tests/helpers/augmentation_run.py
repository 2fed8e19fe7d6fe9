"""Augments two sets in as many processes as it is started with, and writes down what came out.

    PYTHONPATH=tests python -m torch.distributed.run --standalone --nproc_per_node 2 \
        tests/helpers/augmentation_run.py THERE BACK FOLDER

One set is translated by two models, the other goes through `say` of FOLDER/said_by.py. Each process writes
FOLDER/<process>.json: the sentences after augmentation and how many of them it gave to a model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets import Dataset
from transformers import MarianMTModel

from multitask_sentence.data.augmentation.rows import augment_sets, complete_augmentation, open_augmentations
from multitask_sentence.data.loading.tasks import TaskSource
from multitask_sentence.data.rows.sets import LabelledSet, LoadedTasks
from multitask_sentence.problem_types_multitask import PROBLEM_TYPES

SENTENCES = [f"the {word} {verb} today" for word in ("cat", "dog", "bird") for verb in ("sat", "ran", "sang")]
KIND = "single_label_classification"


def main(there: str, back: str, folder: Path) -> None:
    state = PartialState(cpu=True)
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    generated = []
    plain = MarianMTModel.generate

    def generate(self: MarianMTModel, **kwargs: Any) -> Any:
        generated.append(len(kwargs["input_ids"]))
        return plain(self, **kwargs)

    MarianMTModel.generate = generate
    blocks = {
        "mood": {"method": "back_translation", "models": [there, back], "share": 1, "max_length": 20},
        "topic": {"method": "said_by.say", "share": 0.5},
    }
    sources = [TaskSource(task, KIND, {"path": task}, {"sentence": "text", "label": "label"}) for task in blocks]
    for source in sources:
        source.augmentation = complete_augmentation(source.name, blocks[source.name])
    sets = []
    for task in blocks:
        rows = {"sentences": [[sentence] for sentence in SENTENCES], f"label_{task}": [1] * len(SENTENCES)}
        sets.append(LabelledSet([task], {"train": Dataset.from_dict(rows)}))
    loaded = LoadedTasks(sets, kinds=dict.fromkeys(blocks, PROBLEM_TYPES[KIND]))
    augment_sets(loaded, open_augmentations(sources, folder), seed=1)
    found = {
        "sentences": {found.tasks[0]: found.splits["train"]["sentences"][:] for found in loaded.sets},
        "generated": sum(generated),
    }
    (folder / f"{state.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
