"""Text that others wrote, in Markdown: the one place where it is made harmless.

    code_span    names, labels and settings: shown to the letter
    plain_text   text in a heading, a sentence or the title of a picture: no markup in it is read
    link_target  the file or address of a link or picture
    table        a Markdown table; a `|` in a cell ends no cell

They are also filters of the model card's template.
"""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from tabulate import tabulate

from ...data.text.spelling import visible

# ASCII punctuation that Markdown or HTML may read as markup within a line; "_" only where a word begins or ends.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~!#$]|(?<!\w)_|_(?!\w)")


def code_span(text: Any) -> str:
    """Anything as a code span on one line: nothing in it is read as Markdown or HTML."""
    text = visible(" ".join(str(text).split())) or "(empty)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def plain_text(text: Any) -> str:
    """Anything as plain text on one line, with a backslash before what Markdown or HTML would read as markup."""
    return _MARKUP.sub(r"\\\g<0>", visible(" ".join(str(text).split())))


def link_target(target: str) -> str:
    """A file's name or an address as the target of a link: no space or bracket ends it."""
    return quote(target, safe="/:?=&#%+,;@~.-_")


def table(rows: Sequence[Sequence[Any]], header: Sequence[Any], right: int = 0) -> str:
    """A Markdown table whose last `right` columns are numbers; its cells are Markdown already."""
    header, *rows = ([str(cell).replace("|", r"\|") for cell in row] for row in [header, *rows])
    align = ["left"] * (len(header) - right) + ["right"] * right
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


__all__ = ["code_span", "link_target", "plain_text", "table"]
