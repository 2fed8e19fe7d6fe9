"""Is the risk that `abstain: {risk: 0.05}` promises kept on test?

    python train.py RECIPE                                          # writes predictions/
    python benchmarks/abstention.py RUN... [--risks 0.02 0.05 0.1 0.2] [--json out.json]

RUN is a finished folder, or an output of `multitask-sentence evaluate`: any folder with predictions/<task>.parquet of
validation and test rows. For each single-label task and each risk, the confidence is chosen on the validation rows, as
a run does, and the test rows are then counted once. The table has the share of test rows that get a label, the share
of wrong ones among these with its exact 95 % interval, and whether the promise was kept:

    kept        the share of wrong labels is within the risk
    by chance   it is above, but the interval reaches down to the risk
    broken      it is above, and the interval too
    no label    no confidence keeps the risk with 95 % certainty, so that the task gives no label
"""

import argparse
import json
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import pandas as pd
from scipy.stats import binomtest
from tabulate import tabulate

from multitask_sentence.training.calibration.abstention import choose_confidence, describe_answered

RISKS = (0.02, 0.05, 0.1, 0.2)


def verdict(risk: float, answered: int, wrong: int) -> tuple[str, list[float] | None]:
    """Whether a promise was kept, and the exact 95 % interval of the share of wrong labels."""
    if not answered:
        return "no label", None
    interval = binomtest(wrong, answered).proportion_ci(0.95, "exact")
    kept = "kept" if wrong / answered <= risk else "by chance" if interval.low <= risk else "broken"
    return kept, [round(float(end), 6) for end in interval]


def read_task(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """By split, `confidences` and `is_wrong` `(rows,)`; nothing of a task without a label or probabilities a row."""
    rows = pd.read_parquet(path)
    if "probabilities" not in rows or not isinstance(rows["label"].iloc[0], str):
        return {}
    return {
        str(split): {
            "confidences": np.array([max(row) for row in own["probabilities"]]),
            "is_wrong": (own["label"] != own["prediction"]).to_numpy(),
        }
        for split, own in rows.groupby("split")
    }


def measure_task(found: dict[str, dict[str, np.ndarray]], risk: float) -> dict[str, Any]:
    """What became of a promise."""
    chosen = choose_confidence(**found["validation"], risk=risk)
    test = describe_answered(**found["test"], confidence=chosen.confidence)
    kept, interval = verdict(risk, test["answered"], test["wrong"])
    return {
        "risk": risk,
        "confidence": chosen.confidence,
        "lowest_risk": round(chosen.lowest_risk, 6),
        "validation": describe_answered(**found["validation"], confidence=chosen.confidence),
        "test": {**test, "interval": interval},
        "wrong_of_all": {split: round(float(own["is_wrong"].mean()), 6) for split, own in found.items()},
        "verdict": kept,
    }


def measure(folder: Path, risks: list[float]) -> dict[str, list[dict[str, Any]]]:
    """By task, a promise for each risk."""
    measured = {}
    for path in sorted((folder / "predictions").glob("*.parquet")):
        found = read_task(path)
        if {"validation", "test"} <= found.keys():
            measured[path.stem] = [measure_task(found, risk) for risk in risks]
    return measured


def table_rows(task: str, promises: list[dict[str, Any]]) -> list[list[str]]:
    """Of each promise the figures on test."""
    rows = []
    for promise in promises:
        validation, test, interval = promise["validation"], promise["test"], promise["test"]["interval"]
        rows.append(
            [
                task,
                f"{validation['rows']:,}",
                f"{100 * promise['wrong_of_all']['validation']:.1f} / {100 * promise['wrong_of_all']['test']:.1f}",
                f"{100 * promise['risk']:g}",
                f"{100 * test['coverage']:.1f}",
                f"{100 * test['risk']:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "-",
                promise["verdict"],
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders with predictions/")
    parser.add_argument("--risks", nargs="+", type=float, default=RISKS)
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    names = [folder.name for folder in options.runs]
    if len(set(names)) < len(names):
        names = list(map(str, options.runs))
    found = {name: measure(folder, options.risks) for name, folder in zip(names, options.runs, strict=True)}
    rows = [row for tasks in found.values() for task, promises in tasks.items() for row in table_rows(task, promises)]
    header = [
        "task",
        "validation rows",
        "wrong of all, validation / test",
        "risk",
        "labelled",
        "risk on test",
        "promise",
    ]
    measuring.say(tabulate(rows, header, disable_numparse=True))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
