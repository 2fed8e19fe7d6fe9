"""A token of the Hub reaches no file, no log and no message, whatever way it is given."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence import train as command

SECRET = "hf_" + "SecretOfThisTest" * 2
WAYS = ("flag", "variable", "file")


def holders(folder: Path) -> list[str]:
    """The files below a folder that hold the secret, also as UTF-16."""
    forms = [SECRET.encode(), SECRET.encode("utf-16-le")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.mark.parametrize("way", WAYS)
def test_token_reaches_nothing_that_a_run_writes_or_says(
    way: str,
    tiny_backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_rows(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    job, flags = make_recipe(tmp_path, tiny_backbone, tasks=("mood",)), []
    training: dict[str, Any] = yaml.safe_load(job.read_text())["training"] | {"num_train_epochs": 1}
    if way == "flag":
        flags = ["--hub_token", SECRET, "--log_level", "debug"]
    elif way == "variable":
        monkeypatch.setenv("HF_TOKEN", SECRET)
    else:
        (tmp_path / "token").write_text(SECRET)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    change(job, training=training)
    monkeypatch.setattr("sys.argv", ["train.py", str(job), *flags])
    command.main()

    result = tmp_path / "result"
    assert list(result.glob("checkpoint-*/training_args.bin")), "premise: arguments are kept beside a checkpoint"
    assert holders(tmp_path) == [str(tmp_path / "token")] * (way == "file")
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err + caplog.text


@pytest.mark.parametrize("place", ["training.hub_token", "tasks.mood.dataset.token"])
def test_token_in_a_recipe_is_refused_without_being_shown(
    place: str, tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    write_rows(tmp_path)
    job = make_recipe(tmp_path, tiny_backbone, tasks=("mood",))
    recipe = yaml.safe_load(job.read_text())
    block = recipe["training"] if place.startswith("training") else recipe["tasks"]["mood"]["dataset"]
    block[place.rpartition(".")[2]] = SECRET
    change(job, **recipe)
    monkeypatch.setattr("sys.argv", ["train.py", str(job)])
    with pytest.raises(SystemExit) as caught:
        command.main()
    said = capfd.readouterr()
    assert f"{place}: a token does not belong in a recipe" in str(caught.value)
    assert SECRET not in f"{caught.value}{said.out}{said.err}"


def test_token_in_an_error_of_a_push_is_not_shown(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    write_rows(tmp_path)
    job = make_recipe(tmp_path, tiny_backbone, tasks=("mood",))
    flags = ["--hub_token", SECRET, "--push_to_hub", "--hub_model_id", "team/mine"]
    monkeypatch.setattr("sys.argv", ["train.py", str(job), *flags])
    with pytest.raises(SystemExit) as caught:
        command.main()
    said = capfd.readouterr()
    assert "The Hub cannot be asked whether the token may push" in str(caught.value), "premise: there is no Hub here"
    assert SECRET not in f"{caught.value}{said.out}{said.err}"
