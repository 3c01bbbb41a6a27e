"""The run files of one window in one chunk: all in memory, or read from disk batch by batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from asyncagg.aggregate.spool import Spool
from asyncagg.model import RunFile

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RunFile).decode


class WindowBatch:
    """Run files of one window, in key order, to be read as often as needed.

    Args:
        batch: About how many files are read from disk at a time.

    Attributes:
        held: The files in memory; the pipeline appends to it.
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
        """The key of the first file; there must be one."""
        return self._first_key or self.held[0].key

    def sort(self) -> None:
        """Put the files in memory in key order, each key once; the version listed last remains."""
        by_key = {file.key: file for file in self.held}
        self.held = [by_key[key] for key in sorted(by_key)]

    async def move_to(self, spool: Spool) -> None:
        """Move the files in memory to a spool; every call must pass the same spool.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        self._first_key = self.first_key
        self._spool = spool
        await spool.append(b"".join([_encode(file) + b"\n" for file in self.held]))
        self._spooled += len(self.held)
        self.held.clear()

    async def batches(self) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the files, all at once unless some are in a spool."""
        if self._spool is None:
            yield self.held
            return
        if self.held:
            await self.move_to(self._spool)
        batch: list[RunFile] = []
        async for lines in self._spool.lines():
            batch += map(_decode, lines)
            if len(batch) >= self._batch:
                yield batch
                batch = []
        if batch:
            yield batch
