"""``asyncagg backfill``: settle a long interval, on one machine or on many."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from asyncagg.backfill import (
    BackfillProgress,
    BackfillReport,
    Engine,
    LocalEngine,
    interval_of,
    recompute_all,
)
from asyncagg.backfill import backfill as settle_all
from asyncagg.cli import base
from asyncagg.cli.progress import Bar, CountedStore
from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.verify.recompute import RecomputeReport

_LINE_SECONDS = 1.0
"""The shortest time between two lines of progress for machines."""


class BackfillSource(StrEnum):
    """Where the run files are read."""

    RUNS = "runs"
    ARCHIVE = "archive"


@base.with_settings
def backfill(
    *,
    settings: Settings,
    since: Annotated[datetime, base.time_option("--since", "Windows that start then or later.")],
    until: Annotated[
        datetime | None, base.time_option("--until", "Windows that end by then; default: now.")
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
        typer.Option(
            help="Settle the inbox, or recompute aggregates from the archive, moving nothing."
        ),
    ] = BackfillSource.RUNS,
    write: Annotated[
        bool,
        typer.Option("--write", help="With --source archive: replace aggregates that differ."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the inbox, change nothing.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print progress as lines of JSON, then the report.")
    ] = False,
) -> None:
    """Settle every window of an interval, however long.

    If it is stopped, run it again to continue.

    With --workers or --scheduler (which need the extra 'cluster') windows are settled in parallel;
    a window with more files than --chunk-files is counted in parts and committed once.

    Examples:
      asyncagg backfill ./data --since 2025-10-21T00:00:00Z

      asyncagg backfill s3://bucket --since 20251001t0000Z --until 20251101t0000Z --workers 8

      asyncagg backfill s3://bucket --since 20251001t0000Z --source archive --json
    """
    archive = source is BackfillSource.ARCHIVE
    if workers is not None and scheduler is not None:
        raise UsageError(f"--workers {workers} and --scheduler {scheduler}: expected one of them")
    if write and not archive:
        raise UsageError(f"--write with --source {source}: expected --source archive")
    if dry_run and archive:
        raise UsageError("--dry-run with --source archive: without --write, it changes nothing")
    if settings.store and "://" not in settings.store:
        # A worker may run in another directory.
        settings = msgspec.structs.replace(settings, store=str(Path(settings.store).absolute()))

    async def work() -> tuple[BackfillReport | RecomputeReport, Interval]:
        async with (
            base.progress("files", json=json) as bar,
            _engine(settings, workers, scheduler, bar) as (engine, followed),
        ):
            interval = interval_of(followed, since, until)
            progress = _print_lines() if json else _note_on(bar)
            if archive:
                return await recompute_all(
                    engine, followed, interval, write=write, progress=progress
                ), interval
            return await settle_all(
                engine, followed, interval, dry_run=dry_run, progress=progress
            ), interval

    base.configure_logs(settings, json=json)
    report, interval = base.execute(work)
    if json:
        base.print_json({"event": "done", **report.as_dict()})
    elif isinstance(report, BackfillReport):
        _print_settled(report, interval)
    else:
        _print_recomputed(report)
    raise typer.Exit(report.exit_code)


@asynccontextmanager
async def _engine(
    settings: Settings, workers: int | None, scheduler: str | None, bar: Bar
) -> AsyncIterator[tuple[Engine, Settings]]:
    """Start the engine, and return it with the settings of the store's record."""
    async with base.open_context(settings) as context:
        settings = context.settings
        if workers is None and scheduler is None:
            store = context.store
            if bar.is_shown:
                store = CountedStore(store, settings.runs_prefix, bar)
            yield LocalEngine(replace(context, store=store)), settings
            return
    try:
        from asyncagg.backfill import cluster  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(
            f"Dask: {error}; expected the extra 'cluster' of asyncagg, or neither --workers "
            "nor --scheduler"
        ) from error
    opening = (
        cluster.start_cluster(settings, workers)
        if workers is not None
        else cluster.join_cluster(settings, scheduler or "")
    )
    async with opening as engine:
        yield engine, settings


def _note_on(bar: Bar) -> Callable[[BackfillProgress], None]:
    """Return the function that shows the progress on a bar."""

    def note(progress: BackfillProgress) -> None:
        # Half of the work on a file is to fetch it, the other half to archive it. The store on this
        # machine notes each file, a cluster only what its tasks have done.
        bar.done = max(bar.done, (progress.files_done + progress.files_cleared) / 2)
        if progress.windows:  # else it is still listing
            bar.total, bar.is_final = progress.files or None, True
            troubles = f", {progress.troubles:,} in trouble" if progress.troubles else ""
            bar.note = f"{progress.windows_done:,}/{progress.windows:,} windows{troubles}"

    return note


def _print_lines() -> Callable[[BackfillProgress], None]:
    started = last = time.monotonic()

    def show(progress: BackfillProgress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            numbers = {"elapsed_seconds": round(now - started, 3), **msgspec.to_builtins(progress)}
            base.print_json({"event": "progress", **numbers})

    return show


def _print_settled(report: BackfillReport, interval: Interval) -> None:
    """Print the sums, and the windows with failures: there may be thousands of others."""
    span = f"from {base.time_text(interval.since)} to {base.time_text(interval.until)}"
    if not report.windows and report.complete:
        base.out.print(f"the inbox has no run files for the windows {span}")
        return
    base.out.print(span)
    names = ("counted", "late", "archived", "quarantined", "deferred", "left", "bytes")
    rows = [(name, getattr(report.total, name)) for name in names]
    base.print_table([("windows", len(report.windows)), *rows], "field", "value")
    for each in report.windows.values():
        if each.failure:
            base.print_text(f"window {each.window} failed: {each.failure}", style="red")
        elif each.tally.deferred:
            base.out.print(f"window {each.window}: {each.tally.deferred:,} files deferred")
    if report.workers_lost:
        base.print_text(
            f"{report.workers_lost:,} of the workers died or left: these numbers lack what they "
            "did of their last tasks, which others did again. `asyncagg verify` checks the result",
            style="red",
        )
    if not report.complete:
        base.out.print("time ran out: run it again to continue")


def _print_recomputed(report: RecomputeReport) -> None:
    count = len(report.windows)
    bad = [each for each in report.windows if each.differences or each.failure]
    aggregates = f"{base.number_of(count, 'aggregate')} checked"
    base.out.print(f"{aggregates}, {f'{len(bad):,} with problems' if bad else 'no differences'}")
    for each in bad:
        if each.failure:
            base.print_text(f"window {each.window}: {each.failure}", style="red")
        for key in each.missing:
            base.print_text(f"  {key}")
        for name, (actual, expected) in each.differences.items():
            numbers = isinstance(expected, int | float)
            what = f"is {actual}, expected {expected}" if numbers else "differs"
            base.print_text(f"window {each.window}: {name} {what}")
        if each.written:
            base.out.print(f"window {each.window}: replaced")
    if any(each.differences and not each.written for each in bad):
        base.out.print("pass --write to replace those that differ")
