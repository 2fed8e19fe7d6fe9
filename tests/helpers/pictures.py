"""Pictures that are written and not drawn, because drawing them takes longer than a tiny model's training."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

_savefig = Figure.savefig


def _write_undrawn(figure: Figure, path: str | Path, **options: Any) -> None:
    """In place of `Figure.savefig`: an empty PNG file; other pictures are drawn."""
    if Path(path).suffix != ".png":
        _savefig(figure, path, **options)
    elif figure.axes:
        Path(path).write_bytes(b"\x89PNG\r\n\x1a\n")


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Inside, PNG files hold nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", _write_undrawn)
        yield


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """Inside, within `undrawn`, pictures are drawn again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", _savefig)
        yield
