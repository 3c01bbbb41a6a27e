"""A store in a local directory: keys are the paths of files below it."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

import aiofiles
import anyio
import anyio.lowlevel
from aiofiles.threadpool.binary import AsyncFileIO
from anyio import to_thread

from asyncagg.errors import StoreError
from asyncagg.model import RunFile
from asyncagg.store.directory.paths import Spot, draft_name, locate
from asyncagg.store.directory.removal import remove
from asyncagg.store.directory.sidecar import Sidecar
from asyncagg.store.directory.tree import Tree
from asyncagg.store.directory.walk import walk
from asyncagg.store.directory.writing import copy, create_draft, discard, publish
from asyncagg.store.protocol import (
    DELETE_BATCH,
    Absent,
    Body,
    Condition,
    ObjectInfo,
    StreamedBody,
)

__all__ = ("DirectoryStore",)

T = TypeVar("T")
P = ParamSpec("P")

_PAGE = 1000
_BLOCK = 256 * 1024
_CLEANUP_SECONDS = 10


class DirectoryStore:
    """The files below a directory, as objects.

    Symbolic links are neither listed nor followed, except on the way to the directory itself. The
    store's own work files have hidden names that begin with ``.asyncagg-``; a crash leaves at most
    some of them. Conditional writes exclude each other across processes by a lock file.

    An object's etag is its file's time and size, and a copy has its source's; so has it its
    source's ``last_modified``. Other programs may write files here at any time, best by writing
    elsewhere on the same file system and renaming: a file that is being written in place can be
    seen half.

    Every method waits for its disk in a worker thread, in as few steps as it can: a step costs
    more than most system calls.

    Args:
        root: The directory. It must exist when it is first used.
        threads: The most worker threads at a time. On a local disk more than a few only contend
            for the interpreter; on a network file system they hide its latency.
    """

    def __init__(self, root: Path, *, threads: int = 4) -> None:
        self._root = root
        self._tree = Tree(root)
        self._threads = anyio.CapacityLimiter(threads)

    @property
    def url(self) -> str:
        """The directory's path."""
        return str(self._root)

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects whose key starts with ``prefix``, page by page, in key order.

        Args:
            prefix: What the keys start with; it may end in the middle of a name.
            start_after: Only keys behind this one.
        """
        spot = locate("list", self.url, prefix, prefix=True)
        files = walk(self._tree, spot, start_after)
        while True:
            with spot.translated():
                # Only reading: a thread that is left behind harms nothing.
                page = await to_thread.run_sync(
                    _page, files, abandon_on_cancel=True, limiter=self._threads
                )
            if not page:
                return
            yield page

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        spot = self._locate("head", key)
        return await self._in_thread(spot, self._tree.head, spot)

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content, if its etag is still ``if_match``."""
        spot = self._locate("get", key)
        return await self._in_thread(spot, self._tree.read, spot, if_match)

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading in blocks of 256 KiB."""
        spot = self._locate("stream", key)
        with spot.translated(), anyio.CancelScope(shield=True):
            file = await aiofiles.open(
                spot.name, "rb", buffering=0, opener=lambda *_: self._tree.open_file(spot)
            )
        try:
            etag = await self._in_thread(spot, self._tree.etag, spot, file.fileno(), if_match)
            yield StreamedBody(self._blocks(spot, file, etag, if_match), etag)
        finally:
            with anyio.CancelScope(shield=True):
                await file.close()

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic and durable step and return its etag.

        Args:
            key: The object's key.
            body: Its content.
            condition: What must hold of the object that has that key, if anything.
            content_type: Its media type.
            metadata: Pairs to keep with it.

        Raises:
            PreconditionFailedError: The object has another etag, or the key is taken.
        """
        spot = self._locate("put", key)
        known = Sidecar(content_type, _lower(metadata or {}))
        draft = draft_name()

        try:
            await self._write_draft(spot, draft, body)
            return await self._in_thread(
                spot,
                publish,
                self._tree,
                spot,
                draft,
                known,
                condition,
            )
        except BaseException:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True), spot.translated():
                await to_thread.run_sync(discard, self._tree, spot, draft, abandon_on_cancel=True)
            raise

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Copy an object, in one atomic and durable step; the copy has its source's etag.

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
        from_spot, to_spot = self._locate("copy", source), self._locate("copy", target)
        pairs = None if metadata is None else _lower(metadata)

        await self._in_thread(
            from_spot,
            copy,
            self._tree,
            from_spot,
            to_spot,
            if_match=if_match,
            condition=condition,
            metadata=pairs,
        )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete up to `DELETE_BATCH` objects, each only if it still has its etag.

        Folders that become empty stay: a producer may be about to write there.

        Returns:
            What could not be deleted, by key.
        """
        if len(files) > DELETE_BATCH:
            raise StoreError(f"delete of {len(files)} objects: accepted are up to {DELETE_BATCH}")
        wanted = [(self._locate("delete", file.key), file.etag) for file in files]
        return await to_thread.run_sync(remove, self._tree, wanted, limiter=self._threads)

    def _locate(self, operation: str, key: str) -> Spot:
        return locate(operation, self.url, key)

    async def _in_thread(
        self, spot: Spot, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with spot.translated():
            return await to_thread.run_sync(
                lambda: function(*args, **kwargs), limiter=self._threads
            )

    async def _write_draft(
        self, spot: Spot, draft: bytes, body: bytes | AsyncIterable[bytes]
    ) -> None:
        # Shielded, because a cancelled aiofiles call goes on in its thread, unobserved. Between the
        # blocks a cancellation comes through.
        with spot.translated(), anyio.CancelScope(shield=True):
            file = await aiofiles.open(
                draft, "xb", opener=lambda *_: create_draft(self._tree, spot, draft)
            )
        try:
            async for block in _once(body) if isinstance(body, bytes) else body:
                with spot.translated(), anyio.CancelScope(shield=True):
                    await file.write(block)
        finally:
            with spot.translated(), anyio.CancelScope(shield=True):
                await file.close()

    async def _blocks(
        self, spot: Spot, file: AsyncFileIO, etag: str, if_match: str | None
    ) -> AsyncIterator[bytes]:
        while True:
            await anyio.lowlevel.checkpoint_if_cancelled()
            with spot.translated(), anyio.CancelScope(shield=True):
                block = await file.read(_BLOCK)
            if not block:
                break
            yield block
        check = self._tree.check_unchanged
        await self._in_thread(spot, check, spot, file.fileno(), etag, if_match)


def _page(files: Iterator[RunFile]) -> list[RunFile]:
    return list(islice(files, _PAGE))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _lower(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in metadata.items()}
