"""Label a file: every row keeps its columns and gets each task's answer beside them.

    multitask-sentence label runs/quickstart tickets.csv labelled.parquet --text message
    multitask-sentence label user/name pages.parquet labelled/ --processes 8 --embeddings --resume
    multitask-sentence label runs/quickstart pairs.jsonl scored.jsonl --text question answer
    RAY_ADDRESS=10.0.0.1:6379 multitask-sentence label user/name pages.parquet /shared/labelled/ --ray

Reads and writes csv, tsv, jsonl and parquet. An output without an ending is a folder of parquet parts. What is done is
kept part by part: after a kill, the same command with --resume goes on, and each row is labelled exactly once. Rows
that cannot be read go to OUTPUT.set_aside.jsonl, or _set_aside.jsonl in the folder, with the reason.
"""

import argparse
import errno
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..data.text.spelling import visible
from ..training.run.mistakes import MISTAKES, explain
from ..training.run.pinned import add_pin_options, check_pinned

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _summary(records: Sequence) -> str:
    """How many rows were labelled and set aside, and how often each task gave which label."""
    counts: dict[str, Counter] = {}
    for record in records:
        for task, found in record.counts.items():
            counts.setdefault(task, Counter()).update(found)
    labelled, set_aside = sum(r.labelled for r in records), sum(r.set_aside for r in records)
    lines = [f"{labelled + set_aside:,} rows in = {labelled:,} labelled + {set_aside:,} set aside"]
    table = [
        [task, label, f"{count:,}", f"{count / labelled:.1%}"]
        for task, found in counts.items()
        for label, count in found.most_common(10)
    ]
    if table:
        lines += ["", tabulate(table, ["task", "label", "rows", "share"], colalign=("left", "left", "right", "right"))]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="multitask-sentence label", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="A trained folder or a Hub repository.")
    parser.add_argument("input", type=Path, help="A csv, tsv, jsonl or parquet file.")
    parser.add_argument("output", type=Path, help="A file of one of these kinds, or a folder for parquet parts.")
    parser.add_argument("--text", nargs="+", default=["text"], help="The column to read, or two for pairs (text).")
    parser.add_argument("--tasks", nargs="+", help="The tasks to answer (all that read this kind of input).")
    parser.add_argument("--embeddings", action="store_true", help="Also write each row's embedding.")
    add_pin_options(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="(float32)")
    parser.add_argument("--device", help="Such as cpu or cuda:1 (the accelerator, if any; with --ray cpu).")
    parser.add_argument("--no_quotes", action="store_true", help="Quotes of a csv file are part of its text.")
    parser.add_argument("--rows_per_part", type=int, default=10_000, help="What a kill can cost (10000).")
    parser.add_argument("--processes", type=int, help="Each with a model of its own (1; with --ray all processors).")
    parser.add_argument("--ray", action="store_true", help="Processes of a Ray cluster: RAY_ADDRESS, or a local one.")
    parser.add_argument("--resume", action="store_true", help="Go on with what an earlier job left.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier output.")
    options = parser.parse_args(argv)
    for name in ("rows_per_part", "processes"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, but should be at least 1")
    if len(options.text) > 2:
        parser.error(f"--text: one column, or two for pairs. Found {len(options.text)}.")
    if options.ray and options.device not in (None, "cpu"):
        parser.error(f"--device is {options.device}, but the actors of --ray compute on processors. Leave it out.")
    if options.resume and options.overwrite:
        parser.error("--resume keeps what is there, --overwrite replaces it: give one of them")

    from ..labelling.job import Job, run_job

    settings = vars(options) | {"text": tuple(options.text), "quoted": not options.no_quotes}
    settings["processes"] = options.processes or 0
    settings["tasks"] = tuple(options.tasks) if options.tasks else None
    del settings["no_quotes"]
    require_pinned = settings.pop("require_pinned")
    go_on = "What is done is kept: the same command with --resume goes on."
    try:
        check_pinned(options.source, options.revision, require_pinned)
        job = Job(**settings)
        records = run_job(job)
    except KeyboardInterrupt:
        sys.exit(f"stopped. {go_on}")
    except (*MISTAKES, RuntimeError) as error:
        sys.exit(explain(error) + (f". {go_on}" if getattr(error, "errno", None) in DISK_ERRORS else ""))
    aside = f" Rows set aside: {job.set_aside_file}." if any(record.set_aside for record in records) else ""
    print(visible(f"\n{_summary(records)}\n\nWritten to {options.output}.{aside}"))  # noqa: T201 - what it is for


if __name__ == "__main__":
    main()
