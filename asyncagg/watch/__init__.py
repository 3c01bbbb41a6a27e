"""Settle every window as it ends, on a machine that stays up: a container, a virtual machine."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from asyncagg.errors import AsyncaggError, TransientError, UsageError
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.runtime import logs
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import window_of

__all__ = ("DELAY_SECONDS", "Schedule", "Watch", "WatchedRun")

DELAY_SECONDS = 5.0
"""What a run starts after the end of its window: what is being written then is in the listing."""

_GLANCE_SECONDS = 15.0
"""The longest pause before the clock is looked at again: it may be set, the machine may sleep."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When runs are due: at the end of each window, plus a delay. Nothing here drifts.

    A run is named by the end of the window that makes it due; what starts it is the wall clock.

    Attributes:
        minutes: The length of a window.
        delay: How long after the end of a window its run starts, in seconds.
    """

    minutes: int
    delay: float = DELAY_SECONDS

    def __post_init__(self) -> None:
        """Check the delay.

        Raises:
            UsageError: It is negative, or not below the length of a window.
        """
        longest = self.length.total_seconds()
        if not 0 <= self.delay < longest:
            raise UsageError(
                f"delay {self.delay!r}: expected a number of seconds from 0 to below {longest:g}, "
                "the length of a window"
            )

    @property
    def length(self) -> timedelta:
        """The length of a window."""
        return timedelta(minutes=self.minutes)

    def starts(self, end: datetime) -> datetime:
        """Return when the run of the window that ends then is due."""
        return end + timedelta(seconds=self.delay)

    def latest(self, now: datetime) -> datetime:
        """Return the end of the newest window whose run is due by ``now``."""
        return window_of(now - timedelta(seconds=self.delay), self.minutes).start

    def following(self, last: datetime, now: datetime) -> datetime:
        """Return the end of the window that is to be run after ``last``.

        1. Runs are due that were not made (the last took long, the machine slept): the newest of
           them settles the windows of all.
        2. None is due yet: the one after the last. A clock that was set back a little does not
           make a run twice.
        3. The clock was set back by more than a window: the next by the clock as it is now,
           for what the last one went by was wrong.
        """
        due = self.latest(now)
        if due > last:
            return due
        if last - due <= self.length:
            return last + self.length
        return due + self.length

    def missed(self, last: datetime, end: datetime) -> int:
        """Return how many runs were due between two that were made."""
        return max(0, (end - last) // self.length - 1)

    def seconds_for(self, now: datetime) -> float:
        """Return how long a run that starts ``now`` may take: it is to end before the next is due.

        One that starts late, with less than half a window left, takes the place of the next too.
        """
        left = (self.starts(self.latest(now) + self.length) - now).total_seconds()
        length = self.length.total_seconds()
        return left if left >= length / 2 else left + length


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """What became of one run of a watch.

    Attributes:
        end: Windows that ended by then were settled.
        seconds: How long it took.
        missed: How many runs before it were due and not made; it settled their windows too.
        report: What it did, where it came to its end.
        error: What ended it, where it did not.
    """

    end: datetime
    seconds: float
    missed: int
    report: RunReport | None = None
    error: AsyncaggError | None = None

    @property
    def trouble(self) -> str:
        """Why it was no success, or empty."""
        if self.report is None:
            return str(self.error)
        if self.report.failures:
            return "; ".join(f"window {name}: {why}" for name, why in self.report.failures.items())
        total = self.report.total
        if self.report.complete or total.counted or total.resolved:
            return ""
        return "its time ran out before anything was done"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        told = {"missed": self.missed, "duration_seconds": round(self.seconds, 3)}
        if self.report is not None:
            return {"event": "run", **told, **self.report.as_dict()}
        error = {"error": type(self.error).__name__, "reason": self.trouble}
        return {"event": "failed", **told, "at": self.end.isoformat(), **error}


def _now() -> datetime:
    return datetime.now(UTC)


class Watch:
    """Runs the job once at the start, and then after the end of each window, one at a time.

    Args:
        settings: The prefixes, the window and the bounds. ``max_seconds`` is the time of each run;
            where it is not set, a run has the time until the next is due.
        delay: How long after the end of a window its run starts, in seconds.
        told: Called with each run, after it.
        now: The wall clock.
        sleep: The pause, in seconds.

    Raises:
        UsageError: The delay is not accepted.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        delay: float = DELAY_SECONDS,
        told: Callable[[WatchedRun], object],
        now: Callable[[], datetime] = _now,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._settings = settings
        self._schedule = Schedule(settings.window_minutes, delay)
        self._told = told
        self._now = now
        self._sleep = sleep
        self._stopping = False
        self._ends = math.inf
        self._working: anyio.CancelScope | None = None
        self._pausing: anyio.CancelScope | None = None

    def stop(self, grace: float = 0.0) -> None:
        """Begin no further run; `run` returns when the one under way has ended.

        Args:
            grace: How long that one may still take, in seconds. Then it is cancelled, which loses
                nothing: the next one goes on where it stopped.
        """
        self._stopping = True
        self._ends = min(self._ends, anyio.current_time() + grace)
        if self._pausing is not None:
            self._pausing.cancel()
        if self._working is not None:
            self._working.deadline = self._ends

    async def run(self, store: Store) -> None:
        """Run until `stop` is called, or this is cancelled.

        A run that fails is told and logged, and the next one tries again: the trouble may pass,
        and a permission may be granted meanwhile. Only the first must not fail for good.

        Args:
            store: Where the objects live; it stays open all the while.

        Raises:
            AsyncaggError: The first run failed, and not by trouble that passes.
        """
        if self._stopping:
            return
        last = self._schedule.latest(self._now())
        await self._run(store, last, first=True)
        while (end := await self._next(last)) is not None:
            await self._run(store, end, missed=self._missed(last, end))
            last = end

    async def _next(self, last: datetime) -> datetime | None:
        """Wait for the next run to be due; return the end of its window, or None to stop."""
        with anyio.CancelScope() as self._pausing:
            while not self._stopping:
                now = self._now()
                end = self._schedule.following(last, now)
                wait = (self._schedule.starts(end) - now).total_seconds()
                if wait <= 0:
                    return end
                await self._sleep(min(wait, _GLANCE_SECONDS))
        return None

    def _missed(self, last: datetime, end: datetime) -> int:
        missed = self._schedule.missed(last, end)
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

    async def _run(
        self, store: Store, end: datetime, *, missed: int = 0, first: bool = False
    ) -> None:
        logs.correlation_id.set(uuid.uuid4().hex)
        seconds = self._settings.max_seconds or self._schedule.seconds_for(self._now())
        report, failure = None, None
        began = anyio.current_time()
        with anyio.CancelScope(deadline=self._ends) as self._working:
            try:
                report = await run(
                    store, self._settings, at=end, deadline=Deadline.after(seconds), now=self._now
                )
            except AsyncaggError as error:
                if first and not isinstance(error, TransientError):
                    raise
                failure = error
                told = {"error": type(error).__name__, "reason": str(error)}
                _log.error("failed", extra=told)
        if self._working.cancelled_caught:
            _log.warning("the run under way was cut short; the next one goes on")
        else:
            self._told(WatchedRun(end, anyio.current_time() - began, missed, report, failure))
