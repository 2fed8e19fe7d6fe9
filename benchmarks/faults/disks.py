"""Runs on a disk that fills up: each ends with one line, and goes on to the very same result once there is room.

The disk is a tmpfs of a random size, which needs the right to mount one (root). Without it there is no such case.
"""

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from jobs import KINDS_OF_RUN, make_job, train
from kills import difference, go_on
from outcomes import Case

KINDS = [kind for kind, changes in KINDS_OF_RUN.items() if "processes" not in changes]


def mount(folder: Path, kilobytes: int, *options: str) -> bool:
    """Mount a tmpfs, or give one another size; whether that is allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def one_line(said: str) -> bool:
    """Whether a run ended with an error and without a stack trace."""
    return "Traceback (most recent call last)" not in said and "error: " in said


def fill_disks(folder: Path, backbone: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """So many full disks over the kinds of run on one process; a case for each, none where mounting is not allowed."""
    whole: dict[str, tuple[Path, int]] = {}
    disk = folder / "disk"
    disk.mkdir(parents=True)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        kilobytes = 200_000 if kind not in whole else chance.randint(200, whole[kind][1])
        if not mount(disk, kilobytes):
            return
        try:
            if kind not in whole:
                ended = train(make_job(disk / "job", backbone, kind))
                if ended.status:
                    raise RuntimeError(f"A run of the kind {kind} fails on a disk with room:\n{ended.said[-3000:]}")
                whole[kind] = folder / kind, shutil.disk_usage(disk).used // 1000
                shutil.move(disk / "job" / "result", folder / kind)
                shutil.rmtree(disk / "job")
                mount(disk, kilobytes := chance.randint(200, whole[kind][1]), "remount")
            expected, _ = whole[kind]
            job = make_job(disk / "job", backbone, kind)
            ended = train(job)
            has_failed = ended.status != 0
            mount(disk, 200_000, "remount")
            if has_failed and not one_line(ended.said):
                problem = f"no clear error: {ended.said[-700:]}"
            else:
                again = go_on(job, 1) if has_failed else ended
                problem = difference(job.parent / "result", expected) if not again.status else again.said[-700:]
            outcome = "failure" if problem else "clear error" if has_failed else "right"
            yield Case("full disk", kind, ended.stage, outcome, f"{kilobytes} kB: {problem}")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
