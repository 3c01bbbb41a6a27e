"""The aggregate document: written as a stream, read back as a stream.

Its layout is canonical JSON of one member per line and one row per line, head first:

    {
    "schema_version":1,
    …
    "top_matches":[
    {…},
    {…}
    ],
    "run_summaries":[
    …
    ],
    "source_files":[
    …
    ],
    "quarantined_files":[
    …
    ]
    }

A JSON string never holds a raw line break, so that the parts are found and the rows are read by
lines: in bounded memory and without parsing what is only copied. Row ``i`` of ``run_summaries``
and row ``i`` of ``source_files`` speak of the same file; rows are in the order of key and etag.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from typing import Any, NamedTuple

import orjson

from asyncagg.accumulator import RESERVED, Accumulator, RankedMatch, Sketch
from asyncagg.errors import AggregateError
from asyncagg.joining import QUARANTINED, SOURCES, SUMMARIES, Joined
from asyncagg.model import RunFile, Window
from asyncagg.rows import Counted, Quarantined, Rows, RowSpool, merged
from asyncagg.spool import BLOCK, LONGEST_LINE, Spool

__all__ = (
    "SCHEMA_VERSION",
    "Document",
    "Existing",
    "accumulator_of",
    "read",
    "read_head",
    "read_quarantined",
    "schema",
    "top_matches",
    "totals",
    "window_member",
)

SCHEMA_VERSION = 1

_MARKS = (b'"run_summaries":[\n', b'"source_files":[\n', b'"quarantined_files":[\n')
_END = b"]\n}\n"
_LONGEST_HEAD = 16 * 1024 * 1024


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an aggregate document."""
    text = resources.files("asyncagg").joinpath("aggregate.schema.json").read_text("utf-8")
    return dict(json.loads(text))


@dataclass(frozen=True, slots=True)
class Existing:
    """An aggregate that stands: its head in memory, its rows in a spool.

    Attributes:
        key: Its key, for messages.
        etag: The etag under which it was read.
        revision: How often it was committed.
        late: How many of its files came after its first commit.
        accumulator: What is folded into it.
        first_key: The first key that it names; empty if it names none.
        last_key: The last key that it names; empty if it names none.
    """

    key: str
    etag: str
    revision: int
    late: int
    accumulator: Accumulator
    first_key: str
    last_key: str
    _spool: Spool
    _tables: list[_Table]

    async def known(self, files: Iterable[RunFile]) -> tuple[set[str], set[str]]:
        """Return which of the files it names already, by key: (counted, quarantined)."""
        asked = {file.key: file.etag for file in files}
        found: list[set[str]] = []
        for number in (SOURCES, QUARANTINED):
            keys: set[str] = set()
            before = ("", "")
            async for lines in self.lines(number):
                for line in lines:
                    row = self._load(line)
                    identity = (row["key"], row["etag"])
                    if identity <= before:
                        raise _damaged(self.key, f"a row is out of order: {line[:80]!r}")
                    before = identity
                    if asked.get(row["key"]) == row["etag"]:
                        keys.add(row["key"])
            found.append(keys)
        return found[0], found[1]

    async def counted(self) -> AsyncIterator[Counted]:
        """Yield the rows of its counted files, in their order."""
        summaries: list[bytes] = []
        supply = self.lines(SUMMARIES)
        async for sources in self.lines(SOURCES):
            while len(summaries) < len(sources):
                summaries += await anext(supply)
            for source, summary in zip(sources, summaries, strict=False):
                row = self._load(source)
                yield Counted(row["key"], row["etag"], source, summary)
            del summaries[: len(sources)]

    async def quarantined(self) -> AsyncIterator[Quarantined]:
        """Yield the rows of its quarantined files, in their order."""
        async for lines in self.lines(QUARANTINED):
            for line in lines:
                row = self._load(line)
                yield Quarantined(row["key"], row["etag"], line)

    async def kept(self, number: int) -> AsyncIterator[bytes]:
        """Yield the rows of a table as they stand, in blocks, without the last line's end."""
        table = self._tables[number]
        async for block in self._spool.blocks(table.start, table.end - 1):
            yield block

    async def lines(self, number: int) -> AsyncIterator[list[bytes]]:
        """Yield the rows of a table as they stand, many at a time."""
        table = self._tables[number]
        async for lines in self._spool.lines(table.start, table.end):
            rows = [line.removesuffix(b",") for line in lines]
            for row in rows:
                if row[:1] != b"{" or row[-1:] != b"}":
                    raise _damaged(self.key, f"a row reads {row[:80]!r}")
            yield rows

    def _load(self, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = orjson.loads(line)
            named = isinstance(row["key"], str) and isinstance(row["etag"], str)
        except (orjson.JSONDecodeError, KeyError):
            named = False
        if not named:
            raise _damaged(self.key, f"a row reads {line[:80]!r}")
        return row


def _damaged(key: str, what: str) -> AggregateError:
    return AggregateError(
        f"aggregate {key!r}: {what}; expected a document that asyncagg wrote. It is left as it is: "
        "move it away and its window is settled by the next run",
        what=what,
    )


async def read(
    key: str, etag: str, window: Window, chunks: AsyncIterator[bytes], spool: Spool
) -> Existing:
    """Read an aggregate back.

    Args:
        key: Its key, for messages.
        etag: The etag of the content.
        window: The window that it is to be the aggregate of.
        chunks: Its content.
        spool: An empty spool to hold it.

    Raises:
        AggregateError: It is not ours, is damaged, or is of another window.
    """
    async for chunk in chunks:
        await spool.append(chunk)
    try:
        tables = await _find_tables(spool)
    except ValueError as error:
        raise _damaged(key, str(error)) from None
    if tables is None:
        raise _damaged(key, "its parts are not where they belong")
    head = await _load_head(key, spool, tables[0].start - len(_MARKS[0]))
    _check_window(key, head, window)
    existing = _with_keys(_existing(key, etag, head, spool, tables))
    total = existing.accumulator
    for table, rows in zip(tables, (total.counted, total.counted, total.quarantined), strict=True):
        if table.rows != rows:
            raise _damaged(key, f"it has {table.rows} rows where its head counts {rows}")
    return existing


def _with_keys(existing: Existing) -> Existing:
    named = [
        existing._load(row.removesuffix(b","))["key"]  # noqa: SLF001 - its own reader
        for table in existing._tables[SOURCES:]  # noqa: SLF001 - likewise
        if table.rows
        for row in (table.first, table.last)
    ]
    return replace(existing, first_key=min(named), last_key=max(named)) if named else existing


class _Table(NamedTuple):
    start: int
    end: int
    rows: int
    first: bytes
    last: bytes


async def _find_tables(spool: Spool) -> list[_Table] | None:
    """Return where the rows of the three tables lie, or None if anything is out of place."""
    marks: list[tuple[int, int]] = []  # of each table: its first row's offset and line
    firsts: list[bytes] = []  # of each table: its first row, if it has one
    lasts: list[bytes] = []  # of each table: what stands before its mark's bracket
    offset = number = 0
    tail: list[bytes] = []
    async for lines in spool.lines():
        if len(firsts) < len(marks):
            firsts += lines[:1]
        for at, line in enumerate(lines):
            if line[-1:] != b"[" or line != _MARKS[len(marks) % len(_MARKS)][:-1]:
                continue
            *_, last, bracket = [b"", b"", *tail, *lines[:at]]
            if bracket != b"],":
                return None
            marks.append((offset + _size(lines[: at + 1]), number + at + 1))
            lasts.append(last)
            firsts += lines[at + 1 : at + 2]
        offset += _size(lines)
        number += len(lines)
        tail = [*tail, *lines][-3:]
    if len(marks) != len(_MARKS) or tail[1:] != [b"]", b"}"] or offset != spool.size:
        return None
    # Behind the rows of a table stand "]," and the next table's mark, or "]" and "}".
    ends = [
        (marks[1][0] - len(_MARKS[1]) - 3, marks[1][1] - 2),
        (marks[2][0] - len(_MARKS[2]) - 3, marks[2][1] - 2),
        (spool.size - len(_END), number - 2),
    ]
    return [
        _Table(start, end, line_end - line_start, first, row)
        for (start, line_start), (end, line_end), first, row in zip(
            marks, ends, firsts, [*lasts[1:], tail[0]], strict=True
        )
    ]


def _size(lines: Sequence[bytes]) -> int:
    return sum(map(len, lines)) + len(lines)


async def _load_head(key: str, spool: Spool, end: int) -> dict[str, Any]:
    return _loads_head(key, b"".join([block async for block in spool.blocks(0, end)]))


def _loads_head(key: str, text: bytes) -> dict[str, Any]:
    try:
        head = json.loads(text.rstrip().removesuffix(b",") + b"}")
    except (ValueError, RecursionError) as error:
        raise _damaged(key, f"its head is not JSON ({error})") from None
    if not isinstance(head, dict) or head.get("schema_version") != SCHEMA_VERSION:
        raise _damaged(key, f"its schema_version is not {SCHEMA_VERSION}")
    return head


async def read_head(key: str, window: Window, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
    """Read what an aggregate says before its rows, and no further.

    Args:
        key: Its key, for messages.
        window: The window that it is to be the aggregate of.
        chunks: Its content, from the start.

    Raises:
        AggregateError: It is not ours, is damaged, or is of another window.
    """
    text = bytearray()
    async for chunk in chunks:
        searched = max(0, len(text) - len(_MARKS[0]))
        text += chunk
        end = text.find(_MARKS[0], searched)
        if end >= 0:
            head = _loads_head(key, bytes(text[:end]))
            _check_window(key, head, window)
            return head
        if len(text) > _LONGEST_HEAD:
            break
    raise _damaged(key, "its parts are not where they belong")


async def read_quarantined(
    key: str, chunks: AsyncIterator[bytes], most: int
) -> list[dict[str, Any]]:
    """Read the first rows of ``quarantined_files``; what stands before them is passed over.

    Args:
        key: Its key, for messages.
        chunks: Its content, from the start.
        most: How many rows to read.

    Raises:
        AggregateError: It is not ours, or is damaged.
    """
    mark = b"\n" + _MARKS[2]
    rows: list[dict[str, Any]] = []
    found = False
    rest = b""
    async for chunk in chunks:
        rest += chunk
        if not found:
            _, sep, behind = rest.partition(mark)
            found = bool(sep)
            rest = behind if found else rest[-len(mark) :]
        if found:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line == b"]" or len(rows) >= most:
                    return rows
                rows.append(_quarantined_row(key, line.removesuffix(b",")))
            if len(rest) > LONGEST_LINE:
                break
    raise _damaged(key, "its parts are not where they belong")


def _quarantined_row(key: str, line: bytes) -> dict[str, Any]:
    try:
        row: dict[str, Any] = orjson.loads(line)
        sound = all(isinstance(row[name], str) for name in ("key", "reason", "moved_to"))
    except (orjson.JSONDecodeError, LookupError, TypeError):
        sound = False
    if not sound:
        raise _damaged(key, f"a row reads {line[:80]!r}")
    return row


def _check_window(key: str, head: dict[str, Any], window: Window) -> None:
    told = head.get("window")
    if told != window_member(window):
        raise _damaged(key, f"it is of window {told!r}, not of {window_member(window)!r}")


def window_member(window: Window) -> dict[str, Any]:
    """Return what a document says of its window."""
    return {
        "name": window.name,
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "minutes": window.minutes,
    }


def _existing(
    key: str, etag: str, head: dict[str, Any], spool: Spool, tables: list[_Table]
) -> Existing:
    try:
        return Existing(
            key=key,
            etag=etag,
            revision=int(head["revision"]),
            late=int(head["files"]["late"]),
            accumulator=accumulator_of(head),
            first_key="",
            last_key="",
            _spool=spool,
            _tables=tables,
        )
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise _damaged(key, f"its head lacks or garbles {error}") from None


def accumulator_of(head: dict[str, Any]) -> Accumulator:
    """Return the accumulator that `totals` and `top_matches` told of.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError: It is garbled.
    """
    files, times = head["files"], head["processing_time"]
    value = Accumulator()
    value.counted = int(files["counted"])
    value.quarantined = int(files["quarantined"])
    value.bytes = int(files["bytes"])
    value.opportunities = int(head["total_opportunities"])
    value.matches = int(head["total_matches"])
    value.no_matches = int(head["total_no_matches"])
    value.errors = int(head["total_errors"])
    value.timed = int(times["count"])
    value.seconds = Decimal(times["exact_sum"])
    if value.timed:
        value.shortest = float(times["min"])
        value.longest = float(times["max"])
        if not (math.isfinite(value.shortest) and math.isfinite(value.longest)):
            raise ValueError("processing_time")
    value.sketch = Sketch.from_state(times["sketch"])
    if value.sketch.count != value.timed or not _is_sum_of_floats(value.seconds):
        raise ValueError("processing_time")
    value.top = [_ranked(match) for match in head["top_matches"]]
    return value


def _is_sum_of_floats(number: Decimal) -> bool:
    """Say whether it can be added to its like without a loss, and be told as a float again."""
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent > -400 and number.adjusted() < 300


def _ranked(match: dict[str, Any]) -> RankedMatch:
    key, position = (match[name] for name in RESERVED)
    if not isinstance(key, str) or not isinstance(position, int):
        raise TypeError("top_matches")
    orjson.dumps((key, position))  # as text and number that can be written again
    body = {name: value for name, value in match.items() if name not in RESERVED}
    return (-match.get("match_score", 0), key, position, orjson.dumps(body))


@dataclass(frozen=True, slots=True)
class Document:
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
    existing: Existing | None = None
    appends: bool = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield its bytes, in blocks."""
        yield self._head()
        for number in (SUMMARIES, SOURCES, QUARANTINED):
            kept = self.existing.kept(number) if self.existing and self.appends else _nothing()
            async for block in _table(_MARKS[number], kept, self._lines(number)):
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
        old: Existing | None, new: Rows, number: int
    ) -> AsyncIterator[Sequence[bytes]]:
        async for row in merged(old.counted() if old else _nothing(), new.counted()):
            yield (row.summary if number == SUMMARIES else row.source,)

    @staticmethod
    async def _refused(old: Existing | None, new: Rows) -> AsyncIterator[Sequence[bytes]]:
        async for row in merged(old.quarantined() if old else _nothing(), new.quarantined()):
            yield (row.row,)


def _dumps(value: Any) -> str:
    # Not orjson: sums may exceed 64 bits.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def totals(total: Accumulator, late: int) -> dict[str, Any]:
    """Return what a document says of an accumulator, but for its matches, ready for JSON."""
    return {
        "total_opportunities": total.opportunities,
        "total_matches": total.matches,
        "total_no_matches": total.no_matches,
        "total_errors": total.errors,
        "processing_time_seconds": float(total.seconds),
        "processing_time": total.processing_time(),
        "files": {
            "counted": total.counted,
            "quarantined": total.quarantined,
            "late": late,
            "bytes": total.bytes,
        },
    }


def top_matches(total: Accumulator) -> list[dict[str, Any]]:
    """Return the best matches as a document shows them, each with where it came from."""
    return [
        orjson.loads(body) | dict(zip(RESERVED, (key, position), strict=True))
        for _, key, position, body in total.top
    ]


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
