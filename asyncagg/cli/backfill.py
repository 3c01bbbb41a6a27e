"""``asyncagg backfill``: settle a long interval, on one machine or on many."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from asyncagg.backfill import BackfillProgress, Engine, LocalEngine, interval_of, recompute_all
from asyncagg.backfill import backfill as settle_all
from asyncagg.cli.base import (
    configure_logs,
    err,
    execute,
    out,
    print_json,
    time_option,
    with_settings,
)
from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import RunReport
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.verify.recompute import RecomputeReport

__all__ = ("BackfillSource", "backfill")

_LINE_SECONDS = 1.0
"""The least time between two lines for machines."""


class BackfillSource(StrEnum):
    """Where the run files are read."""

    RUNS = "runs"
    ARCHIVE = "archive"


@with_settings
def backfill(
    *,
    settings: Settings,
    since: Annotated[datetime, time_option("--since", "Windows that start then or later.")],
    until: Annotated[
        datetime | None, time_option("--until", "Windows that end by then; default: now.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes of a Dask cluster on this machine; default: none.", min=1),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Join the Dask cluster of this scheduler.", metavar="ADDRESS"),
    ] = None,
    source: Annotated[
        BackfillSource,
        typer.Option(help="Settle the inbox, or compute again from the archive, moving nothing."),
    ] = BackfillSource.RUNS,
    write: Annotated[
        bool,
        typer.Option("--write", help="With --source archive: replace aggregates that differ."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the inbox, change nothing.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print lines of JSON as it goes, the last is the report.")
    ] = False,
) -> None:
    """Settle every window of an interval, however long.

    Run it again to go on where it stopped.

    With --workers or --scheduler (which need the extra "cluster") windows are settled side by side;
    one with more files than --chunk-files is counted in parts and committed once.

    Examples:
      asyncagg backfill ./data --since 2025-10-21T00:00:00Z --window-by name

      asyncagg backfill s3://bucket --since 20251001t0000Z --until 20251101t0000Z --workers 8

      asyncagg backfill s3://bucket --since 20251001t0000Z --source archive --json
    """
    interval = interval_of(settings, since, until)
    _check(workers, scheduler, source, write=write, dry_run=dry_run)
    if settings.store and "://" not in settings.store:
        # A worker may run in another folder.
        settings = msgspec.structs.replace(settings, store=str(Path(settings.store).absolute()))

    async def work() -> RunReport | RecomputeReport:
        with _told(json=json) as told:
            async with _engine(settings, workers, scheduler) as engine:
                if source is BackfillSource.ARCHIVE:
                    return await recompute_all(
                        engine, settings, interval, write=write, progress=told
                    )
                return await settle_all(engine, settings, interval, dry_run=dry_run, progress=told)

    configure_logs(settings, json=json)
    report = execute(work)
    if json:
        print_json({"event": "done", **report.as_dict()})
    elif isinstance(report, RunReport):
        _print_settled(report, interval)
    else:
        _print_recomputed(report)
    raise typer.Exit(report.exit_code)


def _check(
    workers: int | None,
    scheduler: str | None,
    source: BackfillSource,
    *,
    write: bool,
    dry_run: bool,
) -> None:
    if workers is not None and scheduler is not None:
        raise UsageError(
            f"--workers {workers} and --scheduler {scheduler}: expected one of the two"
        )
    if write and source is not BackfillSource.ARCHIVE:
        raise UsageError(f"--write with --source {source}: expected --source archive")
    if dry_run and source is BackfillSource.ARCHIVE:
        raise UsageError(
            "--dry-run with --source archive: expected neither --dry-run nor --write to only look"
        )


@asynccontextmanager
async def _engine(
    settings: Settings, workers: int | None, scheduler: str | None
) -> AsyncIterator[Engine]:
    if workers is None and scheduler is None:
        async with open_store(settings) as store:
            yield LocalEngine(JobContext(store, settings))
        return
    try:
        from asyncagg.backfill import cluster  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"Dask: {error}; expected the extra: pip install 'asyncagg[cluster]', or neither "
            "--workers nor --scheduler"
        ) from error
    opened = (
        cluster.start_cluster(settings, workers)
        if workers is not None
        else cluster.join_cluster(settings, scheduler or "")
    )
    async with opened as engine:
        yield engine


@contextmanager
def _told(*, json: bool) -> Iterator[Callable[[BackfillProgress], None] | None]:
    """Tell how far it is: lines for machines, a bar on a terminal."""
    if json:
        yield _lines()
    elif err.is_terminal:
        with _bar() as told:
            yield told
    else:
        yield None


def _lines() -> Callable[[BackfillProgress], None]:
    started = time.monotonic()
    last = 0.0

    def told(status: BackfillProgress) -> None:
        nonlocal last
        elapsed = time.monotonic() - started
        if elapsed - last < _LINE_SECONDS:
            return
        last = elapsed
        numbers = {"elapsed_seconds": round(elapsed, 3), **msgspec.to_builtins(status)}
        print_json({"event": "progress", **numbers})

    return told


@contextmanager
def _bar() -> Iterator[Callable[[BackfillProgress], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[troubles]}", style="red"),
    )
    started = time.monotonic()
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("listing", total=None, rate="", troubles="")

        def told(status: BackfillProgress) -> None:
            seconds = time.monotonic() - started
            # Of a file half of the way is to be fetched, the other half to be cleared away.
            way = (status.files_done + status.files_cleared) / 2
            size = status.bytes * way / max(1, status.files)
            bar.update(
                task,
                description=_description(status),
                total=status.files or None,
                completed=way,
                rate=f"{way / seconds:,.0f} files/s {size / seconds / 1e6:,.1f} MB/s",
                troubles=f"{status.troubles:,} in trouble" if status.troubles else "",
            )

        yield told


def _description(status: BackfillProgress) -> str:
    if not status.windows:
        return "listing"
    return f"{status.windows_done:,}/{status.windows:,} windows"


def _print_settled(report: RunReport, interval: Interval) -> None:
    """Print the sums, and the windows that need a look: there may be thousands of others."""
    total = report.total
    told = f"from {interval.since.isoformat()} to {interval.until.isoformat()}"
    if not report.windows and report.complete:
        out.print(f"the inbox has no run file of a window {told}")
        return
    out.print(told)
    table = Table()
    rows: dict[str, Any] = {"windows": len(report.windows)}
    names = ("counted", "late", "archived", "quarantined", "deferred", "left", "bytes")
    rows |= {name: getattr(total, name) for name in names}
    table.add_column("what")
    table.add_column("number", justify="right")
    for name, number in rows.items():
        table.add_row(name, f"{number:,}")
    out.print(table)
    for each in report.windows.values():
        if each.failure:
            out.print(Text(f"window {each.window} failed: {each.failure}", style="red"))
        elif each.tally.deferred:
            out.print(f"window {each.window}: {each.tally.deferred:,} files deferred")
    if not report.complete:
        out.print("time ran out: run it again to go on")


def _print_recomputed(report: RecomputeReport) -> None:
    bad = [each for each in report.windows if each.differences or each.failure]
    out.print(f"{len(report.windows):,} aggregates, {len(bad):,} of them not as they should be")
    for each in bad:
        if each.failure:
            out.print(Text(f"window {each.window}: {each.failure}", style="red"))
        for key in each.missing:
            out.print(Text(f"  {key}"))
        for name, (stands, true) in each.differences.items():
            numbers = isinstance(true, int | float)
            told = f"{stands} stands, {true} is true" if numbers else "differs"
            out.print(Text(f"window {each.window}: {name}: {told}"))
        if each.written:
            out.print(f"window {each.window}: written anew")
    if any(each.differences and not each.written for each in bad):
        out.print("with --write those that differ are replaced")
