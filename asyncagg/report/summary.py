"""What a report shows: the totals of an interval, and their development over time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import totals
from asyncagg.model import TOP, Pack, Window
from asyncagg.report.matches import BestMatches
from asyncagg.windows import MINUTES_A_DAY

MAX_POINTS = 600
"""How many points a chart has; more windows than that are merged."""

MAX_GAPS = 100
"""How many gaps are shown: the longest."""

MAX_UNREADABLE = 100
"""How many unreadable aggregates are shown: the first."""

_MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer that JavaScript keeps exactly."""

_BUCKET_MINUTES = (1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, MINUTES_A_DAY)


def bucket_minutes(windows: int, span: timedelta, minutes: int) -> int:
    """Return how many minutes one point of a chart covers.

    Args:
        windows: How many windows there are.
        span: The time from the first to the last.
        minutes: Their length.
    """
    if windows <= MAX_POINTS:
        return minutes
    least = span / timedelta(minutes=1) / (MAX_POINTS - 1)  # the first may begin before the span
    for merged in _BUCKET_MINUTES:
        if merged >= least and merged % minutes == 0:
            return merged
    return math.ceil(least / MINUTES_A_DAY) * MINUTES_A_DAY


@dataclass(slots=True)
class TimeBucket:
    """One point of the charts: one window, or several merged.

    Attributes:
        start: When it begins, in seconds since 1970.
        windows: How many aggregates are merged in it.
        late: How many of their files are late.
        total: Their merged accumulator, without top matches.
    """

    start: int
    windows: int = 0
    late: int = 0
    total: Accumulator = field(default_factory=Accumulator)


class Gap(NamedTuple):
    """Consecutive windows without an aggregate; a longer gap is greater."""

    windows: int
    start: datetime
    end: datetime


class Gaps:
    """Finds the gaps between windows that are added in order.

    Attributes:
        count: How many gaps.
        windows: How many windows are missing in them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.windows = 0
        self._previous: Window | None = None
        self._longest: list[Gap] = []

    def add(self, window: Window) -> None:
        """Add the next window that has an aggregate."""
        previous, self._previous = self._previous, window
        if previous is None or previous.end >= window.start:
            return
        missing = (window.start - previous.end) // timedelta(minutes=window.minutes)
        self.count += 1
        self.windows += missing
        heapq.heappush(self._longest, Gap(missing, previous.end, window.start))
        if len(self._longest) > MAX_GAPS:
            heapq.heappop(self._longest)

    def as_dict(self) -> dict[str, Any]:
        """Return their number and the longest gaps, by time, ready for JSON."""
        longest = sorted(self._longest, key=lambda gap: gap.start)
        shown = [
            {"start": each.start.isoformat(), "end": each.end.isoformat(), "windows": each.windows}
            for each in longest
        ]
        return {"count": self.count, "shown": shown}


class Unreadable(NamedTuple):
    """An aggregate that could not be read, and is left out of all totals."""

    key: str
    reason: str


@dataclass(slots=True)
class Report:
    """Everything that a report shows.

    Attributes:
        store: The store's URL.
        created: When the report was made.
        since: The start of the requested interval, if any.
        until: The end of the requested interval, if any.
        window_minutes: The length of a window.
        point_minutes: How many minutes one point of the charts covers.
        first: The start of the first window; None without an aggregate.
        last: The end of the last window.
        windows: How many aggregates are in the totals.
        late: How many of their files are late.
        total: Their merged accumulator.
        buckets: The points of the charts, by their start.
        packs: How many packs their files are in.
        packed_bytes: The size of the packs.
        best: The best matches.
        gaps: The windows that are missing.
        quarantined: The newest quarantined files, ready for JSON.
        unreadable_count: How many aggregates could not be read.
        unreadable: The first of them.
    """

    store: str
    created: datetime
    since: datetime | None
    until: datetime | None
    window_minutes: int
    point_minutes: int
    first: datetime | None = None
    last: datetime | None = None
    windows: int = 0
    late: int = 0
    packs: int = 0
    packed_bytes: int = 0
    total: Accumulator = field(default_factory=Accumulator)
    buckets: dict[int, TimeBucket] = field(default_factory=dict)
    best: BestMatches = field(default_factory=BestMatches)
    gaps: Gaps = field(default_factory=Gaps)
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    unreadable_count: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 done, 3 done, but an aggregate could not be read."""
        return 3 if self.unreadable_count else 0

    def merge(self, window: Window, total: Accumulator, late: int, packs: Sequence[Pack]) -> None:
        """Add the aggregate of a window."""
        self.windows += 1
        self.late += late
        self.packs += len(packs)
        self.packed_bytes += sum(pack.bytes for pack in packs)
        self.best.add(window, total.top)
        self.total.merge(total)
        # Not a `Window`: a long one may begin before the first moment that a datetime has.
        seconds = 60 * self.point_minutes
        start = int(window.start.timestamp()) // seconds * seconds
        bucket = self.buckets.setdefault(start, TimeBucket(start))
        bucket.windows += 1
        bucket.late += late
        bucket.total.merge(total)
        bucket.total.top.clear()

    def add_unreadable(self, key: str, reason: str) -> None:
        """Add an aggregate that could not be read."""
        self.unreadable_count += 1
        unreadable = [*self.unreadable, Unreadable(key, reason)]
        self.unreadable = heapq.nsmallest(MAX_UNREADABLE, unreadable)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; integers that browsers would round are strings."""
        summary = totals(self.total, self.late)
        del summary["processing_time"]["sketch"]
        data = {
            "store": self.store,
            "created": self.created.isoformat(timespec="seconds"),
            "since": _iso(self.since),
            "until": _iso(self.until),
            "window_minutes": self.window_minutes,
            "start": _iso(self.first),
            "end": _iso(self.last),
            "windows": {"present": self.windows, "missing": self.gaps.windows},
            "totals": summary,
            "packs": {"count": self.packs, "bytes": self.packed_bytes},
            "points": self._points(),
            "top_matches": {"exact": TOP, "shown": self.best.as_list()},
            "gaps": self.gaps.as_dict(),
            "quarantined": {"count": self.total.quarantined, "shown": self.quarantined},
            "unreadable": {
                "count": self.unreadable_count,
                "shown": [each._asdict() for each in self.unreadable],
            },
        }
        return dict(_for_browsers(data))

    def _points(self) -> dict[str, Any]:
        buckets = [bucket for _, bucket in sorted(self.buckets.items())]
        columns = {name: [get(each) for each in buckets] for name, get in _COLUMNS.items()}
        times = [each.total.processing_time() for each in buckets]
        quantiles = {name: [each[name] for each in times] for name in ("p50", "p90", "p99")}
        return {"minutes": self.point_minutes, **columns, **quantiles}


_COLUMNS: dict[str, Callable[[TimeBucket], int]] = {
    "start": lambda each: each.start,
    "windows": lambda each: each.windows,
    "counted": lambda each: each.total.counted,
    "bytes": lambda each: each.total.bytes,
    "opportunities": lambda each: each.total.opportunities,
    "matches": lambda each: each.total.matches,
    "no_matches": lambda each: each.total.no_matches,
    "errors": lambda each: each.total.errors,
    "late": lambda each: each.late,
    "quarantined": lambda each: each.total.quarantined,
}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _for_browsers(value: Any) -> Any:
    """Return a JSON value that JavaScript keeps exactly."""
    if isinstance(value, dict):
        return {name: _for_browsers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_for_browsers(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > _MAX_SAFE_INTEGER:
        return str(value)
    return value
