"""Teachers: opened, checked against the task that they teach, and asked.

    find_teacher    what kind of model a name stands for, before anything else is loaded
    check_teacher   whether it can teach a task, as far as that shows without its weights
    open_teacher    the model, ready to answer a task's rows
    Teacher         what it is called, what it gives, and a hash of all that its answers follow from

Three kinds of models teach. One of ours answers with the task of the same name, or with the one that is named, and
for similarity and contrastive tasks with its embedding. Any `AutoModelForSequenceClassification` with safetensors
teaches classification, its labels matched by name, and with a single output regression. Any SentenceTransformer
teaches what compares two sentences: similarity and contrastive tasks, and regression on pairs. Code that a teacher
brings along is never run. Another size, tokenizer or maximum length than the student's is the normal case.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ...backbone_multitask import UNLIMITED, find_backbone, longest_input
from ...configuration_multitask import MultiTaskConfig, ProjectionConfig
from ...data.text.sameness import text_key
from ...data.text.tokens import tokenizer_state
from ...encoding_multitask import length_sorted_batches
from ...modeling_multitask import MultiTaskModel
from ...tasks_multitask import TaskConfig
from ..evaluation.scores import task_logits
from ..features.cache import add_weights, features_key
from .settings import TeacherName

OURS, CLASSIFIER, SENTENCE_TRANSFORMER = "multitask", "classifier", "sentence_transformer"
ROWS_PER_QUESTION = 512  # asked together where a library sorts by length itself
_READS = {True: "pairs", False: "single sentences"}
# What transformers and safetensors raise of damaged weights and of a config.json that does not fit them.
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
_NOISE = ("transformers_version", "architectures", "dtype", "_name_or_path", "id2label", "label2id")


@dataclass
class Teacher:
    """
    A model that answers the rows of a task.

    Attributes:
        name: as the recipe has it.
        identity: a hash of its weights, tokenizer, maximum length and settings.
        compares: whether it embeds sentences, whose cosines are its answers; else it answers whole rows.
        size: numbers of an answer: labels, 1, or the dimensions of an embedding.
        order: for classification, which of its outputs stands for each label of the task.
        ask: rows (or sentences) and a bar to answers `(rows, size)`: logits, values, or embeddings of length 1.
        model: to be moved to a device.
    """

    name: str
    identity: str
    compares: bool
    size: int
    order: list[int] | None
    ask: Callable[[Sequence[Any], tqdm], np.ndarray]
    model: torch.nn.Module


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


def find_teacher(where: str, name: str) -> tuple[str, str]:
    """
    Where a teacher is loaded from, and which kind it is: `OURS`, `CLASSIFIER` or `SENTENCE_TRANSFORMER`.

    Args:
        where: what errors begin with, such as `distillation.teachers.topic`.
        name: folder or Hub id.

    Raises:
        ValueError: there is no such model, or it is none that can teach.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"{where}: there is no folder {name}. Give an existing folder or a Hub id.")
    path = str(folder) if folder.is_dir() else find_backbone(name)
    lookup = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors")}
    try:
        is_sentence_transformer = cached_file(path, "modules.json", **lookup) is not None
        config = {} if is_sentence_transformer and not cached_file(path, "config.json", **lookup) else None
        config = PreTrainedConfig.get_config_dict(path)[0] if config is None else config
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {name} cannot be opened as a model. {_reason(error)}") from error
    if config.get("model_type") == MultiTaskConfig.model_type:
        return path, OURS
    if any(str(kind).endswith("ForSequenceClassification") for kind in config.get("architectures") or ()):
        return path, CLASSIFIER
    if is_sentence_transformer:
        return path, SENTENCE_TRANSFORMER
    if not config:
        raise ValueError(f"{where}: the folder {name} holds no config.json, so it is no model.")
    kind = ", ".join(config.get("architectures") or [repr(config.get("model_type"))])
    raise ValueError(
        f"{where}: {name} is a model of the kind {kind}, which answers no task. A teacher is a model that was "
        "trained here, an AutoModelForSequenceClassification, or a SentenceTransformer."
    )


def match_labels(where: str, name: str, own: Sequence[str], labels: Sequence[str]) -> list[int]:
    """
    Which of a teacher's outputs stands for each label of the task; names may differ in case and white space.

    Raises:
        ValueError: the names are not the same ones; lists both sides.
    """
    for key in (str, text_key):
        places = {key(str(label)): place for place, label in enumerate(own)}
        wanted = [key(label) for label in labels]
        if len(places) == len(own) == len(labels) and places.keys() == set(wanted):
            return [places[label] for label in wanted]
    remedy = "Give a teacher of the same labels"
    if all(str(label).startswith("LABEL_") for label in own):
        remedy = "Put the names into id2label of the teacher's config.json"
    raise ValueError(
        f"{where}: the labels of {name} are {', '.join(map(repr, own))}, but those of the task are "
        f"{', '.join(map(repr, labels))}. {remedy}, or leave the task without a teacher."
    )


def _our_task(where: str, found: TeacherName, config: MultiTaskConfig, task: str, settings: TaskConfig) -> str:
    """Which of its tasks answers: one of the same kind, but for a task without a head, which learns of embeddings."""
    own = found.task or task
    if own not in config.tasks:
        raise ValueError(
            f"{where}: {found.model} has no task {own!r}. Its tasks: {', '.join(config.tasks) or 'none'}. Name the "
            f"one that teaches: {{model: {found.model}, task: NAME}}."
        )
    theirs = config.tasks[own]
    for key, said in (("problem_type", "is {}"), ("pair", "reads {}")) if settings.kind.has_head else ():
        pair = getattr(theirs, key), getattr(settings, key)
        if pair[0] != pair[1]:
            both = [value if key == "problem_type" else _READS[value] for value in pair]
            raise ValueError(
                f"{where}: task {own!r} of {found.model} {said.format(both[0])}, but task {task!r} "
                f"{said.format(both[1])}. Name a teacher of the same kind."
            )
    return own


def check_teacher(task: str, found: TeacherName, settings: TaskConfig) -> tuple[str, str]:
    """
    Refuse a teacher that cannot answer a task, as far as that shows without its weights.

    Args:
        task: the task's name.
        found: the teacher as the recipe names it.
        settings: the task's settings; labels may still be missing.

    Returns:
        Where it is loaded from, and its kind; see `find_teacher`.

    Raises:
        ValueError: there is no such model, or it answers another kind of input or question.
    """
    where, name = f"distillation.teachers.{task}", found.model
    path, kind = find_teacher(where, name)
    problem_type, is_pair, has_head = settings.problem_type, settings.pair, settings.kind.has_head
    if found.task is not None and kind != OURS:
        raise ValueError(f"{where}: {name} was not trained here, so it has no task {found.task!r}. Leave it out.")
    if kind == OURS and (has_head or found.task is not None):
        _our_task(where, found, MultiTaskConfig.from_pretrained(path), task, settings)
    if kind == CLASSIFIER and not has_head:
        raise ValueError(
            f"{where}: {name} is a text classifier, but a {problem_type} task learns from cosines. Give a "
            "SentenceTransformer, or a model that was trained here."
        )
    if kind == SENTENCE_TRANSFORMER and has_head and not (settings.kind.has_target_scale and is_pair):
        raise ValueError(
            f"{where}: {name} is a SentenceTransformer, which compares two sentences, but the task is {problem_type} "
            f"on {_READS[is_pair]}. It teaches similarity and contrastive tasks, and regression on pairs."
        )
    return path, kind


# ---- a model of ours ----


def _digest(parts: Any) -> Any:
    return xxhash.xxh3_128(json.dumps(parts, sort_keys=True, default=str).encode())


def _open_ours(where: str, found: TeacherName, path: str, task: str, settings: TaskConfig) -> Teacher:
    own = (found.task or task) if settings.kind.has_head else None
    try:
        model = MultiTaskModel.from_pretrained(path, dtype=torch.float32).eval()
    except _UNREADABLE as error:
        raise ValueError(f"{where}: {found.model} cannot be opened as a model. {_reason(error)}") from error
    hashed = _digest(["ours", features_key(model), own and model.config.tasks[own].to_dict()])
    if model.projection is not None:
        if model.config.projection.activation != ProjectionConfig.activation:  # the default changes no older key
            hashed.update(model.config.projection.activation.encode())
        add_weights(hashed, model.projection.state_dict())
    if own is None:
        size, order = model.config.embedding_dim, None
    else:
        add_weights(hashed, model.heads[own].state_dict())
        size, order = 1, None
        if labels := model.config.tasks[own].labels:
            size, order = len(labels), match_labels(where, found.model, labels, settings.labels)

    def embeddings(sentences: list[str], bar: tqdm) -> torch.Tensor:
        return torch.from_numpy(model.encode(sentences, show_progress=False, normalize=own is None))

    def ask(rows: Sequence[Any], bar: tqdm) -> np.ndarray:
        if own is None:
            answers = embeddings(list(rows), bar)
        else:
            width = 1 + settings.pair
            flat = [sentence for row in rows for sentence in row]
            places = {sentence: place for place, sentence in enumerate(dict.fromkeys(flat))}
            index = torch.tensor([places[sentence] for sentence in flat]).view(-1, width)
            logits = task_logits(model, own, embeddings(list(places), bar), index, batch_size=8192)
            answers = torch.cat(list(logits)).view(len(rows), -1)
        bar.update(len(rows))
        return answers.numpy()

    return Teacher(found.model, hashed.hexdigest(), own is None, size, order, ask, model)


# ---- any text classifier ----


def _open_classifier(where: str, found: TeacherName, path: str, settings: TaskConfig) -> Teacher:
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except _UNREADABLE as error:
        raise ValueError(
            f"{where}: {found.model} cannot be opened as a text classifier with safetensors. {_reason(error)}"
        ) from error
    model.eval()
    config, is_regression = model.config, settings.kind.has_target_scale
    if report["missing_keys"]:
        raise ValueError(
            f"{where}: {found.model} lacks the weights {', '.join(sorted(report['missing_keys'])[:4])}, so that its "
            "answers would be random. Give a trained classifier."
        )
    if config.problem_type is None and settings.kind.is_multi_label:
        raise ValueError(
            f"{where}: {found.model} does not say whether several of its labels can hold, but the task is "
            'multi_label_classification. Where each of its outputs was trained through a sigmoid, put "problem_type": '
            '"multi_label_classification" into its config.json; else leave the task without a teacher.'
        )
    if config.problem_type not in (None, settings.problem_type):
        raise ValueError(
            f"{where}: {found.model} was trained for {config.problem_type}, but the task is "
            f"{settings.problem_type}. Give a teacher of the same kind."
        )
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise ValueError(
            f"{where}: {found.model} numbers its labels {', '.join(map(str, sorted(config.id2label)))} in id2label of "
            f"config.json, but its outputs are 0 to {config.num_labels - 1}. Number the names from 0."
        )
    own = [config.id2label[place] for place in range(config.num_labels)]
    if is_regression and len(own) > 1:
        raise ValueError(
            f"{where}: {found.model} has {len(own)} outputs ({', '.join(map(repr, own))}), but the task is "
            "regression, which a model with one output teaches."
        )
    order = None if is_regression else match_labels(where, found.model, own, settings.labels)
    longest = min(tokenizer.model_max_length, longest_input(config) or UNLIMITED)
    max_length = int(longest) if longest < UNLIMITED else 512
    described = {key: value for key, value in config.to_dict().items() if key not in _NOISE}
    hashed = _digest(["classifier", type(model).__name__, described, max_length])
    hashed.update(tokenizer_state(tokenizer))
    add_weights(hashed, model.state_dict())

    @torch.no_grad()
    def ask(rows: Sequence[Any], bar: tqdm) -> np.ndarray:
        answers = torch.empty(len(rows), len(own))
        columns = [list(column) for column in zip(*rows, strict=True)]  # one of sentences, or two of pairs
        options = {"truncation": True, "max_length": max_length}
        lengths = [len(ids) for ids in tokenizer(*columns, **options)["input_ids"]]
        for batch in length_sorted_batches(lengths, tokens_per_batch=16384 if model.device.type == "cuda" else 2048):
            chosen = [[column[place] for place in batch] for column in columns]
            tokens = tokenizer(*chosen, padding=True, return_tensors="pt", **options).to(model.device)
            answers[batch] = model(**tokens).logits.float().cpu()
            bar.update(len(batch))
        return answers.numpy()

    return Teacher(found.model, hashed.hexdigest(), False, len(own), order, ask, model)


# ---- any SentenceTransformer ----


def _open_sentence_transformer(where: str, found: TeacherName, path: str) -> Teacher:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"{where}: {found.model} is a SentenceTransformer, which needs the package sentence-transformers: pip "
            "install -e '.[distillation]'"
        ) from error
    options = {"dtype": torch.float32, "use_safetensors": True}
    try:
        model = SentenceTransformer(path, device="cpu", trust_remote_code=False, model_kwargs=options).eval()
    except _UNREADABLE as error:
        raise ValueError(
            f"{where}: {found.model} cannot be opened as a SentenceTransformer. {_reason(error)}"
        ) from error
    inner = getattr(getattr(model[0], "auto_model", None), "config", None)
    described = {key: value for key, value in inner.to_dict().items() if key not in _NOISE} if inner else None
    hashed = _digest(
        [
            "sentence_transformer",
            repr(model),
            model.max_seq_length,
            model.prompts,
            model.default_prompt_name,
            described,
        ]
    )
    if isinstance(model.tokenizer, PreTrainedTokenizerBase):
        hashed.update(tokenizer_state(model.tokenizer))
    elif isinstance(model.tokenizer, Tokenizer):  # of a StaticEmbedding
        hashed.update(model.tokenizer.to_str().encode())
    add_weights(hashed, model.state_dict())

    def ask(sentences: Sequence[str], bar: tqdm) -> np.ndarray:
        answers = []
        for start in range(0, len(sentences), ROWS_PER_QUESTION):
            asked = list(sentences[start : start + ROWS_PER_QUESTION])
            answers.append(model.encode(asked, normalize_embeddings=True, show_progress_bar=False))
            bar.update(len(asked))
        return np.concatenate(answers).astype(np.float32)

    size = model.encode(["a"], show_progress_bar=False).shape[1]
    return Teacher(found.model, hashed.hexdigest(), True, size, None, ask, model)


def open_teacher(task: str, found: TeacherName, settings: TaskConfig) -> Teacher:
    """
    A teacher of a task, checked, on the CPU.

    Args:
        task: the task's name.
        found: the teacher as the recipe names it.
        settings: the task's entry in `MultiTaskConfig.tasks`.

    Raises:
        ValueError: it cannot be opened, answers another kind of input or question, or has other labels.
        ImportError: a package is missing.
    """
    path, kind = check_teacher(task, found, settings)
    where = f"distillation.teachers.{task}"
    if kind == OURS:
        return _open_ours(where, found, path, task, settings)
    if kind == CLASSIFIER:
        return _open_classifier(where, found, path, settings)
    return _open_sentence_transformer(where, found, path)


__all__ = ["Teacher", "find_teacher", "match_labels", "open_teacher"]
