"""The model card: a finished folder's README.md and its pictures, made of what the run measured and of nothing else.

write_model_card   reads results.json, config.json and recipe.yaml, writes README.md and the pictures
card_metadata      its YAML header (metadata.py), which the Hub's search, links and score tables are made from
render_card        what a person reads: template.md.jinja, filled by body.py
is_generated       whether a card still is as it was written (publish.py); one that somebody edited is kept
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...configuration_multitask import MultiTaskConfig
from ...manifest_multitask import listed
from ...tasks_multitask import TaskConfig, complete_task
from ..comparison.report import draw_comparison
from ..distillation.report import draw_distilled
from ..distillation.settings import name_unlabeled
from ..evaluation.groups import TaskGroup, read_groups
from ..recipe.yaml_file import read_yaml
from ..report.confusion import most_wrong, read_confusion
from ..report.plots import draw_confusion, draw_reliability, draw_risk_coverage, draw_training
from ..report.publish import CARD_FILE, CARD_FILE_BESIDE_AN_EDITED_ONE, MARK, is_generated
from ..report.results import RECIPE_FILE, RESULTS_FILE
from .body import CONFUSION_PICTURES, RELIABILITY_PICTURE, RISK_PICTURE, TRAINING_PICTURE, kept_step, render_card
from .metadata import CardContent, read_source

logger = logging.get_logger(__name__)

MOST_PANELS = 12  # of the picture of how often probabilities come true
MOST_PICTURES = 10  # of what tasks confuse; each takes a third of a second, and nobody looks at a hundred


def draw_pictures(
    folder: Path, results: dict[str, Any], tasks: dict[str, TaskConfig], groups: dict[str, TaskGroup] | None = None
) -> dict[str, str]:
    """Draw what the results hold; returns title and file of each picture."""
    pictures, history = {}, results["history"]
    if results["steps"] and draw_training(folder / TRAINING_PICTURE, history, tasks, kept_step(results), groups):
        pictures["Training loss and validation scores over the steps"] = TRAINING_PICTURE
    counted = {
        task: read_confusion(found)
        for task, found in results.get("confusion", {}).items()
        if task in tasks and tasks[task].kind.has_labels
    }
    for task in most_wrong(counted, MOST_PICTURES):
        file = f"{CONFUSION_PICTURES}{task}.png"
        draw_confusion(folder / file, task, results["tasks"][task]["labels"], counted[task])
        pictures[f"What {task} confuses"] = file
    if calibration := {task: found for task, found in results.get("calibration", {}).items() if task in tasks}:
        draw_reliability(folder / RELIABILITY_PICTURE, dict(list(calibration.items())[:MOST_PANELS]))
        pictures["How often probabilities come true"] = RELIABILITY_PICTURE
    if abstention := {task: found for task, found in results.get("abstention", {}).items() if task in tasks}:
        draw_risk_coverage(folder / RISK_PICTURE, abstention)
        pictures["Wrong answers by the share of rows that are answered"] = RISK_PICTURE
    if compared := results.get("compare_single"):
        pictures |= draw_comparison(folder, compared)
    if compared := results.get("distillation"):
        pictures |= draw_distilled(folder, compared)
    return pictures


def write_model_card(
    folder: str | Path,
    repo_id: str | None = None,
    language: str | list[str] | None = None,
    license: str | None = None,
    data_root: str | Path | None = None,
) -> Path:
    """
    Write a finished folder's model card, README.md, and its pictures.

    Everything in it comes from the folder's results.json, config.json and recipe.yaml. Written twice, it is the same.

    Args:
        folder: a folder that a run has saved.
        repo_id: the Hub repository it goes to, named in the quickstarts; without it they hold a placeholder.
        language: ISO 639 code or codes of the training data, such as `en`; without it what the recipe's `card` says.
        license: the Hub's name of the model's licence, such as `apache-2.0`; without it what the recipe's `card` says.
        data_root: what the recipe's relative data paths start from (the working directory), so that a folder there is
            not taken for a data set on the Hub.

    Returns:
        The file that was written: README.md, or README.generated.md beside a README.md that somebody has edited.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = Path(folder)
    for name in (RESULTS_FILE, RECIPE_FILE, "config.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} holds no {name}, so it is no finished run. Give the folder that train.py saved."
            )
    config = MultiTaskConfig.from_pretrained(folder)
    results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    recipe = read_yaml(folder / RECIPE_FILE)[1]
    own = recipe.get("card") or {}
    # config.json sorts its keys, results.json keeps the recipe's order; a task may have been added or removed since.
    order = [task for task in results["tasks"] if task in config.tasks]
    tasks = {task: config.tasks[task] for task in dict.fromkeys([*order, *config.tasks])}
    settings = {name: complete_task(name, task) for name, task in results["tasks"].items()}
    groups = {
        name: group
        for name, group in read_groups(results.get("groups"), settings).items()
        if set(group.tasks) <= tasks.keys()
    }
    path = folder / CARD_FILE
    if path.is_file() and not is_generated(path.read_text(encoding="utf-8")):
        path = folder / CARD_FILE_BESIDE_AN_EDITED_ONE
        logger.warning(
            f"{folder / CARD_FILE} was edited, so it is kept as it is. The new card is {path}: copy from it what you "
            f"need, or delete {CARD_FILE} to have it written anew."
        )
    content = CardContent(
        name=repo_id.split("/")[-1] if repo_id else folder.resolve().name,
        config=config,
        results=results,
        tasks=tasks,
        sources={
            task: read_source(recipe["tasks"][task], Path(data_root or ""))
            for task in order
            if task in recipe["tasks"]
        },
        unlabeled={
            name: read_source(found, Path(data_root or ""))
            for name, found in name_unlabeled((recipe.get("distillation") or {}).get("unlabeled")).items()
        },
        groups=groups,
        repo_id=repo_id,
        language=language or own.get("language"),
        license=license or own.get("license"),
    )
    with listed(folder) as unfinished:
        content.pictures = draw_pictures(Path(unfinished), results, tasks, groups)
        text = render_card(content) + "\n"
        text += MARK.format(hashlib.sha256(text.encode()).hexdigest())
        Path(unfinished, path.name).write_text(text, encoding="utf-8")
    return path


def edited_card(output_dir: Path) -> str | None:
    """The text of a model card that somebody edited, so that replacing a run does not lose it."""
    card = output_dir / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    return None if text is None or is_generated(text) else text


__all__ = ["CARD_FILE", "draw_pictures", "edited_card", "write_model_card"]
