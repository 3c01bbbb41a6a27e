"""Run the job after the end of each window."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self, TypeAlias

import anyio

from asyncagg.errors import AsyncaggError, TransientError, UsageError
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.runtime import logs
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.watch.schedule import DELAY_SECONDS, Schedule

_MAX_SLEEP_SECONDS = 15.0
"""The clock is read again after this time: it may be set, and the machine may be suspended."""

Opening: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens the store, as `asyncagg.store.opening.open_store` does."""

_log = logging.getLogger(__name__)
_now = partial(datetime.now, UTC)


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """The outcome of one run of a watch.

    Attributes:
        end: Windows that ended by then were settled.
        seconds: How long it took.
        missed: How many runs were due before it and not made; it settled their windows too.
        report: What it did; None if it failed.
        error: The error that ended it, if it failed.
    """

    end: datetime
    seconds: float
    missed: int
    report: RunReport | None = None
    error: Exception | None = None

    @property
    def trouble(self) -> str:
        """Why it did not succeed, or empty."""
        if self.report is None:
            return str(self.error) or type(self.error).__name__
        if self.report.failures:
            return "; ".join(f"window {name}: {why}" for name, why in self.report.failures.items())
        total = self.report.total
        if self.report.complete or total.counted or total.resolved:
            return ""
        return "its time ran out before anything was done"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        common = {"missed": self.missed, "duration_seconds": round(self.seconds, 3)}
        if self.report is not None:
            return {"event": "run", **common, **self.report.as_dict()}
        error = {"error": type(self.error).__name__, "reason": self.trouble}
        return {"event": "failed", **common, "at": self.end.isoformat(), **error}


class _KeptStore:
    """A store that is opened when it is first needed, and kept as long as the context is open."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._stack = AsyncExitStack()
        self._store: Store | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(self, seconds: float) -> Store:
        """Return the store; it is opened within this time, if it is not open yet."""
        if self._store is None:
            try:
                with anyio.fail_after(seconds):
                    self._store = await self._stack.enter_async_context(self._opening())
            except TimeoutError as error:
                message = f"the store could not be opened within {seconds:.0f} seconds"
                raise TransientError(message, operation="open") from error
        return self._store


class Watcher:
    """Runs the job at the start and then after the end of each window, one run at a time.

    Args:
        settings: The settings. ``max_seconds`` limits each run; by default, a run has the time
            until the next one is due.
        delay: How long after the end of a window its run starts, in seconds.
        on_run: Called after each run.
        now: The wall clock.
        sleep: The pause, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        delay: float = DELAY_SECONDS,
        on_run: Callable[[WatchedRun], object],
        now: Callable[[], datetime] = _now,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._settings = settings
        self._schedule = Schedule(settings.window_minutes, delay)
        self._on_run = on_run
        self._now = now
        self._sleep = sleep
        self._stopping = False
        self._stops_at = math.inf
        self._run_scope: anyio.CancelScope | None = None
        self._pause_scope: anyio.CancelScope | None = None

    def stop(self, grace: float = 0.0) -> None:
        """Start no further run; `run` returns when the current one has ended.

        Args:
            grace: How long the current run may still take, in seconds. Then it is cancelled, which
                loses nothing: the next run continues.
        """
        self._stopping = True
        self._stops_at = min(self._stops_at, anyio.current_time() + grace)
        if self._pause_scope is not None:
            self._pause_scope.cancel()
        if self._run_scope is not None:
            self._run_scope.deadline = self._stops_at

    async def run(self, opening: Opening) -> None:
        """Run until `stop` is called, or this is cancelled.

        After a run that fails, the store is opened again for the next one: the failure may be
        temporary, and a missing permission or bucket may be there by then.

        Args:
            opening: Opens the store.

        Raises:
            UsageError: The settings are wrong.
        """
        if self._stopping:
            return
        end: datetime | None = self._schedule.latest(self._now())
        missed = 0
        while end is not None:
            async with _KeptStore(opening) as kept:
                succeeded = True
                while succeeded and end is not None:
                    succeeded = await self._run(kept, end, missed)
                    last, end = end, await self._next(end)
                    missed = self._missed(last, end) if end else 0

    async def _next(self, last: datetime) -> datetime | None:
        """Wait until the next run is due; return the end of its window, or None to stop."""
        with anyio.CancelScope() as self._pause_scope:
            while not self._stopping:
                now = self._now()
                end = self._schedule.next_after(last, now)
                wait = (self._schedule.due_at(end) - now).total_seconds()
                if wait <= 0:
                    return end
                await self._sleep(min(wait, _MAX_SLEEP_SECONDS))
        return None

    def _missed(self, last: datetime, end: datetime) -> int:
        missed = max(0, (end - last) // self._schedule.length - 1)
        if missed:
            _log.warning(
                "runs were due and not made; this one settles all windows that have ended",
                extra={"missed": missed},
            )
        if end <= last:
            _log.warning(
                "the clock was set back", extra={"last": last.isoformat(), "next": end.isoformat()}
            )
        return missed

    async def _run(self, kept: _KeptStore, end: datetime, missed: int) -> bool:
        """Do one run, and return whether the store is usable."""
        logs.correlation_id.set(uuid.uuid4().hex)
        seconds = self._settings.max_seconds or self._schedule.time_limit(self._now())
        report, failure = None, None
        started = anyio.current_time()
        with anyio.CancelScope(deadline=self._stops_at) as self._run_scope:
            try:
                store = await kept.open(seconds)
                left = seconds - (anyio.current_time() - started)
                report = await run(
                    store, self._settings, at=end, deadline=Deadline.after(left), now=self._now
                )
            except UsageError:
                raise
            except Exception as error:  # noqa: BLE001 - the next run may not meet it
                failure = error
                unexpected = None if isinstance(error, AsyncaggError) else error
                _log.error(
                    "failed",
                    extra={"error": type(error).__name__, "reason": str(error)},
                    exc_info=unexpected,
                )
        if self._run_scope.cancelled_caught:
            _log.warning("the run was cut short; the next one continues")
        else:
            self._on_run(WatchedRun(end, anyio.current_time() - started, missed, report, failure))
        return failure is None
