"""What opening a model costs beyond opening its bare backbone, in time and on disk.

    python benchmarks/loading.py [--runs 5] [--json FILE]

Each run is a fresh process; the two take turns, and the medians of the wall-clock time inside the process (imports of
torch and transformers excluded, the import of the model's own code included) are compared.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring
from transformers import AutoModel, AutoTokenizer

from multitask_sentence import MultiTaskModel
from multitask_sentence.backbone_multitask import find_backbone
from multitask_sentence.training.recipe.recipe import DEFAULT_BACKBONE

# `AutoModel` and `BertModel` are imported first: what is timed is the model's own code and its weights.
LOAD = """
import sys, time
from transformers import AutoModel, BertModel
started = time.perf_counter()
AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(time.perf_counter() - started)
"""


def seconds_to_load(folder: Path) -> float:
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the table into this file, beside those that it holds")
    options = parser.parse_args()
    tasks = {
        "sentiment": {
            "problem_type": "single_label_classification",
            "labels": ["negative", "neutral", "positive"],
            "head": {"hidden_dims": [256]},
        },
        "topic": {"problem_type": "single_label_classification", "labels": ["a", "b", "c", "d"]},
        "similarity": {"problem_type": "similarity"},
    }
    with tempfile.TemporaryDirectory() as place:
        bare, ours = Path(place, "bare"), Path(place, "ours")
        backbone = find_backbone(DEFAULT_BACKBONE)
        AutoModel.from_pretrained(backbone, add_pooling_layer=False).save_pretrained(bare)
        AutoTokenizer.from_pretrained(backbone).save_pretrained(bare)
        model = MultiTaskModel.from_backbone(DEFAULT_BACKBONE, tasks)
        model.save_pretrained(ours)
        heads = sum(parameter.numel() * parameter.element_size() for parameter in model.heads.parameters()) / 1e6

        times: dict[Path, list[float]] = {bare: [], ours: []}
        for run in range(options.runs + 1):
            for folder in (bare, ours):
                seconds = seconds_to_load(folder)
                if run:  # the first round only warms up the disk cache and the cache of remote code
                    times[folder].append(seconds)
        medians = {folder: statistics.median(found) for folder, found in times.items()}
        rows = [
            ["bare backbone", f"{medians[bare]:.3f} s", f"{megabytes(bare):.2f} MB"],
            ["MultiTaskModel", f"{medians[ours]:.3f} s", f"{megabytes(ours):.2f} MB"],
            [
                "difference",
                f"{medians[ours] - medians[bare]:+.3f} s",
                f"{megabytes(ours) - megabytes(bare):+.2f} MB, of which heads {heads:.2f} MB",
            ],
        ]
    title = f"opening {DEFAULT_BACKBONE} with three tasks, median of {options.runs}"
    measuring.report(title, ["", "loading", "folder"], rows, options.json)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
