"""``asyncagg archive pack``: every file stays in the archive, however the command is stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testkit.command import asyncagg
from testkit.hooked import HookedStore, Stopped
from testkit.promises import (
    Snapshot,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
)
from testkit.s3server import S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    FORMATS,
    PLANES,
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

import asyncagg.archive.packing as packing_module
from asyncagg.archive.packing import PackReport, pack_archive
from asyncagg.errors import TransientError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore
from asyncagg.verify.audit import verify
from asyncagg.verify.repair import repair
from asyncagg.windows import check_interval

ALL = check_interval(None, None)
AGGREGATE = "aggregates/20251021t1400Z.json"


async def pack(store: Store, *, interval: Interval = ALL, **options: Any) -> PackReport:
    """Put single files of an interval into packs."""
    settings = Settings(concurrency=4, **options)
    return await pack_archive(JobContext(store, settings), interval)


async def settled() -> MemoryStore:
    """Return a store with the scenario, all of whose files are archived as single ones."""
    store = fill_memory(prepared().store)
    await run(store, Settings(), at=AT)
    return store


def check_now(seen: Snapshot) -> None:
    """Check promises 1 to 3 on the scenario."""
    check_at_any_moment(seen, prepared().originals, foreign=prepared().foreign)


def check_done(seen: Snapshot, *, packs: int = 4) -> None:
    """Check every promise, and that all files are in packs, which aggregates name."""
    scenario = prepared()
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected
    documents = [json.loads(seen[key].data) for key in scenario.expected]
    assert all("pack" in row for document in documents for row in document["source_files"])
    named = {pack["key"] for document in documents for pack in document["packs"]}
    archived = {key for key in seen if key.startswith("archive/")} - scenario.foreign.keys()
    assert archived == named
    assert len(named) == packs


def at(
    store: MemoryStore, operation: str, key: str, act: Callable[[], Awaitable[object]]
) -> HookedStore:
    """Return a store that acts once, before it executes a request."""
    acted: list[str] = []

    async def hook(found: str, found_key: str, when: str) -> None:
        if (found, found_key, when) == (operation, key, "before") and not acted:
            acted.append(key)
            await act()

    return HookedStore(store, hook)


async def test_an_archive_of_single_files_becomes_packs() -> None:
    """The aggregates count the same; a second command has nothing to do."""
    store = await settled()
    report = await pack(store)
    check_done(of_memory(store))
    assert (report.packed, report.deleted, report.exit_code) == (17, 17, 0)
    before = dict(store._objects)
    assert (await pack(store)).packed == 0
    assert store._objects == before


async def test_verify_finds_nothing_after_it() -> None:
    """It reads the packs, and the aggregates that name them."""
    store = await settled()
    context = JobContext(store, Settings())
    before = await verify(context)
    await pack(store)
    after = await verify(context)
    assert after.findings.keys() == before.findings.keys()


async def test_an_interval_leaves_the_other_windows_alone() -> None:
    """Only windows in it become packs."""
    store = await settled()
    await pack(store, interval=Interval(moment(13, 55), moment(14, 5)))
    documents = {key: json.loads(store._objects[key].data) for key in prepared().expected}
    assert [bool(each.get("packs")) for each in documents.values()] == [False, True, True, False]
    await pack(store)
    check_done(of_memory(store))


async def test_a_dry_run_changes_nothing() -> None:
    """It counts the files."""
    store = await settled()
    before = dict(store._objects)
    report = await pack_archive(JobContext(store, Settings()), ALL, dry_run=True)
    assert (report.windows, report.packed, report.packs) == (4, 17, 0)
    assert store._objects == before


@pytest.mark.parametrize("commit_files", [1, 2])
async def test_a_large_window_needs_several_commits(
    commit_files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each continues after the last row of the one before."""
    monkeypatch.setattr(packing_module, "_COMMIT_FILES", commit_files)
    monkeypatch.setattr(packing_module, "_ROWS", 1)
    store = await settled()
    report = await pack(store)
    check_done(of_memory(store), packs=report.packs)
    assert report.packs == {1: 17, 2: 9}[commit_files]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_every_request(when: str) -> None:
    """Cancelled at any request, no file is lost; the next command finishes the work."""
    template = await settled()
    for number in count(1):
        store = fill_memory(template)
        stopped = Stopped(store, number, when)
        stopped.task = asyncio.create_task(pack(stopped.store))
        await asyncio.wait([stopped.task])
        if not stopped.step:
            break
        check_now(of_memory(store))
        await pack(store)
        await remove_unnamed(store)
        check_done(of_memory(store))
    assert number > 40


async def remove_unnamed(store: MemoryStore) -> None:
    """Repair what a stopped command leaves: packs that no aggregate names, a day later."""
    await store.put("runs/20251023t0000Z_new.txt", b"")
    found = store._objects["runs/20251023t0000Z_new.txt"]
    file = msgspec.structs.replace(found.info.file, last_modified=moment(23, 59).replace(day=23))
    info = msgspec.structs.replace(found.info, file=file)
    store._objects[file.key] = msgspec.structs.replace(found, info=info)
    context = JobContext(store, Settings())
    await repair(context, await verify(context))
    del store._objects[file.key]


@pytest.mark.parametrize("other", FORMATS)
@pytest.mark.parametrize("request_", ["commit", "delete"])
async def test_a_late_file_is_counted_meanwhile(request_: str, other: Any) -> None:
    """A run of either form commits first, or after: both files are counted and archived."""
    store = fill_memory(prepared().store)
    late = {key: store._objects.pop(key) for key in ("runs/c05-equal.json", "runs/c04-late.json")}
    await run(store, Settings(), at=AT)

    async def count_late() -> None:
        store._objects.update(late)
        await run(store, Settings(archive_format=other), at=AT)

    operation, key = ("put", AGGREGATE) if request_ == "commit" else ("delete", DELETED_FIRST)
    assert (await pack(at(store, operation, key, count_late))).exit_code == 0
    assert not store._objects.keys() & late.keys()
    check_now(of_memory(store))
    report = await pack(store)
    seen = of_memory(store)
    check_done(seen, packs=len([key for key in seen if key.endswith(".zip")]))
    assert report.failures == {}


DELETED_FIRST = "archive/again.json"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_answer_of_a_commit_is_lost(when: str) -> None:
    """Whether it was executed or not, nothing is lost, and the next command finishes the work."""
    store = await settled()

    async def hook(operation: str, key: str, moment: str) -> None:
        if (operation, key, moment) == ("put", AGGREGATE, when):
            raise TransientError("no answer", operation="put", key=key)

    report = await pack(HookedStore(store, hook))
    assert [*report.failures] == ["20251021t1400Z"]
    assert report.exit_code == 3
    check_now(of_memory(store))
    await pack(store)
    await remove_unnamed(store)
    check_done(of_memory(store))


@pytest.mark.parametrize("damage", ["removed", "altered", "replaced"])
async def test_no_copy_is_deleted_without_a_sound_pack(damage: str) -> None:
    """A pack that is not as it was written keeps the copies, and the window is named."""
    store = await settled()

    async def hook(operation: str, key: str, when: str) -> None:
        if (operation, key, when) != ("put", AGGREGATE, "after"):
            return
        name = next(key for key in store._objects if "packs/20251021t1400Z/" in key)
        pack = store._objects.pop(name)
        if damage == "altered":
            data = pack.data.replace(b"run-5", b"run-X")
            store._objects[name] = msgspec.structs.replace(pack, data=data)
        elif damage == "replaced":
            await store.put(name, pack.data.replace(b"run-5", b"run-X"))

    before = {key: each.data for key, each in store._objects.items() if "archive/" in key}
    report = await pack(HookedStore(store, hook))
    assert [*report.failures] == ["20251021t1400Z"]
    rows = json.loads(store._objects[AGGREGATE].data)["source_files"]
    for row in rows:
        key = row["key"].replace("runs/", "archive/")
        assert store._objects[key].data == before[key]


async def test_a_file_that_was_not_archived_yet_stays_single() -> None:
    """A run that stopped after its commit has left it in the inbox."""
    store = fill_memory(prepared().store)
    report = await pack(store)
    assert report.kept == 1
    await run(store, Settings(), at=AT)
    await pack(store)
    seen = of_memory(store)
    check_done(seen, packs=5)


async def test_a_copy_with_other_content_stays() -> None:
    """Its etag is not the one that was counted: `verify` names the file."""
    store = await settled()
    await store.put("archive/c01.json", b"changed")
    report = await pack(store)
    assert report.kept == 1
    assert store._objects["archive/c01.json"].data == b"changed"


async def test_what_is_not_packed_by_runs_stays_single() -> None:
    """Large files, and files restored from quarantine."""
    clock = Clock(moment(13, 57))
    store = MemoryStore(clock)
    await store.put("runs/large.json", run_data(1, padding="x" * 3000))
    await store.put("runs/a.putback-0123456789abcdef.json", run_data(2))
    await store.put("runs/small.json", run_data(3))
    clock.now = AT
    await run(store, Settings(), at=AT)
    report = await pack(store, stream_bytes=1024)
    assert (report.packed, report.kept) == (1, 2)
    assert {"archive/large.json", "archive/a.putback-0123456789abcdef.json"} < store._objects.keys()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("same_etag", [True, False])
async def test_a_copy_that_two_windows_share_stays_until_both_have_packs(
    first: int, *, same_etag: bool
) -> None:
    """A file without a time in its name was delivered again: it is counted in a later window."""
    clock = Clock()
    store = MemoryStore(clock)
    for minute in (57, 62):
        clock.now = moment(13 + minute // 60, minute % 60)
        await store.put("runs/x.json", run_data(1))
        if minute == 62 and not same_etag:
            found = store._objects["runs/x.json"]
            file = msgspec.structs.replace(found.info.file, etag="of-a-multipart-upload-2")
            info = msgspec.structs.replace(found.info, file=file)
            store._objects["runs/x.json"] = msgspec.structs.replace(found, info=info)
        clock.now = AT
        await run(store, Settings(), at=AT)
    intervals = [Interval(moment(13, 55), moment(14, 0)), Interval(moment(14, 0), moment(14, 5))]
    await pack(store, interval=intervals[first])
    for _ in range(2):
        report = await verify(JobContext(store, Settings()))
        assert {kind.value for kind in report.found} <= {"counted_twice"}
        await pack(store)


async def test_repair_beside_it_removes_nothing_that_is_needed() -> None:
    """At every commit and deletion, an operator repairs the store."""
    store = await settled()

    async def hook(operation: str, key: str, when: str) -> None:
        if operation in {"put", "delete"} and when == "before" and not key.endswith(".zip"):
            context = JobContext(store, Settings())
            await repair(context, await verify(context))

    await pack(HookedStore(store, hook))
    check_done(of_memory(store))


async def test_copies_are_deleted_window_by_window_if_names_have_times() -> None:
    """Only files whose names have no time need a look at all aggregates."""
    clock = Clock(moment(13, 57))
    store = MemoryStore(clock)
    for minute in (52, 57):
        for number in range(3):
            await store.put(f"runs/20251021t13{minute}Z_{number}.json", run_data(number))
    clock.now = AT
    await run(store, Settings(), at=AT)
    steps: list[str] = []

    async def note(operation: str, key: str, when: str) -> None:
        if when == "before" and operation in {"put", "delete"}:
            steps.append("pack" if key.endswith(".zip") else operation)

    await pack(HookedStore(store, note))
    assert steps == ["pack", "put", "delete", "delete"] * 2


@pytest.mark.parametrize("plane", PLANES)
async def test_on_s3(plane: str) -> None:
    """The same with the requests to a server."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, (await settled()))
        async with open_s3(server, plane) as (store, settings):
            await pack_archive(JobContext(store, settings), ALL)
        check_done(of_server(server))


async def test_in_a_directory(tmp_path: Path) -> None:
    """The same with files."""
    scenario = prepared_directory(tmp_path)
    root = fill_directory(scenario.root, tmp_path / "store")
    store = DirectoryStore(root)
    await run(store, Settings(), at=AT)
    report = await pack(store)
    seen = of_directory(root)
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected
    assert (report.packed, report.kept) == (17, 0)
    single = {key for key in seen if key.startswith("archive/") and not key.endswith(".zip")}
    assert single == {key for key in scenario.foreign if key.startswith("archive/")}


def test_the_command(inbox: Path) -> None:
    """Its report, for machines."""
    (inbox / "runs/20251021t1357Z_1.json").write_bytes(run_data(1))
    asyncagg("run", str(inbox))
    done = asyncagg("archive", "pack", str(inbox), "--json")
    report = json.loads(done.stdout)
    assert (report["packed"], report["deleted"], report["exit_code"]) == (1, 1, 0)
