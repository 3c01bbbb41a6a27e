"""Settings that decide which files an aggregate counts stay the same from run to run."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testkit.command import asyncagg
from testkit.hooked import HookedStore
from testkit.promises import Places, check_after_clean_run, of_memory, originals_of
from testkit.scenario import Clock, run_data

from asyncagg.errors import ConfigurationError, UsageError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.job.record import RECORDED, adopt_settings, follow_record
from asyncagg.settings import Settings, settings_from
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.windows import WindowBy

AT = datetime(2025, 10, 21, 14, 10, tzinfo=UTC)
RECORD = "aggregates/asyncagg.json"
COPY = "archive/.asyncagg"
FILES = 6

FIRST: dict[str, Any] = {
    "window_by": "last_modified",
    "window_minutes": 15,
    "runs_prefix": "in/",
    "aggregate_prefix": "out/",
    "archive_prefix": "old/",
    "quarantine_prefix": "bad/",
    "rollup_prefix": "sums/",
    "work_prefix": "tmp/",
}
"""What the first run is given, one at a time."""


def default(name: str) -> Any:
    """Return the default of a setting."""
    return getattr(Settings(), name)


async def filled(prefix: str = "runs/") -> MemoryStore:
    """Return a store with run files whose names and times are in different windows."""
    clock = Clock(AT - timedelta(minutes=12))
    store = MemoryStore(clock)
    for number in range(FILES):
        await store.put(f"{prefix}20251021t1340{number:02d}Z_run.json", run_data(number))
    clock.now = AT
    return store


async def stopped(store: MemoryStore, settings: Settings) -> None:
    """Run the job and stop it right after its first commit, before any file is archived."""

    async def hook(operation: str, _key: str, when: str) -> None:
        if (operation, when) == ("copy", "before"):
            task.cancel()
            await asyncio.Event().wait()

    task = asyncio.create_task(run(HookedStore(store, hook), settings, at=AT))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert any("Z.json" in key for key in store._objects)


async def counted(store: MemoryStore) -> int:
    """Return how many files all aggregates count, wherever they are."""
    documents = [
        json.loads(each.data) for each in store._objects.values() if b'"run_summaries"' in each.data
    ]
    return sum(each["files"]["counted"] for each in documents)


@pytest.mark.parametrize("name", RECORDED)
async def test_another_value_than_in_the_last_run_is_refused(name: str) -> None:
    """Neither the value before nor the default counts a file twice; the message names both."""
    store = await filled(FIRST["runs_prefix"] if name == "runs_prefix" else "runs/")
    await stopped(store, settings_from({name: FIRST[name]}))
    before = await counted(store)
    with pytest.raises(UsageError) as refused:
        await run(store, settings_from({name: default(name)}), at=AT)
    assert refused.value.setting == name
    assert repr(default(name)) in str(refused.value)
    assert repr(FIRST[name]) in str(refused.value)
    assert "asyncagg doctor --adopt" in str(refused.value)
    assert await counted(store) == before


@pytest.mark.parametrize("name", RECORDED)
async def test_a_setting_that_is_not_given_follows_the_record(name: str) -> None:
    """A stopped run is finished by one without the option, and every file counts once.

    Except for the prefix of the aggregates, a changed prefix of the archive is found as well.
    """
    store = await filled(FIRST["runs_prefix"] if name == "runs_prefix" else "runs/")
    await stopped(store, settings_from({name: FIRST[name]}))
    report = await run(store, Settings(), at=AT)
    assert report.total.archived == FILES
    assert await counted(store) == FILES
    followed = await follow_record(JobContext(store, Settings()))
    assert getattr(followed.settings, name) == FIRST[name]
    assert (await verify(followed)).exit_code == 0


async def test_the_first_run_writes_the_record() -> None:
    """It is readable JSON beside the aggregates; nothing to settle and dry runs write nothing."""
    empty = MemoryStore()
    await run(empty, Settings(), at=AT)
    assert not empty._objects
    store = await filled()
    await run(store, Settings(), at=AT, dry_run=True)
    assert RECORD not in store._objects
    await run(store, Settings(), at=AT)
    record = json.loads(store._objects[RECORD].data)
    expected = {name: default(name) for name in RECORDED}
    assert record == {"format": 1} | expected
    assert store._objects[COPY].data == store._objects[RECORD].data


async def test_of_two_first_runs_with_other_settings_one_is_refused() -> None:
    """The record is written with a condition, before the first commit."""
    store = await filled()
    other = settings_from({"window_by": "last_modified"})

    async def hook(operation: str, key: str, when: str) -> None:
        if (operation, key, when) == ("put", COPY, "before"):
            await run(store, other, at=AT)

    with pytest.raises(UsageError, match=r"window_by 'name': .*'last_modified'"):
        await run(HookedStore(store, hook), settings_from({"window_by": "name"}), at=AT)
    assert await counted(store) == FILES


@pytest.mark.parametrize("lost", [RECORD, COPY])
async def test_a_run_killed_between_the_record_and_its_copy_is_continued(lost: str) -> None:
    """Each of the two is enough to find the settings, and the other is written again."""
    store = await filled()
    await stopped(store, settings_from({"window_by": "last_modified"}))
    del store._objects[lost]
    await run(store, Settings(), at=AT)
    assert await counted(store) == FILES


@pytest.mark.parametrize("by", ["name", "last_modified"])
@pytest.mark.parametrize("given", ["given", "not given"])
async def test_a_store_without_a_record_gets_that_of_its_aggregates(
    by: WindowBy, given: str
) -> None:
    """The newest aggregate shows what it was made with; other values are refused."""
    store = await filled()
    await stopped(store, Settings(window_by=by, window_minutes=15))
    del store._objects[RECORD], store._objects[COPY]
    other = "name" if by == "last_modified" else "last_modified"
    for wrong in ({"window_by": other}, {"window_minutes": 5}, {"runs_prefix": "in/"}):
        with pytest.raises(UsageError):
            await run(store, settings_from(wrong), at=AT)
    await run(store, settings_from({"window_by": by} if given == "given" else {}), at=AT)
    assert await counted(store) == FILES
    record = json.loads(store._objects[RECORD].data)
    assert (record["window_by"], record["window_minutes"]) == (by, 15)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "missing required field `window_by`"),
        (b"no json", "malformed"),
        (b'{"format": 2}', "missing required field"),
    ],
)
async def test_a_damaged_record_is_named(content: bytes, message: str) -> None:
    """The run fails and changes nothing."""
    store = await filled()
    await store.put(RECORD, content)
    with pytest.raises(ConfigurationError, match=f"record '{RECORD}': .*{message}"):
        await run(store, Settings(), at=AT)
    assert await counted(store) == 0


async def test_a_record_of_a_later_format_is_refused() -> None:
    """Its meaning is not known."""
    store = await filled()
    await run(store, Settings(), at=AT)
    record = json.loads(store._objects[RECORD].data) | {"format": 2}
    await store.put(RECORD, msgspec.json.encode(record))
    with pytest.raises(ConfigurationError, match="format 2, expected 1"):
        await run(store, Settings(), at=AT)


@pytest.mark.parametrize("name", RECORDED)
async def test_settings_are_adopted_when_the_inbox_is_empty(name: str) -> None:
    """Then runs follow the new record; the old one is removed."""
    store = await filled(FIRST["runs_prefix"] if name == "runs_prefix" else "runs/")
    await stopped(store, settings_from({name: FIRST[name]}))
    changed = settings_from({name: default(name)})
    with pytest.raises(UsageError, match="expected an empty inbox"):
        await adopt_settings(JobContext(store, changed))
    await run(store, Settings(), at=AT)
    await adopt_settings(JobContext(store, changed))
    followed = await follow_record(JobContext(store, changed))
    assert getattr(followed.settings, name) == default(name)
    assert sum(key.endswith("asyncagg.json") for key in store._objects) == 1
    await store.put("runs/20251021t1401Z_new.json", run_data(9))
    await run(store, changed, at=AT)
    assert await counted(store) == FILES + 1


async def test_settings_are_not_adopted_during_a_backfill() -> None:
    """What it has counted in parts is not committed yet."""
    store = MemoryStore()
    await store.put("work/20251021t1400Z/part.json", b"{}")
    with pytest.raises(UsageError, match="expected no unfinished backfill"):
        await adopt_settings(JobContext(store, Settings()))


async def test_a_damaged_record_can_be_replaced() -> None:
    """`doctor --adopt` is the way out that the message names."""
    store = MemoryStore()
    await store.put(RECORD, b"{}")
    await adopt_settings(JobContext(store, Settings(window_minutes=15)))
    followed = await follow_record(JobContext(store, Settings()))
    assert followed.settings.window_minutes == 15


async def test_the_record_is_no_run_file() -> None:
    """Where aggregates share the prefix of the inbox, the record is left alone."""
    places = Places(aggregates="runs/")
    store = await filled()
    originals = originals_of(of_memory(store), places)
    settings = Settings(aggregate_prefix="runs/", window_by="last_modified")
    for _ in range(2):
        report = await run(store, settings, at=AT)
    assert report.ignored == 0
    assert "runs/asyncagg.json" in store._objects
    check_after_clean_run(of_memory(store), originals, places, at=AT)


def test_every_command_follows_the_record(tmp_path: Path) -> None:
    """The options of the first run need not be repeated, and others are refused as wrong usage."""
    folder = str(tmp_path)
    runs, out = ("--runs-prefix", "in/"), ("--window-minutes", "1", "--quarantine-prefix", "bad/")
    asyncagg("sample", folder, "--files", "20", "--bad-fraction", "0.2", *runs)
    first = asyncagg("run", folder, *runs, *out, "--json")
    assert first.returncode == 3, first.stderr
    count = json.loads(first.stdout)["total"]
    assert count["counted"] + count["quarantined"] == 20
    listed = asyncagg("quarantine", "list", folder, "--json")
    assert len(listed.stdout.splitlines()) == count["quarantined"]
    assert asyncagg("verify", folder).returncode == 0
    rolled = json.loads(asyncagg("rollup", folder, "--period", "hour", "--json").stdout)
    assert sum(each["counted"] for each in rolled["written"]) == count["counted"]
    page = tmp_path / "page.html"
    report = json.loads(asyncagg("report", folder, "--out", str(page), "--json").stdout)
    assert report["totals"]["files"]["counted"] == count["counted"]
    assert asyncagg("backfill", folder, "--since", "20250101t0000Z", "--json").returncode == 0
    asyncagg("sample", folder, "--files", "1", "--seed", "2")
    assert len(list((tmp_path / "in").iterdir())) == 1
    for command in ("run", "verify"):
        refused = asyncagg(command, folder, "--window-minutes", "5")
        assert refused.returncode == 2
        assert "window_minutes 5" in refused.stderr
        assert "made with 1" in refused.stderr
    doctor = asyncagg("doctor", folder, "--window-minutes", "5", "--json")
    assert doctor.returncode == 1
    checks = {each["name"]: each["status"] for each in json.loads(doctor.stdout)["checks"]}
    assert checks["record"] == "fail"
    assert asyncagg("doctor", folder, "--window-minutes", "5", "--adopt").returncode == 2
    assert asyncagg("run", folder).returncode == 0
    assert asyncagg("doctor", folder, "--window-minutes", "5", "--adopt").returncode == 0
    record = json.loads((tmp_path / RECORD).read_text())
    assert (record["window_minutes"], record["runs_prefix"]) == (5, "in/")


async def test_two_first_runs_at_once() -> None:
    """One begins before there is a record, and finds the aggregates of the other: it goes on."""
    clock = Clock(AT - timedelta(minutes=12))
    store = MemoryStore(clock)
    await store.put("runs/a.json", run_data(1))
    raced = False

    async def hook(operation: str, key: str, when: str) -> None:
        nonlocal raced
        if (operation, key, when, raced) == ("list", "aggregates/", "before", False):
            raced = True
            await run(store, Settings(), at=AT)
            await store.put("runs/b.json", run_data(2))

    report = await run(HookedStore(store, hook), Settings(), at=AT)
    assert raced
    assert report.total.counted == 1
