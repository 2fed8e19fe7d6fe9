"""A person's mistake ends a command with one line in place of a stack trace."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError

# A wrong value or type, a file or disk, a package that is missing, a wrong value in a config.json.
MISTAKES = (ValueError, TypeError, OSError, ImportError, StrictDataclassError)


def explain(error: BaseException) -> str:
    """What a command says of a mistake."""
    from ...data.text.spelling import visible  # only now: it imports datasets, which --help needs none of

    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
    return visible(f"error: {cause}")


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A mistake ends the command with one message and exit status 1."""
    try:
        yield
    except MISTAKES as error:
        sys.exit(explain(error))


__all__ = ["MISTAKES", "explain", "told_in_one_line"]
