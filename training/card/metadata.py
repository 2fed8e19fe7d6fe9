"""The model card's YAML header, which the Hub's search, links and score tables are made from.

CardContent     all that a card says
read_source     where a task's rows came from, without any path of the machine
read_augmented  how many of its training rows were made from others, and by what
eval_results    every task's measured test scores
card_metadata   the header
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ...checks_multitask import is_number
from ...configuration_multitask import MultiTaskConfig
from ...data.files.formats import FORMATS
from ...problem_types_multitask import METRICS
from ...tasks_multitask import TaskConfig
from ..evaluation.groups import TaskGroup, with_groups
from ..evaluation.scores import metric_options
from ..report.markdown import code_span, link_target, plain_text


@dataclass
class DataSource:
    """Where a task's rows came from: a Hub data set with its configuration, or files in words."""

    description: str
    hub_id: str | None = None
    config: str | None = None
    test_split: str = "test"


@dataclass
class CardContent:
    """
    All that a card says.

    Attributes:
        name: the model's name: the repository's, else the folder's.
        config: the model's configuration.
        results: what results.json holds.
        tasks: the tasks' settings, in the recipe's order.
        sources: by task, where its rows came from.
        unlabeled: by name, where text came from that only teachers answered.
        groups: the tasks that were scored together, by the group's name.
        pictures: title and file of each picture.
    """

    name: str
    config: MultiTaskConfig
    results: dict[str, Any]
    tasks: dict[str, TaskConfig]
    sources: dict[str, DataSource]
    unlabeled: dict[str, DataSource] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    repo_id: str | None = None
    language: str | list[str] | None = None
    license: str | None = None
    groups: dict[str, TaskGroup] = field(default_factory=dict)

    @property
    def scored(self) -> dict[str, TaskConfig]:
        """Settings of all that was scored: of the tasks, then of the groups."""
        return with_groups(self.tasks, self.groups)

    def source_of(self, name: str) -> DataSource:
        """Where the rows of a task came from; of a group, where those of all its tasks did."""
        members = self.groups[name].tasks if name in self.groups else [name]
        sources = [self.sources.get(task) or DataSource("") for task in members]
        return sources[0] if sources.count(sources[0]) == len(sources) else DataSource("")


def is_hub_id(name: str, root: Path) -> bool:
    """Whether a name stands for a repository on the Hub, and not for a folder at `root`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not (root / name).exists()


def _without_folders(name: str) -> str:
    """A file's name as a stranger may see it: no folders but the last of a relative path, no query of an address."""
    if "://" in name:
        address = urlsplit(name)
        return f"{address.scheme}://{address.hostname or ''}{address.path}"
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    is_absolute = name.startswith(("/", "~", "\\")) or ":" in name
    return "/".join(parts[-1:] if is_absolute else parts[-2:])


def read_source(task: dict[str, Any], data_root: Path) -> DataSource:
    """One task of a recipe to where its rows came from, without any path of the machine it was trained on."""
    dataset = task["dataset"]
    path, config, splits = dataset["path"], dataset.get("name"), dataset.get("splits") or {}
    shares = {split: task.get(f"{split}_split") for split in ("validation", "test")}
    aside = "".join(
        f", {share:.0%} of the training rows set aside for {split}" for split, share in shares.items() if share
    )
    if path not in FORMATS and is_hub_id(path, data_root):
        description = f"[{plain_text(path)}](https://huggingface.co/datasets/{link_target(path)})" + (
            f", {code_span(config)}" if config else ""
        )
        measured_on = "train" if shares["test"] else "test"
        return DataSource(description + aside, path, config, splits.get(measured_on, measured_on))
    if path not in FORMATS:
        return DataSource(f"the local folder {code_span(_without_folders(path))}" + aside)
    if path == "sql":
        return DataSource("rows of an SQL data base" + aside)
    files = dataset.get("data_files") or dataset.get("data_dir") or []
    named = []
    for split, names in (files if isinstance(files, dict) else {"train": files}).items():
        names = names if isinstance(names, list) else [names]
        named.append(f"{', '.join(code_span(_without_folders(str(name))) for name in names)} ({split})")
    return DataSource(f"local {path} files: {', '.join(named)}" + aside)


def read_augmented(noted: dict[str, Any]) -> str:
    """What results.json says of a task's augmentation, in words; without any path of the machine."""
    how = code_span(noted["method"])
    if "models" in noted:
        revisions = zip(noted["models"], noted["revisions"], strict=True)
        how += " through " + " and ".join(
            "a local model"
            if revision is None
            else f"[{plain_text(name)}](https://huggingface.co/{link_target(name)}) ({revision[:7]})"
            for name, revision in revisions
        )
    return f"; {noted['rows']} of the training rows were made by {how} from {noted['share']:.0%} of the others"


def eval_results(content: CardContent) -> list[EvalResult]:
    """
    The measured test scores of every task and group. A score that is undefined (NaN) is no number, so it is not there.

    The Hub's format puts scores with equal task type, data set, configuration and split together and keeps one task
    name and data set name for all: what tells our tasks apart is therefore in the metric's name, and for local files
    in the configuration.
    """
    found = []
    for task, settings in content.scored.items():
        scores, source = content.results["scores"].get("test", {}).get(task, {}), content.source_of(task)
        task_type, task_name = settings.kind.hub_task
        for metric in settings.metrics:
            if not is_number(scores.get(metric)):
                continue
            arguments = (METRICS[metric].hub_arguments or {}) | metric_options(settings, metric)
            found.append(
                EvalResult(
                    task_type=task_type,
                    task_name=task_name,
                    dataset_type=source.hub_id or "unknown",  # as in the cards of sentence-transformers
                    dataset_name=source.hub_id or f"local data of {task}",
                    dataset_config=source.config if source.hub_id else task,
                    dataset_split=source.test_split,
                    metric_type=METRICS[metric].hub_name or metric,
                    metric_name=f"{task} {metric.replace('_', ' ')}",
                    metric_value=scores[metric],
                    metric_args=arguments or None,
                )
            )
    return found


def card_metadata(content: CardContent) -> ModelCardData:
    """The header. Language and licence are there if they are given: nothing that was measured says them."""
    backbone = content.results["backbone"]
    results = eval_results(content)
    hub_ids = [source.hub_id for source in content.sources.values() if source.hub_id]
    kinds = dict.fromkeys(settings.kind.hub_task[0] for settings in content.tasks.values())
    return ModelCardData(
        language=content.language,
        license=content.license,
        library_name="transformers",
        # Together with library_name, `text-classification` would make the Hub show and run a pipeline that has to be
        # told which of the tasks is meant. Every model of ours gives embeddings with a cosine, and for this tag
        # the Hub shows the AutoModel line, which works as it stands; the tags below make the tasks found as well.
        pipeline_tag="sentence-similarity",
        tags=[
            *("multitask", "sentence-transformers", "feature-extraction", "sentence-similarity"),
            *(kind for kind in kinds if kind != "sentence-similarity"),
            "custom_code",
        ],
        base_model=backbone if is_hub_id(backbone, Path()) else None,
        datasets=list(dict.fromkeys(hub_ids)) or None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=content.name,
        eval_results=results or None,
    )
