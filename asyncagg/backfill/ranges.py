"""Divide the keys of the inbox into ranges that are listed at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from string import ascii_letters, digits

from asyncagg.job.listing import KeyRange

MOST_TIMES = 168
"""The most points in time that divide a listing: a week by the hour, half a year by the day."""


def ranges(prefix: str, since: datetime, until: datetime) -> list[KeyRange]:
    """Return ranges that together have every key below a prefix, each exactly once.

    Names that begin with their time are divided by the hour (or day, if the interval is long) of
    the interval; other names by their first letter or digit.

    Args:
        prefix: The prefix of the keys.
        since: The start of the interval, in UTC.
        until: Its end.
    """
    letters = (prefix + letter for letter in digits + ascii_letters)
    times = (f"{prefix}{time}" for time in _times(since, until))
    points = sorted({*letters, *times})
    inner = [KeyRange(after, last) for after, last in pairwise(points)]
    return [KeyRange("", points[0]), *inner, KeyRange(points[-1], None)]


def remainder(first: str, last: str, keys: KeyRange) -> list[KeyRange]:
    """Return ranges that together have all keys of a range after one page, each exactly once.

    Where the keys are is unknown, but names usually count up: by their time, or by a number. So
    each digit up to the first character that varies within the page is counted up to 9, and the
    results are the borders. For example, after a page from ``a17`` to ``a19`` the borders are
    ``a2`` to ``a9``. An empty range costs one request.

    Args:
        first: The first key of the page.
        last: Its last key.
        keys: The range.
    """
    pairs = enumerate(zip(first, last, strict=False))
    common = next((place for place, (one, other) in pairs if one != other), len(first))
    borders = {
        last[:place] + digit
        for place, character in enumerate(last[: common + 1])
        if character in digits
        for digit in digits[int(character) + 1 :]
    }
    inner = sorted(border for border in borders if keys.last is None or border < keys.last)
    return [KeyRange(*ends) for ends in zip([last, *inner], [*inner, keys.last], strict=True)]


def _times(since: datetime, until: datetime) -> Iterator[str]:
    hours = max(1, -(-(until - since) // timedelta(hours=1)))
    step = timedelta(hours=1) if hours <= MOST_TIMES else timedelta(days=-(-hours // 24 // 180))
    by_day = step >= timedelta(days=1)
    moment = since.replace(hour=0 if by_day else since.hour, minute=0, second=0, microsecond=0)
    while moment <= until:
        yield f"{moment:%Y%m%d}" if by_day else f"{moment:%Y%m%dt%H}"
        moment += step
