"""Merge the rows of several sources into the order of key and etag.

Where the keys of sources do not overlap, their rows are copied without parsing: so it is with the
parts of a window, which are ranges of keys, and with files whose names are later than all before.
Only the rows of sources that overlap are parsed and compared.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from asyncagg.aggregate.format import Table
from asyncagg.aggregate.rows import CountedRow, QuarantinedRow
from asyncagg.errors import OverlapError

Row = TypeVar("Row", CountedRow, QuarantinedRow, CountedRow | QuarantinedRow)


class RowSource(Protocol):
    """Rows in the order of key and etag, to be read as often as needed."""

    @property
    def first_key(self) -> str:
        """The first key in it; empty if it has no row."""
        ...

    @property
    def last_key(self) -> str:
        """The last key in it; empty if it has no row."""
        ...

    def counted_rows(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        ...

    def quarantined_rows(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        ...

    def raw_rows(self, table: Table) -> AsyncIterator[Sequence[bytes]]:
        """Yield the rows of a table without parsing them, many at a time.

        Several rows may come as one, joined as they are written.
        """
        ...


async def merge_rows(sources: Sequence[RowSource], table: Table) -> AsyncIterator[Sequence[bytes]]:
    """Yield the rows of a table of all sources, in the order of key and etag.

    Raises:
        OverlapError: Two sources have the same file, so it would be counted twice.
    """
    for group in _overlapping(sources):
        if len(group) == 1:
            async for rows in group[0].raw_rows(table):
                yield rows
        elif table is Table.QUARANTINED:
            async for rows in _merge_quarantined(group):
                yield rows
        else:
            async for row in _in_order(group, [source.counted_rows for source in group]):
                yield (row.summary if table is Table.SUMMARIES else row.source,)


def _overlapping(sources: Sequence[RowSource]) -> Iterator[list[RowSource]]:
    """Yield groups of sources whose keys overlap, in key order."""
    group: list[RowSource] = []
    last = ""
    for source in sorted(sources, key=lambda each: each.first_key):
        if group and source.first_key > last:
            yield group
            group = []
        group.append(source)
        last = max(last, source.last_key)
    if group:
        yield group


async def _merge_quarantined(group: Sequence[RowSource]) -> AsyncIterator[Sequence[bytes]]:
    checked = False
    async for row in _in_order(group, [source.quarantined_rows for source in group]):
        if not checked:
            await _check_disjoint(group)
            checked = True
        yield (row.row,)


async def _check_disjoint(group: Sequence[RowSource]) -> None:
    """Check that no source counts a file that another quarantined: their limits may differ.

    Raises:
        OverlapError: One does.
    """
    tables: list[Callable[[], AsyncIterator[CountedRow | QuarantinedRow]]] = []
    for source in group:
        tables += [source.counted_rows, source.quarantined_rows]
    async for _ in _in_order([source for source in group for _ in range(2)], tables):
        pass


async def _in_order(
    sources: Sequence[RowSource], tables: Sequence[Callable[[], AsyncIterator[Row]]]
) -> AsyncIterator[Row]:
    """Yield the rows of one table of each source in the order of key and etag.

    A table is opened when the first key of its source is due, so of sources that follow one
    another, only one at a time is in memory.
    """
    due = [((source.first_key, ""), number) for number, source in enumerate(sources)]
    heapq.heapify(due)
    opened: dict[int, AsyncIterator[Row]] = {}
    heads: dict[int, Row] = {}
    previous: tuple[str, str] | None = None
    while due:
        identity, number = due[0]
        if number not in opened:
            opened[number] = tables[number]()
        else:
            if identity == previous:
                key, etag = identity
                raise OverlapError(f"{key!r} with etag {etag!r} is in two aggregates to be merged")
            previous = identity
            yield heads.pop(number)
        following = await anext(opened[number], None)
        if following is None:
            heapq.heappop(due)
        else:
            heads[number] = following
            heapq.heapreplace(due, ((following.key, following.etag), number))
