"""A store in memory with the semantics of S3, for tests and for trying the library out."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio.lowlevel
import msgspec

from asyncagg.errors import NotFoundError, PreconditionFailedError, StoreError
from asyncagg.model import RunFile
from asyncagg.store.protocol import (
    Absent,
    Body,
    Condition,
    Matches,
    ObjectInfo,
    StreamedBody,
    check_batch,
    check_range,
    lower_keys,
)

_PAGE = 1000
_BLOCK = 256 * 1024
_MAX_KEY_BYTES = 1024


class _Object(msgspec.Struct, frozen=True):
    data: bytes
    info: ObjectInfo

    @property
    def etag(self) -> str:
        return self.info.file.etag


class MemoryStore:
    """Objects in a dictionary. Every method has one checkpoint: other tasks run, or cancel it.

    Args:
        clock: Returns the ``last_modified`` of an object that is written now, with a time zone.
    """

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._objects: dict[str, _Object] = {}

    @property
    def url(self) -> str:
        """The store's name for messages."""
        return "memory://"

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects whose key starts with a prefix, page by page, in key order."""
        while True:
            await anyio.lowlevel.checkpoint()
            # Strings sort by code points, which is the order of their UTF-8 bytes.
            wanted = (key for key in self._objects if key > start_after and key.startswith(prefix))
            keys = heapq.nsmallest(_PAGE, wanted)
            if not keys:
                return
            yield [self._objects[key].info.file for key in keys]
            start_after = keys[-1]

    async def head(self, key: str) -> ObjectInfo:
        """Return an object's reference, media type and metadata."""
        await anyio.lowlevel.checkpoint()
        return self._find("head", key).info

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content, if its etag is still ``if_match``."""
        await anyio.lowlevel.checkpoint()
        found = self._find("get", key, if_match)
        return Body(found.data, found.etag)

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """Return a part of an object's content."""
        await anyio.lowlevel.checkpoint()
        found = self._find("get", key, if_match)
        data = found.data[start : start + length]
        check_range("get", key, start, length, len(data))
        return Body(data, found.etag)

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading block by block."""
        await anyio.lowlevel.checkpoint()
        found = self._find("stream", key, if_match)
        yield StreamedBody(_blocks(found.data), found.etag)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic step and return its etag."""
        await anyio.lowlevel.checkpoint()
        data = await whole(body)
        info = ObjectInfo(self._reference(key, data), content_type, "", lower_keys(metadata or {}))
        self._write("put", _Object(data, info), condition)
        return info.file.etag

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object whose etag is ``if_match``."""
        await anyio.lowlevel.checkpoint()
        found = self._find("copy", source, if_match)
        info = msgspec.structs.replace(found.info, file=self._reference(target, found.data))
        if metadata is not None:
            info = msgspec.structs.replace(info, metadata=lower_keys(metadata))
        self._write("copy", _Object(found.data, info), condition)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete objects whose etag is unchanged; return the failures by key."""
        await anyio.lowlevel.checkpoint()
        check_batch(files)
        failures: dict[str, StoreError] = {}
        for file in files:
            try:
                self._find("delete", file.key, file.etag)
                del self._objects[file.key]
            except NotFoundError:
                continue
            except PreconditionFailedError as error:
                failures[file.key] = error
        return failures

    def _find(self, operation: str, key: str, if_match: str | None = None) -> _Object:
        found = self._objects.get(key)
        if found is None:
            raise _error(NotFoundError, operation, key, "no such key")
        if if_match is not None and if_match != found.etag:
            detail = f"its etag is {found.etag!r}, expected {if_match!r}"
            raise _error(PreconditionFailedError, operation, key, detail)
        return found

    def _write(self, operation: str, new: _Object, condition: Condition | None) -> None:
        key = new.info.file.key
        if not 0 < len(key.encode(errors="surrogatepass")) <= _MAX_KEY_BYTES:
            detail = f"expected a key of 1 to {_MAX_KEY_BYTES} bytes of UTF-8"
            raise _error(StoreError, operation, key, detail)
        present = self._objects.get(key)
        if isinstance(condition, Absent) and present is not None:
            raise _error(PreconditionFailedError, operation, key, "the key already exists")
        if isinstance(condition, Matches) and (present is None or present.etag != condition.etag):
            detail = f"no object with etag {condition.etag!r}"
            raise _error(PreconditionFailedError, operation, key, detail)
        self._objects[key] = new

    def _reference(self, key: str, data: bytes) -> RunFile:
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return RunFile(key, len(data), etag, self._clock())


def _error(kind: type[StoreError], operation: str, key: str, detail: str) -> StoreError:
    return kind(f"{operation} {key!r}: {detail}", operation=operation, key=key)


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _BLOCK):
        await anyio.lowlevel.checkpoint()
        yield data[start : start + _BLOCK]


async def whole(body: bytes | AsyncIterable[bytes]) -> bytes:
    """Return the bytes of a body that is to be written."""
    return body if isinstance(body, bytes) else b"".join([block async for block in body])
