"""Aggregate documents for tests: written from run files and results, and read back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.reader import StoredAggregate, read_aggregate
from asyncagg.aggregate.rows import (
    CountedRow,
    QuarantinedRow,
    RowSpool,
    counted_row,
    quarantined_row,
)
from asyncagg.aggregate.spool import open_spool
from asyncagg.aggregate.writer import AggregateWriter
from asyncagg.model import RunFile, RunResult, Window

__all__ = (
    "IN_MEMORY",
    "ON_DISK",
    "WINDOW",
    "Entry",
    "entry",
    "loaded",
    "rows_of",
    "without_history",
    "written",
)

WINDOW = Window(datetime(2025, 10, 21, 14, tzinfo=UTC), 5)
IN_MEMORY = 1 << 30
ON_DISK = 0

_HISTORY = (b'"revision":', b'"aggregation_timestamp":')


class Entry(NamedTuple):
    """What a document says of one file: its result, or why it was refused."""

    file: RunFile
    outcome: RunResult | str


def entry(key: str, etag: str = "e", **fields: Any) -> Entry:
    """Return an entry of a counted file with these fields of its result."""
    file = RunFile(key, 100, etag, WINDOW.start + timedelta(minutes=1))
    told = {"run_id": key, "timestamp": "2025-10-21T13:56:00", "opportunities": 3, **fields}
    return Entry(file, RunResult(**told))


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Return entries in the order of key and etag."""
    return sorted(entries, key=lambda each: (each.file.key, each.file.etag))


@asynccontextmanager
async def document(
    entries: Iterable[Entry],
    *,
    existing: StoredAggregate | None = None,
    window: Window = WINDOW,
    memory: int = IN_MEMORY,
    late: int = 0,
) -> AsyncIterator[AggregateWriter]:
    """Open a document of what stood before and of these entries."""
    async with open_spool(memory) as counted, open_spool(memory) as quarantined:
        rows = RowSpool(counted, quarantined)
        total = Accumulator()
        for file, outcome in in_order(entries):
            if isinstance(outcome, str):
                total.quarantined += 1
                await rows.append(quarantined_row(file, outcome, f"quarantine/{file.key}"))
            else:
                total.fold(file.key, file.size, outcome)
                await rows.append(counted_row(file, outcome))
        if existing is not None:
            total.merge(existing.accumulator)
        yield AggregateWriter(
            window=window,
            accumulator=total,
            revision=existing.revision + 1 if existing else 1,
            late=late + (existing.late if existing else 0),
            written_at=window.end,
            sources=[rows, existing] if existing else [rows],
        )


async def written(entries: Iterable[Entry], **options: Any) -> bytes:
    """Return the bytes of the `document` of these entries."""
    async with document(entries, **options) as made:
        return b"".join([block async for block in made])


@asynccontextmanager
async def loaded(
    data: bytes, *, window: Window = WINDOW, memory: int = IN_MEMORY, chunk: int = 1 << 16
) -> AsyncIterator[StoredAggregate]:
    """Open a document that stands, read in chunks of this size."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    async with open_spool(memory) as spool:
        yield await read_aggregate("aggregates/a.json", "etag", window, chunks(), spool)


async def rows_of(existing: StoredAggregate) -> tuple[list[CountedRow], list[QuarantinedRow]]:
    """Return all rows of a document that stands."""
    return (
        [row async for row in existing.counted_rows()],
        [row async for row in existing.quarantined_rows()],
    )


def without_history(data: bytes) -> bytes:
    """Return a document without what tells how often and when it was written."""
    lines = [line for line in data.split(b"\n") if not line.startswith(_HISTORY)]
    [index] = [at for at, line in enumerate(lines) if line.startswith(b'"files":')]
    files = orjson.loads(lines[index].removeprefix(b'"files":').removesuffix(b","))
    lines[index] = orjson.dumps(files | {"late": None})
    return b"\n".join(lines)
