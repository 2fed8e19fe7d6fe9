"""Score a finished model on labelled data: the table of a training run with intervals, without training.

    multitask-sentence evaluate runs/quickstart recipes/quickstart.yaml
    multitask-sentence evaluate runs/quickstart tickets.csv --text message --label topic=queue
    multitask-sentence evaluate user/name pairs.jsonl --text question answer --output scored

The data is a recipe, whose validation and test splits are read, or files, each row with a label. Rows that the run has
set aside are found again, and rows that the model was trained on are counted. The brackets hold 95 % intervals over
the rows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..data.text.spelling import visible
from ..training.run.mistakes import told_in_one_line
from ..training.run.pinned import add_pin_options, download_pinned
from ._finished import add_data_options, check_options, check_output, claim_output, open_model, read_data


def run(options: argparse.Namespace) -> str:
    """Measure the model, keep what is wanted, and return the tables."""
    from ..configuration_multitask import MultiTaskConfig
    from ..training.finished.measuring import choose_splits, describe, format_measured, measure_model, score_intervals
    from ..training.report.abstention import format_abstention
    from ..training.report.calibration import format_calibration
    from ..training.report.predictions import write_predictions
    from ..training.run.console import show_facts
    from ..training.run.output_folder import write_json

    check_output(options)
    show_facts()
    source = download_pinned(options.source, options.revision, options.require_pinned)
    config = MultiTaskConfig.from_pretrained(source)
    data = read_data(options, source, config.tasks, options.data)
    splits = choose_splits(data.loaded.sets, options.splits)
    model = open_model(source, options.dtype)
    measured = measure_model(model, data.loaded.sets, splits, data.groups, data.batch_size)
    intervals = score_intervals(measured)
    described = describe(measured, intervals)
    if (folder := claim_output(options)) is not None:
        write_json(folder / "evaluation.json", described)
        write_predictions(folder, measured.tasks, measured.evaluations, measured.answers)
    parts = [format_measured(measured, intervals)]
    parts += [format_calibration(described["calibration"])] if described["calibration"] else []
    parts += [format_abstention(described["abstention"])] if described["abstention"] else []
    parts += [f"Written to {folder}."] if folder else []
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="A trained folder or a Hub repository.")
    parser.add_argument("data", nargs="+", type=Path, help="A recipe, or labelled files of one format.")
    add_data_options(parser)
    add_pin_options(parser)
    options = parser.parse_args(argv)
    check_options(parser, options)
    with told_in_one_line():
        print(visible("\n" + run(options)))  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
