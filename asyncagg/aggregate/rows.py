"""The rows of an aggregate, one per file: made from results, and spooled in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import orjson

from asyncagg.aggregate.format import Table
from asyncagg.aggregate.spool import Spool
from asyncagg.model import Place, RunFile, RunResult


class CountedRow(NamedTuple):
    """The two rows of a counted file, as JSON without a line break."""

    key: str
    etag: str
    source: bytes
    summary: bytes


class QuarantinedRow(NamedTuple):
    """The row of a quarantined file, as JSON without a line break."""

    key: str
    etag: str
    row: bytes


def counted_row(file: RunFile, result: RunResult, place: Place | None = None) -> bytes:
    """Return the rows of ``source_files`` and ``run_summaries`` for a counted file, a line each.

    One object of exact size: where one file is slow, the rows of a whole chunk wait behind it, and
    two objects as orjson allocates them take ten times the memory.
    """
    source: dict[str, Any] = {
        "key": file.key,
        "timestamp": result.timestamp,
        "size": file.size,
        "etag": file.etag,
        "last_modified": file.last_modified,
    }
    if place is not None:
        source["pack"], source["offset"] = place
    summary = {
        "run_id": result.run_id,
        "timestamp": result.timestamp,
        "opportunities": result.opportunities,
        "matches": result.matches,
        "no_matches": result.no_matches,
        "errors": result.errors,
        "processing_time": result.processing_time or 0.0,
    }
    return b"%b\n%b\n" % (orjson.dumps(source), orjson.dumps(summary))


def quarantined_row(file: RunFile, reason: str, moved_to: str) -> QuarantinedRow:
    """Return the row of ``quarantined_files`` for a file."""
    row = {"key": file.key, "reason": reason, "moved_to": moved_to, "etag": file.etag}
    return QuarantinedRow(file.key, file.etag, orjson.dumps(row))


class RowSpool:
    """New rows of one window, appended in the order of key and etag.

    Args:
        counted: An empty spool for the rows of counted files.
        quarantined: An empty spool for the rows of quarantined files.
    """

    def __init__(self, counted: Spool, quarantined: Spool) -> None:
        self._counted = counted
        self._quarantined = quarantined
        self._first = self._last = b""  # rows of counted files
        self._quarantined_keys: list[str] = []  # the first and the last

    @property
    def first_key(self) -> str:
        """The first key in it; empty if it has no row."""
        return min([*_keys(self._first), *self._quarantined_keys], default="")

    @property
    def last_key(self) -> str:
        """The last key in it; empty if it has no row."""
        return max([*_keys(self._last), *self._quarantined_keys], default="")

    def add(self, row: bytes | QuarantinedRow) -> bool:
        """Append one file's row in memory; return whether it is time to `flush`."""
        if isinstance(row, bytes):
            self._first = self._first or row
            self._last = row
            return self._counted.add(row)
        self._quarantined_keys[1:] = [row.key]
        return self._quarantined.add(row.row + b"\n")

    async def append(self, row: bytes | QuarantinedRow) -> None:
        """Append one file's row, and flush if it is time.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        if self.add(row):
            await self.flush()

    async def flush(self) -> None:
        """Write the rows that are in memory to the spools.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        await self._counted.flush()
        await self._quarantined.flush()

    async def counted_rows(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        source = b""
        async for lines in self._counted.lines():
            for line in lines:
                if not source:
                    source = line
                    continue
                row = orjson.loads(source)
                yield CountedRow(row["key"], row["etag"], source, line)
                source = b""

    async def quarantined_rows(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        async for lines in self._quarantined.lines():
            for line in lines:
                row = orjson.loads(line)
                yield QuarantinedRow(row["key"], row["etag"], line)

    async def raw_rows(self, table: Table) -> AsyncIterator[Sequence[bytes]]:
        """Yield the rows of a table without parsing them, many at a time."""
        if table is Table.QUARANTINED:
            async for lines in self._quarantined.lines():
                yield lines
            return
        first = int(table is Table.SUMMARIES)  # source and summary alternate
        async for lines in self._counted.lines():
            yield lines[first::2]
            first = (first - len(lines)) % 2


def _keys(row: bytes) -> list[str]:
    """Return the key of a counted file's row, if there is a row."""
    return [orjson.loads(row.partition(b"\n")[0])["key"]] if row else []
