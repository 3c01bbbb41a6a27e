"""The rows of an export: their columns, and how they are made from an aggregate.

A row is one line of JSON until it is written in the format of the export.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import accumulator_of
from asyncagg.aggregate.reader import StoredAggregate, damaged
from asyncagg.ingest.timestamps import utc_of
from asyncagg.model import Window

DECIMALS = 24
"""How many decimals a time has: every time of 100 nanoseconds or more is exact."""

_SMALLEST_EXACT = 1e-7
_MAX_COUNT = 2**63 - 1
_MAX_SECONDS = 10**14  # 38 digits, the most that Parquet readers have, with 24 decimals

Count: TypeAlias = Annotated[int, Meta(ge=0, le=_MAX_COUNT)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, lt=_MAX_SECONDS)]
Moment: TypeAlias = Annotated[datetime, Meta(tz=True)]
ExactSum: TypeAlias = Annotated[str, Meta(description="A decimal number.")]


class ExportTable(StrEnum):
    """A table of an export."""

    RUNS = "runs"
    MATCHES = "matches"
    WINDOWS = "windows"


class _Source(msgspec.Struct, gc=False):
    """What is read of a row of ``source_files``."""

    key: str
    etag: str
    size: Count
    last_modified: Moment


class _Summary(msgspec.Struct, gc=False):
    """What is read of a row of ``run_summaries``."""

    run_id: str
    timestamp: str
    opportunities: Count
    matches: Count
    no_matches: Count
    errors: Count
    processing_time: Seconds


class RunRow(msgspec.Struct, gc=False):
    """A counted run file: its summary, and the object that it was read from."""

    window_name: str
    window_start: Moment
    key: str
    etag: str
    size: Count
    last_modified: Moment
    run_id: str
    timestamp: Moment | None
    timestamp_text: str
    opportunities: Count
    matches: Count
    no_matches: Count
    errors: Count
    processing_time: Seconds


class MatchRow(msgspec.Struct, gc=False):
    """One of the best ten matches of a window."""

    window_name: str
    window_start: Moment
    rank: Count
    match_score: float
    source_key: str
    source_position: Count
    match: str


class WindowRow(msgspec.Struct, gc=False):
    """The totals of a window."""

    window_name: str
    window_start: Moment
    window_end: Moment
    aggregate_key: str
    aggregate_etag: str
    aggregation_timestamp: Moment
    revision: Count
    files_counted: Count
    files_quarantined: Count
    files_late: Count
    files_bytes: Count
    total_opportunities: Count
    total_matches: Count
    total_no_matches: Count
    total_errors: Count
    processing_time_count: Count
    processing_time_sum: ExactSum
    processing_time_mean: float | None
    processing_time_min: float | None
    processing_time_max: float | None
    processing_time_p50: float | None
    processing_time_p90: float | None
    processing_time_p99: float | None


ROWS: dict[ExportTable, type[msgspec.Struct]] = {
    ExportTable.RUNS: RunRow,
    ExportTable.MATCHES: MatchRow,
    ExportTable.WINDOWS: WindowRow,
}
"""The columns of each table, in order."""

_read_source = msgspec.json.Decoder(_Source).decode
_read_summary = msgspec.json.Decoder(_Summary).decode
_encode = msgspec.json.encode


async def run_lines(window: Window, stored: StoredAggregate) -> AsyncIterator[list[bytes]]:
    """Yield the rows of an aggregate's counted files, many at a time.

    Raises:
        AggregateError: A row is damaged.
    """
    name, start = window.name, window.start
    async for sources, summaries in stored.paired_rows():
        try:
            yield [
                _encode(_run_row(name, start, _read_source(source), _read_summary(summary)))
                for source, summary in zip(sources, summaries, strict=True)
            ]
        except msgspec.MsgspecError as error:
            raise damaged(stored.key, f"a row: {error}") from error


def _run_row(name: str, start: datetime, source: _Source, summary: _Summary) -> RunRow:
    seconds = summary.processing_time
    return RunRow(
        name,
        start,
        source.key,
        source.etag,
        source.size,
        source.last_modified,
        summary.run_id,
        utc_of(summary.timestamp),
        summary.timestamp,
        summary.opportunities,
        summary.matches,
        summary.no_matches,
        summary.errors,
        seconds if seconds >= _SMALLEST_EXACT else round(seconds, DECIMALS),
    )


def head_lines(
    table: ExportTable, window: Window, key: str, etag: str, head: dict[str, Any]
) -> list[bytes]:
    """Return the rows of a window in one of the tables that are made from its head alone.

    Args:
        table: The table.
        window: The window.
        key: The key of its aggregate.
        etag: The aggregate's etag.
        head: The aggregate's head.

    Raises:
        AggregateError: A member of the head is missing, invalid, or too large for a column.
    """
    try:
        total = accumulator_of(head)
        if table is ExportTable.MATCHES:
            return [_encode(row) for row in _match_rows(window, total)]
        return [_encode(_window_row(window, key, etag, head, total))]
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise damaged(key, f"a member of its head is missing or invalid: {error}") from error


def _match_rows(window: Window, total: Accumulator) -> Iterator[MatchRow]:
    for rank, (score, key, position, body) in enumerate(total.top, 1):
        values = (window.name, window.start, rank, -score, key, position, body.decode())
        names = MatchRow.__struct_fields__
        yield msgspec.convert(dict(zip(names, values, strict=True)), MatchRow)


def _window_row(
    window: Window, key: str, etag: str, head: dict[str, Any], total: Accumulator
) -> WindowRow:
    times = total.processing_time()
    if Decimal(times["exact_sum"]) >= _MAX_SECONDS:
        raise ValueError(f"processing_time {times['exact_sum']}: expected less than {_MAX_SECONDS}")
    row = {
        "window_name": window.name,
        "window_start": window.start,
        "window_end": window.end,
        "aggregate_key": key,
        "aggregate_etag": etag,
        "aggregation_timestamp": head["aggregation_timestamp"],
        "revision": head["revision"],
        "files_counted": total.counted,
        "files_quarantined": total.quarantined,
        "files_late": head["files"]["late"],
        "files_bytes": total.bytes,
        "total_opportunities": total.opportunities,
        "total_matches": total.matches,
        "total_no_matches": total.no_matches,
        "total_errors": total.errors,
        "processing_time_sum": times["exact_sum"],
        **{f"processing_time_{name}": times[name] for name in _DISTRIBUTION},
    }
    return msgspec.convert(row, WindowRow)


_DISTRIBUTION = ("count", "mean", "min", "max", "p50", "p90", "p99")
