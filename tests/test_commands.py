"""One entry for all commands, by name."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from multitask_sentence import commands
from multitask_sentence.__main__ import main


def test_every_file_of_commands_is_listed_and_has_a_main() -> None:
    files = {file.stem for file in Path(commands.__file__).parent.glob("[!_]*.py")}
    assert files | {"train"} == set(commands.COMMANDS)
    for name in files:
        assert callable(import_module(f"multitask_sentence.commands.{name}").main)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_each_command_is_printed(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exited:
        main([name, "--help"])
    assert exited.value.code == 0
    assert re.match(rf"usage: \S+ ?{name}|usage: {name}\.py", capsys.readouterr().out)


def test_unknown_command_names_the_near_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "multitask_sentence", "doctr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean 'doctor'?" in done.stderr
