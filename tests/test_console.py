"""What a command prints of what the package logs."""

import logging
from pathlib import Path

import pytest
from accelerate import PartialState

from helpers import trainer as helpers
from multitask_sentence.training.run import log_lines
from multitask_sentence.training.run.console import show_facts
from multitask_sentence.training.run.log_lines import shorten_log, shorten_log_lines

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


def test_log_of_many_tasks_shows_the_lowest_and_the_highest_of_their_losses() -> None:
    tasks = ["a", "a_b", "score"]
    logs = {"loss": 3.5, "loss_a": 1.25, "loss_a_b": 2.0, "loss_score": 0.25, "weight_a_b": 0.5, "learning_rate": 0.1}
    assert shorten_log(logs, tasks) == {"loss": 3.5, "learning_rate": 0.1, "loss of one": "0.25 (score) to 2 (a_b)"}
    scores = {
        "eval_loss": 3.0,
        "eval_score": 0.5,
        "eval_score_macro_f1": 0.5,
        "test_a_b_loss": 1.0,
        "eval_runtime": 9.0,
    }
    assert shorten_log(scores, tasks) == {"eval_loss": 3.0, "eval_score": 0.5, "eval_runtime": 9.0}


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_trainer_of_many_tasks_prints_short_lines_and_keeps_the_whole_log(
    disable_tqdm: bool, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ("sentiment", "rating")
    model = helpers.make_model(helpers.make_backbone(tmp_path / "backbone"), tasks)
    sets = [helpers.make_set(list(tasks), train=4)]
    for most, is_short in ((2, False), (1, True)):
        monkeypatch.setattr(log_lines, "MOST_TASKS", most)
        trainer = helpers.make_trainer(model, sets, tmp_path, disable_tqdm=disable_tqdm)
        shorten_log_lines(trainer, trainer.tasks)
        trainer.train()
        printed = capsys.readouterr().out
        assert "'loss': " in printed
        assert ("loss_rating" not in printed and "(rating)" in printed) == is_short
        assert "loss_rating" in trainer.state.log_history[0]
