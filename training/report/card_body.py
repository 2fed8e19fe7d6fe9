"""What a person reads in a model card: introduction, quickstarts, tasks, scores, training, comparison and limits.

Each section is made of what the run measured and the configuration says. model_card.py puts the header before them and
the pictures beside them.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers import TrainingArguments

from ... import __version__
from ...checks_multitask import is_number
from ..arguments import MultiTaskTrainingArguments
from ..balancing.settings import format_balancing
from ..comparison.report import comparison_section
from .card_metadata import CardContent, code_span, is_hub_id, read_augmented
from .confusion import read_confusion, worst_classes
from .results import RECIPE_FILE, RESULTS_FILE

FOLDER_PLACEHOLDER = "path/to/this/folder"
TRAINING_PICTURE = "training.png"
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


def _number(value: Any) -> str:
    return f"{value:.4f}" if is_number(value) else "undefined"


def _table(rows: list[list[Any]], header: Sequence[str], right: int = 0) -> str:
    """A Markdown table whose last `right` columns are numbers."""
    rows = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]  # a cell ends at "|" even inside code
    align = ["left"] * (len(header) - right) + ["right"] * right
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _introduction(content: CardContent) -> str:
    config, backbone = content.config, content.results["backbone"]
    if is_hub_id(backbone, Path()):
        start = f"[{backbone}](https://huggingface.co/{backbone})"
    else:
        kind = "multi-task model" if content.results.get("continue_from") else "encoder"
        start = f"a local {config.backbone_config.model_type} {kind}"
    tasks = [code_span(task) for task in content.tasks]
    answers = f"answers {len(tasks)} task{'s' * (len(tasks) != 1)} ({_and(tasks)})"
    projection = ""
    if config.projection:
        projection = f", a projection to {config.embedding_dim} numbers ({config.projection['activation']})"
    results = content.results
    idle = results.get("only_evaluated", [])
    trained = [task for task in content.tasks if task in results["rows"] and task not in idle]
    if not trained:
        how = "evaluated, not trained,"
    elif len(trained) == len(content.tasks) and not results.get("continue_from"):
        how = "trained on all tasks together"
    else:
        how = f"trained on {_and([code_span(task) for task in trained])}"
    if trained and results.get("continue_from"):
        how += " from there"
    needs = ""
    if config.base_name_or_path:
        needs = (
            " It is saved as an adapter: opening it needs the package peft, and loads the encoder's own weights from "
            "where it started."
        )
    return (
        f"One small model that turns a sentence into an embedding of {config.embedding_dim} numbers and {answers} "
        f"from the same pass of one encoder. It started from {start} and was {how} with "
        f"multitask-sentence {__version__}. The embedding comes from {config.pooling} pooling{projection} and is "
        f"{'scaled to length 1' if config.normalize else 'not normalised'}; sentences beyond {config.max_length} "
        f"tokens are cut off.{needs}"
    )


def _quickstarts(content: CardContent) -> str:
    place, size = content.repo_id or FOLDER_PLACEHOLDER, content.config.embedding_dim
    single = [task for task, settings in content.tasks.items() if not settings["pair"]]
    pair = [task for task, settings in content.tasks.items() if settings["pair"]]
    predict = []
    if single:
        predict.append(f"model.predict(sentences)    # answers by task: {', '.join(single)}")
    if pair:
        predict.append(f'model.predict(("A man plays the guitar.", "Somebody plays music."))  # {", ".join(pair)}')
    blocks = [
        (
            "With transformers, everything:",
            "from transformers import AutoModel",
            "",
            f'model = AutoModel.from_pretrained("{place}", trust_remote_code=True)',
            'sentences = ["The plot is thin, but what a cast!", "Shares fell after the bank lowered its outlook."]',
            f"model.encode(sentences)     # embeddings, (2, {size})",
            *predict,
        ),
        (
            "With sentence-transformers, the same embeddings:",
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{place}", trust_remote_code=True)',
            'embeddings = model.encode(["A man plays the guitar.", "Somebody plays music."])',
            f"embeddings.shape                             # (2, {size})",
            "model.similarity(embeddings, embeddings)     # cosines, (2, 2)",
        ),
        (
            "With a pipeline, the embedding and every task's answer:",
            "from transformers import pipeline",
            "",
            f'answer = pipeline("multitask", model="{place}", trust_remote_code=True)',
            f'len(answer("A man plays the guitar.")["embedding"])  # {size}',
        ),
    ]
    parts = [text + "\n\n```python\n" + "\n".join(lines) + "\n```" for text, *lines in blocks]
    if content.repo_id is None:
        parts.insert(0, f"Put the folder of this card in place of `{FOLDER_PLACEHOLDER}`.")
    parts.append(
        "`trust_remote_code=True` runs the Python files that stand beside this card. Read them first, and when you "
        'load from the Hub, pin what you have read with `revision="<the commit\'s 40 hexadecimal digits>"`.'
    )
    return "## Use it\n\n" + "\n\n".join(parts)


def _tasks(content: CardContent) -> str:
    rows, long_lists = [], []
    for task, settings in content.tasks.items():
        counts = content.results["rows"].get(task, {})
        names = settings.get("labels", [])
        shown = ", ".join(map(code_span, names[:LABELS_IN_LIST])) or "-"
        if len(names) > LABELS_IN_LIST:
            shown += f" and {len(names) - LABELS_IN_LIST:,} more, all of them in config.json"
        if len(names) > LABELS_IN_TABLE or len(shown) > CHARACTERS_IN_TABLE:
            long_lists.append(f"The {len(names):,} labels of {code_span(task)}: {shown}.")
            shown = f"{len(names):,}, listed below"
        kind = settings["problem_type"] + (" (pair)" if settings["pair"] else "")
        splits = [str(counts.get(split, "-")) for split in SPLITS]
        options = [
            key if isinstance(value, list) else f"{key} {value}"
            for key, value in settings.get("loss_options", {}).items()
        ]
        loss = settings["loss"] + (f" ({', '.join(options)})" if options else "")
        rows.append([code_span(task), kind, shown, loss, f"{settings['loss_weight']:g}", *splits])
    header = ["task", "problem type", "labels", "loss", "weight", *SPLITS]
    parts = [_table(rows, header, right=4), *long_lists]
    augmented = {task: read_augmented(noted) for task, noted in content.results.get("augmentation", {}).items()}
    sources = [
        f"* {code_span(task)}: {source.description}{augmented.get(task, '')}"
        for task, source in content.sources.items()
    ]
    if sources:
        parts += ["Numbers are labelled rows. They come from:", "\n".join(sources)]
    return "## Tasks\n\n" + "\n\n".join(parts)


def _scores(content: CardContent) -> str:
    scores = content.results["scores"]
    rows = []
    for task, settings in content.tasks.items():
        found = {metric for split in scores.values() for metric in split.get(task, {})} - {"loss"}
        metrics = [*settings["metrics"], *sorted(found - set(settings["metrics"])), "loss"]
        for place, metric in enumerate(metrics):
            values = [split.get(task, {}) for split in scores.values()]
            cells = [_number(value[metric]) if metric in value else "-" for value in values]
            rows.append([code_span(task) if place == 0 else "", metric.replace("_", " "), *cells])
    text = "## Scores\n\nA task's first metric is its primary one.\n\n"
    text += _table(rows, ["task", "metric", *scores], right=len(scores))
    for title, file in (content.pictures or {}).items():
        if file.startswith(CONFUSION_PICTURES):
            text += f"\n\n![{title}]({file})"
    return text


def _classes(content: CardContent) -> str:
    """Precision, recall and F1 of the classes of every classification task, the lowest F1 first."""
    rows, notes = [], []
    for task in content.tasks:
        if task not in content.results.get("confusion", {}):
            continue
        names = content.results["tasks"][task]["labels"]
        counted = read_confusion(content.results["confusion"][task])
        worst = worst_classes(counted, CLASSES_IN_TABLE)
        for place, number in enumerate(worst):
            rows.append(
                [
                    code_span(task) if place == 0 else "",
                    code_span(names[number]),
                    *(_number(counted[score][number]) for score in ("precision", "recall", "f1")),
                    f"{counted['labelled'][number]:,}",
                ]
            )
        measured, size = sum(map(bool, counted["labelled"])), len(names)
        note = f"{code_span(task)}: {counted['split']} split"
        if len(worst) < measured:
            note += f", the {len(worst)} classes with the lowest F1"
        if measured < size:
            note += f", {measured:,} of {size:,} classes have a row there"
        notes.append(note)
    if not rows:
        return ""
    table = _table(rows, ["task", "class", "precision", "recall", "F1", "rows"], right=4)
    return f"## Classes\n\n{'; '.join(notes)}. All are in [{RESULTS_FILE}]({RESULTS_FILE}).\n\n{table}"


def kept_step(results: dict[str, Any]) -> int | None:
    """The step of the checkpoint that was loaded at the end; `None` where the last weights were kept."""
    return results.get("best_step") if results["training"].get("load_best_model_at_end") else None


def _training(content: CardContent) -> str:
    results, arguments = content.results, content.results["training"]
    if not results["steps"]:
        return (
            "## Training\n\nNothing was trained, because every part was frozen: the scores are those of the model as "
            f"it was. The recipe is in [{RECIPE_FILE}]({RECIPE_FILE}), all that was logged in "
            f"[{RESULTS_FILE}]({RESULTS_FILE})."
        )
    length = f"{results['steps']} steps ({results['epochs']:g} epochs of {results['rows_per_epoch']} rows)"
    seconds, processes = results["seconds"], results["processes"]
    duration = f"{seconds:.0f} seconds" if seconds < 300 else f"{seconds / 60:.0f} minutes"
    parts = [f"{length}, {duration} with evaluation, on {processes} process{'es' * (processes != 1)}."]
    if step := kept_step(results):
        score = f"{arguments['metric_for_best_model']} {_number(results['best_eval_score'])}"
        parts[0] += f" The checkpoint of step {step} was kept, for the best {score}."
    mixture = results.get("mixture") or {}
    if idle := results.get("only_evaluated"):
        parts[0] += f" Only evaluated, because all that the answers come from was frozen: {_and(idle)}."
    batch = "holds rows of one data set" if mixture.get("batches") == "single_task" else "mixes rows of all tasks"
    sampling = " ".join(str(mixture[key]) for key in ("sampling", "temperature") if mixture.get(key))
    parts.append(
        f"A batch {batch} ({sampling or 'proportional'} sampling), and the loss is the sum of the tasks' losses times "
        "their weights."
    )
    balancing = results.get("balancing", {"method": "sum"})
    if balancing["method"] != "sum":
        parts[-1] += f" These weights were balanced during training: {code_span(format_balancing(balancing))}."
    for key, what in (
        ("rates", "Shares of an epoch's rows"),
        ("max_rows", "Training rows that are used at most"),
        ("passes", "Passes through a task's rows in an epoch (as usual where nothing is said)"),
        ("rows_per_batch", "Rows in a batch (as usual where nothing is said)"),
    ):
        if mixture.get(key):
            said = ", ".join(f"{code_span(task)} {value:g}" for task, value in mixture[key].items())
            parts[-1] += f" {what}: {said}."
    shown = [[code_span(key), code_span(arguments[key])] for key in SHOWN_ARGUMENTS if key in arguments]
    for key in ("strategy", "peft"):
        if results.get(key):
            shown.append([code_span(key), code_span(json.dumps(results[key], ensure_ascii=False))])
    parts += [
        _table(shown, ["setting", "value"]),
        "Arguments that are not listed have the defaults of transformers, or only say how the run was watched and "
        "stored. Versions: "
        + ", ".join(f"{package} {found}" for package, found in results["versions"].items())
        + f". The recipe is in [{RECIPE_FILE}]({RECIPE_FILE}), "
        f"all that was logged in [{RESULTS_FILE}]({RESULTS_FILE}).",
    ]
    if best := results.get("best_of_tasks"):
        rows = [
            [
                code_span(task),
                found["metric"].replace("_", " "),
                found["step"],
                _number(found["score"]),
                _number(found["chosen_score"]),
            ]
            for task, found in best.items()
        ]
        header = ["task", "metric", "best step", "score there", "score in this model"]
        parts.append("When each task was at its best, on validation data, before any thresholds were chosen:")
        parts.append(_table(rows, header, right=3))
    if content.pictures is None:
        parts.append(
            "Pictures of loss, scores and confusions are missing, because matplotlib was not installed: "
            "`pip install matplotlib`, then `python -m multitask_sentence.training.report.model_card "
            f"{FOLDER_PLACEHOLDER}`."
        )
    for title, file in (content.pictures or {}).items():
        if file == TRAINING_PICTURE:
            parts.append(f"![{title}]({file})")
    return "## Training\n\n" + "\n\n".join(parts)


def _comparison(content: CardContent) -> str:
    compared = content.results.get("compare_single")
    return comparison_section(compared, content.pictures) if compared else ""


def _limits(content: CardContent) -> str:
    languages = [content.language] if isinstance(content.language, str) else content.language
    language = f"It was trained on text in these languages: {', '.join(languages)}. " if languages else ""
    lines = [
        f"{language}What it knows it has from its backbone and from the data listed above, with their errors and "
        "biases; other kinds of text, and other languages, were not measured.",
        "The scores are those of one run on the splits listed above, and say nothing beyond them.",
    ]
    if kept_step(content.results):
        lines[-1] += " Validation data also chose the checkpoint, so validation scores are the more flattering ones."
    rows = content.results["rows"]
    few = {task: rows.get(task, {}).get("test", 0) for task in content.tasks}
    few = [f"{code_span(task)} ({count})" for task, count in few.items() if 0 < count < FEW_ROWS]
    if few:
        lines.append(
            f"**Few test rows**: {_and(few)}. Another sample of that size can score several points higher or lower; "
            "take these numbers as a sign that training works, not as a measure of quality."
        )
    untested = [code_span(task) for task in content.tasks if not content.results["scores"].get("test", {}).get(task)]
    if untested:
        lines.append(f"Not tested: {_and(untested)}.")
    idle = content.results.get("only_evaluated", [])
    multi_label = [task for task, settings in content.tasks.items() if "thresholds" in settings]
    if set(multi_label) - set(idle):
        lines.append("The thresholds of multi-label tasks were chosen on validation data as well.")
    lines.append("The data sets and the backbone have licences of their own.")
    return "## Limits\n\n" + "\n".join(f"* {line}" for line in lines)


_CITATION = f"""## How to cite

```bibtex
@software{{multitask-sentence,
  title = {{multitask-sentence: one small sentence model, many answers}},
  version = {{{__version__}}},
}}

@inproceedings{{reimers-2019-sentence-bert,
  title = {{Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks}},
  author = {{Reimers, Nils and Gurevych, Iryna}},
  booktitle = {{Proceedings of the 2019 Conference on Empirical Methods in Natural Language Processing}},
  year = {{2019}},
  url = {{https://arxiv.org/abs/1908.10084}},
}}
```"""


def card_body(content: CardContent) -> str:
    """What a person reads: introduction, quickstarts, tasks, scores, classes, training, comparison, limits,
    citation."""
    sections = (_introduction, _quickstarts, _tasks, _scores, _classes, _training, _comparison, _limits)
    parts = [section(content) for section in sections]
    return "\n\n".join([f"# {content.name}", *filter(None, parts), _CITATION]) + "\n"


__all__ = ["CONFUSION_PICTURES", "FOLDER_PLACEHOLDER", "TRAINING_PICTURE", "card_body", "kept_step"]
