"""Write one HTML page about a finished run, which opens from the disk and loads nothing from elsewhere.

    multitask-sentence report runs/quickstart
    multitask-sentence report runs/quickstart --recipe recipes/quickstart.yaml --slices topic
    multitask-sentence report runs/quickstart --unlabeled tickets.csv --text message
    multitask-sentence report runs/quickstart --data tickets.csv --text message --label topic=queue

It has scores with intervals and training curves, the errors to search and to filter, confusion, calibration, slices,
near-duplicates across splits, and likely label errors (with cleanlab: pip install -e ".[report]"). The
rows are those that the run has left in its predictions/; with --data, the model is measured now on other rows. With
--unlabeled, it also says which rows of a file are worth labelling next, and writes them to PAGE_next.csv. The page
holds texts of the data: it is never pushed to the Hub.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.text.spelling import visible
from ..training.run.mistakes import told_in_one_line
from ..training.run.pinned import add_pin_options, download_pinned
from ._finished import add_row_options, check_row_options, open_model, read_data, short_name, wanted_tasks

REPORT_FILE = "report.html"


def _next_rows(options: argparse.Namespace, source: str, found: Any, model: Any, file: Path) -> Any:
    """The rows of --unlabeled that are worth labelling, also as a csv file."""
    import numpy as np

    from ..data.rows.row_hashes import read_row_hashes
    from ..reporting.next_rows import choose_next, committee, read_unlabeled, tasks_to_answer, write_csv
    from ..reporting.page import NextRows

    tasks = tasks_to_answer(wanted_tasks(options, model.config.tasks), options.text)
    known = [own.hashes for by_split in found.rows.values() for own in by_split.values()]
    known += read_row_hashes(source).rows.values()  # of every task and split
    rows, note = read_unlabeled(options.unlabeled, options.text, np.concatenate(known))
    folders = committee(Path(options.folder))
    others = (open_model(str(folder), options.dtype) for folder in folders)
    chosen = choose_next(model, others, tasks, rows, options.next)
    write_csv(chosen, file)
    note = f"{len(chosen):,} rows of {options.unlabeled.name}, from {note}."
    return NextRows(chosen, list(tasks), [folder.name for folder in folders], note, file.name)


def run(options: argparse.Namespace) -> str:
    """Write the page, and return what there is to say of it."""
    from ..configuration_multitask import MultiTaskConfig
    from ..reporting.duplicates import find_duplicates
    from ..reporting.page import render_page
    from ..reporting.run import data_of_run, measured_run, stored_run
    from ..reporting.slices import read_slices
    from ..staging_multitask import write_whole
    from ..training.finished.measuring import choose_splits, measure_model
    from ..training.run.console import show_facts

    output = options.output or Path(options.folder) / REPORT_FILE
    table = output.with_name(f"{output.stem}_next.csv")
    for file in (output, table) if options.unlabeled else (output,):
        if file.is_dir():
            raise ValueError(f"--output: {file} is a folder, but should be a file, such as {file / REPORT_FILE}.")
        if file.exists() and not options.overwrite:
            raise ValueError(f"{file} exists. Name another page with --output, or replace it with --overwrite.")
    if not output.parent.is_dir():
        raise ValueError(
            f"--output: there is no folder {output.parent}. Make it, or name the page's file with --output, such as "
            f"{REPORT_FILE}."
        )
    show_facts()
    source = download_pinned(options.folder, options.revision, options.require_pinned)
    config = MultiTaskConfig.from_pretrained(source)
    model = None
    if options.data is None:
        folder, tasks = Path(source), wanted_tasks(options, config.tasks)
        found = stored_run(folder, tasks)
        needed = bool(options.recipe or options.slices)
        data = data_of_run(folder, tasks, options.recipe, options.data_root, needed)
    else:
        data = read_data(options, source, config.tasks, options.data, with_train=True)
        splits = choose_splits(data.loaded.sets, options.splits)
        model = open_model(source, options.dtype)
        measured = measure_model(model, data.loaded.sets, splits, data.groups, data.batch_size)
        found = measured_run(source, short_name(options.folder), ", ".join(map(str, options.data)), measured)
    slices = read_slices(data, options.slices, found.rows) if options.slices else {}
    duplicates = data if isinstance(data, str) else "They were not looked for (--most_rows 0)."
    if options.most_rows and not isinstance(data, str):
        model = model or open_model(source, options.dtype)
        duplicates = find_duplicates(model, data.loaded.sets, found.tasks, options.most_rows)
    next_rows = None
    if options.unlabeled:
        model = model or open_model(source, options.dtype)
        next_rows = _next_rows(options, source, found, model, table)
    write_whole(output, visible(render_page(found, slices, duplicates, next_rows)))
    written = f"{output} and {table}" if options.unlabeled else output
    return f"Written to {written}. Open the page in a browser."


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="A trained folder; with --data also a Hub repository.")
    parser.add_argument("--data", nargs="+", type=Path, help="A recipe, or labelled files of one format, to measure.")
    parser.add_argument("--recipe", type=Path, help="Of the run, where its data is found (FOLDER/recipe.yaml).")
    add_row_options(parser)
    parser.add_argument("--slices", nargs="+", metavar="COLUMN", help="Columns of the data to score and filter by.")
    parser.add_argument(
        "--most_rows",
        type=int,
        default=20_000,
        help="Of each split, to look for near-duplicates among; 0 for none (20000).",
    )
    parser.add_argument("--unlabeled", type=Path, metavar="FILE", help="Texts of which some should be labelled next.")
    parser.add_argument("--next", type=int, default=50, metavar="ROWS", help="So many of them (50).")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"The page (FOLDER/{REPORT_FILE}).")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier page.")
    add_pin_options(parser)
    options = parser.parse_args(argv)
    check_row_options(parser, options)
    if options.next < 1:
        parser.error(f"--next is {options.next}, but should be at least 1.")
    if options.most_rows < 0:
        parser.error(f"--most_rows is {options.most_rows}, but should be 0 or more.")
    if options.data and options.recipe:
        parser.error("--recipe says where the run's own rows come from, --data names other rows: give one of them.")
    with told_in_one_line():
        print(visible("\n" + run(options)))  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
