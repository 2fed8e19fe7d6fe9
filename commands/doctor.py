"""Does a folder (or Hub repository) open in every way (its doors), with the same numbers? Ask before you push.

    multitask-sentence doctor runs/quickstart
    python -m multitask_sentence doctor user/name
    multitask-sentence doctor runs/quickstart --int8     # does int8 keep the scores on this machine, too?
    multitask-sentence doctor runs/quickstart --verify   # is every file still what was saved?
    multitask-sentence doctor runs/quickstart --seal     # it was changed on purpose: write its manifest anew

Each door is opened in a process of its own, in another working directory, as somebody who downloaded the folder would.
The exit status is 1 where a door is shut, leaves a task out, or gives other numbers than AutoModel. A door whose
package is not installed here is not tried. With more than ten heads, only ten are opened as sequence
classifiers.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.graphs import GRAPHS
from ..training.run.mistakes import told_in_one_line
from ..training.run.pinned import add_pin_options, download_pinned
from . import _doors
from ._doors import DOORS

# Between different batches of the same sentences, in float32, which every door opens the weights in. Of values above
# 1, such as those of a regression in its own units, that share.
TOLERANCE = 1e-5
# Doors that a folder has only where it was exported, by the file that says so.
EXPORTS = {f"MultiTaskRuntime ({engine})": f"{engine}/export.json" for engine in ("onnx", "openvino")}
# What a door needs that this package does not.
PACKAGES = {f"MultiTaskRuntime ({engine})": GRAPHS[engine].package for engine in GRAPHS}
PACKAGES["SentenceTransformer"] = "sentence_transformers"
COMPLETE = ("model.encode, model.predict", 'pipeline("multitask")', *EXPORTS)  # that answer all that AutoModel does


def doors_of(source: str) -> list[str]:
    """The doors that a folder or repository should have."""
    if os.path.isdir(source):
        return [door for door in DOORS if door not in EXPORTS or os.path.isfile(os.path.join(source, EXPORTS[door]))]
    from transformers.utils import cached_file

    options = {f"_raise_exceptions_for_{name}": False for name in ("missing_entries", "connection_errors")}
    return [door for door in DOORS if door not in EXPORTS or cached_file(source, EXPORTS[door], **options)]


def open_door(door: str, source: str) -> tuple[dict[str, np.ndarray] | None, str]:
    """What a door gave in a clean process, or `None` and the last line of what it said instead."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.npz"
        command = [sys.executable, "-B", os.path.abspath(_doors.__file__), source, door, str(file)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return None, lines[-1]
        with np.load(file) as found:
            return {name.removeprefix("of "): values for name, values in found.items()}, ""


def largest_difference(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float | None:
    """Over everything that both hold, relative to values above 1; `None` where there are no numbers to compare."""
    differences = [
        float(np.max(np.abs(found[name] - reference[name]) / np.maximum(1.0, np.abs(reference[name]))))
        for name in found.keys() & reference.keys()
    ]
    return float(np.max(differences)) if differences else None  # NaN is the largest


def examine(source: str) -> list[dict[str, Any]]:
    """One row per door: `door`, `works` (`None`: not tried), `difference` (to AutoModel), `seconds`, `message`."""
    reference, rows = None, []
    for door in doors_of(source):
        if door in PACKAGES and importlib.util.find_spec(PACKAGES[door]) is None:
            message = f"not tried: {PACKAGES[door].replace('_', '-')} is not installed here"
            rows.append({"door": door, "works": None, "difference": None, "seconds": 0.0, "message": message})
            continue
        started = time.time()
        found, message = open_door(door, source)
        if reference is None:
            reference = found
        difference = largest_difference(found, reference) if found and reference else None
        missing = sorted(reference.keys() - found.keys()) if found and reference and door in COMPLETE else []
        if missing:
            message = f"does not answer {', '.join(missing)}"
        elif difference is not None and not difference <= TOLERANCE:  # NaN is no good either
            message = f"differs by more than {TOLERANCE:g}"
        works = found is not None and not message
        seconds = time.time() - started
        rows.append({"door": door, "works": works, "difference": difference, "seconds": seconds, "message": message})
    return rows


def verify(source: str) -> tuple[str, bool]:
    """
    Compare all files of a folder or repository with its manifest.

    Returns a report, and whether every file is what was saved.

    Raises:
        ValueError: there is no manifest.
        OSError: the manifest is damaged, or a repository cannot be read.
    """
    from ..manifest_multitask import MANIFEST_FILE, MAY_CHANGE, find_changes, how_to_seal, read_manifest
    from ..staging_multitask import check_moved, files_of
    from ..training.report.publish import stays_behind

    folder = source
    if not os.path.isdir(source):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(source)
    check_moved(folder)
    files = read_manifest(folder)
    if files is None:
        raise ValueError(
            f"{source} has no {MANIFEST_FILE}, so nothing is known of what was saved. An earlier version saved it. If "
            f"it is right, write one: {how_to_seal(folder)}"
        )
    changes = find_changes(folder)
    known = {*files, *MAY_CHANGE, MANIFEST_FILE, ".gitattributes"}
    added = [name for name in files_of(folder) if name not in known and not stays_behind(name)]
    lines = [f"{name} {change}" for name, change in changes.items()]
    lines += [f"{name} was added (no error)" for name in added]
    count = f"{len(files) - len(changes)} of {len(files)} files are what was saved."
    return "\n".join([*lines, count]), not changes


def seal(folder: str) -> str:
    """Write a folder's manifest anew, of all that a push takes; a ValueError where it is no folder of a model."""
    from ..manifest_multitask import MANIFEST_FILE, describe_files, format_manifest
    from ..staging_multitask import files_of, write_whole
    from ..training.report.publish import stays_behind

    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder} holds no config.json, so it is no folder of a model.")
    files = describe_files(folder, [name for name in files_of(folder) if not stays_behind(name)])
    write_whole(os.path.join(folder, MANIFEST_FILE), format_manifest(files))
    return f"{os.path.join(folder, MANIFEST_FILE)} lists {len(files)} files."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="multitask-sentence doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="A folder or a Hub repository.")
    parser.add_argument("--json", action="store_true", help="Print JSON in place of the table.")
    parser.add_argument("--int8", action="store_true", help="Run the gate of exported int8 graphs on this machine.")
    parser.add_argument("--verify", action="store_true", help="Compare the sha256 of every file with the manifest.")
    parser.add_argument(
        "--seal", action="store_true", help="Write the manifest of a folder that was changed on purpose."
    )
    add_pin_options(parser)
    parser.add_argument("--recipe", type=Path, help="Whose validation rows int8 is measured on (FOLDER/recipe.yaml).")
    parser.add_argument("--data_root", type=Path, help="What relative data paths start from (the recipe's folder).")
    options = parser.parse_args(argv)
    source = os.path.abspath(options.source) if os.path.isdir(options.source) else options.source
    with told_in_one_line():
        if options.seal and not os.path.isdir(source):
            raise ValueError(
                f"--seal writes into a folder of this machine, and {source} is none. Download it, seal that folder, "
                f"and push it: hf download {source} --local-dir FOLDER"
            )
        source = download_pinned(source, options.revision, options.require_pinned)
        if options.int8:
            from ..export.gate import examine_int8

            print(examine_int8(source, options.recipe, options.data_root))  # noqa: T201
            return
        if options.verify or options.seal:
            report, is_right = (seal(source), True) if options.seal else verify(source)
            print(report)  # noqa: T201
            sys.exit(0 if is_right else 1)
        rows = examine(source)
    if options.json:
        print(json.dumps(rows, indent=2))  # noqa: T201 - what this command is for
    else:
        from tabulate import tabulate

        words = {True: "yes", False: "NO", None: "-"}
        table = [
            [
                row["door"],
                words[row["works"]],
                "-" if row["difference"] is None else f"{row['difference']:.1e}",
                f"{row['seconds']:.0f} s",
                row["message"][:100],
            ]
            for row in rows
        ]
        print(tabulate(table, ["door", "works", "difference", "took", ""]))  # noqa: T201
    sys.exit(1 if any(row["works"] is False for row in rows) else 0)


if __name__ == "__main__":
    main()
