"""A store in memory, with the semantics of S3: for tests, and for trying the library out."""

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
    DELETE_BATCH,
    Absent,
    Body,
    Condition,
    Matches,
    ObjectInfo,
    StreamedBody,
)

__all__ = ("MemoryStore",)

_PAGE = 1000
_BLOCK = 256 * 1024
_LONGEST_KEY = 1024


class _Object(msgspec.Struct, frozen=True):
    data: bytes
    info: ObjectInfo

    @property
    def etag(self) -> str:
        return self.info.file.etag


class MemoryStore:
    """Objects in a dictionary. Every method lets other tasks run, and be cancelled, once.

    Args:
        clock: Tells the time, with a time zone, that a written object gets.
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
        """Yield the objects whose key starts with ``prefix``, page by page, in key order.

        Args:
            prefix: What the keys start with.
            start_after: Only keys behind this one.
        """
        while True:
            await anyio.lowlevel.checkpoint()
            # Text sorts by code points, which is the order of its UTF-8 bytes.
            wanted = (key for key in self._objects if key > start_after and key.startswith(prefix))
            keys = heapq.nsmallest(_PAGE, wanted)
            if not keys:
                return
            yield [self._objects[key].info.file for key in keys]
            start_after = keys[-1]

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        await anyio.lowlevel.checkpoint()
        return self._find("head", key).info

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content, if its etag is still ``if_match``."""
        await anyio.lowlevel.checkpoint()
        found = self._find("get", key, if_match)
        return Body(found.data, found.etag, found.info.content_encoding)

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading block by block."""
        await anyio.lowlevel.checkpoint()
        found = self._find("stream", key, if_match)
        yield StreamedBody(_blocks(found.data), found.etag, found.info.content_encoding)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic step and return its etag.

        Args:
            key: The object's key.
            body: Its content.
            condition: What must hold of the object that has that key, if anything.
            content_type: Its media type.
            metadata: Pairs to keep with it.

        Raises:
            PreconditionFailedError: The object has another etag, or the key is taken.
        """
        await anyio.lowlevel.checkpoint()
        data = body if isinstance(body, bytes) else b"".join([block async for block in body])
        info = ObjectInfo(self._reference(key, data), content_type, "", _lower(metadata or {}))
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
        """Copy an object.

        Args:
            source: The key to copy from.
            target: The key to copy to.
            if_match: Only if the source still has this etag.
            condition: What must hold of the target: by default, that no object has its key.
            metadata: Pairs to keep with the copy instead of the source's.

        Raises:
            NotFoundError: The source is gone.
            PreconditionFailedError: One of the two conditions does not hold.
        """
        await anyio.lowlevel.checkpoint()
        found = self._find("copy", source, if_match)
        info = msgspec.structs.replace(found.info, file=self._reference(target, found.data))
        if metadata is not None:
            info = msgspec.structs.replace(info, metadata=_lower(metadata))
        self._write("copy", _Object(found.data, info), condition)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete up to `DELETE_BATCH` objects, each only if it still has its etag.

        Returns:
            What could not be deleted, by key: the objects that have changed.
        """
        await anyio.lowlevel.checkpoint()
        if len(files) > DELETE_BATCH:
            raise StoreError(f"delete of {len(files)} objects: accepted are up to {DELETE_BATCH}")
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
            raise NotFoundError(f"{operation} {key!r}: no such key", operation=operation, key=key)
        if if_match is not None and if_match != found.etag:
            raise PreconditionFailedError(
                f"{operation} {key!r}: its etag is {found.etag!r}, expected {if_match!r}",
                operation=operation,
                key=key,
            )
        return found

    def _write(self, operation: str, written: _Object, condition: Condition | None) -> None:
        key = written.info.file.key
        if not 0 < len(key.encode(errors="surrogatepass")) <= _LONGEST_KEY:
            message = (
                f"{operation} {key!r}: accepted are keys of 1 to {_LONGEST_KEY} bytes of UTF-8"
            )
            raise StoreError(message, operation=operation, key=key)
        present = self._objects.get(key)
        message = ""
        if isinstance(condition, Absent) and present is not None:
            message = "the key is taken"
        elif isinstance(condition, Matches) and (present is None or present.etag != condition.etag):
            message = f"no object with etag {condition.etag!r}"
        if message:
            raise PreconditionFailedError(
                f"{operation} {key!r}: {message}", operation=operation, key=key
            )
        self._objects[key] = written

    def _reference(self, key: str, data: bytes) -> RunFile:
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return RunFile(key, len(data), etag, self._clock())


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _BLOCK):
        await anyio.lowlevel.checkpoint()
        yield data[start : start + _BLOCK]


def _lower(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in metadata.items()}
