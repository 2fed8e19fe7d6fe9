"""What a command prints of what the package logs."""

import logging

import pytest
from accelerate import PartialState

from multitask_sentence.training.run.console import show_facts

DATA, TRAINING = (logging.getLogger(f"multitask_sentence.{name}") for name in ("data", "training"))


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have set up."""
    for logger in (DATA, TRAINING):
        monkeypatch.setattr(logger, "handlers", [])


def test_facts_are_bare_lines_and_warnings_go_to_standard_error(capsys: pytest.CaptureFixture) -> None:
    show_facts()
    show_facts()  # one line each, however many runs a process makes
    DATA.getChild("loading").info("mood: 5 % of 20 rows")
    TRAINING.getChild("trainer").warning("a loss dwarfs the others")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("mood: 5 % of 20 rows\n", "a loss dwarfs the others\n")


def test_facts_are_printed_on_the_main_process_alone(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PartialState._shared_state, "process_index", 1)
    assert not PartialState().is_main_process, "premise: another process"
    show_facts()
    DATA.getChild("loading").info("told once already")
    assert capsys.readouterr().out == ""
