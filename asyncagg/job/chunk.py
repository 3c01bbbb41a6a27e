"""The run files of one window in one chunk: all in memory, or a batch at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from asyncagg.aggregate.spool import Spool
from asyncagg.model import RunFile

__all__ = ("WindowBatch",)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RunFile).decode


class WindowBatch:
    """Run files of one window, in key order, to be read as often as needed.

    Args:
        batch: How many files are read at a time, about, where they are too many for memory.

    Attributes:
        held: Those in memory; more are appended to it.
    """

    def __init__(self, batch: int) -> None:
        self.held: list[RunFile] = []
        self._batch = batch
        self._first_key = ""
        self._spool: Spool | None = None
        self._spooled = 0

    def __len__(self) -> int:
        """Return how many files there are."""
        return self._spooled + len(self.held)

    @property
    def first_key(self) -> str:
        """The key of the first file; there has to be one."""
        return self._first_key or self.held[0].key

    async def put_away(self, spool: Spool) -> None:
        """Put the files in memory into a spool, always the same, that is this group's own.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        self._first_key = self.first_key
        self._spool = spool
        await spool.append(b"".join([_encode(file) + b"\n" for file in self.held]))
        self._spooled += len(self.held)
        self.held.clear()

    async def batches(self) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the files, a batch at a time: all at once where none was put away."""
        if self._spool is None:
            yield self.held
            return
        if self.held:
            await self.put_away(self._spool)
        batch: list[RunFile] = []
        async for lines in self._spool.lines():
            batch += map(_decode, lines)
            if len(batch) >= self._batch:
                yield batch
                batch = []
        if batch:
            yield batch
