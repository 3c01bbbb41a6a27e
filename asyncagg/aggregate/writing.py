"""Write an aggregate document, as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.format import MARKS, SCHEMA_VERSION, window_member
from asyncagg.aggregate.head import top_matches, totals
from asyncagg.aggregate.merge import QUARANTINED, SOURCES, SUMMARIES, Joined
from asyncagg.aggregate.reading import StoredAggregate
from asyncagg.aggregate.rows import Rows, RowSpool, merged
from asyncagg.aggregate.spool import BLOCK
from asyncagg.model import Window

__all__ = ("AggregateWriter",)


@dataclass(frozen=True, slots=True)
class AggregateWriter:
    """An aggregate to be written: iterate it for its bytes, as often as needed.

    Attributes:
        window: Its window.
        accumulator: All that is folded into it, what stood before included.
        revision: How often it was committed, this time included.
        late: How many of its files came after its first commit.
        written_at: When it was written.
        rows: The rows of the files that are new in it, or of the documents that it is joined from.
        existing: What stood before, whose rows it keeps.
        appends: Whether every new row is known to come behind all that stood before, whose rows
            are then copied as they are.
    """

    window: Window
    accumulator: Accumulator
    revision: int
    late: int
    written_at: datetime
    rows: Rows | Joined
    existing: StoredAggregate | None = None
    appends: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes, in blocks."""
        yield self._head()
        for number in (SUMMARIES, SOURCES, QUARANTINED):
            kept = self.existing.kept(number) if self.existing and self.appends else _nothing()
            async for block in _table(MARKS[number], kept, self._lines(number)):
                yield block
            yield b"]" if number == QUARANTINED else b"],\n"
        yield b"\n}\n"

    def _head(self) -> bytes:
        members = {
            "schema_version": SCHEMA_VERSION,
            "window": window_member(self.window),
            "revision": self.revision,
            "aggregation_timestamp": self.written_at.astimezone(UTC).isoformat(),
            "aggregation_window_minutes": self.window.minutes,
            **totals(self.accumulator, self.late),
        }
        lines = [f'"{name}":{_dumps(value)},\n' for name, value in members.items()]
        matches = b",\n".join([orjson.dumps(match) for match in top_matches(self.accumulator)])
        return b'{\n%b"top_matches":[\n%b\n],\n' % ("".join(lines).encode(), matches)

    def _lines(self, number: int) -> AsyncIterator[Sequence[bytes]]:
        """Return the new rows of a table, merged with those that stood before, if need be."""
        if isinstance(self.rows, Joined):
            return self.rows.lines(number)
        old = None if self.appends else self.existing
        if number == QUARANTINED:
            return self._refused(old, self.rows)
        if isinstance(self.rows, RowSpool) and old is None:
            # Nothing to merge them with: they need not be parsed.
            return self.rows.counted_json(summaries=number == SUMMARIES)
        return self._counted(old, self.rows, number)

    @staticmethod
    async def _counted(
        old: StoredAggregate | None, new: Rows, number: int
    ) -> AsyncIterator[Sequence[bytes]]:
        async for row in merged(old.counted() if old else _nothing(), new.counted()):
            yield (row.summary if number == SUMMARIES else row.source,)

    @staticmethod
    async def _refused(old: StoredAggregate | None, new: Rows) -> AsyncIterator[Sequence[bytes]]:
        async for row in merged(old.quarantined() if old else _nothing(), new.quarantined()):
            yield (row.row,)


def _dumps(value: Any) -> str:
    # Not orjson: sums may exceed 64 bits.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def _nothing() -> AsyncIterator[Any]:
    return
    yield


async def _table(
    mark: bytes, kept: AsyncIterator[bytes], batches: AsyncIterator[Sequence[bytes]]
) -> AsyncIterator[bytes]:
    """Yield a table without its closing bracket, in blocks: rows that are kept, then others."""
    yield mark
    separator = b""
    async for block in kept:
        yield block
        separator = b",\n"
    pending: list[bytes] = []
    size = 0
    async for rows in batches:
        if not rows:
            continue
        pending += (separator, b",\n".join(rows))
        separator = b",\n"
        size += len(pending[-1])
        if size >= BLOCK:
            yield b"".join(pending)
            pending, size = [], 0
    if separator:
        pending.append(b"\n")
    yield b"".join(pending)
