"""Taking inventory: everything that stands, and all that the aggregates name, noted in a ledger.

The order makes it right while a run is at work. The archive and quarantine are listed first: what
was there then had been counted, or refused, by an aggregate that is read afterwards, or was in the
inbox still. The inbox comes after the aggregates, and at the end aggregates that have changed
meanwhile are read again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    TransientError,
)
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.aggregates import load_aggregate, retry_commit
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind, Layout
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import for_each
from asyncagg.verify.ledger import PAGE, CountedRow, InboxRow, Ledger, Listing, RefusedRow
from asyncagg.verify.salvage import Remains, run_file, salvage
from asyncagg.windows import window_selector

__all__ = ("AT_ONCE", "Inventory")

T = TypeVar("T")

AT_ONCE = 4
"""Aggregates read side by side."""


class Inventory:
    """What stands and what is named, in a ledger; and what could not be read.

    Args:
        context: What it is done with.
        ledger: Where it is noted.
        wanted: Says of which windows the aggregates are read; default: all. Only with all of them
            the archive and quarantine are listed.

    Attributes:
        damaged: What is left of the aggregates that are damaged, or not ours.
        unread: The windows whose aggregate could not be read for now, and why.
        misnamed: Keys of aggregates whose name is that of no window of this length.
    """

    def __init__(
        self, context: JobContext, ledger: Ledger, wanted: Callable[[Window], bool] | None
    ) -> None:
        self.damaged: dict[Window, Remains] = {}
        self.unread: dict[Window, str] = {}
        self.misnamed: list[str] = []
        self.ledger = ledger
        self.layout = Layout(context.settings)
        self.whole = wanted is None
        self._context = context
        self._wanted = wanted

    @property
    def complete(self) -> bool:
        """Whether every row of every aggregate was read: only so nothing is named nowhere."""
        damaged = any(not each.whole for each in self.damaged.values())
        return self.whole and not self.unread and not self.misnamed and not damaged

    async def take(self, read: Callable[[Window], Awaitable[object]] | None = None) -> None:
        """Note everything.

        Args:
            read: Reads the aggregate of a window, and calls `note` with it; default: does no more.
        """
        read = read or self._load

        async def one(item: tuple[Window, str]) -> None:
            await self._read(item[0], read)

        if self.whole:
            await self._list(Listing.ARCHIVED, self.layout.archive_prefix)
            await self._list(Listing.QUARANTINED, self.layout.quarantine_prefix)
        async for found in self._aggregates(first=True):
            await for_each(found, one, workers=AT_ONCE)
        await self._list_inbox()
        for window in {*self.damaged, *self.unread}:
            await self._read(window, read)  # it may have been mended, or moved away, meanwhile
        async for found in self._aggregates():
            changed = [item for item in found if await self.ledger.etag(item[0].name) != item[1]]
            await for_each(changed, one, workers=AT_ONCE)
        await self.ledger.index()

    async def _list(self, listing: Listing, prefix: str) -> None:
        async for page in self._context.store.list_pages(prefix):
            # Folder markers and the objects of a probe are nobody's run files.
            files = (file for file in page if is_run_file(file.key))
            await self.ledger.note_listed(listing, files)

    async def _list_inbox(self) -> None:
        layout, settings = self.layout, self._context.settings
        window_of = window_selector(settings.window_by, settings.window_minutes)
        async for page in self._context.store.list_pages(layout.runs_prefix):
            rows = []
            for file in page:
                if layout.kind(file.key) is KeyKind.RUN_FILE:
                    hold = layout.quarantine_key(file.key)
                    beside = layout.conflict_key(hold, file.etag)
                    place, window = layout.archive_key(file.key), window_of(file).name
                    rows.append(InboxRow(file, window, place, hold, beside))
            await self.ledger.note_inbox(rows)

    async def _aggregates(self, *, first: bool = False) -> AsyncIterator[list[tuple[Window, str]]]:
        """Yield the windows that have an aggregate, and its etag, page by page."""
        layout = self.layout
        async for page in self._context.store.list_pages(layout.aggregate_prefix):
            found = []
            for file in page:
                window = layout.aggregate_window(file.key)
                if window is not None and (self._wanted is None or self._wanted(window)):
                    found.append((window, file.etag))
                elif self.whole and first and layout.is_misnamed_aggregate(file.key):
                    self.misnamed.append(file.key)
            yield found

    async def _read(self, window: Window, read: Callable[[Window], Awaitable[object]]) -> None:
        self.damaged.pop(window, None)
        self.unread.pop(window, None)
        try:
            try:
                await retry_commit(lambda: read(window))
            except AggregateError as error:
                await self._salvage(window, error.what)
        except NotFoundError:
            await self.ledger.forget(window.name)
        except TransientError as error:
            self.unread[window] = str(error)

    async def _load(self, window: Window) -> None:
        async with self._context.open_spool() as spool:
            existing = await load_aggregate(self._context, window, spool)
            if existing is None:
                await self.ledger.forget(window.name)
            else:
                await self.note(window, existing)

    async def note(self, window: Window, existing: StoredAggregate) -> None:
        """Note the files that an aggregate names.

        Raises:
            AggregateError: One of its rows is garbled or out of order.
        """
        await existing.known(())  # only to see that the rows are in order
        await self.ledger.note_aggregate(window.name, existing.etag)
        try:
            async for rows in _paged(existing.counted_rows()):
                files = [run_file(msgspec.json.decode(row.source)) for row in rows]
                await self._note_counted(window, files, sound=True)
            async for refused in _paged(existing.quarantined_rows()):
                entries = [_refused(window, row.row) for row in refused]
                await self.ledger.note_refused(entries)
        except msgspec.DecodeError as error:
            what = f"a row is garbled: {error}"
            raise AggregateError(f"aggregate {existing.key!r}: {what}", what=what) from None

    async def _note_counted(
        self, window: Window, files: Iterable[RunFile], *, sound: bool, claimed: bool = False
    ) -> None:
        rows = []
        for file in files:
            place = self.layout.archive_key(file.key)
            rows.append(CountedRow(file, place, self.layout.conflict_key(place, file.etag)))
        await self.ledger.note_counted(window.name, rows, sound=sound, claimed=claimed)

    async def _salvage(self, window: Window, reason: str) -> None:
        async with self._context.store.stream(self.layout.aggregate_key(window)) as body:
            remains = Remains(window, body.etag, reason)
            self.damaged[window] = remains
            await self.ledger.note_aggregate(window.name, body.etag)
            async for rows in salvage(body, remains):
                if not remains.foreign:
                    counted = (row for row in rows if isinstance(row, RunFile))
                    await self._note_counted(window, counted, sound=False)
                    refused = (row for row in rows if isinstance(row, RefusedRow))
                    await self.ledger.note_refused(refused, sound=False)

    async def claim(self, window: Window, arrived: RunFile, moved_to: str, reason: str) -> None:
        """Take a file for one that a damaged aggregate named.

        Args:
            window: The window.
            arrived: The file, under the key with which it arrived.
            moved_to: Where it is in quarantine; empty for a file that was counted.
            reason: Why it is there.
        """
        if moved_to:
            row = RefusedRow(arrived.key, arrived.etag, window.name, moved_to, reason)
            await self.ledger.note_refused([row], sound=False, claimed=True)
        else:
            await self._note_counted(window, [arrived], sound=False, claimed=True)


def _refused(window: Window, row: bytes) -> RefusedRow:
    return msgspec.convert({**msgspec.json.decode(row), "window": window.name}, RefusedRow)


async def _paged(rows: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    page: list[T] = []
    async for row in rows:
        page.append(row)
        if len(page) >= PAGE:
            yield page
            page = []
    if page:
        yield page
