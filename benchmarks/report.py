"""Write the tables of the documents from the stored results, so that every number is measured.

    python benchmarks/report.py

It replaces the text between ``<!-- NAME -->`` and ``<!-- end -->`` by benchmarks/results/NAME.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import export
import lambda_box
import large_window
import memory
import scaling
import throughput
import verify
from harness import HERE, RESULTS

DOCUMENTS = sorted((HERE.parent / "docs" / "explanation").glob("*.md"))
TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "throughput": throughput.table,
    "throughput-busy": throughput.table,  # throughput.json of another machine
    "throughput-packs": throughput.table,  # with --archive-format files packs
    "throughput-tls": throughput.table,
    **{
        f"throughput-{windows}x{in_flight}": throughput.table
        for windows in (5, 20)
        for in_flight in (32, 128)
    },
    "lambda_box": lambda_box.table,
    "lambda_box-packs": lambda_box.table,
    "lambda_box-20": lambda_box.table,
    "lambda_box-20-packs": lambda_box.table,
    "large-window": large_window.table,
    "scaling": scaling.table,
    "export": export.table,
    "scaling-packs": scaling.table,
    "verify": verify.table,
    "memory": memory.table,
    "memory-packs": memory.table,
    "memory-tls": memory.table,
    "memory-tls-packs": memory.table,
}
GOALS = (("floor", "of the floor"), ("obstore", "of obstore"), ("boto3-serial", "of boto3 serial"))
_PLACE = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def section(name: str) -> str:
    """Return the table of a result, and the machine and versions of the run."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "Not measured yet.\n"
    kept = json.loads(path.read_text())
    about = kept["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [TABLES[name](kept["results"]), ""]
    if TABLES[name] is throughput.table:
        lines += [ratios(kept["results"]), ""]
    lines.append(
        f"`{about['command']}`, {about['date']}; {about['processor']}, {about['cores']} cores, "
        f"{about['system']}, Python {about['python']}; {versions}."
    )
    return "\n".join(lines) + "\n"


def ratios(results: list[dict[str, Any]]) -> str:
    """Return the ratios of the lean plane's CPU per file to others."""
    cpu = {each["name"]: each["at_0_ms"]["cpu_us"] for each in results}
    lean = cpu.get("asyncagg-lean")
    if lean is None:
        return ""
    compared = [f"{lean / cpu[name]:.3g} {words}" for name, words in GOALS if name in cpu]
    return f"CPU per file of the lean plane: {', '.join(compared)}."


def main() -> None:
    """Write the tables into the documents."""
    for document in DOCUMENTS:
        text = document.read_text()
        document.write_text(_PLACE.sub(_replaced, text))


def _replaced(place: re.Match[str]) -> str:
    if place[2] not in TABLES:  # the table of the explorer has no stored result
        return place[0]
    return place[1] + section(place[2]) + place[3]


if __name__ == "__main__":
    main()
