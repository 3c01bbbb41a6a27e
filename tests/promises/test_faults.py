"""Totals stay exact with a failing store, a busy producer or a deadline; the rest is reported."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from testkit.hooked import HookedStore
from testkit.leaps import Leaps, deadline
from testkit.loops import until
from testkit.producer import Producer, producer_of
from testkit.promises import (
    RECORD,
    Original,
    Snapshot,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_memory,
    of_server,
    window_end,
)
from testkit.s3server import DropError, Faults, Request, S3Error, S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    FORMATS,
    PLANES,
    fill_memory,
    fill_server,
    moment,
    open_s3,
    prepared,
    run_data,
)

import asyncagg.aggregate.spool as spool_module
import asyncagg.store.memory as memory_store
from asyncagg.errors import AccessDeniedError, ConfigurationError, TransientError
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.retry import RetryPolicy
from asyncagg.store.s3.http import Limits

MANY = RetryPolicy(attempts=40, base_seconds=1e-6)
TROUBLE = {"slow_down": 0.2, "internal_error": 0.05, "reset": 0.05, "truncate": 0.02}
DUE = 17
"""The number of files of the scenario that a run has to fetch."""
LAST_QUARANTINED = ("copy", "runs/d12-empty.json")
"""The last request for a bad file of the window of runs/c03.json."""
INSIDE_200 = {"copy_error": 0.2, "delete_error": 0.2}


def check_done(seen: Snapshot) -> None:
    """Check every promise on the scenario, and its aggregates to the byte."""
    scenario = prepared()
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected


def check_now(seen: Snapshot) -> None:
    """Check promises 1 to 3 on the scenario."""
    check_at_any_moment(seen, prepared().originals, foreign=prepared().foreign)


# ------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(TROUBLE, id="503, 500, resets, truncated bodies"),
        pytest.param({"lose_response": 0.3}, id="lost answers"),
        pytest.param(INSIDE_200, id="errors inside 200"),
        pytest.param({"conflict": 0.3}, id="409"),
        pytest.param(
            TROUBLE | INSIDE_200 | {"lose_response": 0.05, "conflict": 0.1}, id="everything"
        ),
    ],
)
async def test_totals_are_exact_despite_faults(
    switches: dict[str, float], seed: int, plane: str
) -> None:
    """A fifth of the requests is throttled, others fail or are lost: every total is exact."""
    faults = Faults(**switches, random=random.Random(seed))  # type: ignore[arg-type] # floats only
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill_server(server, prepared().store)
        async with open_s3(server, plane, policy=MANY) as (store, settings):
            report = await run(store, settings, at=AT)
        seen = of_server(server)
    assert not report.failures
    assert report.total.deferred == 0
    undisturbed = await run(fill_memory(prepared().store), Settings(), at=AT)
    assert report.total.counted == undisturbed.total.counted
    assert report.total.matches == undisturbed.total.matches
    check_done(seen)


@pytest.mark.parametrize("plane", PLANES)
async def test_retries_are_counted_by_their_reason(
    plane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the report and the log: throttled, timed out, reset and others; keys do not confuse it."""
    monkeypatch.setattr("asyncagg.store.s3.opening.Limits", partial(Limits, read=0.1))
    monkeypatch.setattr("asyncagg.store.s3.boto.control._READ_SECONDS", 0.1)
    troubles: dict[str, Callable[[], object]] = {
        "runs/is reset.json": lambda: _raise(S3Error("SlowDown")),
        "runs/is closed.json": lambda: _raise(S3Error("InternalError")),
        "runs/in 30 seconds.json": lambda: _raise(DropError(reset=True)),
        "runs/timeout.json": lambda: _raise(DropError(reset=False)),
        "runs/refused.json": asyncio.Event().wait,
    }
    left = dict(troubles)

    async def trouble(request: Request) -> None:
        if request.operation == "GetObject" and request.key in left:
            happened = left.pop(request.key)()
            if isinstance(happened, Awaitable):
                await happened

    async with S3Server([BUCKET], clock=lambda: AT, on_request=trouble) as server:
        for key in troubles:
            server.put(BUCKET, key, b'{"run_id": "a"}', last_modified=moment(13, 57))
        with caplog.at_level("INFO", logger="asyncagg"):
            async with open_s3(server, plane) as (store, settings):
                first = await run(store, settings, at=AT)
                again = await run(store, settings, at=AT)
            inner: Any = store._store
    assert (first.total.archived, left) == (len(troubles), {})
    assert first.retries == {"throttled": 1, "timed_out": 1, "reset": 2, "other": 1}
    assert sum(inner.retry.retries.values()) == sum(first.retries.values())
    assert set(again.retries.values()) == {0}
    summary = next(vars(each) for each in caplog.records if each.message == "run")
    assert {name: summary[f"{name}_retries"] for name in first.retries} == first.retries


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("plane", PLANES)
async def test_what_still_fails_is_deferred(plane: str) -> None:
    """A file whose requests never succeed stays in place, is reported, and blocks no other file."""
    scenario = prepared()

    def broken(request: Request) -> None:
        if request.key in {"runs/c01.json", "archive/c02.json"}:
            raise DropError(reset=True)

    async with S3Server([BUCKET], clock=lambda: AT, on_request=broken) as server:
        fill_server(server, scenario.store)
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
            assert report.total.deferred == 2
            assert report.exit_code == 3
            check_now(of_server(server))
            assert {"runs/c01.json", "runs/c02.json", "runs/g17-waits.json"} == {
                key for key in server.keys(BUCKET, "runs/") if key.endswith(".json")
            }
            server.on_request = None
            report = await run(store, settings, at=AT)
        assert report.total.deferred == 0
        check_done(of_server(server))


@pytest.mark.parametrize("plane", PLANES)
async def test_a_listing_in_trouble_fails_the_run(plane: str) -> None:
    """If the listing fails, the run fails, and nothing is changed."""

    def broken(request: Request) -> None:
        if request.operation == "ListObjectsV2":
            raise DropError(reset=True)

    async with S3Server([BUCKET], clock=lambda: AT, on_request=broken) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        async with open_s3(server, plane) as (store, settings):
            with pytest.raises(TransientError):
                await run(store, settings, at=AT)
        assert of_server(server) == before


@pytest.mark.parametrize("plane", PLANES)
async def test_throttling_slows_all_workers_together(plane: str) -> None:
    """After one 503 every worker pauses before its next request, not only the one it hit."""
    workers, resting = 8, 0
    after: list[str] = []
    all_rest, resume = asyncio.Event(), asyncio.Event()
    throttled = False

    def throttle_once(request: Request) -> None:
        nonlocal throttled
        if throttled:
            after.append(request.operation)
        elif request.key == "runs/n020.json":
            throttled = True
            server.faults.slow_down = 1.0

    async def rest(seconds: float) -> None:
        nonlocal resting
        assert seconds >= 15
        server.faults.slow_down = 0.0
        resting += 1
        if resting == workers:
            all_rest.set()
        await resume.wait()

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        for number in range(60):
            server.put(
                BUCKET, f"runs/n{number:03d}.json", run_data(number), last_modified=moment(14, 1)
            )
        policy = RetryPolicy(attempts=9, base_seconds=30, cap_seconds=30, budget_seconds=1e6)
        async with open_s3(server, plane, policy=policy, sleep=rest, concurrency=workers) as (
            store,
            settings,
        ):
            await store.guards()
            server.on_request = throttle_once
            job = asyncio.create_task(run(store, settings, at=AT))
            await all_rest.wait()
            # Requests that were in flight at that moment still arrive, then no more.
            assert len(after) < workers
            still = len(after)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(after) == still
            resume.set()
            report = await job
        assert report.total.counted == report.total.archived == 60


# ------------------------------------------------------------------------------ other writers


def check_with(producer: Producer, seen: Snapshot, *, at: datetime | None = None) -> None:
    """Check the promises for everything that a producer has written."""
    options: dict[str, Any] = {
        "foreign": prepared().foreign,
        "overwritten": producer.overwritten,
    }
    if at is None:
        check_at_any_moment(seen, producer.versions.values(), **options)
    else:
        check_after_clean_run(seen, producer.versions.values(), at=at, **options)


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("seed", range(15))
async def test_producer_at_work(seed: int, archive_format: Any) -> None:
    """Each counted version is archived; every other one stays for the next run."""
    inner = fill_memory(prepared().store)

    producer = producer_of(inner, seed)

    async def hook(operation: str, _key: str, when: str) -> None:
        producer.perhaps()
        if when == "after" and operation in {"put", "copy", "delete"}:
            check_with(producer, of_memory(inner))
        await asyncio.sleep(0)

    settings = Settings(concurrency=1 + seed % 6, archive_format=archive_format)
    await run(HookedStore(inner, hook), settings, at=AT)
    assert len(producer.versions) > len(prepared().originals) + 10
    await run(inner, settings, at=AT)
    check_with(producer, of_memory(inner), at=AT)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("seed", range(2))
async def test_producer_at_work_over_http(seed: int, archive_format: str, plane: str) -> None:
    """The same over HTTP; nothing but a producer's own overwriting ever loses bytes."""

    def write(key: str, data: bytes, when: datetime) -> Original:
        stored = server.put(BUCKET, key, data, last_modified=when)
        return Original(key, data, stored.etag.strip('"'), when)

    def hook(_request: Request) -> None:
        producer.perhaps()
        check_with(producer, of_server(server))

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        producer = Producer(seed, write, lambda: of_server(server))
        async with open_s3(server, plane, archive_format=archive_format) as (store, settings):
            server.on_request = hook
            await run(store, settings, at=AT)
            server.on_request = None
            await run(store, settings, at=AT)
        check_with(producer, of_server(server), at=AT)
        # The server does not know that a pack has the content of a deleted file.
        others = ("aggregates/", "archive/asy", *(("runs/",) if archive_format == "packs" else ()))
        lost = [each for each in server.audit.lost if each.operation != "put"]
        assert [each for each in lost if not each.key.startswith(others)] == []


@pytest.mark.parametrize(
    ("operation", "archive_format"),
    [("CopyObject", "files"), ("DeleteObjects", "files"), ("DeleteObjects", "packs")],
)
@pytest.mark.parametrize("plane", PLANES)
async def test_overwritten_at_the_last_moment(
    operation: str, archive_format: str, plane: str
) -> None:
    """A file overwritten right before its copy or its delete stays, and is counted next time."""
    key = "runs/c01.json"
    new = run_data(77)

    def overwrite(request: Request) -> None:
        due = request.key == "archive/c01.json" or key.encode() in request.body
        if request.operation == operation and due and server.get(BUCKET, key).body != new:
            server.put(BUCKET, key, new, last_modified=moment(14, 4))

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        old = next(each for each in prepared().originals if each.key == key)
        async with open_s3(server, plane, archive_format=archive_format) as (store, settings):
            await store.guards()
            server.on_request = overwrite
            report = await run(store, settings, at=AT)
            server.on_request = None
            assert report.total.changed == 1
            assert server.get(BUCKET, key).body == new
            newer = Original(key, new, server.get(BUCKET, key).etag.strip('"'), moment(14, 4))
            versions = [*prepared().originals, newer]
            # Only the producer itself can destroy a version, before it is copied.
            replaced = {old.identity} if operation == "CopyObject" else set()
            check_at_any_moment(
                of_server(server), versions, foreign=prepared().foreign, overwritten=replaced
            )
            await run(store, settings, at=AT)
        check_after_clean_run(
            of_server(server), versions, at=AT, foreign=prepared().foreign, overwritten=replaced
        )


@pytest.mark.parametrize("operation", ["get", "copy", "delete"])
async def test_vanished_files_are_no_error(operation: str) -> None:
    """A file that another runner moves meanwhile is no error; it is reported as gone at most."""
    scenario = prepared()
    inner = fill_memory(scenario.store)

    async def other_runner(happening: str, key: str, when: str) -> None:
        if happening == operation and key == "runs/c01.json" and when == "before":
            await run(inner, Settings(), at=AT)

    report = await run(HookedStore(inner, other_runner), Settings(), at=AT)
    assert not report.failures
    assert report.total.deferred == 0
    assert report.total.gone > 0 or operation == "delete"
    check_done(of_memory(inner))


async def test_an_aggregate_that_vanishes_is_settled_again() -> None:
    """An aggregate deleted between load and commit is written again; it is not an error."""
    inner = fill_memory(prepared().store)
    window = "aggregates/20251021t1355Z.json"

    async def operator(operation: str, key: str, when: str) -> None:
        if operation == "put" and key == window and when == "before":
            inner._objects.pop(window, None)

    report = await run(HookedStore(inner, operator), Settings(), at=AT)
    assert not report.failures
    assert json.loads(inner._objects[window].data)["revision"] == 1


@pytest.mark.xfail(
    reason="known limit: the same bytes written again in a later window are counted there too; "
    "window_by=name, or run files that never repeat, avoid it",
)
async def test_the_same_bytes_delivered_in_a_later_window_count_once() -> None:
    """A producer that repeats a write across a window's end is counted once."""
    store = fill_memory(prepared().store)
    await run(store, Settings(), at=AT)
    again = next(each for each in prepared().originals if each.key == "runs/c01.json")
    clock: Any = store._clock
    clock.now = moment(14, 8)
    await store.put(again.key, again.data)
    clock.now = AT
    await run(store, Settings(), at=AT)
    check_now(of_memory(store))


async def test_the_same_bytes_delivered_twice_in_a_window_count_once() -> None:
    """A file delivered again with the same bytes in its own window is only archived again."""
    store = fill_memory(prepared().store)
    await run(store, Settings(), at=AT)
    again = next(each for each in prepared().originals if each.key == "runs/c01.json")
    clock: Any = store._clock
    clock.now = moment(13, 59)
    await store.put(again.key, again.data)
    clock.now = AT
    report = await run(store, Settings(), at=AT)
    assert (report.total.counted, report.total.archived) == (0, 1)
    check_done(of_memory(store))


# ------------------------------------------------------------------------------ late files


async def test_late_files_go_into_their_own_window() -> None:
    """A late file raises its own aggregate's revision and sums; the other aggregates stay."""
    store = fill_memory(prepared().store)
    await run(store, Settings(), at=AT)
    before = of_memory(store)
    clock: Any = store._clock
    clock.now = moment(14, 1)
    await store.put("runs/late.json", run_data(50))
    clock.now = AT
    report = await run(store, Settings(), at=AT)
    seen = of_memory(store)
    changed = {key for key in before if seen.get(key) != before[key]}
    assert changed == {"aggregates/20251021t1405Z.json", "runs/late.json"} - {"runs/late.json"}
    old, new = (json.loads(each["aggregates/20251021t1405Z.json"].data) for each in (before, seen))
    added = json.loads(run_data(50))
    assert new["revision"] == old["revision"] + 1
    assert new["files"]["late"] == old["files"]["late"] + 1
    assert new["total_opportunities"] == old["total_opportunities"] + added["total_opportunities"]
    assert report.total.late == report.total.counted == 1
    reference = seen["archive/late.json"]
    late = Original("runs/late.json", reference.data, reference.etag, moment(14, 1))
    check_after_clean_run(seen, [*prepared().originals, late], at=AT, foreign=prepared().foreign)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"[]\n", id="foreign JSON"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(
            lambda data: data.replace(b'"schema_version":1', b'"schema_version":2'), id="newer"
        ),
        pytest.param(lambda data: data.replace(b"1355Z", b"1350Z"), id="another window's"),
        pytest.param(lambda data: data.replace(b'"counted":3', b'"counted":4'), id="miscounted"),
        pytest.param(lambda data: data.replace(b'{"key":"runs', b'["key":"runs'), id="garbled row"),
    ],
)
async def test_a_damaged_aggregate_is_left_alone(damage: Callable[[bytes], bytes]) -> None:
    """An aggregate that is damaged or foreign stays unchanged; the other windows are settled."""
    scenario = prepared()
    store = fill_memory(scenario.store)
    key = "aggregates/20251021t1355Z.json"
    clock: Any = store._clock
    whole = store._objects[key]
    damaged = damage(whole.data)
    assert damaged != whole.data
    clock.now = moment(13, 56)
    await store.put(key, damaged)
    clock.now = AT
    report = await run(store, Settings(), at=AT)
    assert list(report.failures) == ["20251021t1355Z"]
    assert key in report.failures["20251021t1355Z"]
    assert report.exit_code == 1
    assert store._objects[key].data == damaged
    theirs = {each.key for each in scenario.originals if window_end(each) == moment(13, 55)}
    inbox = {name for name in store._objects if name.startswith("runs/")}
    assert theirs & inbox == {
        "runs/c04-late.json", "runs/f/e15-late.json", "runs/left-over.json", "runs/refused.json",
    }  # fmt: skip
    others = final_bytes({name: each for name, each in of_memory(store).items() if name != key})
    assert others == {name: data for name, data in scenario.expected.items() if name != key}
    store._objects[key] = whole  # the operator restores it
    await run(store, Settings(), at=AT)
    check_done(of_memory(store))


# ------------------------------------------------------------------------------ the deadline


async def test_a_hanging_file_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one download hangs for ever, the rest is settled in time, and that file is left."""
    clock = Leaps(monkeypatch)
    inner = fill_memory(prepared().store)
    done: list[tuple[str, str]] = []

    def rest_is_done() -> bool:
        got = [key for operation, key in done if operation == "get"]
        committed = [key for operation, key in done if operation == "put"]
        return len(got) == DUE - 1 and len(committed) == 3 and LAST_QUARANTINED in done

    async def hang(operation: str, key: str, when: str) -> None:
        if when == "after" and not key.endswith(RECORD):
            done.append((operation, key))
        elif operation == "get" and key == "runs/c03.json":
            await until(rest_is_done)
            for _ in range(10):  # lets the results be reported
                await asyncio.sleep(0)
            clock.leap(60)
            await asyncio.Event().wait()

    report = await run(HookedStore(inner, hang), Settings(), at=AT, deadline=deadline())
    assert report.total.left == 1
    assert report.exit_code == 3
    assert report.total.deferred == 0
    check_now(of_memory(inner))
    inbox = {key for key in inner._objects if key.startswith("runs/")}
    assert inbox == {"runs/c03.json", "runs/g17-waits.json", "runs/notes.txt"}
    await run(inner, Settings(), at=AT)
    check_done(of_memory(inner))


@pytest.mark.parametrize("plane", PLANES)
async def test_a_hanging_key_over_http(plane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same over HTTP: the connection that hangs is closed, the others continue."""
    clock = Leaps(monkeypatch)
    faults = Faults(slow_keys={"runs/c03.json": None})
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill_server(server, prepared().store)
        async with open_s3(server, plane) as (store, settings):
            await store.guards()

            commits = server.audit.counts["PutObject"] + 3 + 1  # and the journal
            # The files, an aggregate for each of the windows, the record twice, the journal.
            gets = server.audit.counts["GetObject"] + DUE + 4 + 2 + 1

            def rest_is_done() -> bool:
                got = server.audit.counts["GetObject"] == gets
                bad = server.has(BUCKET, "quarantine/d12-empty.json")
                return got and bad and server.audit.counts["PutObject"] == commits

            async def leap_when_the_rest_is_done() -> None:
                await until(rest_is_done)
                for _ in range(100):  # lets the last answers arrive
                    await asyncio.sleep(0)
                clock.leap(11)  # past the end of intake, but not past the client's timeouts

            leap = asyncio.create_task(leap_when_the_rest_is_done())
            report = await run(store, settings, at=AT, deadline=deadline(20))
            await leap
            assert report.total.left == 1
            check_now(of_server(server))
            assert "runs/c03.json" in server.keys(BUCKET, "runs/")
            server.faults.slow_keys.clear()
            await run(store, settings, at=AT)
        check_done(of_server(server))


@pytest.mark.parametrize(
    ("stage", "archive_format"),
    [(stage, "files") for stage in ("get", "put", "copy", "delete")]
    + [(stage, "packs") for stage in ("get", "put", "delete")],
)
async def test_the_deadline_at_every_request(
    stage: str, archive_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever time runs out, the files left are reported exactly, and the next run continues."""
    clock = Leaps(monkeypatch)
    number = 0
    while True:
        number += 1
        inner = fill_memory(prepared().store)
        seen = 0

        async def late(
            operation: str,
            key: str,
            when: str,
            number: int = number,
        ) -> None:
            nonlocal seen
            due = operation == stage and when == "before" and not key.endswith(RECORD)
            seen += due
            if due and seen == number:
                clock.leap(1000)
                await asyncio.Event().wait()
            if when == "before":  # an answer lost to the cancellation could not be reported
                await asyncio.sleep(0)

        store = HookedStore(inner, late)
        settings = Settings(concurrency=4, archive_format=archive_format)
        report = await run(store, settings, at=AT, deadline=deadline())
        if seen < number:
            break
        check_now(of_memory(inner))
        due = [
            each
            for each in prepared().originals
            if window_end(each) <= AT
            and each.key in inner._objects
            and inner._objects[each.key].etag == each.etag
        ]
        assert report.total.left + report.untaken == len(due), f"{stage} {number}"
        await run(inner, settings, at=AT)
        check_done(of_memory(inner))
    assert number > 3


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_the_deadline_stops_the_intake(
    archive_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If time is up after a chunk, no other begins; the report says that it is not complete."""
    clock = Leaps(monkeypatch)
    monkeypatch.setattr(memory_store, "_PAGE", 6)
    inner = fill_memory(prepared().store)

    async def late(operation: str, _key: str, when: str) -> None:
        if operation == "delete" and when == "after" and not inner_done:
            inner_done.append(1)
            clock.leap(95)

    inner_done: list[int] = []
    settings = Settings(chunk_files=5, concurrency=1, archive_format=archive_format)
    report = await run(HookedStore(inner, late), settings, at=AT, deadline=deadline())
    assert not report.complete
    assert report.exit_code == 3
    check_now(of_memory(inner))
    assert "runs/g16.json" in inner._objects
    await run(inner, settings, at=AT)
    check_done(of_memory(inner))


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("stage", ["list", "get", "put", "copy", "delete"])
@pytest.mark.parametrize("leap", [60, 95, 1000])
async def test_the_backlog_is_true(
    stage: str, leap: int, archive_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever time runs out: exact if the listing came to its end, else a lower bound."""
    clock = Leaps(monkeypatch)
    monkeypatch.setattr(memory_store, "_PAGE", 4)
    exact = 0
    for number in range(1, 12):
        inner = fill_memory(prepared().store)
        seen = 0

        async def late(operation: str, key: str, when: str, number: int = number) -> None:
            nonlocal seen
            seen += operation == stage and when == "before" and key.startswith(("runs/", "aggr"))
            if seen == number and operation == stage:
                seen += 1
                clock.leap(leap)
            if when == "before":  # of a request that is cut off once it is executed, nobody knows
                await asyncio.sleep(0)

        settings = Settings(chunk_files=3, concurrency=2, archive_format=archive_format)
        report = await run(HookedStore(inner, late), settings, at=AT, deadline=deadline())
        due = [key for key in inner._objects if is_due(key, inner)]
        assert report.backlog == len(due) if report.listed else report.backlog <= len(due)
        assert report.complete <= report.listed
        exact += report.listed
    assert exact or leap > 60  # then there is no time to list on


def is_due(key: str, store: memory_store.MemoryStore) -> bool:
    """Return whether a file of the scenario is in the inbox though its window has ended."""
    named = key.startswith("runs/") and key.endswith((".json", ".gz"))
    return named and store._objects[key].info.file.last_modified < moment(14, 10)


@pytest.mark.parametrize("write", range(1, 12))
async def test_the_deadline_while_rows_are_spooled(
    write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If time runs out while rows are written to a temporary file, no aggregate is damaged."""
    clock = Leaps(monkeypatch)
    monkeypatch.setattr(spool_module, "BLOCK", 64)
    wrap: Any = vars(spool_module)["AsyncSpooledTemporaryFile"]
    writes = 0

    class Slow:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        async def write(self, data: bytes) -> int:
            nonlocal writes
            writes += 1
            if writes == write:
                clock.leap(60)  # the intake ends
                for _ in range(5):
                    await asyncio.sleep(0)
            written: int = await self._file.write(data)
            return written

    def slow(file: object, **options: Any) -> Slow:
        return Slow(wrap(file, **options))

    monkeypatch.setattr(spool_module, "AsyncSpooledTemporaryFile", slow)
    store = fill_memory(prepared().store)
    for number in range(12):
        clock_of: Any = store._clock
        clock_of.now = moment(14, 6)
        await store.put(f"runs/x{number:02d}.json", run_data(number + 60))
        clock_of.now = AT
    originals = [*prepared().originals, *added_to(of_memory(store))]
    settings = Settings(concurrency=3, spool_bytes=1)
    only: Any = {"only": lambda window: window.name == "20251021t1410Z"}
    await run(store, settings, at=AT, deadline=deadline(), **only)
    assert writes >= write
    check_at_any_moment(of_memory(store), originals, foreign=prepared().foreign)
    monkeypatch.undo()
    await run(store, settings, at=AT)
    check_after_clean_run(of_memory(store), originals, at=AT, foreign=prepared().foreign)


def added_to(seen: Snapshot) -> list[Original]:
    """Return the run files that the test added to the scenario."""
    return [
        Original(key, each.data, each.etag, each.last_modified)
        for key, each in seen.items()
        if key.startswith("runs/x")
    ]


# ------------------------------------------------------------------------------ permissions


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    "operation",
    ["ListObjectsV2", "GetObject", "PutObject", "CopyObject", "HeadObject", "DeleteObject"],
)
async def test_a_missing_permission_fails_loudly(operation: str, plane: str) -> None:
    """Denied any one operation, the run fails before the first commit; nothing is changed."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        before = of_server(server)
        server.faults.denied = lambda asked, _key: asked == operation
        async with open_s3(server, plane) as (store, settings):
            with pytest.raises(AccessDeniedError) as caught:
                await run(store, settings, at=AT)
            assert "AccessDenied" in str(caught.value) or "403" in str(caught.value)
            after = of_server(server)
            assert {key: after[key] for key in before} == before
            assert all("asyncagg-probe-" in key for key in set(after) - set(before))
            server.faults.denied = None
            await run(store, settings, at=AT)
        check_done(of_server(server))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("GetObject", "runs/c02.json"),
        ("CopyObject", "archive/c02.json"),
        ("PutObject", "aggregates/20251021t1405Z.json"),
        ("DeleteObject", "runs/c02.json"),
    ],
)
async def test_a_permission_missing_for_one_key(operation: str, key: str, plane: str) -> None:
    """Denied one key in the middle of the work, that file is deferred, and the others settled."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        server.faults.denied = lambda asked, at: (asked, at) == (operation, key)
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
            assert report.exit_code == 3
            deferred = report.windows["20251021t1405Z"].tally.deferred
            assert report.total.deferred == deferred > 0
            assert report.total.archived > 0
            check_now(of_server(server))
            server.faults.denied = None
            await run(store, settings, at=AT)
        check_done(of_server(server))


@pytest.mark.parametrize("plane", PLANES)
async def test_a_missing_bucket_fails_loudly(plane: str) -> None:
    """Without its bucket the run fails, naming it."""
    async with S3Server(["another"]) as server, open_s3(server, plane) as (store, settings):
        with pytest.raises(ConfigurationError, match="'b'"):
            await run(store, settings, at=AT)
