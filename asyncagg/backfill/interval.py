"""The interval of a backfill: whole windows that have ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from asyncagg.errors import UsageError
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.windows import check_interval, window_of


def interval_of(
    settings: Settings, since: datetime, until: datetime | None, *, now: datetime | None = None
) -> Interval:
    """Return the interval to be settled: up to now at the latest, for a window has to end first.

    Raises:
        UsageError: It holds no window.
    """
    now = now or datetime.now(UTC)
    length = f"a window of {settings.window_minutes} minutes"
    check_interval(since, until)
    minutes = timedelta(minutes=settings.window_minutes)
    first = window_of(since - timedelta.resolution, settings.window_minutes).end
    last = window_of(min(until or now, now), settings.window_minutes).start
    if first + minutes > last and (until is None or until > now):
        raise UsageError(
            f"since {since.isoformat()}: expected a time early enough for {length} to have ended "
            f"by now, {now.isoformat(timespec='seconds')}",
            setting="since",
        )
    if first + minutes > last:
        raise UsageError(
            f"since {since.isoformat()} until {(until or now).isoformat()}: expected {length} "
            "to lie between them",
            setting="since",
        )
    return Interval(first, last)
