"""`python -m multitask_sentence NAME ...` and `multitask-sentence NAME ...`: one of the commands by its name."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from multitask_sentence.checks_multitask import suggest
from multitask_sentence.commands import COMMANDS


class _CommandParser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        found = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        super().error(message + suggest(found, COMMANDS) if found else message)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names with the arguments after it."""
    width = max(map(len, COMMANDS))
    parser = _CommandParser(
        prog="multitask-sentence",
        description="One small sentence model, many answers: train it, look at it, use it.",
        epilog="\n".join(["commands:", *(f"  {name:{width}}  {what}" for name, what in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="NAME", help="A command; NAME --help says more.")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="What the command takes.")
    options = parser.parse_args(argv)
    module = "train" if options.command == "train" else f"commands.{options.command}"
    import_module(f"multitask_sentence.{module}").main(options.arguments)


if __name__ == "__main__":
    main()
