"""Time stamps in run files: RFC 3339 and the other common forms of ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

# Python's own parser reads no leap second, no lower-case z and no 24:00, and which of the rarer
# forms it reads depends on the version.
_FORM = re.compile(
    r"""(\d{4}) -? (?: (\d\d) -? (\d\d) | W (\d\d) (?: -? ([1-7]) )? )
    (?: [Tt\x20]
        (?: (?: [01]\d | 2[0-3] ) (?: :? [0-5]\d (?: :? (?: [0-5]\d | 60 ) (?: [.,] \d* )? )? )?
          | 24 (?: :? 00 (?: :? 00 (?: [.,] 0* )? )? )? )
        (?: [Zz] | [+-] (?: [01]\d | 2[0-3] ) (?: :? [0-5]\d (?: :? [0-5]\d (?: \.\d* )? )? )? )?
    )?""",
    re.ASCII | re.VERBOSE,
)

PATTERN = re.sub(r"\s+", "", _FORM.pattern)
"""The forms of a time stamp, as a regular expression that other languages read, too."""

# Python's own parser also accepts "2025-10-21T13.5" and "2025-10-21T13:56:00.1234567~+02:00".
_is_common = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:[0-5]\d)?", re.ASCII
).fullmatch

_MIDNIGHT = re.compile(r"([Tt ])24")
_LEAP_SECOND = re.compile(r"([Tt ]\d\d:?\d\d:?)60")

_read = datetime.fromisoformat


def is_timestamp(text: str) -> bool:
    """Return whether a text is a time stamp."""
    form = _FORM.fullmatch(text)
    if form is None:
        return False
    year, month, day, week, weekday = (int(part or 1) for part in form.groups())
    year = year or 2000  # year 0 is a leap year too, and `date` begins with year 1
    try:
        if form[4]:
            date.fromisocalendar(year, week, weekday)
        else:
            date(year, month, day)
    except ValueError:
        return False
    return True


def is_common_timestamp(text: str) -> bool:
    """Return whether a text is a time stamp in the usual form, quickly."""
    if _is_common(text) is None:
        return False
    try:
        _read(text)
    except ValueError:
        return False
    return True


def utc_of(text: str) -> datetime | None:
    """Return the time that a time stamp gives; without a zone it is UTC.

    The end of a day is the start of the next, and a leap second is the second after it. It is None
    for the rare ones that Python does not read, such as those in the year 0.
    """
    later = timedelta(0)
    try:
        moment = _read(text)
    except ValueError:
        text, midnight = _MIDNIGHT.subn(r"\g<1>00", text.upper(), count=1)
        text, leap = _LEAP_SECOND.subn(r"\g<1>59", text, count=1)
        later = timedelta(days=midnight, seconds=leap)
        try:
            moment = _read(text)
        except ValueError:
            return None
    try:
        moment += later
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        return None
