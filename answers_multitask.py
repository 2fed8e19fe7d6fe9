"""Answers to rows: which tasks give one, and what a row's answers look like in Python's own types.

one_word        the heads that a caller named, in either spelling
head_names      one name or several as a list
check_tasks     refuses the name of a task that does not exist
tasks_for       the tasks that answer a kind of input, or the named ones
when_to_abstain from which confidence on each task gives a label
farthest_labelled   up to which percentile out of its scope it gives one
labelled_near   the labels of rows up to it
read_question   what `predict` is asked: rows, tasks, and where they abstain
plain_answers   a dictionary per row that passes `json.dumps`
answer_columns  answers as columns of a table, by name
answer_frame    the same as a DataFrame
hand_out        answers in the form that the caller wants

This file imports only Python's own library, and files that do: the runtime without torch reads it as well. pandas is
imported where a DataFrame is asked for.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from .checks_multitask import suggest
from .records_multitask import complete_abstain
from .rows_multitask import check_container, check_rows, count_rows, distinct_sentences, windows_of
from .tasks_multitask import TaskConfig

logger = logging.getLogger(__name__)
FLOAT32 = ("values", "out_of_scope")  # half precision has no room for them
ANSWER_CONVERSIONS = ("numpy", "tensor", "pandas")


def one_word(head: Any, older: Any, spelled: str) -> Any:
    """
    What names the heads: `head`, or the argument that code before it spelled `task` or `tasks`.

    Raises:
        ValueError: both are given.
    """
    if head is not None and older is not None:
        raise ValueError(f"head is {head!r} and {spelled} is {older!r}, which mean the same. Give head alone.")
    return older if head is None else head


def head_names(head: Any, tasks: Iterable[str]) -> list[str]:
    """One name or several as a list; a TypeError for what is no name, with those of `tasks`."""
    names = [head] if isinstance(head, str) or not isinstance(head, Iterable) else list(head)
    if not all(isinstance(name, str) for name in names):
        known = ", ".join(tasks) or "none"
        raise TypeError(f"head is {head!r}, but should be a task's name or a list of them. Known tasks: {known}.")
    return names


def check_tasks(tasks: dict[str, TaskConfig], names: Iterable[str]) -> None:
    """Raise a ValueError that names the known tasks for a name that is none of them."""
    for name in names:
        if name not in tasks:
            raise ValueError(
                f"There is no task {name!r}.{suggest(name, tasks)} Known tasks: {', '.join(tasks) or 'none'}."
            )


def tasks_for(
    tasks: dict[str, TaskConfig], wanted: str | Sequence[str] | None, is_pair: bool, check_kind: bool = True
) -> list[str]:
    """
    The tasks that are to answer rows of one kind.

    Args:
        tasks: `config.tasks`.
        wanted: a task's name or several; `None` for all that read this kind of input.
        is_pair: whether the rows are pairs.
        check_kind: whether there is a row that tells the kind.

    Raises:
        TypeError: `wanted` is neither a name nor names.
        ValueError: a task is unknown, or reads the other kind of input.
    """
    if wanted is None:
        return [name for name, task in tasks.items() if task.pair == is_pair]
    names = head_names(wanted, tasks)
    check_tasks(tasks, names)
    for name in names:
        if check_kind and tasks[name].pair != is_pair:
            found, right = ("pairs", "single sentences") if is_pair else ("single sentences", "pairs (str, str)")
            raise ValueError(f"Task {name!r} reads {right}, but was given {found}.")
    return names


def _nobody_reads(tasks: Iterable[str], is_pair: bool) -> str:
    """What to say where no task answers rows of this kind."""
    found, others = ("pairs", "single sentences") if is_pair else ("single sentences", "pairs (str, str)")
    return (
        f"No task reads {found}. The tasks {', '.join(tasks)} read {others}. "
        f"{'Give several sentences as a list; ' if is_pair else ''}embeddings come from model.encode."
    )


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def when_to_abstain(tasks: dict[str, TaskConfig], names: Iterable[str], abstain: Any) -> dict[str, float]:
    """
    By task, the confidence from which on it gives a label; tasks that give one always are left out. It is infinite for
    a task that keeps within its scope, but does not know it: the task gives no label, and a warning says so.

    Args:
        tasks: `config.tasks`.
        names: the tasks that answer.
        abstain: `None` for what the configuration says, `False` for never, or `{"confidence": 0.8}` for all of them.

    Raises:
        ValueError: it is something else.
    """
    if abstain is False:
        return {}
    if abstain is not None:
        given = complete_abstain("abstain", abstain)
        if given.risk is not None:
            raise ValueError(
                f"abstain is {abstain!r}, but the confidence for a risk is chosen on validation data. Put it into the "
                "recipe (tasks.NAME.abstain), or give a confidence such as {'confidence': 0.8}."
            )
        return {name: given.least_confidence for name in names if tasks[name].kind.has_labels}
    own = {name: found for name in names if (found := tasks[name].abstain) is not None}
    least = {name: found.least_confidence for name, found in own.items()}
    for name, found in own.items():
        if found.out_of_scope is not None and not tasks[name].out_of_scope:
            _warn_once(
                f"Task {name!r} should give no label beyond the percentile {found.out_of_scope:g}, but does not know "
                "its scope, like any checkpoint from before the end of training and any task with new labels, so that "
                "it gives no label at all. Take the finished model, train with `out_of_scope: true`, or give "
                "abstain=False."
            )
            least[name] = math.inf
    return least


def farthest_labelled(tasks: dict[str, TaskConfig], names: Iterable[str], abstain: Any) -> dict[str, float]:
    """
    By task, the percentile out of its scope up to which it gives a label; tasks without one are left out.

    Arguments are those of `when_to_abstain`, which checks them.

    Raises:
        ValueError: the caller asks for a percentile, and no task knows its scope.
    """
    if abstain is False:
        return {}
    given = None if abstain is None else complete_abstain("abstain", abstain)
    found = {}
    for name in names:
        own = tasks[name].abstain if given is None else given
        if own is not None and own.out_of_scope is not None and tasks[name].out_of_scope:
            found[name] = own.out_of_scope
    if given is not None and given.out_of_scope is not None and not found:
        raise ValueError(
            f"abstain is {abstain!r}, but none of the tasks {', '.join(names)} knows its scope. Train with "
            "`out_of_scope: true` in the recipe."
        )
    return found


def labelled_near(labels: list[Any], percentiles: list[float], farthest: float) -> list[Any]:
    """Labels of rows up to a percentile out of scope; `None` for those beyond."""
    return [own if beyond <= farthest else None for own, beyond in zip(labels, percentiles, strict=True)]


@dataclass
class Question:
    """What `predict` is asked."""

    names: list[str]  # of the tasks that answer
    least_confidence: dict[str, float]  # as `when_to_abstain` gives it
    is_pair: bool
    total: int | None  # of sentences; `None` where the input does not say
    windows: Iterator[tuple[list[str], list[int]]]  # as `distinct_sentences` gives them


def read_question(
    tasks: dict[str, TaskConfig],
    rows: Iterable[Any],
    head: str | Sequence[str] | None,
    abstain: dict[str, float] | bool | None,
    embeddings: bool,
) -> Question:
    """Arguments of `predict`, checked and as it works with them; `tasks` are `config.tasks`, and `rows` several."""
    check_container(rows)
    total, windows = count_rows(rows), windows_of(rows)
    start, first = next(windows, (0, []))
    is_pair = bool(first) and isinstance(first[0], (tuple, list))
    names = tasks_for(tasks, head, is_pair, check_kind=bool(first))
    least = when_to_abstain(tasks, names, abstain)
    if not names and first and head is None and tasks and not embeddings:
        raise ValueError(_nobody_reads(tasks, is_pair))
    if isinstance(rows, (list, tuple)):
        check_rows(rows, is_pair)  # all of them before the first is computed
    windows = distinct_sentences(chain([(start, first)], windows), is_pair)
    return Question(names, least, is_pair, total and total * (1 + is_pair), windows)


def _plain_column(task: TaskConfig, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A task's answers, a dictionary per row."""
    if "labels" not in answer:
        singular, values = ("value", answer["values"]) if "values" in answer else ("score", answer["scores"])
        return [{singular: value} for value in values.tolist()]
    if "out_of_scope" in answer:
        rest = {key: value for key, value in answer.items() if key != "out_of_scope"}
        beyond = answer["out_of_scope"].tolist()
        return [{**row, "out_of_scope": own} for row, own in zip(_plain_column(task, rest), beyond, strict=True)]
    by_label = [dict(zip(task.labels, row, strict=True)) for row in answer["probabilities"].tolist()]
    found = zip(answer["labels"], by_label, strict=True)
    if task.kind.is_multi_label:
        return [{"labels": labels, "scores": scores} for labels, scores in found]
    return [
        {"label": label, "score": scores[label] if label is not None else max(scores.values()), "scores": scores}
        for label, scores in found
    ]


def plain_answers(tasks: dict[str, TaskConfig], answers: dict[str, Any], rows: int) -> list[dict[str, Any]]:
    """
    Answers row by row, in Python's own types, so that `json.dumps` takes them.

    Args:
        tasks: `config.tasks`.
        answers: what `predict` gives for a list.
        rows: how many.

    Returns for each row, by task, `label`, `score` (the highest) and `scores` by label; multi-label: the list of
    `labels`, and `scores`; where a task abstains, `label` or `labels` is `None`; of a task that knows its scope also
    `out_of_scope`; regression: `value`; similarity and
    contrastive: `score`. An `embedding` is a list of numbers, of a pair two of them.
    """
    columns = {
        name: answer.tolist() if name == "embedding" else _plain_column(tasks[name], answer)
        for name, answer in answers.items()
    }
    return [{name: column[row] for name, column in columns.items()} for row in range(rows)]


def answer_columns(name: str, task: TaskConfig, answer: dict[str, Any]) -> dict[str, Any]:
    """
    A task's answers as columns of a table, by name; what `label` writes and DataFrames hold.

    Args:
        name: the task's.
        task: its settings.
        answer: what `predict` gives for a list, in numpy arrays.

    Returns `<task>_label` and `<task>_probability` of the highest (single label), `<task>_labels` and
    `<task>_probabilities` of the labels that were given (multi-label), `<task>_value` (regression), or `<task>_score`
    (similarity, contrastive); of a task that knows its scope also `<task>_out_of_scope`. Where a task abstains, label,
    labels, and probabilities of multi-label rows are `None`.
    """
    if "labels" not in answer:
        return {f"{name}_{'value' if 'values' in answer else 'score'}": found for found in answer.values()}
    labels, probabilities = answer["labels"], answer["probabilities"]
    if task.kind.is_multi_label:
        places = {label: place for place, label in enumerate(task.labels)}
        rows = zip(probabilities, labels, strict=True)
        given = [own and [row[places[label]] for label in own] for row, own in rows]
        columns = {f"{name}_labels": labels, f"{name}_probabilities": given}
    else:
        columns = {f"{name}_label": labels, f"{name}_probability": probabilities.max(axis=1)}
    if "out_of_scope" in answer:
        columns[f"{name}_out_of_scope"] = answer["out_of_scope"]
    return columns


def answer_frame(tasks: dict[str, TaskConfig], answers: dict[str, Any], sentences: Any) -> Any:
    """
    Answers as a DataFrame with the columns of `answer_columns`, and `embedding` (of pairs `embedding1` and
    `embedding2`), a vector a row. Its index is that of `sentences` where these are a pandas Series.

    Args:
        tasks: `config.tasks`.
        answers: what `predict` gives for a list, in numpy arrays.
        sentences: what they answer.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("convert_to='pandas' needs pandas, which is not installed: pip install pandas.") from error
    columns: dict[str, Any] = {}
    for name, answer in answers.items():
        if name == "embedding":
            sides = {"embedding": answer} if answer.ndim == 2 else {f"embedding{n + 1}": answer[:, n] for n in (0, 1)}
            columns |= {side: list(vectors) for side, vectors in sides.items()}
        else:
            columns |= answer_columns(name, tasks[name], answer)
    index = sentences.index if isinstance(sentences, pandas.Series) else None
    # Lists hold text, `None`, lists or vectors. As objects they stay what they are.
    series = {
        name: pandas.Series(values, index=index, dtype=object if isinstance(values, list) else None)
        for name, values in columns.items()
    }
    return pandas.DataFrame(series, index=index)


def hand_out(
    tasks: dict[str, TaskConfig],
    answers: dict[str, Any],
    rows: int,
    sentences: Any,
    as_list: bool,
    convert_to: str,
    convert: Callable[[Any, str, bool], Any],
) -> Any:
    """
    Answers to `rows` rows, in arrays, as `predict` gives them.

    Args:
        tasks: `config.tasks`.
        answers: arrays or tensors by task, and `embedding`.
        rows: how many.
        sentences: what `predict` was given.
        as_list, convert_to: arguments of `predict`.
        convert: makes an array or a tensor of one, and learns whether float32 is kept.
    """
    is_single = isinstance(sentences, (str, tuple))
    if as_list:
        plain = plain_answers(tasks, answers, rows)
        return plain[0] if is_single else plain
    kind = "numpy" if convert_to == "pandas" else convert_to
    for name, answer in answers.items():
        if name == "embedding":
            answers[name] = convert(answer, kind, False)
        else:
            answer.update({key: convert(answer[key], kind, key in FLOAT32) for key in answer if key != "labels"})
    if convert_to == "pandas":
        return answer_frame(tasks, answers, sentences)
    if is_single:
        return {
            name: answer[0] if name == "embedding" else {key: value[0] for key, value in answer.items()}
            for name, answer in answers.items()
        }
    return answers


__all__ = [
    "ANSWER_CONVERSIONS",
    "answer_columns",
    "check_tasks",
    "farthest_labelled",
    "hand_out",
    "head_names",
    "labelled_near",
    "one_word",
    "plain_answers",
    "read_question",
    "tasks_for",
    "when_to_abstain",
]
