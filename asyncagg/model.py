"""Immutable values that every layer uses: references, parsed run files, windows, intervals."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

TOP: Final = 10
"""How many of the best matches are kept."""


class RunFile(msgspec.Struct, frozen=True, gc=False):
    """A reference to one object, as returned by a listing; ``(key, etag)`` identifies it.

    Attributes:
        key: Its key in the store.
        size: Its size in bytes.
        etag: The store's entity tag of its content, without quotes.
        last_modified: When it was written, with a time zone.
    """

    key: str
    size: int
    etag: str
    last_modified: datetime


class CountedFile(RunFile, frozen=True, gc=False):
    """A run file that an aggregate counts, and where its content is if it is in a pack.

    Attributes:
        pack: The id of the pack; empty if the file is archived as an object of its own.
        offset: Where its content begins in the pack; it has ``size`` bytes.
    """

    pack: str = ""
    offset: int = 0


class Pack(msgspec.Struct, frozen=True, gc=False):
    """A pack as the head of an aggregate names it.

    Attributes:
        id: What the rows of its files name it by.
        key: Its key in the store.
        etag: Its etag.
        files: Its members.
        bytes: Its size.
    """

    id: str
    key: str
    etag: str
    files: int
    bytes: int


class Place(NamedTuple):
    """Where a packed file is: the id of the pack, and the offset of its content there."""

    pack: str
    offset: int


class Match(msgspec.Struct, frozen=True, gc=False):
    """One entry of a run file's ``top_matches``.

    Attributes:
        score: Its ``match_score``; 0 if it has none.
        position: Its index in the file's list.
        body: The whole match object, as JSON.
    """

    score: int | float
    position: int
    body: bytes


class RunResult(msgspec.Struct, frozen=True, gc=False):
    """The parsed content of one run file.

    Attributes:
        run_id: The run's name; the file's key if it has none.
        timestamp: When the run took place (ISO 8601); the file's ``last_modified`` if it has none.
        opportunities: How many opportunities the run examined.
        matches: How many of them matched.
        no_matches: How many did not.
        errors: How many failed.
        processing_time: How long the run took, in seconds; None if unknown.
        top_matches: Its best matches that may be among the aggregate's, in the order of the file.
    """

    run_id: str
    timestamp: str
    opportunities: int = 0
    matches: int = 0
    no_matches: int = 0
    errors: int = 0
    processing_time: float | None = None
    top_matches: tuple[Match, ...] = ()


class Window(msgspec.Struct, frozen=True, order=True, gc=False):
    """A half-open interval of time ``[start, end)``, named by its end.

    Attributes:
        end: Its end in UTC, which is not part of it.
        minutes: Its length.
    """

    end: datetime
    minutes: int

    @property
    def start(self) -> datetime:
        """Its start, in UTC."""
        return self.end - timedelta(minutes=self.minutes)

    @property
    def name(self) -> str:
        """Its name, such as ``20251021t1400Z``."""
        return _stamp(self.end)

    @property
    def start_name(self) -> str:
        """Its start, written like its name."""
        return _stamp(self.start)


def _stamp(moment: datetime) -> str:
    # Not %Y: on some systems it omits the leading zeros of years before 1000.
    return f"{moment.year:04}{moment:%m%dt%H%MZ}"


class Interval(NamedTuple):
    """A range of time in UTC; a window is in it if it neither starts earlier nor ends later.

    Attributes:
        since: Its start.
        until: Its end.
    """

    since: datetime
    until: datetime

    def holds(self, window: Window) -> bool:
        """Return whether a whole window is in it."""
        return self.since <= window.start and window.end <= self.until
