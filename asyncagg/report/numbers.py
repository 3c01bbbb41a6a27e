"""What a report says: the numbers of an interval, ready for JSON."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from asyncagg.aggregate.accumulator import TOP, Accumulator
from asyncagg.aggregate.head import totals
from asyncagg.model import Window
from asyncagg.report.matches import BestMatches
from asyncagg.windows import MINUTES_A_DAY, window_of

__all__ = (
    "MOST_GAPS",
    "MOST_POINTS",
    "MOST_UNREADABLE",
    "Gap",
    "Gaps",
    "QuarantineReason",
    "Report",
    "TimeBucket",
    "Unreadable",
    "bucket_minutes",
)

MOST_POINTS = 600
"""With more windows than that, charts show neighbours merged."""

MOST_GAPS = 100
"""How many gaps are shown, the longest."""

MOST_UNREADABLE = 100
"""How many aggregates that cannot be read are shown, the first."""

_EXACT_IN_BROWSERS = 2**53 - 1

_MERGED_MINUTES = (1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 480, 720, MINUTES_A_DAY)


def bucket_minutes(windows: int, span: timedelta, minutes: int) -> int:
    """Return how many minutes of time one point of a chart shows.

    Args:
        windows: How many windows there are.
        span: From the first to the last.
        minutes: Their length.
    """
    if windows <= MOST_POINTS:
        return minutes
    least = span / timedelta(minutes=1) / (MOST_POINTS - 1)  # the first may begin before the span
    for merged in _MERGED_MINUTES:
        if merged >= least and merged % minutes == 0:
            return merged
    return math.ceil(least / MINUTES_A_DAY) * MINUTES_A_DAY


@dataclass(slots=True)
class TimeBucket:
    """One point of the charts: a window, or neighbours that are merged.

    Attributes:
        span: The time that it covers.
        windows: How many aggregates are merged in it.
        late: How many of their files came late.
        total: What they say together, but for the matches.
    """

    span: Window
    windows: int = 0
    late: int = 0
    total: Accumulator = field(default_factory=Accumulator)


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """Windows without an aggregate, one behind the other.

    Attributes:
        windows: How many.
        start: The start of the first.
        end: The end of the last.
    """

    windows: int
    start: datetime
    end: datetime


class Gaps:
    """Finds the gaps in windows that come in their order.

    Attributes:
        count: How many gaps.
        windows: How many windows are missing in them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.windows = 0
        self._before: Window | None = None
        self._longest: list[Gap] = []

    def pass_by(self, window: Window) -> None:
        """Take in the next window that is there."""
        before, self._before = self._before, window
        if before is None or before.end >= window.start:
            return
        missing = (window.start - before.end) // timedelta(minutes=window.minutes)
        self.count += 1
        self.windows += missing
        heapq.heappush(self._longest, Gap(missing, before.end, window.start))
        if len(self._longest) > MOST_GAPS:
            heapq.heappop(self._longest)

    def longest(self) -> list[Gap]:
        """Return the longest gaps, in the order of time."""
        return sorted(self._longest, key=lambda gap: gap.start)


@dataclass(frozen=True, slots=True)
class QuarantineReason:
    """A file that could not be counted.

    Attributes:
        window: The window whose aggregate names it.
        key: Its key when it was refused.
        reason: Why it was.
        moved_to: Where it was moved.
        there: Whether it still is; None if the store did not say.
    """

    window: str
    key: str
    reason: str
    moved_to: str
    there: bool | None


@dataclass(frozen=True, slots=True, order=True)
class Unreadable:
    """An aggregate that is left out of all sums.

    Attributes:
        key: Its key.
        reason: Why it could not be read.
    """

    key: str
    reason: str


@dataclass(slots=True)
class Report:
    """All that a report says.

    Attributes:
        store: The store's name.
        created: When it was made.
        since: The start of the interval that was asked for, if one was.
        until: Its end, if one was asked for.
        window_minutes: The length of a window.
        point_minutes: The length of what one point of the charts shows.
        first: The start of the first window; None if there is no aggregate.
        last: The end of the last.
        windows: How many aggregates are in the sums.
        late: How many of their files came late.
        total: What they say together.
        buckets: What they say over time, by the time covered.
        best: The best matches.
        gaps: The windows that are missing.
        quarantined: The newest files that were refused.
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
    total: Accumulator = field(default_factory=Accumulator)
    buckets: dict[Window, TimeBucket] = field(default_factory=dict)
    best: BestMatches = field(default_factory=BestMatches)
    gaps: Gaps = field(default_factory=Gaps)
    quarantined: list[QuarantineReason] = field(default_factory=list)
    unreadable_count: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 done, 3 done, but an aggregate could not be read."""
        return 3 if self.unreadable_count else 0

    def merge(self, window: Window, total: Accumulator, late: int) -> None:
        """Take in what the aggregate of a window says."""
        self.windows += 1
        self.late += late
        self.best.add(window, total.top)
        self.total.merge(total)
        span = window_of(window.start, self.point_minutes)
        bucket = self.buckets.setdefault(span, TimeBucket(span))
        bucket.windows += 1
        bucket.late += late
        bucket.total.merge(total)
        bucket.total.top.clear()

    def leave_out(self, unreadable: Unreadable) -> None:
        """Note an aggregate that could not be read."""
        self.unreadable_count += 1
        self.unreadable = heapq.nsmallest(MOST_UNREADABLE, [*self.unreadable, unreadable])

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON; integers that browsers would round are texts."""
        summary = totals(self.total, self.late)
        del summary["processing_time"]["sketch"]
        gaps = self.gaps.longest()
        told = {
            "store": self.store,
            "created": self.created.isoformat(timespec="seconds"),
            "since": _iso(self.since),
            "until": _iso(self.until),
            "window_minutes": self.window_minutes,
            "start": _iso(self.first),
            "end": _iso(self.last),
            "windows": {"present": self.windows, "missing": self.gaps.windows},
            "totals": summary,
            "points": self._points(),
            "top_matches": {"exact": TOP, "shown": self.best.as_list()},
            "gaps": {"count": self.gaps.count, "shown": [_gap(each) for each in gaps]},
            "quarantined": {
                "count": self.total.quarantined,
                "shown": [asdict(each) for each in self.quarantined],
            },
            "unreadable": {
                "count": self.unreadable_count,
                "shown": [asdict(each) for each in self.unreadable],
            },
        }
        return dict(_for_browsers(told))

    def _points(self) -> dict[str, Any]:
        buckets = [self.buckets[span] for span in sorted(self.buckets)]
        columns = {name: [number(each) for each in buckets] for name, number in _COLUMNS.items()}
        columns |= {name: list(column) for name, column in _quantiles(buckets)}
        return {"minutes": self.point_minutes, **columns}


_COLUMNS: dict[str, Callable[[TimeBucket], int]] = {
    "start": lambda each: int(each.span.start.timestamp()),
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


def _quantiles(buckets: Sequence[TimeBucket]) -> Iterator[tuple[str, Iterator[Any]]]:
    times = [each.total.processing_time() for each in buckets]
    for name in ("p50", "p90", "p99"):
        yield name, (each[name] for each in times)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _gap(gap: Gap) -> dict[str, Any]:
    return {"start": gap.start.isoformat(), "end": gap.end.isoformat(), "windows": gap.windows}


def _for_browsers(value: Any) -> Any:
    """Return a JSON value that a browser reads exactly."""
    if isinstance(value, dict):
        return {name: _for_browsers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_for_browsers(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) > _EXACT_IN_BROWSERS:
        return str(value)
    return value
