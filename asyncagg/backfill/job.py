"""The order of a backfill, decided in one process: survey, settle or fold, commit, archive.

Where the tasks run is decided by the engine: on this event loop, or on the workers of a cluster.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import anyio

from asyncagg.backfill import tasks
from asyncagg.backfill.engine import Engine
from asyncagg.backfill.partial import (
    FAN_IN,
    Part,
    archive_part,
    commit_parts,
    merge_parts,
    remove_parts,
)
from asyncagg.backfill.ranges import ranges
from asyncagg.backfill.survey import Piece, Segment, plan
from asyncagg.errors import StoreError, TransientError
from asyncagg.job.aggregates import retry_commit
from asyncagg.job.layout import Layout
from asyncagg.job.listing import KeyRange
from asyncagg.job.outcome import RunReport, WindowReport
from asyncagg.job.record import ensure_record
from asyncagg.job.refusals import Refusals
from asyncagg.model import Interval, Window
from asyncagg.runtime.tasks import for_each, task_group
from asyncagg.settings import Settings
from asyncagg.verify.recompute import RecomputeReport, recompute

_log = logging.getLogger(__name__)

T = TypeVar("T")

PIECES_PER_WORKER = 8
"""At least so many, so that no worker is idle for long at the end."""

MAX_PIECE = 10_000
"""The most files of a piece, unless ``chunk_files`` is less: Dask needs memory of its own."""

SURVEY_PAGES = 10
"""Pages that one task lists of a range; the rest is divided and listed by several."""


@dataclass(slots=True)
class BackfillProgress:
    """The progress of a backfill.

    Attributes:
        windows: Windows found.
        windows_done: Windows that are settled.
        files: Files found.
        files_done: Files that were fetched, or could not be.
        files_cleared: Files that left the inbox, or stay there for a reason.
        bytes: Size of the files found.
        bytes_done: Size of the files that were fetched, or could not be.
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


@dataclass(slots=True)
class BackfillReport(RunReport):
    """What a backfill did.

    Attributes:
        workers_lost: Workers of the cluster that died or left. What such a worker did of its last
            task is not in the tallies, because another worker did the task again.
    """

    workers_lost: int = 0


async def backfill(
    engine: Engine,
    settings: Settings,
    interval: Interval,
    *,
    dry_run: bool = False,
    progress: Callable[[BackfillProgress], object] | None = None,
) -> BackfillReport:
    """Settle every window of an interval.

    Args:
        engine: Runs the tasks.
        settings: The prefixes, the window and the bounds. A window with more than `MAX_PIECE`
            files (or ``chunk_files``, if that is less) is counted in parts by several workers and
            committed once.
        interval: The windows.
        dry_run: Only list and report; change nothing.
        progress: Called after each task.

    Raises:
        ConfigurationError: The store cannot be used.
        TransientError: The listing failed after all retries; nothing is lost.
    """
    job = _Backfill(engine, settings, interval, dry_run=dry_run, progress=progress)
    with anyio.move_on_after(settings.max_seconds) as scope:
        await job.work()
        job.refusals.check()
    if scope.cancelled_caught:
        job.report.complete = False
    job.report.workers_lost = await engine.workers_lost()
    return job.report


async def recompute_all(
    engine: Engine,
    settings: Settings,
    interval: Interval,
    *,
    write: bool = False,
    progress: Callable[[BackfillProgress], object] | None = None,
) -> RecomputeReport:
    """Recompute every aggregate of an interval from the archive.

    Args:
        engine: Runs the tasks.
        settings: The prefixes, the window and the bounds.
        interval: The windows.
        write: Whether to replace an aggregate that differs.
        progress: Called after each window.
    """
    report = RecomputeReport()
    status = BackfillProgress()

    async def recompute_one(window: Window) -> None:
        result = await engine.run(recompute, window, write=write)
        report.windows.append(result)
        status.windows_done += 1
        status.files_done += result.files
        status.files_cleared += result.files
        status.bytes_done += result.bytes
        status.troubles += bool(result.failure or result.differences)
        if progress is not None:
            progress(status)

    with anyio.move_on_after(settings.max_seconds) as scope:
        windows = await engine.run(tasks.list_windows, interval)
        status.windows = len(windows)
        await for_each(windows, recompute_one, workers=2 * engine.workers)
    report.complete = not scope.cancelled_caught
    report.windows.sort(key=lambda each: each.window)
    return report


@dataclass(slots=True)
class _Shared:
    """A window that is counted in parts.

    Attributes:
        keys: The ranges of its files.
        files: How many files it has.
        archived: How many of them have left the inbox.
        unfolded: How many pieces are not folded yet.
        parts: Its partial aggregates so far.
        stale: Whether a commit of the parts has failed, so that they must be folded again.
    """

    keys: list[KeyRange] = field(default_factory=list)
    files: int = 0
    archived: int = 0
    unfolded: int = 0
    parts: list[Part] = field(default_factory=list)
    stale: bool = False


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
        self.report = BackfillReport(at=interval.until.isoformat(), dry_run=dry_run)
        self.refusals = Refusals(most=MAX_PIECE)
        self._engine = engine
        self._settings = settings
        self._interval = interval
        self._layout = Layout(settings)
        self._progress = progress
        self._status = BackfillProgress()
        self._shared: dict[Window, _Shared] = {}
        # Twice as many tasks as workers: each worker has its next task at hand.
        self._at_once = 2 * engine.workers

    async def work(self) -> None:
        segments = await self._survey()
        self.report.listed = True
        pieces = plan(
            segments,
            most=min(MAX_PIECE, self._settings.chunk_files),
            shares=self._engine.workers * PIECES_PER_WORKER,
        )
        self._note(pieces)
        if self.report.dry_run:
            return
        if pieces:  # the plan is made by these settings, so they must be those of the record
            await self._engine.run(ensure_record)
        async with task_group() as group:

            async def work_on(piece: Piece) -> None:
                await self._settle(piece)
                for window in await self._fold(piece):
                    group.start_soon(self._finish, window)

            await for_each(pieces, work_on, workers=self._at_once)
        await self._engine.run(
            remove_parts, self._layout.work_prefix, self._interval, frozenset(self._shared)
        )

    async def _survey(self) -> list[Segment]:
        """List the inbox, several ranges at a time; return its segments in key order."""
        # A directory is read from its start for each range, so one range is faster.
        remote = "://" in self._settings.store
        waiting = ranges(self._layout.runs_prefix, *self._interval) if remote else [KeyRange()]
        pages = SURVEY_PAGES if remote else math.inf
        segments: list[Segment] = []
        while waiting:
            fair = min(len(waiting), self._at_once)
            shares = max(math.ceil(len(waiting) / tasks.LISTINGS), fair)
            # Adjacent ranges have about as many keys, so each goes to another worker.
            surveyed = await self._all(
                partial(
                    self._engine.run,
                    tasks.survey_ranges,
                    tuple(waiting[number::shares]),
                    self._interval,
                    pages,
                )
                for number in range(shares)
            )
            segments += [segment for each in surveyed for segment in each.segments]
            waiting = sorted(
                (keys for each in surveyed for keys in each.rest), key=lambda keys: keys.after
            )
        return sorted(segments, key=lambda segment: segment.keys.after)

    def _note(self, pieces: Sequence[Piece]) -> None:
        """Note what there is to do, for the progress and for the windows in parts."""
        windows = Counter[Window]()
        for piece in pieces:
            windows.update(piece.files)
            self._status.bytes += piece.bytes
            for window in piece.shared:
                shared = self._shared.setdefault(window, _Shared())
                shared.keys += piece.keys
                shared.files += piece.files[window]
                shared.unfolded += 1
        self._status.files = windows.total()
        self._status.windows = len(windows)
        if self.report.dry_run:
            for window, files in sorted(windows.items()):
                self._window_report(window).tally.left += files
        self._show_progress()

    async def _settle(self, piece: Piece) -> None:
        """Settle the windows that have all their files in a piece."""
        if not piece.whole:
            return
        try:
            until = self._interval.until
            self._add(await self._engine.run(tasks.settle_windows, piece, until))
        except StoreError as error:
            for window in piece.whole:
                self._defer(window, piece.files[window], error)
        self._status.windows_done += len(piece.whole)
        self._status.files_cleared += sum(piece.files[window] for window in piece.whole)
        self._show_progress()

    async def _fold(self, piece: Piece) -> list[Window]:
        """Fold the files of a piece whose windows are in parts; return the complete windows."""
        if piece.shared:
            try:
                await self._fold_parts(piece.keys, piece.shared)
            except StoreError as error:
                for window in piece.shared:
                    self._defer(window, piece.files[window], error)
        for window in piece.shared:
            self._shared[window].unfolded -= 1
        self._status.files_done += sum(piece.files.values())
        self._status.bytes_done += piece.bytes
        self._show_progress()
        return [window for window in piece.shared if not self._shared[window].unfolded]

    async def _fold_parts(self, keys: Iterable[KeyRange], windows: frozenset[Window]) -> None:
        until = self._interval.until
        folded = await self._engine.run(tasks.fold_windows, tuple(keys), windows, until)
        self._add(folded)
        for part in folded.parts:
            self._shared[part.window].parts.append(part)

    def _add(self, settled: tasks.Settled) -> None:
        self.report.add(settled.report)
        self.refusals.merge(settled.refusals)

    async def _finish(self, window: Window) -> None:
        """Commit a window that has all its parts, and archive its files."""
        shared = self._shared[window]
        try:
            await retry_commit(lambda: self._commit(window))
        except StoreError as error:
            self._defer(window, shared.files, error)
        self._status.windows_done += 1
        self._status.files_cleared += shared.files - shared.archived
        self._show_progress()

    async def _commit(self, window: Window) -> None:
        """Commit the parts of a window, after folding them again if that failed before.

        Raises:
            PreconditionFailedError: Another runner was faster.
            OverlapError: Likewise.
        """
        shared = self._shared[window]
        if shared.stale:
            shared.parts.clear()
            await self._fold_parts(shared.keys, frozenset({window}))
        shared.stale = True  # unless this attempt succeeds
        if shared.parts:
            keys = await self._merge(window, [part.key for part in sorted(shared.parts)])
            committed = await self._engine.run(commit_parts, window, keys)
            self.report.add_window(committed)
            if committed.failure:
                return
            self.refusals.accept("put")
            await self._archive(window)
        work_folder = self._layout.work_folder(window)
        await self._engine.run(remove_parts, work_folder, self._interval)
        del self._shared[window]

    async def _archive(self, window: Window) -> None:
        shared = self._shared[window]

        async def archive(part: Part) -> None:
            report, refusals = await self._engine.run(archive_part, window, part.key)
            self.refusals.merge(refusals)
            self.report.add_window(report)
            shared.archived += report.tally.resolved
            self._status.files_cleared += report.tally.resolved
            self._show_progress()

        await for_each(shared.parts, archive, workers=self._at_once)

    async def _merge(self, window: Window, keys: Sequence[str]) -> Sequence[str]:
        """Merge partial aggregates, several at a time, until few are left."""
        while len(keys) > FAN_IN:
            # Neighbours are merged, so that the results do not overlap either.
            share = math.ceil(len(keys) / math.ceil(len(keys) / FAN_IN))
            keys = await self._all(
                partial(self._engine.run, merge_parts, window, keys[start : start + share])
                for start in range(0, len(keys), share)
            )
        return keys

    async def _all(self, calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
        """Make several calls at a time; return their results in order."""
        results: dict[int, T] = {}

        async def call(item: tuple[int, Callable[[], Awaitable[T]]]) -> None:
            index, function = item
            results[index] = await function()
            self._show_progress()

        await for_each(enumerate(calls), call, workers=self._at_once)
        return [results[index] for index in sorted(results)]

    def _show_progress(self) -> None:
        if self._progress is not None:
            total = self.report.total
            failed = len(self.report.failures)
            self._status.troubles = total.deferred + total.quarantined + failed
            self._progress(self._status)

    def _defer(self, window: Window, files: int, error: StoreError) -> None:
        self._window_report(window).tally.deferred += files
        _log.warning("window deferred", extra={"window": window.name, "reason": str(error)})
        if not isinstance(error, TransientError):
            self.refusals.add(error)

    def _window_report(self, window: Window) -> WindowReport:
        return self.report.window(window, self._layout.aggregate_key(window))
