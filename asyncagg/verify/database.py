"""The database of a verification: which objects exist, and which files the aggregates name.

Listings are sorted by key, aggregates by time, and a key in the archive may have a suffix. SQLite
joins them: it is in the standard library, sorts on disk in a fixed amount of memory, and states a
comparison in a few lines. Statements run in a worker thread, and rows are passed in pages.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from anyio import CapacityLimiter, move_on_after, to_thread

from asyncagg.errors import ConfigurationError
from asyncagg.job.layout import Layout
from asyncagg.model import CountedFile, Pack, RunFile
from asyncagg.verify import queries

T = TypeVar("T")

PAGE = 1000
"""Rows read or written at a time."""

_CACHE_KIB = 16 * 1024
_CLOSE_SECONDS = 30
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Counts(NamedTuple):
    """How many aggregates were read, what they count, and how many objects each place has."""

    aggregates: int = 0
    files: int = 0
    bytes: int = 0
    archived: int = 0
    quarantined: int = 0
    inbox: int = 0


class QuarantinedEntry(msgspec.Struct, frozen=True):
    """A file that an aggregate names as quarantined."""

    key: str
    etag: str
    window: str
    moved_to: str
    reason: str


class UnfinishedMove(NamedTuple):
    """A file in the inbox, its pack if it has one, and the window whose aggregate names it."""

    file: CountedFile
    window: str


class NamedPack(NamedTuple):
    """A pack as an aggregate names it, and the window of that aggregate."""

    key: str
    size: int
    etag: str
    window: str


class Database:
    """The tables of a verification; open it with `open_database`."""

    def __init__(self, connection: sqlite3.Connection, layout: Layout) -> None:
        self._connection = connection
        self._layout = layout
        self._limiter = CapacityLimiter(1)  # one connection: one thread at a time

    async def add_aggregate(self, window: str, etag: str) -> None:
        """Add an aggregate, and remove the files that it named before."""
        await self.remove_aggregate(window)
        await self._insert("aggregates", [(window, etag)])

    async def remove_aggregate(self, window: str) -> None:
        """Remove an aggregate and the files that it named."""
        if await self.etag(window) is None:
            return  # a deletion reads whole tables: they have no index by window
        for table in ("counted", "entries", "named_packs", "aggregates"):
            query = f"DELETE FROM {table} WHERE window = :window"  # noqa: S608 - constant names
            await self._first(query, window)

    async def etag(self, window: str) -> str | None:
        """Return the etag with which an aggregate was added, or None if it was not."""
        found = await self._first("SELECT etag FROM aggregates WHERE window = :window", window)
        return None if found is None else str(found[0])

    async def add_counted(
        self, window: str, files: Iterable[RunFile], *, intact: bool = True, assigned: bool = False
    ) -> None:
        """Add files that an aggregate counts.

        Args:
            window: Its window.
            files: The files.
            intact: Whether the aggregate is undamaged.
            assigned: Whether no readable row names the files, and they are inferred to be counted.
        """
        rows = []
        for file in files:
            archived = self._layout.archive_key(file.key)
            conflict = self._layout.conflict_key(archived, file.etag)
            place = (file.pack, file.offset) if isinstance(file, CountedFile) else ("", 0)
            rows.append((*_to_row(file), window, intact, archived, conflict, *place))
        await self._insert("assigned_counted" if assigned else "counted", rows)

    async def add_quarantined(
        self, entries: Iterable[QuarantinedEntry], *, intact: bool = True, assigned: bool = False
    ) -> None:
        """Add files that an aggregate names as quarantined; see `add_counted`."""
        rows = [(e.key, e.etag, e.window, intact, e.moved_to, e.reason) for e in entries]
        await self._insert("assigned_entries" if assigned else "entries", rows)

    async def add_listed(
        self, table: Literal["archived", "quarantined", "packs"], files: Iterable[RunFile]
    ) -> None:
        """Add listed objects."""
        await self._insert(table, [_to_row(file) for file in files])

    async def add_named_packs(self, window: str, packs: Iterable[Pack]) -> None:
        """Add the packs that an aggregate names."""
        rows = [(each.key, each.bytes, each.etag, window, each.id, each.files) for each in packs]
        await self._insert("named_packs", rows)

    async def packs(self, names: Iterable[str]) -> list[Pack]:
        """Return the packs with these ids that aggregates name."""
        execute = self._connection.execute
        rows = await self._run(
            lambda: [row for name in names for row in execute(queries.PACKS_BY_ID, (name,))]
        )
        return [Pack(*row) for row in rows]

    async def add_inbox(self, files: Iterable[tuple[RunFile, str]]) -> None:
        """Add run files in the inbox, each with its window."""
        rows = []
        for file, window in files:
            archived = self._layout.archive_key(file.key)
            held = self._layout.quarantine_key(file.key)
            conflict = self._layout.conflict_key(held, file.etag)
            rows.append((*_to_row(file), window, archived, held, conflict))
        await self._insert("inbox", rows)

    async def build_indexes(self) -> None:
        """Prepare the comparisons, after all listings and aggregates were added."""
        await self._run(lambda: self._connection.executescript(queries.INDEXES))

    async def counts(self) -> Counts:
        """Return how much was added."""
        return Counts(*await self._first(queries.COUNTS))

    def uncounted(self) -> AsyncIterator[list[RunFile]]:
        """Yield archived files that no aggregate counts."""
        return self._pages(queries.UNCOUNTED, _to_file)

    def without_entry(self) -> AsyncIterator[list[RunFile]]:
        """Yield files that are only in quarantine, and that no aggregate names."""
        return self._pages(queries.WITHOUT_ENTRY, _to_file)

    def counted_twice(self) -> AsyncIterator[list[tuple[str, str]]]:
        """Yield the key of each file that several aggregates count, and those windows."""
        return self._pages(queries.COUNTED_TWICE, lambda key, windows: (key, windows))

    def unfinished(self, *, counted: bool) -> AsyncIterator[list[UnfinishedMove]]:
        """Yield files in the inbox that aggregates name as counted, or else as quarantined."""
        query = queries.UNFINISHED_COUNTED if counted else queries.UNFINISHED_QUARANTINED
        return self._pages(query, lambda *row: UnfinishedMove(_to_counted(*row[:6]), row[6]))

    def conflicts(self) -> AsyncIterator[list[tuple[RunFile, RunFile]]]:
        """Yield files in the inbox, each with an archived file that may have other content."""
        return self._pages(queries.CONFLICTS, lambda *row: (_to_file(*row[:4]), _to_file(*row[4:])))

    def waiting(self, window: str, before: datetime) -> AsyncIterator[list[RunFile]]:
        """Yield files in the inbox that arrived before a time and that no aggregate names.

        Only files of this window or an earlier one.
        """
        arrived = _microseconds(before)
        return self._pages(queries.WAITING, _to_file, window, before=arrived)

    def broken_packs(self) -> AsyncIterator[list[NamedPack]]:
        """Yield packs that aggregates name, and that are gone or have another size."""
        return self._pages(queries.BROKEN_PACKS, NamedPack)

    def unnamed_packs(self, before: datetime) -> AsyncIterator[list[RunFile]]:
        """Yield packs that were written before a time and that no aggregate names."""
        return self._pages(queries.UNNAMED_PACKS, _to_file, before=_microseconds(before))

    async def all_counted_outside(self, pack: str, files: Sequence[tuple[str, str]]) -> bool:
        """Return whether intact aggregates count files (key and etag) that are not in this pack."""
        execute = self._connection.execute
        return await self._run(
            lambda: all(
                execute(queries.COUNTED_OUTSIDE, (*each, pack)).fetchone() for each in files
            )
        )

    async def named(self, files: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return those files (key and etag) that an aggregate names as counted."""
        execute = self._connection.execute
        return await self._run(
            lambda: {each for each in files if execute(queries.NAMED, each).fetchone()}
        )

    def orphan_entries(self) -> AsyncIterator[list[QuarantinedEntry]]:
        """Yield entries of quarantined files that are in none of the listings."""
        return self._pages(queries.ORPHAN_ENTRIES, QuarantinedEntry)

    def salvaged(self, window: str) -> AsyncIterator[list[CountedFile]]:
        """Yield the known counted files of a damaged aggregate, sorted by key and etag."""
        return self._pages(queries.SALVAGED_COUNTED, _to_counted, window)

    def salvaged_quarantined(self, window: str) -> AsyncIterator[list[QuarantinedEntry]]:
        """Yield the known quarantined files of a damaged aggregate, sorted by key and etag."""
        return self._pages(queries.SALVAGED_QUARANTINED, QuarantinedEntry, window)

    async def counted_elsewhere(self, window: str) -> int:
        """Return how many files of a damaged aggregate intact aggregates count too."""
        return int((await self._first(queries.COUNTED_ELSEWHERE, window))[0])

    async def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        values = ", ".join("?" * len(rows[0]))
        query = f"INSERT INTO {table} VALUES ({values})"  # noqa: S608 - constant names
        await self._run(lambda: self._connection.executemany(query, rows))

    async def _first(self, query: str, window: str = "") -> Any:
        execute = self._connection.execute
        return await self._run(lambda: execute(query, {"window": window}).fetchone())

    async def _pages(
        self, query: str, make: Callable[..., T], window: str = "", **values: int
    ) -> AsyncIterator[list[T]]:
        values_of = {"window": window, **values}
        cursor = await self._run(lambda: self._connection.execute(query, values_of))
        while rows := await self._run(lambda: cursor.fetchmany(PAGE)):
            yield [make(*row) for row in rows]

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"temporary folder of the system: {error}; expected room for a row of about 300 "
                "bytes for each file (SQLITE_TMPDIR or TMPDIR names another folder)"
            ) from error


@asynccontextmanager
async def open_database(layout: Layout) -> AsyncIterator[Database]:
    """Open an empty database, in an unnamed temporary file that is gone when the process ends."""
    connection = await to_thread.run_sync(_connect)
    try:
        yield Database(connection, layout)
    finally:
        with move_on_after(_CLOSE_SECONDS, shield=True):
            await to_thread.run_sync(connection.close, abandon_on_cancel=True)


def _connect() -> sqlite3.Connection:
    # An empty name is a temporary file: https://www.sqlite.org/inmemorydb.html#temp_db
    connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    # The file does not outlive the process, so it needs no journal: all is one transaction.
    connection.executescript(
        f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KIB};"
        f"PRAGMA temp_store = FILE; BEGIN; {queries.TABLES}"
    )
    return connection


def _to_row(file: RunFile) -> tuple[str, int, str, int]:
    return file.key, file.size, file.etag, _microseconds(file.last_modified)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _to_file(key: str, size: int, etag: str, modified: int) -> RunFile:
    return RunFile(key, size, etag, _EPOCH + timedelta(microseconds=modified))


def _to_counted(*row: Any) -> CountedFile:
    *reference, pack, offset = row
    file = _to_file(*reference)
    return CountedFile(file.key, file.size, file.etag, file.last_modified, pack=pack, offset=offset)
