"""A buffer that spills to disk: in memory while it is small, then in a temporary file."""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from aiofiles.tempfile.temptypes import AsyncSpooledTemporaryFile

from asyncagg.errors import NO_SPACE, ConfigurationError

BLOCK = 256 * 1024
"""How many bytes go to and from the temporary file at a time."""

LONGEST_LINE = 4 * 1024 * 1024
"""A longer line is refused, since a line is held whole; aggregates have none that long."""


class Spool:
    """A sequence of bytes that is appended to, then read from any offset. See `open_spool`.

    Attributes:
        size: Bytes appended so far.
    """

    def __init__(self, file: Any, folder: Path | None) -> None:
        self._file = file  # aiofiles types its spooled file as several kinds of reader
        self._lock = anyio.Lock()  # the file has one position for all readers and writers
        self._folder = folder
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._written = self._position = 0  # of the file
        self.size = 0

    def add(self, data: bytes) -> bool:
        """Append bytes in memory; return whether it is time to `flush` them."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.size += len(data)
        return self._pending_bytes >= BLOCK

    async def append(self, data: bytes) -> None:
        """Append bytes, and flush them if it is time.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        if self.add(data):
            await self.flush()

    async def flush(self) -> None:
        """Write the appended bytes to the buffer or its file.

        Raises:
            ConfigurationError: The disk for temporary files is full.
        """
        if not self._pending:
            return
        try:
            # Shielded: a cancelled aiofiles call continues in its thread, and its rows would be
            # neither in memory nor surely in the file.
            async with self._lock, _shielded():
                data = memoryview(b"".join(self._pending))
                self._pending.clear()
                self._pending_bytes = 0
                await self._seek(self._written)
                while data:
                    count = await self._file.write(data)
                    data = data[count:]
                    self._position += count
                self._written = self._position
        except OSError as error:
            if error.errno not in NO_SPACE | {errno.EFBIG}:
                raise
            raise ConfigurationError(
                f"temporary folder {str(self._folder or 'of the system')!r}: full at {self.size} "
                "bytes of rows; expected more ephemeral storage, or a smaller window"
            ) from error

    async def blocks(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``end`` (default: all), block by block."""
        await self.flush()
        end = self.size if end is None else end
        while start < end:
            async with self._lock, _shielded():
                await self._seek(start)
                block: bytes = await self._file.read(min(BLOCK, end - start))
                self._position += len(block)
            start += len(block)
            yield block

    async def read(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to ``end``."""
        return b"".join([block async for block in self.blocks(start, end)])

    async def _seek(self, position: int) -> None:
        if position != self._position:  # each call is a hop to another thread
            self._position = await self._file.seek(position)

    async def lines(self, start: int = 0, end: int | None = None) -> AsyncIterator[list[bytes]]:
        """Yield the lines from ``start`` to ``end`` without their ends, a block's at a time.

        Raises:
            ValueError: A line is longer than `LONGEST_LINE`.
        """
        rest = b""
        async for block in self.blocks(start, end):
            *lines, rest = (rest + block).split(b"\n")
            if len(rest) > LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE} bytes")
            yield lines
        if rest:
            yield [rest]


@asynccontextmanager
async def open_spool(memory: int, folder: Path | None = None) -> AsyncIterator[Spool]:
    """Open an empty spool; its file, if one was needed, is gone when the context ends.

    The file has no name (``O_TMPFILE``, or unlinked at once), so that a killed process leaves
    nothing behind on the ephemeral storage of a warm Lambda.

    Args:
        memory: Bytes kept in memory before the temporary file is made.
        folder: Where to make it; the system's folder by default.
    """
    # Opened here and not in a thread: it is in memory until it is large, and a file that a thread
    # opens after a cancellation would never be closed. A size of 0 would mean "never roll over" to
    # the standard library. Unbuffered: one call writes to the file, and reports a full disk.
    opened: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed below
        max_size=max(1, memory), buffering=0, dir=None if folder is None else str(folder)
    )
    file: Any = AsyncSpooledTemporaryFile(opened, loop=asyncio.get_running_loop(), executor=None)
    try:
        yield Spool(file, folder)
    finally:
        async with _shielded():
            await file.close()


@asynccontextmanager
async def _shielded() -> AsyncIterator[None]:
    with anyio.CancelScope(shield=True):
        yield
