"""What a case of the campaign ends as, and the table of all."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate

OUTCOMES = ("right", "clear error", "failure")


@dataclass
class Case:
    """
    One fault and what came of it.

    Attributes:
        part: of the campaign, such as `kill`.
        kind: of run, file or input.
        moment: what was going on, or what was done to it.
        outcome: of `OUTCOMES`: `right` where nothing is lost and every answer is right, `clear error` where the fault
            is named in one message.
        detail: what a reader of a failure needs.
    """

    part: str
    kind: str
    moment: str
    outcome: str
    detail: str = ""


def format_cases(cases: Iterable[Case]) -> str:
    """A Markdown table with a line for each part and kind."""
    counts = Counter((case.part, case.kind, case.outcome) for case in cases)
    rows = {}
    for (part, kind, outcome), count in counts.items():
        rows.setdefault((part, kind), dict.fromkeys(OUTCOMES, 0))[outcome] = count
    lines = [[*place, sum(found.values()), *found.values()] for place, found in rows.items()]
    return tabulate(lines, ["part", "kind", "cases", *OUTCOMES], tablefmt="github")


def format_moments(cases: Iterable[Case]) -> str:
    """A Markdown table of the runs that were stopped, with a line for each stage that they were stopped in."""
    counts = Counter((case.part, case.moment, case.outcome) for case in cases if case.part in ("kill", "full disk"))
    places = dict.fromkeys((part, stage) for part, stage, _ in counts)
    lines = [[*place, *(counts[*place, outcome] for outcome in OUTCOMES)] for place in places]
    return tabulate(lines, ["part", "stopped in", *OUTCOMES], tablefmt="github")
