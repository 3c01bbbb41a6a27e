"""Explore all scenarios and mutations, and write what was seen into guarantees.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from testkit.explorer.exploration import explore
from testkit.explorer.mutations import MUTATIONS, Mutation
from testkit.explorer.scenarios import SCENARIOS, Scenario
from testkit.explorer.search import Explored

__all__ = ("main",)


PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "guarantees.md"
_TABLE = re.compile(r"(<!-- explorer -->\n).*?(<!-- end -->)", re.DOTALL)


def main(names: Sequence[str]) -> int:
    """Explore the scenarios and mutations with these names; without names, all of them.

    Returns:
        0 if all promises hold and each mutation is found, else 1.
    """
    by_name = {scenario.name: scenario for scenario in SCENARIOS}
    cases: list[tuple[str, Scenario, Mutation | None]] = [
        *((scenario.name, scenario, None) for scenario in SCENARIOS),
        *((each.name, by_name[each.scenario], each) for each in MUTATIONS),
    ]
    rows: dict[bool, list[str]] = {False: [], True: []}
    surprises: list[str] = []
    for name, scenario, mutation in cases:
        if names and name not in names:
            continue
        explored = explore(scenario, mutation)
        rows[mutation is not None].append(_row(name, scenario, explored))
        sys.stdout.write(f"{rows[mutation is not None][-1]} {explored.seconds:.0f} s\n")
        sys.stdout.flush()
        if bool(explored.broken) != (mutation is not None):
            surprises.append(f"{name}: {explored if explored.broken else 'not found'}")
    if not names and not surprises:
        text = "\n".join([*_HEAD, *rows[False], "", *_MUTATIONS_HEAD, *rows[True], ""])
        PAGE.write_text(_TABLE.sub(lambda place: place[1] + text + place[2], PAGE.read_text()))
    sys.stdout.write("\n".join(["", *surprises, ""]))
    return 1 if surprises else 0


_HEAD = (
    "| scenario | lost answers | schedules | states | contents |",
    "| --- | ---: | ---: | ---: | ---: |",
)
_MUTATIONS_HEAD = ("| mutation | found in | after |", "| --- | --- | ---: |")


def _row(name: str, scenario: Scenario, explored: Explored) -> str:
    if explored.broken:
        return f"| {name} | {scenario.name} | {explored.states:,} states |"
    counts = f"{explored.states:,} | {explored.worlds:,}"
    return f"| {name} | {scenario.faults} | {explored.schedules:.1e} | {counts} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
