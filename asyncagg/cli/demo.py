"""``asyncagg demo``: the whole job, shown on sample files."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from asyncagg.cli.base import JsonOption, execute, out, print_json, print_report
from asyncagg.runtime import logs

__all__ = ("Place", "demo")


class Place(StrEnum):
    """Where the demo runs."""

    S3 = "s3"
    DIRECTORY = "directory"


def demo(
    *,
    on: Annotated[Place, typer.Option(help="A local S3 server (moto), or a directory.")] = Place.S3,
    files: Annotated[int, typer.Option(help="How many run files.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed shows the same numbers.")] = 0,
    json: JsonOption = False,
) -> None:
    """Show the whole job on sample files, on a store of its own.

    The store is removed at the end.

    Examples:
      asyncagg demo

      asyncagg demo --on directory --json
    """
    from asyncagg.sample.demo import run_demo  # noqa: PLC0415 - moto is an extra

    logs.configure("error", json=False)
    shown = execute(lambda: run_demo(on_s3=on is Place.S3, files=files, seed=seed))
    if json:
        print_json(shown.as_dict())
        return
    out.print(shown.headline)
    print_report(shown.first)
    out.print("One file came late; the next run merges it into its own window:")
    print_report(shown.second)
    out.print(_totals_table(shown.totals))
    out.print(_matches_table(shown.top_matches))
    out.print(_counts_table(shown.objects))


def _totals_table(totals: dict[str, Any]) -> Table:
    table = Table(title="totals of the aggregates")
    table.add_column("field")
    table.add_column("sum", justify="right")
    for name, value in totals.items():
        table.add_row(name, f"{value:,}")
    return table


def _matches_table(matches: list[dict[str, Any]]) -> Table:
    table = Table(title="top matches")
    for name in ("score", "title", "from"):
        table.add_column(name)
    for match in matches:
        cells = (match.get("match_score", 0), match.get("title", ""), match["source_key"])
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def _counts_table(objects: dict[str, int]) -> Table:
    table = Table(title="objects in the store")
    table.add_column("prefix")
    table.add_column("objects", justify="right")
    for prefix, count in objects.items():
        table.add_row(prefix, f"{count:,}")
    return table
