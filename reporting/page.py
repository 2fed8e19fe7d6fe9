"""One HTML page about a run, which needs nothing beside itself: render_page fills page.html.jinja."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..data.metrics.bootstrap import RESAMPLES
from ..data.text.spelling import visible
from .duplicates import LEAST_SHARED
from .label_errors import find_label_errors
from .next_rows import TEXT_COLUMNS
from .pictures import reliability_pictures, training_picture
from .run import Run
from .sections import confusions, error_rows, score_table
from .slices import Slices, slice_scores

HERE = Path(__file__).parent


def _own(name: str) -> Markup:
    """A file of ours, which the page holds as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


@dataclass
class NextRows:
    """
    What the page says of an unlabelled file.

    Attributes:
        rows: what `choose_next` gave.
        tasks: the tasks that were answered.
        models: names of the models that may disagree.
        note: a sentence that counts the file's rows.
        file: where they are written as csv.
    """

    rows: pd.DataFrame
    tasks: list[str]
    models: list[str]
    note: str
    file: str


def _visible(content: Any) -> Any:
    """The same with every text as `visible` shows it: within JSON, no other look at the page finds it."""
    if isinstance(content, dict):
        return {key: _visible(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_visible(value) for value in content]
    return visible(content) if isinstance(content, str) else content


def _next_rows(found: NextRows) -> dict[str, Any]:
    """The same for the template: each row's texts as a list."""
    names = [name for name in TEXT_COLUMNS if name in found.rows.columns]
    rows = [{**row, "texts": [row[name] for name in names]} for row in found.rows.to_dict("records")]
    return {"rows": rows, "tasks": found.tasks, "models": found.models, "note": found.note, "file": found.file}


def render_page(
    run: Run,
    slices: Slices | None = None,
    duplicates: list[dict[str, Any]] | str = "",
    next_rows: NextRows | None = None,
) -> str:
    """
    The page as HTML.

    Args:
        run: the finished run.
        slices: by task and column of the data, the value of each row by its hash.
        duplicates: what `find_duplicates` gave, or why it was not asked.
        next_rows: the rows of an unlabelled file that are worth labelling.
    """
    slices = slices or {}
    splits, scores = score_table(run.rows, run.groups)
    errors = [
        {"task": task, "slices": list(slices.get(task, {})), **error_rows(by_split, slices.get(task, {}))}
        for task, by_split in run.rows.items()
    ]
    content = {
        "confusions": confusions(run.tasks, run.results.get("confusion", {})),
        "label_errors": find_label_errors(run.rows, run.trained),
        "calibration": reliability_pictures(run.results.get("calibration", {}), run.tasks),
    }
    titles: Sequence[tuple[str, str, Any]] = [
        ("scores", "Scores", True),
        ("errors", "Errors", True),
        ("confusion", "What is confused", content["confusions"]),
        ("calibration", "Calibration", content["calibration"]),
        ("slices", "Slices", True),
        ("label-errors", "Likely label errors", content["label_errors"] != []),
        ("duplicates", "Near-duplicates", True),
        ("next", "Next rows to label", next_rows),
    ]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        name=run.name,
        origin=run.origin,
        resamples=f"{RESAMPLES:,}",
        sections=[(anchor, title) for anchor, title, shown in titles if shown],
        splits=splits,
        scores=scores,
        training=training_picture(run.results, run.tasks, run.groups),
        columns=list(dict.fromkeys(name for own in slices.values() for name in own)),
        slices=slice_scores(run.rows, slices),
        duplicates=duplicates,
        next_rows=next_rows and _next_rows(next_rows),
        least_shared=LEAST_SHARED,
        data=_visible({"errors": errors}),
        style=_own("page.css"),
        script=_own("page.js"),
        **content,
    )


__all__ = ["render_page"]
