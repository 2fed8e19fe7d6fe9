"""The recipe's `mixture` block: how training batches are drawn from the tasks' data sets.

    MixtureConfig   the settings, checked when they are made
    for_sets        the same, checked for the data sets that there are

Tasks that read the same sentences share one data set, whose rows are drawn once for all of them. So what says how much
is drawn (`rates`, `passes`, `max_rows`) belongs to a set: it is given for one of its tasks, or for several alike.
drawing.py draws by these settings.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ...checks_multitask import check_choice, check_keys, check_mapping, is_number
from ...data.sampling.rates import SAMPLINGS

BATCHES = ("mixed", "single_task")
_BY_TASK = ("rates", "passes", "max_rows", "rows_per_batch")
_BY_SET = ("rates", "passes", "max_rows")
_WHOLE = ("max_rows", "rows_per_batch", "epoch_rows")  # the others are any number


def _check_number(where: str, key: str, value: Any) -> None:
    is_whole = key in _WHOLE
    if not is_number(value) or value <= 0 or (is_whole and not isinstance(value, int)):
        raise ValueError(f"{where} is {value!r}, but should be a {'whole number' if is_whole else 'number'} above 0.")


@dataclass(frozen=True)
class MixtureConfig:
    """
    How batches are drawn.

    Attributes:
        sampling: one of `SAMPLINGS`.
        temperature: of the sampling of that name.
        rates: by task, of the sampling of that name: the set's share of an epoch's rows.
        passes: by task, with proportional sampling: how often an epoch goes through the set (1 by default).
        max_rows: by task: the set's training rows are cut down to so many.
        epoch_rows: rows of an epoch; by default as many as the sets hold together.
        batches: `mixed`, or `single_task`: rows of one data set only, the same one on every process at the same step.
        rows_per_batch: by task, how many of its labelled rows stand together in a mixed batch.

    Raises:
        ValueError: names the setting, what was found and what would be right.
    """

    sampling: str = "proportional"
    temperature: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)
    max_rows: dict[str, int] = field(default_factory=dict)
    epoch_rows: int | None = None
    batches: str = "mixed"
    rows_per_batch: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_recipe(cls, mixture: Any) -> "MixtureConfig":
        """The settings of a `mixture` block; defaults for `None`, and for keys that are `None`."""
        if isinstance(mixture, cls):
            return mixture
        mixture = {} if mixture is None else mixture
        check_mapping("mixture", mixture)
        check_keys("mixture", mixture, [setting.name for setting in fields(cls)])
        return cls(**{key: value for key, value in mixture.items() if value is not None})

    def __post_init__(self):
        check_choice("mixture.sampling", self.sampling, SAMPLINGS)
        check_choice("mixture.batches", self.batches, BATCHES)
        for key in ("temperature", "epoch_rows"):
            if getattr(self, key) is not None:
                _check_number(f"mixture.{key}", key, getattr(self, key))
        for key in _BY_TASK:
            values = getattr(self, key)
            if not isinstance(values, dict):
                raise ValueError(f"mixture.{key} is {values!r}, but should be a mapping (lines of `task: number`).")
            for task, value in values.items():
                _check_number(f"mixture.{key}.{task}", key, value)
        for key, sampling in (("temperature", "temperature"), ("rates", "rates"), ("passes", "proportional")):
            if getattr(self, key) and self.sampling != sampling:
                raise ValueError(
                    f"mixture.{key} goes with sampling: {sampling}, but sampling is {self.sampling}. Remove one."
                )
        if self.sampling == "temperature" and self.temperature is None:
            raise ValueError(
                "mixture.temperature is missing: sampling: temperature draws a set at a rate ~ size^(1/temperature), "
                "where 1 is proportional, 2 is sqrt, and more is nearer to uniform."
            )
        if self.passes and self.epoch_rows is not None:
            raise ValueError("mixture.passes and mixture.epoch_rows both say how long an epoch is. Remove one.")
        if self.rows_per_batch and self.batches == "single_task":
            raise ValueError(
                "mixture.rows_per_batch has no meaning with batches: single_task, where a batch holds the rows of one "
                "data set only. Remove one."
            )

    def to_recipe(self) -> dict[str, Any]:
        """What a recipe would say: every setting that is not its default."""
        defaults = asdict(MixtureConfig())
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}

    def without(self, names: Collection[str]) -> "MixtureConfig":
        """The same without these sets: the other sets' rates stay what they are to each other."""
        kept = {key: {task: own for task, own in getattr(self, key).items() if task not in names} for key in _BY_TASK}
        if kept["rates"] != self.rates:
            kept["rates"] = {task: rate / sum(kept["rates"].values()) for task, rate in kept["rates"].items()}
        return replace(self, **kept)

    def of_set(self, key: str, tasks: Sequence[str]) -> Any:
        """
        What `rates`, `passes` or `max_rows` say of a set, by any of its tasks; `None` if they say nothing.

        Raises:
            ValueError: its tasks have different values.
        """
        values = getattr(self, key)
        said = {task: values[task] for task in tasks if task in values}
        if len(set(said.values())) > 1:
            raise ValueError(
                f"mixture.{key}: {', '.join(said)} share one data set, whose rows are drawn once for all of them, but "
                f"have different values: {said}. Give the value to one of them."
            )
        return next(iter(said.values()), None)

    def _check_rates(self, groups: Sequence[Sequence[str]]) -> None:
        found = [self.of_set("rates", tasks) for tasks in groups]
        for tasks, rate in zip(groups, found, strict=True):
            if rate is None:
                raise ValueError(
                    f"mixture.rates gives none for {' or '.join(map(repr, tasks))}. Every data set needs one; leave "
                    "out a task that should not be trained."
                )
        if not math.isclose(sum(found), 1.0, abs_tol=1e-6):
            shared = "; ".join(" and ".join(tasks) for tasks in groups if len(tasks) > 1)
            raise ValueError(
                f"mixture.rates sum to {sum(found):g}, but should sum to 1: a rate is a data set's share of an "
                f"epoch's rows{f' ({shared} read one data set, which counts once)' if shared else ''}."
            )

    def for_sets(self, groups: Sequence[Sequence[str]]) -> "MixtureConfig":
        """
        The same with what is said of a set said of each of its tasks, whichever of them train.

        Args:
            groups: the names of the tasks, those that share a data set together.

        Raises:
            ValueError: a task is unknown, tasks of one set have different values, or rates do not fit the sets.
        """
        for key in _BY_TASK:
            check_keys(f"mixture.{key}", getattr(self, key), [task for group in groups for task in group])
        if self.sampling == "rates":
            self._check_rates(groups)
        spread = {}
        for key in _BY_SET:
            values = {task: self.of_set(key, group) for group in groups for task in group}
            spread[key] = {task: value for task, value in values.items() if value is not None}
        return replace(self, **spread)
