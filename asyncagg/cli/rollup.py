"""``asyncagg rollup``: merge aggregates into hours, days and months."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated

import typer

from asyncagg.cli import base
from asyncagg.job.context import JobContext
from asyncagg.rollup import Period, RollupReport
from asyncagg.rollup import rollup as roll_up
from asyncagg.settings import Settings


@base.with_settings
def rollup(
    *,
    settings: Settings,
    period: Annotated[Period, typer.Option(help="The length of a rollup, in UTC.")],
    since: Annotated[
        datetime | None, base.time_option("--since", "Skip the periods that end by then.")
    ] = None,
    until: Annotated[
        datetime | None, base.time_option("--until", "Skip the periods that start then or later.")
    ] = None,
    allow_empty: base.AllowEmptyOption = False,
    json: base.JsonOption = False,
) -> None:
    """Merge aggregates into hours, days or months.

    Only what has changed is read again. A deleted aggregate is left out of its rollup; a rollup
    without any input left stays as it is. If aggregates expire, skip their periods with --since.
    An aggregate that cannot be read is left out and named, and the exit code is 3.

    Examples:
      asyncagg rollup ./data --period hour

      asyncagg rollup s3://matching-out-runs --period month --since 2025-10-01 --json
    """

    async def work(context: JobContext) -> RollupReport:
        async with base.progress("rollups", json=json) as bar:

            def note(report: RollupReport) -> None:
                bar.done = len(report.written) + report.unchanged
                bar.note = f"{len(report.written):,} written"

            return await roll_up(
                context.store, context.settings, period, since=since, until=until, progress=note
            )

    report = base.execute_with_store(settings, work, json=json)
    base.check_found(
        settings,
        settings.aggregate_prefix,
        found=bool(report.written or report.unchanged or report.failures),
        allow_empty=allow_empty,
        filtered=bool(since or until),
    )
    base.finish(report, partial(_print, period), json=json)


def _print(period: Period, report: RollupReport) -> None:
    # Longer periods have the files of shorter ones, so the totals are those of one length.
    chosen = [each for each in report.written if f"{period}/" in each.key]
    sums = [sum(getattr(each, name) for each in chosen) for name in ("inputs", "read", "counted")]
    base.print_table(
        [
            (each.key, each.revision, each.inputs, each.read, each.counted)
            for each in report.written
        ],
        *("key", "rev.", "inputs", "read", "files"),
        title=f"{base.number_of(len(report.written), 'rollup')} written, "
        f"{report.unchanged:,} unchanged",
        total=(f"total by {period}", "", *sums),
    )
    for key, reason in report.failures.items():
        base.print_text(f"{key} failed: {reason}", style="red")
