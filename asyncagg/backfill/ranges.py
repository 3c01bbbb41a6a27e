"""Split the keys of the inbox into ranges that are listed side by side."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from string import ascii_letters, digits

from asyncagg.job.listing import KeyRange

__all__ = ("MOST_TIMES", "ranges", "remainder")

MOST_TIMES = 168
"""At most so many points in time cut a listing: a week by the hour, half a year by the day."""


def ranges(prefix: str, since: datetime, until: datetime) -> list[KeyRange]:
    """Return ranges that together hold every key below a prefix, each exactly once.

    Where names begin with their time, each hour (or day, of a long time) of the interval is a
    range of its own; where they begin with anything else, each first letter or digit is.

    Args:
        prefix: What the keys start with.
        since: The start of the interval, in UTC.
        until: Its end.
    """
    letters = (prefix + letter for letter in digits + ascii_letters)
    times = (f"{prefix}{time}" for time in _times(since, until))
    points = sorted({*letters, *times})
    inner = [KeyRange(after, last) for after, last in pairwise(points)]
    return [KeyRange("", points[0]), *inner, KeyRange(points[-1], None)]


def remainder(first: str, last: str, keys: KeyRange) -> list[KeyRange]:
    """Return ranges that together hold what a range holds behind a page, each key exactly once.

    Nobody knows where its keys are. But names count: by their time, by a number. So each digit that
    the page's keys have in common is counted up, and where a range turns out empty, that is one
    request.

    Args:
        first: The first key of the page.
        last: Its last key.
        keys: The range.
    """
    differ = (
        place for place, pair in enumerate(zip(first, last, strict=False)) if len({*pair}) > 1
    )
    common = next(differ, len(first))
    points = {
        last[:place] + digit
        for place in range(min(common + 1, len(last)))
        if last[place] in digits
        for digit in digits[int(last[place]) + 1 :]
    }
    inner = sorted(point for point in points if keys.last is None or point < keys.last)
    return [KeyRange(*ends) for ends in zip([last, *inner], [*inner, keys.last], strict=True)]


def _times(since: datetime, until: datetime) -> Iterator[str]:
    hours = max(1, -(-(until - since) // timedelta(hours=1)))
    step = timedelta(hours=1) if hours <= MOST_TIMES else timedelta(days=-(-hours // 24 // 180))
    by_day = step >= timedelta(days=1)
    moment = since.replace(hour=0 if by_day else since.hour, minute=0, second=0, microsecond=0)
    while moment <= until:
        yield f"{moment:%Y%m%d}" if by_day else f"{moment:%Y%m%dt%H}"
        moment += step
