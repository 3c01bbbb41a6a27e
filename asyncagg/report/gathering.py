"""Read the heads of aggregates into a report, in bounded memory.

The aggregates are listed twice. The first listing finds how many there are and from when to when,
which determines how many of them are merged into one point of a chart. The second reads them. So
only one page of them is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from asyncagg.aggregate.head import accumulator_of, packs_of
from asyncagg.aggregate.reader import read_head, read_quarantined
from asyncagg.errors import (
    AggregateError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.layout import Layout
from asyncagg.job.listing import list_aggregate_windows
from asyncagg.job.refusals import Refusals
from asyncagg.model import Interval, Window
from asyncagg.report.matches import truncate
from asyncagg.report.summary import Report, bucket_minutes
from asyncagg.runtime.clock import utc_now
from asyncagg.runtime.tasks import for_each, map_each
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import check_interval

MAX_QUARANTINED = 200
"""How many quarantined files a report shows: those of the newest windows."""

_MAX_REASON = 500


async def gather(
    store: Store,
    settings: Settings,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    now: Callable[[], datetime] = utc_now,
    progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Read the aggregates of an interval into a report.

    Only their heads are read, and the rows of the quarantined files that are shown.

    Args:
        store: Where the aggregates are.
        settings: The prefixes, the window and the concurrency.
        since: Only windows that start then or later.
        until: Only windows that end by then.
        now: The clock of the report's creation time.
        progress: Called with how many aggregates were read, and how many there are.

    Raises:
        UsageError: The interval ends before it starts.
        StoreError: The listing failed, or not one aggregate could be read.
    """
    interval = check_interval(since, until)
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
        # Later windows, which may be committed meanwhile, are left to the next report.
        report.first, report.last = first.start, last.end
        interval = Interval(first.start, last.end)
        await _Gatherer(store, settings, report).read(interval, count, progress)
    return report


class _Gatherer:
    def __init__(self, store: Store, settings: Settings, report: Report) -> None:
        self._store = store
        self._settings = settings
        self._layout = Layout(settings)
        self._report = report
        self._refusals = Refusals(most=math.inf)
        self._quarantined: dict[Window, tuple[str, int]] = {}  # etag, and how many files

    async def read(
        self, interval: Interval, count: int, progress: Callable[[int, int], object] | None
    ) -> None:
        """Read the aggregates of an interval, of which there are about ``count``."""
        done = 0

        async def one(window: Window) -> None:
            nonlocal done
            await self._read(window)
            done += 1
            if progress is not None:
                progress(done, max(done, count))

        async for windows in list_aggregate_windows(self._store, self._settings, interval):
            for window in windows:
                self._report.gaps.add(window)
            await for_each(windows, one, workers=self._settings.concurrency)
            self._keep_newest()
        self._refusals.check()
        await self._read_quarantined()

    async def _read(self, window: Window) -> None:
        key = self._layout.aggregate_key(window)
        try:
            async with self._store.stream(key) as body:
                head = await read_head(key, window, body.chunks)
            total, late = accumulator_of(head), int(head["files"]["late"])
            packs = packs_of(head)
        except NotFoundError:
            self._add_unreadable(key, "it was deleted while the report was made")
        except StoreError as error:
            self._add_unreadable(key, str(error))
            self._refusals.add(error)
        except AggregateError as error:
            self._add_unreadable(key, str(error))
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            self._add_unreadable(key, f"a member of its head is missing or invalid: {error}")
        else:
            self._refusals.accept("get")
            self._report.merge(window, total, late, packs)
            if total.quarantined:
                self._quarantined[window] = (body.etag, total.quarantined)

    def _add_unreadable(self, key: str, reason: str) -> None:
        self._report.add_unreadable(key, truncate(reason, _MAX_REASON))

    def _keep_newest(self) -> None:
        """Forget the windows whose quarantined files are not shown."""
        room = MAX_QUARANTINED
        for window in sorted(self._quarantined, reverse=True):
            if room <= 0:
                del self._quarantined[window]
            else:
                room -= self._quarantined[window][1]

    async def _read_quarantined(self) -> None:
        workers, windows = self._settings.concurrency, sorted(self._quarantined, reverse=True)
        pages = await map_each(windows, self._rows, workers=workers)
        newest = [row for page in pages for row in page][:MAX_QUARANTINED]
        self._report.quarantined = await map_each(newest, self._look_up, workers=workers)

    async def _rows(self, window: Window) -> list[dict[str, Any]]:
        """Return the rows of a window's quarantined files, each with the window's name."""
        key = self._layout.aggregate_key(window)
        try:
            async with self._store.stream(key, if_match=self._quarantined[window][0]) as body:
                rows = await read_quarantined(key, body.chunks, MAX_QUARANTINED)
        except (NotFoundError, PreconditionFailedError):
            return []  # it was committed again: the files are counted, but not shown
        except (AggregateError, StoreError) as error:
            self._add_unreadable(key, f"counted, but its quarantined files are not shown: {error}")
            return []
        return [{**row, "window": window.name} for row in rows]

    async def _look_up(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what the report shows of a quarantined file."""
        return {
            "window": row["window"],
            "key": row["key"],
            "reason": truncate(row["reason"], _MAX_REASON),
            "moved_to": row["moved_to"],
            "there": await self._exists(row["moved_to"]),
        }

    async def _exists(self, key: str) -> bool | None:
        try:
            await self._store.head(key)
        except NotFoundError:
            return False
        except StoreError:
            return None  # unknown
        return True
