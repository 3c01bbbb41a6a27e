"""Settle a long interval: survey the inbox, share it out, and let an engine do the pieces.

What is done, and in which order, is decided here, in one process. Where it is done is the engine's
business: on this very event loop (`LocalEngine`), or on the workers of a cluster (see
`asyncagg.backfill.cluster`). A task is a small value that says what to do; it may be done twice, or
half and then again: settling is idempotent.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import anyio

from asyncagg.backfill.partial import FAN_IN, Part
from asyncagg.backfill.ranges import ranges
from asyncagg.backfill.survey import Piece, Segment, plan
from asyncagg.backfill.tasks import (
    LISTINGS,
    Aggregated,
    Clear,
    Commit,
    Fold,
    Folded,
    Merge,
    Recompute,
    Settle,
    Survey,
    Sweep,
    Task,
)
from asyncagg.errors import TransientError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.layout import Layout
from asyncagg.job.listing import KeyRange
from asyncagg.job.outcome import RunReport, WindowReport
from asyncagg.job.settle import MAX_COMMIT_ATTEMPTS
from asyncagg.model import Interval, Window
from asyncagg.runtime.tasks import for_each, task_group
from asyncagg.settings import Settings
from asyncagg.verify.recompute import RecomputeReport
from asyncagg.windows import check_interval, window_of

__all__ = ("BackfillProgress", "Engine", "LocalEngine", "backfill", "interval_of", "recompute_all")

_log = logging.getLogger(__name__)

T = TypeVar("T")

SHARES = 8
"""Pieces for each worker, at the least: none of them is idle for long at the end."""

PIECE = 10_000
"""The most files of a piece, if ``chunk_files`` does not say less: Dask takes memory of its own."""

PAGES = 10
"""Pages that one survey lists of a range; then the rest is listed side by side."""


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
        context: What they are done with.
    """

    workers = 1

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._turn = anyio.Lock()

    async def run(self, task: Task[T]) -> T:
        """See `Engine.run`."""
        async with self._turn:
            return await task.perform(self._context)


@dataclass(slots=True)
class BackfillProgress:
    """How far a backfill is.

    Attributes:
        windows: Windows found in all.
        windows_done: Those that are settled.
        files: Files found in all.
        files_done: Those that were fetched, or could not be.
        files_cleared: Those that are out of the inbox, or stay there for a reason.
        bytes: The size of the files in all.
        bytes_done: That of those that were fetched, or could not be.
        troubles: Files deferred or quarantined, and windows that failed or differ.
    """

    windows: int = 0
    windows_done: int = 0
    files: int = 0
    files_done: int = 0
    files_cleared: int = 0
    bytes: int = 0
    bytes_done: int = 0
    troubles: int = 0


def interval_of(
    settings: Settings, since: datetime, until: datetime | None, *, now: datetime | None = None
) -> Interval:
    """Return the interval to be settled: up to now at the latest, for a window has to end first.

    Raises:
        UsageError: It holds no window.
    """
    now = now or datetime.now(UTC)
    length = f"a window of {settings.window_minutes} minutes"
    check_interval(since, until)
    minutes = timedelta(minutes=settings.window_minutes)
    first = window_of(since - timedelta.resolution, settings.window_minutes).end
    last = window_of(min(until or now, now), settings.window_minutes).start
    if first + minutes > last and (until is None or until > now):
        raise UsageError(
            f"since {since.isoformat()}: expected a time early enough for {length} to have ended "
            f"by now, {now.isoformat(timespec='seconds')}",
            setting="since",
        )
    if first + minutes > last:
        raise UsageError(
            f"since {since.isoformat()} until {(until or now).isoformat()}: expected {length} "
            "to lie between them",
            setting="since",
        )
    return Interval(first, last)


async def backfill(
    engine: Engine,
    settings: Settings,
    interval: Interval,
    *,
    dry_run: bool = False,
    progress: Callable[[BackfillProgress], object] | None = None,
) -> RunReport:
    """Settle every window of an interval, on whatever the engine offers.

    Args:
        engine: Does the tasks.
        settings: The prefixes, the window and the bounds. A window with more than `PIECE`
            files (or ``chunk_files``, if that is less) is counted in parts by several workers and
            committed once.
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


async def recompute_all(
    engine: Engine,
    settings: Settings,
    interval: Interval,
    *,
    write: bool = False,
    progress: Callable[[BackfillProgress], object] | None = None,
) -> RecomputeReport:
    """Compute every aggregate of an interval again from the archive.

    Args:
        engine: Does the tasks.
        settings: The prefixes, the window and the bounds.
        interval: The windows.
        write: Whether to write the true aggregate over one that differs.
        progress: Called after each window.
    """
    report = RecomputeReport()
    status = BackfillProgress()

    async def one(window: Window) -> None:
        done = await engine.run(Recompute(window, write))
        report.windows.append(done)
        status.windows_done += 1
        status.files_done += done.files
        status.files_cleared += done.files
        status.bytes_done += done.bytes
        status.troubles += bool(done.failure or done.differences)
        if progress is not None:
            progress(status)

    with anyio.move_on_after(settings.max_seconds) as scope:
        windows = await engine.run(Aggregated(interval))
        status.windows = len(windows)
        await for_each(windows, one, workers=2 * engine.workers)
    report.complete = not scope.cancelled_caught
    report.windows.sort(key=lambda each: each.window)
    return report


@dataclass(slots=True)
class _Shared:
    """A window that is counted in parts.

    Attributes:
        keys: Where its files are.
        files: How many there are.
        cleared: How many of them have been cleared from the inbox.
        missing: How many pieces are not folded yet.
        parts: Its partial aggregates so far.
    """

    keys: list[KeyRange] = field(default_factory=list)
    files: int = 0
    cleared: int = 0
    missing: int = 0
    parts: list[Part] = field(default_factory=list)


class _Backfill:
    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        interval: Interval,
        *,
        dry_run: bool,
        progress: Callable[[BackfillProgress], object] | None,
    ) -> None:
        self.report = RunReport(at=interval.until.isoformat(), dry_run=dry_run)
        self._engine = engine
        self._settings = settings
        self._interval = interval
        self._layout = Layout(settings)
        self._progress = progress
        self._status = BackfillProgress()
        self._shared: dict[Window, _Shared] = {}

    async def work(self) -> None:
        pieces = plan(
            await self._survey(),
            most=min(PIECE, self._settings.chunk_files),
            shares=self._engine.workers * SHARES,
        )
        self._note(pieces)
        if self.report.dry_run:
            return
        async with task_group() as group:

            async def one(piece: Piece) -> None:
                await self._settle(piece)
                for window in await self._fold(piece):
                    group.start_soon(self._finish, window)

            # Twice as many as there are workers: each has its next piece at hand.
            await for_each(pieces, one, workers=2 * self._engine.workers)
        keep = frozenset(self._shared)
        await self._engine.run(Sweep(self._layout.work_prefix, self._interval, keep))

    async def _survey(self) -> list[Segment]:
        """List the inbox, side by side as far as its names allow; return its segments in order."""
        prefix = self._layout.runs_prefix
        # A directory is read from its start for each range: there, one after the other is faster.
        remote = "://" in self._settings.store
        waiting = ranges(prefix, *self._interval) if remote else [KeyRange()]
        pages = PAGES if remote else math.inf
        segments: list[Segment] = []
        while waiting:
            fair = min(len(waiting), 2 * self._engine.workers)
            several = max(math.ceil(len(waiting) / LISTINGS), fair)
            # Neighbours are likely to be as full: each goes to another worker.
            shares = [tuple(waiting[number::several]) for number in range(several)]
            found = await self._all([Survey(keys, self._interval, pages) for keys in shares])
            segments += [segment for each in found for segment in each.segments]
            waiting = sorted(
                (keys for each in found for keys in each.rest), key=lambda keys: keys.after
            )
        return sorted(segments, key=lambda segment: segment.keys.after)

    def _note(self, pieces: Sequence[Piece]) -> None:
        """Note what there is to do, for those who watch and for the windows in parts."""
        windows = Counter[Window]()
        for piece in pieces:
            windows.update(piece.files)
            self._status.bytes += piece.bytes
            for window in piece.shared:
                shared = self._shared.setdefault(window, _Shared())
                shared.keys += piece.keys
                shared.files += piece.files[window]
                shared.missing += 1
        self._status.files = windows.total()
        self._status.windows = len(windows)
        if self.report.dry_run:
            for window, files in sorted(windows.items()):
                self._report_of(window).tally.left += files
        self._tell()

    async def _settle(self, piece: Piece) -> None:
        if not piece.whole:
            return
        try:
            self.report.add(await self._engine.run(Settle(piece, self._interval.until)))
        except TransientError as error:
            for window in piece.whole:
                self._defer(window, piece.files[window], str(error))
        self._status.windows_done += len(piece.whole)
        self._status.files_cleared += sum(piece.files[window] for window in piece.whole)
        self._tell()

    async def _fold(self, piece: Piece) -> list[Window]:
        """Fold a piece's share of windows in parts; return those that were waiting for it."""
        if piece.shared:
            task = Fold(piece.keys, piece.shared, self._interval.until)
            try:
                self._take(await self._engine.run(task))
            except TransientError as error:
                for window in piece.shared:
                    self._defer(window, piece.files[window], str(error))
        for window in piece.shared:
            self._shared[window].missing -= 1
        self._status.files_done += sum(piece.files.values())
        self._status.bytes_done += piece.bytes
        self._tell()
        return [window for window in piece.shared if not self._shared[window].missing]

    def _take(self, folded: Folded) -> None:
        self.report.add(folded.report)
        for part in folded.made:
            self._shared[part.window].parts.append(part)

    async def _finish(self, window: Window) -> None:
        """Commit a window whose parts are all there, and clear its files from the inbox."""
        shared = self._shared[window]
        reason = f"others committed it {MAX_COMMIT_ATTEMPTS} times meanwhile"
        try:
            for _ in range(MAX_COMMIT_ATTEMPTS):
                if await self._commit(window, shared.parts):
                    break
                shared.parts = []
                task = Fold(tuple(shared.keys), frozenset({window}), self._interval.until)
                self._take(await self._engine.run(task))
            else:
                self._defer(window, shared.files, reason)
        except TransientError as error:
            self._defer(window, shared.files, str(error))
        self._status.windows_done += 1
        self._status.files_cleared += shared.files - shared.cleared
        self._tell()

    async def _commit(self, window: Window, parts: Sequence[Part]) -> bool:
        """Commit a window; return whether that is done, or its files are to be folded anew."""
        if parts:
            roots = await self._reduce(window, [part.key for part in sorted(parts)])
            if roots is None:
                return False
            committed = await self._engine.run(Commit(window, tuple(roots)))
            if committed is None:
                return False
            self.report.add_window(committed)
            if committed.failure:
                return True
            await self._clear(window, parts)
        await self._engine.run(Sweep(self._layout.work_folder(window), self._interval))
        del self._shared[window]
        return True

    async def _clear(self, window: Window, parts: Sequence[Part]) -> None:
        shared = self._shared[window]

        async def one(part: Part) -> None:
            cleared = await self._engine.run(Clear(window, part.key))
            self.report.add_window(cleared)
            shared.cleared += cleared.tally.resolved
            self._status.files_cleared += cleared.tally.resolved
            self._tell()

        await for_each(parts, one, workers=2 * self._engine.workers)

    async def _reduce(self, window: Window, keys: Sequence[str]) -> Sequence[str] | None:
        """Merge partial aggregates, several at a time and side by side, until few are left."""
        while len(keys) > FAN_IN:
            # Neighbours, so that what they become does not overlap either.
            share = math.ceil(len(keys) / math.ceil(len(keys) / FAN_IN))
            groups = [tuple(keys[start : start + share]) for start in range(0, len(keys), share)]
            merged = await self._all([Merge(window, group) for group in groups])
            keys = [key for key in merged if key is not None]
            if len(keys) < len(groups):
                return None
        return keys

    async def _all(self, tasks: Sequence[Task[T]]) -> list[T]:
        """Do tasks side by side; return what they return, in their order."""
        done: dict[int, T] = {}

        async def one(item: tuple[int, Task[T]]) -> None:
            index, task = item
            done[index] = await self._engine.run(task)
            self._tell()

        await for_each(enumerate(tasks), one, workers=2 * self._engine.workers)
        return [done[index] for index in range(len(tasks))]

    def _tell(self) -> None:
        if self._progress is not None:
            total = self.report.total
            failed = len(self.report.failures)
            self._status.troubles = total.deferred + total.quarantined + failed
            self._progress(self._status)

    def _defer(self, window: Window, files: int, reason: str) -> None:
        self._report_of(window).tally.deferred += files
        _log.warning("window deferred", extra={"window": window.name, "reason": reason})

    def _report_of(self, window: Window) -> WindowReport:
        key = self._layout.aggregate_key(window)
        return self.report.windows.setdefault(window.name, WindowReport(window.name, key))
