"""What a command prints: its own lines, and the facts that data/ and training/ log.

say         print on the main process
show_facts  print what is logged there, without a setting of logging by the user
"""

import logging
import sys

from accelerate import PartialState

from ...data.text.spelling import visible


def say(text: str = "") -> None:
    """Print on the main process; control characters are spelled out."""
    if PartialState().is_main_process:
        print(visible(text), flush=True)  # noqa: T201 - what a command is for


class _Lines(logging.Handler):
    """Bare lines: facts to where `print` goes, warnings to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(visible(self.format(record)), file=stream, flush=True)


_LINES = _Lines()


def show_facts() -> None:
    """Print on the main process what data/ and training/ log as information. A second call changes nothing."""
    if PartialState().is_main_process:
        for name in ("data", "training"):
            logger = logging.getLogger(f"multitask_sentence.{name}")
            logger.setLevel(logging.INFO)
            logger.addHandler(_LINES)


__all__ = ["say", "show_facts"]
