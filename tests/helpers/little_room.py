"""A disk with little room: no file may grow beyond a few bytes, which every library meets as a full disk."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
