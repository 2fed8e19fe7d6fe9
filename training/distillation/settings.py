"""The recipe's `distillation` block: what the tasks learn from beside their labels, checked when it is made.

    Distillation        the block with every default
    TeacherName         a teacher as a recipe names it
    read_distillation   a recipe's block; an error that says where, what was found and what would be right

The rest of the room: starting.py goes from the block to the teachers of a run, and trains each task's own where it is
asked to; teachers.py opens teachers and asks them, answers.py keeps what they say on disk, units.py brings values to a
task's units, unlabeled.py reads further text, lessons.py is what a trainer sees of all that, losses.py learns from it,
report.py compares.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ...checks_multitask import check_choice, check_keys, check_mapping, is_number

SINGLE = "single"  # each task's own model, trained alone first
ANNEALING = "annealing"
ROWS = ("all", "own")
SIMILARITY_LOSSES = ("divergence", "cosent", "cosine_mse")
UNLABELED = "unlabeled"  # what the mixture calls unlabelled text that has no name of its own
UNLABELED_KEY = "distillation.unlabeled"
_UNLABELED_KEYS = ("dataset", "columns", "where", "tasks")


def unlabeled_key(name: str) -> str:
    """Where a recipe has a set of unlabelled text."""
    return UNLABELED_KEY if name == UNLABELED else f"{UNLABELED_KEY}.{name}"


@dataclass(frozen=True)
class TeacherName:
    """
    A teacher as a recipe names it.

    Attributes:
        model: folder or Hub id.
        task: which task of a model of ours answers; `None` for the one that is called like the task it teaches.
    """

    model: str
    task: str | None = None


@dataclass(frozen=True)
class Distillation:
    """
    What the tasks learn from beside their labels.

    Attributes:
        teachers: `single` (each task's own model, trained alone first), or by task its teachers, whose answers are
            averaged. Tasks without any learn from their labels alone.
        schedule: the label's share of what a task learns from: `annealing` (0 at the first step, 1 at the last, a
            straight line between; born-again multi-task networks, arXiv 1907.04829, section 3.2), or a number from 0
            to 1.
        temperature: what logits are divided by before a teacher's and the student's classes are compared.
        rows: `all`: every training row gets the answers of every task that reads its kind, a sentence or a pair;
            `own`: only the rows that are labelled for the task.
        unlabeled: further text, which has teachers' answers only: by name, each with `dataset`, `columns` and
            optionally `where`, and `tasks` where only the teachers of some are asked.
        similarity_loss: how similarity and contrastive tasks learn from a teacher's cosines; see losses.py.

    Raises:
        ValueError: a value is unknown or out of its range.
    """

    teachers: str | dict[str, tuple[TeacherName, ...]]
    schedule: str | float = ANNEALING
    temperature: float = 1.0
    rows: str = "all"
    unlabeled: dict[str, dict[str, Any]] = field(default_factory=dict)
    similarity_loss: str = "divergence"

    def __post_init__(self) -> None:
        if self.teachers != SINGLE and not (isinstance(self.teachers, dict) and self.teachers):
            raise ValueError(
                f"distillation.teachers is {self.teachers!r}, but should be single (each task's own model, trained "
                "alone first), or name by task a model of ours, a text classifier or a SentenceTransformer, such as "
                "{sentiment: FOLDER_OR_HUB_ID}."
            )
        if self.schedule != ANNEALING and not (is_number(self.schedule) and 0 <= self.schedule <= 1):
            raise ValueError(
                f"distillation.schedule is {self.schedule!r}, but should be annealing (the label's share grows from 0 "
                "to 1), or the label's share itself, a number from 0 (the teacher alone) to 1 (the label alone)."
            )
        if not is_number(self.temperature) or self.temperature <= 0:
            raise ValueError(
                f"distillation.temperature is {self.temperature!r}, but should be a number above 0: logits are "
                "divided by it (1 leaves them as they are)."
            )
        check_choice("distillation.rows", self.rows, ROWS)
        check_choice("distillation.similarity_loss", self.similarity_loss, SIMILARITY_LOSSES)

    @property
    def has_single_teachers(self) -> bool:
        """Whether each task's own model is trained first."""
        return self.teachers == SINGLE

    @property
    def is_silent(self) -> bool:
        """Whether the labels have all of the say, so that no teacher needs to be asked."""
        return self.schedule == 1

    def label_share(self, step: int, max_steps: int) -> float:
        """
        The label's share of what is learnt in an optimizer step.

        Args:
            step: the number of steps before it, so 0 for the first.
            max_steps: steps of the run.
        """
        if self.schedule != ANNEALING:
            return float(self.schedule)
        return min(step / max(max_steps - 1, 1), 1.0)


def _read_teacher(where: str, found: Any) -> TeacherName:
    if isinstance(found, str) and found:
        return TeacherName(found)
    if isinstance(found, dict):
        check_keys(where, found, ("model", "task"))
        if all(isinstance(found.get(key), str) and found[key] for key in found) and "model" in found:
            return TeacherName(found["model"], found.get("task"))
    raise ValueError(
        f"{where} is {found!r}, but should be a folder or Hub id, {{model: FOLDER_OR_HUB_ID, task: NAME}} for a "
        "certain task of one of our models, or a list of these."
    )


def _read_teachers(found: Any, tasks: Sequence[str]) -> Any:
    """Teachers by task, or what was found where that is no mapping."""
    if not isinstance(found, dict):
        return found
    check_keys("distillation.teachers", found, tasks, f"Tasks of the recipe: {', '.join(tasks)}.")
    teachers = {}
    for task, named in found.items():
        where = f"distillation.teachers.{task}"
        several = named if isinstance(named, list) else [named]
        if not several:
            raise ValueError(f"{where} is an empty list. Name a teacher, or leave the task out.")
        teachers[task] = tuple(_read_teacher(where, one) for one in several)
        if len(set(teachers[task])) < len(several):
            raise ValueError(f"{where} names a teacher twice. Name each once.")
    return teachers


def name_unlabeled(found: dict[str, Any] | None) -> dict[str, Any]:
    """A recipe's sets of unlabelled text by name; a single one may stand without a name."""
    return {UNLABELED: found} if set(found or ()) & set(_UNLABELED_KEYS) else found or {}


def _read_unlabeled(found: Any, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    if found is not None:
        check_mapping(UNLABELED_KEY, found)
    named = name_unlabeled(found)
    for name, settings in named.items():
        where = unlabeled_key(name)
        if name in tasks:
            raise ValueError(
                f"{where}: the mixture calls this text {name!r}, as a task is called. Rename one of them."
            )
        _check_unlabeled(where, settings, tasks)
    return named


def _check_unlabeled(where: str, found: Any, tasks: Sequence[str]) -> None:
    check_mapping(where, found)
    check_keys(where, found, _UNLABELED_KEYS)
    columns = found.get("columns")
    if not isinstance(columns, dict) or set(columns) not in ({"sentence"}, {"sentence1", "sentence2"}):
        raise ValueError(
            f"{where}.columns is {columns!r}, but should be {{sentence: COLUMN}}, or {{sentence1: COLUMN, sentence2: "
            "COLUMN} for pairs."
        )
    if not isinstance(found.get("dataset"), dict) or not isinstance(found["dataset"].get("path"), str):
        raise ValueError(
            f"{where}.dataset is {found.get('dataset')!r}, but should hold the arguments of datasets.load_dataset, "
            "such as {path: csv, data_files: more.csv}."
        )
    asked = found.get("tasks")
    if asked is not None and not (isinstance(asked, list) and asked and set(map(str, asked)) <= set(tasks)):
        raise ValueError(
            f"{where}.tasks is {asked!r}, but should be a list of those tasks of the recipe whose teachers are asked "
            f"about this text. Tasks of the recipe: {', '.join(tasks)}."
        )


def read_distillation(block: Any, tasks: Sequence[str]) -> Distillation | None:
    """
    A recipe's `distillation` block; `None` where there is none.

    Args:
        block: what the recipe holds.
        tasks: names of its tasks.

    Raises:
        ValueError: names the key, what was found and what would be right.
    """
    if block is None:
        return None
    check_mapping("distillation", block)
    check_keys("distillation", block, [entry.name for entry in fields(Distillation)])
    given = {key: value for key, value in block.items() if value is not None}
    return Distillation(
        **{
            **given,
            "teachers": _read_teachers(given.get("teachers"), tasks),
            "unlabeled": _read_unlabeled(given.get("unlabeled"), tasks),
        }
    )


__all__ = [
    "ANNEALING",
    "SINGLE",
    "Distillation",
    "TeacherName",
    "name_unlabeled",
    "read_distillation",
    "unlabeled_key",
]
