"""The periods of rollups: an hour, a day or a month, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from asyncagg.errors import UsageError


class Period(StrEnum):
    """What a rollup covers, in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


_NAME_FORMATS = {
    None: "%m%dt%H%MZ",
    Period.HOUR: "%m%dt%H",
    Period.DAY: "%m%d",
    Period.MONTH: "%m",
}
"""The names of aggregates (None) and rollups after the year: ``20251021t13``, ``202510``."""


def name_of(moment: datetime, period: Period | None) -> str:
    """Return the name of the aggregate (None) or the rollup for a time."""
    # Not %Y: on some systems it omits the leading zeros of years before 1000.
    return f"{moment.year:04}{moment:{_NAME_FORMATS[period]}}"


def moment_of(name: str, period: Period) -> datetime | None:
    """Return the start of the rollup with this name, or None if no rollup has it."""
    try:
        moment = datetime.strptime(f"{name}+0000", f"%Y{_NAME_FORMATS[period]}%z")
    except ValueError:
        return None
    return moment if name_of(moment, period) == name else None


class Span(NamedTuple):
    """One hour, day or month, and its first moment in UTC."""

    start: datetime
    period: Period

    @classmethod
    def around(cls, moment: datetime, period: Period) -> Span:
        """Return the hour, day or month that contains a moment."""
        start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if period is not Period.HOUR:
            start = start.replace(hour=0, day=start.day if period is Period.DAY else 1)
        return cls(start, period)

    @property
    def end(self) -> datetime:
        """The first moment after it."""
        days = {Period.HOUR: 1 / 24, Period.DAY: 1, Period.MONTH: 31}[self.period]
        try:
            end = self.start + timedelta(days=days)
        except OverflowError:
            return datetime.max.replace(tzinfo=UTC)
        return end.replace(day=1) if self.period is Period.MONTH else end

    @property
    def name(self) -> str:
        """Its name: ``20251021t13``, ``20251021`` or ``202510``."""
        return name_of(self.start, self.period)

    def as_dict(self) -> dict[str, str]:
        """Return it as the ``period`` of a rollup."""
        times = {"start": self.start.isoformat(), "end": self.end.isoformat()}
        return {"kind": self.period.value, "name": self.name, **times}


def levels(period: Period, window_minutes: int) -> list[tuple[Period | None, Period]]:
    """Return the merges that lead to a period, as pairs of source (None: aggregates) and target.

    Raises:
        UsageError: The period is an hour, and windows do not fit into it.
    """
    chain: list[Period | None] = [None, *Period]
    if 60 % window_minutes:
        chain.remove(Period.HOUR)
    if period not in chain:
        raise UsageError(
            f"period 'hour' with window_minutes {window_minutes}: expected a window that divides "
            "an hour, or the period 'day'",
            setting="period",
        )
    steps = pairwise(chain[: chain.index(period) + 1])
    return [(source, target) for source, target in steps if target is not None]
