"""Read what a report says from the heads of aggregates, in bounded memory.

The aggregates are listed twice: once to know how many there are and from when to when, which says
how many of them make one point of a chart, and once to read them. Neither their keys nor what they
say is held for all of them at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from asyncagg.aggregate.head import accumulator_of
from asyncagg.aggregate.reading import read_head, read_quarantined
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.layout import Layout
from asyncagg.job.listing import list_aggregate_windows
from asyncagg.model import Interval, Window
from asyncagg.report.matches import cut
from asyncagg.report.numbers import QuarantineReason, Report, Unreadable, bucket_minutes
from asyncagg.runtime.tasks import for_each
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import check_interval

__all__ = ("MOST_QUARANTINED", "gather")

T = TypeVar("T")

MOST_QUARANTINED = 200
"""How many quarantined files a report shows, the newest windows first."""

_LONGEST_REASON = 500

_EVER = Interval(datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))
"""Beyond that, what looks like the name of an aggregate is none."""


def _now() -> datetime:
    return datetime.now(UTC)


async def gather(
    store: Store,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    now: Callable[[], datetime] = _now,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Read what the aggregates of an interval say.

    Only their heads are read, but for those that name quarantined files to be shown.

    Args:
        store: Where the aggregates are.
        settings: The prefixes, the window, and how many requests at once.
        since: Windows that start then or later.
        until: Windows that end by then.
        now: The clock that says when the report was made.
        progress: Called with how many of how many aggregates were read.

    Raises:
        UsageError: The interval ends before it starts.
    """
    asked = check_interval(since, until)
    interval = Interval(max(asked.since, _EVER.since), min(asked.until, _EVER.until))
    count = 0
    first = last = None
    async for windows in list_aggregate_windows(store, settings, interval):
        count += len(windows)
        first = first or windows[0]
        last = windows[-1]
    span = last.end - first.start if first and last else timedelta(0)
    report = Report(
        store=store.url,
        created=now(),
        since=since,
        until=until,
        window_minutes=settings.window_minutes,
        point_minutes=bucket_minutes(count, span, settings.window_minutes),
    )
    if first and last:
        # Windows that are committed meanwhile, and lie behind the last, are for the next report.
        report.first, report.last = first.start, last.end
        interval = Interval(first.start, last.end)
        await _Gathering(store, settings, report).read(interval, count, progress)
    return report


class _Gathering:
    def __init__(self, store: Store, settings: Settings, report: Report) -> None:
        self._store = store
        self._settings = settings
        self._layout = Layout(settings)
        self._report = report
        self._refusing: dict[Window, tuple[str, int]] = {}  # etag, and how many files it refused

    async def read(
        self, interval: Interval, count: int, progress: Callable[[int, int], object] | None
    ) -> None:
        """Read the aggregates of an interval, about so many."""
        done = 0

        async def one(window: Window) -> None:
            nonlocal done
            await self._read(window)
            done += 1
            if progress is not None:
                progress(done, max(done, count))

        async for windows in list_aggregate_windows(self._store, self._settings, interval):
            for window in windows:
                self._report.gaps.pass_by(window)
            await self._for_each(windows, one)
            self._keep_newest()
        await self._read_quarantined()

    async def _for_each(self, items: Iterable[T], work: Callable[[T], Awaitable[object]]) -> None:
        await for_each(items, work, workers=self._settings.concurrency)

    async def _read(self, window: Window) -> None:
        key = self._layout.aggregate_key(window)
        try:
            async with self._store.stream(key) as body:
                head = await read_head(key, window, body.chunks)
            total, late = accumulator_of(head), int(head["files"]["late"])
        except NotFoundError:
            self._leave_out(key, "it was there when the report was begun, and is gone")
        except AggregateError as error:
            self._leave_out(key, str(error))
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            self._leave_out(key, f"its head lacks or garbles {error}")
        else:
            self._report.merge(window, total, late)
            if total.quarantined:
                self._refusing[window] = (body.etag, total.quarantined)

    def _leave_out(self, key: str, reason: str) -> None:
        self._report.leave_out(Unreadable(key, cut(reason, _LONGEST_REASON)))

    def _keep_newest(self) -> None:
        """Forget the windows whose quarantined files will not be shown."""
        room = MOST_QUARANTINED
        for window in sorted(self._refusing, reverse=True):
            if room <= 0:
                del self._refusing[window]
                continue
            room -= self._refusing[window][1]

    async def _read_quarantined(self) -> None:
        rows: dict[Window, list[dict[str, Any]]] = {}

        async def one(window: Window) -> None:
            rows[window] = await self._rows(window)

        await self._for_each(list(self._refusing), one)
        newest = [(window, row) for window in sorted(rows, reverse=True) for row in rows[window]]
        shown: dict[int, QuarantineReason] = {}

        async def look(item: tuple[int, tuple[Window, dict[str, Any]]]) -> None:
            place, (window, row) = item
            reason = cut(row["reason"], _LONGEST_REASON)
            there = await self._stands(row["moved_to"])
            shown[place] = QuarantineReason(window.name, row["key"], reason, row["moved_to"], there)

        await self._for_each(enumerate(newest[:MOST_QUARANTINED]), look)
        self._report.quarantined = [shown[place] for place in sorted(shown)]

    async def _rows(self, window: Window) -> list[dict[str, Any]]:
        key = self._layout.aggregate_key(window)
        try:
            async with self._store.stream(key, if_match=self._refusing[window][0]) as body:
                return await read_quarantined(key, body.chunks, MOST_QUARANTINED)
        except (NotFoundError, PreconditionFailedError):
            return []  # committed again meanwhile: they are counted, and not shown
        except AggregateError as error:
            self._leave_out(key, f"its sums are counted, its quarantined files not shown: {error}")
            return []

    async def _stands(self, key: str) -> bool | None:
        try:
            await self._store.head(key)
        except NotFoundError:
            return False
        except StoreError:
            return None
        return True
