"""Compare finished models on the same rows: scores side by side, and paired differences with intervals.

    multitask-sentence compare runs/a runs/b
    multitask-sentence compare runs/a runs/b runs/c --data recipes/quickstart.yaml
    multitask-sentence compare runs/a user/name@COMMIT --data tickets.csv --text message --label topic=queue

Without --data, the answers are taken that each run has left in its predictions/. The others are compared with the
first, on test rows, or where there are none on validation rows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.text.spelling import visible
from ..training.run.mistakes import told_in_one_line
from ..training.run.pinned import pinned_folder
from ._finished import (
    add_data_options,
    check_options,
    check_output,
    claim_output,
    open_model,
    read_data,
    short_name,
    wanted_tasks,
)


def _names(sources: Sequence[str]) -> list[str]:
    """What the models are called: by the last part of their paths where that tells them apart, without the commit."""
    short = [short_name(source) for source in sources]
    return short if len(set(short)) == len(short) else list(sources)


def run(options: argparse.Namespace) -> str:
    """Compare the models, keep what is wanted, and return the table."""
    from ..configuration_multitask import MultiTaskConfig
    from ..training.finished.comparing import compare_models, format_compared, measured_tables, stored_tables
    from ..training.finished.data import stored_groups
    from ..training.finished.measuring import choose_splits, measure_model
    from ..training.run.console import say, show_facts
    from ..training.run.output_folder import write_json

    check_output(options)
    if len(set(options.sources)) != len(options.sources) or len(options.sources) < 2:
        raise ValueError(f"Give two different models or more. Found {', '.join(options.sources)}.")
    show_facts()
    names, tasks, tables = _names(options.sources), [], []
    groups = None
    folders = [pinned_folder(source, options.require_pinned) for source in options.sources]
    for name, source in zip(names, folders, strict=True):
        config = MultiTaskConfig.from_pretrained(source)
        if options.data is None:
            tasks.append(wanted_tasks(options, config.tasks))
            tables.append(stored_tables(Path(source)))
            groups = stored_groups(source, tasks[0]) if groups is None else groups
            continue
        say(f"{name}:")
        data = read_data(options, source, config.tasks, options.data)
        splits = choose_splits(data.loaded.sets, options.splits)
        model = open_model(source, options.dtype)
        measured = measure_model(model, data.loaded.sets, splits, data.groups, data.batch_size)
        tasks.append(measured.tasks)
        tables.append(measured_tables(measured))
        groups = data.groups if groups is None else groups
    compared = compare_models(names, tasks, tables, groups)
    if (folder := claim_output(options)) is not None:
        write_json(folder / "comparison.json", compared)
    return "\n\n".join([format_compared(names, compared)] + [f"Written to {folder}."] * (folder is not None))


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", help="Trained folders or Hub repositories; the first is the baseline.")
    parser.add_argument(
        "--require_pinned", action="store_true", help="Refuse a Hub repository that is not given as user/name@COMMIT."
    )
    parser.add_argument("--data", nargs="+", type=Path, help="A recipe, or labelled files of one format.")
    add_data_options(parser)
    options = parser.parse_args(argv)
    check_options(parser, options)
    if options.splits and not {"validation", "test"} & set(options.splits):
        parser.error(f"--splits: models are compared on validation or test rows. Found {', '.join(options.splits)}.")
    with told_in_one_line():
        print(visible("\n" + run(options)))  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
