"""The short form of the campaign in benchmarks/faults: a few faults of each part, none of which ends as a failure."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"


def run_faults(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FAULTS), "--seed", "2", "--failures", str(folder / "failures.txt"), *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=500)


@pytest.mark.slow
def test_short_campaign_has_no_failure(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("processes are forked and killed as Linux does")
    flags = ("--kills", "5", "--damage", "1", "--texts", "100", "--thread_seconds", "0.5")
    done = run_faults(tmp_path, *flags)
    failures = tmp_path / "failures.txt"
    assert done.returncode == 0, failures.read_text() if failures.is_file() else done.stderr[-3000:]
    table = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in done.stdout.splitlines() if "|" in line}
    kinds = {("kill", kind) for kind in ("plain", "frozen", "unfreezing", "augmentation", "two processes")}
    kinds |= {("damage", kind) for kind in ("finished run", "checkpoint", "adapter", "cache of vectors")}
    kinds |= {("input", "random text"), ("threads", "encode"), ("threads", "predict"), ("threads", "add_task")}
    assert kinds <= table


def test_weekly_workflow_runs_the_campaign_with_options_that_it_has() -> None:
    workflow = yaml.safe_load((FAULTS.parents[1] / ".github" / "workflows" / "faults.yml").read_text(encoding="utf-8"))
    (command,) = [step["run"] for step in workflow["jobs"]["campaign"]["steps"] if "benchmarks/faults" in str(step)]
    wanted = set(re.findall(r"--(\w+)", command.split("benchmarks/faults")[1]))
    known = set(re.findall(r'add_argument\("--(\w+)"', (FAULTS / "__main__.py").read_text(encoding="utf-8")))
    assert wanted == known - {"minutes"}, "every part is run"
