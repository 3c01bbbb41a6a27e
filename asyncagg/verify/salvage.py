"""What can still be read of a damaged aggregate.

An aggregate has one member or row on each line, so that a line that is whole can be read whatever
became of the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from asyncagg.aggregate.format import SCHEMA_VERSION, window_member
from asyncagg.aggregate.spool import LONGEST_LINE
from asyncagg.model import RunFile, Window
from asyncagg.store import StreamedBody
from asyncagg.verify.ledger import RefusedRow

__all__ = ("Remains", "run_file", "salvage")

_COUNTED = {"key", "timestamp", "size", "etag", "last_modified"}
_REFUSED = {"key", "reason", "moved_to", "etag"}
"""All the names of a row of ours. A match in the top 10 has others: it is never taken for a row."""


@dataclass(slots=True)
class Remains:
    """What is left of a damaged aggregate's head.

    Attributes:
        window: Its window.
        etag: Its etag.
        reason: What is wrong with it.
        ours: Whether anything shows that it is this window's aggregate.
        foreign: Whether anything shows that it is something else.
        revision: How often it was committed; 0 if that is lost.
        files: What it says of the number of its files; empty if that is lost.
        rows: How many rows were read.
        empty: Whether there is not a byte of it.
    """

    window: Window
    etag: str
    reason: str
    ours: bool = False
    foreign: bool = False
    revision: int = 0
    files: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    empty: bool = True

    @property
    def recognised(self) -> bool:
        """Whether it may be replaced: it is ours, or there is nothing of it."""
        return not self.foreign and (self.ours or self.rows > 0 or self.empty)

    @property
    def whole(self) -> bool:
        """Whether every row that it had was read."""
        told = self.files.get("counted", 0) + self.files.get("quarantined", 0)
        return not self.foreign and self.counts_known and self.rows == told

    @property
    def counts_known(self) -> bool:
        """Whether it still says how many rows it had."""
        return self.files.keys() >= {"counted", "quarantined"}

    def take(self, line: bytes) -> RunFile | RefusedRow | None:
        """Take one line: return the row that it is, or keep what else it says."""
        text = line.removesuffix(b",")
        member = text[:1] == b'"'
        try:
            value: Any = orjson.loads(b"{%b}" % text if member else text)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(value, dict):
            return None
        if member:
            self._note(value)
            return None
        row = self._row(value)
        self.rows += row is not None
        return row

    def _note(self, member: dict[str, Any]) -> None:
        match member:
            case {"window": told}:
                self.ours = told == window_member(self.window)
                self.foreign |= not self.ours
            case {"schema_version": told}:
                self.foreign |= told != SCHEMA_VERSION
            case {"revision": int(told)}:
                self.revision = told
            case {"files": dict(told)} if all(isinstance(each, int) for each in told.values()):
                self.files = told

    def _row(self, value: dict[str, Any]) -> RunFile | RefusedRow | None:
        try:
            if value.keys() == _COUNTED:
                return run_file(value)
            if value.keys() == _REFUSED:
                return msgspec.convert({"window": self.window.name, **value}, RefusedRow)
        except msgspec.ValidationError:
            return None
        return None


def run_file(value: dict[str, Any]) -> RunFile:
    """Return the file that a row of ``source_files`` speaks of.

    Raises:
        ValidationError: It is garbled.
    """
    file = msgspec.convert(value, RunFile)
    if file.last_modified.tzinfo is None or not 0 <= file.size < 2**63:
        raise msgspec.ValidationError(f"{file} is none that a store could have listed")
    return file


async def salvage(
    body: StreamedBody, remains: Remains
) -> AsyncIterator[list[RunFile | RefusedRow]]:
    """Yield the rows that can be read, some at a time.

    Args:
        body: The damaged aggregate.
        remains: What else it says is added to it.
    """
    rest = b""
    async for chunk in body.chunks:
        remains.empty &= not chunk
        *lines, rest = (rest + chunk).split(b"\n")
        found = (remains.take(line) for line in lines)
        yield [row for row in found if row is not None]
        if len(rest) > LONGEST_LINE:
            rest = b""  # none of ours
    last = remains.take(rest)
    if last is not None:
        yield [last]
