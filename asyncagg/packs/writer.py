"""Write a pack: members are appended in memory, and its bytes are taken block by block."""

from __future__ import annotations

from collections import deque
from zlib import crc32

import msgspec

from asyncagg.model import RunFile
from asyncagg.packs.format import (
    CENTRAL_HEADER,
    END_RECORD,
    EXTRA,
    LOCAL_HEADER,
    MAX_BYTES,
    MAX_MEMBERS,
    Comment,
    Directory,
    end_record,
    member_headers,
    safe_name,
    tagged_name,
    timestamp,
)

_encode = msgspec.json.Encoder().encode

_LONGEST_ENTRY = LOCAL_HEADER.size + CENTRAL_HEADER.size + 2 * EXTRA.size + 16 * 1024
"""The most bytes that a member needs besides its content: names and comments are bounded."""


class PackWriter:
    """The bytes of a pack: `add` members, `finish` it, and `take` the bytes as they become ready.

    Args:
        runs_prefix: The inbox; members are named by the rest of their keys.
        max_members: The most members.
        max_bytes: The most bytes.

    Attributes:
        files: Members so far.
        bytes: Bytes written so far, the directory not included until `finish`.
        pending: Bytes that are not taken yet.
    """

    def __init__(
        self, runs_prefix: str, *, max_members: int = MAX_MEMBERS, max_bytes: int = MAX_BYTES
    ) -> None:
        self.files = 0
        self.bytes = 0
        self.pending = 0
        self._skip = runs_prefix
        self._max_members = max_members
        self._max_bytes = max_bytes - END_RECORD.size
        self._blocks: deque[bytes] = deque()
        self._directory = bytearray()
        self._names: set[int] = set()  # hashes take a fraction of the memory

    def fits(self, size: int) -> bool:
        """Return whether there is room for one more member of this size."""
        needed = self.bytes + len(self._directory) + size + _LONGEST_ENTRY
        return self.files < self._max_members and needed <= self._max_bytes

    def add(self, file: RunFile, data: bytes) -> int:
        """Append a member, for which there must be room; return where its content begins."""
        size, start = len(data), self.bytes
        local, entry = member_headers(
            self._name(file).encode(),
            timestamp(file.last_modified),
            crc32(data),
            size,
            header=start,
            comment=_encode(Comment(file.key, file.etag)),
        )
        self._directory += entry
        self._blocks += (local, data)
        written = len(local) + size
        self.bytes = start + written
        self.pending += written
        self.files += 1
        return start + len(local)

    def finish(self) -> bytes:
        """Append the central directory and the end of the pack, and return them."""
        directory = Directory(self.files, len(self._directory), self.bytes)
        end = bytes(self._directory) + end_record(directory)
        self._directory.clear()
        self._blocks.append(end)
        self.bytes += len(end)
        self.pending += len(end)
        return end

    def take(self, size: int) -> bytes:
        """Return the next bytes: about this many, or all that there are."""
        taken: list[bytes] = []
        while self._blocks and size > 0:
            taken.append(self._blocks.popleft())
            size -= len(taken[-1])
        block = b"".join(taken)
        self.pending -= len(block)
        return block

    def _name(self, file: RunFile) -> str:
        """Return a name for a member that no other member has."""
        key = file.key.removeprefix(self._skip)
        name = safe_name(key) or tagged_name(key, file.key)
        identity = f"{file.key}\0{file.etag}"
        while (digest := hash(name)) in self._names:
            name, identity = tagged_name(key, identity), identity + "\0"
        self._names.add(digest)
        return name
