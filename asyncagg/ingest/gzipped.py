"""Run files that are stored as gzip."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from asyncagg.errors import InvalidRunFileError

_MAGIC = b"\x1f\x8b"


def is_gzip(data: bytes) -> bool:
    """Return whether an object's content is gzip, whatever its name or its headers say."""
    return data.startswith(_MAGIC)


def inflate(data: bytes, limit: int) -> Iterator[bytes]:
    """Yield the unzipped content of gzip data, block by block.

    Args:
        data: One or several gzip members.
        limit: The largest size of the unzipped content, in bytes.

    Raises:
        InvalidRunFileError: It is not gzip, is truncated, or unzips to more than ``limit`` bytes.
    """
    inflater = Inflater(limit)
    yield from inflater.feed(data)
    inflater.finish()


class Inflater:
    """Unzips gzip data that arrives block by block, to at most ``limit`` bytes in all."""

    _BLOCK = 256 * 1024
    _STEP = 16 * 1024

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._member = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the unzipped content; raise an `InvalidRunFileError` if it is bad or too large."""
        # In small steps, because zlib copies the rest of its input at each block and each member.
        for start in range(0, len(data), self._STEP):
            yield from self._feed(data[start : start + self._STEP])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # gzip allows padding after a member
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            try:
                block = self._member.decompress(data, self._BLOCK)
            except zlib.error as error:
                raise InvalidRunFileError(f"bad gzip: {error}") from None
            data = self._member.unconsumed_tail or self._member.unused_data
            self._total += len(block)
            if self._total > self._limit:
                raise InvalidRunFileError(f"too large: more than {self._limit} bytes unzipped")
            if block:
                yield block

    def finish(self) -> None:
        """Raise an `InvalidRunFileError` if the data is truncated or empty."""
        if not self._member.eof:
            raise InvalidRunFileError("bad gzip: cut short")


class Unzipper:
    """Passes on content that arrives block by block, unzipped if it is gzip.

    Args:
        limit: The largest size of unzipped content, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._start: bytes | None = b""  # until it is known whether it is gzip
        self._inflater: Inflater | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the content of the next block."""
        if self._start is not None:
            data = self._start = self._start + data
            if len(data) < len(_MAGIC):
                return
            self._start = None
            self._inflater = Inflater(self._limit) if is_gzip(data) else None
        if self._inflater is None:
            yield data
        else:
            yield from self._inflater.feed(data)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest; raise an `InvalidRunFileError` if gzip data is truncated."""
        if self._inflater is not None:
            self._inflater.finish()
        yield self._start or b""
