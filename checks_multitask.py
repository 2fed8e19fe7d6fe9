"""Checks of what a user wrote. Each raises a ValueError that says where, what was found and what would be right.

    check_mapping  a mapping
    check_keys     known keys only
    check_choice   one of the known values
    check_count    a whole number of at least 1
    check_flag     true or false
    is_number      whether a value is a finite number
    suggest        the nearest of the known names, as the end of a message

This file travels with every saved model, and imports nothing but Python's own library.
"""

import difflib
import math
from collections.abc import Collection, Iterable
from numbers import Real
from typing import Any

LISTED = 12  # of many known values, a message names so many
MANY = 16


def suggest(found: Any, known: Iterable[Any]) -> str:
    """`" Did you mean 'x'?"` for the nearest of the known names, upper or lower case, else an empty string."""
    by_folded = {str(name).casefold(): str(name) for name in known}
    nearest = difflib.get_close_matches(str(found).casefold(), by_folded, n=1)
    return f" Did you mean {by_folded[nearest[0]]!r}?" if nearest else ""


def check_mapping(where: str, found: Any) -> None:
    """Refuse anything but a mapping."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {found!r}, but should be a mapping (lines of `key: value`).")


def check_keys(where: str, found: Iterable[Any], known: Collection[str], hint: str | None = None) -> None:
    """Refuse an unknown key. The message ends with `hint` where there is one, else with the known keys."""
    for key in found:
        if key not in known:
            hint = f"Known keys: {', '.join(known)}." if hint is None else hint
            raise ValueError(f"{where}: unknown key {key!r}.{suggest(key, known)} {hint}")


def check_choice(where: str, found: Any, known: Collection[str]) -> None:
    """Refuse a value that is not among the known ones."""
    if found not in tuple(known):  # a dictionary would fail on a list, which is no key
        names = list(known)
        listed = ", ".join(names if len(names) <= MANY else names[:LISTED])
        listed += f" or {len(names) - LISTED} others" if len(names) > MANY else ""
        raise ValueError(f"{where} is {found!r}, but should be one of {listed}.{suggest(found, names)}")


def check_count(where: str, found: Any) -> None:
    """Refuse anything but a whole number of at least 1."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{where} is {found!r}, but should be a whole number of at least 1.")


def check_flag(where: str, found: Any) -> None:
    """Refuse anything but true and false."""
    if not isinstance(found, bool):
        raise ValueError(f"{where} is {found!r}, but should be true or false.")


def is_number(value: Any) -> bool:
    """Whether it is a finite number. A bool is none, nor is NaN, as an undefined metric is."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False
