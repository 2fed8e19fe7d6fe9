"""What template.md.jinja is filled with: the rows of its tables and the facts of its sentences.

    render_card    the whole card, header and body

All of it is what the run measured and what the configuration says; the prose is in the template.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import TrainingArguments

from ... import __version__
from ...checks_multitask import is_number
from ...data.text.spelling import first_names
from ...tasks_multitask import TaskConfig
from ..arguments import MultiTaskTrainingArguments
from ..balancing.settings import format_balancing
from ..comparison.report import comparison_section
from ..distillation.report import distilled_section
from ..report.abstention import abstention_rows, unreached
from ..report.calibration import calibration_rows
from ..report.confusion import read_confusion, worst_classes
from ..report.markdown import code_span, link_target, plain_text, table
from .metadata import CardContent, card_metadata, is_hub_id, read_augmented

FOLDER_PLACEHOLDER = "path/to/this/folder"
TRAINING_PICTURE = "training.png"
RELIABILITY_PICTURE = "reliability.png"
RISK_PICTURE = "risk_coverage.png"
CONFUSION_PICTURES = "confusion_"  # what their names begin with
SPLITS = ("train", "validation", "test")
# Scores on fewer rows are said to be rough.
FEW_ROWS = 500
# Longer label lists stand below the table of tasks.
LABELS_IN_TABLE = 6
CHARACTERS_IN_TABLE = 80
# Of more labels than these, the first are listed; of more classes, those with the lowest F1 are shown.
LABELS_IN_LIST = 100
CLASSES_IN_TABLE = 20

# Training arguments that a reader needs, besides all that only MultiTaskTrainingArguments have. The others say how a
# run was watched and stored, and may hold paths and access tokens.
SHOWN_ARGUMENTS = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    *sorted({f.name for f in fields(MultiTaskTrainingArguments)} - {f.name for f in fields(TrainingArguments)}),
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
)
MOST_NAMED = 10  # tasks or labels in a sentence
MIXTURE_SETTINGS = (
    ("rates", "Shares of an epoch's rows"),
    ("max_rows", "Training rows that are used at most"),
    ("passes", "Passes through a task's rows in an epoch (the default for tasks that are not listed)"),
    ("rows_per_batch", "Rows in a batch (the default for tasks that are not listed)"),
)


def _number(value: Any) -> str:
    return f"{value:.4f}" if is_number(value) else "undefined"


def _and_list(words: Iterable[str]) -> str:
    """The words in a sentence; of many the first ten, and how many more there are."""
    words = list(words)
    if len(words) > MOST_NAMED:
        words = [*words[:MOST_NAMED], f"{len(words) - MOST_NAMED} more"]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _task_rows(content: CardContent) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """The table of tasks, and the label lists that are too long for it: task, how many, and the labels."""
    rows, long_lists = [], []
    for task, settings in content.tasks.items():
        counts = content.results["rows"].get(task, {})
        names = settings.labels
        shown = ", ".join(map(code_span, names[:LABELS_IN_LIST])) or "-"
        if len(names) > LABELS_IN_LIST:
            shown += f" and {len(names) - LABELS_IN_LIST:,} more, all of them in config.json"
        if len(names) > LABELS_IN_TABLE or len(shown) > CHARACTERS_IN_TABLE:
            long_lists.append((task, f"{len(names):,}", shown))
            shown = f"{len(names):,}, listed below"
        kind = settings.problem_type + (" (pair)" if settings.pair else "")
        splits = [str(counts.get(split, "-")) for split in SPLITS]
        options = [
            key if isinstance(value, list) else f"{key} {value}" for key, value in settings.loss_options.items()
        ]
        loss = settings.loss + (f" ({', '.join(options)})" if options else "")
        rows.append([code_span(task), kind, shown, loss, f"{settings.loss_weight:g}", *splits])
    return rows, long_lists


def _metric_words(task: TaskConfig, metric: str) -> str:
    """A metric as the card names it; that of chosen classes with their names."""
    words = metric.replace("_", " ")
    return f"{words} of {', '.join(map(code_span, task.f1_labels))}" if metric == "f1" else words


def _score_rows(content: CardContent) -> list[list[str]]:
    scores = content.results["scores"]
    rows = []
    for task, settings in content.scored.items():
        found = {metric for split in scores.values() for metric in split.get(task, {})} - {"loss"}
        is_group = task in content.groups
        metrics = [*settings.metrics, *sorted(found - set(settings.metrics)), *["loss"] * (not is_group)]
        for place, metric in enumerate(metrics):
            values = [split.get(task, {}) for split in scores.values()]
            cells = [_number(value[metric]) if metric in value else "-" for value in values]
            name = code_span(task) + " (group)" * is_group
            rows.append([name if place == 0 else "", _metric_words(settings, metric), *cells])
    return rows


def _class_rows(content: CardContent) -> tuple[list[list[str]], list[str]]:
    """Precision, recall and F1 of the classes of every classification task, the lowest F1 first; a note for each."""
    rows, notes = [], []
    for task in content.tasks:
        if task not in content.results.get("confusion", {}):
            continue
        names = content.results["tasks"][task]["labels"]
        counted = read_confusion(content.results["confusion"][task])
        worst = worst_classes(counted, CLASSES_IN_TABLE)
        for place, number in enumerate(worst):
            scores = (_number(counted[score][number]) for score in ("precision", "recall", "f1"))
            shown = code_span(task) if place == 0 else ""
            rows.append([shown, code_span(names[number]), *scores, f"{counted['labelled'][number]:,}"])
        measured, size = sum(map(bool, counted["labelled"])), len(names)
        note = f"{code_span(task)}: {counted['split']} split"
        if len(worst) < measured:
            note += f", the {len(worst)} classes with the lowest F1"
        if measured < size:
            note += f", {measured:,} of {size:,} classes have a row there"
        notes.append(note)
    return rows, notes


def _calibration_rows(results: dict[str, Any]) -> list[list[str]]:
    return [
        [code_span(task), split, temperature, *(_number(score) if score is not None else "-" for score in scores)]
        for task, split, temperature, *scores in calibration_rows(results.get("calibration", {}))
    ]


def _abstention_rows(results: dict[str, Any]) -> list[list[str]]:
    def shown(value: Any) -> str:
        return "-" if value is None else value if isinstance(value, str) else _number(value)

    rows = abstention_rows(results.get("abstention", {}))
    return [[code_span(task) if task else "", *map(shown, others)] for task, *others in rows]


def _left_out(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Tasks without a temperature, and why."""
    found = results.get("calibration", {}).items()
    return [(task, entry["left_out"]) for task, entry in found if entry["left_out"]]


def kept_step(results: dict[str, Any]) -> int | None:
    """The step of the checkpoint that was loaded at the end; `None` where the last weights were kept."""
    return results.get("best_step") if results["training"].get("load_best_model_at_end") else None


def _settings_rows(results: dict[str, Any]) -> list[list[str]]:
    arguments = results["training"]
    shown = {key: arguments[key] for key in SHOWN_ARGUMENTS if key in arguments}
    shown |= {key: json.dumps(results[key], ensure_ascii=False) for key in ("strategy", "peft") if results.get(key)}
    return [[code_span(key), code_span(value)] for key, value in shown.items()]


def _best_rows(results: dict[str, Any]) -> list[list[str]]:
    return [
        [
            code_span(task),
            found["metric"].replace("_", " "),
            found["step"],
            _number(found["score"]),
            _number(found["chosen_score"]),
        ]
        for task, found in (results.get("best_of_tasks") or {}).items()
    ]


def _task_facts(content: CardContent) -> dict[str, Any]:
    """Which tasks were trained, tested, and on how few rows."""
    results, tasks = content.results, content.tasks
    idle, tested = results.get("only_evaluated", []), results["scores"].get("test", {})
    test_rows = {task: results["rows"].get(task, {}).get("test", 0) for task in tasks}
    multi_label = [task for task in tasks if tasks[task].kind.is_multi_label]
    return {
        "single_tasks": first_names([task for task in tasks if not tasks[task].pair]),
        "pair_tasks": [task for task in tasks if tasks[task].pair],
        "trained": [task for task in tasks if task in results["rows"] and task not in idle],
        "idle": idle,
        "few": [(task, count) for task, count in test_rows.items() if 0 < count < FEW_ROWS],
        "untested": [task for task in tasks if not tested.get(task)],
        "has_chosen_thresholds": bool(set(multi_label) - set(idle)),
    }


def _training_facts(results: dict[str, Any]) -> dict[str, Any]:
    mixture, seconds = results.get("mixture") or {}, results["seconds"]
    sampling = " ".join(str(mixture[key]) for key in ("sampling", "temperature") if mixture.get(key))
    balancing = results.get("balancing", {"method": "sum"})
    return {
        "duration": f"{seconds:.0f} seconds" if seconds < 300 else f"{seconds / 60:.0f} minutes",
        "kept_step": kept_step(results),
        "best_metric": results.get("best_metric", results.get("best_eval_score")),  # as it was called before
        "mixture": {"batches": None, **dict.fromkeys(dict(MIXTURE_SETTINGS)), **mixture},
        "mixture_settings": MIXTURE_SETTINGS,
        "sampling": sampling or "proportional",
        "balancing": format_balancing(balancing) if balancing["method"] != "sum" else None,
        "settings": _settings_rows(results),
        "best_rows": _best_rows(results),
    }


def _pictures(content: CardContent, beginning: str) -> list[tuple[str, str]]:
    return [(title, file) for title, file in content.pictures.items() if file.startswith(beginning)]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("multitask_sentence.training.card", ""),
        autoescape=False,  # Markdown, where a browser's escapes would be shown: the filters below escape instead
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"code": code_span, "plain": plain_text, "target": link_target, "table": table}
    environment.filters |= filters | {"number": _number, "and_list": _and_list}
    return environment


def render_card(content: CardContent) -> str:
    """The card: its YAML header, then introduction, quickstarts, tasks, scores, classes, training,
    distillation, comparison, limits and citation."""
    results, config, backbone = content.results, content.config, content.results["backbone"]
    task_rows, long_label_lists = _task_rows(content)
    class_rows, class_notes = _class_rows(content)
    augmented = {task: read_augmented(noted) for task, noted in results.get("augmentation", {}).items()}
    compared, distilled = results.get("compare_single"), results.get("distillation")
    unlabeled = {name: source.description for name, source in content.unlabeled.items()}
    languages: Sequence[str] = [content.language] if isinstance(content.language, str) else content.language or []
    return (
        _environment()
        .get_template("template.md.jinja")
        .render(
            header=card_metadata(content).to_yaml(),
            name=content.name,
            version=__version__,
            config=config,
            results=results,
            tasks=list(content.tasks),
            groups={name: group.tasks for name, group in content.groups.items()},
            start={
                "hub_id": backbone if is_hub_id(backbone, Path()) else None,
                "model_type": config.backbone_config.model_type,
            },
            continued=bool(results.get("continue_from")),
            repo_id=content.repo_id,
            place=content.repo_id or FOLDER_PLACEHOLDER,
            languages=languages,
            task_rows=task_rows,
            long_label_lists=long_label_lists,
            sources=[(task, source.description + augmented.get(task, "")) for task, source in content.sources.items()],
            splits=list(results["scores"]),
            score_rows=_score_rows(content),
            class_rows=class_rows,
            class_notes=class_notes,
            confusion_pictures=_pictures(content, CONFUSION_PICTURES),
            training_pictures=_pictures(content, TRAINING_PICTURE),
            calibration_rows=_calibration_rows(results),
            calibration_left_out=_left_out(results),
            abstention_rows=_abstention_rows(results),
            unreached_risks=unreached(results.get("abstention", {})),
            risk_pictures=_pictures(content, RISK_PICTURE),
            reliability_pictures=_pictures(content, RELIABILITY_PICTURE),
            comparison=comparison_section(compared, content.pictures) if compared else None,
            distillation=distilled_section(distilled, content.pictures, unlabeled) if distilled else None,
            **_task_facts(content),
            **_training_facts(results),
        )
    )


__all__ = [
    "CONFUSION_PICTURES",
    "FOLDER_PLACEHOLDER",
    "RELIABILITY_PICTURE",
    "RISK_PICTURE",
    "TRAINING_PICTURE",
    "kept_step",
    "render_card",
]
