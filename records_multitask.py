"""What the records of settings share, and the records that a task's own holds: its head, and when it abstains.

    Record            plain JSON, and equality by what is said
    settings_of       a record's settings as a dictionary
    HeadConfig        a task's head
    AbstainConfig     when a task gives no label
    check_size        refuses what is no size of a layer
    check_activation  refuses what is no activation

The runtime without torch reads the records, too: `check_activation` alone needs transformers.
"""

import math
from dataclasses import InitVar, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from .checks_multitask import check_count, check_keys, is_number, suggest

LARGEST_SIZE = 1_000_000


class Record:
    """
    What the records of settings share: plain JSON, and equality by what they say.

    A record is frozen. `dataclasses.replace` makes a changed one, which is checked as any other. Records of different
    classes are equal if their names and settings are: each folder of remote code brings classes of its own.
    """

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; no list is shared with the record."""
        return asdict(self)

    def __eq__(self, other: object) -> bool:
        if not is_dataclass(other) or type(self).__name__ != type(other).__name__:
            return NotImplemented
        return asdict(self) == asdict(other)

    __hash__ = None

    def _settle(self, **values: Any) -> None:
        """Set fields while the record is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)


def settings_of(record: Any) -> Any:
    """A record's settings as a dictionary; anything else as it is."""
    return record.to_dict() if hasattr(record, "to_dict") else record


def check_size(where: str, found: Any) -> None:
    """Refuse what cannot be the size of a layer: anything but a whole number from 1 to `LARGEST_SIZE`."""
    check_count(where, found)
    if found > LARGEST_SIZE:
        raise ValueError(f"{where} is {found}, but should be at most {LARGEST_SIZE:,}: it is the size of a layer.")


def check_activation(where: str, found: Any) -> None:
    """Refuse what transformers does not know as an activation."""
    from transformers.activations import ACT2FN

    if not isinstance(found, str) or found not in ACT2FN:
        raise ValueError(
            f"{where} is {found!r}, but should be an activation of transformers such as relu, gelu, tanh, silu or "
            f"linear (none).{suggest(found, ACT2FN)}"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadConfig(Record):
    """
    The network from the sentence embedding to a task's logits.

    Args:
        hidden_dims: sizes of the hidden layers; none for a linear head.
        activation: after each hidden layer, as transformers names it.
        dropout: before the last layer, at least 0 and less than 1.
        where: what an error says it is about.

    Raises:
        ValueError: names the setting, what was found and what would be right.
    """

    hidden_dims: list[int] = field(default_factory=list)
    activation: str = "relu"
    dropout: float = 0.0
    where: InitVar[str] = "head"

    def __post_init__(self, where: str):
        if not isinstance(self.hidden_dims, (list, tuple)):
            raise ValueError(
                f"{where}.hidden_dims is {self.hidden_dims!r}, but should be a list of sizes, such as [256]."
            )
        for size in self.hidden_dims:
            check_size(f"{where}.hidden_dims: a size", size)
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"{where}.dropout is {self.dropout!r}, but should be at least 0 and less than 1.")
        self._settle(hidden_dims=list(self.hidden_dims), dropout=float(self.dropout))


def complete_head(where: str, head: Any) -> HeadConfig:
    head = settings_of(head)
    if head is not None and not isinstance(head, dict):
        raise ValueError(
            f"{where} is {head!r}, but should be like {{hidden_dims: [256], activation: relu, dropout: 0.1}}."
        )
    check_keys(where, head or {}, [setting.name for setting in fields(HeadConfig)])
    return HeadConfig(**(head or {}), where=where)


@dataclass(frozen=True, eq=False, kw_only=True)
class AbstainConfig(Record):
    """
    When a task gives no label: where its confidence is lower than `confidence`, or a row out of its scope.

    The confidence of a row is its highest probability; of a multi-label row, the lowest probability of what was
    decided about a label: that it applies, or that it does not.

    Args:
        risk: the largest share of wrong labels among those that are given, above 0 and below 1. Training chooses the
            confidence for it on validation data; without one that was chosen, no label is given at all.
        confidence: from 0 to 1.
        out_of_scope: the highest percentile of the distance to what the task was trained on, from 0 to 100, with a
            label: see scope_multitask.py.
        where: what an error says it is about.

    Raises:
        ValueError: names the setting, what was found and what would be right.
    """

    risk: float | None = None
    confidence: float | None = None
    out_of_scope: float | None = None
    where: InitVar[str] = "abstain"

    def __post_init__(self, where: str):
        if self.risk is None and self.confidence is None and self.out_of_scope is None:
            raise ValueError(f"{where} is empty, but should be like {{risk: 0.05}} or {{confidence: 0.8}}.")
        if self.risk is not None and not (is_number(self.risk) and 0 < self.risk < 1):
            raise ValueError(
                f"{where}.risk is {self.risk!r}, but should be above 0 and below 1: a share of the labels given."
            )
        if self.confidence is not None and not (is_number(self.confidence) and 0 <= self.confidence <= 1):
            raise ValueError(f"{where}.confidence is {self.confidence!r}, but should be a probability, from 0 to 1.")
        if self.out_of_scope is not None and not (is_number(self.out_of_scope) and 0 <= self.out_of_scope <= 100):
            raise ValueError(
                f"{where}.out_of_scope is {self.out_of_scope!r}, but should be a percentile, from 0 to 100."
            )
        given = {"risk": self.risk, "confidence": self.confidence, "out_of_scope": self.out_of_scope}
        self._settle(**{name: None if value is None else float(value) for name, value in given.items()})

    @property
    def least_confidence(self) -> float:
        """The confidence from which on a label is given; infinite for a risk that no confidence was chosen for."""
        if self.confidence is None:
            return 0.0 if self.risk is None else math.inf
        return self.confidence

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them; the percentile only where there is one."""
        found = super().to_dict()
        return found if self.out_of_scope is not None else {key: found[key] for key in ("risk", "confidence")}


def complete_abstain(where: str, abstain: Any) -> AbstainConfig | None:
    """The record of when to abstain, from a mapping or a record; `None` for never."""
    abstain = settings_of(abstain)
    if abstain is None:
        return None
    if not isinstance(abstain, dict):
        raise ValueError(f"{where} is {abstain!r}, but should be like {{risk: 0.05}} or {{confidence: 0.8}}.")
    check_keys(where, abstain, [setting.name for setting in fields(AbstainConfig)])
    return AbstainConfig(**abstain, where=where)


__all__ = [
    "AbstainConfig",
    "HeadConfig",
    "Record",
    "check_activation",
    "check_size",
    "complete_abstain",
    "complete_head",
    "settings_of",
]
