"""One recipe with several seeds: what scores are, and how far apart.

check_seeds      refuses what does not go with several seeds
seed_folder      where the run with a seed goes
is_finished      whether it is there already, from this recipe with these arguments
summarise_seeds  by task and metric, the mean and the range over the runs
format_seeds     the table
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..checks_multitask import is_number
from .arguments import MultiTaskTrainingArguments
from .run.output_folder import MARK_FILE, RECIPE_FILE, RESULTS_FILE, as_json

SEEDS_FILE = "seeds.json"
_OWN = ("seed", "output_dir", "resume_from_checkpoint")  # training arguments that may differ


def check_seeds(count: int, arguments: MultiTaskTrainingArguments, compare_single: bool, processes: int) -> None:
    """
    Refuse what does not go with several seeds.

    Raises:
        ValueError: says what, and what would be right.
    """
    if count < 2:
        raise ValueError(f"--seeds is {count}, but should be at least 2. For one run, choose its --seed.")
    if processes > 1:
        raise ValueError(
            f"--seeds works in one process, but there are {processes}. Start a run for each --seed instead."
        )
    reasons = {
        "compare_single": (compare_single, "a comparison belongs to one run"),
        "push_to_hub": (arguments.push_to_hub, "only one model can be published. Push the one you choose"),
        "resume_from_checkpoint": (
            arguments.resume_from_checkpoint is not None,
            "each run goes on by itself where it stopped",
        ),
    }
    for flag, (is_given, reason) in reasons.items():
        if is_given:
            raise ValueError(f"--seeds and --{flag} do not go together: {reason}. Leave --{flag} out.")


def seed_folder(output_dir: Path, seed: int) -> Path:
    return output_dir / f"seed_{seed}"


def is_finished(folder: Path, recipe_text: str, training: Mapping[str, Any]) -> bool:
    """
    Whether a folder holds a finished run of a recipe.

    Args:
        folder: of the run with one seed.
        recipe_text: the recipe as it is now.
        training: training arguments as results.json holds them.

    Raises:
        ValueError: it holds one of another recipe, or with other arguments.
    """
    if not (folder / RESULTS_FILE).is_file() or (folder / MARK_FILE).exists():
        return False
    found = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["training"]
    before, now = ({key: value for key, value in as_json(one).items() if key not in _OWN} for one in (found, training))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if (folder / RECIPE_FILE).read_text(encoding="utf-8") != recipe_text:
        changed = ["the recipe", *changed]
    if changed:
        raise ValueError(
            f"{folder} holds a run that differs from this one in {', '.join(changed)}. Runs of several seeds are "
            "otherwise alike: name another --output_dir, or train all of them anew with --overwrite."
        )
    return True


def summarise_seeds(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """
    What the runs have in common, and how far apart they are.

    Args:
        results: by seed, the content of its results.json.

    Returns `seeds`; `scores` by split, task or group, and metric: `mean`, `lowest`, `highest` and `values`, one for
    each seed in order, `None` where a score is undefined; the first three leave those out.
    """
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    first = next(iter(results.values()))["scores"]
    for split, by_task in first.items():
        for task, metrics in by_task.items():
            for metric in metrics:
                values = [found["scores"].get(split, {}).get(task, {}).get(metric) for found in results.values()]
                known = [value for value in values if is_number(value)]
                scores.setdefault(split, {}).setdefault(task, {})[metric] = {
                    "mean": statistics.fmean(known) if known else None,
                    "lowest": min(known, default=None),
                    "highest": max(known, default=None),
                    "values": values,
                }
    return {"seeds": list(results), "scores": scores}


def format_seeds(summary: Mapping[str, Any], metrics: Mapping[str, Sequence[str]]) -> str:
    """
    A line for each task and metric: `0.7102 [0.7034, 0.7171]` is a mean with the lowest and the highest score.

    Args:
        summary: what `summarise_seeds` gave.
        metrics: by task and group, the metrics that it lists.
    """

    def cell(found: Mapping[str, Any] | None) -> str:
        if found is None or found["mean"] is None:
            return "-"
        return f"{found['mean']:.4f} [{found['lowest']:.4f}, {found['highest']:.4f}]"

    scores, rows = summary["scores"], []
    for name, listed in metrics.items():
        for place, metric in enumerate(listed):
            cells = [cell(scores[split].get(name, {}).get(metric)) for split in scores]
            rows.append([name if place == 0 else "", metric, *cells])
    count = len(summary["seeds"])
    title = f"{count} seeds ({', '.join(map(str, summary['seeds']))}): mean [lowest, highest]"
    return title + "\n" + tabulate(rows, ["task", "metric", *scores], disable_numparse=True)


__all__ = ["SEEDS_FILE", "check_seeds", "format_seeds", "is_finished", "seed_folder", "summarise_seeds"]
