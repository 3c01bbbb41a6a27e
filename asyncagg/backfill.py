"""Settle a long interval: survey the inbox, share it out, and let an engine do the pieces.

What is done, and in which order, is decided here, in one process. Where it is done is the engine's
business: on this very event loop (`LocalEngine`), or on the workers of a cluster (see
`asyncagg.cluster`). A task is a small value that says what to do; it may be done twice, or half
and then again: settling is idempotent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TypeVar, runtime_checkable

import anyio

from asyncagg.errors import TransientError, UsageError
from asyncagg.keyspace import KeyRange, ranges
from asyncagg.limits import for_each, task_group
from asyncagg.model import Window
from asyncagg.outcome import RunReport, WindowReport
from asyncagg.layout import Layout
from asyncagg.partial import FAN_IN, Bench, Folder, clear, commit, merge, sweep
from asyncagg.pipeline import run
from asyncagg.settings import Settings
from asyncagg.settle import RESETTLES
from asyncagg.survey import Interval, Piece, Segment, plan, survey
from asyncagg.windows import window_of

__all__ = ("Engine", "LocalEngine", "Progress", "Task", "backfill", "interval_of")

_log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

SHARES = 8
"""Pieces for each worker, at the least: none of them is idle for long at the end."""

_LISTINGS = 8
"""Ranges that one survey task lists side by side."""


@runtime_checkable
class Task(Protocol[T_co]):
    """Something to be done, here or on another machine; it can be pickled."""

    async def perform(self, bench: Bench) -> T_co:
        """Do it."""
        ...


class Engine(Protocol):
    """What does the tasks."""

    @property
    def workers(self) -> int:
        """How many tasks it does at a time."""
        ...

    async def run(self, task: Task[T]) -> T:
        """Do a task and return what it returns.

        Raises:
            AsyncaggError: The task's failure.
        """
        ...


class LocalEngine:
    """Does the tasks on this event loop, one at a time: each has its own requests side by side.

    Args:
        bench: What they are done with.
    """

    workers = 1

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._turn = anyio.Lock()

    async def run(self, task: Task[T]) -> T:
        """See `Engine.run`."""
        async with self._turn:
            return await task.perform(self._bench)


@dataclass(slots=True)
class Progress:
    """How far a backfill is.

    Attributes:
        report: What was done so far.
        pieces: Pieces of work in all; 0 until the survey is done.
        pieces_done: Those that are settled or folded.
        files: Files found in all.
        bytes: Their size.
        windows: Windows found in all.
        windows_done: Those that are settled.
    """

    report: RunReport
    pieces: int = 0
    pieces_done: int = 0
    files: int = 0
    bytes: int = 0
    windows: int = 0
    windows_done: int = 0


def interval_of(
    settings: Settings, since: datetime, until: datetime | None, *, now: datetime | None = None
) -> Interval:
    """Return the interval to be settled: up to now at the latest, for a window has to end first.

    Raises:
        UsageError: It holds no window.
    """
    now = now or datetime.now(UTC)
    last = window_of(min(until or now, now), settings.window_minutes).start
    if window_of(since, settings.window_minutes).end > last:
        raise UsageError(
            f"--since {since.isoformat()} --until {(until or now).isoformat()}: expected an "
            f"interval with a window of {settings.window_minutes} minutes that has ended"
        )
    return Interval(since, last)


# ------------------------------------------------------------------------------ tasks


@dataclass(frozen=True, slots=True)
class _Survey:
    keys: tuple[KeyRange, ...]
    interval: Interval

    async def perform(self, bench: Bench) -> list[list[Segment]]:
        found: dict[KeyRange, list[Segment]] = {}

        async def one(keys: KeyRange) -> None:
            found[keys] = await survey(bench.store, bench.settings, keys, self.interval)

        await for_each(self.keys, one, workers=_LISTINGS)
        return [found[keys] for keys in self.keys]


@dataclass(frozen=True, slots=True)
class _Settle:
    piece: Piece
    until: datetime

    async def perform(self, bench: Bench) -> RunReport:
        return await run(
            bench.store,
            bench.settings,
            at=self.until,
            only=self.piece.whole.__contains__,
            keys=self.piece.keys,
            now=bench.now,
            temporary=bench.temporary,
        )


@dataclass(frozen=True, slots=True)
class _Folded:
    report: RunReport
    made: list[tuple[Window, str]]


@dataclass(frozen=True, slots=True)
class _Fold:
    keys: tuple[KeyRange, ...]
    windows: frozenset[Window]
    until: datetime

    async def perform(self, bench: Bench) -> _Folded:
        made: list[tuple[Window, str]] = []

        def folder(*args: object, **more: object) -> Folder:
            return Folder(*args, made=made, **more)  # type: ignore[arg-type]

        report = await run(
            bench.store,
            bench.settings,
            at=self.until,
            only=self.windows.__contains__,
            keys=self.keys,
            settler=folder,
            now=bench.now,
            temporary=bench.temporary,
        )
        return _Folded(report, made)


@dataclass(frozen=True, slots=True)
class _Merge:
    window: Window
    keys: tuple[str, ...]

    async def perform(self, bench: Bench) -> str | None:
        return await merge(bench, self.window, self.keys)


@dataclass(frozen=True, slots=True)
class _Commit:
    window: Window
    keys: tuple[str, ...]

    async def perform(self, bench: Bench) -> WindowReport | None:
        return await commit(bench, self.window, self.keys)


@dataclass(frozen=True, slots=True)
class _Clear:
    window: Window
    key: str

    async def perform(self, bench: Bench) -> WindowReport:
        return await clear(bench, self.window, self.key)


@dataclass(frozen=True, slots=True)
class _Sweep:
    windows: tuple[Window, ...]

    async def perform(self, bench: Bench) -> None:
        await sweep(bench, self.windows)


# ------------------------------------------------------------------------------ the order


async def backfill(
    engine: Engine,
    settings: Settings,
    interval: Interval,
    *,
    dry_run: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> RunReport:
    """Settle every window of an interval, on whatever the engine offers.

    Args:
        engine: Does the tasks.
        settings: The prefixes, the window and the bounds. A window with more than ``chunk_files``
            files is counted in parts by several workers and committed once.
        interval: The windows.
        dry_run: Only list and report, change nothing.
        progress: Called after each task.

    Raises:
        ConfigurationError: The store's set-up is at fault.
        TransientError: The listing itself stayed in trouble; nothing is lost.
    """
    job = _Backfill(engine, settings, interval, dry_run=dry_run, progress=progress)
    with anyio.move_on_after(settings.max_seconds) as scope:
        await job.work()
    if scope.cancelled_caught:
        job.report.complete = False
    return job.report


@dataclass(slots=True)
class _Shared:
    """A window that is counted in parts.

    Attributes:
        keys: Where its files are.
        missing: How many pieces are not folded yet.
        parts: The keys of its partial aggregates so far.
    """

    keys: list[KeyRange] = field(default_factory=list)
    missing: int = 0
    parts: list[str] = field(default_factory=list)


class _Backfill:
    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        interval: Interval,
        *,
        dry_run: bool,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self.report = RunReport(at=interval.until.isoformat(), dry_run=dry_run)
        self._engine = engine
        self._settings = settings
        self._interval = interval
        self._layout = Layout(settings)
        self._told = progress
        self._progress = Progress(self.report)
        self._shared: dict[Window, _Shared] = {}

    async def work(self) -> None:
        pieces = plan(
            await self._survey(),
            most=self._settings.chunk_files,
            shares=self._engine.workers * SHARES,
        )
        files = Counter[Window]()
        ...
