"""The order of the job: list → chunk → window → fetch → fold → commit → archive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from asyncagg.job.chunk import WindowBatch
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.intake import Chunk, Intake, count_files
from asyncagg.job.journal import Journal, open_journal
from asyncagg.job.listing import KeyRange
from asyncagg.job.outcome import RunReport
from asyncagg.job.record import ensure_record, follow_record
from asyncagg.job.refusals import Refusals
from asyncagg.job.settle import Count, Settler
from asyncagg.job.slots import Slots
from asyncagg.model import RunFile, Window
from asyncagg.runtime.clock import utc_now
from asyncagg.runtime.tasks import task_group
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.retry import counting_retries

_log = logging.getLogger(__name__)

WINDOWS_AT_ONCE = 4
"""Windows in progress: while some wait for a commit, the others use the request slots."""


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
    with (
        counting_retries(report.retries),
        anyio.CancelScope(deadline=deadline.work_ends) as scope,
    ):
        context = await follow_record(context)
        async with open_journal(context, deadline, kept=keeps_journal) as journal:
            deferrals = Deferrals(context, refusals, at)
            settler = Settler(context, report, deadline, deferrals, count)
            intake = Intake(context, report, at, journal, only=only, committed=committed, keys=keys)
            pipeline = _Pipeline(
                context,
                report,
                intake=intake,
                settler=settler,
                journal=journal,
                deadline=deadline,
                progress=progress,
            )
            try:
                await pipeline.work()
            finally:
                report.oldest_deferred_seconds = deferrals.oldest_seconds
    is_cut_off = scope.cancelled_caught or report.untaken or report.total.left
    report.complete = report.listed and (dry_run or not is_cut_off)
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


class _Pipeline:
    """Settles the windows of a run side by side, chunk by chunk.

    While the last windows of a chunk are settled, the next chunk is filled and begun, so that the
    request slots stay busy.
    """

    def __init__(
        self,
        context: JobContext,
        report: RunReport,
        *,
        intake: Intake,
        settler: Settler,
        journal: Journal,
        deadline: Deadline,
        progress: Callable[[RunReport], object] | None,
    ) -> None:
        self._context = context
        self._report = report
        self._intake = intake
        self._settler = settler
        self._journal = journal
        self._deadline = deadline
        self._progress = progress
        self._turns = anyio.Semaphore(WINDOWS_AT_ONCE)
        self._is_recorded = False
        self._in_progress: dict[Window, anyio.Event] = {}

    async def work(self) -> None:
        async with task_group() as group:
            group.start_soon(self._intake.list_pages)
            # Both are child tasks: to cancel the task that holds a shield would interrupt it.
            group.start_soon(self._settle_all)

    async def _settle_all(self) -> None:
        try:
            with self._intake:
                await self._journal.open()  # while the first page is listed
                async with task_group() as group:
                    while await group.start(self._settle_chunk):
                        if self._is_late():
                            await self._intake.count_rest()
                            break
            await self._settle_suspects()
        finally:
            self._report.untaken += self._journal.untried

    @contextmanager
    def _new_chunk(self) -> Iterator[Chunk]:
        """Yield an empty chunk; then count the files whose turn did not come."""
        chunk: Chunk = {}
        try:
            yield chunk
        finally:
            self._report.untaken += count_files(chunk)

    def _is_late(self) -> bool:
        return self._deadline.intake_ends() <= anyio.current_time()

    async def _settle_chunk(self, *, task_status: TaskStatus[bool]) -> None:
        """Fill a chunk and settle it; the status is whether there may be another one."""
        async with AsyncExitStack() as stack:
            chunk = stack.enter_context(self._new_chunk())
            more = await self._intake.fill(chunk, stack)
            if self._journal.is_careful:
                await self._settle_carefully(chunk)
                task_status.started(more)
            else:
                await self._settle_at_once(chunk, partial(task_status.started, more))

    async def _settle_at_once(self, chunk: Chunk, begun: Callable[[], object]) -> None:
        """Settle the windows of a chunk side by side; call ``begun`` once all are in progress."""
        if chunk:
            await self._begin()
        async with task_group() as group:
            for window in sorted(chunk):
                await self._enter(window)
                group.start_soon(self._settle, window, chunk.pop(window), self._context.slots)
            begun()

    async def _settle_carefully(self, chunk: Chunk) -> None:
        """Settle the windows of a chunk one request after the other, and write down which files."""
        if chunk:
            await self._begin([file for each in chunk.values() for file in each.held])
        for window in sorted(chunk):
            await self._enter(window)
            await self._settle(window, chunk.pop(window), Slots(1))

    async def _begin(self, files: Sequence[RunFile] = ()) -> None:
        """Say in the store what this run works with, and on which files if they are few."""
        if self._report.dry_run:
            return
        async with task_group() as group:
            if not self._is_recorded:
                group.start_soon(ensure_record, self._context)
            group.start_soon(self._journal.begin, files)
        self._is_recorded = True

    async def _enter(self, window: Window) -> None:
        """Wait until a window may be settled: it is not in progress, and few others are."""
        while (in_progress := self._in_progress.get(window)) is not None:
            await in_progress.wait()
        await self._turns.acquire()
        self._in_progress[window] = anyio.Event()

    async def _settle(self, window: Window, files: WindowBatch, slots: Slots) -> None:
        if not self._intake.in_order:
            files.sort()
        report = self._report.window(window, self._context.layout.aggregate_key(window))
        try:
            if self._report.dry_run:
                report.tally.left += len(files)
            else:
                await self._settler.settle(window, files, report, slots=slots)
        finally:
            self._turns.release()
            self._in_progress.pop(window).set()
        if self._progress is not None:
            self._progress(self._report)

    async def _settle_suspects(self) -> None:
        """Settle what the last run may have died of, and defer what it has died of."""
        window_of = self._context.window_of
        while not self._is_late() and (part := self._journal.next_part()):
            with self._new_chunk() as chunk:
                for file in part:
                    batch = chunk.setdefault(window_of(file), WindowBatch(len(part)))
                    batch.held.append(file)
                await self._settle_carefully(chunk)
            self._journal.clear_part()
        while self._journal.poisonous:
            file = self._journal.poisonous[-1]
            await self._settler.defer(
                window_of(file),
                file,
                "runs died while they read it: expected a file that can be read. Replace or remove "
                f"it, or remove {self._context.layout.journal_key!r} to try it again",
            )
            self._journal.poisonous.pop()
