"""``asyncagg demo``: the whole job on sample files."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from asyncagg.cli import base
from asyncagg.runtime import logs


class Place(StrEnum):
    """Where the demo runs."""

    S3 = "s3"
    DIRECTORY = "directory"


def demo(
    *,
    on: Annotated[Place, typer.Option(help="A local S3 server (moto), or a directory.")] = Place.S3,
    files: Annotated[int, typer.Option(help="How many run files.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed shows the same numbers.")] = 0,
    json: base.JsonOption = False,
) -> None:
    """Show the whole job on sample files, in a temporary store.

    Examples:
      asyncagg demo

      asyncagg demo --on directory --json
    """
    from asyncagg.sample.demo import DemoResult, run_demo  # noqa: PLC0415 - moto is an extra

    logs.configure("error", json=False)

    async def work() -> DemoResult:
        async with base.progress("", json=json) as bar:

            def note(step: str) -> None:
                bar.note = step

            return await run_demo(on_s3=on is Place.S3, files=files, seed=seed, step=note)

    result = base.execute(work)
    if json:
        base.print_json(result.as_dict())
        return
    base.out.print(result.headline)
    base.print_report(result.first)
    base.out.print("One file is late; the next run merges it into its own window:")
    base.print_report(result.second)
    base.print_table(result.totals.items(), "field", "sum", title="totals of the aggregates")
    matches = [
        (match.get("match_score", 0), match.get("title", ""), match["source_key"])
        for match in result.top_matches
    ]
    base.print_table(matches, "score", "title", "from", title="top matches")
    base.print_table(result.objects.items(), "prefix", "objects", title="objects in the store")
