"""Documents joined into one: the bytes of one written at once, whether copied or merged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncagg.aggregate.merge import QUARANTINED, SOURCES, SUMMARIES, Joined
from asyncagg.aggregate.rows import CountedRow, QuarantinedRow
from asyncagg.errors import OverlapError

TABLES = (SUMMARIES, SOURCES, QUARANTINED)

names = st.text("abc", min_size=1, max_size=4)


class Source:
    """A document of some keys, whose tables come in small blocks; notes what was parsed."""

    def __init__(self, counted: Sequence[str], refused: Sequence[str], block: int = 3) -> None:
        self._counted, self._refused = sorted(counted), sorted(refused)
        self._block = block
        self.parsed = 0
        self.first_key = min([*counted, *refused], default="")
        self.last_key = max([*counted, *refused], default="")

    async def counted(self) -> AsyncIterator[CountedRow]:
        """Yield the rows of the counted files."""
        for key in self._counted:
            self.parsed += 1
            yield CountedRow(key, "", row(SOURCES, key), row(SUMMARIES, key))

    async def quarantined(self) -> AsyncIterator[QuarantinedRow]:
        """Yield the rows of the quarantined files."""
        for key in self._refused:
            self.parsed += 1
            yield QuarantinedRow(key, "", row(QUARANTINED, key))

    async def kept(self, number: int) -> AsyncIterator[bytes]:
        """Yield the rows of a table in blocks that end anywhere."""
        keys = self._refused if number == QUARANTINED else self._counted
        text = b",\n".join(row(number, key) for key in keys)
        for start in range(0, len(text), self._block):
            yield text[start : start + self._block]


def row(number: int, key: str) -> bytes:
    """Return the row of a file in a table."""
    return b'{"%d":"%b"}' % (number, key.encode())


async def table(documents: Sequence[Source], number: int) -> bytes:
    """Return a table of what they are joined into, as it is written."""
    return b",\n".join([line async for rows in Joined(documents).lines(number) for line in rows])


@given(st.sets(names, max_size=20), st.data(), st.integers(1, 40))
async def test_whatever_is_in_which_document(
    keys: set[str], data: st.DataObject, size: int
) -> None:
    """However files are spread, side by side or not, every row comes once, in order."""
    spread: list[tuple[list[str], list[str]]] = [([], []) for _ in range(4)]
    for key in sorted(keys):
        spread[data.draw(st.integers(0, 3))][data.draw(st.integers(0, 1))].append(key)
    refused = {key for _, some in spread for key in some}
    documents = [Source(*each, block=size) for each in spread]
    for number in TABLES:
        wanted = sorted(refused if number == QUARANTINED else keys - refused)
        assert await table(documents, number) == b",\n".join(row(number, key) for key in wanted)


async def test_what_lies_side_by_side_is_not_looked_at() -> None:
    """Only the two that overlap are read row by row."""
    left, right = Source(["a", "c"], []), Source(["e", "g"], ["h"])
    across = Source(["f"], [])
    assert await table([right, left, across], SOURCES) == b",\n".join(
        row(SOURCES, key) for key in "acefg"
    )
    assert left.parsed == 0
    assert right.parsed > 0 < across.parsed


@pytest.mark.parametrize("other", [["c"], ["a", "c"], ["b", "c", "d"], ["c", "d"]])
async def test_a_file_of_two_documents_is_found_out(other: list[str]) -> None:
    """At the edge, too: nothing is ever counted twice."""
    with pytest.raises(OverlapError, match="'c'"):
        await table([Source(["c"], []), Source(other, [])], SOURCES)
