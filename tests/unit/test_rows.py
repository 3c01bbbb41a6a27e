"""Rows of several sources in one order; a file that two of them have is found out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncagg.aggregate.rows import CountedRow, MergedRows, QuarantinedRow
from asyncagg.errors import OverlapError

Identity = tuple[str, str]

identities = st.tuples(st.text("abc", max_size=3), st.text("01", max_size=1))


class Source:
    """Rows from a list; notes how far it was read."""

    def __init__(self, rows: Sequence[Identity]) -> None:
        self._rows = sorted(rows)
        self.read = 0

    async def counted(self) -> AsyncIterator[CountedRow]:
        """Yield rows of counted files."""
        for key, etag in self._rows:
            self.read += 1
            yield CountedRow(key, etag, b"", b"")

    async def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield rows of quarantined files."""
        for key, etag in self._rows:
            yield QuarantinedRow(key, etag, b"")


async def read(sources: Sequence[Source]) -> tuple[list[Identity], list[Identity]]:
    """Return what is read of both tables, merged."""
    merged = MergedRows(sources)
    counted = [row[:2] async for row in merged.counted()]
    return counted, [row[:2] async for row in merged.quarantined()]


@given(
    st.sets(identities, max_size=20).flatmap(lambda all_: st.permutations(sorted(all_))), st.data()
)
async def test_merged_rows_are_in_order(rows: list[Identity], data: st.DataObject) -> None:
    """However the rows are spread over sources, they come out sorted and complete."""
    sources: list[list[Identity]] = [[] for _ in range(5)]
    for row in rows:
        sources[data.draw(st.integers(0, 4))].append(row)
    counted, quarantined = await read([Source(each) for each in sources])
    assert counted == quarantined == sorted(rows)


@given(st.lists(st.sets(identities, min_size=1, max_size=6), min_size=2, max_size=4), st.data())
async def test_a_file_of_two_sources_is_found_out(
    several: list[set[Identity]], data: st.DataObject
) -> None:
    """Whatever else there is: nothing is ever counted twice."""
    twice = data.draw(st.sampled_from(sorted(several[0])))
    several[1].add(twice)
    with pytest.raises(OverlapError, match="in two partial aggregates"):
        await read([Source(sorted(each)) for each in several])


async def test_a_source_is_opened_when_it_is_due() -> None:
    """Of sources that do not overlap, the later ones wait: only their first row is looked at."""
    early, late = Source([("a", ""), ("b", "")]), Source([("c", ""), ("d", "")])
    rows = MergedRows([late, early]).counted()
    assert (await anext(rows)).key == "a"
    assert (await anext(rows)).key == "b"
    assert (early.read, late.read) == (3, 1)


async def test_nothing_merges_to_nothing() -> None:
    """No source, or none with a row."""
    assert await read([]) == await read([Source([])]) == ([], [])
