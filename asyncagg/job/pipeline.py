"""The one place that knows the order: list → chunk → window → fetch → fold → commit → archive."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from asyncagg.aggregate.spool import Spool, open_spool
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.deadline import Deadline
from asyncagg.job.layout import KeyKind, Layout
from asyncagg.job.listing import KeyRange, listed
from asyncagg.job.outcome import RunReport, WindowReport
from asyncagg.job.settle import Settler
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import for_each, task_group
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import window_selector

__all__ = ("run",)

_log = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 4
"""Windows settled side by side: with few files each, one alone would wait on the network."""

GROWTH = 4
"""A chunk has at least one file for so many that its window's aggregate names already."""

MOST_BATCHES = 10
"""How many times ``chunk_files`` a chunk has at the most."""


def _now() -> datetime:
    return datetime.now(UTC)


async def run(
    store: Store,
    settings: Settings,
    *,
    at: datetime | None = None,
    deadline: Deadline | None = None,
    dry_run: bool = False,
    only: Callable[[Window], bool] | None = None,
    keys: Sequence[KeyRange] = (KeyRange(),),
    settler: Callable[..., Settler] = Settler,
    now: Callable[[], datetime] = _now,
    temporary: Path | None = None,
    progress: Callable[[RunReport], object] | None = None,
) -> RunReport:
    """Settle every window that has ended: count its new run files once, then archive them.

    Args:
        store: Where the objects live.
        settings: The prefixes, the window and the bounds.
        at: Windows that ended by then are settled; default: now. The same moment does the same
            work again, so a retried event passes the same one.
        deadline: When to be done; the report says what is left.
        dry_run: Only list and report, change nothing.
        only: Settle only the windows for which this is true.
        keys: List only these parts of the inbox, in key order.
        settler: Makes what settles the windows; it is called as `Settler` is.
        now: The clock of ``aggregation_timestamp``.
        temporary: Folder for rows that do not fit in memory.
        progress: Called with the report so far after each window of each chunk.

    Returns:
        What was done, and what is left.

    Raises:
        ConfigurationError: The store's set-up is at fault (no bucket, no permission, no guard).
        TransientError: The listing itself stayed in trouble; nothing is lost.
    """
    job = _Run(
        store,
        settings,
        at=at or now(),
        deadline=deadline or Deadline(),
        dry_run=dry_run,
        only=only,
        keys=keys,
        settler=settler,
        now=now,
        temporary=temporary,
        progress=progress,
    )
    with anyio.CancelScope(deadline=job.deadline.work_ends) as scope:
        await job.work()
    if scope.cancelled_caught:
        job.report.complete = False
    _log.info("run", extra=_summary(job.report))
    return job.report


def _summary(report: RunReport) -> dict[str, Any]:
    seconds = {f"{step}_seconds": round(spent, 3) for step, spent in report.seconds.items()}
    return {
        "at": report.at,
        "windows": len(report.windows),
        "ignored": report.ignored,
        "waiting": report.waiting,
        "complete": report.complete,
        "failed": len(report.failures),
        **asdict(report.total),
        **seconds,
    }


class _Run:
    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        at: datetime,
        deadline: Deadline,
        dry_run: bool,
        only: Callable[[Window], bool] | None,
        keys: Sequence[KeyRange],
        settler: Callable[..., Settler],
        now: Callable[[], datetime],
        temporary: Path | None,
        progress: Callable[[RunReport], object] | None,
    ) -> None:
        self.deadline = deadline
        self.report = RunReport(at=at.isoformat(), dry_run=dry_run)
        self._store = store
        self._settings = settings
        self._at = at
        self._only = only
        self._oldest = datetime.max.replace(tzinfo=UTC)
        self._keys = keys
        self._progress = progress
        self._layout = Layout(settings)
        self._window_of = window_selector(settings.window_by, settings.window_minutes)
        self._temporary = temporary
        self._settler = settler(
            store,
            settings,
            layout=self._layout,
            deadline=deadline,
            seconds=self.report.seconds,
            now=now,
            temporary=temporary,
        )

    async def work(self) -> None:
        async with task_group() as group:
            send, receive = anyio.create_memory_object_stream[Sequence[RunFile]](1)
            group.start_soon(self._list, send)
            # Both as tasks: what they shield, a cancellation of this very task would not spare.
            group.start_soon(self._settle_chunks, receive, group.cancel_scope)

    async def _list(self, pages: ObjectSendStream[Sequence[RunFile]]) -> None:
        """Send the listing page by page, one page ahead of the work."""
        async with pages:
            before = perf_counter()
            async for page in self._pages():
                self.report.seconds["list"] += perf_counter() - before
                try:
                    await pages.send(page)
                except anyio.BrokenResourceError:
                    return  # the settling was cancelled first: nobody takes the rest
                before = perf_counter()

    async def _pages(self) -> AsyncIterator[Sequence[RunFile]]:
        for part in self._keys:
            async for page in listed(self._store, self._layout.runs_prefix, part):
                yield page

    async def _settle_chunks(
        self, pages: ObjectReceiveStream[Sequence[RunFile]], listing: anyio.CancelScope
    ) -> None:
        more = True
        async with pages:
            while more:
                async with AsyncExitStack() as stack:
                    chunk: dict[Window, WindowBatch] = {}
                    more = await self._fill(chunk, pages, stack)
                    await self._settle_chunk(chunk)
                if more and self.deadline.intake_ends() <= anyio.current_time():
                    self.report.complete = False
                    listing.cancel()
                    return

    async def _fill(
        self,
        chunk: dict[Window, WindowBatch],
        pages: ObjectReceiveStream[Sequence[RunFile]],
        stack: AsyncExitStack,
    ) -> bool:
        """Fill a chunk from the listing; say whether there may be more of it."""
        spool: Spool | None = None
        size = 0
        async for page in pages:
            size += self._plan(page, chunk)
            if size < self._settings.chunk_files:
                continue
            if size >= self._enough(chunk):
                return True
            if spool is None:
                opened = open_spool(self._settings.spool_bytes, self._temporary)
                spool = await stack.enter_async_context(opened)
            for group in chunk.values():  # it is one: see `_enough`
                await group.put_away(spool)
        return False

    def _enough(self, chunk: dict[Window, WindowBatch]) -> int:
        """Return how many files are enough for a chunk.

        Each commit writes again all that its window's aggregate names. So where a chunk is of one
        window alone, it grows with what this run has committed of it: a window costs as much per
        file if it is large as if it is small.
        """
        least = self._settings.chunk_files
        if len(chunk) > 1:
            return least
        named = sum(map(self._settler.committed, chunk))
        return min(max(least, named // GROWTH), MOST_BATCHES * least)

    def _plan(self, page: Sequence[RunFile], chunk: dict[Window, WindowBatch]) -> int:
        """Sort a page's run files into their windows; return how many are to be settled."""
        planned = 0
        held: list[RunFile] = []
        held_of: Window | None = None
        for file in page:
            kind = self._layout.kind(file.key)
            if kind is not KeyKind.RUN_FILE:
                self.report.ignored += kind is KeyKind.IGNORED
                continue
            window = self._window_of(file)
            if window.end > self._at:
                self.report.waiting += 1
            elif self._only is None or self._only(window):
                if file.last_modified < self._oldest:
                    self._note_age(file)
                if window is not held_of:  # mostly it is that of the file before
                    if window not in chunk:
                        chunk[window] = WindowBatch(self._settings.chunk_files)
                    held_of, held = window, chunk[window].held
                held.append(file)
                planned += 1
        return planned

    def _note_age(self, file: RunFile) -> None:
        self._oldest = file.last_modified
        age = (self._at - file.last_modified).total_seconds()
        self.report.oldest_seconds = max(self.report.oldest_seconds, age)

    async def _settle_chunk(self, chunk: dict[Window, WindowBatch]) -> None:
        at_once = max(1, min(WINDOWS_AT_ONCE, len(chunk), self._settings.concurrency))
        workers = self._settings.concurrency // at_once

        async def one(item: tuple[Window, WindowBatch]) -> None:
            window, files = item
            report = self._window_report(window)
            if self.report.dry_run:
                report.tally.left += len(files)
            else:
                await self._settler.settle(window, files, report, workers=workers)
            if self._progress is not None:
                self._progress(self.report)

        await for_each(sorted(chunk.items()), one, workers=at_once)

    def _window_report(self, window: Window) -> WindowReport:
        key = self._layout.aggregate_key(window)
        return self.report.windows.setdefault(window.name, WindowReport(window.name, key))
