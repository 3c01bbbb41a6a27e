"""The records of a ZIP archive as a pack has them, and the names of its members.

Members are stored without compression, and every size is known before its bytes are written. So
there is no ZIP64 and no data descriptor. The source is PKWARE's APPNOTE.TXT, version 6.3.10.

A member's name is its key below the inbox, made safe to unpack. The exact key and the etag are in
its comment in the central directory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import NamedTuple

import msgspec

MAX_MEMBERS = 10_000
"""The most members of a pack."""

MAX_BYTES = 2**32 - 2
"""The most bytes of a pack: offsets have 32 bits, and all ones would mean ZIP64."""

CONTENT_TYPE = "application/zip"
"""The media type of a pack."""

LOCAL_HEADER = Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, size twice, lengths of name and extra."""

CENTRAL_HEADER = Struct("<4s6H3I5H2I")
"""Signature, 2 versions, flags, method, time, date, CRC, size twice, lengths of name, extra and
comment, disk, internal and external attributes, offset of the local header."""

END_RECORD = Struct("<4s4H2IH")
"""Signature, 2 disks, number of members twice, size and offset of the directory, comment."""

EXTRA = Struct("<HHBI")
"""The extended timestamp: its id, its size, the flag of a modification time, Unix seconds."""

LOCAL_SIGNATURE = b"PK\3\4"
CENTRAL_SIGNATURE = b"PK\1\2"
END_SIGNATURE = b"PK\5\6"

_VERSION = 10
_MADE_BY = 3 << 8 | _VERSION
_UTF8_NAMES = 1 << 11
_STORED = 0
_TIMESTAMP = 0x5455
_ATTRIBUTES = 0o100644 << 16

_COMMON = Struct("<5H3I2H")
"""What both headers of a member have: version needed to lengths of name and extra field."""

_CENTRAL_START = CENTRAL_SIGNATURE + _MADE_BY.to_bytes(2, "little")
_CENTRAL_REST = Struct("<3H2I")
"""The length of the comment, disk, attributes, and the offset of the local header."""

_MAX_NAME = 1024
_MAX_PART = 255
"""The longest name of a file or folder that file systems accept, in bytes."""

_DIGEST = 16


class DamagedPackError(ValueError):
    """A pack is not as it was written; the message says what is wrong."""


class Timestamp(NamedTuple):
    """A time as the headers of a member have it."""

    time: int
    date: int
    extra: bytes


class Comment(msgspec.Struct, frozen=True):
    """What the comment of a member says, as JSON.

    Attributes:
        key: The key of the file in the inbox.
        etag: Its etag there.
    """

    key: str
    etag: str


class Entry(NamedTuple):
    """A member as the central directory describes it.

    Attributes:
        name: Its name: do not trust it.
        crc: The CRC32 of its content.
        size: The size of its content in bytes.
        header: The offset of its local header.
        modified: When the file was written, in Unix seconds; None if unknown.
        comment: Its key and etag; None if the comment is not one of a pack.
    """

    name: str
    crc: int
    size: int
    header: int
    modified: int | None
    comment: Comment | None

    @property
    def content(self) -> int:
        """Where its content begins, if it was written by `asyncagg.packs.writer`."""
        return self.header + LOCAL_HEADER.size + len(self.name.encode()) + EXTRA.size


class Directory(NamedTuple):
    """Where the central directory is: the number of its entries, its size and its offset."""

    members: int
    size: int
    offset: int


def safe_name(name: str) -> str | None:
    """Return a member's name for a key below the inbox, or None if it needs a `tagged_name`."""
    path = f"/{name}/"
    if not name.isprintable() or "\\" in name or "//" in path or "/./" in path or "/../" in path:
        return None
    if ".json/" in name or ".json.gz/" in name:
        return None  # a folder with the name of a file could not be unpacked next to that file
    if len(name) <= _MAX_PART // 4:
        return name
    sizes = [len(part.encode()) for part in name.split("/")]
    return name if max(sizes) <= _MAX_PART and sum(sizes) + len(sizes) <= _MAX_NAME else None


def tagged_name(name: str, identity: str) -> str:
    """Return a name that is safe to unpack and has a digest of an identity.

    Args:
        name: The key below the inbox.
        identity: What no other member has.
    """
    digest = sha256(identity.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    plain = "".join(sign if sign.isprintable() and sign != "\\" else "_" for sign in name)
    *folders, last = plain.split("/")
    stem, dot, ending = last.partition(".json")
    suffix = f".{digest}{dot}{ending}" if len(ending.encode()) <= 8 else f".{digest}"
    path = "".join(f"{_folder(folder)}/" for folder in folders)
    if len(path.encode()) > _MAX_NAME - _MAX_PART:
        path = ""
    return f"{path}{_cut(stem, _MAX_PART - len(suffix.encode()))}{suffix}"


def _folder(name: str) -> str:
    if name in ("", ".", ".."):
        return "_"
    return _cut(f"{name}_" if name.lower().endswith((".json", ".json.gz")) else name, _MAX_PART)


def _cut(text: str, size: int) -> str:
    """Return as much of a text as fits into ``size`` bytes of UTF-8."""
    return text.encode()[:size].decode("utf-8", "ignore")


@lru_cache(maxsize=1024)  # files of one page of a listing have few times
def timestamp(modified: datetime) -> Timestamp:
    """Return a time as the headers of a member have it."""
    utc = modified.astimezone(UTC)
    year = min(max(utc.year, 1980), 2107)
    return Timestamp(
        utc.hour << 11 | utc.minute << 5 | utc.second // 2,
        (year - 1980) << 9 | utc.month << 5 | utc.day,
        EXTRA.pack(_TIMESTAMP, 5, 1, min(max(int(utc.timestamp()), 0), 2**31 - 1)),
    )


def member_headers(
    name: bytes, when: Timestamp, crc: int, size: int, *, header: int, comment: bytes
) -> tuple[bytes, bytes]:
    """Return the local header of a member at offset ``header``, and its entry in the directory."""
    common = _COMMON.pack(
        _VERSION,
        _UTF8_NAMES,
        _STORED,
        when.time,
        when.date,
        crc,
        size,
        size,
        len(name),
        EXTRA.size,
    )
    named = name + when.extra
    rest = _CENTRAL_REST.pack(len(comment), 0, 0, _ATTRIBUTES, header)
    return (
        LOCAL_SIGNATURE + common + named,
        _CENTRAL_START + common + rest + named + comment,
    )


def end_record(directory: Directory) -> bytes:
    """Return the end of a pack."""
    members, size, offset = directory
    return END_RECORD.pack(END_SIGNATURE, 0, 0, members, members, size, offset, 0)


def parse_end(data: bytes, total: int) -> Directory:
    """Return where the central directory is.

    Args:
        data: The last bytes of a pack, `END_RECORD.size` or more.
        total: The size of the pack.

    Raises:
        DamagedPackError: They are not the end of a pack of that size.
    """
    at = len(data) - END_RECORD.size
    if at < 0 or data[at : at + 4] != END_SIGNATURE:
        raise DamagedPackError("it has no end record: expected one in its last 22 bytes")
    _, _, _, _, members, size, offset, comment = END_RECORD.unpack_from(data, at)
    if comment or offset + size + END_RECORD.size != total:
        raise DamagedPackError(f"its directory ends at {offset + size} of {total} bytes")
    return Directory(members, size, offset)


def parse_directory(data: bytes) -> Iterator[Entry]:
    """Yield the entries of a central directory.

    Raises:
        DamagedPackError: It is damaged, or a member is not stored as in a pack.
    """
    at = 0
    while at < len(data):
        try:
            fields = CENTRAL_HEADER.unpack_from(data, at)
        except struct.error as error:
            raise DamagedPackError(f"its directory is cut at byte {at}") from error
        signature, _, _, _, method, _, _, crc, size, stored = fields[:10]
        name_size, extra_size, comment_size = fields[10:13]
        if signature != CENTRAL_SIGNATURE or method != _STORED or size != stored:
            raise DamagedPackError(f"its directory has no entry of a stored member at byte {at}")
        extra = at + CENTRAL_HEADER.size + name_size
        comment = extra + extra_size
        end = comment + comment_size
        if end > len(data):
            raise DamagedPackError(f"its directory is cut at byte {at}")
        yield Entry(
            data[extra - name_size : extra].decode("utf-8", "replace"),
            crc,
            size,
            fields[16],
            _parse_extra(data[extra:comment]),
            _parse_comment(data[comment:end]),
        )
        at = end


def content_offset(header: bytes, entry: Entry) -> int:
    """Return where the content of a member begins in its pack.

    Args:
        header: The first `LOCAL_HEADER.size` bytes or more at ``entry.header``.
        entry: The member.

    Raises:
        DamagedPackError: The local header is not that of the member.
    """
    if len(header) < LOCAL_HEADER.size:
        raise DamagedPackError(f"member {entry.name!r}: its header is cut")
    fields = LOCAL_HEADER.unpack_from(header)
    if (fields[0], fields[3], fields[6], fields[7]) != (
        LOCAL_SIGNATURE,
        _STORED,
        entry.crc,
        entry.size,
    ):
        raise DamagedPackError(
            f"member {entry.name!r}: its header differs from its entry in the directory"
        )
    return int(entry.header + LOCAL_HEADER.size + fields[9] + fields[10])


def _parse_extra(extra: bytes) -> int | None:
    if len(extra) != EXTRA.size:
        return None
    kind, _, flags, seconds = EXTRA.unpack(extra)
    return int(seconds) if (kind, flags) == (_TIMESTAMP, 1) else None


def _parse_comment(comment: bytes) -> Comment | None:
    try:
        return msgspec.json.decode(comment, type=Comment)
    except msgspec.MsgspecError:
        return None
