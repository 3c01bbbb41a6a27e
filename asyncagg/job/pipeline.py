"""The order of the job: list → chunk → window → fetch → fold → commit → archive."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from asyncagg.aggregate.spool import Spool
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.journal import Journal, open_journal
from asyncagg.job.layout import KeyKind
from asyncagg.job.listing import KeyRange, find_disorder, list_range
from asyncagg.job.outcome import RunReport
from asyncagg.job.record import ensure_record, follow_record
from asyncagg.job.refusals import Refusals
from asyncagg.job.settle import Count, Settler
from asyncagg.model import RunFile, Window
from asyncagg.runtime.clock import utc_now
from asyncagg.runtime.tasks import for_each, task_group
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.retry import counting_retries

_log = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 4
"""Windows settled at once: one window with few files would leave most requests unused."""

CHUNK_GROWTH = 4
"""A chunk with a single window may grow to a quarter of what this run has committed of it."""

MAX_CHUNK_GROWTH = 10
"""A chunk has at most ten times ``chunk_files``."""


async def run(
    store: Store,
    settings: Settings,
    *,
    at: datetime | None = None,
    deadline: Deadline | None = None,
    dry_run: bool = False,
    only: Callable[[Window], bool] | None = None,
    keys: Sequence[KeyRange] = (KeyRange(),),
    now: Callable[[], datetime] = utc_now,
    temporary: Path | None = None,
    progress: Callable[[RunReport], object] | None = None,
) -> RunReport:
    """Settle every window that has ended: count its new run files once, then archive them.

    Args:
        store: Where the objects are.
        settings: The prefixes, the window and the bounds. The store's record replaces those that
            were not given.
        at: Windows that ended by this moment are settled; default: now. Pass the same moment when
            you retry an event: the run then selects the same windows.
        deadline: When to be done; the report has what is left.
        dry_run: Only list and report; change nothing.
        only: Settle only the windows for which it returns true.
        keys: List only these ranges of the inbox, in key order.
        now: The clock of ``aggregation_timestamp``.
        temporary: Folder for data that does not fit in memory; default: the system's.
        progress: Called with the report so far after each window of each chunk.

    Returns:
        What was done, and what is left.

    Raises:
        UsageError: A setting differs from the store's record.
        ConfigurationError: The store cannot be used (no bucket, no permission, no guard).
        TransientError: The listing failed after all retries; nothing is lost.
    """
    committer, refusals = Committer(), Refusals()
    report = await run_pipeline(
        JobContext(store, settings, temporary, now),
        committer.count,
        refusals,
        keeps_journal=True,
        committed=committer.committed,
        at=at,
        deadline=deadline,
        dry_run=dry_run,
        only=only,
        keys=keys,
        progress=progress,
    )
    refusals.check()
    return report


async def run_pipeline(
    context: JobContext,
    count: Count,
    refusals: Refusals,
    *,
    keeps_journal: bool = False,
    committed: Callable[[Window], int] = lambda _: 0,
    at: datetime | None = None,
    deadline: Deadline | None = None,
    dry_run: bool = False,
    only: Callable[[Window], bool] | None = None,
    keys: Sequence[KeyRange] = (KeyRange(),),
    progress: Callable[[RunReport], object] | None = None,
) -> RunReport:
    """Do the work of `run` with another way to count files.

    Args:
        context: The dependencies.
        count: How the files of a window become counted.
        refusals: Notes the requests that the store refuses; the caller checks it.
        keeps_journal: Whether to look for files that kill a run.
        committed: Returns how many files of a window are committed by now.
        at: This and the following arguments are those of `run`.
        deadline: When to be done.
        dry_run: Only list and report.
        only: Which windows to settle.
        keys: Which ranges of the inbox to list.
        progress: Called with the report so far.
    """
    at = at or context.now()
    deadline = deadline or Deadline()
    report = RunReport(at=at.isoformat(), dry_run=dry_run)
    deferrals = Deferrals(context, refusals, at)
    with (
        counting_retries(report.retries),
        anyio.CancelScope(deadline=deadline.work_ends) as scope,
    ):
        context = await follow_record(context)
        async with open_journal(context, deadline, kept=keeps_journal) as journal:
            settler = Settler(context, report, deadline, deferrals, count)
            planner = _Planner(context, report, at, only=only, committed=committed, journal=journal)
            pipeline = _Pipeline(
                context, report, deadline, planner, settler, journal, keys, progress
            )
            await pipeline.work()
    is_cut_off = scope.cancelled_caught or report.untaken or report.total.left
    report.complete = report.listed and (dry_run or not is_cut_off)
    report.oldest_deferred_seconds = deferrals.oldest_seconds
    _log.info("run", extra=_summary(report))
    return report


def _summary(report: RunReport) -> dict[str, Any]:
    seconds = {f"{step}_seconds": round(spent, 3) for step, spent in report.seconds.items()}
    retries = {f"{reason}_retries": count for reason, count in report.retries.items()}
    return {
        "at": report.at,
        "windows": len(report.windows),
        "ignored": report.ignored,
        "ignored_keys": report.ignored_keys,
        "waiting": report.waiting,
        "backlog": report.backlog,
        "listed": report.listed,
        "complete": report.complete,
        "failed_windows": len(report.failures),
        **asdict(report.total),
        **seconds,
        **retries,
    }


class _Planner:
    """Sorts the listed files into the windows of a chunk."""

    def __init__(
        self,
        context: JobContext,
        report: RunReport,
        at: datetime,
        *,
        only: Callable[[Window], bool] | None,
        committed: Callable[[Window], int],
        journal: Journal,
    ) -> None:
        self._layout = context.layout
        self._window_of = context.window_of
        self._chunk_files = context.settings.chunk_files
        self._report = report
        self._at = at
        self._only = only
        self._committed = committed
        self._journal = journal
        self._oldest = datetime.max.replace(tzinfo=UTC)
        self._last_key = ""
        self.in_order = True

    def check_order(self, page: Sequence[RunFile]) -> None:
        """Set `in_order` to false if a page is out of key order or repeats a key."""
        if self.in_order and find_disorder(self._last_key, page):
            self.in_order = False
            _log.warning("listing out of order", extra={"after": self._last_key})
        if page:
            self._last_key = page[-1].key

    def add(self, page: Sequence[RunFile], chunk: dict[Window, WindowBatch]) -> int:
        """Add the run files of a page to a chunk; return how many are to be settled."""
        planned = 0
        held: list[RunFile] = []
        held_window: Window | None = None
        watched = self._journal.watched  # usually empty
        for file in page:
            kind = self._layout.kind(file.key)
            if kind is not KeyKind.RUN_FILE:
                if kind is KeyKind.IGNORED:
                    self._report.ignore(file.key)
                continue
            window = self._window_of(file)
            if window.end > self._at:
                self._report.waiting += 1
            elif self._only is None or self._only(window):
                if watched and (file.key, file.etag) in watched:
                    self._journal.hold_back(file)
                    continue
                if file.last_modified < self._oldest:
                    self._note_age(file)
                if window is not held_window:  # usually the same as for the previous file
                    if window not in chunk:
                        chunk[window] = WindowBatch(self._chunk_files)
                    held_window, held = window, chunk[window].held
                held.append(file)
                planned += 1
        return planned

    def chunk_size(self, chunk: dict[Window, WindowBatch]) -> int:
        """Return how many files fill a chunk.

        Each commit writes the whole aggregate of its window again. So the chunks of a large window
        grow with what this run has committed of it, which keeps the cost per file constant.
        """
        if self._journal.is_careful:
            return 1
        if len(chunk) > 1 or not self.in_order:
            return self._chunk_files
        grown = sum(map(self._committed, chunk)) // CHUNK_GROWTH
        return min(max(self._chunk_files, grown), MAX_CHUNK_GROWTH * self._chunk_files)

    def _note_age(self, file: RunFile) -> None:
        self._oldest = file.last_modified
        age = (self._at - file.last_modified).total_seconds()
        self._report.oldest_seconds = max(self._report.oldest_seconds, age)


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """Lists the inbox one page ahead, and settles it chunk by chunk."""

    context: JobContext
    report: RunReport
    deadline: Deadline
    planner: _Planner
    settler: Settler
    journal: Journal
    keys: Sequence[KeyRange]
    progress: Callable[[RunReport], object] | None

    async def work(self) -> None:
        async with task_group() as group:
            send, receive = anyio.create_memory_object_stream[Sequence[RunFile]](1)
            group.start_soon(self._list, send)
            # Both are child tasks: to cancel the task that holds a shield would interrupt it.
            group.start_soon(self._settle_chunks, receive)

    async def _list(self, pages: ObjectSendStream[Sequence[RunFile]]) -> None:
        """Send the listing page by page."""
        async with pages:
            before = perf_counter()
            async for page in self._pages():
                self.report.seconds["list"] += perf_counter() - before
                try:
                    await pages.send(page)
                except anyio.BrokenResourceError:
                    return  # the receiver was cancelled first
                before = perf_counter()

    async def _pages(self) -> AsyncIterator[Sequence[RunFile]]:
        prefix = self.context.settings.runs_prefix
        for keys in self.keys:
            async for page in list_range(self.context.store, prefix, keys):
                yield page

    async def _settle_chunks(self, pages: ObjectReceiveStream[Sequence[RunFile]]) -> None:
        more = True
        held: list[Sequence[RunFile]] = []
        async with pages:
            while more:
                async with AsyncExitStack() as stack:
                    chunk = stack.enter_context(self._new_chunk())
                    more = await self._fill(chunk, pages, held, stack)
                    await self._settle_chunk(chunk, careful=self.journal.is_careful)
                if more and self._is_late():
                    more = False
                    await self._count_rest(pages, held)
        self.report.listed = True  # and each page is taken or counted
        await self._settle_suspects()

    @contextmanager
    def _new_chunk(self) -> Iterator[dict[Window, WindowBatch]]:
        """Yield an empty chunk; then count the files whose turn did not come."""
        chunk: dict[Window, WindowBatch] = {}
        try:
            yield chunk
        finally:
            self.report.untaken += sum(map(len, chunk.values()))

    def _is_late(self) -> bool:
        return self.deadline.intake_ends() <= anyio.current_time()

    async def _settle_suspects(self) -> None:
        """Settle what the last run may have died of, and defer what it has died of."""
        window_of = self.context.window_of
        while not self._is_late() and (part := self.journal.next_part()):
            with self._new_chunk() as chunk:
                for file in part:
                    batch = chunk.setdefault(window_of(file), WindowBatch(len(part)))
                    batch.held.append(file)
                await self._settle_chunk(chunk, careful=True)
        self.report.untaken += self.journal.untried
        for file in self.journal.poisonous:
            await self.settler.defer(
                window_of(file),
                file,
                "runs died while they read it: expected a file that can be read. Replace or remove "
                f"it, or remove {self.context.layout.journal_key!r} to try it again",
            )

    async def _count_rest(
        self, pages: ObjectReceiveStream[Sequence[RunFile]], held: Sequence[Sequence[RunFile]]
    ) -> None:
        """Count the files that are too late for this run, in the time that is left."""
        for page in held:
            self.report.untaken += self.planner.add(page, {})
        async for page in pages:
            self.report.untaken += self.planner.add(page, {})

    async def _fill(
        self,
        chunk: dict[Window, WindowBatch],
        pages: ObjectReceiveStream[Sequence[RunFile]],
        held: list[Sequence[RunFile]],
        stack: AsyncExitStack,
    ) -> bool:
        """Fill a chunk from the listing; return whether the listing may have more pages.

        A page that cannot be added goes into ``held``, for the next chunk.
        """
        spool: Spool | None = None
        size = sum(self.planner.add(page, chunk) for page in held)
        held.clear()
        async for page in pages:
            self.planner.check_order(page)
            if spool is not None and not self.planner.in_order:
                held.append(page)  # only files in memory can be sorted
                return True
            size += self.planner.add(page, chunk)
            if size >= self.planner.chunk_size(chunk):
                return True
            if size < self.context.settings.chunk_files:
                continue
            if spool is None:
                spool = await stack.enter_async_context(self.context.open_spool())
            for batch in chunk.values():  # only one: see `chunk_size`
                await batch.move_to(spool)
        return False

    async def _settle_chunk(self, chunk: dict[Window, WindowBatch], *, careful: bool) -> None:
        """Settle the windows of a chunk side by side, or if ``careful`` one request at a time."""
        if chunk and not self.report.dry_run:
            await ensure_record(self.context)
            files = [file for each in chunk.values() for file in each.held] if careful else []
            await self.journal.begin(files)
        requests = 1 if careful else self.context.settings.concurrency
        at_once = max(1, min(WINDOWS_AT_ONCE, len(chunk), requests))
        workers = requests // at_once

        async def settle(window: Window) -> None:
            files = chunk.pop(window)
            if not self.planner.in_order:
                files.sort()
            report = self.report.window(window, self.context.layout.aggregate_key(window))
            if self.report.dry_run:
                report.tally.left += len(files)
            else:
                await self.settler.settle(window, files, report, workers=workers)
            if self.progress is not None:
                self.progress(self.report)

        await for_each(sorted(chunk), settle, workers=at_once)
