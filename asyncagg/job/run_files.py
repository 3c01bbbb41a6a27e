"""Load one run file from a store: whole if it is small, else as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol, TypeAlias

from asyncagg.errors import InvalidRunFileError
from asyncagg.ingest.gzipped import inflate, is_gzip
from asyncagg.ingest.parsing import MAX_WHOLE_BYTES, parse, parse_blocks
from asyncagg.ingest.streaming import parse_stream
from asyncagg.job.byte_limiter import ByteLimiter
from asyncagg.model import RunFile, RunResult
from asyncagg.settings import Settings
from asyncagg.store import Store

_STREAM_COST = 6 * 1024 * 1024
"""The most memory that a streamed file takes: mostly for its ten longest matches."""


Loaded: TypeAlias = tuple[bytes | RunResult, bytes | None]
"""A run file: its unzipped content, or its result if it was parsed while it was loaded; and its
bytes as stored, if they were read whole."""


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

    async def load(
        self,
        file: RunFile,
        *,
        key: str = "",
        unknown: Counter[str] | None = None,
        gate: Gate | None = None,
    ) -> Loaded:
        """Load a run file.

        Args:
            file: Its reference.
            key: Read from this key instead of ``file.key``, if the file was moved.
            unknown: Counts the names of fields that are not read, if the file is parsed here.
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
            return await self._parse_stream(file, key, unknown), None
        if not self._limiter.take(file.size):
            await self._limiter.acquire(file.size)
        try:
            if gate is not None and gate.is_full:
                await gate.wait()
            data = (await self._store.get(key or file.key, if_match=file.etag)).data
            if not is_gzip(data):
                return data, data
            content = self._unzip(data, file, unknown)
            if content is not None:
                return content, data
        finally:
            self._limiter.release(file.size)
        return await self._parse_stream(file, key, unknown), None

    async def load_content(self, file: RunFile, load: Callable[[], Awaitable[bytes]]) -> Loaded:
        """Load a run file that ``load`` returns whole.

        Raises:
            InvalidRunFileError: It can never be counted.
        """
        if not self._limiter.take(file.size):
            await self._limiter.acquire(file.size)
        try:
            data = await load()
            if not is_gzip(data):
                return data, data
            content = self._unzip(data, file, None)
            if content is None:
                content = await parse_stream(_one_block(data), file, max_bytes=self._max_bytes)
            return content, data
        finally:
            self._limiter.release(file.size)

    async def check(self, file: RunFile, *, key: str = "") -> None:
        """Load and parse a run file.

        Args:
            file: Its reference.
            key: Read from this key instead of ``file.key``, if the file was moved.

        Raises:
            InvalidRunFileError: It can never be counted.
            StoreError: It could not be fetched in the version of the reference.
        """
        content, _ = await self.load(file, key=key)
        if isinstance(content, bytes):
            parse(content, file)

    def _unzip(
        self, data: bytes, file: RunFile, unknown: Counter[str] | None
    ) -> bytes | RunResult | None:
        """Return the unzipped content, its result if it is large, None if it is too large."""
        blocks = []
        size = 0
        for block in inflate(data, self._max_bytes):
            size += len(block)
            if size > self._stream_bytes:
                return None
            blocks.append(block)
        if size > MAX_WHOLE_BYTES:
            return parse_blocks(blocks, file, unknown)
        return b"".join(blocks)

    async def _parse_stream(
        self, file: RunFile, key: str, unknown: Counter[str] | None
    ) -> RunResult:
        async with (
            self._limiter.hold(max(self._stream_bytes, _STREAM_COST)),
            self._store.stream(key or file.key, if_match=file.etag) as body,
        ):
            return await parse_stream(body.chunks, file, max_bytes=self._max_bytes, unknown=unknown)


async def _one_block(data: bytes) -> AsyncIterator[bytes]:
    yield data
