"""Rows that cannot be read, gathered so that one error tells of all of them.

A reader of cells raises `CellError`; who reads a column adds it to the `Problems` of its data set with file and row,
goes on, and raises once at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .half_characters import texts_in

MOST_SHOWN = 10
MOST_KNOWN = 100_000  # of a wrong column, every row may be one
LONGEST_SHOWN = 160


def brief(value: Any) -> str:
    """A value as Python writes it, for a message; of a long one the beginning and the end."""
    return shorten(repr(value))


def shorten(text: str) -> str:
    """The text, or of a long one the beginning and the end."""
    if len(text) <= LONGEST_SHOWN:
        return text
    return f"{text[: LONGEST_SHOWN - 40]}...{text[-20:]} ({len(text)} characters)"


def with_short_values(message: str, settings: Any) -> str:
    """The message without the middle of long texts that the settings hold."""
    for text in texts_in(settings):
        if len(text) > LONGEST_SHOWN:
            for form in (text, repr(text)[1:-1]):
                message = message.replace(form, shorten(text))
    return message


class CellError(ValueError):
    """What was found in a cell, and how to mend it. A text that takes time to make is given as a function."""

    def __init__(self, found: str | Callable[[], str], remedy: str):
        self._found, self.remedy = found, remedy

    @property
    def found(self) -> str:
        return self._found if isinstance(self._found, str) else self._found()

    def __str__(self) -> str:
        return f"{self.found} {self.remedy}"


@dataclass
class Problems:
    """The rows of a data set that cannot be read: the first with their errors, all up to a bound to count."""

    shown: list[tuple[str, CellError]] = field(default_factory=list)
    known: set[tuple[str, int, str]] = field(default_factory=set)

    def add(self, where: str, row: int, error: CellError) -> None:
        """Note the error of a 0-based row; a file that two splits read tells it once."""
        key = (where, row, error.remedy)
        if key not in self.known and len(self.shown) < MOST_SHOWN:
            self.shown.append((f"{where}, row {row + 1}", error))
        if len(self.known) <= MOST_KNOWN:
            self.known.add(key)

    def raise_all(self) -> None:
        """
        Raises:
            ValueError: there are problems; the message has the first, their count, the first ten, and how to mend
                them.
        """
        if not self.shown:
            return
        (place, first), *others = self.shown
        lines = [f"{place}: {first}"]
        if others:
            too_many, left = len(self.known) > MOST_KNOWN, len(self.known) - len(self.shown)
            count = f"more than {MOST_KNOWN}" if too_many else len(self.known)
            lines.append(f"{count} cells cannot be read; {'the first' if too_many else 'the'} others are:")
            lines += [f"  {place}: {error.found}" for place, error in others]
            if left:
                lines.append(f"  and {'' if too_many else f'{left} '}more")
            lines += dict.fromkeys(error.remedy for _, error in others if error.remedy != first.remedy)
        raise ValueError("\n".join(lines))


__all__ = ["CellError", "Problems", "brief", "shorten", "with_short_values"]
