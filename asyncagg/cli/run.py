"""``asyncagg run``: settle the windows that have ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from asyncagg.cli import base
from asyncagg.cli.progress import CountedStore
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run as run_pipeline
from asyncagg.model import RunFile
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
        until = at or context.now()

        def is_wanted(file: RunFile) -> bool:
            return is_run_file(file.key) and context.window_of(file).end <= until

        async with base.progress("files", json=json) as bar:

            def note(report: RunReport) -> None:
                bar.note = base.number_of(len(report.windows), "window")

            store = context.store
            if bar.is_shown:
                store = CountedStore(store, context.settings.runs_prefix, bar, is_wanted)
            return await run_pipeline(
                store,
                context.settings,
                at=until,
                deadline=Deadline.after(settings.max_seconds),
                dry_run=dry_run,
                progress=note,
            )

    base.finish(base.execute_with_store(settings, work, json=json), base.print_report, json=json)
