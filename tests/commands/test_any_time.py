"""Totals of reports and rollups are those of the aggregates, at any time and for any interval."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from testkit.scenario import Clock, in_thread, run_data

from asyncagg.job.pipeline import run
from asyncagg.model import Window
from asyncagg.report import gather
from asyncagg.rollup import Period, Span, rollup
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore
from asyncagg.windows import check_interval, window_of

SETTINGS = Settings(window_by="name")
STARTS = [
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, 0, 59, tzinfo=UTC),
    datetime(999, 12, 31, 23, 55, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2025, 10, 21, 13, 52, tzinfo=UTC),
    datetime(2099, 12, 31, 23, 50, tzinfo=UTC),
    datetime(9999, 12, 31, 22, 30, tzinfo=UTC),
]


async def settled() -> MemoryStore:
    """Return a store with an aggregate of one file at each of these times."""
    clock = Clock(datetime(9999, 12, 31, 23, tzinfo=UTC))
    store = MemoryStore(clock)
    for number, start in enumerate(STARTS):
        name = f"{start.year:04}{start:%m%dt%H%M%SZ}"
        await store.put(f"runs/{name}_{number}.json", run_data(number))
    report = await run(store, SETTINGS, at=clock())
    assert report.total.archived == len(STARTS)
    return store


FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
STORE: MemoryStore = in_thread(settled)
WINDOWS = [window_of(start, SETTINGS.window_minutes) for start in STARTS]
MOMENTS = st.one_of(
    st.none(),
    st.sampled_from(STARTS),
    st.datetimes(timezones=st.just(UTC)),  # from the year 1 to 9999
)


@settings(max_examples=25)
@given(MOMENTS, MOMENTS)
async def test_a_report_has_the_files_of_its_interval(
    since: datetime | None, until: datetime | None
) -> None:
    """Every window in the interval is in the totals and in one point of the charts."""
    assume((since or FIRST) < (until or LAST))
    interval = check_interval(since, until)
    expected = sum(map(interval.holds, WINDOWS))
    report = await gather(STORE, SETTINGS, since=since, until=until)
    assert (report.windows, report.total.counted) == (expected, expected)
    points = report.as_dict()["points"]
    assert sum(points["counted"]) == expected
    assert points["start"] == sorted(points["start"])


@pytest.mark.parametrize("period", Period)
@settings(max_examples=25)
@given(MOMENTS, MOMENTS)
async def test_rollups_have_the_files_of_their_periods(
    period: Period, since: datetime | None, until: datetime | None
) -> None:
    """Every aggregate of a period that is not skipped is in its rollup."""
    assume((since or FIRST) < (until or LAST))

    def wanted(window: Window) -> bool:
        span = Span.around(window.start, period)
        return (since is None or span.end > since) and (until is None or span.start < until)

    store = MemoryStore(Clock())
    store._objects.update(STORE._objects)
    report = await rollup(store, SETTINGS, period, since=since, until=until)
    written = [each for each in report.written if each.key.startswith(f"rollups/{period}/")]
    assert sum(each.counted for each in written) == sum(map(wanted, WINDOWS))
    assert report.failures == {}
    again = await rollup(store, SETTINGS, period, since=since, until=until)
    assert again.written == []
