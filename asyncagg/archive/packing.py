"""Put the single files of an archive into packs, window by window.

Every file is in the archive at any moment: a pack is complete before an aggregate names it, and the
single copies of its files are deleted only after it was read back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import msgspec
import orjson

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.aggregate.rows import CountedRow, RowSpool
from asyncagg.archive.copies import Copies, copy_keys
from asyncagg.errors import (
    AccessDeniedError,
    AggregateError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.aggregates import commit_aggregate, load_aggregate, merge_packs, retry_commit
from asyncagg.job.byte_limiter import ByteLimiter
from asyncagg.job.context import JobContext
from asyncagg.job.listing import list_aggregate_windows
from asyncagg.job.packing import LostPack, Packer, open_packer, remove_lost
from asyncagg.model import CountedFile, Interval, Pack, Place, RunFile, Window
from asyncagg.packs.format import DamagedPackError
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Matches

_ROWS = 1000
"""Files that are read side by side before their rows are written."""

_COMMIT_FILES = 200_000
"""Files of one commit: they are read again if another runner commits first."""


@dataclass(slots=True)
class PackReport:
    """What was put into packs.

    Attributes:
        windows: How many aggregates were read.
        packed: How many files were put into packs; in a dry run, how many are small enough.
        bytes: Their size.
        packs: How many packs were written.
        deleted: Of how many files the single copies were deleted.
        kept: How many files stay single: large ones, those restored from quarantine, and those
            without a copy that has the etag and size that were counted.
        failures: The windows that are not done, and why.
        complete: Whether there was time for all.
    """

    windows: int = 0
    packed: int = 0
    bytes: int = 0
    packs: int = 0
    deleted: int = 0
    kept: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    complete: bool = True

    @property
    def exit_code(self) -> int:
        """0 all is done, 3 some is left, 1 no window could be done."""
        if self.failures and len(self.failures) == self.windows:
            return 1
        return 0 if self.complete and not self.failures else 3

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


async def pack_archive(
    context: JobContext,
    interval: Interval,
    *,
    dry_run: bool = False,
    progress: Callable[[PackReport], object] = lambda _: None,
) -> PackReport:
    """Put the single files of every window of an interval into packs.

    Args:
        context: Where they are.
        interval: Which windows.
        dry_run: Only read the aggregates, and count the files.
        progress: Called with the report so far after each window.

    Raises:
        ConfigurationError: The store cannot be used.
        StoreError: The listing failed after all retries.
    """
    work = _Work(context)
    handle = work.count if dry_run else work.pack
    with anyio.move_on_after(context.settings.max_seconds) as scope:
        async for windows in list_aggregate_windows(context.store, context.settings, interval):
            for window in windows:
                work.report.windows += 1
                await work.attempt(window, handle)
                progress(work.report)
        await work.delete_held()
    work.report.complete = not scope.cancelled_caught
    return work.report


class _Work:
    def __init__(self, context: JobContext) -> None:
        self.report = PackReport()
        self._context = context
        self._copies = Copies(context)

    async def attempt(self, window: Window, handle: Callable[[Window], Awaitable[None]]) -> None:
        """Handle a window; if that fails, the others can still be handled."""
        try:
            await handle(window)
        except AccessDeniedError:
            raise
        except (AggregateError, DamagedPackError, StoreError) as error:
            self.report.failures[window.name] = str(error)

    async def count(self, window: Window) -> None:
        """Count the files of a window that are single."""
        async with self._context.open_spool() as spool:
            stored = await load_aggregate(self._context, window, spool)
            if stored is None:
                return  # it was moved away meanwhile
            async for files in stored.files():
                fitting = [file for file in files if fits(self._context, file)]
                self.report.packed += len(fitting)
                self.report.bytes += sum(file.size for file in fitting)
                self.report.kept += sum(not file.pack for file in files) - len(fitting)

    async def pack(self, window: Window) -> None:
        """Put the single files of a window into packs, and delete their copies."""
        written: set[str] = set()
        after: tuple[str, str] | None = ("", "")
        while after is not None:
            after = await self._pack_some(window, after, written)
        deleted = await self._copies.delete(window, written)
        self.report.deleted += deleted
        if self._copies.is_full:
            await self.delete_held()

    async def delete_held(self) -> None:
        """Delete the copies that `pack` has left for the end."""
        deleted, failures = await self._copies.delete_held()
        self.report.deleted += deleted
        self.report.failures |= failures

    async def _pack_some(
        self, window: Window, after: tuple[str, str], written: set[str]
    ) -> tuple[str, str] | None:
        """Put files after a row into packs, in one commit.

        Returns:
            The last row that was looked at, or None if it was the last one.
        """
        lost: list[LostPack] = []
        commit = await retry_commit(lambda: self._try_to_pack(window, after, lost))
        if commit is None:
            return None
        written.update(pack.id for pack in commit.packs)
        self.report.packs += len(commit.packs)
        self.report.packed += commit.packed
        self.report.bytes += commit.bytes
        self.report.kept += commit.kept
        return commit.last if commit.is_full else None

    async def _try_to_pack(
        self, window: Window, after: tuple[str, str], lost: list[LostPack]
    ) -> _Commit | None:
        context = self._context
        async with AsyncExitStack() as stack:
            spools = [await stack.enter_async_context(context.open_spool()) for _ in range(3)]
            stored = await load_aggregate(context, window, spools[0])
            await remove_lost(context, stored, lost)
            if stored is None or is_packed(stored):
                return None
            commit = _Commit(context, RowSpool(*spools[1:]), after)
            async with open_packer(context, window) as packer:
                await commit.fill(stored, packer)
                commit.packs = await packer.complete()
            if commit.packs:
                await self._commit(window, stored, commit, lost)
        return commit

    async def _commit(
        self, window: Window, stored: StoredAggregate, commit: _Commit, lost: list[LostPack]
    ) -> None:
        try:
            await commit_aggregate(
                self._context,
                window,
                stored.accumulator,
                [commit.rows],
                packs=merge_packs([stored.packs, commit.packs]),
                condition=Matches(stored.etag),
                revision=stored.revision + 1,
                late=stored.late,
            )
        except PreconditionFailedError:
            lost.extend(LostPack(pack, stored.etag) for pack in commit.packs)
            raise


class _Commit:
    """The files and rows of one commit.

    Attributes:
        rows: All rows of the aggregate, with the places of the files that are in packs now.
        packs: Those packs.
        last: The last row whose file was looked at.
        packed: How many files were put into packs.
        bytes: Their size.
        kept: How many files stay single.
    """

    def __init__(self, context: JobContext, rows: RowSpool, after: tuple[str, str]) -> None:
        self.rows = rows
        self.packs: Sequence[Pack] = ()
        self.last = after
        self.packed = self.bytes = self.kept = 0
        self._context = context
        self._limiter = ByteLimiter(context.settings.max_inflight_bytes)

    @property
    def is_full(self) -> bool:
        """Whether the rest is left to the next commit."""
        return self.packed >= _COMMIT_FILES

    async def fill(self, stored: StoredAggregate, packer: Packer) -> None:
        """Copy the files and rows of an aggregate."""
        async for rows in _batches(stored.counted_rows()):
            places = {} if self.is_full else await self._copy_files(rows, packer)
            for row in rows:
                await self.rows.append(_with_place(row, places.get((row.key, row.etag))))
        async for quarantined in stored.quarantined_rows():
            await self.rows.append(quarantined)

    async def _copy_files(
        self, rows: Sequence[CountedRow], packer: Packer
    ) -> dict[tuple[str, str], Place]:
        """Copy the files of rows into packs, and return their places."""
        places: dict[tuple[str, str], Place] = {}
        files = [msgspec.json.decode(row.source, type=CountedFile) for row in rows]
        single = [file for file in files if not file.pack and (file.key, file.etag) > self.last]

        async def copy(file: CountedFile) -> None:
            async with self._limiter.hold(file.size):
                await packer.wait()
                data = await self._read(file) if fits(self._context, file) else None
                place = packer.add(file, data)
            if place is not None:
                places[file.key, file.etag] = place
                self.bytes += file.size

        await for_each(single, copy, workers=self._context.settings.concurrency)
        self.last = max(self.last, (rows[-1].key, rows[-1].etag))
        self.packed += len(places)
        self.kept += len(single) - len(places)
        return places

    async def _read(self, file: RunFile) -> bytes | None:
        """Return the content of a file's copy in the archive, if it is the one that was counted."""
        for key in copy_keys(self._context, file):
            try:
                data = (await self._context.store.get(key, if_match=file.etag)).data
            except (NotFoundError, PreconditionFailedError):
                continue
            if len(data) == file.size:
                return data
        return None


def is_packed(stored: StoredAggregate) -> bool:
    """Return whether all files of an aggregate are in packs."""
    return sum(pack.files for pack in stored.packs) >= stored.accumulator.counted


def fits(context: JobContext, file: CountedFile) -> bool:
    """Return whether a file is single, and small enough for a pack; see `Packer.add`."""
    small = file.size <= context.settings.stream_bytes
    return small and not file.pack and not context.layout.was_restored(file.key)


async def _batches(rows: AsyncIterator[CountedRow]) -> AsyncIterator[list[CountedRow]]:
    batch: list[CountedRow] = []
    async for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_place(row: CountedRow, place: Place | None) -> bytes:
    """Return the two rows of a file, with its place; see `counted_row`."""
    source = row.source
    if place is not None:
        source = orjson.dumps(orjson.loads(source) | place._asdict())
    return b"%b\n%b\n" % (source, row.summary)
