"""A window too large for one worker: counted in parts, the parts merged, committed once.

A partial aggregate is an aggregate document of some of a window's files. It stands below the work
prefix, where nobody takes it for a run file, under a name that follows from the files in it: made
twice it is the same, and one that a killed worker left behind is found and used. It counts nothing
yet. `commit` merges the parts into the aggregate of the window, in one conditional write that
fails where a part names a file that meanwhile somebody else has counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.merge import SOURCES, Joined
from asyncagg.aggregate.reading import StoredAggregate
from asyncagg.aggregate.rows import QuarantinedRow, RowSpool
from asyncagg.aggregate.spool import Spool, open_spool
from asyncagg.aggregate.writing import AggregateWriter
from asyncagg.errors import AggregateError, NotFoundError, OverlapError, PreconditionFailedError
from asyncagg.job.archive import Mover
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.context import JobContext
from asyncagg.job.fetch import Fetcher
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import WindowReport
from asyncagg.job.settle import MAX_COMMIT_ATTEMPTS, Settled, Settler, load
from asyncagg.model import RunFile, Window
from asyncagg.settings import Settings
from asyncagg.store import DELETE_BATCH, Absent, Matches, Store

__all__ = ("FAN_IN", "Folder", "Part", "clear", "commit", "merge", "sweep")

FAN_IN = 32
"""Partial aggregates merged at a time: each is a temporary file while they are."""


def _now() -> datetime:
    return datetime.now(UTC)


class Part(NamedTuple):
    """A partial aggregate that stands.

    Attributes:
        first: The first key that it names: where its rows belong.
        key: Its own key.
        window: Its window.
    """

    first: str
    key: str
    window: Window


class Folder(Settler):
    """Counts the files of a window into partial aggregates; those counted before are archived.

    Args:
        store: Where the objects live.
        settings: The bounds.
        made: Where each partial aggregate is added.
        more: What a `Settler` takes.
    """

    def __init__(self, store: Store, settings: Settings, *, made: list[Part], **more: Any) -> None:
        super().__init__(store, settings, **more)
        self._made = made

    async def _count_once(
        self,
        window: Window,
        files: WindowBatch,
        report: WindowReport,  # noqa: ARG002 - as it is called
        workers: int,
    ) -> Settled:
        settled = Settled.none(self._store, workers)
        async with AsyncExitStack() as stack:
            existing = await self._load(window, await self._spool(stack))
            async for batch in files.batches():
                counted, refused = await self._known(batch, existing, workers)
                settled.note(batch, counted, refused)
                done = counted | refused
                fresh = [file for file in batch if file.key not in done]
                if fresh and not await self._made_before(window, fresh):
                    await self._make(window, fresh, settled, workers)
        return settled

    async def _make(
        self, window: Window, files: Sequence[RunFile], settled: Settled, workers: int
    ) -> None:
        async with AsyncExitStack() as stack:
            rows = RowSpool(await self._spool(stack), await self._spool(stack))
            fetcher = self._fetcher(settled, rows)
            with self._timed("fetch"):
                await fetcher.fetch(files, workers=workers, until=self._deadline.intake_ends())
            await self._keep(window, fetcher, rows)

    async def _made_before(self, window: Window, files: Sequence[RunFile]) -> bool:
        key = self._layout.partial_key(window, _name(files))
        try:
            await self._store.head(key)
        except NotFoundError:
            return False
        self._made.append(Part(files[0].key, key, window))
        return True

    async def _keep(self, window: Window, fetcher: Fetcher, rows: RowSpool) -> None:
        files = [*fetcher.counted, *fetcher.refused]
        if not files:
            return
        key = self._layout.partial_key(window, _name(files))
        document = _partial(window, fetcher.accumulator, rows, self._now())
        with self._timed("commit"):
            await _put_once(self._store, key, document)
        first = min(file.key for file in files)
        self._made.append(Part(first, key, window))


def _name(files: Iterable[RunFile]) -> str:
    identities = sorted(f"{file.key}\0{file.etag}\n" for file in files)
    return hashlib.sha256("".join(identities).encode(errors="surrogatepass")).hexdigest()[:32]


def _partial(
    window: Window, total: Accumulator, rows: RowSpool | Joined, now: datetime
) -> AggregateWriter:
    return AggregateWriter(
        window=window, accumulator=total, revision=1, late=0, written_at=now, rows=rows
    )


async def _put_once(store: Store, key: str, document: AggregateWriter) -> None:
    try:
        await store.put(key, document, condition=Absent())
    except PreconditionFailedError:
        return  # its name says what is in it


async def merge(context: JobContext, window: Window, keys: Sequence[str]) -> str | None:
    """Merge partial aggregates into one.

    Returns:
        Its key, or None where one of them is gone, or two of them name the same file.
    """
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    key = Layout(context.settings).partial_key(window, name)
    async with _loaded(context, window, keys) as parts:
        if parts is None:
            return None
        document = _partial(window, _sum(parts), Joined(parts), context.now())
        try:
            await _put_once(context.store, key, document)
        except OverlapError:
            return None
    return key


def _sum(parts: Iterable[StoredAggregate]) -> Accumulator:
    total = Accumulator()
    for part in parts:
        total.merge(part.accumulator)
    return total


async def commit(context: JobContext, window: Window, keys: Sequence[str]) -> WindowReport | None:
    """Merge partial aggregates into the aggregate of their window: their files become counted.

    Returns:
        What was counted, or None where it has to be counted anew: a part is gone, or names a file
        that somebody else has counted meanwhile.
    """
    aggregate_key = Layout(context.settings).aggregate_key(window)
    report = WindowReport(window.name, aggregate_key)
    for _ in range(MAX_COMMIT_ATTEMPTS):
        try:
            async with _loaded(context, window, keys) as parts, _spooled(context) as spool:
                if parts is None:
                    return None
                existing = await load(context.store, aggregate_key, window, spool)
                await _commit(context, window, parts, existing, report)
        except PreconditionFailedError:
            continue
        except OverlapError:
            return None
        except AggregateError as error:
            report.failure = str(error)
        return report
    return None


async def _commit(
    context: JobContext,
    window: Window,
    parts: list[StoredAggregate],
    existing: StoredAggregate | None,
    report: WindowReport,
) -> None:
    fresh = _sum(parts)
    standing = [existing] if existing else []
    late = fresh.counted if existing else 0
    document = AggregateWriter(
        window=window,
        accumulator=_sum([*parts, *standing]),
        revision=1 + (existing.revision if existing else 0),
        late=late + (existing.late if existing else 0),
        written_at=context.now(),
        rows=Joined([*parts, *standing]),
    )
    await context.store.put(
        report.aggregate_key,
        document,
        condition=Matches(existing.etag) if existing else Absent(),
    )
    report.revision = document.revision
    report.tally.take(fresh)
    report.tally.late += late


async def clear(context: JobContext, window: Window, key: str) -> WindowReport:
    """Move the files that a partial aggregate names out of the inbox, now that they are counted."""
    layout = Layout(context.settings)
    report = WindowReport(window.name, layout.aggregate_key(window))
    mover = Mover(context.store, context.settings.concurrency, report.tally)
    async with _loaded(context, window, [key]) as parts:
        for part in parts or ():
            counted = [
                msgspec.json.decode(line, type=RunFile)
                async for lines in part.lines(SOURCES)
                for line in lines
            ]
            refused = [row async for row in part.quarantined()]
            await mover.archive(counted, layout.archive_key)
            await mover.move_to_quarantine(
                await _there(context.store, refused), layout.quarantine_key
            )
    return report


async def _there(store: Store, rows: Iterable[QuarantinedRow]) -> list[RunFile]:
    """Return those refused files that are still in the inbox, in the version that was refused."""
    found = []
    for row in rows:
        try:
            file = (await store.head(row.key)).file
        except NotFoundError:
            continue
        if file.etag == row.etag:
            found.append(file)
    return found


def _spooled(context: JobContext, among: int = 1) -> AbstractAsyncContextManager[Spool]:
    """Open a spool that is one of several: together they hold in memory what one may."""
    return open_spool(context.settings.spool_bytes // among, context.temporary)


async def sweep(context: JobContext, folder: str, wanted: Callable[[Window], bool]) -> None:
    """Remove the partial aggregates of windows, of this job and those that others left behind.

    Args:
        context: What it is done with.
        folder: What the keys start with: the work prefix, or one window's part of it.
        wanted: Says of which windows they are removed.
    """
    layout = Layout(context.settings)
    async for page in context.store.list_pages(folder):
        windows = [layout.work_window(file.key, context.settings.window_minutes) for file in page]
        unused = [
            file for file, window in zip(page, windows, strict=True) if window and wanted(window)
        ]
        for start in range(0, len(unused), DELETE_BATCH):
            await context.store.delete(unused[start : start + DELETE_BATCH])


@asynccontextmanager
async def _loaded(
    context: JobContext, window: Window, keys: Sequence[str]
) -> AsyncIterator[list[StoredAggregate] | None]:
    """Read partial aggregates; give None where one is gone."""
    async with AsyncExitStack() as stack:
        parts = []
        for key in keys:
            spool = await stack.enter_async_context(_spooled(context, among=len(keys)))
            part = await load(context.store, key, window, spool)
            if part is not None:
                parts.append(part)
        yield parts if len(parts) == len(keys) else None
