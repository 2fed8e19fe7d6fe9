"""`train.py --check`: everything that a run does before it trains, with nothing left behind."""

import re
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from multitask_sentence.train import main, run

ROWS = ["text,mood", "the cat sat,good", "the dog ran,bad", "a bird sang,good", "the bank said,bad"]
RECIPE = {
    "max_length": 20,
    "tasks": {
        "mood": {
            "problem_type": "single_label_classification",
            "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "validation.csv"}},
            "columns": {"sentence": "text", "label": "mood"},
        }
    },
    "training": {"use_cpu": True, "disable_tqdm": True},
}


@pytest.fixture
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str, private_cache: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with its data in a working directory of its own; one validation row is a training row too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    (tmp_path / "validation.csv").write_text("text,mood\nthe cat sat,good\nit is time,bad\n", encoding="utf-8")
    return write(tmp_path, {"backbone": tiny_backbone, **RECIPE})


def write(folder: Path, recipe: dict) -> Path:
    (folder / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "job.yaml"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def exit_of(monkeypatch: pytest.MonkeyPatch, *argv: object) -> object:
    """What the command hands to `sys.exit`: text is printed to stderr and gives exit status 1."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


def test_check_prints_settings_table_and_warnings_and_leaves_nothing(job: Path, capsys: pytest.CaptureFixture[str]):
    before = files(job.parent)
    run([str(job), "--check"])
    printed = capsys.readouterr().out
    assert "Settings\n" in printed
    assert re.search(r"^output_dir +runs/job$", printed, flags=re.MULTILINE)
    assert "mood: 2 labels, from the train split: bad, good" in printed
    assert re.search(r"^mood +train +4 +bad 50 %, good 50 %", printed, flags=re.MULTILINE)
    assert "1 of 2 validation rows of mood stand in its training split too" in printed
    assert printed.endswith("Nothing was trained or saved; leave out --check to train.\n")
    assert files(job.parent) == before


def test_check_of_an_earlier_run_leaves_it_as_it_is(job: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = job.parent / "runs" / "job" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    before = files(job.parent)
    for flags in ([], ["--overwrite"]):
        run([str(job), "--check", *flags])
        assert "Checked: recipe and data fit together." in capsys.readouterr().out
    assert files(job.parent) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": 65}, "max_length is 65, but the backbone"),  # known once the model is there
        ({"mixture": {"passes": {"mood": 0.1}}}, "each needs at least 1"),  # known once the trainer is there
        ({"tasks": {"mood": {**RECIPE["tasks"]["mood"], "labels": ["good", "fine"]}}}, "label 'bad' is not a label"),
    ],
    ids=["model", "trainer", "data"],
)
def test_check_ends_with_the_error_of_the_run(
    job: Path, change: dict, message: str, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
):
    write(job.parent, {"backbone": tiny_backbone, **RECIPE, **change})
    before = files(job.parent)
    assert message in exit_of(monkeypatch, job, "--check")
    assert files(job.parent) == before


def test_check_tells_of_augmentation_without_making_it(
    job: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (job.parent / "mine.py").write_text("def again(sentences):\n    raise RuntimeError('asked')\n", encoding="utf-8")
    mood = {**RECIPE["tasks"]["mood"], "augmentation": {"method": "mine.again", "share": 0.5}}
    write(job.parent, {"backbone": tiny_backbone, **RECIPE, "tasks": {"mood": mood}})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = files(job.parent)
    run([str(job), "--check"])
    assert "mood: the run adds rows by augmentation, which a check does not make" in capsys.readouterr().out
    assert files(job.parent) == before
