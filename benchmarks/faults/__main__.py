"""Faults, made on purpose: what a run, a folder, a recipe or a text that goes wrong ends as.

    python benchmarks/faults --seed 1 --kills 500 --disks 50 --damage 3 --exports --recipes 2000 --texts 20000 \\
        --thread_seconds 600
    python benchmarks/faults --seed 1 --label_kills 20 --ray     # labelling jobs; --ray needs the extra of that name
    python benchmarks/faults --seed 1 --kills 10 --failures failures.txt      # a short try

Tiny random models, made here; no network. Every case ends as right, as a clear error, or as a failure, and the exit
status is 1 where any is a failure. The same seed makes the same faults.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; forked processes must not share threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from damage import damage_all
from disks import fill_disks
from jobs import make_backbone
from kills import kill_runs
from labels import kill_actor, kill_labelling
from outcomes import format_cases, format_moments
from texts import try_recipes, try_texts
from threads import run_threads


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=0, help="Runs that are killed at a random moment.")
    parser.add_argument("--label_kills", type=int, default=0, help="Labelling jobs that are killed.")
    parser.add_argument("--ray", action="store_true", help="Labelling with Ray: an actor is killed, then the job.")
    parser.add_argument("--disks", type=int, default=0, help="Runs on a disk that fills up (as root).")
    parser.add_argument("--damage", type=int, default=0, help="Times that every file is damaged in every way.")
    parser.add_argument("--exports", action="store_true", help="Damage the files of an export, too.")
    parser.add_argument("--recipes", type=int, default=0, help="Mutated recipes.")
    parser.add_argument("--texts", type=int, default=0, help="Random texts.")
    parser.add_argument("--thread_seconds", type=float, default=0, help="How long eight threads share a model.")
    parser.add_argument("--failures", type=Path, help="Write every failure here, one a line.")
    parser.add_argument("--minutes", type=float, help="Stop after so many minutes.")
    options = parser.parse_args()
    started, cases, chance = time.monotonic(), [], random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary, ExitStack() as ended:
        folder = Path(temporary)
        backbone = make_backbone(folder / "backbone")
        # What forks comes first, before torch has threads.
        parts = (
            kill_runs(folder / "kills", backbone, options.kills, chance),
            kill_labelling(folder / "labels", backbone, options.label_kills, chance),
            *([kill_actor(folder / "ray", backbone, chance)] if options.ray else []),
            fill_disks(folder / "disks", backbone, options.disks, chance),
            damage_all(folder / "damage", backbone, chance, options.damage, options.exports),
            try_recipes(folder / "recipes", backbone, options.recipes, options.seed),
            try_texts(backbone, options.texts, chance),
            run_threads(backbone, options.thread_seconds, options.seed),
        )
        for part in parts:
            ended.enter_context(closing(part))  # one that is left in the middle unmounts its disk
        for case in chain(*parts):
            cases.append(case)
            if case.outcome == "failure" and options.failures:
                with options.failures.open("a", encoding="utf-8") as file:
                    file.write(f"{case}\n")
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                break
    failures = sum(case.outcome == "failure" for case in cases)
    print(f"{format_cases(cases)}\n\n{format_moments(cases)}\n")  # noqa: T201 - what this command is for
    print(f"Seed {options.seed}, {len(cases)} cases, {failures} failures, {time.monotonic() - started:.0f} s.")  # noqa: T201
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
