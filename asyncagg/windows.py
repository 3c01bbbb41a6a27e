"""Times, intervals and windows: parsing, alignment, and which window a file belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, TypeAlias

from asyncagg.errors import UsageError
from asyncagg.model import Interval, RunFile, Window

WindowBy: TypeAlias = Literal["last_modified", "name"]
"""What decides a file's window: the store's clock, or the time stamp in the file's name."""

MINUTES_A_DAY = 1440

RESTORED = ".putback-"
"""Marks the name of a file restored from quarantine; the start of its window follows."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_STAMP = re.compile(r"(\d{8})t(\d{4})(\d\d)?z", re.IGNORECASE)
_STAMP_LENGTH = len("20251021t130200Z")
_TRUSTED_LEAD = timedelta(days=1)


@lru_cache(maxsize=4096)
def _nth_window(number: int, minutes: int) -> Window:
    return Window(_EPOCH + timedelta(minutes=minutes) * (number + 1), minutes)


@lru_cache(maxsize=4096)
def window_of(moment: datetime, minutes: int) -> Window:
    """Return the window of ``minutes`` that contains ``moment``, aligned to the UTC epoch."""
    return _nth_window((moment - _EPOCH) // timedelta(minutes=minutes), minutes)


def stamp_of(key: str) -> datetime | None:
    """Return the time stamp that a file's name starts with (``20251021t1302Z_…``), if any."""
    start = key.rfind("/") + 1
    text = key[start : start + _STAMP_LENGTH]
    # Names without a stamp are all different, so they stay out of the cache.
    return _parse_stamp(text) if text[8:9] in {"t", "T"} else None


@lru_cache(maxsize=4096)  # the names of a window begin alike, and parsing a stamp is slow
def _parse_stamp(text: str) -> datetime | None:
    found = _STAMP.match(text)
    if found is None:
        return None
    day, minute, second = found.groups(default="00")
    try:
        return datetime.strptime(f"{day}{minute}{second}+0000", "%Y%m%d%H%M%S%z")
    except ValueError:
        return None


def time_in_name(key: str, by: WindowBy) -> datetime | None:
    """Return the time in a file's name that decides its window, if any.

    It is the mark of a file restored from quarantine, so that all copies of the file belong to one
    window; otherwise, with ``name``, the time stamp that the name starts with.
    """
    mark = stamp_of(key.rpartition(RESTORED)[2]) if RESTORED in key else None
    return mark or (stamp_of(key) if by == "name" else None)


def window_selector(by: WindowBy, minutes: int) -> Callable[[RunFile], Window]:
    """Return a function that maps a file to its window.

    The ``last_modified`` of a file decides if its name has no time, or one that is more than a day
    later than the file: it would wait until then.
    """

    def select(file: RunFile) -> Window:
        key = file.key
        if RESTORED in key:
            stamp = time_in_name(key, by)
        else:  # the usual case: no call too many
            stamp = stamp_of(key) if by == "name" else None
        if stamp is None or stamp - file.last_modified > _TRUSTED_LEAD:
            stamp = file.last_modified
        return window_of(stamp, minutes)

    return select


def parse_window(name: str, minutes: int) -> Window:
    """Return the window of ``minutes`` with this name.

    Raises:
        UsageError: It is not a window's name, or no such window ends then.
    """
    end = stamp_of(name)
    # No time is before the first moment, so no window ends there.
    window = None if end is None or end == _FIRST else Window(end, minutes)
    if window is None or window.name != name or (window.end - _EPOCH) % timedelta(minutes=minutes):
        raise UsageError(
            f"window {name!r}: expected the end of a window of {minutes} minutes in UTC, "
            "such as 20251021t1400Z"
        )
    return window


def parse_time(text: str, what: str) -> datetime:
    """Return the time that ``text`` gives; without a time zone it is UTC.

    Args:
        text: ISO 8601 (``2025-10-21T14:00:00Z``) or a window's name (``20251021t1400Z``).
        what: What the text was given for; the message starts with it.

    Raises:
        UsageError: It is neither.
    """
    stamp = stamp_of(text) if _STAMP.fullmatch(text) else None
    if stamp is not None:
        return stamp
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC, it may be before the year 1
        raise UsageError(
            f"{what} {text!r}: expected a time such as 2025-10-21T14:00:00Z or 20251021t1400Z"
        ) from None


def check_interval(since: datetime | None, until: datetime | None) -> Interval:
    """Return the interval from ``since`` to ``until``; None leaves that side open.

    Raises:
        UsageError: ``until`` is not later than ``since``.
    """
    interval = Interval(since or _FIRST, until or _LAST)
    if interval.since >= interval.until:
        raise UsageError(
            f"since {interval.since.isoformat()}: expected a time before until, "
            f"{interval.until.isoformat()}",
            setting="since",
        )
    return interval
