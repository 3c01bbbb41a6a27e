"""Rows of several sources merged: one order, no file twice, and no parsing without need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncagg.aggregate.format import Table
from asyncagg.aggregate.merge import merge_rows
from asyncagg.aggregate.rows import CountedRow, QuarantinedRow
from asyncagg.errors import OverlapError

Identity = tuple[str, str]

identities = st.tuples(st.text("abc", min_size=1, max_size=4), st.text("01", max_size=1))


class Source:
    """Rows from lists; counts how many were parsed, and returns raw rows some at a time."""

    def __init__(
        self, counted: Sequence[Identity], quarantined: Sequence[Identity] = (), batch: int = 3
    ) -> None:
        self._counted, self._quarantined = sorted(counted), sorted(quarantined)
        self._batch = batch
        self.parsed = 0
        keys = [key for key, _ in (*counted, *quarantined)]
        self.first_key = min(keys, default="")
        self.last_key = max(keys, default="")

    async def counted_rows(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        for key, etag in self._counted:
            self.parsed += 1
            source, summary = (
                row(table, (key, etag)) for table in (Table.SOURCES, Table.SUMMARIES)
            )
            yield CountedRow(key, etag, source, summary)

    async def quarantined_rows(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        for key, etag in self._quarantined:
            self.parsed += 1
            yield QuarantinedRow(key, etag, row(Table.QUARANTINED, (key, etag)))

    async def raw_rows(self, table: Table) -> AsyncIterator[Sequence[bytes]]:
        """Yield the rows of a table without parsing them."""
        files = self._quarantined if table is Table.QUARANTINED else self._counted
        rows = [row(table, file) for file in files]
        for start in range(0, len(rows), self._batch):
            yield rows[start : start + self._batch]


def row(table: Table, file: Identity) -> bytes:
    """Return the row of a file in a table."""
    return f'{{"{table}":"{file[0]} {file[1]}"}}'.encode()


async def merged(sources: Sequence[Source], table: Table) -> list[bytes]:
    """Return the rows of a table of all sources."""
    return [each async for rows in merge_rows(sources, table) for each in rows]


@given(st.sets(identities, max_size=20), st.data(), st.integers(1, 40))
async def test_rows_are_complete_and_in_order(
    files: set[Identity], data: st.DataObject, batch: int
) -> None:
    """However files are spread over sources, overlapping or not, each row comes once, in order."""
    spread: list[tuple[list[Identity], list[Identity]]] = [([], []) for _ in range(5)]
    for file in sorted(files):
        spread[data.draw(st.integers(0, 4))][data.draw(st.integers(0, 1))].append(file)
    quarantined = {file for _, some in spread for file in some}
    sources = [Source(*each, batch=batch) for each in spread]
    for table in Table:
        expected = sorted(quarantined if table is Table.QUARANTINED else files - quarantined)
        assert await merged(sources, table) == [row(table, file) for file in expected]


@given(st.lists(st.sets(identities, min_size=1, max_size=6), min_size=2, max_size=4), st.data())
async def test_a_file_of_two_sources_is_an_error(
    several: list[set[Identity]], data: st.DataObject
) -> None:
    """Whatever else there is, a file is never counted twice."""
    twice = data.draw(st.sampled_from(sorted(several[0])))
    several[1].add(twice)
    with pytest.raises(OverlapError, match="is in two aggregates"):
        await merged([Source(sorted(each)) for each in several], Table.SOURCES)
    with pytest.raises(OverlapError, match="is in two aggregates"):
        await merged([Source([], sorted(each)) for each in several], Table.QUARANTINED)


@pytest.mark.parametrize("other", ["c", "ac", "bcd", "cd"])
async def test_a_file_at_the_edge_of_two_sources_is_an_error(other: str) -> None:
    """The last key of one source may be the first of the next."""
    with pytest.raises(OverlapError, match="'c'"):
        await merged([Source([("c", "")]), Source([(key, "") for key in other])], Table.SOURCES)


@given(st.sets(identities, min_size=1, max_size=6), st.sets(identities, max_size=6), st.data())
async def test_a_file_counted_and_quarantined_is_an_error(
    files: set[Identity], others: set[Identity], data: st.DataObject
) -> None:
    """Runners with different limits may disagree about a file; it is never in both tables."""
    twice = data.draw(st.sampled_from(sorted(files)))
    with pytest.raises(OverlapError, match="is in two aggregates"):
        await merged(
            [Source(sorted(files)), Source([], sorted(others | {twice}))], Table.QUARANTINED
        )


async def test_sources_that_do_not_overlap_are_not_parsed() -> None:
    """Only the two that overlap are read row by row."""
    left = Source([("a", ""), ("c", "")])
    right, across = Source([("e", ""), ("g", "")], [("h", "")]), Source([("f", "")])
    rows = await merged([right, left, across], Table.SOURCES)
    assert rows == [row(Table.SOURCES, (key, "")) for key in "acefg"]
    assert left.parsed == 0
    assert right.parsed > 0 < across.parsed


async def test_a_source_is_opened_when_it_is_due() -> None:
    """Of sources that overlap at one key only, the later one waits."""
    early, late = Source([("a", ""), ("c", "0")]), Source([("c", "1"), ("d", "")])
    rows = merge_rows([late, early], Table.SOURCES)
    assert await anext(rows) == (row(Table.SOURCES, ("a", "")),)
    assert (early.parsed, late.parsed) == (1, 0)


async def test_nothing_merges_to_nothing() -> None:
    """No source, or none with a row."""
    for table in Table:
        assert await merged([], table) == await merged([Source([]), Source([])], table) == []
