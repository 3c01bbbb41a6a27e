"""Aggregates computed again from the archive: equal, or the differences are reported."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from testkit.hooked import HookedStore
from testkit.promises import final_bytes, of_memory
from testkit.scenario import AT, FORMATS, fill_memory, moment, prepared

from asyncagg.backfill import LocalEngine, recompute_all
from asyncagg.errors import TransientError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.verify.recompute import Recomputed, RecomputeReport

KEY = "aggregates/20251021t1400Z.json"


async def settled(archive_format: Any = "files") -> MemoryStore:
    """Return the scenario's store after an undisturbed run."""
    store = fill_memory(prepared().store)
    await run(store, Settings(archive_format=archive_format), at=AT)
    return store


async def recomputed(store: Store, *, write: bool = False, **more: Any) -> RecomputeReport:
    """Compute the scenario's aggregates again."""
    settings = Settings(**more)
    engine = LocalEngine(JobContext(store, settings))
    return await recompute_all(engine, settings, Interval(moment(13, 50), AT), write=write)


def of_key(report: RecomputeReport, key: str = KEY) -> Recomputed:
    """Return the result for one window."""
    return next(each for each in report.windows if each.aggregate_key == key)


def change(store: MemoryStore, key: str, old: bytes, new: bytes) -> None:
    """Change an object's content, under another etag."""
    found = store._objects[key]
    assert old in found.data
    file = msgspec.structs.replace(found.info.file, etag="changed")
    info = msgspec.structs.replace(found.info, file=file)
    store._objects[key] = type(found)(found.data.replace(old, new), info)


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("chunk_files", [1, 2, 20_000])
async def test_aggregates_that_are_right_are_left_alone(
    chunk_files: int, archive_format: str
) -> None:
    """Every file is found, also at its conflict key; nothing differs, nothing is written."""
    store = await settled(archive_format)
    before = of_memory(store)
    report = await recomputed(store, write=True, chunk_files=chunk_files)
    assert [each.failure for each in report.windows] == [""] * 4
    assert [each.differences for each in report.windows] == [{}] * 4
    assert report.exit_code == 0
    assert of_memory(store) == before


async def test_files_that_are_not_archived_yet_are_read_from_the_inbox() -> None:
    """A crash after the commit left them there."""
    store = await settled()
    for key in [key for key in store._objects if key.startswith("archive/c0")]:
        store._objects[key.replace("archive/", "runs/")] = store._objects.pop(key)
    report = await recomputed(store)
    assert report.exit_code == 0


async def test_a_copy_with_another_etag_is_the_file_if_the_sizes_match() -> None:
    """The copy of a multipart upload has another etag."""
    store = await settled()
    change(store, "archive/c01.json", b"run-5", b"run-5")
    assert (await recomputed(store)).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (b'"total_errors":', b'"total_errors":1', {"total_errors"}),
        (b'"p50":', b'"p50":1', {"processing_time"}),
        (b'{"run_id":"run-5"', b'{"run_id":"run-6"', {"run_summaries"}),
        (b'"title":"Match 13/0"', b'"title":"Match 13/1"', {"top_matches"}),
    ],
)
async def test_differences_are_reported_and_written_only_on_request(
    old: bytes, new: bytes, names: set[str]
) -> None:
    """The correct aggregate replaces the other, by its etag, with the next revision."""
    store = await settled()
    key = "aggregates/20251021t1405Z.json" if b"Match" in old else KEY
    change(store, key, old, new)
    before = of_memory(store)
    report = await recomputed(store)
    assert set(of_key(report, key).differences) == names
    assert report.exit_code == 3
    assert of_memory(store) == before

    report = await recomputed(store, write=True)
    assert of_key(report, key).written
    assert report.exit_code == 0
    assert final_bytes(of_memory(store)) == prepared().expected
    assert json.loads(store._objects[key].data)["revision"] == 2
    assert (await recomputed(store)).windows[0].differences == {}


async def test_nothing_is_written_if_a_file_is_missing() -> None:
    """The aggregate may be all that is left of the file: it is kept, and the file reported."""
    store = await settled()
    change(store, KEY, b'"total_errors":', b'"total_errors":1')
    del store._objects["archive/c01.json"]
    before = of_memory(store)
    report = await recomputed(store, write=True)
    assert of_key(report).missing == ["runs/c01.json"]
    assert of_key(report).failure == "1 of its files could not be read"
    assert report.exit_code == 1
    assert of_memory(store) == before


async def test_a_file_that_is_invalid_now_is_not_moved() -> None:
    """With a lower limit than when it was counted, it is reported as unreadable."""
    store = await settled()
    before = of_memory(store)
    report = await recomputed(store, write=True, max_file_bytes=10)
    assert all(each.failure for each in report.windows)
    assert of_memory(store) == before


async def test_a_damaged_aggregate_fails_its_window_only() -> None:
    """The others are computed again."""
    store = await settled()
    await store.put(KEY, b"{}")
    report = await recomputed(store)
    assert [bool(each.failure) for each in report.windows] == [False, True, False, False]


@pytest.mark.parametrize("operation", ["get", "stream", "put"])
async def test_a_store_failure_fails_a_window(operation: str) -> None:
    """It is reported; the aggregate stays as it is."""
    store = await settled()
    change(store, KEY, b'"total_errors":', b'"total_errors":1')
    before = of_memory(store)

    async def trouble(asked: str, _key: str, when: str) -> None:
        if asked == operation and when == "before":
            raise TransientError("slow down", operation=asked)

    report = await recomputed(HookedStore(store, trouble), write=True)
    assert of_key(report).failure
    assert report.exit_code == (3 if operation == "put" else 1)
    assert of_memory(store) == before


async def test_an_aggregate_that_is_committed_meanwhile_is_not_overwritten() -> None:
    """Another runner wrote the aggregate between read and write: its version is kept."""
    store = await settled()
    change(store, KEY, b'"total_errors":', b'"total_errors":1')

    async def race(asked: str, key: str, when: str) -> None:
        if asked == "put" and key == KEY and when == "before":
            await store.put(KEY, b"theirs")

    report = await recomputed(HookedStore(store, race), write=True)
    assert of_key(report).failure == "another runner committed it in the meantime: run it again"
    assert store._objects[KEY].data == b"theirs"


def pack_of(store: MemoryStore, key: str = KEY) -> str:
    """Return the key of the one pack of an aggregate."""
    (pack,) = json.loads(store._objects[key].data)["packs"]
    return str(pack["key"])


async def test_an_aggregate_is_corrected_from_its_packs() -> None:
    """Its rows still say where its files are."""
    store = await settled("packs")
    before = json.loads(store._objects[KEY].data)
    total = before["total_opportunities"]
    change(store, KEY, b'"total_opportunities":%d' % total, b'"total_opportunities":1')
    report = await recomputed(store, write=True)
    assert of_key(report).written
    after = json.loads(store._objects[KEY].data)
    for name in ("total_opportunities", "source_files", "packs"):
        assert after[name] == before[name]


@pytest.mark.parametrize("harm", ["gone", "altered"])
async def test_files_of_a_pack_that_is_gone_or_altered_are_lost(harm: str) -> None:
    """The aggregate is not changed."""
    store = await settled("packs")
    pack = pack_of(store)
    files = json.loads(store._objects[KEY].data)["files"]["counted"]
    if harm == "gone":
        del store._objects[pack]
    else:
        change(store, pack, b'"run_id"', b'"run_ID"')
    report = await recomputed(store, write=True)
    found = of_key(report)
    assert (found.lost, found.written) == (files, False)
    assert report.exit_code == 1


async def test_files_of_a_lost_pack_are_read_from_the_inbox_if_they_are_there() -> None:
    """A run that stopped after its commit has left them."""
    store = await settled("packs")
    for key, each in prepared().store._objects.items():
        store._objects.setdefault(key, each)
    del store._objects[pack_of(store)]
    found = of_key(await recomputed(store))
    assert (found.lost, found.differences) == (0, {})
