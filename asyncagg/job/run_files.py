"""Read one run file from a store: whole if it is small, else as a stream."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import inflate, is_gzip
from asyncagg.ingest.parsing import parse, parse_blocks
from asyncagg.ingest.streaming import parse_stream
from asyncagg.job.byte_limiter import ByteLimiter
from asyncagg.model import RunFile, RunResult
from asyncagg.settings import Settings
from asyncagg.store import Store

_STREAM_COST = 6 * 1024 * 1024
"""The most memory that a streamed file takes: mostly for its ten longest matches."""


class Gate(Protocol):
    """Says when there is memory for another file; `asyncagg.job.packing.Packer` is one."""

    @property
    def is_full(self) -> bool:
        """Whether to call `wait`."""
        ...

    async def wait(self) -> None:
        """Wait until there is memory."""
        ...


class RunFileReader:
    """Reads run files, within one bound for the bytes in flight.

    Args:
        store: Where they are.
        settings: The bounds.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._stream_bytes = settings.stream_bytes
        self._max_bytes = settings.max_file_bytes
        self._limiter = ByteLimiter(settings.max_inflight_bytes)

    async def read(
        self,
        file: RunFile,
        *,
        key: str = "",
        top_cutoff: float = -math.inf,
        unknown: Counter[str] | None = None,
        gate: Gate | None = None,
    ) -> tuple[RunResult, bytes | None]:
        """Return the content of a run file, and its bytes if they were read whole.

        Args:
            file: Its reference.
            key: Read from this key instead of ``file.key``, if the file was moved.
            top_cutoff: Matches with a lower score may be left out.
            unknown: Counts the names of fields that are not read.
            gate: Waited for before a file is read whole, because its bytes are kept.

        Raises:
            InvalidRunFileError: It can never be counted.
            StoreError: It could not be fetched in the version that was listed.
        """
        if file.size > self._max_bytes:
            raise InvalidRunFileError(
                f"too large: {file.size} bytes, expected at most {self._max_bytes}"
            )
        if file.size > self._stream_bytes:
            return await self._read_stream(file, key, unknown), None
        if not self._limiter.take(file.size):
            await self._limiter.acquire(file.size)
        try:
            if gate is not None and gate.is_full:
                await gate.wait()
            body = await self._store.get(key or file.key, if_match=file.etag)
            if not is_gzip(body.data):
                return parse(body.data, file, top_cutoff, unknown), body.data
            blocks = self._unzip(body.data)
            if blocks is not None:
                return parse_blocks(blocks, file, top_cutoff, unknown), body.data
        finally:
            self._limiter.release(file.size)
        return await self._read_stream(file, key, unknown), None

    async def read_content(
        self,
        file: RunFile,
        load: Callable[[], Awaitable[bytes]],
        *,
        top_cutoff: float = -math.inf,
    ) -> tuple[RunResult, bytes]:
        """Return the content of a run file that ``load`` returns whole, and its bytes; see `read`.

        Raises:
            InvalidRunFileError: It can never be counted.
        """
        if not self._limiter.take(file.size):
            await self._limiter.acquire(file.size)
        try:
            data = await load()
            if not is_gzip(data):
                return parse(data, file, top_cutoff), data
            blocks = self._unzip(data)
            if blocks is not None:
                return parse_blocks(blocks, file, top_cutoff, None), data
            return await parse_stream(_one_block(data), file, max_bytes=self._max_bytes), data
        finally:
            self._limiter.release(file.size)

    def _unzip(self, data: bytes) -> list[bytes] | None:
        """Return the unzipped content, or None if it is too large to hold."""
        blocks = []
        size = 0
        for block in inflate(data, self._max_bytes):
            size += len(block)
            if size > self._stream_bytes:
                return None
            blocks.append(block)
        return blocks

    async def _read_stream(
        self, file: RunFile, key: str, unknown: Counter[str] | None
    ) -> RunResult:
        async with (
            self._limiter.hold(max(self._stream_bytes, _STREAM_COST)),
            self._store.stream(key or file.key, if_match=file.etag) as body,
        ):
            return await parse_stream(body.chunks, file, max_bytes=self._max_bytes, unknown=unknown)


async def _one_block(data: bytes) -> AsyncIterator[bytes]:
    yield data
