"""Settle: bring one window's files of one chunk from the inbox to counted and archived."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter

import anyio

from asyncagg.accumulator import Accumulator
from asyncagg.archive import Mover
from asyncagg.comeback import counted_before
from asyncagg.document import Document, Existing, read
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    PreconditionFailedError,
    TransientError,
)
from asyncagg.fetching import Fetcher, Reader
from asyncagg.layout import Layout
from asyncagg.limits import Deadline
from asyncagg.model import RunFile, Window
from asyncagg.outcome import Tally, WindowReport
from asyncagg.rows import RowSpool
from asyncagg.settings import Settings
from asyncagg.spool import Spool, open_spool
from asyncagg.store import Store

__all__ = ("RESETTLES", "Settled", "Settler", "load")

_log = logging.getLogger(__name__)

RESETTLES = 10
"""How often one window's files of one chunk are settled again after others were faster."""


class Settler:
    """Settles the windows of one run.

    Args:
        store: Where the objects live.
        settings: The bounds.
        layout: Which key is what.
        deadline: When to stop fetching, and when to stop.
        seconds: Where the time spent in each step is added.
        now: The clock of ``aggregation_timestamp``.
        temporary: Folder for rows that do not fit in memory.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        layout: Layout,
        deadline: Deadline,
        seconds: dict[str, float],
        now: Callable[[], datetime],
        temporary: Path | None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._deadline = deadline
        self._seconds = seconds
        self._now = now
        self._temporary = temporary
        self._spool_bytes = settings.spool_bytes
        self._reader = Reader(store, settings)
        # Etags of the aggregates that this very run committed: what it adds to them is not late.
        self._committed: dict[Window, str] = {}

    async def settle(
        self, window: Window, files: Sequence[RunFile], report: WindowReport, *, workers: int
    ) -> None:
        """Settle one window's files; whatever becomes of them is added to the report.

        Args:
            window: Their window.
            files: Some of its run files, in key order.
            report: Where the outcome is added.
            workers: Requests in flight.
        """
        try:
            settled = await self._count(window, files, report, workers)
            if settled is not None:
                await self._clear(settled, report)
        except AggregateError as error:
            report.failure = str(error)
            _log.error("window failed", extra={"window": window.name, "reason": str(error)})
        except TransientError as error:
            self._defer(report, len(files), str(error))
        _log.info(
            "window",
            extra={"window": window.name, "revision": report.revision, **asdict(report.tally)},
        )

    @staticmethod
    def _defer(report: WindowReport, files: int, reason: str) -> None:
        report.tally.deferred += files
        _log.warning("window deferred", extra={"window": report.window, "reason": reason})

    async def _count(
        self, window: Window, files: Sequence[RunFile], report: WindowReport, workers: int
    ) -> Settled | None:
        """Count the files that are not counted yet; None where others kept being faster."""
        try:
            for _ in range(RESETTLES):
                settled = await self._count_once(window, files, report, workers)
                if settled is not None:
                    return settled
        except anyio.get_cancelled_exc_class():
            report.tally.left += len(files)
            raise
        self._defer(report, len(files), f"others committed it {RESETTLES} times meanwhile")
        return None

    async def _count_once(
        self, window: Window, files: Sequence[RunFile], report: WindowReport, workers: int
    ) -> Settled | None:
        tally = Tally()
        mover = Mover(self._store, workers, tally)
        async with AsyncExitStack() as stack:
            with self._timed("load"):
                existing = await self._load(window, await self._spool(stack))
                appends = self._appends(window, existing, files)
                counted, refused = set[str](), set[str]()
                if existing is not None and not appends:
                    counted, refused = await existing.known(files)
                counted |= await self._counted_before(files, workers)
            rows = RowSpool(await self._spool(stack), await self._spool(stack))
            fetcher = Fetcher(self._reader, mover, self._layout, rows, tally)
            fresh = [file for file in files if file.key not in counted and file.key not in refused]
            with self._timed("fetch"):
                await fetcher.fetch(fresh, workers=workers, until=self._deadline.intake_ends())
            if fetcher.counted or fetcher.refused:
                try:
                    with self._timed("commit"):
                        await self._commit(window, existing, fetcher, rows, report, appends=appends)
                except PreconditionFailedError:
                    return None
        counted.update(file.key for file in fetcher.counted)
        refused.update(file.key for file in fetcher.refused)
        return Settled(
            mover=mover,
            tally=tally,
            counted=[file for file in files if file.key in counted],
            refused=[file for file in files if file.key in refused],
        )

    async def _counted_before(self, files: Sequence[RunFile], workers: int) -> set[str]:
        return await counted_before(self._store, self._layout, files, workers=workers)

    async def _spool(self, stack: AsyncExitStack) -> Spool:
        return await stack.enter_async_context(open_spool(self._spool_bytes, self._temporary))

    async def _load(self, window: Window, spool: Spool) -> Existing | None:
        return await load(self._store, self._layout.aggregate_key(window), window, spool)

    def _appends(self, window: Window, existing: Existing | None, files: Sequence[RunFile]) -> bool:
        """Say whether the files come behind all of an aggregate that this very run wrote.

        So it is with every chunk but the first of a window that fills several: keys are listed in
        order. Of such an aggregate nothing has to be looked up, or checked row by row, again.
        """
        return (
            existing is not None
            and self._committed.get(window) == existing.etag
            and files[0].key > existing.last_key
        )

    async def _commit(
        self,
        window: Window,
        existing: Existing | None,
        fetcher: Fetcher,
        rows: RowSpool,
        report: WindowReport,
        *,
        appends: bool,
    ) -> None:
        """Write the aggregate: the one moment at which the files become counted."""
        stood = existing is not None and self._committed.get(window) != existing.etag
        late = len(fetcher.counted) if stood else 0
        total = Accumulator()
        total.merge(fetcher.accumulator)
        if existing is not None:
            total.merge(existing.accumulator)
        document = Document(
            window=window,
            accumulator=total,
            revision=1 + (existing.revision if existing else 0),
            late=late + (existing.late if existing else 0),
            written_at=self._now(),
            rows=rows,
            existing=existing,
            appends=appends,
        )
        self._committed[window] = await self._store.put(
            self._layout.aggregate_key(window),
            document,
            if_match=existing.etag if existing else None,
            if_absent=existing is None,
        )
        report.revision = document.revision
        report.tally.take(fetcher.accumulator)
        report.tally.late += late

    async def _clear(self, settled: Settled, report: WindowReport) -> None:
        """Move the counted files to the archive, and drop the refused ones from the inbox."""
        mover, tally = settled.mover, settled.tally
        before = tally.out_of_hand
        try:
            with self._timed("archive"):
                await mover.archive(settled.counted, self._layout.archive_key)
                await mover.drop(settled.refused, self._layout.quarantine_key)
        finally:  # also where the deadline cancels: what is out of the inbox is told
            done = tally.out_of_hand - before
            tally.left += len(settled.counted) + len(settled.refused) - done
            report.tally.add(tally)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        before = perf_counter()
        try:
            yield
        finally:
            self._seconds[step] += perf_counter() - before


@dataclass(frozen=True, slots=True)
class Settled:
    """Files that an aggregate names, and who clears them from the inbox.

    Attributes:
        mover: Who clears them.
        tally: What became of them so far.
        counted: Those that go to the archive.
        refused: Those that are in quarantine.
    """

    mover: Mover
    tally: Tally
    counted: list[RunFile]
    refused: list[RunFile]


async def load(store: Store, key: str, window: Window, spool: Spool) -> Existing | None:
    """Read the aggregate of a window that stands at a key, if one does.

    Args:
        store: Where it is.
        key: Its key.
        window: Its window.
        spool: An empty spool to hold it.

    Raises:
        AggregateError: It is not ours, is damaged, or is of another window.
    """
    try:
        async with store.stream(key) as body:
            return await read(key, body.etag, window, body.chunks, spool)
    except NotFoundError:
        return None
