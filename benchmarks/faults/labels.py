"""Labelling jobs that are killed at random moments: `--resume` leaves the very file of a job that nothing interrupted.

The whole job, or with Ray one of its actors, is ended with SIGKILL. The output and the rows set aside are compared to
the last byte, so that each row of the input is there exactly once.
"""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from jobs import WORDS, wait_for
from outcomes import Case

from multitask_sentence import MultiTaskModel
from multitask_sentence.commands import label

ROWS, ROWS_PER_PART = 6_000, 100
EVERY = 97  # row that has no text, or a field too many
TASKS = {
    "mood": {"problem_type": "single_label_classification", "labels": ["bad", "good"]},
    "tags": {"problem_type": "multi_label_classification", "labels": ["animal", "money", "film"]},
}
KINDS = ("csv", "jsonl", "parquet")  # of the output


def _make_files(folder: Path, backbone: Path, chance: random.Random) -> None:
    """The model, and a csv file of distinct rows of which some cannot be read."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    MultiTaskModel.from_backbone(str(backbone), tasks=TASKS).save_pretrained(folder / "model")
    lines = ["id,text"]
    for number in range(ROWS):
        text = " ".join(chance.choices(WORDS[5:30], k=chance.randint(1, 12)))
        lines.append(f"{number},{text}{',more' if number % EVERY == 1 else ''}" if number % EVERY else f"{number},")
    (folder / "in.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _arguments(folder: Path, output: Path, *flags: str) -> list[str]:
    files = [str(path) for path in (folder / "model", folder / "in.csv", output)]
    return [*files, "--rows_per_part", str(ROWS_PER_PART), *flags]


def _run(arguments: list[str], kill_after: float | None = None) -> int:
    """The exit status of a job in a forked process, which may be killed after some seconds."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            label.main(arguments)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return wait_for([child], 300)


def _files(output: Path) -> list[bytes | None]:
    """The output, and the rows set aside."""
    paths = (output, output.with_name(f"{output.name}.set_aside.jsonl"))
    return [path.read_bytes() if path.is_file() else None for path in paths]


def _stage(output: Path) -> str:
    parts = len(list(Path(f"{output}.job").glob("part-*.json")))
    if output.is_file():
        return "finished"
    return "start" if not parts else "labelling" if parts < -(-ROWS // ROWS_PER_PART) else "putting together"


def kill_labelling(folder: Path, backbone: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """So many jobs of one process each, killed once and resumed."""
    if not count:
        return
    _make_files(folder, backbone, chance)
    whole = {}
    for kind in KINDS:
        started, output = time.monotonic(), folder / f"whole-{kind}" / f"out.{kind}"
        output.parent.mkdir()
        if status := _run(_arguments(folder, output)):
            raise RuntimeError(f"A labelling job that nothing interrupts ends with status {status}.")
        whole[kind] = _files(output), time.monotonic() - started
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        expected, seconds = whole[kind]
        output = folder / str(number) / f"out.{kind}"
        output.parent.mkdir()
        status = _run(_arguments(folder, output), kill_after=chance.uniform(0, seconds))
        stage = _stage(output)
        if status > 0:
            problem = f"failed by itself or hung: status {status}"
            yield Case("kill", f"label, {kind}", stage, "failure", problem)
            continue
        if status and (stage != "finished" or Path(f"{output}.job").exists()):
            status = _run(_arguments(folder, output, "--resume"))
        elif status:  # killed after the job's last step
            status = 0
        problem = f"status {status}" if status else _difference(output, expected)
        yield Case("kill", f"label, {kind}", stage, "failure" if problem else "right", problem)


def _difference(output: Path, expected: list[bytes | None]) -> str:
    files = zip(("output", "set aside"), _files(output), expected, strict=True)
    names = [name for name, found, right in files if found != right]
    if Path(f"{output}.job").exists():
        names.append("a folder left behind")
    return ", ".join(names)


def kill_actor(folder: Path, backbone: Path, chance: random.Random) -> Iterator[Case]:
    """A job of two actors of a local Ray, of which one is killed, and a job that is killed itself, and resumed."""
    if importlib.util.find_spec("ray") is None:
        raise SystemExit("error: --ray needs Ray. Install it: pip install -e '.[ray]'.")
    _make_files(folder, backbone, chance)
    command = [sys.executable, "-m", "multitask_sentence", "label"]
    subprocess.run([*command, *_arguments(folder, folder / "whole.csv")], check=True, capture_output=True)
    for victim in ("actor", "job"):
        output = folder / victim / "out.csv"
        output.parent.mkdir()
        arguments = [*command, *_arguments(folder, output, "--ray", "--processes", "2")]
        said = output.with_name("said.txt")
        with said.open("w") as file:  # no pipe: the processes of Ray would hold it open
            process = subprocess.Popen(arguments, stdout=file, stderr=file)
        while len(list(Path(f"{output}.job").glob("part-*.json"))) < 5 and process.poll() is None:
            time.sleep(0.01)
        own = psutil.Process(process.pid).children(recursive=True)
        if victim == "actor":
            next(child for child in own if "_RayWorker" in child.name() + " ".join(child.cmdline())).kill()
        else:
            process.kill()
        status, stage = process.wait(timeout=300), _stage(output)
        if victim == "job":
            for child in psutil.wait_procs(own, timeout=10)[1]:
                child.kill()
            with said.open("w") as file:
                status = subprocess.run([*arguments, "--resume"], stdout=file, stderr=file, timeout=300).returncode
        problem = said.read_text()[-700:] if status else _difference(output, _files(folder / "whole.csv"))
        yield Case("kill", f"label --ray, {victim}", stage, "failure" if problem else "right", problem)
