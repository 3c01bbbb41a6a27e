"""Read files out of packs by the place that their rows name; check size and CRC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple
from zlib import crc32

import anyio

from asyncagg.errors import NotFoundError
from asyncagg.model import CountedFile, Pack, RunFile
from asyncagg.packs.format import (
    END_RECORD,
    EXTRA,
    LOCAL_HEADER,
    LOCAL_SIGNATURE,
    DamagedPackError,
    Entry,
    parse_directory,
    parse_end,
)
from asyncagg.store import Body, Store

_LONGEST_HEADER = LOCAL_HEADER.size + 1024 + EXTRA.size
"""A member's name has up to 1,024 bytes."""

_BLOCK = 1024 * 1024
"""Bytes of a request where neighbours are read together."""

_KEPT = 4
"""Blocks that are kept: members are almost in the order of their keys."""


class PackedContent(NamedTuple):
    """The content of a file in a pack.

    Attributes:
        data: The content; its CRC is that of the pack.
        proven: Whether the pack has the etag that the aggregate names.
    """

    data: bytes
    proven: bool


class PackReader:
    """Reads files out of the packs of an aggregate.

    Args:
        store: Where the packs are.
        packs: The packs.
        block: Bytes to request at a time; 0 for one request per file.
    """

    def __init__(self, store: Store, packs: Iterable[Pack], *, block: int = _BLOCK) -> None:
        self._store = store
        self._packs: Mapping[str, Pack] = {pack.id: pack for pack in packs}
        self._block = block
        self._blocks: dict[tuple[str, int], Body] = {}
        self._lock = anyio.Lock()

    async def read(self, file: CountedFile) -> PackedContent:
        """Return the content of a file.

        Raises:
            NotFoundError: The pack is gone, or the aggregate does not name it.
            DamagedPackError: The pack does not have the file there.
            StoreError: The store failed.
        """
        pack = self._packs.get(file.pack)
        if pack is None:
            raise NotFoundError(
                f"pack {file.pack!r} of {file.key!r}: the aggregate does not name it", key=file.key
            )
        start, end = max(0, file.offset - _LONGEST_HEADER), file.offset + file.size
        if file.offset <= start or end > pack.bytes:
            raise DamagedPackError(f"{pack.key!r}: no member is at byte {file.offset}")
        if self._block:
            bodies, start = await self._load(pack, start, end)
        else:
            bodies = [await self._store.get_range(pack.key, start, end - start)]
        data = bodies[0].data if len(bodies) == 1 else b"".join(body.data for body in bodies)
        try:
            found = member_at(data, file.offset - start, file.size)
        except DamagedPackError as error:
            raise _damaged(pack, file, error) from error
        return PackedContent(found, all(body.etag == pack.etag for body in bodies))

    async def _load(self, pack: Pack, start: int, end: int) -> tuple[list[Body], int]:
        """Return the blocks that hold a range, and where the first begins."""
        first, last = start // self._block, (end - 1) // self._block
        if first == last and (pack.id, first) in self._blocks:  # mostly
            return [self._take(pack, first)], first * self._block
        async with self._lock:  # the tasks that wait need the same blocks
            bodies = [await self._load_block(pack, number) for number in range(first, last + 1)]
            while len(self._blocks) > max(_KEPT, len(bodies)):
                del self._blocks[next(iter(self._blocks))]
        return bodies, first * self._block

    async def _load_block(self, pack: Pack, number: int) -> Body:
        if (pack.id, number) not in self._blocks:
            start = number * self._block
            length = min(self._block, pack.bytes - start)
            self._blocks[pack.id, number] = await self._store.get_range(pack.key, start, length)
        return self._take(pack, number)

    def _take(self, pack: Pack, number: int) -> Body:
        """Return a block that is held; the last one used is the last one removed."""
        body = self._blocks.pop((pack.id, number))
        self._blocks[pack.id, number] = body
        return body


def member_at(data: bytes, at: int, size: int) -> bytes:
    """Return the content of the member that begins at ``at``; its header must be before it.

    Raises:
        DamagedPackError: There is no such member, or its content has another CRC.
    """
    header = data.rfind(LOCAL_SIGNATURE, max(0, at - _LONGEST_HEADER), at)
    while header >= 0:
        if header + LOCAL_HEADER.size <= at:
            fields = LOCAL_HEADER.unpack_from(data, header)
            begins = header + LOCAL_HEADER.size + fields[9] + fields[10]
            if begins == at and fields[7] == fields[8] == size:
                return _checked(data[at : at + size], fields[6])
        # The content of the member before may contain a signature, and so may a timestamp.
        header = data.rfind(LOCAL_SIGNATURE, max(0, at - _LONGEST_HEADER), header + 3)
    raise DamagedPackError(f"no header of a member of {size} bytes is before it")


def _checked(content: bytes, crc: int) -> bytes:
    found = crc32(content)
    if found != crc:
        raise DamagedPackError(f"the content has CRC {found:08x}, expected {crc:08x}")
    return content


async def read_entries(store: Store, key: str, size: int, etag: str) -> list[Entry]:
    """Return the central directory of a pack.

    Raises:
        DamagedPackError: The object is not a whole pack.
        StoreError: The store failed, or the pack has another etag.
    """
    if size < END_RECORD.size:
        raise DamagedPackError(f"{key!r} has {size} bytes: too few for a pack")
    start = size - END_RECORD.size
    end = await store.get_range(key, start, END_RECORD.size, if_match=etag)
    directory = parse_end(end.data, size)
    if not directory.size:
        return []
    body = await store.get_range(key, directory.offset, directory.size, if_match=etag)
    entries = list(parse_directory(body.data))
    if len(entries) != directory.members:
        raise DamagedPackError(
            f"{key!r}: its directory has {len(entries)} entries, expected {directory.members}"
        )
    return entries


async def files_of(store: Store, listed: RunFile) -> tuple[Pack, list[CountedFile]]:
    """Return a pack as a listing has it, and its files as its directory names them.

    Raises:
        DamagedPackError: The object is not a whole pack.
        StoreError: The store failed, or the pack has another etag.
    """
    entries = await read_entries(store, listed.key, listed.size, listed.etag)
    name = listed.key.rpartition("/")[2].removesuffix(".zip")
    files = [
        CountedFile(
            each.comment.key,
            each.size,
            each.comment.etag,
            datetime.fromtimestamp(each.modified or 0, UTC),
            pack=name,
            offset=each.content,
        )
        for each in entries
        if each.comment
    ]
    return Pack(name, listed.key, listed.etag, len(entries), listed.size), files


async def stream_files(
    store: Store, pack: Pack, files: Iterable[CountedFile], *, if_match: str | None = None
) -> AsyncIterator[tuple[CountedFile, bytes]]:
    """Yield files of one pack with their contents; the pack is read once, from its start.

    Args:
        store: Where the pack is.
        pack: The pack.
        files: Files in it.
        if_match: The etag that it must have; None for any.

    Raises:
        DamagedPackError: It does not have a file at its place.
        StoreError: The store failed, or the pack has another etag.
    """
    held, start = bytearray(), 0
    async with store.stream(pack.key, if_match=if_match) as body:
        for file in sorted(files, key=lambda each: each.offset):
            end = file.offset + file.size
            while start + len(held) < end:
                block = await anext(body.chunks, b"")
                if not block:
                    raise DamagedPackError(f"{pack.key!r} ends at byte {start + len(held)}")
                held += block
                unused = min(len(held), max(0, file.offset - _LONGEST_HEADER - start))
                del held[:unused]
                start += unused
            try:
                data = member_at(bytes(held[: end - start]), file.offset - start, file.size)
            except DamagedPackError as error:
                raise _damaged(pack, file, error) from error
            yield file, data


def _damaged(pack: Pack, file: CountedFile, error: DamagedPackError) -> DamagedPackError:
    return DamagedPackError(f"{pack.key!r}, byte {file.offset}: {error}")
