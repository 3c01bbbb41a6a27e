"""Settle: bring one window's files of one chunk from the inbox to counted and archived.

The order of the calls:

    Settler.settle
      retry_commit -> Committer.count      again if another runner commits first
        Settlement.load                    the aggregate and its etag
        Committer._fold                    for each batch: find_known, then fetch
        Committer._commit                  the files become counted here
      Settlement.move_files                copy, then delete; what is in a pack is only deleted
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import NamedTuple

import anyio

from asyncagg.aggregate.reader import Known, StoredAggregate
from asyncagg.aggregate.rows import RowSpool
from asyncagg.errors import AggregateError, StoreError
from asyncagg.job.aggregates import load_aggregate, retry_commit
from asyncagg.job.archive import Mover
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.fetch import Fetcher
from asyncagg.job.outcome import RunReport, Tally, WindowReport
from asyncagg.job.packing import LostPack, Packer, open_packer, remove_lost
from asyncagg.job.redelivered import find_counted
from asyncagg.job.run_files import RunFileReader
from asyncagg.job.slots import Slots
from asyncagg.model import Pack, RunFile, Window

_log = logging.getLogger(__name__)

_MAX_NAMES = 20

_PENDING, _COUNTED, _PACKED, _QUARANTINED = range(4)  # bytes(n) is n pending files


class Marked(NamedTuple):
    """Files by their outcome: counted and in no pack, counted and in a pack, quarantined."""

    counted: list[RunFile]
    packed: list[RunFile]
    quarantined: list[RunFile]


class Outcomes:
    """Which files of a batch are counted, in a pack or not, or quarantined, in their order.

    Attributes:
        tally: The numbers of the other files; `Settlement.move_files` adds the moved files.
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self._marks = bytearray()

    @property
    def to_move(self) -> int:
        """How many files are counted or quarantined, so that they leave the inbox."""
        return len(self._marks) - self._marks.count(_PENDING)

    def add(self, files: Sequence[RunFile], known: Known) -> None:
        """Add the next files, of which these are counted or quarantined."""
        counted, packed, quarantined, _ = known
        self._marks.extend(
            _PACKED
            if file.key in packed
            else _COUNTED
            if file.key in counted
            else _QUARANTINED
            if file.key in quarantined
            else _PENDING
            for file in files
        )

    def add_left(self, files: Sequence[RunFile]) -> None:
        """Add the next files, all of which are left because time ran out."""
        self.tally.left += len(files)
        self._marks.extend(bytes(len(files)))

    async def split(self, batch: WindowBatch) -> AsyncIterator[Marked]:
        """Yield the marked files of the batch, some at a time."""
        start = 0
        async for files in batch.batches():
            marked = list(zip(files, self._marks[start : start + len(files)], strict=True))
            start += len(files)
            yield Marked(
                [file for file, mark in marked if mark == _COUNTED],
                [file for file, mark in marked if mark == _PACKED],
                [file for file, mark in marked if mark == _QUARANTINED],
            )


@dataclass(frozen=True, slots=True)
class Settlement:
    """The settling of one window's files of one chunk.

    Attributes:
        context: The dependencies.
        window: The window.
        files: Some of its run files.
        report: The window's.
        run_report: The report of the run, for the time spent in each step.
        reader: Reads run files.
        deadline: When to stop.
        deferrals: The files of the run that stay in the inbox.
        slots: The slots of its requests.
        lost_packs: The packs of commits that failed because another runner committed first.
    """

    context: JobContext
    window: Window
    files: WindowBatch
    report: WindowReport
    run_report: RunReport
    reader: RunFileReader
    deadline: Deadline
    deferrals: Deferrals
    slots: Slots
    lost_packs: list[LostPack] = field(default_factory=list)

    async def open_rows(self, stack: AsyncExitStack) -> RowSpool:
        """Open an empty spool for the rows of new files."""
        spools = [await stack.enter_async_context(self.context.open_spool()) for _ in range(2)]
        return RowSpool(*spools)

    async def load(self, stack: AsyncExitStack) -> StoredAggregate | None:
        """Read the aggregate of the window, if there is one."""
        with self.run_report.timed("load"):
            spool = await stack.enter_async_context(self.context.open_spool())
            stored = await load_aggregate(self.context, self.window, spool)
            await remove_lost(self.context, stored, self.lost_packs)
            return stored

    def open_packer(self) -> AbstractAsyncContextManager[Packer | None]:
        """Open a writer of packs for one commit; None if files are archived as objects."""
        if self.context.settings.archive_format == "files":
            return nullcontext()
        return open_packer(self.context, self.window)

    async def complete(self, packer: Packer | None) -> Sequence[Pack]:
        """Complete the uploads of a packer, and return the packs."""
        if packer is None:
            return ()
        with self.run_report.timed("archive"):
            return await packer.complete()

    async def find_known(self, files: Sequence[RunFile], stored: StoredAggregate | None) -> Known:
        """Return the keys of files that were settled before."""
        with self.run_report.timed("load"):
            if stored is None:
                return Known(set(), set(), set(), {})
            layout = self.context.layout
            known = await stored.known(files, layout.was_restored)
            doubtful = {
                file: known.redelivered[file.key] for file in files if file.key in known.redelivered
            }
            counted, packed = await find_counted(
                self.context.store,
                layout,
                doubtful,
                stored.packs,
                slots=self.slots,
            )
            known.counted.update(counted, packed)
            known.packed.update(packed)
        return known

    async def fetch(
        self,
        files: Sequence[RunFile],
        rows: RowSpool,
        packer: Packer | None,
        tally: Tally,
        *,
        until: float,
    ) -> Fetcher:
        """Fetch files, and return what was folded."""
        mover = Mover(self.context, tally, self.slots, self.deferrals)
        load, unknown = partial(self.reader.load, gate=packer), None
        if _log.isEnabledFor(logging.DEBUG):
            unknown = Counter[str]()
            load = partial(load, unknown=unknown)
        fetcher = Fetcher(
            load,
            mover.copy_to_quarantine,
            rows,
            tally,
            self.deferrals,
            packs=packer,
            unknown=unknown,
        )
        with self.run_report.timed("fetch"):
            await fetcher.fetch(files, slots=self.slots, until=until)
        if unknown:
            names = dict(unknown.most_common(_MAX_NAMES))
            _log.debug("unknown fields", extra={"window": self.window.name, "names": names})
        return fetcher

    async def move_files(self, outcomes: Outcomes) -> None:
        """Move the counted files to the archive, and the quarantined ones out of the inbox."""
        tally = outcomes.tally
        mover = Mover(self.context, tally, self.slots, self.deferrals)
        before = tally.resolved
        try:
            with self.run_report.timed("archive"):
                async for files in outcomes.split(self.files):
                    await mover.archive(files.counted)
                    await mover.remove_packed(files.packed)
                    await mover.move_to_quarantine(files.quarantined)
        finally:  # also on cancellation: report the files that are moved
            tally.left += outcomes.to_move - (tally.resolved - before)
            self.report.tally.add(tally)


Count = Callable[[Settlement], Awaitable[Outcomes]]
"""Counts the files of a settlement that are not counted yet, and returns the outcomes of all.

If another runner commits first, it raises `PreconditionFailedError` and is called again.
"""


class Settler:
    """Settles the windows of one run.

    Args:
        context: The dependencies.
        run: The report of the run.
        deadline: When to stop fetching, and when to stop.
        deferrals: The files of the run that stay in the inbox.
        count: How files become counted.
    """

    def __init__(
        self,
        context: JobContext,
        run: RunReport,
        deadline: Deadline,
        deferrals: Deferrals,
        count: Count,
    ) -> None:
        self._context = context
        self._run = run
        self._deadline = deadline
        self._count = count
        self._reader = RunFileReader(context.store, context.settings)
        self._deferrals = deferrals

    async def settle(
        self, window: Window, files: WindowBatch, report: WindowReport, *, slots: Slots
    ) -> None:
        """Settle some files of one window, and add the outcomes to its report."""
        started = perf_counter()
        settlement = Settlement(
            self._context,
            window,
            files,
            report,
            self._run,
            self._reader,
            self._deadline,
            self._deferrals,
            slots,
        )
        try:
            outcomes = await self._count_files(settlement)
        except AggregateError as error:
            report.failure = str(error)
            report.tally.failed += len(files)
            _log.error("window failed", extra={"window": window.name, "reason": str(error)})
        except StoreError as error:
            report.tally.deferred += len(files)
            _log.warning("window deferred", extra={"window": window.name, "reason": str(error)})
            self._deferrals.add_window(window.end, error)
        else:
            await settlement.move_files(outcomes)
        _log.info(
            "window",
            extra={
                "window": window.name,
                "revision": report.revision,
                "seconds": round(perf_counter() - started, 3),
                **asdict(report.tally),
            },
        )

    async def defer(self, window: Window, file: RunFile, reason: str) -> None:
        """Leave a file in the inbox, for a reason."""
        report = self._run.window(window, self._context.layout.aggregate_key(window))
        await self._deferrals.add(file, StoreError(reason, operation="get"), report.tally)

    async def _count_files(self, settlement: Settlement) -> Outcomes:
        try:
            return await retry_commit(lambda: self._count(settlement))
        except anyio.get_cancelled_exc_class():
            settlement.report.tally.left += len(settlement.files)
            raise
