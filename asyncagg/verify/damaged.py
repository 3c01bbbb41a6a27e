"""What can still be read of a damaged aggregate.

An aggregate has one member or row on each line, so an intact line can be read even if others are
damaged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from asyncagg.aggregate.format import SCHEMA_VERSION, window_member
from asyncagg.aggregate.spool import LONGEST_LINE
from asyncagg.model import CountedFile, RunFile, Window
from asyncagg.store import StreamedBody
from asyncagg.verify.database import QuarantinedEntry

# A row has exactly these fields, and maybe a place in a pack; a match in the top 10 has others, so
# it is never read as a row.
_COUNTED_FIELDS = {"key", "timestamp", "size", "etag", "last_modified"}
_PLACE_FIELDS = {"pack", "offset"}
_QUARANTINED_FIELDS = {"key", "reason", "moved_to", "etag"}


@dataclass(slots=True)
class DamagedAggregate:
    """A damaged aggregate, and what its readable lines say.

    Attributes:
        window: Its window.
        etag: Its etag.
        reason: What is wrong with it.
        own_window: Whether a line says that it is the aggregate of this window.
        foreign: Whether a line says that it is something else.
        revision: How often it was committed; 0 if unknown.
        files: How many files of each kind it had; empty if unknown.
        rows: How many rows were read.
        empty: Whether the object is empty.
    """

    window: Window
    etag: str
    reason: str
    own_window: bool = False
    foreign: bool = False
    revision: int = 0
    files: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    empty: bool = True

    @property
    def replaceable(self) -> bool:
        """Whether it may be overwritten: asyncagg wrote it, or it is empty."""
        return not self.foreign and (self.own_window or self.rows > 0 or self.empty)

    @property
    def counts_known(self) -> bool:
        """Whether it still says how many rows it had."""
        return self.files.keys() >= {"counted", "quarantined"}

    @property
    def complete(self) -> bool:
        """Whether every row that it had was read."""
        expected = self.files.get("counted", 0) + self.files.get("quarantined", 0)
        return not self.foreign and self.counts_known and self.rows == expected

    async def read(self, body: StreamedBody) -> AsyncIterator[list[RunFile | QuarantinedEntry]]:
        """Yield the readable rows of its content, in pages, and keep what else it says."""
        rest = b""
        async for chunk in body.chunks:
            self.empty &= not chunk
            *lines, rest = (rest + chunk).split(b"\n")
            yield self._parse(lines)
            if len(rest) > LONGEST_LINE:
                rest = b""  # no line of an aggregate is that long
        yield self._parse([rest])

    def _parse(self, lines: list[bytes]) -> list[RunFile | QuarantinedEntry]:
        rows = [row for row in map(self._parse_line, lines) if row is not None]
        self.rows += len(rows)
        return rows

    def _parse_line(self, line: bytes) -> RunFile | QuarantinedEntry | None:
        """Return the row in a line; if it is a member of the head, keep its value."""
        text = line.removesuffix(b",")
        is_member = text.startswith(b'"')
        try:
            value: Any = orjson.loads(b"{%b}" % text if is_member else text)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(value, dict):
            return None
        if not is_member:
            return self._parse_row(value)
        self._read_member(value)
        return None

    def _read_member(self, member: dict[str, Any]) -> None:
        match member:
            case {"window": window}:
                self.own_window = window == window_member(self.window)
                self.foreign |= not self.own_window
            case {"schema_version": version}:
                self.foreign |= version != SCHEMA_VERSION
            case {"revision": int(revision)}:
                self.revision = revision
            case {"files": dict(files)} if all(isinstance(each, int) for each in files.values()):
                self.files = files

    def _parse_row(self, row: dict[str, Any]) -> RunFile | QuarantinedEntry | None:
        try:
            if row.keys() - _PLACE_FIELDS == _COUNTED_FIELDS:
                return parse_source(row)
            if row.keys() == _QUARANTINED_FIELDS:
                return msgspec.convert({"window": self.window.name, **row}, QuarantinedEntry)
        except msgspec.ValidationError:
            pass
        return None


def parse_source(row: dict[str, Any]) -> CountedFile:
    """Return the file that a row of ``source_files`` names.

    Raises:
        ValidationError: A value is invalid.
    """
    file = msgspec.convert(row, CountedFile)
    if file.last_modified.tzinfo is None or not 0 <= file.size < 2**63:
        raise msgspec.ValidationError(f"{file}: expected a time zone and a size of 0 to 2**63")
    return file
