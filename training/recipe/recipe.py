"""The recipe: one YAML file with the backbone, the tasks with their datasets, the mixture and the training arguments.

`load_recipe` reads and checks everything that can be checked before any data is loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...checks_multitask import check_choice, check_count, check_flag, check_keys, check_mapping
from ...configuration_multitask import POOLINGS, complete_projection
from ...data.augmentation.rows import complete_augmentation
from ...data.labels.rules import reading_rules
from ...data.loading.tasks import group_sources
from ...data.sources.task_source import TaskSource
from ...data.splits.splitting import check_split_settings
from ...data.text.problems import with_short_values
from ...problem_types_multitask import find_problem_type
from ...tasks_multitask import TaskConfig, complete_task
from ..arguments import MultiTaskTrainingArguments
from ..balancing.settings import BalancingConfig
from ..calibration.scope import abstains_by_scope
from ..calibration.settling import CALIBRATIONS
from ..distillation.settings import Distillation, read_distillation
from ..evaluation.groups import TaskGroup, read_groups
from ..mixture.settings import MixtureConfig
from ..strategy.plan import STRATEGY_KEYS
from .yaml_file import read_yaml

DEFAULT_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"

RECIPE_KEYS = (
    *("backbone", "continue_from", "pooling", "projection", "normalize", "max_length"),
    *("tasks", "groups", "drop_held_out", "mixture", "balancing", "distillation", "strategy", "peft"),
    *("calibration", "out_of_scope", "training", "card"),
)
_SETTING_KEYS = (
    *("problem_type", "labels", "head", "loss", "loss_options", "loss_weight", "metrics", "f1_labels", "score_range"),
    *("target_mean", "target_deviation", "abstain"),
)
# How a task's rows are read and set aside: handed to its TaskSource as they are, and checked in data/.
_DATA_KEYS = (
    *("validation_split", "test_split", "group", "where"),
    *("label_separator", "label_map", "missing_labels", "empty_text", "contradictions"),
)
_TASK_KEYS = ("problem_type", "dataset", "columns", "labels", *_DATA_KEYS, "augmentation", *_SETTING_KEYS[2:])
_CARD_KEYS = ("language", "license")
_TRAINING_KEYS = tuple(argument.name for argument in fields(MultiTaskTrainingArguments) if argument.init)


@dataclass
class Recipe:
    """
    A checked recipe.

    Attributes:
        path: the file.
        sources: where each task's rows come from.
        settings: each task's settings for the model, as far as the recipe gives them (labels may still be missing).
        tasks: the same as records, with stand-ins for labels that only the data can say.
        strategy: what is frozen, what joins when, learning rates by part; checked against the model in `make_plan`.
        training: training arguments by name.
        card: `language` and `license` of the model card.
        mixture: how batches are drawn.
        balancing: how the tasks' losses become one.
        distillation: what tasks learn from teachers beside their labels, `None` for nothing.
        text: the file's text, kept beside the finished model.
        backbone: what the model starts from: an encoder, or the trained model of `continue_from`.
        continue_from: the trained model to go on from, `None` to start from an encoder.
        drop_held_out: whether training rows that stand in a validation or test split of any task are left out.
        groups: tasks that are scored together, by the group's name.
        peft: settings of an adapter, `None` for none; see adapters.py.
        calibration: what makes probabilities of logits mean what they say: `temperature` or `none`.
        out_of_scope: whether tasks shall know what they were trained on; `None` where nothing is said.
    """

    path: Path
    sources: list[TaskSource]
    settings: dict[str, dict[str, Any]]
    tasks: dict[str, TaskConfig]
    text: str
    backbone: str = DEFAULT_BACKBONE
    pooling: str | None = None
    projection: dict[str, Any] | None = None
    normalize: bool | None = None
    max_length: int | None = None
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    strategy: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    continue_from: str | None = None
    drop_held_out: bool = False
    peft: dict[str, Any] | None = None
    calibration: str = "temperature"
    out_of_scope: bool | None = None
    groups: dict[str, TaskGroup] = field(default_factory=dict)
    balancing: BalancingConfig = field(default_factory=BalancingConfig)
    distillation: Distillation | None = None


def _mapping(where: str, value: Any, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The value, if it is a mapping with known keys only; an empty one for nothing at all."""
    if value is None:
        return {}
    check_mapping(where, value)
    if known is not None:
        hint = f"Known keys: {len(known)}; train.py --help lists them." if len(known) > 40 else None
        check_keys(where, value, sorted(known), hint)
    return value


def _check_embedding(content: dict[str, Any]) -> None:
    """Pooling, projection, normalize and max_length, each of which may be absent."""
    pooling, normalize, max_length = (content.get(key) for key in ("pooling", "normalize", "max_length"))
    if pooling is not None:
        check_choice("pooling", pooling, POOLINGS)
    if normalize is not None:
        check_flag("normalize", normalize)
    if max_length is not None:
        check_count("max_length", max_length)
    complete_projection(content.get("projection"))


def _label_names(where: str, labels: list[Any]) -> list[str]:
    """Labels as the text that stands in the data; YAML has already made numbers and booleans of some."""
    for label in labels:
        if not isinstance(label, (str, int, float)):
            raise ValueError(f"{where} holds {label!r}, but should hold names. Put the name into quotes.")
    return [str(label).lower() if isinstance(label, bool) else str(label) for label in labels]


def _stand_in_labels(options: Any, f1_labels: Any) -> list[str]:
    """Labels that fit what is said of those of a task whose labels only the data can say, so that the rest is checked
    before."""
    count = 2
    for key in ("class_weights", "pos_weight"):
        weights = options.get(key) if isinstance(options, dict) else None
        if isinstance(weights, dict) and len(weights) > 1:
            return _label_names("", list(weights))
        if isinstance(weights, list) and len(weights) > 1:
            count = len(weights)
    named = list(dict.fromkeys(f1_labels)) if isinstance(f1_labels, list) else []
    return [*named, *map(str, range(count - len(named)))]


def _check_no_token(where: str, content: Any) -> None:
    """Refuse a token in any depth; `token: true` says that one is needed, and is none."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(value, str) and str(key).endswith(("token", "password", "secret")):
            raise ValueError(
                f"{where}.{key}: a token does not belong in a recipe, which is published with the model. "
                "Log in with `hf auth login`, or set HF_TOKEN."
            )
        _check_no_token(f"{where}.{key}", value)


def _read_task(where: str, name: str, task: dict[str, Any]) -> tuple[TaskSource, dict[str, Any], TaskConfig]:
    task = _mapping(where, task, _TASK_KEYS)
    settings = {key: task[key] for key in _SETTING_KEYS if task.get(key) is not None}
    columns = _mapping(f"{where}.columns", task.get("columns"))
    kind = find_problem_type(f"{where}.problem_type", settings.get("problem_type"))
    if kind.has_head:
        settings["pair"] = "sentence1" in columns
    for key in ("labels", "f1_labels"):
        if isinstance(settings.get(key), list):
            settings[key] = _label_names(f"{where}.{key}", settings[key])
    # What only the data can say stands in for itself here, so that the rest is checked before any data is loaded.
    stand_in = dict(settings)
    if kind.has_labels:
        stand_in.setdefault("labels", _stand_in_labels(settings.get("loss_options"), settings.get("f1_labels")))
    planned = complete_task(name, stand_in, is_new=True)
    if not task.get("dataset"):
        raise ValueError(
            f"{where}: dataset is missing. Give the arguments of datasets.load_dataset, such as path: csv."
        )
    dataset = _mapping(f"{where}.dataset", task["dataset"])
    if not isinstance(dataset.get("path"), str):
        raise ValueError(
            f"{where}.dataset.path is {dataset.get('path')!r}, but should be text: a format such as csv, a folder or "
            "a Hub id."
        )
    _mapping(f"{where}.dataset.splits", dataset.get("splits"))
    _check_no_token(f"{where}.dataset", dataset)
    source = TaskSource(
        name=name,
        problem_type=settings["problem_type"],
        dataset=dataset,
        columns=columns,
        labels=settings.get("labels"),
        **{key: task.get(key) for key in _DATA_KEYS},
        augmentation=complete_augmentation(f"{where}.augmentation", task.get("augmentation")),
    )
    check_split_settings(source)
    reading_rules(source)
    return source, settings, planned


def _read_mixture(mixture: Any, sources: list[TaskSource], unlabeled: Iterable[str]) -> MixtureConfig:
    """The mixture as it was written, checked for the data sets that the tasks read, and for unlabelled text."""
    mixture, groups = MixtureConfig.from_recipe(mixture), group_sources(sources)
    names = [[source.name for source in group] for group in groups]
    mixture.for_sets([*names, *([name] for name in unlabeled)])
    for group in groups:
        capped = [source.name for source in group if source.name in mixture.max_rows]
        augmented = [source.name for source in group if source.augmentation is not None]
        if capped and augmented:
            raise ValueError(
                f"mixture.max_rows cuts down the training rows of {capped[0]!r}, and "
                f"tasks.{augmented[0]}.augmentation adds some: a cap would drop rows and keep what was made of them. "
                "Leave one of the two out, or cut the file itself down."
            )
    return mixture


def _read_card(card: Any) -> dict[str, Any]:
    """Language and licence, which the card is given only after training."""
    card = _mapping("card", card, _CARD_KEYS)
    for key, value in card.items():
        words = value if key == "language" and isinstance(value, list) else [value]
        if value is not None and not all(isinstance(word, str) and word for word in words):
            example = "a code such as en, or a list of codes" if key == "language" else "a name such as apache-2.0"
            raise ValueError(f"card.{key} is {value!r}, but should be {example}.")
    return card


def _read_out_of_scope(wanted: Any, tasks: dict[str, TaskConfig]) -> bool | None:
    """Whether tasks shall know what they were trained on: if it is said, or a task abstains by it."""
    asking = [name for name, task in tasks.items() if abstains_by_scope(task)]
    if wanted is not None:
        check_flag("out_of_scope", wanted)
        if not wanted and asking:
            raise ValueError(
                f"out_of_scope is false, but tasks.{asking[0]}.abstain.out_of_scope needs it. Remove one of the two."
            )
    return wanted or (True if asking else wanted)


def _read_groups(groups: Any, tasks: dict[str, TaskConfig], settings: dict[str, Any]) -> dict[str, TaskGroup]:
    """The groups of tasks, with their classes as the text that stands in the data."""
    groups = _mapping("groups", groups)
    for name, group in groups.items():
        if isinstance(group, dict) and isinstance(group.get("f1_labels"), list):
            chosen = _label_names(f"groups.{name}.f1_labels", group["f1_labels"])
            groups = {**groups, name: {**group, "f1_labels": chosen}}
    without_labels = [name for name, task in tasks.items() if task.kind.has_labels and "labels" not in settings[name]]
    return read_groups(groups, tasks, without_labels)


def load_recipe(path: str | Path) -> Recipe:
    """
    Read a recipe and check it.

    Raises:
        ValueError: the file cannot be read, is no YAML, or holds something unknown or wrong; the message says where,
            what was found and what would be right.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}. Give the path of a YAML file, such as recipes/quickstart.yaml.")
    text, content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a recipe: it should be a mapping with tasks, but holds {str(content)[:60]!r}."
        )
    try:
        content = _mapping("recipe", content, RECIPE_KEYS)
        tasks = _mapping("tasks", content.get("tasks"))
        if not tasks:
            raise ValueError("tasks is missing or empty. Name at least one task with its problem_type and dataset.")
        _check_embedding(content)
        drop_held_out = content.get("drop_held_out", False)
        check_flag("drop_held_out", drop_held_out)
        read = {name: _read_task(f"tasks.{name}", name, task) for name, task in tasks.items()}
        calibration = content.get("calibration", "temperature")
        check_choice("calibration", calibration, CALIBRATIONS)
        training = _mapping("training", content.get("training"), _TRAINING_KEYS)
        _check_no_token("training", training)
        planned = {name: planned for name, (_, _, planned) in read.items()}
        settings = {name: settings for name, (_, settings, _) in read.items()}
        continue_from = content.get("continue_from")
        if continue_from and content.get("backbone"):
            raise ValueError("backbone and continue_from are both given. A trained model brings its backbone along.")
        distillation = read_distillation(content.get("distillation"), list(read))
        unlabeled = distillation.unlabeled if distillation else ()
        return Recipe(
            path=path,
            sources=[source for source, *_ in read.values()],
            settings=settings,
            tasks=planned,
            groups=_read_groups(content.get("groups"), planned, settings),
            text=text,
            mixture=_read_mixture(content.get("mixture"), [source for source, *_ in read.values()], unlabeled),
            distillation=distillation,
            strategy=_mapping("strategy", content.get("strategy"), STRATEGY_KEYS),
            training=training,
            card=_read_card(content.get("card")),
            balancing=BalancingConfig.from_recipe(content.get("balancing")),
            backbone=str(continue_from or content.get("backbone") or DEFAULT_BACKBONE),
            continue_from=str(continue_from) if continue_from else None,
            drop_held_out=drop_held_out,
            calibration=calibration,
            out_of_scope=_read_out_of_scope(content.get("out_of_scope"), planned),
            peft=_mapping("peft", content["peft"]) if content.get("peft") is not None else None,
            **{key: content.get(key) for key in ("pooling", "projection", "normalize", "max_length")},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {with_short_values(str(error), content)}") from error
