"""What stands in a store and what its aggregates name, side by side, to be compared.

The two are in different orders: listings in that of their keys, aggregates in that of time, and a
file's place in the archive may carry a suffix. So they are joined by a database, SQLite's, in an
unnamed temporary file: it holds a fixed amount of memory whatever the number of files, sorts on
disk, is of the standard library, and says in one line of SQL what a merge of sorted files would
take a page for. All of it happens in a worker thread, a page of rows at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import msgspec
from anyio import CancelScope, CapacityLimiter, to_thread

from asyncagg.errors import ConfigurationError
from asyncagg.model import RunFile
from asyncagg.verify import ledger_sql

__all__ = (
    "PAGE",
    "Clash",
    "CountedRow",
    "Counts",
    "InboxRow",
    "Ledger",
    "Listing",
    "OrphanEntry",
    "RefusedRow",
    "Twice",
    "Unfinished",
    "open_ledger",
)

T = TypeVar("T")

PAGE = 1000
"""Rows that go to and from the database at a time."""

_CACHE_KIB = 16 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Counts(NamedTuple):
    """How much there is.

    Attributes:
        aggregates: Aggregates read.
        files: Files that they count.
        bytes: The size of those together.
        archived: Objects in the archive.
        quarantined: Objects in quarantine.
        inbox: Run files in the inbox.
    """

    aggregates: int = 0
    files: int = 0
    bytes: int = 0
    archived: int = 0
    quarantined: int = 0
    inbox: int = 0


class Listing(StrEnum):
    """A table of objects that stand."""

    ARCHIVED = "archived"
    QUARANTINED = "quarantined"


class CountedRow(NamedTuple):
    """A file that an aggregate counts, and the two places where it may be in the archive."""

    file: RunFile
    place: str
    beside: str


class RefusedRow(msgspec.Struct, frozen=True):
    """A file that an aggregate names as quarantined."""

    key: str
    etag: str
    window: str
    moved_to: str
    reason: str


class InboxRow(NamedTuple):
    """A run file in the inbox, its window, its place in the archive, and the two in quarantine."""

    file: RunFile
    window: str
    place: str
    hold: str
    hold_beside: str


class Unfinished(NamedTuple):
    """A file in the inbox that an aggregate names already."""

    file: RunFile
    window: str


class Twice(NamedTuple):
    """A file that several aggregates count; their windows, with commas between."""

    key: str
    etag: str
    windows: str
    times: int


class Clash(NamedTuple):
    """A file in the inbox, and one of other content in its place in the archive."""

    waiting: RunFile
    archived: RunFile


class OrphanEntry(NamedTuple):
    """An entry of a quarantined file that is not where the entry says."""

    key: str
    etag: str
    window: str
    moved_to: str


class Ledger:
    """The tables. See `open_ledger`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._turn = CapacityLimiter(1)  # one connection: one thread at a time

    async def note_aggregate(self, window: str, etag: str) -> None:
        """Note under which etag an aggregate was read; what was noted of it before is forgotten."""

        def work() -> None:
            self._forget(window)
            self._database.execute("INSERT INTO aggregates VALUES (?, ?)", (window, etag))

        await self._do(work)

    async def forget(self, window: str) -> None:
        """Forget an aggregate that is gone."""
        await self._do(lambda: self._forget(window))

    def _forget(self, window: str) -> None:
        if self._etag(window) is None:
            return
        for table in ("counted", "refused", "aggregates"):
            query = f"DELETE FROM {table} WHERE window = ?"  # noqa: S608 - the names are ours
            self._database.execute(query, (window,))

    async def etag(self, window: str) -> str | None:
        """Return the etag under which an aggregate was read, if it was."""
        return await self._do(lambda: self._etag(window))

    def _etag(self, window: str) -> str | None:
        query = "SELECT etag FROM aggregates WHERE window = ?"
        found = self._database.execute(query, (window,)).fetchone()
        return None if found is None else str(found[0])

    async def note_counted(
        self, window: str, rows: Iterable[CountedRow], *, sound: bool = True, claimed: bool = False
    ) -> None:
        """Note files that an aggregate counts.

        Args:
            window: Its window.
            rows: The files.
            sound: Whether the whole of the aggregate could be read.
            claimed: No row of it names them; they are taken for its own all the same.
        """
        await self._insert(
            "claimed" if claimed else "counted",
            [
                (f.key, f.etag, f.size, _micros(f.last_modified), window, sound, place, beside)
                for f, place, beside in rows
            ],
        )

    async def note_refused(
        self, rows: Iterable[RefusedRow], *, sound: bool = True, claimed: bool = False
    ) -> None:
        """Note files that an aggregate names as quarantined; see `note_counted`."""
        await self._insert(
            "claimed_refused" if claimed else "refused",
            [(r.key, r.etag, r.window, sound, r.moved_to, r.reason) for r in rows],
        )

    async def note_listed(self, listing: Listing, files: Iterable[RunFile]) -> None:
        """Note objects that stand."""
        await self._insert(listing.value, [_of_file(file) for file in files])

    async def note_inbox(self, rows: Iterable[InboxRow]) -> None:
        """Note run files in the inbox."""
        await self._insert("inbox", [(*_of_file(row[0]), *row[1:]) for row in rows])

    async def index(self) -> None:
        """Make ready to compare: all rows of listings and aggregates are in."""
        await self._do(lambda: self._database.executescript(ledger_sql.INDEXES))

    async def counts(self) -> Counts:
        """Return how much was noted."""
        return Counts(*await self._do(lambda: self._database.execute(ledger_sql.COUNTS).fetchone()))

    def uncounted(self) -> AsyncIterator[list[RunFile]]:
        """Yield archived files that no aggregate counts."""
        return self._pages(ledger_sql.UNCOUNTED, _to_file)

    def unentered(self) -> AsyncIterator[list[RunFile]]:
        """Yield quarantined files that no aggregate names, and that are not in the inbox too."""
        return self._pages(ledger_sql.UNENTERED, _to_file)

    def twice(self) -> AsyncIterator[list[Twice]]:
        """Yield files that several aggregates count."""
        return self._pages(ledger_sql.TWICE, Twice)

    def unfinished(self, *, counted: bool) -> AsyncIterator[list[Unfinished]]:
        """Yield files in the inbox that are counted already, or refused already."""
        query = ledger_sql.UNFINISHED_COUNTED if counted else ledger_sql.UNFINISHED_REFUSED
        return self._pages(query, lambda *row: Unfinished(_to_file(*row[:4]), row[4]))

    def clashes(self) -> AsyncIterator[list[Clash]]:
        """Yield files in the inbox whose place in the archive seems taken by other content."""
        return self._pages(
            ledger_sql.CLASHES, lambda *row: Clash(_to_file(*row[:4]), _to_file(*row[4:]))
        )

    def missed(self) -> AsyncIterator[list[OrphanEntry]]:
        """Yield entries of quarantined files that seem gone."""
        return self._pages(ledger_sql.MISSED, OrphanEntry)

    def salvaged(self, window: str) -> AsyncIterator[list[RunFile]]:
        """Yield what a damaged aggregate seems to have counted, in the order of key and etag."""
        return self._pages(ledger_sql.SALVAGED, _to_file, window)

    def salvaged_refused(self, window: str) -> AsyncIterator[list[RefusedRow]]:
        """Yield what a damaged aggregate seems to have refused, in the order of key and etag."""
        return self._pages(ledger_sql.SALVAGED_REFUSED, RefusedRow, window)

    async def counted_elsewhere(self, window: str) -> int:
        """Return how many files of a damaged aggregate others count too."""
        work = self._database.execute
        found = await self._do(lambda: work(ledger_sql.ELSEWHERE, {"window": window}).fetchone())
        return int(found[0])

    async def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        values = ", ".join("?" * len(rows[0]))
        query = f"INSERT INTO {table} VALUES ({values})"  # noqa: S608 - the names are ours
        await self._do(lambda: self._database.executemany(query, rows))

    async def _pages(
        self, query: str, make: Callable[..., T], window: str = ""
    ) -> AsyncIterator[list[T]]:
        cursor = await self._do(lambda: self._database.execute(query, {"window": window}))
        while rows := await self._do(lambda: cursor.fetchmany(PAGE)):
            yield [make(*row) for row in rows]

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(work, limiter=self._turn)
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"temporary folder of the system: {error}; expected room for a row of about 300 "
                "bytes for each file (SQLITE_TMPDIR or TMPDIR names another folder)"
            ) from error


@asynccontextmanager
async def open_ledger() -> AsyncIterator[Ledger]:
    """Open an empty ledger; its file has no name, and is gone with the process at the latest."""
    database = await to_thread.run_sync(_connect)
    try:
        yield Ledger(database)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(database.close)


def _connect() -> sqlite3.Connection:
    # An empty name is a temporary file: https://www.sqlite.org/inmemorydb.html#temp_db
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    # Nothing in it outlives a crash, so nothing has to be kept safe from one: all is one
    # transaction without a journal.
    database.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KIB};"
        f"PRAGMA temp_store = FILE; BEGIN; {ledger_sql.TABLES}"
    )
    return database


def _of_file(file: RunFile) -> tuple[str, int, str, int]:
    return file.key, file.size, file.etag, _micros(file.last_modified)


def _to_file(key: str, size: int, etag: str, modified: int) -> RunFile:
    return RunFile(key, size, etag, _EPOCH + timedelta(microseconds=modified))


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
