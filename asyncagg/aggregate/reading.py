"""Read an aggregate document back, as a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.format import END, MARKS, SCHEMA_VERSION, window_member
from asyncagg.aggregate.head import accumulator_of
from asyncagg.aggregate.merge import QUARANTINED, SOURCES, SUMMARIES
from asyncagg.aggregate.rows import CountedRow, QuarantinedRow
from asyncagg.aggregate.spool import LONGEST_LINE, Spool
from asyncagg.errors import AggregateError
from asyncagg.model import RunFile, Window

__all__ = ("StoredAggregate", "read", "read_head", "read_quarantined")

_LONGEST_HEAD = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredAggregate:
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

    async def counted(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of its counted files, in their order."""
        summaries: list[bytes] = []
        supply = self.lines(SUMMARIES)
        async for sources in self.lines(SOURCES):
            while len(summaries) < len(sources):
                summaries += await anext(supply)
            for source, summary in zip(sources, summaries, strict=False):
                row = self._load(source)
                yield CountedRow(row["key"], row["etag"], source, summary)
            del summaries[: len(sources)]

    async def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of its quarantined files, in their order."""
        async for lines in self.lines(QUARANTINED):
            for line in lines:
                row = self._load(line)
                yield QuarantinedRow(row["key"], row["etag"], line)

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
) -> StoredAggregate:
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
    head = await _load_head(key, spool, tables[0].start - len(MARKS[0]))
    _check_window(key, head, window)
    existing = _with_keys(_existing(key, etag, head, spool, tables))
    total = existing.accumulator
    for table, rows in zip(tables, (total.counted, total.counted, total.quarantined), strict=True):
        if table.rows != rows:
            raise _damaged(key, f"it has {table.rows} rows where its head counts {rows}")
    return existing


def _with_keys(existing: StoredAggregate) -> StoredAggregate:
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
            if line[-1:] != b"[" or line != MARKS[len(marks) % len(MARKS)][:-1]:
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
    if len(marks) != len(MARKS) or tail[1:] != [b"]", b"}"] or offset != spool.size:
        return None
    # Behind the rows of a table stand "]," and the next table's mark, or "]" and "}".
    ends = [
        (marks[1][0] - len(MARKS[1]) - 3, marks[1][1] - 2),
        (marks[2][0] - len(MARKS[2]) - 3, marks[2][1] - 2),
        (spool.size - len(END), number - 2),
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
        searched = max(0, len(text) - len(MARKS[0]))
        text += chunk
        end = text.find(MARKS[0], searched)
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
    mark = b"\n" + MARKS[2]
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


def _existing(
    key: str, etag: str, head: dict[str, Any], spool: Spool, tables: list[_Table]
) -> StoredAggregate:
    try:
        return StoredAggregate(
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
