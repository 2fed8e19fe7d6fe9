"""What a run learns from its teachers: the settings, the teachers, and what the Trainer needs of them.

    Lessons   made before training, answered when it starts, asked in every step

A trainer draws `unlabeled` as further sets, puts `targets` into its batches beside the labels, and mixes the two
losses of a task by the label's share of the step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .answers import HeldOut, SoftTargets, answer_rows
from .losses import teacher_loss
from .settings import Distillation
from .teachers import Teacher


class Lessons:
    """
    What a run learns from its teachers.

    Args:
        settings: the recipe's block.
        teachers: by task; see `open_teacher`. For `teachers: single` they may follow before training starts.
        unlabeled: further text by name, in the column `sentences`.

    Attributes:
        targets: by task, what turns the places of a row's answers into what it learns from; empty until `answer`.
    """

    def __init__(
        self,
        settings: Distillation,
        teachers: dict[str, list[Teacher]] | None = None,
        unlabeled: dict[str, Dataset] | None = None,
    ):
        self.settings, self.unlabeled = settings, unlabeled or {}
        self.teachers: dict[str, list[Teacher]] = {}
        self.targets: dict[str, SoftTargets] = {}
        self._identities: dict[str, list[str]] = {}
        self.take(teachers or {})

    def take(self, teachers: dict[str, list[Teacher]]) -> None:
        """Learn from these teachers."""
        self.teachers = teachers
        self._identities = {task: [teacher.identity for teacher in found] for task, found in teachers.items()}

    def expect(self, identities: dict[str, list[str]]) -> None:
        """The identities, by task, that teachers still to come must have; changes nothing where teachers are known."""
        self._identities = self._identities or identities

    def describe(self) -> dict[str, Any]:
        """What of them makes a run the one it is: settings and, by hash, what answers follow from."""
        settings = self.settings
        return {
            "schedule": settings.schedule,
            "temperature": settings.temperature,
            "rows": settings.rows,
            "similarity_loss": settings.similarity_loss,
            "teachers": self._identities,
        }

    def in_words(self) -> str:
        """One line for the settings of a run."""
        settings = self.settings
        teachers = "each task's own" if settings.has_single_teachers else f"of {', '.join(settings.teachers)}"
        schedule = settings.schedule if isinstance(settings.schedule, str) else f"label share {settings.schedule:g}"
        more = sum(map(len, self.unlabeled.values()))
        unlabeled = f", {more} rows of unlabelled text" if more else ""
        return (
            f"teachers {teachers}, {schedule}, temperature {settings.temperature:g}, {settings.rows} rows, "
            f"{settings.similarity_loss} for cosines{unlabeled}"
        )

    def asked_tasks(self) -> dict[str, list[str] | None]:
        """Of each set of unlabelled text, the tasks whose teachers are asked about it; `None` for all of its kind."""
        return {name: self.settings.unlabeled.get(name, {}).get("tasks") for name in self.unlabeled}

    def kept_back(self, train_sets: Sequence[Dataset], sets: Sequence[Any]) -> list[np.ndarray]:
        """Of each training set `(rows,)`: which rows no teacher is asked about, as they stand in another split."""
        held_out = HeldOut(sets)
        return [held_out.find(rows) for rows in train_sets]

    def answer(
        self,
        tasks: dict[str, Any],
        train_sets: Sequence[Dataset],
        sets: Sequence[Any],
        device: torch.device,
        precision: str,
        show_progress: bool,
    ) -> list[Dataset]:
        """
        The training sets with the places of the teachers' answers; see `answer_rows`. The teachers are then given up.

        Args:
            tasks: settings of the trained tasks, by name.
            train_sets: their training rows, then the unlabelled text.
            sets: labelled sets, whose validation and test rows no teacher is asked about.
            device, precision, show_progress: as for `answer_rows`.

        Raises:
            ValueError: there are no teachers, because they are still to come, or have answered another trainer.
        """
        if not self.teachers:
            raise ValueError(
                "distillation: there are no teachers to ask. Lessons are for one trainer; those of teachers: single "
                "take them from take_single_teachers before training."
            )
        teachers = {task: self.teachers[task] for task in tasks if task in self.teachers}
        answered, self.targets = answer_rows(
            self.settings,
            teachers,
            tasks,
            train_sets,
            self.kept_back(train_sets, sets),
            device,
            precision,
            show_progress,
            [None] * (len(train_sets) - len(self.unlabeled)) + list(self.asked_tasks().values()),
        )
        self.teachers = {}
        return answered

    def loss(
        self, task: Any, logits: torch.Tensor, targets: torch.Tensor, embeddings: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """One task's loss against its teachers, summed over its answered rows; see `teacher_loss`."""
        return teacher_loss(task, self.settings, logits, targets, embeddings, rows)


__all__ = ["Lessons"]
