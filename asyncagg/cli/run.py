"""``asyncagg run``: settle the windows that have ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    execute,
    print_json,
    print_report,
    spinner,
    time_option,
    with_settings,
)
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run as run_pipeline
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

__all__ = ("run",)


@with_settings
def run(
    *,
    settings: Settings,
    at: Annotated[
        datetime | None,
        time_option("--at", "Settle the windows that ended by then; default: now."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look, change nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Settle every window that has ended.

    Its new run files are counted, then archived.

    Examples:
      asyncagg run ./data --window-by name

      asyncagg run s3://matching-out-runs --at 2025-10-21T14:00:00Z --json
    """

    async def work() -> RunReport:
        async with open_store(settings) as opened:
            with spinner(_progress) as told:
                return await run_pipeline(
                    opened,
                    settings,
                    at=at,
                    deadline=Deadline.after(settings.max_seconds),
                    dry_run=dry_run,
                    progress=told,
                )

    configure_logs(settings, json=json)
    report = execute(work)
    if json:
        print_json(report.as_dict())
    else:
        print_report(report)
    raise typer.Exit(report.exit_code)


def _progress(report: RunReport) -> str:
    return f"{report.total.counted:,} counted, {report.total.archived:,} archived"
