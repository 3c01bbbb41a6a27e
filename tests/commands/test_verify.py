"""Verification: an intact store has no findings; each kind of damage gives its finding only."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import anyio.lowlevel
import msgspec
import pytest
from testkit.hooked import HookedStore, Stopped
from testkit.layouts import FILES as LAYOUT_FILES
from testkit.layouts import LAYOUTS, settings_of
from testkit.promises import Places, final_bytes, of_memory
from testkit.scenario import AT, Clock, fill_memory, moment, run_data
from testkit.stores import STORES

import asyncagg.store.memory as memory_store
from asyncagg.errors import TransientError
from asyncagg.job.context import JobContext
from asyncagg.job.layout import Layout
from asyncagg.job.pipeline import run
from asyncagg.model import Interval, RunFile
from asyncagg.quarantine.restore import Restorer
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.verify.findings import MAX_EXAMPLES, FindingKind, VerifyReport
from asyncagg.verify.repair import repair

SETTINGS = Settings(window_by="name", concurrency=8)
LATER = datetime.now(UTC) + timedelta(hours=1)
KEY = "aggregates/20251021t1400Z.json"
OTHER = "aggregates/20251021t1405Z.json"
FIRST, LAST = "20251021t1356Z_a.json", "20251021t1357Z_f.json"

FILES = {
    **{f"runs/20251021t135{6 + n % 2}Z_{'abcdef'[n]}.json": run_data(n) for n in range(6)},
    **{f"runs/20251021t140{n}Z_g.json": run_data(10 + n) for n in range(5)},
    "runs/20251021t1357Z_bad.json": b"{not json",
    "runs/20251021t1402Z ünï+%.json": run_data(20),
}

Break = Callable[[Store], Awaitable[object]]


async def fill(store: Store) -> None:
    """Put files into the inbox and settle them; one is overwritten and counted again."""
    for key, data in FILES.items():
        await store.put(key, data)
    await run(store, SETTINGS, at=LATER)
    await store.put(f"runs/{FIRST}", run_data(30))
    await run(store, SETTINGS, at=LATER)
    await store.put("runs/29991021t1400Z_waits.json", run_data(31))


@asynccontextmanager
async def intact(kind: str, folder: Path) -> AsyncIterator[Store]:
    """Open an intact store of a kind."""
    async with STORES[kind](folder) as store:
        await fill(store)
        yield store


async def intact_memory(clock: Clock | None = None) -> MemoryStore:
    """Return an intact store in memory."""
    store = MemoryStore(clock or Clock())
    await fill(store)
    return store


async def verified(store: Store, **more: Any) -> VerifyReport:
    """Verify everything."""
    return await verify(JobContext(store, msgspec.structs.replace(SETTINGS, **more)))


async def data_of(store: Store, key: str) -> bytes:
    """Return an object's content."""
    return (await store.get(key)).data


async def drop(store: Store, key: str) -> None:
    """Delete an object."""
    await store.delete([(await store.head(key)).file])


async def change(store: Store, key: str, old: bytes, new: bytes) -> None:
    """Replace a part of an object."""
    data = await data_of(store, key)
    assert old in data
    await store.put(key, data.replace(old, new, 1))


async def leave_in_inbox(store: Store) -> None:
    """Count a late file, but fail to move it."""

    async def trouble(operation: str, key: str, when: str) -> None:
        late = key.startswith("runs/20251021t1403Z_late")
        if operation in {"copy", "delete"} and late and when == "before":
            raise TransientError("slow down", operation=operation, key=key)

    await store.put("runs/20251021t1403Z_late.json", run_data(40))
    await run(HookedStore(store, trouble), SETTINGS, at=LATER)


async def leave_in_quarantine(store: Store) -> None:
    """Quarantine a file, but only copy it."""

    async def trouble(operation: str, key: str, when: str) -> None:
        if operation == "delete" and "invalid" in key and when == "before":
            raise TransientError("slow down", operation=operation, key=key)

    await store.put("runs/20251021t1403Z_invalid.json", b"[]")
    await run(HookedStore(store, trouble), SETTINGS, at=LATER)


async def count_twice(store: Store) -> None:
    """Write an aggregate again, as that of another window."""
    data = await data_of(store, KEY)
    for old, new in (("1400", "1300"), ("T13:55", "T12:55"), ("T14:00", "T13:00")):
        head, mark, rest = data.partition(b'"revision"')
        data = head.replace(old.encode(), new.encode()) + mark + rest
    await store.put("aggregates/20251021t1300Z.json", data)


async def truncate(store: Store) -> None:
    """Cut off an aggregate in the middle of its rows."""
    data = await data_of(store, KEY)
    await store.put(KEY, data[: data.index(b'"source_files"') + 300])


async def lose_head(store: Store) -> None:
    """Overwrite the start of an aggregate."""
    data = await data_of(store, KEY)
    await store.put(KEY, b"\0" * 700 + data[700:])


async def drop_conflict(store: Store) -> None:
    """Delete the version of a file whose archive key was taken."""
    async for page in store.list_pages("archive/20251021t1356Z_a."):
        await store.delete([file for file in page if file.key != f"archive/{FIRST}"])


BREAKS: dict[str, tuple[Break, FindingKind, int]] = {
    "stray in the archive": (
        lambda store: store.put("archive/stray.json", run_data(50)),
        FindingKind.UNCOUNTED,
        1,
    ),
    "gone from the archive": (
        lambda store: drop(store, f"archive/{LAST}"),
        FindingKind.MISSING,
        1,
    ),
    "gone from its conflict key": (
        drop_conflict,
        FindingKind.MISSING,
        1,
    ),
    "counted twice": (count_twice, FindingKind.COUNTED_TWICE, 7),
    "the same key again": (
        lambda store: store.put(f"runs/{LAST}", run_data(51)),
        FindingKind.CONFLICT,
        1,
    ),
    "not archived": (leave_in_inbox, FindingKind.UNFINISHED, 1),
    "not deleted": (leave_in_quarantine, FindingKind.UNFINISHED, 1),
    "stray in quarantine": (
        lambda store: store.put("quarantine/stray.json", b"["),
        FindingKind.WITHOUT_ENTRY,
        1,
    ),
    "gone from quarantine": (
        lambda store: drop(store, "quarantine/20251021t1357Z_bad.json"),
        FindingKind.ORPHAN_ENTRY,
        1,
    ),
    "another sum": (
        lambda store: change(store, KEY, b'"total_errors":', b'"total_errors":1'),
        FindingKind.DIFFERENT,
        1,
    ),
    "another quantile": (
        lambda store: change(store, KEY, b'"p50":', b'"p50":1'),
        FindingKind.DIFFERENT,
        1,
    ),
    "another row": (
        lambda store: change(store, KEY, b'{"run_id":"run-5"', b'{"run_id":"run-6"'),
        FindingKind.DIFFERENT,
        1,
    ),
    "another match": (
        lambda store: change(store, KEY, b'"title":"Match', b'"title":"Other'),
        FindingKind.DIFFERENT,
        1,
    ),
    "other numbers in the archive": (
        lambda store: change(
            store, f"archive/{LAST}", b'"total_opportunities": 4', b'"total_opportunities": 5'
        ),
        FindingKind.DIFFERENT,
        1,
    ),
    "no valid run file in the archive": (
        lambda store: change(store, f"archive/{LAST}", b"{", b"["),
        FindingKind.DIFFERENT,
        1,
    ),
    "truncated": (truncate, FindingKind.DAMAGED, 1),
    "without a head": (lose_head, FindingKind.DAMAGED, 1),
    "empty": (lambda store: store.put(KEY, b""), FindingKind.DAMAGED, 1),
    "something else": (lambda store: store.put(KEY, b'{"mine": 1}'), FindingKind.DAMAGED, 1),
    "an odd name": (
        lambda store: store.put("aggregates/20251021t1401Z.json", b"{}"),
        FindingKind.DAMAGED,
        1,
    ),
}

REPAIRABLE = (
    "not archived",
    "not deleted",
    "another sum",
    "another quantile",
    "another row",
    "another match",
    "truncated",
    "without a head",
    "empty",
)
"""What --repair restores exactly."""


@pytest.mark.parametrize("kind", [*STORES])
async def test_an_intact_store_has_no_findings(kind: str, tmp_path: Path) -> None:
    """Nothing is found or planned, and everything was checked."""
    async with intact(kind, tmp_path) as store:
        report = await verified(store)
        assert report.found == {}
        assert report.exit_code == 0
        assert not report.plan
        assert not report.not_judged
        assert report.counts.files == report.counts.archived == 13
        assert (report.counts.aggregates, report.counts.quarantined) == (2, 1)
        assert report.counts.inbox == 1


@pytest.mark.parametrize("kind", ["memory", "directory", "s3-own-lean"])
@pytest.mark.parametrize("name", BREAKS)
async def test_each_damage_is_found_and_nothing_else(name: str, kind: str, tmp_path: Path) -> None:
    """Only the finding of its kind; a repair removes it if it is repairable."""
    breaks, finding, number = BREAKS[name]
    async with intact(kind, tmp_path) as store:
        await breaks(store)
        report = await verified(store)
        also = {FindingKind.MISPLACED: 7} if name == "counted twice" else {}
        assert report.found == {finding: number} | also
        assert report.exit_code == 1
        assert bool(report.plan) == report.repairable == (name in REPAIRABLE), report
        if name not in REPAIRABLE:
            return
        done = await repair(JobContext(store, SETTINGS), report)
        assert done.failures == {}
        assert done.after.found == {}
        assert done.exit_code == 0
        assert (await verified(store)).found == {}


@pytest.mark.parametrize("name", REPAIRABLE)
async def test_a_repair_gives_the_same_bytes(name: str) -> None:
    """A repaired aggregate has the bytes of an undisturbed run; no other object changes."""
    store = await intact_memory()
    if name.startswith("not "):
        await BREAKS[name][0](store)
        await run(store, SETTINGS, at=LATER)
    true = of_memory(store)
    await BREAKS[name][0](store)
    report = await verified(store)
    await repair(JobContext(store, SETTINGS), report)
    after = of_memory(store)
    assert final_bytes(after) == final_bytes(true)
    moved = {key for key in true if key.startswith(("runs/", "archive/", "quarantine/"))}
    assert {key: after[key].data for key in moved} == {key: true[key].data for key in moved}


@pytest.mark.parametrize("name", [name for name in BREAKS if name not in REPAIRABLE])
async def test_what_cannot_be_repaired_is_left_as_it_is(name: str) -> None:
    """A repair with an empty plan changes nothing."""
    store = await intact_memory()
    await BREAKS[name][0](store)
    before = of_memory(store)
    report = await verified(store)
    done = await repair(JobContext(store, SETTINGS), report)
    assert done.exit_code == 1
    assert of_memory(store) == before


async def test_lost_rows_are_not_guessed_by_last_modified() -> None:
    """The window of an archived file is unknown: the damaged aggregate stays, with the reason."""
    store = await intact_memory()
    await truncate(store)
    before = of_memory(store)
    report = await verified(store, window_by="last_modified")
    assert report.found.keys() == {FindingKind.DAMAGED, FindingKind.MISPLACED}
    assert not report.plan
    (example,) = report.findings[FindingKind.DAMAGED].examples
    assert example.detail.startswith("its parts are not where they belong; it cannot be rebuilt")
    assert "it had 7 counted files, of which" in example.detail
    assert set(report.not_judged) == {
        FindingKind.UNNAMED_PACK,
        FindingKind.UNCOUNTED,
        FindingKind.CONFLICT,
        FindingKind.WITHOUT_ENTRY,
        FindingKind.ORPHAN_ENTRY,
    }
    assert of_memory(store) == before


async def test_by_last_modified_readable_rows_are_enough() -> None:
    """Damage without a lost row is repaired, and hides no other finding."""
    store = await intact_memory()
    await change(store, KEY, b'"run_summaries":[', b'"run_summariez":[')
    await store.put("archive/stray.json", run_data(50))
    settings = Settings(concurrency=8, window_by="last_modified")
    report = await verify(JobContext(store, settings))
    misplaced = {FindingKind.MISPLACED: 6}
    assert report.found == {FindingKind.DAMAGED: 1, FindingKind.UNCOUNTED: 1} | misplaced
    assert report.plan.rebuild == ["20251021t1400Z"]
    done = await repair(JobContext(store, settings), report)
    assert done.rebuilt == ["20251021t1400Z"]
    assert done.after.found.keys() == {FindingKind.UNCOUNTED, FindingKind.MISPLACED}
    assert done.exit_code == 1


async def test_a_name_far_ahead_does_not_determine_the_window() -> None:
    """Its time decided, and its copy has another time: it is assigned to no aggregate."""
    clock = Clock(moment(13, 57))
    store = MemoryStore(clock)
    await store.put("runs/20991021t1400Z_ahead.json", run_data(1))
    await store.put("runs/20251021t1407Z_b.json", run_data(2))
    clock.now = moment(14, 8)  # when the copies are made
    await run(store, SETTINGS, at=AT)
    true = final_bytes(of_memory(store))
    aggregates = sorted(true)
    assert [key[-10:-5] for key in aggregates] == ["1400Z", "1410Z"]
    for key in aggregates:
        await store.put(key, b"")
    report = await verified(store)
    assert report.found == {FindingKind.DAMAGED: 2}
    assert not report.plan
    detail = report.findings[FindingKind.DAMAGED].examples[1].detail
    assert "no aggregate names 1 files" in detail


async def test_an_aggregate_of_another_window_is_not_replaced() -> None:
    """A copy under another key is left alone."""
    store = await intact_memory()
    await store.put(OTHER, await data_of(store, KEY))
    report = await verified(store)
    assert report.found == {FindingKind.DAMAGED: 1}
    assert not report.plan
    assert (
        "nothing shows that asyncagg wrote it"
        in report.findings[FindingKind.DAMAGED].examples[0].detail
    )


async def test_a_match_that_looks_like_a_row_is_not_read_as_one() -> None:
    """A hostile match in the top 10 of a damaged aggregate adds no file."""
    store = MemoryStore(Clock())
    row = {"key": "runs/x.json", "timestamp": "", "size": 1, "etag": "e"}
    match = row | {"last_modified": "2025-10-21T13:57:00Z", "match_score": 5}
    del match["match_score"]
    await store.put("runs/20251021t1357Z_m.json", run_data(1, top_matches=[match]))
    await run(store, SETTINGS, at=LATER)
    true = final_bytes(of_memory(store))
    await change(store, KEY, b'"revision":1', b'"revision":"')
    report = await verified(store)
    assert report.plan.rebuild == ["20251021t1400Z"]
    assert (await repair(JobContext(store, SETTINGS), report)).exit_code == 0
    assert final_bytes(of_memory(store)) == true


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"size":', b'"size":1111111111111111111111111'),
        (b'"size":', b'"size":-'),
        (b'"last_modified":"2025-10-21T14:10:00+00:00"', b'"last_modified":"2025-10-21T14:10:00"'),
        (b'"last_modified":"', b'"last_modified":"yesterday '),
        (b'"etag":"', b'"etag":7,"was":"'),
        (b'"moved_to":"', b'"moved_to":7,"was":"'),
        (b'"reason":"', b'"raisin":"'),
    ],
)
async def test_an_invalid_row_is_damage(old: bytes, new: bytes) -> None:
    """Any invalid value is one finding; the file's name determines its window."""
    store = await intact_memory()
    true = final_bytes(of_memory(store))
    await change(store, KEY, old, new)
    report = await verified(store)
    assert report.found == {FindingKind.DAMAGED: 1}
    assert (await repair(JobContext(store, SETTINGS), report)).exit_code == 0
    assert final_bytes(of_memory(store)) == true


async def test_an_interval_checks_only_what_it_can() -> None:
    """Other windows are not read; checks that need them are reported as not made."""
    store = await intact_memory()
    for name in ("stray in the archive", "stray in quarantine", "another sum"):
        await BREAKS[name][0](store)
    context = JobContext(store, SETTINGS)
    here = Interval(moment(13, 55), moment(14, 0)).holds
    there = Interval(moment(14, 0), moment(14, 5)).holds
    report = await verify(context, wanted=here)
    assert report.found == {FindingKind.DIFFERENT: 1}
    assert set(report.not_judged) == {
        FindingKind.UNNAMED_PACK,
        FindingKind.BROKEN_PACK,
        FindingKind.UNCOUNTED,
        FindingKind.CONFLICT,
        FindingKind.WITHOUT_ENTRY,
        FindingKind.ORPHAN_ENTRY,
    }
    assert "without an interval" in report.not_judged[FindingKind.UNCOUNTED]
    assert (await verify(context, wanted=there)).found == {}
    done = await repair(context, report, wanted=here)
    assert done.exit_code == 0
    assert done.rewritten == ["20251021t1400Z"]


async def test_a_fixed_file_in_the_inbox_is_not_missing() -> None:
    """Its entry stays in the old aggregate; the file is in the inbox, and then counted."""
    store = await intact_memory()
    await drop(store, "quarantine/20251021t1357Z_bad.json")
    await store.put("runs/20251021t1357Z_bad.json", run_data(60))
    assert (await verified(store)).found == {}
    await run(store, SETTINGS, at=LATER)
    assert (await verified(store)).found == {}


@pytest.mark.parametrize("data", [run_data(60), b"[invalid again]"])
async def test_a_restored_file_is_not_missing(data: bytes) -> None:
    """`asyncagg quarantine retry` restores it under another key, which no entry names."""
    store = await intact_memory()
    await store.put("quarantine/20251021t1357Z_bad.json", data)
    outcome = await Restorer(JobContext(store, SETTINGS), force=True).restore(
        "quarantine/20251021t1357Z_bad.json"
    )
    assert outcome.status == "put_back"
    assert (await verified(store)).found == {}
    await run(store, SETTINGS, at=LATER)
    assert (await verified(store)).found == {}


async def test_a_quarantined_file_that_arrives_again_in_a_later_window_is_a_new_file() -> None:
    """With `last_modified` the next run may count it, so a repair does not delete it."""
    clock = Clock(moment(13, 57))
    store = MemoryStore(clock)
    settings = Settings(concurrency=8)
    await store.put("runs/a.json", run_data(1))
    await run(store, msgspec.structs.replace(settings, max_file_bytes=5), at=moment(14, 0))
    clock.now = moment(14, 7)
    await store.put("runs/a.json", run_data(1))
    context = JobContext(store, settings)
    report = await verify(context)
    assert report.found == {}
    await repair(context, report)
    assert (await run(store, settings, at=moment(14, 10))).total.counted == 1


async def test_an_aggregate_is_not_replaced_if_only_sizes_could_be_compared() -> None:
    """A copy with another etag may have other content: reported, and left."""
    store = await intact_memory()
    found = store._objects[f"archive/{LAST}"]
    file = msgspec.structs.replace(found.info.file, etag="other")
    info = msgspec.structs.replace(found.info, file=file)
    store._objects[f"archive/{LAST}"] = type(found)(found.data, info)
    assert (await verified(store)).found == {}
    await change(store, KEY, b'"total_errors":', b'"total_errors":1')
    report = await verified(store)
    assert report.found == {FindingKind.DIFFERENT: 1}
    assert not report.plan
    assert (
        "only the size of 1 of its files"
        in report.findings[FindingKind.DIFFERENT].examples[0].detail
    )


@pytest.mark.parametrize("name", ["another sum", "truncated"])
async def test_a_commit_between_plan_and_repair_is_not_overwritten(name: str) -> None:
    """The write is conditional: the other commit is kept, and the failure reported."""
    store = await intact_memory()
    await BREAKS[name][0](store)
    report = await verified(store)

    async def race(operation: str, key: str, when: str) -> None:
        if operation == "put" and key == KEY and when == "before":
            await store.put(KEY, b"theirs")

    done = await repair(JobContext(HookedStore(store, race), SETTINGS), report)
    assert done.failures == {
        "20251021t1400Z": "another runner committed it in the meantime: verify again"
    }
    assert done.exit_code == 1
    assert await data_of(store, KEY) == b"theirs"


async def test_a_store_failure_is_no_finding_of_another_kind() -> None:
    """A file that cannot be fetched is not missing, and its aggregate is not different."""
    store = await intact_memory()

    async def trouble(operation: str, key: str, when: str) -> None:
        if operation == "get" and key == f"archive/{LAST}" and when == "before":
            raise TransientError("slow down", operation=operation, key=key)

    report = await verify(JobContext(HookedStore(store, trouble), SETTINGS))
    assert report.found == {FindingKind.UNREAD: 1}
    assert report.exit_code == 3


@pytest.mark.parametrize("name", ["another sum", "something else", "gone from the archive"])
async def test_an_aggregate_that_is_moved_away_meanwhile_is_no_finding(name: str) -> None:
    """Its suspects are checked again: it is gone, and its files are not checked."""
    store = await intact_memory()
    await BREAKS[name][0](store)

    async def move_away(operation: str, key: str, when: str) -> None:
        if operation == "list" and key == "runs/" and when == "before" and KEY in store._objects:
            del store._objects[KEY]

    report = await verify(JobContext(HookedStore(store, move_away), SETTINGS))
    assert (
        not {FindingKind.DIFFERENT, FindingKind.DAMAGED, FindingKind.MISSING} & report.found.keys()
    )


async def test_an_empty_store_has_no_findings() -> None:
    """No objects, no findings; the report says that there was nothing to verify."""
    report = await verified(MemoryStore())
    assert (report.exit_code, report.empty) == (0, True)


async def test_ignored_objects_are_named() -> None:
    """They are no finding, but nobody else says that they are never read."""
    store = await intact_memory()
    for name in ("a.jsonl", "b.ndjson", "c.JSON", "folder/"):
        await store.put(f"runs/{name}", b"")
    report = await verified(store)
    assert [each.key for each in report.ignored.examples] == ["runs/a.jsonl", "runs/b.ndjson"]
    assert (report.found, report.ignored.count) == ({}, 2)


async def test_a_file_in_the_wrong_window_is_a_finding() -> None:
    """Its time is not in the window of the aggregate that counts it."""
    store = MemoryStore(Clock())
    await store.put(f"runs/{FIRST}", run_data(1))
    await run(store, Settings(window_by="last_modified"), at=LATER)
    report = await verified(store)
    assert report.found == {FindingKind.MISPLACED: 1}
    assert "its time is in 20251021t1400Z" in report.findings[FindingKind.MISPLACED].examples[0][1]


async def test_a_file_that_is_deferred_for_long_is_a_finding() -> None:
    """It waits although its window was settled; a file that has just arrived is none."""
    clock = Clock()
    store = await intact_memory(clock)
    await store.put("runs/20251021t1403Z_stuck.json", run_data(60))
    clock.now += timedelta(minutes=29)
    await store.put("runs/20251021t1403Z_late.json", run_data(61))
    assert (await verified(store)).found == {}
    clock.now += timedelta(minutes=1)
    await store.put("runs/29991021t1401Z_new.json", run_data(62))
    report = await verified(store)
    assert report.found == {FindingKind.WAITING: 1}
    (example,) = report.findings[FindingKind.WAITING].examples
    assert example.key == "runs/20251021t1403Z_stuck.json"
    assert report.exit_code == 1


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("chunk", [3, 20_000])
async def test_a_run_stopped_anywhere_leaves_nothing_but_unfinished_moves(
    chunk: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash at any request, a repair finishes the moves."""
    if chunk == 3:
        monkeypatch.setattr(memory_store, "_PAGE", chunk)
    template = MemoryStore(Clock())
    for number, (key, data) in enumerate(FILES.items()):
        await template.put(key, data)
        if number == 3:
            await run(template, SETTINGS, at=LATER)
    settings = msgspec.structs.replace(SETTINGS, chunk_files=chunk, concurrency=3)
    unfinished = 0
    for number in count(1):
        store = fill_memory(template)
        stopped = Stopped(store, number, when)
        stopped.task = asyncio.create_task(run(stopped.store, settings, at=LATER))
        await asyncio.wait([stopped.task])
        if not stopped.step:
            await stopped.task
            break
        report = await verified(store)
        assert set(report.found) <= {FindingKind.UNFINISHED}, (stopped.step, report.findings)
        if report.plan:
            unfinished += 1
            done = await repair(JobContext(store, SETTINGS), report)
            assert done.exit_code == 0, stopped.step
            assert (await verified(store)).found == {}, stopped.step
    assert number > 25
    assert unfinished > 5


@pytest.mark.parametrize("seed", range(12))
async def test_concurrent_runs_give_no_false_findings(seed: int) -> None:
    """While files arrive, are settled and moved, only unfinished moves are found."""
    store = await intact_memory()
    dice = random.Random(seed)

    async def pause(_operation: str, _key: str, _when: str) -> None:
        for _ in range(dice.choice((0, 0, 1, 2, 5))):
            await anyio.lowlevel.checkpoint()

    async def produce() -> None:
        for number in range(40):
            data = b"[" if number % 5 == 0 else run_data(100 + number)
            await store.put(f"runs/20251021t14{number % 20:02d}Z_{seed}-{number}.json", data)
            for _ in range(dice.choice((1, 5, 20))):
                await anyio.lowlevel.checkpoint()

    async def settle() -> None:
        for _ in range(4):
            await run(HookedStore(store, pause), SETTINGS, at=LATER)

    context = JobContext(HookedStore(store, pause), SETTINGS)
    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        group.start_soon(settle)
        for _ in range(3):
            report = await verify(context)
            assert set(report.found) <= {FindingKind.UNFINISHED}, report.findings
    await run(store, SETTINGS, at=LATER)
    assert (await verified(store)).found == {}


async def test_many_findings_take_bounded_memory() -> None:
    """20,000 stray files are counted exactly; a few are examples, and few are in memory."""
    store = MemoryStore(Clock())
    await store.put("archive/template", b"{}")
    template = store._objects.pop("archive/template")
    for number in range(20_000):
        key = f"archive/{number:08d}.json"
        file = RunFile(key, 2, template.etag, AT)
        info = msgspec.structs.replace(template.info, file=file)
        store._objects[key] = type(template)(template.data, info)
    tracemalloc.start()
    try:
        report = await verified(store)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.found == {FindingKind.UNCOUNTED: 20_000}
    assert len(report.findings[FindingKind.UNCOUNTED].examples) == MAX_EXAMPLES
    assert peak < 4_000_000


async def test_a_time_limit_ends_it_and_is_reported() -> None:
    """The report says that it is not complete."""
    store = await intact_memory()

    async def hang(operation: str, _key: str, _when: str) -> None:
        if operation == "stream":
            await anyio.sleep_forever()

    settings = msgspec.structs.replace(SETTINGS, max_seconds=1)
    with anyio.fail_after(60):
        report = await verify(JobContext(HookedStore(store, hang), settings))
    assert not report.complete
    assert report.exit_code == 1


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
async def test_every_layout_of_the_prefixes(places: Places) -> None:
    """With any nesting, a settled store has no findings, and a stray file is found."""
    store = MemoryStore(Clock())
    settings = settings_of(places)
    for name, (data, _) in LAYOUT_FILES.items():
        await store.put(places.runs + name, data)
    await run(store, settings, at=LATER)
    assert (await verify(JobContext(store, settings))).found == {}
    await store.put(f"{places.archive}stray.json", run_data(1))
    await store.put(f"{places.quarantine}stray.json", run_data(2))
    found = (await verify(JobContext(store, settings))).found
    assert found == {FindingKind.UNCOUNTED: 1, FindingKind.WITHOUT_ENTRY: 1}


HOSTILE = (
    "a\nb",
    'quote"and\\backslash',
    "[red]markup[/red]",
    "\0nul",
    "'); DROP TABLE counted; --",
    "\u2028 日本語 🎉",
    "x" * 980,
    "20251021t1357Z_" + "é" * 480,
)


async def test_hostile_names() -> None:
    """Keys with line breaks, markup or SQL, and the longest keys, are like any other."""
    store = MemoryStore(Clock())
    for number, name in enumerate(HOSTILE):
        await store.put(f"runs/{name}.json", run_data(number))
        await store.put(f"runs/{name}-bad.json", b"[")
    await run(store, SETTINGS, at=LATER)
    report = await verified(store)
    assert report.found == {}
    assert report.counts.files == report.counts.quarantined == len(HOSTILE)
    for name in HOSTILE:
        await drop(store, Layout(SETTINGS).archive_key(f"runs/{name}.json"))
    assert (await verified(store)).found == {FindingKind.MISSING: len(HOSTILE)}


@pytest.mark.parametrize("name", ["not archived", "not deleted", "another sum", "truncated"])
async def test_a_repair_stopped_anywhere_can_be_done_again(name: str) -> None:
    """Cancelled at any request, nothing is lost; the next repair completes."""
    template = await intact_memory()
    await BREAKS[name][0](template)
    report = await verified(template)
    for number in count(1):
        store = fill_memory(template)
        stopped = Stopped(store, number, "before")
        context = JobContext(stopped.store, SETTINGS)
        stopped.task = asyncio.create_task(repair(context, report))
        await asyncio.wait([stopped.task])
        if not stopped.step:
            break
        left = await verified(store)
        assert left.found.keys() <= report.found.keys(), stopped.step
        done = await repair(JobContext(store, SETTINGS), left)
        assert done.exit_code == 0, stopped.step
    assert number > 10


# ------------------------------------------------------------------------------ packs

PACKED = msgspec.structs.replace(SETTINGS, archive_format="packs")


async def packed_memory() -> tuple[MemoryStore, str]:
    """Return a store in memory whose files are in packs, and the key of the pack of `KEY`."""
    store = MemoryStore(Clock(AT))
    for key, data in FILES.items():
        await store.put(key, data)
    await run(store, PACKED, at=LATER)
    (pack,) = (key for key in store._objects if key.startswith("archive/packs/20251021t1400Z/"))
    return store, pack


async def test_packs_that_are_intact_have_no_findings() -> None:
    """Every file is read from its pack."""
    store, _ = await packed_memory()
    report = await verified(store)
    assert (report.found, report.not_judged, report.counts.files) == ({}, {}, 12)


@pytest.mark.parametrize("harm", ["gone", "truncated", "altered"])
async def test_a_pack_that_is_gone_truncated_or_altered_is_found(harm: str) -> None:
    """Its files are missing, or cannot be read; nothing is repaired."""
    store, pack = await packed_memory()
    data = store._objects[pack].data
    if harm == "gone":
        del store._objects[pack]
        expected = {FindingKind.BROKEN_PACK: 1, FindingKind.MISSING: 6}
    elif harm == "truncated":
        await store.put(pack, data[:-100])
        expected = {FindingKind.BROKEN_PACK: 1, FindingKind.UNREAD: 1}
    else:
        await store.put(pack, data.replace(b'"run-3"', b'"run-X"'))
        expected = {FindingKind.MISSING: 1}
    report = await verified(store)
    assert report.found == expected
    assert report.exit_code == 1
    assert not report.plan


async def test_an_unnamed_pack_is_removed_after_a_day_if_its_files_are_counted() -> None:
    """A younger one may be of a commit that is under way."""
    store, pack = await packed_memory()
    stray = pack.replace(".zip", "0.zip")
    await store.put(stray, store._objects[pack].data)
    assert (await verified(store)).found == {}
    store._clock = Clock(AT + timedelta(days=2))
    await store.put("archive/.later", b"")
    report = await verified(store)
    assert (report.found, report.plan.packs) == ({FindingKind.UNNAMED_PACK: 1}, 1)
    done = await repair(JobContext(store, PACKED), report)
    assert (done.removed, done.exit_code) == (1, 0)
    assert stray not in store._objects
    assert (await verified(store)).found == {}


@pytest.mark.parametrize("again", [False, True])
async def test_a_pack_with_the_only_copy_is_never_removed(*, again: bool) -> None:
    """Its aggregate was moved away, and perhaps a late file has made a new one."""
    store, pack = await packed_memory()
    del store._objects[KEY]
    store._clock = Clock(AT + timedelta(days=2))
    await store.put("runs/20251021t1357Z_late.json", run_data(50))
    if again:
        await run(store, PACKED, at=LATER)
    report = await verified(store)
    assert report.found[FindingKind.UNNAMED_PACK] == 1
    assert report.plan.packs == 0
    await repair(JobContext(store, PACKED), report)
    assert pack in store._objects


@pytest.mark.parametrize("harm", [truncate, lose_head])
async def test_a_damaged_aggregate_is_rebuilt_from_its_packs(harm: Break) -> None:
    """To the byte: its rows, or else the directories of the packs, name the files."""
    store, _ = await packed_memory()
    true = of_memory(store)
    await harm(store)
    report = await verified(store)
    assert report.plan.rebuild == ["20251021t1400Z"]
    done = await repair(JobContext(store, PACKED), report)
    assert (done.failures, done.exit_code) == ({}, 0)
    assert final_bytes(of_memory(store)) == final_bytes(true)
    assert (await verified(store)).found == {}


@pytest.mark.parametrize("harm", ["", "gone", "truncated", "altered"])
async def test_a_counted_file_in_the_inbox_is_deleted_only_if_its_pack_has_it(harm: str) -> None:
    """Then it is not copied; else it gets a copy of its own."""
    store, pack = await packed_memory()
    (key,) = (key for key, data in FILES.items() if b'"run-3"' in data)
    clock = store._clock
    store._clock = Clock(AT)
    await store.put(key, FILES[key])
    store._clock = clock
    data = store._objects[pack].data
    if harm == "gone":
        del store._objects[pack]
    elif harm:
        await store.put(pack, data[:-900] if harm == "truncated" else data.replace(b"run-3", b"X"))
    await repair(JobContext(store, PACKED), await verified(store))
    assert key not in store._objects
    copy = store._objects.get(key.replace("runs/", "archive/"))
    assert (copy.data if copy else None) == (FILES[key] if harm else None)


async def test_a_pack_that_a_partial_aggregate_names_is_kept() -> None:
    """A backfill that was stopped will commit it, or another run has counted its files."""
    store, pack = await packed_memory()
    stray = pack.replace(".zip", "0.zip")
    await store.put(stray, store._objects[pack].data)
    part = store._objects[KEY].data.replace(pack.encode(), stray.encode())
    await store.put("work/20251021t1400Z/0123.json", part)
    store._clock = Clock(AT + timedelta(days=2))
    await store.put("archive/.later", b"")
    for content in (part, b"damaged"):
        await store.put("work/20251021t1400Z/0123.json", content)
        report = await verified(store)
        assert (report.found, report.plan.packs) == ({}, 0)
    del store._objects["work/20251021t1400Z/0123.json"]
    assert (await verified(store)).plan.packs == 1


async def test_an_unnamed_pack_stays_while_a_file_is_missing() -> None:
    """It may have the only copy: the pack that the aggregate names is damaged."""
    store, pack = await packed_memory()
    await store.put(pack.replace(".zip", "0.zip"), store._objects[pack].data)
    await store.put(pack, store._objects[pack].data.replace(b'"run-3"', b'"run-X"'))
    store._clock = Clock(AT + timedelta(days=2))
    await store.put("archive/.later", b"")
    report = await verified(store)
    assert report.found == {FindingKind.MISSING: 1, FindingKind.UNNAMED_PACK: 1}
    assert report.plan.packs == 0
