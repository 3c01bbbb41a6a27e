"""Documents joined into one: their rows in one order, copied as they stand wherever that is right.

The parts of a window are counted by ranges of keys. So nearly always they lie side by side, and
their rows need not be looked at. Where they do not, each row is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol

from asyncagg.aggregate.rows import MergedRows, Rows

__all__ = ("QUARANTINED", "SOURCES", "SUMMARIES", "Joined", "Source")

SUMMARIES, SOURCES, QUARANTINED = range(3)
"""The tables of a document, in its order."""


class Source(Rows, Protocol):
    """A document that stands, with its rows in the order of key and etag."""

    @property
    def first_key(self) -> str:
        """The first key that it names; empty if it names none."""
        ...

    @property
    def last_key(self) -> str:
        """The last key that it names; empty if it names none."""
        ...

    def kept(self, number: int) -> AsyncIterator[bytes]:
        """Yield the rows of a table as they stand, in blocks, without the last line's end."""
        ...


class Joined:
    """The rows of several documents, in the order of key and etag.

    Args:
        documents: What is joined.
    """

    def __init__(self, documents: Sequence[Source]) -> None:
        self._groups = list(_apart(documents))

    async def lines(self, number: int) -> AsyncIterator[Sequence[bytes]]:
        """Yield the rows of a table, some at a time.

        Raises:
            OverlapError: Two documents name the same file: it would be counted twice.
        """
        for group in self._groups:
            alone = len(group) == 1
            rows = _as_they_stand(group[0], number) if alone else _one_by_one(group, number)
            async for some in rows:
                yield some


def _apart(documents: Sequence[Source]) -> Iterator[list[Source]]:
    """Yield groups whose keys lie behind those of the group before."""
    group: list[Source] = []
    last = ""
    for document in sorted(documents, key=lambda each: each.first_key):
        if group and document.first_key > last:
            yield group
            group = []
        group.append(document)
        last = max(last, document.last_key)
    if group:
        yield group


async def _as_they_stand(document: Source, number: int) -> AsyncIterator[Sequence[bytes]]:
    """Yield as many rows as a block holds, as if they were one."""
    rest = b""
    async for block in document.kept(number):
        whole, _, rest = (rest + block).rpartition(b",\n")
        if whole:
            yield (whole,)
    if rest:
        yield (rest,)


async def _one_by_one(group: Sequence[Source], number: int) -> AsyncIterator[Sequence[bytes]]:
    rows = MergedRows(group)
    if number == QUARANTINED:
        judged = False
        async for refused in rows.quarantined():
            if not judged:
                await rows.judge()
                judged = True
            yield (refused.row,)
        return
    async for counted in rows.counted():
        yield (counted.summary if number == SUMMARIES else counted.source,)
