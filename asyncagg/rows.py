"""The rows of an aggregate, one per file: made from results, spooled in order, merged in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, TypeVar

import orjson

from asyncagg.model import RunFile, RunResult
from asyncagg.spool import Spool

__all__ = ("Counted", "Quarantined", "RowSpool", "counted_row", "merged", "quarantined_row")


class Counted(NamedTuple):
    """The two rows of a counted file, as JSON without a line break."""

    key: str
    etag: str
    source: bytes
    summary: bytes


class Quarantined(NamedTuple):
    """The row of a refused file, as JSON without a line break."""

    key: str
    etag: str
    row: bytes


def counted_row(file: RunFile, result: RunResult) -> Counted:
    """Return what ``source_files`` and ``run_summaries`` say of a counted file."""
    source = {
        "key": file.key,
        "timestamp": result.timestamp,
        "size": file.size,
        "etag": file.etag,
        "last_modified": file.last_modified,
    }
    summary = {
        "run_id": result.run_id,
        "timestamp": result.timestamp,
        "opportunities": result.opportunities,
        "matches": result.matches,
        "no_matches": result.no_matches,
        "errors": result.errors,
        "processing_time": result.processing_time or 0.0,
    }
    return Counted(file.key, file.etag, orjson.dumps(source), orjson.dumps(summary))


def quarantined_row(file: RunFile, reason: str, moved_to: str) -> Quarantined:
    """Return what ``quarantined_files`` says of a refused file."""
    row = {"key": file.key, "reason": reason, "moved_to": moved_to, "etag": file.etag}
    return Quarantined(file.key, file.etag, orjson.dumps(row))


class RowSpool:
    """New rows of one window, appended in the order of key and etag."""

    def __init__(self, counted: Spool, quarantined: Spool) -> None:
        self._counted = counted
        self._quarantined = quarantined

    async def append(self, row: Counted | Quarantined) -> None:
        """Append one file's row."""
        if isinstance(row, Counted):
            await self._counted.append(row.source + b"\n" + row.summary + b"\n")
        else:
            await self._quarantined.append(row.row + b"\n")

    async def counted(self) -> AsyncIterator[Counted]:
        """Yield the rows of the counted files."""
        source = b""
        async for lines in self._counted.lines():
            for line in lines:
                if not source:
                    source = line
                    continue
                yield _counted(source, line)
                source = b""

    async def quarantined(self) -> AsyncIterator[Quarantined]:
        """Yield the rows of the quarantined files."""
        async for lines in self._quarantined.lines():
            for line in lines:
                yield _quarantined(line)


def _counted(source: bytes, summary: bytes) -> Counted:
    row = orjson.loads(source)
    return Counted(row["key"], row["etag"], source, summary)


def _quarantined(line: bytes) -> Quarantined:
    row = orjson.loads(line)
    return Quarantined(row["key"], row["etag"], line)


Row = TypeVar("Row", Counted, Quarantined)


async def merged(old: AsyncIterator[Row], new: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield the rows of two ordered sequences in the order of key and etag."""
    left, right = await anext(old, None), await anext(new, None)
    while left is not None and right is not None:
        if left[:2] <= right[:2]:
            yield left
            left = await anext(old, None)
        else:
            yield right
            right = await anext(new, None)
    while left is not None:
        yield left
        left = await anext(old, None)
    while right is not None:
        yield right
        right = await anext(new, None)
