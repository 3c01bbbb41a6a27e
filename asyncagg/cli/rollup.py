"""``asyncagg rollup``: aggregates merged into hours, days and months."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    execute,
    out,
    print_json,
    time_option,
    with_settings,
)
from asyncagg.rollup import Period, RollupReport
from asyncagg.rollup import rollup as roll_up
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

__all__ = ("rollup",)


@with_settings
def rollup(
    *,
    settings: Settings,
    period: Annotated[Period, typer.Option(help="What one rollup covers, in UTC.")],
    since: Annotated[
        datetime | None, time_option("--since", "Leave alone what ends by then.")
    ] = None,
    until: Annotated[
        datetime | None, time_option("--until", "Leave alone what starts from then on.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Merge aggregates into hours, days or months.

    Only what has changed is read again. An aggregate that is gone is left out; a rollup all of
    whose inputs are gone stays as it is. Where aggregates expire, leave the periods that they are
    of alone with --since.

    Examples:
      asyncagg rollup ./data --period hour

      asyncagg rollup s3://matching-out-runs --period month --since 2025-10-01 --json
    """

    async def work() -> RollupReport:
        async with open_store(settings) as store:
            return await roll_up(store, settings, period, since=since, until=until)

    configure_logs(settings, json=json)
    report = execute(work)
    if json:
        print_json(report.as_dict())
    else:
        _print(report)
    raise typer.Exit(report.exit_code)


def _print(report: RollupReport) -> None:
    table = Table(
        title=f"{len(report.written):,} rollups written; {report.unchanged:,} had not changed"
    )
    table.add_column("key", overflow="fold")
    for name in ("rev.", "inputs", "read", "files"):
        table.add_column(name, justify="right")
    for each in report.written:
        numbers = (each.revision, each.inputs, each.read, each.counted)
        table.add_row(each.key, *(f"{number:,}" for number in numbers))
    out.print(table)
    for key, reason in report.failures.items():
        out.print(Text(f"{key} failed: {reason}", style="red"))
