"""Write an aggregate document, as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.format import END, MARKS, SCHEMA_VERSION, Table, window_member
from asyncagg.aggregate.head import top_matches, totals
from asyncagg.aggregate.merge import RowSource, merge_rows
from asyncagg.aggregate.spool import BLOCK
from asyncagg.model import Pack, Window


@dataclass(frozen=True, slots=True)
class AggregateWriter:
    """An aggregate to be written: iterate it for its bytes, as often as needed.

    Attributes:
        window: Its window.
        accumulator: All that is folded into it.
        revision: How often it was committed, this time included.
        commit_id: A name of this commit that no other has.
        late: How many of its files were added after its first commit.
        written_at: The time of the write.
        sources: Where its rows come from.
        packs: The packs that its files are in.
    """

    window: Window
    accumulator: Accumulator
    revision: int
    commit_id: str
    late: int
    written_at: datetime
    sources: Sequence[RowSource]
    packs: Sequence[Pack] = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes, in blocks.

        Raises:
            OverlapError: Two sources have the same file.
        """
        yield self._head()
        for table in Table:
            async for block in _table(MARKS[table], merge_rows(self.sources, table)):
                yield block
            yield END if table is Table.QUARANTINED else b"],\n"

    def _head(self) -> bytes:
        members: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "window": window_member(self.window),
            "revision": self.revision,
            "commit_id": self.commit_id,
            "aggregation_timestamp": self.written_at.astimezone(UTC).isoformat(),
            "aggregation_window_minutes": self.window.minutes,
            **totals(self.accumulator, self.late),
        }
        if self.packs:
            members["packs"] = msgspec.to_builtins(self.packs)
        lines = [f'"{name}":{_dumps(value)},\n' for name, value in members.items()]
        # One at a time: decoded, each may be 30 times as large.
        matches = b",\n".join(map(orjson.dumps, top_matches(self.accumulator)))
        return b'{\n%b"top_matches":[\n%b\n],\n' % ("".join(lines).encode(), matches)


def _dumps(value: Any) -> str:
    # Not orjson: sums may exceed 64 bits.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def _table(mark: bytes, batches: AsyncIterator[Sequence[bytes]]) -> AsyncIterator[bytes]:
    """Yield a table without its closing bracket, in blocks."""
    pending = [mark]
    size = 0
    separator = b""
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
