"""Read an aggregate document back, as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.format import END, MARKS, SCHEMA_VERSION, Table, window_member
from asyncagg.aggregate.head import accumulator_of, packs_of
from asyncagg.aggregate.rows import CountedRow, QuarantinedRow
from asyncagg.aggregate.spool import LONGEST_LINE, Spool
from asyncagg.errors import AggregateError, UsageError
from asyncagg.model import CountedFile, Pack, RunFile, Window
from asyncagg.windows import parse_window

T = TypeVar("T")

_LONGEST_HEAD = 16 * 1024 * 1024

_LONGEST_ROW = 64 * 1024
"""Bytes of a row: keys have up to 1,024 bytes and reasons 500 characters, each escaped to six."""

_SEPARATOR = re.compile(rb'\n\],\n("\w+":\[(?=\n))')
_MATCHES = b'"top_matches":[\n'
_LONGEST_SEPARATOR = len(b"\n],\n") + max(map(len, MARKS))


class Known(NamedTuple):
    """The keys of files that an aggregate has already.

    Attributes:
        counted: Those that it counts.
        packed: Those of them that are in a pack.
        quarantined: Those that it records as quarantined.
        redelivered: Those that it counts with other etags: the versions that it counts.
    """

    counted: set[str]
    packed: set[str]
    quarantined: set[str]
    redelivered: dict[str, list[CountedFile]]


@dataclass(frozen=True, slots=True)
class StoredAggregate:
    """An aggregate in the store: its head in memory, its rows in a spool.

    Attributes:
        key: Its key, for messages.
        etag: The etag under which it was read.
        revision: How often it was committed.
        late: How many of its files were added after its first commit.
        accumulator: What is folded into it.
        first_key: The first key in it; empty if it has no row.
        last_key: The last key in it; empty if it has no row.
        packs: The packs that its files are in.
    """

    key: str
    etag: str
    revision: int
    late: int
    accumulator: Accumulator
    first_key: str
    last_key: str
    packs: Sequence[Pack]
    _spool: Spool
    _tables: Sequence[_Span]

    async def known(
        self, files: Iterable[RunFile], unversioned: Callable[[str], bool] = lambda _: False
    ) -> Known:
        """Check all rows, and return which of the files it has.

        Args:
            files: The files.
            unversioned: Returns whether a key has one content, whatever the etag.

        Raises:
            AggregateError: Its rows are damaged or not in order.
        """
        async for _ in self._lines(Table.SUMMARIES):
            pass  # only their shape: they may be copied without parsing
        etags = {file.key: file.etag for file in files}
        known = Known(set(), set(), set(), {})
        for table, keys in ((Table.SOURCES, known.counted), (Table.QUARANTINED, known.quarantined)):
            previous = ("", "")
            async for line, row in self._parsed(table):
                identity = (row["key"], row["etag"])
                if identity <= previous:
                    raise damaged(self.key, f"a row is out of order: {line[:80]!r}")
                previous = identity
                etag = etags.get(row["key"])
                if etag is None:
                    continue
                if etag == row["etag"] or unversioned(row["key"]):
                    keys.add(row["key"])
                    if "pack" in row:
                        known.packed.add(row["key"])
                elif table is Table.SOURCES:
                    version = msgspec.json.decode(line, type=CountedFile)
                    known.redelivered.setdefault(row["key"], []).append(version)
        return known

    async def files(self) -> AsyncIterator[list[CountedFile]]:
        """Yield its counted files, in the order of key and etag, many at a time."""
        async for lines in self._lines(Table.SOURCES):
            yield [msgspec.json.decode(line, type=CountedFile) for line in lines]

    async def counted_rows(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of its counted files."""
        async for sources, summaries in self.paired_rows():
            for source, summary in zip(sources, summaries, strict=True):
                row = self._parse(source)
                yield CountedRow(row["key"], row["etag"], source, summary)

    async def paired_rows(self) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
        """Yield rows of ``source_files`` and the ``run_summaries`` of the same files, unparsed."""
        summaries: list[bytes] = []
        batches = self._lines(Table.SUMMARIES)
        async for sources in self._lines(Table.SOURCES):
            while len(summaries) < len(sources):
                summaries += await anext(batches)
            yield sources, summaries[: len(sources)]
            del summaries[: len(sources)]

    async def quarantined_rows(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of its quarantined files."""
        async for line, row in self._parsed(Table.QUARANTINED):
            yield QuarantinedRow(row["key"], row["etag"], line)

    async def raw_rows(self, table: Table) -> AsyncIterator[Sequence[bytes]]:
        """Yield the rows of a table without parsing them, a block of them as one."""
        span = self._tables[table]
        rest = b""
        async for block in self._spool.blocks(span.start, span.end - 1):
            rows, _, rest = (rest + block).rpartition(b",\n")
            if rows:
                yield (rows,)
        if rest:
            yield (rest,)

    async def _parsed(self, table: Table) -> AsyncIterator[tuple[bytes, dict[str, Any]]]:
        async for lines in self._lines(table):
            for line in lines:
                yield line, self._parse(line)

    async def _lines(self, table: Table) -> AsyncIterator[list[bytes]]:
        span = self._tables[table]
        try:
            async for lines in self._spool.lines(span.start, span.end):
                rows = [line.removesuffix(b",") for line in lines]
                for row in rows:
                    if row[:1] != b"{" or row[-1:] != b"}":
                        raise damaged(self.key, f"a row reads {row[:80]!r}")
                yield rows
        except ValueError as error:
            raise damaged(self.key, str(error)) from error

    def _parse(self, line: bytes) -> dict[str, Any]:
        return _parse_row(self.key, line, ("key", "etag"))


def damaged(key: str, what: str) -> AggregateError:
    """Return the error of an object that is not a sound aggregate.

    Args:
        key: Its key.
        what: What is wrong with it.
    """
    return AggregateError(
        f"aggregate {key!r}: {what}; expected a document that asyncagg wrote. It is not changed: "
        "move it away, and the next run settles its window",
        what=what,
    )


def _parse_row(key: str, line: bytes, fields: Sequence[str]) -> dict[str, Any]:
    try:
        row: dict[str, Any] = orjson.loads(line)
        sound = all(isinstance(row[name], str) for name in fields)
    except (orjson.JSONDecodeError, LookupError, TypeError):
        sound = False
    if not sound:
        raise damaged(key, f"a row reads {line[:80]!r}")
    return row


async def read_aggregate(
    key: str, etag: str, window: Window, chunks: AsyncIterator[bytes], spool: Spool
) -> StoredAggregate:
    """Read an aggregate back.

    Args:
        key: Its key, for messages.
        etag: The etag of the content.
        window: The window that it must be the aggregate of.
        chunks: Its content.
        spool: An empty spool to hold it.

    Raises:
        AggregateError: It is not an aggregate, is damaged, or belongs to another window.
    """
    scanner = _Scanner()
    async for chunk in chunks:
        scanner.feed(chunk)
        await spool.append(chunk)
    spans = scanner.finish()
    if spans is None:
        raise damaged(key, "its parts are not where they belong")
    head = await _read_spooled_head(key, window, spool, spans[0].start - len(MARKS[0]))
    # One match at a time: decoded, each may be 30 times as large.
    lazily = head | {"top_matches": map(json.loads, head["top_matches"])}
    total = _field(key, lazily, accumulator_of)
    counts = (total.counted, total.counted, total.quarantined)
    for span, rows in zip(spans, counts, strict=True):
        if span.rows != rows:
            raise damaged(key, f"it has {span.rows} rows but its head counts {rows}")
    keys = await _edge_keys(key, spool, spans[Table.SOURCES :])
    return StoredAggregate(
        key=key,
        etag=etag,
        revision=_field(key, head, lambda head: int(head["revision"])),
        late=_field(key, head, lambda head: int(head["files"]["late"])),
        accumulator=total,
        first_key=min(keys, default=""),
        last_key=max(keys, default=""),
        packs=_field(key, head, packs_of),
        _spool=spool,
        _tables=spans,
    )


def _field(key: str, head: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
    try:
        return read(head)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise damaged(key, f"its head lacks or garbles {error}") from error


class _Span(NamedTuple):
    """Where the rows of one table are in a document."""

    start: int
    end: int
    rows: int


class _Mark(NamedTuple):
    """The two lines that end one table and begin the next."""

    name: bytes
    line: int  # lines before it
    start: int
    end: int


class _Scanner:
    """Finds the tables of a document while it arrives, by the lines between them."""

    def __init__(self) -> None:
        self._marks: list[_Mark] = []
        self._tail = b""  # not scanned yet: a separator may continue in the next chunk
        self._offset = 0  # of the tail
        self._lines = 0  # before the tail

    def feed(self, chunk: bytes) -> None:
        """Scan the next bytes of the document."""
        self._scan(self._tail + chunk, keep=_LONGEST_SEPARATOR - 1)

    def finish(self) -> list[_Span] | None:
        """Return where the rows of the three tables are, or None if anything is misplaced."""
        whole = self._tail.endswith(b"\n" + END)
        self._scan(self._tail, keep=0)
        if not whole or tuple(mark.name + b"\n" for mark in self._marks) != MARKS:
            return None
        end = self._offset - len(END)
        last = _Mark(b"", self._lines - END.count(b"\n"), end, end)
        return [
            _Span(mark.end, following.start, following.line - mark.line - 2)
            for mark, following in pairwise([*self._marks, last])
        ]

    def _scan(self, text: bytes, *, keep: int) -> None:
        done = max(0, len(text) - keep)
        position = 0
        for found in _SEPARATOR.finditer(text):
            if found.start() >= done:
                break
            start = found.start() + 1
            self._lines += text.count(b"\n", position, start)
            position = start
            self._marks.append(
                _Mark(found[1], self._lines, self._offset + start, self._offset + found.end() + 1)
            )
        self._lines += text.count(b"\n", position, done)
        self._offset += done
        self._tail = text[done:]


async def _edge_keys(key: str, spool: Spool, spans: Iterable[_Span]) -> list[str]:
    """Return the keys of the first and the last row of each table that has rows."""
    keys: list[str] = []
    for span in spans:
        if span.rows:
            first = await spool.read(span.start, min(span.end, span.start + _LONGEST_ROW))
            last = await spool.read(max(span.start, span.end - _LONGEST_ROW), span.end - 1)
            rows = (first.partition(b"\n")[0].removesuffix(b","), last.rpartition(b"\n")[2])
            keys += [_parse_row(key, row, ("key", "etag"))["key"] for row in rows]
    return keys


async def _read_spooled_head(key: str, window: Window, spool: Spool, end: int) -> dict[str, Any]:
    if end > _LONGEST_HEAD:
        raise damaged(key, f"its head is longer than {_LONGEST_HEAD} bytes")
    return _parse_head(key, window, await spool.read(0, end))


def _parse_head(key: str, window: Window, text: bytes) -> dict[str, Any]:
    """Return a head, its matches as JSON."""
    head = _load_head(key, text)
    expected, found = window_member(window), head.get("window")
    if found != expected:
        raise damaged(key, f"it belongs to window {found!r}, not to {expected!r}")
    return head


def _load_head(key: str, text: bytes) -> dict[str, Any]:
    members, mark, rows = text.partition(_MATCHES)
    try:
        head = json.loads(members + (mark.rstrip() or b'"":[') + b"]}")
    except (ValueError, RecursionError) as error:
        raise damaged(key, f"its head is not JSON ({error})") from error
    if not isinstance(head, dict) or head.get("schema_version") != SCHEMA_VERSION:
        raise damaged(key, f"its schema_version is not {SCHEMA_VERSION}")
    matches = [row for row in rows.split(b"\n") if row]
    separated = [row.endswith(b",") for row in matches]
    if not mark or matches[-1:] != [b"],"] or not all(separated[:-2]) or any(separated[-2:-1]):
        raise damaged(key, "its matches are not where they belong")
    head["top_matches"] = [row.removesuffix(b",") for row in matches[:-1]]
    return head


async def read_head(key: str, window: Window, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
    """Read the head of an aggregate, and no further.

    Args:
        key: Its key, for messages.
        window: The window that it must be the aggregate of.
        chunks: Its content, from the start.

    Raises:
        AggregateError: It is not an aggregate, is damaged, or belongs to another window.
    """
    head = _parse_head(key, window, await _head_text(key, chunks))
    return head | {"top_matches": _field(key, head, _decoded_matches)}


def _decoded_matches(head: dict[str, Any]) -> list[Any]:
    return [json.loads(row) for row in head["top_matches"]]


async def read_window(key: str, chunks: AsyncIterator[bytes]) -> Window:
    """Return the window that an aggregate belongs to; read no more than its head.

    Raises:
        AggregateError: It is not an aggregate, or is damaged.
    """
    head = _load_head(key, await _head_text(key, chunks))
    try:
        return parse_window(head["window"]["name"], head["window"]["minutes"])
    except (LookupError, TypeError, ArithmeticError, UsageError) as error:
        raise damaged(key, f"its head lacks or garbles {error}") from error


async def _head_text(key: str, chunks: AsyncIterator[bytes]) -> bytes:
    text = bytearray()
    async for chunk in chunks:
        searched = max(0, len(text) - len(MARKS[0]))
        text += chunk
        end = text.find(MARKS[0], searched)
        if end >= 0:
            return bytes(text[:end])
        if len(text) > _LONGEST_HEAD:
            break
    raise damaged(key, "its parts are not where they belong")


async def read_quarantined(
    key: str, chunks: AsyncIterator[bytes], limit: int
) -> list[dict[str, Any]]:
    """Read the first rows of ``quarantined_files``; the rest is skipped.

    Args:
        key: Its key, for messages.
        chunks: Its content, from the start.
        limit: How many rows to read.

    Raises:
        AggregateError: It is not an aggregate, or is damaged.
    """
    mark = b"\n" + MARKS[Table.QUARANTINED]
    rows: list[dict[str, Any]] = []
    found = False
    rest = b""
    async for chunk in chunks:
        rest += chunk
        if not found:
            _, separator, table = rest.partition(mark)
            found = bool(separator)
            rest = table if found else rest[-len(mark) :]
        if found:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line == b"]" or len(rows) >= limit:
                    return rows
                row = line.removesuffix(b",")
                rows.append(_parse_row(key, row, ("key", "reason", "moved_to")))
            if len(rest) > LONGEST_LINE:
                break
    raise damaged(key, "its parts are not where they belong")
