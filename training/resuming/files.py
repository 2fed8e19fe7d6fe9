"""The files of a checkpoint: what was written, whether all of it is there, and whether it still is what was written.

    write_record      run.json, the last file of a checkpoint: what the run is, and a hash of every other file
    read_record       what it says; `None` for a checkpoint from before there was one
    last_checkpoint   the last checkpoint of an output folder that was written to its end
    put_later_aside   moves what another course of the run has left after a checkpoint out of the way
    check_files       refuses a checkpoint that lacks a file or holds a damaged one, and names a whole one

Nothing is loaded here, and nothing unpickled: a file of torch is a zip archive with checksums of its own.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from ...data.cache.shards import file_hash
from ..run.output_folder import as_json, write_json

logger = logging.get_logger(__name__)

RUN_FILE = "run.json"
LEFT = ".left"  # checkpoints of a course that a run has left; no push takes hidden folders
RECORDED = ("run", "optimizer", "save_only_model", "files")


def write_record(checkpoint: Path, run: dict[str, Any], parameters: list[list[str]], save_only_model: bool) -> None:
    """
    Write what belongs to a checkpoint whose other files are all written.

    Args:
        checkpoint: the folder.
        run: what `describe_run` gives.
        parameters: names of the parameters in each group of the optimizer, in its order.
        save_only_model: whether optimizer, schedule and random numbers were left out.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): file_hash(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != RUN_FILE
    }
    record = as_json(dict(zip(RECORDED, (run, parameters, save_only_model, files), strict=True)))
    write_json(checkpoint / RUN_FILE, {**record, "hash": _content_hash(record)})


def _content_hash(content: dict[str, Any]) -> str:
    """Of all that a record says, so that a bit that flipped in it is found too."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def read_record(checkpoint: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; `None` where there is nothing."""
    file = checkpoint / RUN_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _was_recorded(checkpoint: Path) -> bool:
    """Whether it was written since checkpoints have a record; configurations name the tasks' order since then."""
    try:
        return "task_order" in json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_finished(checkpoint: Path) -> bool:
    """Whether its last file was written."""
    has_state = (checkpoint / TRAINER_STATE_NAME).is_file()
    return (checkpoint / RUN_FILE).is_file() or (has_state and not _was_recorded(checkpoint))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of an output folder by step, ascending."""
    steps = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*") if path.is_dir()}
    return {int(step): steps[step] for step in sorted(filter(str.isdecimal, steps), key=int)}


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones are named in a warning."""
    checkpoints = list(_checkpoints(folder).values())
    finished = [checkpoint for checkpoint in checkpoints if _is_finished(checkpoint)]
    if not finished:
        return None
    for later in checkpoints[checkpoints.index(finished[-1]) + 1 :]:
        logger.warning(f"{later} was not written to its end: the run was stopped before. {finished[-1]} is the last.")
    return finished[-1]


def put_later_aside(checkpoint: Path) -> None:
    """
    Move the later checkpoints beside this one into the hidden folder `.left`, over what lies there of the same step.

    A run that goes on from here makes these steps anew, and must not be taken up at the old ones.
    """
    step, aside = checkpoint.name.removeprefix("checkpoint-"), checkpoint.parent / LEFT
    for later, folder in _checkpoints(checkpoint.parent).items():
        if step.isdecimal() and later > int(step):
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / folder.name, ignore_errors=True)
            folder.rename(aside / folder.name)
            logger.warning(
                f"The run goes on from {checkpoint} and makes its later steps anew. {folder.name} lies in {aside} now."
            )


def _damage(file: Path) -> str | None:
    """Why a file cannot be what was written, as far as its format tells."""
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(file) as archive:
                return f"{broken} in it is broken" if (broken := archive.testzip()) else None
    except (OSError, ValueError, SafetensorError) as error:
        return str(error) or type(error).__name__
    except Exception as error:  # a damaged zip archive ends in any error
        return f"{type(error).__name__}: {error}"
    return None


def _problem(checkpoint: Path, num_processes: int) -> str | None:
    """What is wrong with a checkpoint, as the end of a sentence that begins with its name."""
    if not (checkpoint / RUN_FILE).is_file():
        if _was_recorded(checkpoint):
            return f"lacks {RUN_FILE}, its last file: saving it was interrupted, or the file was removed"
        return _problem_without_record(checkpoint, num_processes)
    if damage := _damage(checkpoint / RUN_FILE):
        return f"is damaged: {RUN_FILE} is not what was written ({damage})"
    record = read_record(checkpoint)
    if not isinstance(record, dict) or not record.keys() >= set(RECORDED):
        return f"is damaged: {RUN_FILE} is not what was written (it lacks {', '.join(RECORDED)})"
    if record.pop("hash", None) not in (None, _content_hash(record)):
        return f"is damaged: {RUN_FILE} is not what was written (its content has changed)"
    for name, expected in record["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"lacks {name}, without which a run cannot go on"
        if file_hash(file) != expected:
            return f"is damaged: {name} is not what was written ({_damage(file) or 'its content has changed'})"
    if record["save_only_model"]:
        return f"lacks {OPTIMIZER_NAME}, {SCHEDULER_NAME} and the random numbers: it was saved with save_only_model"
    return None


def _problem_without_record(checkpoint: Path, num_processes: int) -> str | None:
    if any(checkpoint.glob("optimizer_*")) or any(checkpoint.glob("global_step*")):
        return None  # FSDP and DeepSpeed have files of their own, and look after them
    is_sharded = (checkpoint / SAFE_WEIGHTS_INDEX_NAME).is_file()
    random = ["rng_state.pth"] if num_processes == 1 else [f"rng_state_{rank}.pth" for rank in range(num_processes)]
    written = sorted(path.name for path in checkpoint.glob("rng_state*.pth"))
    if written and len(written) != len(random):
        return f"was written by {len(written)} process(es), but there are {num_processes} now"
    weights = SAFE_WEIGHTS_INDEX_NAME if is_sharded else SAFE_WEIGHTS_NAME
    for name in (CONFIG_NAME, weights, OPTIMIZER_NAME, SCHEDULER_NAME, *random, TRAINER_STATE_NAME):
        if not (checkpoint / name).is_file():
            return f"lacks {name}, without which a run cannot go on"
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file() and (damage := _damage(file)):
            return f"is damaged: {file.relative_to(checkpoint).as_posix()} is not what was written ({damage})"
    return None


def check_files(checkpoint: Path, num_processes: int) -> None:
    """
    Make sure that a checkpoint can be gone on from, before anything of it is loaded.

    Args:
        checkpoint: the folder.
        num_processes: how many processes are to go on from it.

    Raises:
        ValueError: a file is missing, or is not what was written; names the file, and an earlier checkpoint that is
            whole.
    """
    problem = _problem(checkpoint, num_processes)
    if problem is None:
        return
    step = checkpoint.name.removeprefix("checkpoint-")
    earlier = [
        path
        for number, path in _checkpoints(checkpoint.parent).items()
        if step.isdecimal() and number < int(step) and _is_finished(path) and not _problem(path, num_processes)
    ]
    if earlier:
        remedy = f"An earlier one is whole: --resume_from_checkpoint {earlier[-1]}"
    else:
        remedy = "No earlier one is whole: start anew, with --overwrite where the output folder is the same"
    raise ValueError(f"resume_from_checkpoint: {checkpoint} {problem}. {remedy}.")
