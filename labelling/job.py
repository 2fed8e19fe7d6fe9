"""A labelling job from its first row to its last: read, answer, write parts, and put them together.

Each row of the input ends either in the output or among the rows set aside, exactly once, whatever was killed on the
way; the end counts it.
"""

import gc
import hashlib
import json
import os
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm import tqdm

from ..configuration_multitask import public_name
from ..manifest_multitask import sha256_of
from ..modeling_multitask import MultiTaskModel
from .answers import answer_table, column_types
from .inputs import DELIMITERS, Chunk, SetAside, format_of, read_chunks, read_schema
from .outputs import put_together, write_table
from .parts import JobFolder, PartRecord, write_whole
from .workers import InProcess, Processes, RayActors, Workers, import_ray

MOST_ATTEMPTS = 3  # for a chunk whose worker is lost
NO_LABEL = "(no label)"  # in the counts, for rows on which a task abstains


@dataclass(frozen=True)
class Job:
    """
    What to label, with what, and how.

    Attributes:
        source: folder or Hub id of the model.
        input: a csv, tsv, jsonl or parquet file.
        output: a file in one of these formats; a folder (a name without an ending) keeps the parts, as parquet.
        text: the column of the sentences, or two for pairs.
        tasks: to answer; `None` for all that read this kind of input.
        embeddings: whether to write embeddings, too.
        revision: of a Hub id.
        dtype: of the weights.
        device: that the model computes on; `None` for this machine's accelerator, where there is one.
        quoted: whether quotes enclose cells of a csv or tsv file.
        rows_per_part: rows of the input that are computed, written and counted together.
        processes: how many, each with a model of its own; 0 for one, or with `ray` for as many as it has processors.
        ray: whether the processes are actors of a Ray cluster.
        resume: whether to go on with what an earlier job left.
        overwrite: whether to replace an earlier output.
    """

    source: str
    input: Path
    output: Path
    text: tuple[str, ...]
    tasks: tuple[str, ...] | None = None
    embeddings: bool = False
    revision: str | None = None
    dtype: str = "float32"
    device: str | None = None
    quoted: bool = True
    rows_per_part: int = 10_000
    processes: int = 0
    ray: bool = False
    resume: bool = False
    overwrite: bool = False

    @property
    def is_sharded(self) -> bool:
        """Whether the parts themselves are the output."""
        return not self.output.suffix

    @property
    def results(self) -> list[Path]:
        """The files that are there at the end, beside parts that are the output."""
        return [self.set_aside_file] if self.is_sharded else [self.output, self.set_aside_file]

    @property
    def folder(self) -> JobFolder:
        """Where parts stand while the job runs."""
        if self.is_sharded:
            return JobFolder(self.output, ".parquet", self.output / ".job")
        path = self.output.with_name(f"{self.output.name}.job")
        return JobFolder(path, format_of(self.output), path)

    @property
    def set_aside_file(self) -> Path:
        """The rows that could not be read, if any; in a folder under a name that readers of tables pass over."""
        if self.is_sharded:
            return self.output / "_set_aside.jsonl"
        return self.output.with_name(f"{self.output.name}.set_aside.jsonl")


def find_device(name: str | None) -> torch.device:
    """The device of that name, by default this machine's accelerator; a ValueError where there is no such device."""
    try:
        return torch.empty(0, device=name or PartialState().device).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device: {name!r} is no device of this machine: {str(error).splitlines()[0]}") from error


def open_model(job: Job) -> MultiTaskModel:
    """The job's model on its device, in eval mode."""
    options: dict[str, Any] = {"revision": job.revision, "dtype": job.dtype, "trust_remote_code": True}
    return MultiTaskModel.from_pretrained(job.source, **options).to(find_device(job.device)).eval()


def model_fingerprint(model: MultiTaskModel) -> str:
    """sha256 of all weights and of what the configuration says about tasks, pooling and lengths."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def choose_tasks(model: MultiTaskModel, asked: tuple[str, ...] | None, pairs: bool) -> list[str]:
    """
    The tasks that answer the rows.

    Raises:
        ValueError: a task is unknown or reads the other kind of input, or none reads this kind.
    """
    kinds = {True: "pairs", False: "single sentences"}
    fitting = [name for name, task in model.config.tasks.items() if task.pair == pairs]
    for name in asked or ():
        if name not in fitting:
            known = ", ".join(fitting) or "none"
            raise ValueError(f"--tasks: {name!r} is no task that reads {kinds[pairs]}. Those are: {known}.")
    return list(asked) if asked is not None else fitting


# ---- a chunk ----


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str) and cell != "" and not cell.isspace()


def _unreadable(texts: tuple[Any, ...], columns: tuple[str, ...]) -> str:
    """Why a row cannot be read that has something else than text in one of its columns."""
    text, column = next(found for found in zip(texts, columns, strict=True) if not _is_text(found[0]))
    if text is None or isinstance(text, str):
        return f"column {column!r} holds no text"
    return f"column {column!r} holds {text!r}, a {type(text).__name__}, not text"


class ChunkLabeller:
    """Answers chunks and writes their parts; one for each worker. Several threads may call it."""

    def __init__(self, job: Job, threads: int | None = None, model: MultiTaskModel | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.job, self.model = job, model if model is not None else open_model(job)
        self.tasks = choose_tasks(self.model, job.tasks, pairs=len(job.text) == 2)
        gc.freeze()  # else collecting garbage looks through all that is imported: a fifth of a tiny model's time
        self._is_stopped = False
        self.model.backbone.register_forward_pre_hook(self._check)

    def _check(self, *_: Any) -> None:
        if self._is_stopped:
            raise RuntimeError("The job was stopped.")

    def stop(self) -> None:
        """End calls in other threads at their next pass of the backbone."""
        self._is_stopped = True

    def __call__(self, chunk: Chunk) -> PartRecord:
        job, folder = self.job, self.job.folder
        columns = [chunk.table.column(name).to_pylist() for name in job.text]
        texts = list(zip(*columns, strict=True))
        good = [all(map(_is_text, row)) for row in texts]
        table = chunk.table.filter(pa.array(good, pa.bool_()))
        pairs = len(job.text) == 2
        rows = [row if pairs else row[0] for row, is_good in zip(texts, good, strict=True) if is_good]
        answers = answer_table(self.model, rows, self.tasks, job.embeddings, pairs)
        for name, column in zip(answers.column_names, answers.columns, strict=True):
            table = table.append_column(answers.schema.field(name), column)

        part = folder.part(chunk.number)
        write_whole(part, lambda path: write_table(table, path, folder.suffix))
        set_aside = chunk.set_aside + [
            SetAside(
                chunk.rows[place],
                _unreadable(texts[place], job.text),
                json.dumps(chunk.table.slice(place, 1).to_pylist()[0], default=str),
            )
            for place, is_good in enumerate(good)
            if not is_good
        ]
        folder.set_aside(chunk.number).unlink(missing_ok=True)
        if set_aside:
            lines = "".join(json.dumps(vars(row), ensure_ascii=False) + "\n" for row in set_aside)
            write_whole(folder.set_aside(chunk.number), lambda path: path.write_text(lines, encoding="utf-8"))
        counts = {
            name: {
                NO_LABEL if found["values"] is None else found["values"]: found["counts"]
                for found in answers[f"{name}_label"].value_counts().to_pylist()
            }
            for name in self.tasks
            if f"{name}_label" in answers.column_names
        }
        return PartRecord(chunk.number, chunk.start, len(rows), len(set_aside), sha256_of(part), counts)


# ---- the job ----


def _count_rows(job: Job) -> int:
    """Rows of the input, for the bar: exact for parquet, its lines for text."""
    if format_of(job.input) == ".parquet":
        return pq.ParquetFile(job.input).metadata.num_rows
    with job.input.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(partial(file.read, 1 << 20), b""))
    return lines - (format_of(job.input) in DELIMITERS)


def _check_columns(job: Job, columns: list[str], added: dict[str, pa.DataType]) -> None:
    for name in job.text:
        if name not in columns:
            raise ValueError(f"{job.input} has no column {name!r}. Its columns are: {', '.join(columns)}.")
    taken = [name for name in added if name in columns]
    if taken:
        raise ValueError(
            f"{job.input} has the column {taken[0]!r} already, which the answers would be written to. Rename it."
        )


def _check_output(job: Job) -> None:
    """
    Refuse an output that would take the place of something else.

    Raises:
        ValueError: it is the input, or holds it; it is a folder of something else; or it is there already.
    """
    folder = job.folder
    for path in job.results:
        if path.exists() and path.samefile(job.input):
            raise ValueError(f"{path} is the input, which would be replaced. Give another output.")
    if folder.path.resolve() in job.input.resolve().parents:
        raise ValueError(f"The input {job.input} lies in {folder.path}, where the job writes. Give another output.")
    folder.check_own()
    found = [] if job.overwrite or folder.manifest() else [path for path in job.results if path.exists()]
    if found:
        finished = ", and no unfinished job is left to go on with" if job.resume else ""
        raise ValueError(f"{found[0]} exists{finished}. Give another output, or --overwrite to replace it.")


def _prepare(job: Job) -> None:
    """Clear what is to be replaced; refuse what would be lost. The folder is held.

    Raises:
        ValueError: there is an unfinished job, and neither --resume nor --overwrite says what to do.
    """
    folder = job.folder
    if job.overwrite:
        folder.clear()
        for path in job.results:
            path.unlink(missing_ok=True)
    elif not job.resume and folder.left():
        raise ValueError(
            f"{folder.path} holds what an earlier job left. --resume goes on with it, --overwrite starts anew."
        )


def run_job(job: Job) -> list[PartRecord]:
    """
    Label the input, and leave the output as a whole.

    Returns:
        A record of each part, in the order of the input.

    Raises:
        ValueError: input, output, columns or tasks do not fit; the output would take the place of something else; the
            input changed while it was read; or what an earlier job left belongs to another one.
        RuntimeError: a chunk's worker was lost three times.
    """
    _check_output(job)
    before = job.input.stat()
    schema = read_schema(job.input, job.text, job.quoted)
    if job.ray:
        import_ray()
    find_device(job.device)  # said before the model is read
    model = open_model(job)
    tasks = choose_tasks(model, job.tasks, pairs=len(job.text) == 2)
    if not tasks and not job.embeddings:
        raise ValueError("No task of the model reads this kind of input, and no --embeddings are asked for.")
    added = column_types(model, tasks, job.embeddings, pairs=len(job.text) == 2)
    _check_columns(job, schema.names, added)
    folder = job.folder
    with folder.locked():
        _prepare(job)
        folder.begin(
            {
                "input": {"name": job.input.name, "bytes": before.st_size, "sha256": sha256_of(job.input)},
                "model": {"name": public_name(job.source), "sha256": model_fingerprint(model)},
                "text": list(job.text),
                "tasks": tasks,
                "embeddings": job.embeddings,
                "dtype": job.dtype,
                "rows_per_part": job.rows_per_part,
                "quoted": job.quoted,
            }
        )
        workers = _open_workers(job, model)
        del model
        try:
            with tqdm(total=_count_rows(job), unit=" rows", desc="label") as bar:
                records = _label(job, folder, workers, schema, bar)
        finally:
            workers.close()
        after = job.input.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ValueError(f"{job.input} changed while it was read. Label it again, with --overwrite.")
        labelled = pa.schema([*schema, *added.items()], schema.metadata)
        put_together(folder, records, None if job.is_sharded else job.output, job.set_aside_file, labelled)
        if not job.is_sharded:
            folder.remove()
    return records


def _open_workers(job: Job, model: MultiTaskModel) -> Workers:
    """Who answers; `model` is taken where this process does."""
    if job.ray:  # whose workers may run elsewhere, in another folder
        source = os.path.abspath(job.source) if os.path.isdir(job.source) else job.source
        own = replace(job, device="cpu", source=source, input=job.input.absolute(), output=job.output.absolute())
        return RayActors(partial(ChunkLabeller, own, 1), job.processes)
    if job.processes > 1:
        threads = max(1, torch.get_num_threads() // job.processes)
        return Processes(partial(ChunkLabeller, job, threads), job.processes)
    return InProcess(partial(ChunkLabeller, job, None, model))


def _label(job: Job, folder: JobFolder, workers: Workers, schema: pa.Schema, bar: tqdm) -> list[PartRecord]:
    """Give the chunks that are not done to the workers; the records of all, in their order."""
    done, attempts = folder.finished(), Counter()
    pending: dict[Future, Chunk] = {}

    def collect(at_most: int) -> None:
        while len(pending) > at_most:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                if future not in pending:
                    continue
                chunk = pending.pop(future)
                try:
                    record = future.result()
                except workers.lost_errors as error:
                    lost = [chunk, *(pending.pop(other) for other in list(pending) if workers.loses_all)]
                    workers.replace_lost(future)
                    for again in sorted(lost, key=lambda chunk: chunk.number):
                        attempts[again.number] += 1
                        if attempts[again.number] == MOST_ATTEMPTS:
                            raise RuntimeError(
                                f"A worker was lost {MOST_ATTEMPTS} times at the rows from {again.start + 1} on "
                                f"({error}). Take fewer --processes if memory is short, then go on with --resume."
                            ) from error
                        pending[workers.submit(again)] = again
                    continue
                except Exception as error:
                    raise getattr(error, "cause", error) from error  # Ray's, around what the worker raised
                if not folder.part(record.number).is_file():
                    raise RuntimeError(
                        f"{folder.part(record.number)} was written on another machine and cannot be seen here. "
                        "Give an output on a disk that all machines share."
                    )
                folder.keep(record)
                done[record.number] = record
                bar.update(record.labelled + record.set_aside)

    total = numbers = 0
    for chunk in read_chunks(job.input, job.rows_per_part, schema, job.text, job.quoted):
        count = len(chunk.rows) + len(chunk.set_aside)
        total, numbers = total + count, numbers + 1
        if chunk.number in done:
            bar.update(count)
            continue
        pending[workers.submit(chunk)] = chunk
        collect(at_most=2 * workers.size - 1)
    collect(at_most=0)
    records = [done[number] for number in range(numbers)]
    counted = sum(record.labelled + record.set_aside for record in records)
    if counted != total:
        raise RuntimeError(f"{job.input} gave {total} rows, but {counted} are accounted for. Please report this.")
    return records


__all__ = ["ChunkLabeller", "Job", "choose_tasks", "model_fingerprint", "open_model", "run_job"]
