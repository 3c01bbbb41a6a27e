"""A store in a local directory: keys are the paths of files below it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread

from asyncagg.errors import StoreError
from asyncagg.model import RunFile
from asyncagg.store.directory.paths import KeyPath, parse_key, temp_name
from asyncagg.store.directory.removal import remove
from asyncagg.store.directory.sidecar import Sidecar
from asyncagg.store.directory.tree import Tree
from asyncagg.store.directory.walk import walk
from asyncagg.store.directory.writing import copy, create_temp, discard_temp, publish
from asyncagg.store.protocol import (
    Absent,
    Body,
    Condition,
    ObjectInfo,
    StreamedBody,
    check_batch,
    check_range,
    lower_keys,
)

T = TypeVar("T")
P = ParamSpec("P")

_PAGE = 1000
_BLOCK = 256 * 1024
_CLEANUP_SECONDS = 10
_DONE = object()


class DirectoryStore:
    """The files below a directory, as objects.

    Symbolic links are neither listed nor followed, except on the way to the directory itself.
    Internal files have hidden names that start with ``.asyncagg-``; a crash leaves at most some of
    them. A lock file serialises conditional writes across processes.

    An object's etag is its file's modification time and size; a copy has that of its source. Other
    programs may write files here at any time, best by a rename within the file system: a file that
    is written in place can be read half-written.

    Every method does its work in a worker thread, in as few steps as possible: a step costs more
    than most system calls.

    Args:
        root: The directory. It must exist at the first use.
        inbox: The prefix below which hidden and temporary names are left to their writer.
        threads: The most worker threads at a time. On a local disk, more than a few only contend
            for the interpreter; on a network file system they hide its latency.
    """

    def __init__(self, root: Path, *, inbox: str | None = None, threads: int = 4) -> None:
        self._root = root
        self._inbox = inbox
        self._tree = Tree(root)
        self._threads = anyio.CapacityLimiter(threads)

    @property
    def url(self) -> str:
        """The directory's path."""
        return str(self._root)

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the objects below a prefix, which may end in the middle of a name."""
        path = parse_key("list", self.url, prefix, is_prefix=True)
        files = walk(self._tree, path, start_after, inbox=self._inbox)
        while True:
            with path.translating():
                # It only reads, so a thread that is left behind does no harm.
                page = await to_thread.run_sync(
                    _page, files, abandon_on_cancel=True, limiter=self._threads
                )
            if not page:
                return
            yield page

    async def head(self, key: str) -> ObjectInfo:
        """Return an object's metadata."""
        path = self._parse("head", key)
        return await self._in_thread(path, self._tree.head, path)

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """Return an object's whole content."""
        path = self._parse("get", key)
        return await self._in_thread(path, self._tree.read, path, if_match)

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """Return a part of an object's content."""
        path = self._parse("get", key)
        body = await self._in_thread(path, self._tree.read_range, path, if_match, start, length)
        check_range("get", key, start, length, len(body.data))
        return body

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """Open an object's content for reading in blocks of 256 KiB."""
        path = self._parse("stream", key)
        file, etag = await self._in_thread(path, self._tree.open_file, path, if_match)
        try:
            yield StreamedBody(self._blocks(path, file, etag, if_match), etag)
        finally:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                await to_thread.run_sync(file.close, abandon_on_cancel=True)

    async def _blocks(
        self, path: KeyPath, file: io.FileIO, etag: str, if_match: str | None
    ) -> AsyncIterator[bytes]:
        while block := await self._in_thread(path, file.read, _BLOCK):
            yield block
        await self._in_thread(path, self._tree.check_unchanged, path, file, etag, if_match)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic and durable step and return its etag."""
        path, temp = self._parse("put", key), temp_name()
        content = Sidecar(content_type, lower_keys(metadata or {}))
        file: io.BufferedWriter | None = None
        try:
            file = await self._in_thread(path, create_temp, self._tree, path, temp)
            async for block in _once(body) if isinstance(body, bytes) else body:
                await self._in_thread(path, file.write, block)
            return await self._in_thread(
                path, publish, self._tree, path, temp, file, content, condition=condition
            )
        except BaseException:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                await to_thread.run_sync(
                    discard_temp, self._tree, path, temp, file, abandon_on_cancel=True
                )
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
        """Copy an object in one atomic and durable step; the copy has its source's etag."""
        path = self._parse("copy", source)
        steps = copy(
            self._tree,
            path,
            self._parse("copy", target),
            if_match=if_match,
            condition=condition,
            metadata=None if metadata is None else lower_keys(metadata),
        )
        try:
            # A large file takes several steps, so that deadlines and signals are obeyed between.
            while await self._in_thread(path, next, steps, _DONE) is not _DONE:
                pass
        except BaseException:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                await to_thread.run_sync(steps.close, abandon_on_cancel=True)
            raise

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete objects whose etag is unchanged; return the failures by key.

        Empty folders stay: a producer may be about to write there.
        """
        check_batch(files)
        wanted = [(self._parse("delete", file.key), file.etag) for file in files]
        return await to_thread.run_sync(remove, self._tree, wanted, limiter=self._threads)

    def _parse(self, operation: str, key: str) -> KeyPath:
        return parse_key(operation, self.url, key)

    async def _in_thread(
        self, path: KeyPath, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function in a worker thread. Once it has begun, it is not cancelled."""
        with path.translating():
            return await to_thread.run_sync(
                lambda: function(*args, **kwargs), limiter=self._threads
            )


def _page(files: Iterator[RunFile]) -> list[RunFile]:
    return list(islice(files, _PAGE))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
