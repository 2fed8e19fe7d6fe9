"""A person's mistake ends every command with one line and exit status 1, never with a stack trace."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import Trainer  # noqa: F401 - before a test hides peft, which transformers loads along

from multitask_sentence import MultiTaskModel


def said_by(command: str, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        import_module(f"multitask_sentence.commands.{command}").main([str(argument) for argument in arguments])
    return str(exited.value.code)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("text,mood\nthe cat sat,positive\n", encoding="utf-8")
    return tmp_path / "rows.csv"


def test_wrong_type_in_a_config_is_said_in_one_line(tiny_model: MultiTaskModel, tmp_path: Path, rows: Path) -> None:
    folder = tmp_path / "saved"
    tiny_model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_length": "128"}), encoding="utf-8")
    for name in ("results.json", "recipe.yaml"):
        (folder / name).write_text("{}", encoding="utf-8")
    wanted, other = "error: Field 'max_length' expected int, got str (value: '128')", tmp_path / "other"
    for command, arguments in {
        "evaluate": [folder, rows],
        "compare": [folder, other, "--data", rows],
        "report": [folder],
        "card": [folder],
        "label": [folder, rows, tmp_path / "out.csv"],
        "export": [folder],
        "serve": [folder],
    }.items():
        assert said_by(command, *arguments) == wanted, command


def test_adapter_without_peft_is_said_in_one_line(
    tiny_model: MultiTaskModel, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.add_adapter(LoraConfig(r=3, target_modules=["query", "value"]))
    tiny_model.save_pretrained(tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)  # what an environment without it answers to an import
    folder, mood = tmp_path / "adapter", ["--label", "mood=mood"]
    for command, arguments in {
        "evaluate": [folder, rows, *mood],
        "compare": [folder, tmp_path, "--data", rows, *mood],
        "report": [folder, "--data", rows, *mood],
        "label": [folder, rows, tmp_path / "out.csv"],
    }.items():
        assert "needs the package peft, which is not installed: pip install peft" in said_by(command, *arguments)


def test_mistyped_folder_is_said_in_one_line(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", "runs/mistyped/name"):
        assert said_by("doctor", source).startswith("error: ")
