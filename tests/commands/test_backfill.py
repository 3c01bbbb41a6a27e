"""Backfill without a cluster: the same aggregates as the scheduled run's, to the byte."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from testkit.hooked import HookedStore
from testkit.promises import (
    Snapshot,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
    originals_of,
)
from testkit.s3server import S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    Clock,
    fill_directory,
    fill_memory,
    fill_server,
    moment,
    open_s3,
    prepared,
    prepared_directory,
    run_data,
)

import asyncagg.store.memory as memory_store
from asyncagg.backfill import BackfillProgress, LocalEngine, backfill, interval_of
from asyncagg.backfill.partial import FAN_IN
from asyncagg.errors import ConfigurationError, TransientError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.model import Interval, Window
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore

SINCE = moment(13, 50)
EVERYTHING = Interval(SINCE, AT)


async def backfilled(
    store: Store,
    settings: Settings | None = None,
    *,
    interval: Interval = EVERYTHING,
    chunk_files: int = 2,
    **more: Any,
) -> RunReport:
    """Backfill the scenario's windows; most of them in parts."""
    settings = settings or Settings(chunk_files=chunk_files)
    return await backfill(LocalEngine(JobContext(store, settings)), settings, interval, **more)


def check(seen: Snapshot) -> None:
    """Check every promise, and that the aggregates are those of an undisturbed run."""
    check_after_clean_run(seen, prepared().originals, at=AT, foreign=prepared().foreign)
    assert final_bytes(seen) == prepared().expected
    assert not [key for key in seen if key.startswith("work/")]


@pytest.mark.parametrize("chunk_files", [1, 2, 3, 5, 20_000])
async def test_a_backfill_gives_what_a_run_gives(chunk_files: int) -> None:
    """Whole windows or windows in parts: the same bytes, and nothing is left behind."""
    store = fill_memory(prepared().store)
    report = await backfilled(store, chunk_files=chunk_files)
    check(of_memory(store))
    assert report.exit_code == 3  # some are quarantined
    assert report.total.counted == 14
    assert report.total.archived + report.total.quarantined == 19


@pytest.mark.parametrize("window_by", ["last_modified", "name"])
async def test_on_s3_it_lists_side_by_side(window_by: str) -> None:
    """Ranges of a bucket are listed apart, and every file is found once."""
    async with S3Server([BUCKET]) as server:
        fill_server(server, prepared().store)
        for key in ("aggregates/asyncagg.json", "archive/.asyncagg"):
            del server.buckets[BUCKET].objects[key]  # its aggregate agrees with both ways
        async with open_s3(server, chunk_files=3, window_by=window_by) as (store, settings):
            await backfilled(store, settings)
        assert server.audit.counts["ListObjectsV2"] > 60
        check(of_server(server))


async def test_on_a_directory(tmp_path: Path) -> None:
    """A directory is listed from end to end; its aggregates are those of a run."""
    scenario = prepared_directory(tmp_path)
    root = fill_directory(scenario.root, tmp_path / "root")
    await backfilled(DirectoryStore(root), Settings(store=str(root), chunk_files=2))
    seen = of_directory(root)
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected


async def test_only_the_interval_is_touched() -> None:
    """Files of windows outside wait where they are, uncounted."""
    store = fill_memory(prepared().store)
    before = of_memory(store)
    report = await backfilled(store, interval=Interval(moment(13, 55), moment(14, 5)))
    assert set(report.windows) == {"20251021t1400Z", "20251021t1405Z"}
    after = of_memory(store)
    assert after["aggregates/20251021t1355Z.json"] == before["aggregates/20251021t1355Z.json"]
    assert "runs/c03.json" in after
    assert "aggregates/20251021t1410Z.json" not in after


async def test_a_dry_run_changes_nothing() -> None:
    """It tells how many files of which window there are."""
    store = fill_memory(prepared().store)
    before = of_memory(store)
    report = await backfilled(store, dry_run=True)
    assert of_memory(store) == before
    assert (report.total.left, len(report.windows)) == (19, 4)


async def test_a_large_window_is_merged_by_a_tree_and_committed_once() -> None:
    """Hundreds of parts: every level merges a few, one write makes the aggregate."""
    clock = Clock(moment(13, 52))
    store = MemoryStore(clock)
    for number in range(300):
        await store.put(f"runs/{number:04}.json", run_data(number))
    bad = {"runs/0000.json"}
    await store.put("runs/0000.json", b"{")
    clock.now = AT
    originals = originals_of(of_memory(store), bad=bad)
    other = fill_memory(store)
    await run(other, Settings(), at=AT)

    puts: list[str] = []

    async def note(operation: str, key: str, when: str) -> None:
        if operation == "put" and when == "after":
            puts.append(key)

    await backfilled(HookedStore(store, note), chunk_files=3)
    seen = of_memory(store)
    check_after_clean_run(seen, originals, at=AT)
    assert final_bytes(seen) == final_bytes(of_memory(other))
    aggregates = [key for key in puts if key.endswith("Z.json")]
    partial = [key for key in puts if key.startswith("work/")]
    assert len(aggregates) == 1
    assert len(partial) > 100 + 100 // FAN_IN
    assert not [key for key in seen if key.startswith("work/")]


@pytest.mark.parametrize("chunk_files", [1, 2, 20_000])
async def test_progress_comes_to_its_end(chunk_files: int) -> None:
    """What is told last is that all windows, files and bytes are done."""
    told: list[dict[str, int]] = []

    def tell(status: BackfillProgress) -> None:
        told.append(asdict(status))

    store = fill_memory(prepared().store)
    await backfilled(store, chunk_files=chunk_files, progress=tell)
    last = told[-1]
    assert last["windows"] == last["windows_done"] == 4
    assert last["files"] == last["files_done"] == last["files_cleared"] == 19
    assert last["bytes"] == last["bytes_done"] > 0
    for one, two in itertools.pairwise(told):
        assert one["files_done"] <= two["files_done"]
        assert one["files_cleared"] <= two["files_cleared"] <= two["files"]


# ------------------------------------------------------------------------------ crashes, races


class Crash(BaseException):
    """The process is gone."""


def at_request(number: int) -> Iterator[bool]:
    """Yield for request after request, before and after it is executed, if it is the one."""
    return (ordinal == number for ordinal in itertools.count())


def changes_the_store(operation: str, *_: str) -> bool:
    """Return whether a request may change the store."""
    return operation not in {"list", "head", "get", "stream"}


async def moments(of: Callable[..., bool]) -> int:
    """Return how many moments there are, before and after each such request of a backfill."""
    count = 0

    async def tick(*request: str) -> None:
        nonlocal count
        count += of(*request)

    await backfilled(HookedStore(fill_memory(prepared().store), tick), chunk_files=3)
    return count


async def test_it_may_crash_at_any_moment() -> None:
    """After a crash at any moment promises 1 to 3 hold; the next one goes on.

    The crashes are before and after each request that changes the store: what a crash leaves is
    the store alone, and a read leaves it as the request before did.
    """
    swept = await moments(changes_the_store)
    assert swept > 100
    for number in range(swept):
        store = fill_memory(prepared().store)
        ordinals = at_request(number)

        async def crash(*request: str, ordinals: Iterator[bool] = ordinals) -> None:
            if changes_the_store(*request) and next(ordinals):
                raise Crash

        with pytest.raises(Crash):
            await backfilled(HookedStore(store, crash), chunk_files=3)
        seen = {k: v for k, v in of_memory(store).items() if not k.startswith("work/")}
        check_at_any_moment(seen, prepared().originals, foreign=prepared().foreign)
        await backfilled(store, chunk_files=3)
        check(of_memory(store))


@pytest.mark.parametrize("other", ["run", "backfill"])
async def test_others_may_work_at_the_same_time(other: str) -> None:
    """A scheduled run, or another backfill, in the middle of one: counted once.

    It starts at every seventh moment: before some requests, and after others.
    """
    for number in range(0, await moments(lambda *_: True), 7):
        store = fill_memory(prepared().store)
        ordinals = at_request(number)

        async def race(*_: str, store: Store = store, ordinals: Iterator[bool] = ordinals) -> None:
            if not next(ordinals):
                return
            if other == "backfill":
                await backfilled(store, chunk_files=3)
            else:
                await run(store, Settings(), at=AT)

        report = await backfilled(HookedStore(store, race), chunk_files=3)
        assert not report.failures
        check(of_memory(store))


@pytest.mark.parametrize("refused_by", ["run", "backfill"])
async def test_a_file_is_never_both_counted_and_refused(
    refused_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another limit has judged one file otherwise, committed that, and got no further."""
    monkeypatch.setattr(memory_store, "_PAGE", 1)
    store = MemoryStore(Clock(moment(13, 57)))
    names = [f"runs/{name}.json" for name in "abcde"]
    for number, name in enumerate(names):
        await store.put(name, run_data(number, pad="x" * 500 if name == names[0] else ""))
    strict, lax = Settings(chunk_files=1, max_file_bytes=500), Settings(chunk_files=1)
    theirs, ours = (strict, lax) if refused_by == "run" else (lax, strict)
    committed = 0

    async def end(operation: str, key: str, when: str) -> None:
        nonlocal committed
        committed += (operation, when) == ("put", "after") and key.endswith("Z.json")
        if committed and (operation, when) == ("get", "before"):
            raise Crash

    async def race(operation: str, key: str, when: str) -> None:
        commits = (operation, when) == ("put", "before") and key.endswith("Z.json")
        if commits and not committed:
            with pytest.raises(Crash):
                await run(HookedStore(store, end), theirs, at=AT)

    interval = Interval(moment(13, 0), moment(14, 5))
    await backfill(LocalEngine(JobContext(HookedStore(store, race), ours)), ours, interval)
    assert committed
    (document,) = [
        json.loads(each.data) for key, each in of_memory(store).items() if key[:4] == "aggr"
    ]
    counted = [row["key"] for row in document["source_files"]]
    refused = [row["key"] for row in document["quarantined_files"]]
    assert counted == names[refused_by == "run" :]
    assert refused == names[: refused_by == "run"]


async def test_a_window_whose_parts_are_gone_is_counted_anew() -> None:
    """Somebody swept the work prefix between the parts and the commit: nothing is lost."""
    store = fill_memory(prepared().store)
    swept = 0

    async def sweep(operation: str, key: str, when: str) -> None:
        nonlocal swept
        is_part = key.startswith("work/") and key in store._objects
        if operation == "stream" and is_part and when == "before" and swept < 3:
            swept += 1
            del store._objects[key]

    await backfilled(HookedStore(store, sweep), chunk_files=3)
    assert swept == 3
    check(of_memory(store))


async def test_parts_that_a_crash_left_are_found_and_used() -> None:
    """What was fetched before the crash is not fetched again."""
    store = fill_memory(prepared().store)

    fetched = 0

    async def count(operation: str, key: str, when: str) -> None:
        nonlocal fetched
        fetched += (operation, when) == ("get", "before") and key.startswith("runs/")

    async def crash(operation: str, key: str, when: str) -> None:
        await count(operation, key, when)
        if operation == "put" and key.startswith("aggregates/") and when == "before":
            raise Crash

    first = HookedStore(store, crash)
    with pytest.raises(Crash):
        await backfilled(first, chunk_files=1)
    parts = [key for key in of_memory(store) if key.startswith("work/")]
    assert parts
    await backfilled(HookedStore(store, count), chunk_files=1)
    check(of_memory(store))
    assert fetched == 17  # each file that is not counted yet


async def test_what_others_left_below_the_work_prefix_is_swept() -> None:
    """Old parts of windows of the interval go; those of others, and foreign objects, stay."""
    store = fill_memory(prepared().store)
    kept = ["work/20251021t1500Z/a.json", "work/notes.txt", "work/20251021t1401Z/a.json"]
    for key in [*kept, "work/20251021t1400Z/a.json", "work/20251021t1350Z/a.json"]:
        await store.put(key, b"{}")
    await backfilled(store, interval=Interval(moment(13, 45), AT), chunk_files=3)
    assert sorted(key for key in of_memory(store) if key.startswith("work/")) == sorted(kept)


# ------------------------------------------------------------------------------ trouble


@pytest.mark.parametrize("operation", ["get", "put", "copy", "delete", "stream", "head"])
async def test_passing_trouble_defers_and_the_next_one_goes_on(operation: str) -> None:
    """Every third request of a kind fails for good: what is deferred is done the next time."""
    store = fill_memory(prepared().store)
    count = 0

    async def trouble(asked: str, _key: str, when: str) -> None:
        nonlocal count
        if asked == operation and when == "before":
            count += 1
            if count % 3 == 0:
                raise TransientError("slow down", operation=asked)

    report = await backfilled(HookedStore(store, trouble), chunk_files=3)
    assert not report.failures
    seen = {k: v for k, v in of_memory(store).items() if not k.startswith("work/")}
    check_at_any_moment(seen, prepared().originals, foreign=prepared().foreign)
    await backfilled(store, chunk_files=3)
    check(of_memory(store))


async def test_a_store_that_throttles() -> None:
    """A tenth of all requests are answered 503: they are tried again, nothing is lost."""
    async with S3Server([BUCKET]) as server:
        fill_server(server, prepared().store)
        server.faults.slow_down = 0.1
        async with open_s3(server, chunk_files=3) as (store, settings):
            await backfilled(store, settings)
        check(of_server(server))


async def test_a_missing_permission_fails_loudly() -> None:
    """The operator has to mend it: no window is reported as if it were done."""
    store = fill_memory(prepared().store)

    async def deny(operation: str, _key: str, _when: str) -> None:
        if operation == "put":
            raise ConfigurationError("no permission")

    with pytest.raises(ConfigurationError, match="no permission"):
        await backfilled(HookedStore(store, deny))


async def test_a_damaged_aggregate_fails_its_window_only() -> None:
    """Its files wait, uncounted; the other windows are settled."""
    store = fill_memory(prepared().store)
    await store.put("aggregates/20251021t1400Z.json", b"{}")
    report = await backfilled(store, chunk_files=3)
    assert set(report.failures) == {"20251021t1400Z"}
    assert report.exit_code == 1
    check_after_clean_run(
        of_memory(store),
        prepared().originals,
        at=AT,
        foreign={**prepared().foreign, "aggregates/20251021t1400Z.json": b"{}"},
        left_alone=["aggregates/20251021t1400Z.json"],
    )


async def test_time_that_runs_out_is_told() -> None:
    """After max_seconds it stops; what is left is done the next time."""
    store = fill_memory(prepared().store)

    async def hang(operation: str, key: str, _when: str) -> None:
        if operation == "put" and key.startswith("work/"):
            await anyio.sleep_forever()

    settings = Settings(chunk_files=3, max_seconds=1)
    report = await backfilled(HookedStore(store, hang), settings)
    assert not report.complete
    assert report.exit_code == 3
    await backfilled(store, chunk_files=3)
    check(of_memory(store))


# ------------------------------------------------------------------------------ the interval


@pytest.mark.parametrize(
    ("since", "until", "first", "last"),
    [
        (moment(13, 0), moment(14, 0), moment(13, 0), moment(14, 0)),
        (moment(13, 1), moment(13, 59), moment(13, 5), moment(13, 55)),
        (moment(13, 0), None, moment(13, 0), moment(14, 10)),
        (moment(13, 0), moment(20, 0), moment(13, 0), moment(14, 10)),
    ],
)
def test_an_interval_is_of_whole_windows_that_have_ended(
    since: datetime, until: datetime | None, first: datetime, last: datetime
) -> None:
    """Since and until are moved inwards to whole windows, and to now at the latest."""
    found = interval_of(Settings(), since, until, now=AT + timedelta(minutes=2))
    assert found == Interval(first, last)
    assert found.holds(Window(last, 5))
    assert not found.holds(Window(last + timedelta(minutes=5), 5))
    assert not found.holds(Window(first, 5))


@pytest.mark.parametrize(
    ("since", "until", "told"),
    [
        (moment(14, 9), None, "since .*expected a time early enough for a window of 5 minutes"),
        (moment(15, 0), moment(16, 0), "since .*early enough .* by now, 2025-10-21T14:10:00"),
        (moment(13, 1), moment(13, 9), "expected a window of 5 minutes to lie between them"),
        (moment(14, 0), moment(13, 0), "expected a time before until"),
        (moment(13, 0), moment(13, 0), "expected a time before until"),
    ],
)
def test_an_interval_without_a_window_is_a_mistake(
    since: datetime, until: datetime | None, told: str
) -> None:
    """The message says what was asked for and what is accepted."""
    with pytest.raises(UsageError, match=told):
        interval_of(Settings(), since, until, now=AT)
