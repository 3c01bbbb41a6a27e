"""The inventory of a store: which objects exist, and which files the aggregates name.

Runs may move files meanwhile. The order of reading keeps that from looking like a loss: the archive
and quarantine are listed first, so an aggregate or the inbox, which are read later, has each file
that is found there. At the end, aggregates that have changed meanwhile are read again.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

import msgspec

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.errors import AccessDeniedError, AggregateError, NotFoundError, StoreError
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.aggregates import load_aggregate, retry_commit
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind
from asyncagg.job.refusals import Refusals
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import for_each
from asyncagg.verify.damaged import DamagedAggregate, parse_source
from asyncagg.verify.database import PAGE, Database, QuarantinedEntry
from asyncagg.verify.findings import Finding

T = TypeVar("T")

AGGREGATES_AT_ONCE = 4
"""How many aggregates are read concurrently."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

WAITING_WINDOWS = 6
"""A run file that is in the inbox for so many windows after its window was settled is stuck."""


class Inventory:
    """The objects of a store and the files that its aggregates name, in a database.

    Args:
        context: Where the objects are.
        database: Where the rows are added.
        wanted: Returns whether to read the aggregate of a window; default: all. The archive and
            quarantine are listed only if all aggregates are read.

    Attributes:
        damaged: The aggregates that are damaged, or are not aggregates.
        unread: The windows whose aggregate could not be read, and why.
        misnamed: Keys of aggregates whose name is not that of a window of this length.
        misplaced: The counted files whose time is not in the window of their aggregate, by that.
        ignored: The objects in the inbox that are not run files, without folder markers.
        last_settled: The last window whose aggregate was committed long ago; see `WAITING_WINDOWS`.
    """

    def __init__(
        self, context: JobContext, database: Database, wanted: Callable[[Window], bool] | None
    ) -> None:
        self.damaged: dict[Window, DamagedAggregate] = {}
        self.unread: dict[Window, str] = {}
        self.misnamed: set[str] = set()
        self.misplaced: dict[Window, Finding] = {}
        self.ignored = Finding()
        self.last_settled: Window | None = None
        self.refusals = Refusals(most=math.inf)
        self._patience = timedelta(minutes=WAITING_WINDOWS * context.settings.window_minutes)
        self._newest = _EPOCH
        self.database = database
        self.all_windows = wanted is None
        self._context = context
        self._wanted = wanted

    @property
    def long_ago(self) -> datetime:
        """`WAITING_WINDOWS` before the newest object: by the clock of the store, not of here."""
        return self._newest - self._patience

    @property
    def day_ago(self) -> datetime:
        """A day before the newest object: no commit of then is still under way."""
        return self._newest - timedelta(days=1)

    @property
    def complete(self) -> bool:
        """Whether every row of every aggregate was read, so a file without a row has none."""
        rows_lost = any(not each.complete for each in self.damaged.values())
        return self.all_windows and not self.unread and not self.misnamed and not rows_lost

    async def collect(self, read: Callable[[Window], Awaitable[object]] | None = None) -> None:
        """List the objects and read the aggregates.

        Args:
            read: Reads the aggregate of a window and calls `add` with it; default: only that.
        """
        read = read or self._load
        if self.all_windows:
            await self._list("archived", self._context.layout.archive_prefix)
            await self._list("quarantined", self._context.layout.quarantine_prefix)
        await self._read_changed(read)
        await self._list_inbox()
        for window in {*self.damaged, *self.unread}:
            await self._read(window, read)  # it may have been repaired or moved away meanwhile
        await self._read_changed(read)
        self.refusals.check()
        await self.database.build_indexes()

    async def _list(self, table: Literal["archived", "quarantined"], prefix: str) -> None:
        async for page in self._pages(prefix):
            # Folder markers and the objects of a probe are not run files.
            await self.database.add_listed(table, [each for each in page if is_run_file(each.key)])
            if table == "archived":
                packs = [each for each in page if self._context.layout.pack_window(each.key)]
                await self.database.add_listed("packs", packs)

    async def _list_inbox(self) -> None:
        layout, window_of = self._context.layout, self._context.window_of
        async for page in self._pages(layout.runs_prefix):
            kinds = [(layout.kind(file.key), file) for file in page]
            files = [file for kind, file in kinds if kind is KeyKind.RUN_FILE]
            for kind, file in kinds:
                if kind is KeyKind.IGNORED and not file.key.endswith("/"):
                    self.ignored.add(file.key, "")
            await self.database.add_inbox([(file, window_of(file).name) for file in files])

    async def _read_changed(self, read: Callable[[Window], Awaitable[object]]) -> None:
        """Read the aggregates that are not in the database with the etag that they have now."""

        async def one(item: tuple[Window, str]) -> None:
            window, etag = item
            if await self.database.etag(window.name) != etag:
                await self._read(window, read)

        async for found in self._aggregates():
            await for_each(found, one, workers=AGGREGATES_AT_ONCE)

    async def _aggregates(self) -> AsyncIterator[list[tuple[Window, str]]]:
        """Yield the windows that have an aggregate, and its etag, page by page."""
        layout = self._context.layout
        async for page in self._pages(layout.aggregate_prefix):
            found = []
            for file in page:
                window = layout.aggregate_window(file.key)
                if window is not None and (self._wanted is None or self._wanted(window)):
                    found.append((window, file.etag))
                    if file.last_modified <= self.long_ago:
                        self.last_settled = max(window, self.last_settled or window)
                elif self.all_windows and layout.is_misnamed_aggregate(file.key):
                    self.misnamed.add(file.key)
            yield found

    async def _pages(self, prefix: str) -> AsyncIterator[Sequence[RunFile]]:
        """List objects, and note the time of the newest."""
        async for page in self._context.store.list_pages(prefix):
            self._newest = max([self._newest, *(file.last_modified for file in page)])
            yield page

    async def _read(self, window: Window, read: Callable[[Window], Awaitable[object]]) -> None:
        self.damaged.pop(window, None)
        self.unread.pop(window, None)
        try:
            try:
                await retry_commit(lambda: read(window))
            except AggregateError as error:
                await self._salvage(window, error.what)
        except NotFoundError:
            await self.database.remove_aggregate(window.name)
        except StoreError as error:
            self.unread[window] = str(error)
            if isinstance(error, AccessDeniedError):
                self.refusals.add(error)
        else:
            self.refusals.accept("get")

    async def _load(self, window: Window) -> None:
        async with self._context.open_spool() as spool:
            aggregate = await load_aggregate(self._context, window, spool)
            if aggregate is None:
                await self.database.remove_aggregate(window.name)
            else:
                await self.add(window, aggregate)

    async def add(self, window: Window, aggregate: StoredAggregate) -> None:
        """Add the files that an aggregate names.

        Raises:
            AggregateError: A row is invalid or out of order.
        """
        await aggregate.known(())  # only to check the order of the rows
        await self.database.add_aggregate(window.name, aggregate.etag)
        await self.database.add_named_packs(window.name, aggregate.packs)
        self.misplaced.pop(window, None)
        try:
            async for rows in _paged(aggregate.counted_rows()):
                files = [parse_source(msgspec.json.decode(row.source)) for row in rows]
                await self.database.add_counted(window.name, files)
                self._check_windows(window, files)
            async for page in _paged(aggregate.quarantined_rows()):
                found = [msgspec.json.decode(row.row) | {"window": window.name} for row in page]
                entries = msgspec.convert(found, list[QuarantinedEntry])
                await self.database.add_quarantined(entries)
        except msgspec.DecodeError as error:
            what = f"a row is invalid: {error}"
            raise AggregateError(f"aggregate {aggregate.key!r}: {what}", what=what) from None

    def _check_windows(self, window: Window, files: Iterable[RunFile]) -> None:
        """Note the files whose time is not in the window that counts them."""
        for file in files:
            own = self._context.window_of(file)
            if own != window:
                detail = f"counted in {window.name}, but its time is in {own.name}"
                self.misplaced.setdefault(window, Finding()).add(file.key, detail)

    async def _salvage(self, window: Window, reason: str) -> None:
        """Add the files that a damaged aggregate still names."""
        async with self._context.store.stream(self._context.layout.aggregate_key(window)) as body:
            aggregate = self.damaged[window] = DamagedAggregate(window, body.etag, reason)
            await self.database.add_aggregate(window.name, body.etag)
            async for rows in aggregate.read(body):
                if not aggregate.foreign:
                    counted = [row for row in rows if isinstance(row, RunFile)]
                    await self.database.add_counted(window.name, counted, intact=False)
                    entries = [row for row in rows if isinstance(row, QuarantinedEntry)]
                    await self.database.add_quarantined(entries, intact=False)


async def _paged(rows: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    page: list[T] = []
    async for row in rows:
        page.append(row)
        if len(page) >= PAGE:
            yield page
            page = []
    if page:
        yield page
