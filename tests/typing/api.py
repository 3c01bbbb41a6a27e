"""Calls as users write them. Nothing runs this: mypy checks their types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import asyncagg
from asyncagg.backfill import BackfillReport, LocalEngine, backfill, interval_of
from asyncagg.errors import ConfigurationError, StoreError, UsageError
from asyncagg.handler import lambda_handler
from asyncagg.job.context import JobContext
from asyncagg.rollup import Period, RollupReport, rollup
from asyncagg.store import Body, Store
from asyncagg.store.memory import MemoryStore


async def run_on_a_directory() -> int:
    """The example of the README."""
    settings = asyncagg.settings_from({"store": "data", "window_by": "name", "concurrency": "64"})
    assert_type(settings, asyncagg.Settings)
    async with asyncagg.open_store(settings) as store:
        assert_type(store, Store)
        report = await asyncagg.run(store, settings)
    assert_type(report, asyncagg.RunReport)
    assert_type(report.total, asyncagg.Tally)
    assert_type(report.total.counted, int)
    for name, window in report.windows.items():
        assert_type(name, str)
        assert_type(window, asyncagg.WindowReport)
    assert_type(report.as_dict(), dict[str, Any])
    return report.exit_code


async def run_with_everything(environ: dict[str, str]) -> None:
    """Settings from an environment, a time, a deadline, chosen windows, and progress."""
    settings = asyncagg.from_environment(environ, window_minutes=15, endpoint_url=None)
    yesterday = datetime.now(UTC) - timedelta(days=1)

    def recent(window: asyncagg.Window) -> bool:
        return window.start >= yesterday

    archived: list[int] = []

    def on_progress(report: asyncagg.RunReport) -> None:
        archived.append(report.total.archived)

    async with asyncagg.open_store(settings) as store:
        await asyncagg.run(
            store,
            settings,
            at=yesterday,
            deadline=asyncagg.Deadline.after(290.0),
            dry_run=True,
            only=recent,
            progress=on_progress,
        )


async def run_in_memory() -> None:
    """The store that ships for tests is a `Store` like any other."""
    store: Store = MemoryStore()
    await store.put("runs/20251021t1302Z_a.json", b"{}")
    async for page in store.list_pages("runs/"):
        assert_type(list(page), list[asyncagg.RunFile])
    assert_type(await store.get("runs/20251021t1302Z_a.json"), Body)
    await asyncagg.run(store, asyncagg.Settings(store="memory"))


async def long_intervals(store: Store, settings: asyncagg.Settings) -> None:
    """Backfill and rollup as functions."""
    interval = interval_of(settings, datetime(2025, 10, 1, tzinfo=UTC), None)
    engine = LocalEngine(JobContext(store, settings))
    assert_type(await backfill(engine, settings, interval), BackfillReport)
    assert_type(await rollup(store, settings, Period.DAY), RollupReport)


def errors(error: asyncagg.AsyncaggError) -> str:
    """Errors have attributes."""
    match error:
        case StoreError(operation=operation, key=key):
            return assert_type(operation, str) + assert_type(key, str)
        case UsageError() | ConfigurationError():
            return str(error)
        case _:
            return ""


def on_lambda(event: dict[str, object], context: object) -> str:
    """The handler returns plain values."""
    return str(lambda_handler(event, context)["body"])
