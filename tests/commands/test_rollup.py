"""Rollups have the sums, top 10 and quantiles of one aggregate over all files."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from testkit.hooked import HookedStore
from testkit.s3server import S3Server
from testkit.scenario import AT, BUCKET, Clock, moment, open_s3, run_data

from asyncagg.errors import UsageError
from asyncagg.job.pipeline import run
from asyncagg.rollup import Period, RollupReport, Span, rollup, schema
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore

TOTALS = (
    "total_opportunities",
    "total_matches",
    "total_no_matches",
    "total_errors",
    "processing_time_seconds",
    "processing_time",
    "top_matches",
)
LATER = moment(23, 0) + timedelta(days=40)
BAD = 13
VALIDATOR = Draft202012Validator(schema())


async def filled(numbers: range, *, step: int = 7) -> MemoryStore:
    """Return a store with a run file every few minutes, one of them bad."""
    clock = Clock()
    store = MemoryStore(clock)
    for number in numbers:
        clock.now = moment(0, 1) + timedelta(minutes=step * number)
        await store.put(f"runs/{number:05}.json", b"{" if number == BAD else run_data(number))
    clock.now = LATER
    return store


def document(store: MemoryStore, key: str) -> dict[str, Any]:
    """Return a document of a store."""
    return dict(json.loads(store._objects[key].data))


async def rolled(store: Store, period: Period, **more: Any) -> RollupReport:
    """Roll up, with a fixed clock."""
    return await rollup(store, Settings(), period, now=lambda: AT, **more)


async def settled(numbers: range, *, minutes: int, step: int = 7) -> MemoryStore:
    """Return a store whose files are settled in windows of some minutes."""
    store = await filled(numbers, step=step)
    await run(store, Settings(window_minutes=minutes), at=LATER)
    return store


@pytest.mark.parametrize(
    ("period", "minutes", "key", "window"),
    [
        (Period.HOUR, 60, "rollups/hour/20251021t03.json", "aggregates/20251021t0400Z.json"),
        (Period.DAY, 1440, "rollups/day/20251021.json", "aggregates/20251022t0000Z.json"),
    ],
)
async def test_a_rollup_equals_one_large_window(
    period: Period, minutes: int, key: str, window: str
) -> None:
    """The sums, top 10 and sketch are those of an aggregate over all its files."""
    numbers = range(250)
    store = await settled(numbers, minutes=5)
    report = await rolled(store, period)
    made, expected = document(store, key), document(await settled(numbers, minutes=minutes), window)
    assert {name: made[name] for name in TOTALS} == {name: expected[name] for name in TOTALS}
    assert made["files"] == expected["files"]
    assert key in {each.key for each in report.written}
    assert report.exit_code == 0


async def test_a_month_is_merged_from_its_days() -> None:
    """Its sums are those of all its files, through hours and days."""
    store = await settled(range(300), minutes=5, step=181)
    await rolled(store, Period.MONTH)
    one, two = (document(store, f"rollups/month/{name}.json") for name in ("202510", "202511"))
    numbers = [number for number in range(300) if number != BAD]
    total = sum(10 + 7 * number for number in numbers)
    assert one["total_opportunities"] + two["total_opportunities"] == total
    assert one["files"]["counted"] + two["files"]["counted"] == len(numbers)
    assert one["inputs"][0]["key"] == "rollups/day/20251021.json"
    assert one["period"] == {
        "kind": "month",
        "name": "202510",
        "start": "2025-10-01T00:00:00+00:00",
        "end": "2025-11-01T00:00:00+00:00",
    }


@pytest.mark.parametrize("period", Period)
async def test_every_rollup_is_valid_against_its_schema(period: Period) -> None:
    """The schema is part of the package."""
    store = await settled(range(30), minutes=5)
    await rolled(store, period)
    keys = [key for key in store._objects if key.startswith("rollups/")]
    assert keys
    for key in keys:
        VALIDATOR.validate(document(store, key))


async def test_only_changed_inputs_are_read_again() -> None:
    """A second job reads nothing; after a late file, one window, one hour and one day change."""
    store = await settled(range(60), minutes=5)
    await rolled(store, Period.DAY)
    before = dict(store._objects)
    again = await rolled(store, Period.DAY)
    assert (again.written, again.unchanged) == ([], 8)
    assert store._objects == before

    clock = store._clock
    assert isinstance(clock, Clock)
    clock.now = moment(2, 3)
    await store.put("runs/late.json", run_data(99))
    clock.now = LATER
    await run(store, Settings(), at=LATER)
    streams: list[str] = []

    async def note(operation: str, key: str, when: str) -> None:
        if operation == "stream" and when == "before":
            streams.append(key)

    report = await rolled(HookedStore(store, note), Period.DAY)
    assert streams == ["aggregates/20251021t0205Z.json"]
    assert [(each.key, each.revision, each.read) for each in report.written] == [
        ("rollups/day/20251021.json", 2, 1),
        ("rollups/hour/20251021t02.json", 2, 1),
    ]
    assert document(store, "rollups/day/20251021.json")["files"]["counted"] == 60


async def test_inputs_that_are_added_replaced_or_deleted_on_s3() -> None:
    """By the server's log, only added and replaced inputs are read, also of an unfinished hour."""
    async with S3Server([BUCKET]) as server, open_s3(server) as (store, settings):

        async def step(*late: tuple[int, int]) -> tuple[list[str], int]:
            """Settle files of some minutes; return the inputs read and the files counted."""
            for number, minute in late:
                key = f"runs/{number:03}.json"
                server.put(BUCKET, key, run_data(number), last_modified=moment(13, minute))
            await run(store, settings, at=LATER)
            server.audit.log.clear()
            await rollup(store, settings, Period.HOUR)
            read = [
                entry.key.removeprefix("aggregates/20251021t").removesuffix("Z.json")
                for entry in server.audit.log
                if entry.operation == "GetObject" and entry.key.startswith("aggregates/")
            ]
            made = json.loads(server.get(BUCKET, "rollups/hour/20251021t13.json").body)
            return sorted(read), made["files"]["counted"]

        assert await step((1, 2), (2, 3), (3, 7)) == (["1305", "1310"], 3)
        assert await step() == ([], 3)
        assert await step((4, 58)) == (["1400"], 4)  # the hour goes on
        assert await step((5, 1)) == (["1305"], 5)  # a late file: its aggregate is replaced
        server.delete(BUCKET, "aggregates/20251021t1305Z.json")
        assert await step() == ([], 2)
        for name in ("1310", "1400"):
            server.delete(BUCKET, f"aggregates/20251021t{name}Z.json")
        assert await step() == ([], 2)  # with all inputs gone, the rollup stays


async def test_the_rows_of_an_aggregate_are_not_read() -> None:
    """Only the head of an aggregate is read, whatever its length."""
    store = MemoryStore(Clock(moment(0, 1)))
    for number in range(1500):
        await store.put(f"runs/{number:05}.json", run_data(number))
    await run(store, Settings(), at=LATER)
    (key,) = (key for key in store._objects if key.endswith("Z.json"))
    whole = store._objects[key]
    cut = whole.data[: whole.data.index(b'"run_summaries"') + 4000]
    store._objects[key] = type(whole)(cut, whole.info)
    report = await rolled(store, Period.HOUR)
    assert [each.counted for each in report.written] == [1500]


async def test_an_interval_takes_whole_periods() -> None:
    """`since` and `until` select periods; a selected one has all its windows."""
    store = await settled(range(400), minutes=5)
    day = moment(0, 0) + timedelta(days=1)
    report = await rolled(
        store, Period.HOUR, since=day + timedelta(minutes=70), until=day + timedelta(hours=2)
    )
    assert [each.key for each in report.written] == ["rollups/hour/20251022t01.json"]
    assert document(store, report.written[0].key)["files"]["counted"] == 8


async def test_two_jobs_at_the_same_time_write_once() -> None:
    """The second job reads again: no update is lost."""
    store = await settled(range(8), minutes=5)
    raced = False

    async def race(operation: str, _key: str, when: str) -> None:
        nonlocal raced
        if operation == "put" and when == "before" and not raced:
            raced = True
            await rolled(store, Period.HOUR)

    report = await rolled(HookedStore(store, race), Period.HOUR)
    assert report.unchanged == 1
    assert document(store, "rollups/hour/20251021t00.json")["revision"] == 1


async def test_the_second_of_two_jobs_keeps_the_inputs_of_the_first() -> None:
    """An aggregate written after one job's listing and before the other's is not lost."""
    store = await settled(range(8), minutes=5)
    key = max(key for key in store._objects if key.startswith("aggregates/"))
    late = store._objects.pop(key)

    async def race(operation: str, _key: str, when: str) -> None:
        if operation == "put" and when == "before" and key not in store._objects:
            store._objects[key] = late
            await rolled(store, Period.HOUR)

    await rolled(HookedStore(store, race), Period.HOUR)
    assert document(store, "rollups/hour/20251021t00.json")["files"]["counted"] == 8


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"schema_version":1,"inputs":[{}]}'])
async def test_a_foreign_object_is_left_alone(damage: bytes) -> None:
    """A rollup at whose key it is fails; an aggregate is left out of its rollup, and named."""
    store = await settled(range(20), minutes=5)
    await store.put("rollups/hour/20251021t00.json", damage)
    await store.put("aggregates/20251021t0105Z.json", damage)
    report = await rolled(store, Period.HOUR)
    assert set(report.failures) == {
        "rollups/hour/20251021t00.json",
        "aggregates/20251021t0105Z.json",
    }
    assert report.exit_code == 3
    assert store._objects["rollups/hour/20251021t00.json"].data == damage
    assert [(each.key, each.inputs) for each in report.written] == [
        ("rollups/hour/20251021t01.json", 7),
        ("rollups/hour/20251021t02.json", 3),
    ]
    again = await rolled(store, Period.HOUR)
    assert (again.written, again.failures) == ([], report.failures)


async def test_windows_that_do_not_fit_into_an_hour() -> None:
    """Days are merged from windows directly; hours are an error."""
    settings = Settings(window_minutes=90)
    store = await filled(range(100))
    await run(store, settings, at=LATER)
    with pytest.raises(UsageError, match="window_minutes 90"):
        await rollup(store, settings, Period.HOUR)
    report = await rollup(store, settings, Period.DAY)
    assert [each.counted for each in report.written] == [99]


@pytest.mark.parametrize(
    ("moment_", "period", "name", "end"),
    [
        ("2025-12-31T23:59:59+00:00", Period.MONTH, "202512", "2026-01-01T00:00:00+00:00"),
        ("2024-02-29T12:00:00+00:00", Period.MONTH, "202402", "2024-03-01T00:00:00+00:00"),
        ("2025-10-21T23:30:00+00:00", Period.HOUR, "20251021t23", "2025-10-22T00:00:00+00:00"),
        ("2025-10-22T00:30:00+02:00", Period.DAY, "20251021", "2025-10-22T00:00:00+00:00"),
    ],
)
def test_spans_are_those_of_the_calendar_in_utc(
    moment_: str, period: Period, name: str, end: str
) -> None:
    """A span contains its moment, and ends where the next one starts."""
    span = Span.around(datetime.fromisoformat(moment_), period)
    assert (span.name, span.end.isoformat()) == (name, end)
    assert Span.around(span.end, period).start == span.end
