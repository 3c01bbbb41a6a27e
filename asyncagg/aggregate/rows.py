"""The rows of an aggregate, one per file: made from results, spooled in order, merged in order."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson

from asyncagg.aggregate.spool import Spool
from asyncagg.errors import OverlapError
from asyncagg.model import RunFile, RunResult

__all__ = (
    "CountedRow",
    "MergedRows",
    "QuarantinedRow",
    "RowSpool",
    "Rows",
    "counted_row",
    "merged",
    "quarantined_row",
)


class CountedRow(NamedTuple):
    """The two rows of a counted file, as JSON without a line break."""

    key: str
    etag: str
    source: bytes
    summary: bytes


class QuarantinedRow(NamedTuple):
    """The row of a refused file, as JSON without a line break."""

    key: str
    etag: str
    row: bytes


def counted_row(file: RunFile, result: RunResult) -> bytes:
    """Return what ``source_files`` and ``run_summaries`` say of a counted file, a line each.

    Where one file is slow, the rows of a whole chunk wait behind it. One text of its exact size
    takes a tenth of the memory that the two do as orjson leaves them, in blocks cut from larger.
    """
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
    return b"%b\n%b\n" % (orjson.dumps(source), orjson.dumps(summary))


def quarantined_row(file: RunFile, reason: str, moved_to: str) -> QuarantinedRow:
    """Return what ``quarantined_files`` says of a refused file."""
    row = {"key": file.key, "reason": reason, "moved_to": moved_to, "etag": file.etag}
    return QuarantinedRow(file.key, file.etag, orjson.dumps(row))


class Rows(Protocol):
    """Rows in the order of key and etag, to be read as often as needed."""

    def counted(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        ...

    def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        ...


class RowSpool:
    """New rows of one window, appended in the order of key and etag."""

    def __init__(self, counted: Spool, quarantined: Spool) -> None:
        self._counted = counted
        self._quarantined = quarantined

    def add(self, row: bytes | QuarantinedRow) -> bool:
        """Append one file's row in memory; say whether it is time to `flush`."""
        if isinstance(row, bytes):
            return self._counted.add(row)
        return self._quarantined.add(row.row + b"\n")

    async def append(self, row: bytes | QuarantinedRow) -> None:
        """Append one file's row, and flush where it is time."""
        if self.add(row):
            await self.flush()

    async def flush(self) -> None:
        """Write what was appended to where rows wait."""
        await self._counted.flush()
        await self._quarantined.flush()

    async def counted(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        source = b""
        async for lines in self._counted.lines():
            for line in lines:
                if not source:
                    source = line
                    continue
                yield _counted(source, line)
                source = b""

    async def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        async for lines in self._quarantined.lines():
            for line in lines:
                yield _quarantined(line)

    async def counted_json(self, *, summaries: bool) -> AsyncIterator[list[bytes]]:
        """Yield one of the two rows of each counted file as they stand, many at a time."""
        first = int(summaries)  # the two take turns
        async for lines in self._counted.lines():
            yield lines[first::2]
            first = (first - len(lines)) % 2


def _counted(source: bytes, summary: bytes) -> CountedRow:
    row = orjson.loads(source)
    return CountedRow(row["key"], row["etag"], source, summary)


def _quarantined(line: bytes) -> QuarantinedRow:
    row = orjson.loads(line)
    return QuarantinedRow(row["key"], row["etag"], line)


Row = TypeVar("Row", CountedRow, QuarantinedRow)


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


class MergedRows:
    """The rows of several sources, in the order of key and etag.

    Reading them fails where two sources have a row of the same file: that file would be counted
    twice. A source is opened when its first row is due: of sources whose keys do not overlap, one
    at a time is in memory.

    Args:
        sources: Each with its rows in order.
    """

    def __init__(self, sources: Sequence[Rows]) -> None:
        self._sources = sources

    def counted(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files.

        Raises:
            OverlapError: Two sources name the same file.
        """
        return _in_order([source.counted for source in self._sources])

    def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files.

        Raises:
            OverlapError: Two sources name the same file.
        """
        return _in_order([source.quarantined for source in self._sources])

    async def judge(self) -> None:
        """See that no source counts what another has refused: their limits may differ.

        Raises:
            OverlapError: One does.
        """
        tables: list[Callable[[], AsyncIterator[Any]]] = []
        for source in self._sources:
            tables += [source.counted, source.quarantined]
        async for _ in _in_order(tables):
            pass


async def _in_order(sources: Sequence[Callable[[], AsyncIterator[Row]]]) -> AsyncIterator[Row]:
    due: list[tuple[tuple[str, str], int]] = []  # the next row of each source, the first on top
    for number, source in enumerate(sources):
        first = await anext(source(), None)
        if first is not None:
            due.append(((first.key, first.etag), number))
    heapq.heapify(due)
    opened: dict[int, AsyncIterator[Row]] = {}
    waiting: dict[int, Row] = {}
    before: tuple[str, str] | None = None
    while due:
        identity, number = due[0]
        if number not in opened:
            opened[number] = sources[number]()
            waiting[number] = await anext(opened[number])
        if identity == before:
            key, etag = identity
            raise OverlapError(f"{key!r} with etag {etag!r} is in two partial aggregates")
        yield waiting.pop(number)
        before = identity
        following = await anext(opened[number], None)
        if following is None:
            heapq.heappop(due)
        else:
            waiting[number] = following
            heapq.heapreplace(due, ((following.key, following.etag), number))
