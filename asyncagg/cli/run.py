"""``asyncagg run``: settle the windows that have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from asyncagg.cli.base import (
    JsonOption,
    configure_logs,
    err,
    execute,
    print_json,
    print_report,
    with_settings,
)
from asyncagg.limits import Deadline
from asyncagg.outcome import RunReport
from asyncagg.pipeline import run as run_pipeline
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.windows import parse_time

__all__ = ("run",)


@with_settings
def run(
    *,
    settings: Settings,
    at: Annotated[
        str | None,
        typer.Option(help="Settle the windows that ended by then; default: now.", metavar="TIME"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look, change nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Settle every window that has ended: count its new run files, then archive them.

    Examples:
      asyncagg run ./data --window-by name

      asyncagg run s3://matching-out-runs --at 2025-10-21T14:00:00Z --json
    """
    moment = None if at is None else parse_time(at, "--at")

    async def work() -> RunReport:
        async with open_store(settings) as opened:
            with _progress() as told:
                return await run_pipeline(
                    opened,
                    settings,
                    at=moment,
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


@contextmanager
def _progress() -> Iterator[Callable[[RunReport], None] | None]:
    """Show how far a run is, on a terminal."""
    if not err.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("listing")

        def told(report: RunReport) -> None:
            total = report.total
            bar.update(task, description=f"{total.counted:,} counted, {total.archived:,} archived")

        yield told
