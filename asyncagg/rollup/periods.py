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


NAME_FORMATS = {
    None: "%Y%m%dt%H%MZ",
    Period.HOUR: "%Y%m%dt%H",
    Period.DAY: "%Y%m%d",
    Period.MONTH: "%Y%m",
}
"""The names of aggregates (None) and rollups: ``20251021t13``, ``20251021`` or ``202510``."""


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
        if self.period is Period.MONTH:
            return (self.start + timedelta(days=31)).replace(day=1)
        return self.start + timedelta(hours=1 if self.period is Period.HOUR else 24)

    @property
    def name(self) -> str:
        """Its name, in the format of `NAME_FORMATS`."""
        return f"{self.start:{NAME_FORMATS[self.period]}}"

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
