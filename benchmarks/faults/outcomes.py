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
    """A Markdown table of the kills, with a line for each stage that they fell into."""
    counts = Counter((case.moment, case.outcome) for case in cases if case.part == "kill")
    stages = dict.fromkeys(stage for stage, _ in counts)
    lines = [[stage, *(counts[stage, outcome] for outcome in ("right", "failure"))] for stage in stages]
    return tabulate(lines, ["killed in", "same result", "failure"], tablefmt="github")
