"""Runs killed at random moments: each goes on to the very same result, or starts anew where nothing is left of it.

The result is compared file by file with that of a run that nothing interrupted: weights, optimizer, random numbers,
best models, predictions, log history and scores to the last bit, on one process and on two. What tells the time (the
seconds of a run and of an evaluation), what transformers counts since a run went on (`train_loss`) and what is only
drawn from the rest (card, pictures) is left out. What was pushed is what its own manifest says, and the run's model.
"""

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jobs import KINDS_OF_RUN, STAGES, Ended, make_job, random_moment, train
from outcomes import Case

from multitask_sentence.manifest_multitask import find_changes
from multitask_sentence.staging_multitask import UNFINISHED, check_moved
from multitask_sentence.training.resuming.files import check_files

TIMED = ("runtime", "per_second", "seconds")  # of keys, the last word
# What says how a run was started, and what transformers counts from there: the mean loss of the steps since then.
OF_THE_SECOND_HALF = ("resume_from_checkpoint", "train_loss")
REPOSITORY = "team/model"  # of the Hub that runs push to
DERIVED = ("README.md", "training_args.bin", "manifest.json", "run.json")


def without_time(content: Any) -> Any:
    """The same without what tells how long something took, and whether it is the second half of a run."""
    if isinstance(content, list):  # transformers' summary of the part that a process has trained is no part of a run
        content = [value for value in content if not (isinstance(value, dict) and "train_runtime" in value)]
    if isinstance(content, dict):
        return {
            key: without_time(value)
            for key, value in content.items()
            if not key.endswith((*TIMED, *OF_THE_SECOND_HALF))
        }
    return [without_time(value) for value in content] if isinstance(content, list) else content


def is_same_state(first: Any, second: Any) -> bool:
    """Whether what torch has saved is equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_same_state(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(is_same_state, first, second))
    return bool(repr(first) == repr(second))


def other_place(found: Any, expected: Any, place: str = "") -> str | None:
    """Where two contents of JSON differ first, and how."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        places = (other_place(found[key], expected[key], f"{place}.{key}") for key in found)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        places = (
            other_place(*pair, f"{place}[{number}]") for number, pair in enumerate(zip(found, expected, strict=True))
        )
    else:
        same = json.dumps(found) == json.dumps(expected)  # NaN is equal to itself here
        return None if same else f"{place} is {found!r:.200}, not {expected!r:.200}"
    return next((found for found in places if found is not None), None)


def difference(found: Path, expected: Path) -> str | None:
    """How the folder of a run differs from another, as one line; `None` where it does not."""
    names = [
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        for folder in (found, expected)
    ]
    if names[0] != names[1]:
        return f"other files: {sorted(set(names[0]) ^ set(names[1]))[:4]}"
    for name in names[0]:
        first, second = found / name, expected / name
        if first.name in DERIVED or first.suffix == ".png":
            continue
        if first.suffix in (".pt", ".pth"):
            is_same = is_same_state(*(torch.load(path, weights_only=False) for path in (first, second)))
        elif first.name in ("results.json", "trainer_state.json"):
            contents = (without_time(json.loads(path.read_text())) for path in (first, second))
            if (place := other_place(*contents)) is not None:
                return f"{name}: {place}"
            continue
        else:
            is_same = first.read_bytes() == second.read_bytes()
        if not is_same:
            return f"{name} differs"
    return None


def half_written(folder: Path, processes: int) -> str | None:
    """What in a killed run's folder passes for finished and is not, as one line."""
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            check_files(checkpoint, processes)
        except ValueError as error:
            if (checkpoint / "run.json").is_file():
                return str(error)
    for model in [*folder.glob("best/*"), folder]:
        if not (model / "config.json").is_file() or UNFINISHED in model.parts:
            continue
        try:
            check_moved(model)
        except OSError:
            continue  # opening it says so
        if changes := find_changes(model):
            return f"{model.name}: {next(iter(changes.items()))}"
    return None


def go_on(job: Path, processes: int, hub: tuple[str, str] | None = None) -> Ended:
    """Resume a killed run; start it anew where it left nothing to go on from."""
    ended = train(job, "--resume_from_checkpoint", processes=processes, hub=hub)
    if ended.status and "holds no checkpoint to resume from" in ended.said:
        ended = train(job, "--overwrite", processes=processes, hub=hub)
    return ended


def half_pushed(folder: Path, pushed: dict[str, bytes] | None) -> str | None:
    """What a repository holds that is not what the manifest of its commit says, or not the model of a folder."""
    if pushed is None:
        return "nothing was pushed"
    listed = json.loads(pushed["manifest.json"])["files"]
    found = {name: hashlib.sha256(content).hexdigest() for name, content in pushed.items()}
    expected = {name: entry["sha256"] for name, entry in listed.items()}
    if wrong := sorted(name for name in expected if found.get(name) != expected[name]):
        return f"the commit's manifest tells of another {wrong[0]}"
    if found["model.safetensors"] != hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest():
        return "another model was pushed"
    return None


def kill_runs(folder: Path, backbone: Path, count: int, chance: random.Random) -> Iterator[Case]:
    """So many kills over the kinds of run; a case for each. Every run ends with a push to a Hub in this process."""
    if not count:
        return
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from helpers.hub_server import TOKEN, HubServer

    with HubServer() as server:
        yield from _kill_runs(folder, backbone, count, chance, server, (server.url, TOKEN))


def _kill_runs(
    folder: Path, backbone: Path, count: int, chance: random.Random, server: Any, hub: tuple[str, str]
) -> Iterator[Case]:
    whole: dict[str, tuple[Path, Ended]] = {}

    def pushed() -> dict[str, bytes] | None:
        """The files of the last commit of a run; `None` where the Hub has none of it."""
        commits = server.repositories[REPOSITORY].branches["main"] if REPOSITORY in server.repositories else []
        return {name: file.content for name, file in commits[-1].files.items()} if commits[1:] else None

    for number in range(count):
        kind = list(KINDS_OF_RUN)[number % len(KINDS_OF_RUN)]
        processes = KINDS_OF_RUN[kind].get("processes", 1)
        if kind not in whole:
            job = make_job(folder / "job", backbone, kind, REPOSITORY)  # the same place for all: a run's files name it
            ended = train(job, processes=processes, hub=hub)
            if ended.status:
                raise RuntimeError(f"A run of the kind {kind} fails without being killed:\n{ended.said[-3000:]}")
            whole[kind] = (job.parent / "result").rename(folder / kind.replace(" ", "_")), ended
            shutil.rmtree(job.parent)
        expected, ended = whole[kind]
        moment = random_moment(ended.stages, chance)
        server.repositories.clear()
        killed = make_job(folder / "job", backbone, kind, REPOSITORY)
        result = killed.parent / "result"
        ended = train(killed, processes=processes, moment=moment, hub=hub)
        said = f"{moment}, {STAGES.index(ended.stage)}"
        if ended.status >= 0 and ended.status != 0:
            yield Case(
                "kill",
                kind,
                ended.stage,
                "failure",
                f"{said}: ended with {ended.status}: {ended.said[-500:]}",
            )
        elif problem := half_written(result, processes) or (pushed() and half_pushed(result, pushed())):
            yield Case("kill", kind, ended.stage, "failure", f"{said}: half of one passes for whole: {problem}")
        else:
            was_killed = ended.status < 0
            again = go_on(killed, processes, hub) if was_killed else ended
            problem = again.said[-700:] if again.status else difference(result, expected)
            problem = problem or half_pushed(result, pushed())
            outcome = "failure" if problem else "right"
            yield Case("kill", kind, ended.stage if was_killed else "finished", outcome, f"{said}: {problem}")
        shutil.rmtree(killed.parent)
