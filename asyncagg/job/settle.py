"""Settle: bring one window's files of one chunk from the inbox to counted and archived."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import anyio

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.reading import StoredAggregate, read
from asyncagg.aggregate.rows import RowSpool
from asyncagg.aggregate.spool import Spool, open_spool
from asyncagg.aggregate.writing import AggregateWriter
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    PreconditionFailedError,
    TransientError,
)
from asyncagg.job.archive import Mover
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.deadline import Deadline
from asyncagg.job.fetch import Fetcher
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import Tally, WindowReport
from asyncagg.job.reader import Reader
from asyncagg.job.restored import counted_before
from asyncagg.model import RunFile, Window
from asyncagg.settings import Settings
from asyncagg.store import Absent, Matches, Store

__all__ = ("MAX_COMMIT_ATTEMPTS", "Settled", "Settler", "load")

_log = logging.getLogger(__name__)

MAX_COMMIT_ATTEMPTS = 10
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
        # The aggregates that this very run committed: what it adds to them is not late.
        self._committed: dict[Window, _Committed] = {}

    def committed(self, window: Window) -> int:
        """Return how many files an aggregate names that this very run committed, else 0."""
        return self._committed.get(window, _NEVER).files

    async def settle(
        self, window: Window, files: WindowBatch, report: WindowReport, *, workers: int
    ) -> None:
        """Settle one window's files; whatever becomes of them is added to the report.

        Args:
            window: Their window.
            files: Some of its run files.
            report: Where the outcome is added.
            workers: Requests in flight.
        """
        try:
            settled = await self._count(window, files, report, workers)
            if settled is not None:
                await self._clear(files, settled, report)
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
        self, window: Window, files: WindowBatch, report: WindowReport, workers: int
    ) -> Settled | None:
        """Count the files that are not counted yet; None where others kept being faster."""
        try:
            for _ in range(MAX_COMMIT_ATTEMPTS):
                settled = await self._count_once(window, files, report, workers)
                if settled is not None:
                    return settled
        except anyio.get_cancelled_exc_class():
            report.tally.left += len(files)
            raise
        self._defer(
            report, len(files), f"others committed it {MAX_COMMIT_ATTEMPTS} times meanwhile"
        )
        return None

    async def _count_once(
        self, window: Window, files: WindowBatch, report: WindowReport, workers: int
    ) -> Settled | None:
        settled = Settled.none(self._store, workers)
        total = Accumulator()
        until = math.inf
        async with AsyncExitStack() as stack:
            with self._timed("load"):
                existing = await self._load(window, await self._spool(stack))
            appends = self._appends(window, existing, files)
            looked_in = None if appends else existing
            rows = RowSpool(await self._spool(stack), await self._spool(stack))
            async for batch in files.batches():
                if anyio.current_time() >= until:
                    settled.leave(batch)
                    continue
                with self._timed("load"):
                    counted, refused = await self._known(batch, looked_in, workers)
                done = counted | refused
                fresh = [file for file in batch if file.key not in done]
                fetcher = self._fetcher(settled, rows)
                until = min(until, self._deadline.intake_ends())  # of the first batch
                with self._timed("fetch"):
                    await fetcher.fetch(fresh, workers=workers, until=until)
                total.merge(fetcher.accumulator)
                counted.update(file.key for file in fetcher.counted)
                refused.update(file.key for file in fetcher.refused)
                settled.note(batch, counted, refused)
            if total.counted or total.quarantined:
                try:
                    with self._timed("commit"):
                        await self._commit(window, existing, total, rows, report, appends=appends)
                except PreconditionFailedError:
                    return None
        return settled

    def _fetcher(self, settled: Settled, rows: RowSpool) -> Fetcher:
        return Fetcher(self._reader, settled.mover, self._layout, rows, settled.tally)

    async def _known(
        self, files: Sequence[RunFile], existing: StoredAggregate | None, workers: int
    ) -> tuple[set[str], set[str]]:
        """Return the keys of the files that were settled before: (counted, quarantined)."""
        counted, refused = await existing.known(files) if existing else (set[str](), set[str]())
        counted |= await counted_before(self._store, self._layout, files, workers=workers)
        return counted, refused

    async def _spool(self, stack: AsyncExitStack) -> Spool:
        return await stack.enter_async_context(open_spool(self._spool_bytes, self._temporary))

    async def _load(self, window: Window, spool: Spool) -> StoredAggregate | None:
        return await load(self._store, self._layout.aggregate_key(window), window, spool)

    def _appends(
        self, window: Window, existing: StoredAggregate | None, files: WindowBatch
    ) -> bool:
        """Say whether the files come behind all of an aggregate that this very run wrote.

        So it is with every chunk but the first of a window that fills several: keys are listed in
        order. Of such an aggregate nothing has to be looked up, or checked row by row, again.
        """
        return (
            existing is not None
            and self._committed.get(window, _NEVER).etag == existing.etag
            and files.first_key > existing.last_key
        )

    async def _commit(
        self,
        window: Window,
        existing: StoredAggregate | None,
        fresh: Accumulator,
        rows: RowSpool,
        report: WindowReport,
        *,
        appends: bool,
    ) -> None:
        """Write the aggregate: the one moment at which the files become counted."""
        stood = existing is not None and self._committed.get(window, _NEVER).etag != existing.etag
        late = fresh.counted if stood else 0
        total = Accumulator()
        total.merge(fresh)
        if existing is not None:
            total.merge(existing.accumulator)
        document = AggregateWriter(
            window=window,
            accumulator=total,
            revision=1 + (existing.revision if existing else 0),
            late=late + (existing.late if existing else 0),
            written_at=self._now(),
            rows=rows,
            existing=existing,
            appends=appends,
        )
        etag = await self._store.put(
            self._layout.aggregate_key(window),
            document,
            condition=Matches(existing.etag) if existing else Absent(),
        )
        self._committed[window] = _Committed(etag, total.counted + total.quarantined)
        report.revision = document.revision
        report.tally.take(fresh)
        report.tally.late += late

    async def _clear(self, files: WindowBatch, settled: Settled, report: WindowReport) -> None:
        """Move the counted files to the archive, and drop the refused ones from the inbox."""
        mover, tally = settled.mover, settled.tally
        before = tally.resolved
        try:
            with self._timed("archive"):
                async for counted, refused in settled.named(files):
                    await mover.archive(counted, self._layout.archive_key)
                    await mover.move_to_quarantine(refused, self._layout.quarantine_key)
        finally:  # also where the deadline cancels: what is out of the inbox is told
            done = tally.resolved - before
            tally.left += settled.size - done
            report.tally.add(tally)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        before = perf_counter()
        try:
            yield
        finally:
            self._seconds[step] += perf_counter() - before


class _Committed(NamedTuple):
    etag: str
    files: int


_NEVER = _Committed("", 0)
_NEITHER, _COUNTED, _REFUSED = range(3)  # what `bytes` makes of a length is the first


@dataclass(frozen=True, slots=True)
class Settled:
    """Which files of a group an aggregate names, and who clears them from the inbox.

    Attributes:
        mover: Who clears them.
        tally: What became of them so far.
    """

    mover: Mover
    tally: Tally
    _fates: bytearray = field(default_factory=bytearray)  # of each file, in their order

    @classmethod
    def none(cls, store: Store, workers: int) -> Settled:
        """Return that of a group of which nothing is known yet."""
        tally = Tally()
        return cls(Mover(store, workers, tally), tally)

    @property
    def size(self) -> int:
        """How many files are named."""
        return len(self._fates) - self._fates.count(_NEITHER)

    def note(
        self, batch: Iterable[RunFile], counted: Collection[str], refused: Collection[str]
    ) -> None:
        """Note which files of the group's next batch are named, by key."""
        self._fates.extend(
            _COUNTED if file.key in counted else _REFUSED if file.key in refused else _NEITHER
            for file in batch
        )

    def leave(self, batch: Sequence[RunFile]) -> None:
        """Note that the next batch is left for want of time."""
        self.tally.left += len(batch)
        self._fates.extend(bytes(len(batch)))

    async def named(self, files: WindowBatch) -> AsyncIterator[tuple[list[RunFile], list[RunFile]]]:
        """Yield the files of the group that are named, by the batch: the counted, the refused."""
        fates = iter(self._fates)
        async for batch in files.batches():
            counted: list[RunFile] = []
            refused: list[RunFile] = []
            # The files come first: of fates there may be more than this batch has files.
            for file, fate in zip(batch, fates, strict=False):
                if fate == _COUNTED:
                    counted.append(file)
                elif fate == _REFUSED:
                    refused.append(file)
            yield counted, refused


async def load(store: Store, key: str, window: Window, spool: Spool) -> StoredAggregate | None:
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
