"""Run files that are stored as gzip."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from asyncagg.errors import InvalidRunFileError

__all__ = ("Inflater", "inflate", "is_gzipped")


def is_gzipped(key: str, content_encoding: str) -> bool:
    """Say whether an object's bytes are gzip, by its key or by its declared encoding."""
    return key.endswith(".gz") or content_encoding in {"gzip", "x-gzip"}


def inflate(data: bytes, limit: int) -> Iterator[bytes]:
    """Yield the unzipped content of gzip data, block by block.

    Args:
        data: One or several gzip members.
        limit: The most bytes to yield in all.

    Raises:
        InvalidRunFileError: It is not gzip, is cut short, or unzips to more than ``limit`` bytes.
    """
    unzipper = Inflater(limit)
    yield from unzipper.feed(data)
    unzipper.finish()


class Inflater:
    """Unzips gzip data that arrives block by block, never yielding much at a time.

    Args:
        limit: The most bytes to yield in all.
    """

    _BLOCK = 256 * 1024
    _STEP = 16 * 1024

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._member = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` unzips to.

        Raises:
            InvalidRunFileError: It is not gzip, or there is too much of it.
        """
        # In steps: what is left of its input, zlib copies at each block and at each member.
        for start in range(0, len(data), self._STEP):
            yield from self._feed(data[start : start + self._STEP])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0")  # padding behind a member is allowed
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
        """Check that the data ended where a member ends.

        Raises:
            InvalidRunFileError: It is cut short, or there was none.
        """
        if not self._member.eof:
            raise InvalidRunFileError("bad gzip: cut short")
