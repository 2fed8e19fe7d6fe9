"""A run's output folder is its own from the first file on, wherever the run is stopped."""

import json
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from transformers import Trainer, TrainerCallback

from helpers import command as any_command
from helpers import warm
from multitask_sentence import MultiTaskModel, staging_multitask
from multitask_sentence import train as command
from multitask_sentence.labelling.parts import JobFolder
from multitask_sentence.training.evaluation import best_checkpoints
from multitask_sentence.training.run import output_folder
from multitask_sentence.training.run.output_folder import (
    LOCK_FILE,
    MARK_FILE,
    check_output_dir,
    claim_output_dir,
    hold_output_dir,
)

RECIPE = {
    "max_length": 16,
    "tasks": {
        "pets": {
            "problem_type": "single_label_classification",
            "dataset": {"path": "csv", "data_files": {"train": "train.csv", "validation": "validation.csv"}},
            "columns": {"sentence": "text", "label": "pet"},
            "labels": ["cats", "dogs"],
        }
    },
    "training": {"num_train_epochs": 2, "per_device_train_batch_size": 4, "disable_tqdm": True, "use_cpu": True},
}


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of one task, with its data; the result goes to `result` beside them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, verb in (("train", "ran"), ("validation", "sat")):
        rows = [f"the {noun} {verb} {place},{noun}s" for noun in ("cat", "dog") for place in ("in", "on", "under")]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,pet", *rows]) + "\n")
    recipe = {**RECIPE, "backbone": tiny_backbone}
    recipe["training"] = {**RECIPE["training"], "output_dir": str(tmp_path / "result")}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return tmp_path / "job.yaml"


def run_command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, argv)])
    command.main()


def error_of(monkeypatch: pytest.MonkeyPatch, *argv: object) -> str:
    with pytest.raises(SystemExit) as caught:
        run_command(monkeypatch, *argv)
    return str(caught.value.code)


class Killed(BaseException):
    """What nothing catches, as a signal that ends the process."""


def killed(*args: Any, **kwargs: Any) -> None:
    raise Killed


def before_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(does: Callable[..., None]) -> Callable[..., None]:
        return lambda path, *rest: (
            killed() if "/result" in str(path) else does(path, *rest)
        )  # not in the cache of rows

    for name in ("replace", "remove"):  # the mark is written under another name first, and nobody clears it away
        monkeypatch.setattr(staging_multitask.os, name, killing(getattr(staging_multitask.os, name)))


def before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "train", killed)


def in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainerCallback, "on_step_end", killed)


def while_the_first_best_model_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_checkpoints, "put_folder", killed)


def while_the_first_checkpoint_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)


def before_the_first_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multitask_sentence.training.resuming.checkpoints.write_record", killed)


EARLY = [
    before_any_file,
    before_training,
    in_training,
    while_the_first_best_model_is_saved,
    while_the_first_checkpoint_is_saved,
    before_the_first_record,
]


@pytest.mark.parametrize("kill", EARLY)
def test_run_that_was_killed_before_its_first_checkpoint_can_be_replaced(
    kill: Callable[[pytest.MonkeyPatch], None], job: Path, monkeypatch: pytest.MonkeyPatch
):
    result = job.parent / "result"
    with monkeypatch.context() as patched:
        kill(patched)
        with pytest.raises(Killed):
            run_command(patched, job)
    assert list(result.iterdir()), "premise: something is left"
    message = error_of(monkeypatch, job)
    assert "holds an earlier run" in message
    assert "--overwrite" in message
    if not list(result.glob("checkpoint-*")):
        assert "that was stopped before its first checkpoint, so there is nothing to go on from" in message
    message = error_of(monkeypatch, job, "--resume_from_checkpoint")
    assert "result holds no checkpoint to resume from. Leave --resume_from_checkpoint out" in message
    assert "--overwrite" in message
    run_command(monkeypatch, job, "--overwrite")
    assert json.loads((result / "results.json").read_text())["steps"] == 4
    assert not {LOCK_FILE, MARK_FILE, f"{MARK_FILE}.part"} & {path.name for path in result.iterdir()}


def test_run_that_was_killed_while_its_result_was_saved_resumes_and_can_be_replaced(
    job: Path, monkeypatch: pytest.MonkeyPatch
):
    result = job.parent / "result"
    with monkeypatch.context() as patched:
        patched.setattr(command, "write_predictions", killed)
        with pytest.raises(Killed):
            run_command(patched, job)
    assert (result / "model.safetensors").is_file(), "premise: it holds more than checkpoints"
    assert "go on with --resume_from_checkpoint, or replace it with --overwrite" in error_of(monkeypatch, job)
    check_output_dir(result, overwrite=True)
    run_command(monkeypatch, job, "--resume_from_checkpoint")
    assert json.loads((result / "results.json").read_text())["steps"] == 4


def test_folder_is_the_run_s_own_also_while_an_earlier_run_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("results.json", "recipe.yaml"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "best" / "topic").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(output_folder.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            claim_output_dir(tmp_path, empty=True)
    check_output_dir(tmp_path, overwrite=True)
    claim_output_dir(tmp_path, empty=True)
    assert [path.name for path in tmp_path.iterdir()] == [MARK_FILE]


@pytest.mark.parametrize("content", ["{}", "[1, 2]", '{"unfinished_run_of": "something else"}', "cut o"])
def test_mark_of_another_making_is_no_mark(content: str, tmp_path: Path):
    (tmp_path / MARK_FILE).write_text(content)
    (tmp_path / "thesis.tex").write_text("kept")
    with pytest.raises(ValueError, match="holds something else than a run"):
        check_output_dir(tmp_path, overwrite=True)


def test_folder_that_only_the_finder_of_macos_wrote_into_is_empty(tmp_path: Path):
    (tmp_path / ".DS_Store").write_bytes(b"where the icons are")
    check_output_dir(tmp_path, overwrite=False)
    JobFolder(tmp_path, ".csv", tmp_path).check_own()
    (tmp_path / "thesis.tex").write_text("kept")
    with pytest.raises(ValueError, match=r"holds something else than a run \(thesis\.tex\)"):
        check_output_dir(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match=r"it holds 'thesis\.tex'"):
        JobFolder(tmp_path, ".csv", tmp_path).check_own()


@pytest.mark.parametrize("left", [".unfinished", ".older"])
def test_folder_of_an_earlier_version_that_was_killed_in_saving_its_first_best_model_can_be_replaced(left, tmp_path):
    (tmp_path / "best" / left / ".model").mkdir(parents=True)
    with pytest.raises(ValueError, match="stopped before its first checkpoint"):
        check_output_dir(tmp_path, overwrite=False)
    check_output_dir(tmp_path, overwrite=True)


@pytest.fixture
def starts(job: Path, tmp_path: Path) -> Iterator[Callable[[], BaseProcess]]:
    """Starts the job in a process of its own, one that lasts."""
    processes = []

    def start() -> BaseProcess:
        command = [any_command.__file__, "train", str(job), "--num_train_epochs", "100000", "--save_strategy", "no"]
        command += ["--load_best_model_at_end", "false", "--eval_strategy", "no"]
        process = warm.start(command, {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path / f"printed{len(processes)}")
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_of_two_runs_on_one_folder_the_second_is_refused_and_a_killed_one_holds_nothing(
    starts: Callable[[], BaseProcess], job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    both = [starts() for _ in range(2)]
    ended = multiprocessing.connection.wait([process.sentinel for process in both], timeout=300)
    (refused,) = [number for number, process in enumerate(both) if process.sentinel in ended]
    lives = both[1 - refused]
    said = f"another run is writing there (process {lives.pid} on "
    assert said in (tmp_path / f"printed{refused}").read_text()
    assert both[refused].exitcode == 1
    while lives.is_alive() and not (tmp_path / "result" / MARK_FILE).is_file():
        time.sleep(0.05)
    for flags in ([], ["--overwrite"], ["--resume_from_checkpoint"]):
        assert said in error_of(monkeypatch, job, *flags)
    run_command(monkeypatch, job, "--check")
    assert lives.is_alive()
    lives.kill()
    lives.join()
    with hold_output_dir(tmp_path / "result"):
        assert (tmp_path / "result" / LOCK_FILE).is_file()
    assert "holds an earlier run" in error_of(monkeypatch, job)


def test_processes_forked_from_a_killed_run_do_not_keep_its_folder(tmp_path: Path):
    reads, writes = os.pipe()
    if not (run := os.fork()):
        with hold_output_dir(tmp_path):
            if worker := os.fork():
                os.write(writes, str(worker).encode())
            time.sleep(60)
            os._exit(0)
    worker = int(os.read(reads, 20))
    with pytest.raises(ValueError, match=f"another run is writing there .process {run} on"), hold_output_dir(tmp_path):
        pass
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    with hold_output_dir(tmp_path):
        os.kill(worker, signal.SIGKILL)  # it was still there


def test_refused_run_leaves_no_folder_behind(job: Path, monkeypatch: pytest.MonkeyPatch):
    (job.parent / "train.csv").write_text("text,pet\nthe cat sat,cow\n")
    assert "cow" in error_of(monkeypatch, job, "--output_dir", job.parent / "new" / "result")
    assert not (job.parent / "new").exists()


# ---- resuming with the command ----


@pytest.fixture
def trained(job: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The job after a run of its two epochs."""
    run_command(monkeypatch, job)
    return job


def change(job: Path, **changes: Any) -> None:
    recipe = yaml.safe_load(job.read_text())
    recipe["tasks"]["pets"].update(changes)
    job.write_text(yaml.safe_dump(recipe, sort_keys=False))


@pytest.mark.parametrize("flags", [[], ["--check"]], ids=["run", "check"])
def test_command_refuses_reordered_labels_and_keeps_the_finished_run(
    flags: list[str], trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    result = trained.parent / "result"
    before = {path: path.read_bytes() for path in result.rglob("*") if path.is_file()}
    change(trained, labels=["dogs", "cats"])
    message = error_of(monkeypatch, trained, "--resume_from_checkpoint", result / "checkpoint-2", *flags)
    assert "tasks.pets.labels was ['cats', 'dogs'] and is ['dogs', 'cats'] now" in message
    assert {path: path.read_bytes() for path in result.rglob("*") if path.is_file()} == before
    assert MultiTaskModel.from_pretrained(result).config.tasks["pets"].labels == ["cats", "dogs"]


def test_command_refuses_other_columns_and_another_backbone_by_name(
    trained: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
):
    for split in ("train", "validation"):
        file = trained.parent / f"{split}.csv"
        file.write_text(file.read_text().replace("text,pet", "sentence,pet"))
    change(trained, columns={"sentence": "sentence", "label": "pet"})
    resume = ["--resume_from_checkpoint", trained.parent / "result" / "checkpoint-2"]
    assert "columns.pets.sentence was 'text' and is 'sentence' now" in error_of(monkeypatch, trained, *resume)

    recipe = yaml.safe_load(trained.read_text())
    Path(tiny_backbone).with_name("renamed").unlink(missing_ok=True)
    Path(tiny_backbone).with_name("renamed").symlink_to(tiny_backbone)
    recipe["backbone"] = str(Path(tiny_backbone).with_name("renamed"))
    trained.write_text(yaml.safe_dump(recipe, sort_keys=False))
    message = error_of(monkeypatch, trained, *resume)
    assert "backbone was 'tiny' and is 'renamed' now (also different: columns.pets.sentence)" in message


def test_record_names_no_folder(trained: Path, tiny_backbone: str):
    text = (trained.parent / "result" / "checkpoint-2" / "run.json").read_text()
    assert str(trained.parent) not in text
    assert str(Path(tiny_backbone).parent) not in text


def test_command_says_that_nothing_is_left_and_goes_on_for_more_epochs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run_command(monkeypatch, trained, "--resume_from_checkpoint")
    assert "checkpoint-4 is of the last step, 4: nothing is left to train." in caplog.text
    run_command(monkeypatch, trained, "--resume_from_checkpoint", "--num_train_epochs", "3", "--learning_rate", "0.01")
    assert "training.num_train_epochs was 2.0 and is 3.0 now; the learning rate follows the schedule" in caplog.text
    assert "training.learning_rate was 0.0001 and is 0.01 now; applied from the next step on." in caplog.text
    assert json.loads((trained.parent / "result" / "results.json").read_text())["steps"] == 6
