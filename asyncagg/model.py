"""Plain immutable values: what a listing says, what a run file says, what a window is."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

__all__ = ("Interval", "Match", "RunFile", "RunResult", "Window")


class RunFile(msgspec.Struct, frozen=True, gc=False):
    """The reference of one object, as a listing gives it; ``(key, etag)`` is its identity.

    Attributes:
        key: The object's key in the store.
        size: Its size in bytes.
        etag: The store's tag of its content, without quotes.
        last_modified: When the store took it in, with a time zone.
    """

    key: str
    size: int
    etag: str
    last_modified: datetime


class Match(msgspec.Struct, frozen=True, gc=False):
    """One entry of a run file's ``top_matches``.

    Attributes:
        score: Its ``match_score`` (0 where missing).
        position: Its place in the file's list, from 0.
        body: The match object as it came.
    """

    score: int | float
    position: int
    body: dict[str, Any]


class RunResult(msgspec.Struct, frozen=True, gc=False):
    """The parsed content of one run file.

    Attributes:
        run_id: The run's name, or the file's key where it gave none.
        timestamp: When the run took place (ISO 8601), or the file's time where it gave none.
        opportunities: How many opportunities the run looked at.
        matches: How many of them matched.
        no_matches: How many did not.
        errors: How many failed.
        processing_time: Seconds that the run took; ``None`` where it did not say.
        top_matches: The matches that compete for the top of the aggregate.
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
    """A half-open interval ``[start, end)`` of time, named by its end.

    Attributes:
        end: The first moment after it, in UTC.
        minutes: Its length.
    """

    end: datetime
    minutes: int

    @property
    def start(self) -> datetime:
        """Its first moment, in UTC."""
        return self.end - timedelta(minutes=self.minutes)

    @property
    def name(self) -> str:
        """Its name, for example ``20251021t1400Z``."""
        # Not %Y: it leaves out the leading zeros of a year before 1000 on some systems.
        return f"{self.end.year:04}{self.end:%m%dt%H%MZ}"


class Interval(NamedTuple):
    """The windows from a moment to another, both in UTC.

    Attributes:
        since: No window starts earlier.
        until: No window ends later.
    """

    since: datetime
    until: datetime

    def holds(self, window: Window) -> bool:
        """Say whether all of a window is in it."""
        return self.since <= window.start and window.end <= self.until
