"""``asyncagg run``: settle the windows that have ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from asyncagg.cli import base
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run as run_pipeline
from asyncagg.settings import Settings


@base.with_settings
def run(
    *,
    settings: Settings,
    at: Annotated[
        datetime | None,
        base.time_option("--at", "Settle the windows that ended by then; default: now."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files, change nothing.")
    ] = False,
    json: base.JsonOption = False,
) -> None:
    """Settle every window that has ended.

    Its new run files are counted, then archived.

    Examples:
      asyncagg run ./data

      asyncagg run s3://matching-out-runs --at 2025-10-21T14:00:00Z --json
    """

    async def work(context: JobContext) -> RunReport:
        with base.spinner(_progress) as progress:
            return await run_pipeline(
                context.store,
                context.settings,
                at=at,
                deadline=Deadline.after(settings.max_seconds),
                dry_run=dry_run,
                progress=progress,
            )

    base.finish(base.execute_with_store(settings, work, json=json), base.print_report, json=json)


def _progress(report: RunReport) -> str:
    return f"{report.total.counted:,} counted, {report.total.archived:,} archived"
