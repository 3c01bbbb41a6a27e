"""Write the files of one window into packs while they are fetched; remove packs of lost commits.

A pack is complete before the commit that names it. Until then its files are not archived.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.errors import NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.context import JobContext
from asyncagg.model import Pack, Place, RunFile, Window
from asyncagg.packs.format import CONTENT_TYPE
from asyncagg.packs.writer import PackWriter
from asyncagg.runtime.tasks import task_group
from asyncagg.store import Absent, Store

_BLOCK = 256 * 1024
"""Bytes that an upload takes at a time."""

_MAX_PENDING = 4 * _BLOCK
"""Bytes that wait for an upload while it sends a part; then fetching waits."""

_MAX_UPLOADS = 2
"""Packs of a window that are uploaded at a time: each has a part in memory."""

_TAIL = 64 * 1024
"""Bytes at the end of a pack by which a runner recognises its own: the directory with the CRCs."""


class LostPack(NamedTuple):
    """A pack whose commit failed because another runner committed first.

    Attributes:
        pack: The pack.
        base: The etag of the aggregate that the commit was to replace; empty if there was none.
    """

    pack: Pack
    base: str


class _OpenPack:
    """A pack that is uploaded while members are added."""

    def __init__(self, name: str, key: str, runs_prefix: str) -> None:
        self.id = name
        self.key = key
        self.writer = PackWriter(runs_prefix)
        self.tail = b""  # until it is finished

    def finish(self) -> None:
        self.tail = self.writer.finish()[-_TAIL:]


class Packer:
    """Writes files into packs; see `open_packer`.

    Attributes:
        is_full: Whether to call `wait` before another file is fetched.
    """

    def __init__(self, context: JobContext, window: Window, group: TaskGroup) -> None:
        self.is_full = False
        self._context = context
        self._store = context.store
        self._window = window
        self._group = group
        self._open: _OpenPack | None = None
        self._uploading: list[_OpenPack] = []
        self._complete: list[Pack] = []
        self._changed = anyio.Event()

    def add(self, file: RunFile, data: bytes | None) -> Place | None:
        """Add a file that was read whole; return its place.

        Returns:
            None if the file is to be archived as an object: it was not read whole, or was restored
            from quarantine, where it is looked for by its key.
        """
        if data is None or self._context.layout.was_restored(file.key):
            return None
        pack = self._open
        if pack is None or not pack.writer.fits(len(data)):
            pack = self._start()
        before = pack.writer.pending
        place = Place(pack.id, pack.writer.add(file, data))
        if before < _BLOCK <= pack.writer.pending:
            self._notify()
        elif pack.writer.pending >= _MAX_PENDING:
            self.is_full = True
        return place

    async def wait(self) -> None:
        """Wait until there is memory for more files."""
        while self.is_full:
            await self._changed.wait()

    async def complete(self) -> Sequence[Pack]:
        """Finish the last pack, wait for all uploads, and return the packs.

        Raises:
            StoreError: An upload failed; it is raised by the context.
        """
        self._finish()
        while self._uploading:
            await self._changed.wait()
        return self._complete

    def _start(self) -> _OpenPack:
        self._finish()
        name = self._context.new_id()
        layout = self._context.layout
        pack = _OpenPack(name, layout.pack_key(self._window, name), layout.runs_prefix)
        self._open = pack
        self._uploading.append(pack)
        self._group.start_soon(self._upload, pack)
        return pack

    def _finish(self) -> None:
        if self._open is not None:
            self._open.finish()
            self._open = None
        self._notify()

    def _notify(self) -> None:
        """Wake the tasks that wait for a change."""
        pending = sum(pack.writer.pending for pack in self._uploading)
        self.is_full = pending >= _MAX_PENDING or len(self._uploading) > _MAX_UPLOADS
        self._changed.set()
        self._changed = anyio.Event()

    async def _upload(self, pack: _OpenPack) -> None:
        try:
            etag = await self._store.put(
                pack.key, self._blocks(pack), condition=Absent(), content_type=CONTENT_TYPE
            )
        except PreconditionFailedError:
            etag = await self._find(pack)
        writer = pack.writer
        self._complete.append(Pack(pack.id, pack.key, etag, writer.files, writer.bytes))
        self._uploading.remove(pack)
        self._notify()

    async def _blocks(self, pack: _OpenPack) -> AsyncIterator[bytes]:
        writer = pack.writer
        while writer.pending or not pack.tail:
            if writer.pending < _BLOCK and not pack.tail:
                await self._changed.wait()
                continue
            block = writer.take(_BLOCK)
            self._notify()
            yield block

    async def _find(self, pack: _OpenPack) -> str:
        """Return the etag of a pack whose upload succeeded, though its response was lost.

        Raises:
            PreconditionFailedError: The object is another one, or there is none.
        """
        size = pack.writer.bytes
        try:
            found = (await self._store.head(pack.key)).file
            if pack.tail and found.size == size:
                start, length = size - len(pack.tail), len(pack.tail)
                end = await self._store.get_range(pack.key, start, length, if_match=found.etag)
                if end.data == pack.tail:
                    return found.etag
        except NotFoundError:
            pass
        raise PreconditionFailedError(
            f"put {pack.key!r}: refused, and there is no such pack: expected a key that no other "
            "program writes",
            operation="put",
            key=pack.key,
        )


@asynccontextmanager
async def open_packer(context: JobContext, window: Window) -> AsyncIterator[Packer]:
    """Open a writer of packs for one commit.

    An upload that is not complete when the context fails is aborted.
    """
    async with task_group() as group:
        yield Packer(context, window, group)
        group.cancel_scope.cancel()


async def find_missing(store: Store, packs: Iterable[Pack]) -> Pack | None:
    """Return a pack that is gone or has another etag, or None if all are there."""
    for pack in packs:
        try:
            if (await store.head(pack.key)).file.etag != pack.etag:
                return pack
        except NotFoundError:
            return pack
    return None


async def remove_lost(
    context: JobContext, stored: StoredAggregate | None, lost: list[LostPack]
) -> None:
    """Remove the packs of lost commits that the aggregate has moved past without naming them.

    A commit may succeed although its response says nothing or something else, and it may arrive
    late. It cannot any more once the aggregate has another etag than the commit was to replace. A
    store without conditional writes gives no such assurance.
    """
    if stored is None or context.settings.conditional_writes != "required":
        return
    named = {pack.id for pack in stored.packs}
    passed = [each for each in lost if each.base != stored.etag]
    unused = [each.pack for each in passed if each.pack.id not in named]
    if unused:
        now = context.now()
        files = [RunFile(pack.key, pack.bytes, pack.etag, now) for pack in unused]
        with suppress(StoreError):  # `verify` finds what stays
            await context.store.delete(files)
    lost[:] = [each for each in lost if each not in passed]
