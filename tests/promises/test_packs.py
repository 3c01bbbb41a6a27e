"""Packs: no commit, however it ends, loses a file in a pack or a pack that an aggregate names."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testkit.hooked import HookedStore
from testkit.promises import (
    Places,
    Snapshot,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
    originals_of,
)
from testkit.s3server import Faults, Request, S3Server
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

import asyncagg.job.archive as archive_module
import asyncagg.job.packing as packing_module
import asyncagg.store.s3.store as s3_store
from asyncagg.backfill import LocalEngine, backfill
from asyncagg.errors import PreconditionFailedError, TransientError
from asyncagg.job.context import JobContext
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.packs.writer import PackWriter
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore, whole
from asyncagg.store.protocol import Condition

PACKS = Settings(archive_format="packs", concurrency=4)
AGGREGATE = "aggregates/20251021t1400Z.json"


def check_done(seen: Snapshot) -> None:
    """Check every promise on the scenario, and its aggregates to the byte."""
    scenario = prepared()
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected


def check_now(seen: Snapshot) -> None:
    """Check promises 1 to 3 on the scenario."""
    check_at_any_moment(seen, prepared().originals, foreign=prepared().foreign)


def packs_in(seen: Snapshot) -> set[str]:
    """Return the keys of all packs."""
    return {key for key in seen if key.endswith(".zip")}


def named_in(seen: Snapshot) -> set[str]:
    """Return the keys of the packs that aggregates name."""
    documents = [json.loads(each.data) for key, each in seen.items() if Places().is_aggregate(key)]
    return {pack["key"] for document in documents for pack in document.get("packs", ())}


def at_commit(store: MemoryStore, when: str, act: Callable[[], Any]) -> HookedStore:
    """Return a store that acts once, before or after it executes the commit of one window."""
    acted: list[str] = []

    async def hook(operation: str, key: str, at: str) -> None:
        if (operation, key, at) == ("put", AGGREGATE, when) and not acted:
            acted.append(key)
            await act()

    return HookedStore(store, hook)


class LateCommits(MemoryStore):
    """A store where commits of one window arrive only after their sender has given up."""

    def __init__(self) -> None:
        super().__init__(Clock())
        self.on_the_way: list[Callable[[], Any]] = []
        self.holds = True

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """As `Store.put`, but a commit is held back."""
        data = await whole(body)
        write = partial(
            super().put,
            key,
            data,
            condition=condition,
            content_type=content_type,
            metadata=metadata,
        )
        if key == AGGREGATE and self.holds:
            self.on_the_way.append(write)
            raise TransientError("no answer", operation="put", key=key)
        return await write()


@pytest.fixture
def late() -> LateCommits:
    """The scenario in a store with late commits."""
    store = LateCommits()
    store._objects.update(prepared().store._objects)
    return store


@pytest.mark.parametrize("then", FORMATS)
async def test_a_commit_that_arrives_late_finds_its_pack(late: LateCommits, then: Any) -> None:
    """Its sender gave up, but the pack is there: nothing is lost, and the next run only deletes."""
    report = await run(late, PACKS, at=AT)
    assert report.total.deferred
    check_now(of_memory(late))
    late.holds = False
    (arrive,) = late.on_the_way
    await arrive()
    check_now(of_memory(late))
    again = await run(late, Settings(archive_format=then), at=AT)
    assert again.total.counted == 0
    check_done(of_memory(late))


async def test_a_commit_that_arrives_too_late_changes_nothing(late: LateCommits) -> None:
    """Another run has counted its files in the meantime: the pack stays, unnamed, for `verify`."""
    await run(late, PACKS, at=AT)
    late.holds = False
    await run(late, PACKS, at=AT)
    (arrive,) = late.on_the_way
    with pytest.raises(PreconditionFailedError):
        await arrive()
    seen = of_memory(late)
    check_done(seen)
    assert len(packs_in(seen) - named_in(seen)) == 1


async def test_the_answer_of_a_commit_is_lost() -> None:
    """It succeeded, its sender knows nothing: the pack stays, and the next run only deletes."""

    async def lose() -> None:
        raise TransientError("no answer", operation="put", key=AGGREGATE)

    store = at_commit(fill_memory(prepared().store), "after", lose)
    report = await run(store, PACKS, at=AT)
    assert report.total.deferred
    seen = of_memory(store.inner)  # type: ignore[arg-type] # see `at_commit`
    check_now(seen)
    assert packs_in(seen) == named_in(seen)
    again = await run(store, PACKS, at=AT)
    assert again.total.counted == 0
    check_done(of_memory(store.inner))  # type: ignore[arg-type]


@pytest.mark.parametrize("other", FORMATS)
async def test_a_commit_lost_to_another_runner_takes_its_pack_with_it(other: Any) -> None:
    """The pack of the loser is removed, and the winner's is kept."""
    inner = fill_memory(prepared().store)

    async def overtake() -> None:
        await run(inner, Settings(archive_format=other), at=AT)

    store = at_commit(inner, "before", overtake)
    await run(store, PACKS, at=AT)
    seen = of_memory(inner)
    check_done(seen)
    assert packs_in(seen) == named_in(seen)


async def test_a_commit_that_succeeded_but_was_refused_keeps_its_pack() -> None:
    """Its answer was lost, another commit followed, and its retry is refused: the pack is named."""
    inner = fill_memory(prepared().store)

    async def commit_on_top() -> None:
        await inner.put("runs/h-more.json", run_data(40))
        inner._objects["runs/h-more.json"] = _at(inner, "runs/h-more.json")
        await run(inner, PACKS, at=AT)
        raise PreconditionFailedError("the retry", operation="put", key=AGGREGATE)

    store = at_commit(inner, "after", commit_on_top)
    await run(store, PACKS, at=AT)
    seen = of_memory(inner)
    more = [each for each in [*originals_of(seen)] if each.key == "runs/h-more.json"]
    assert not more, "it was settled"
    assert packs_in(seen) == named_in(seen)
    (document,) = [json.loads(each.data) for key, each in seen.items() if key == AGGREGATE]
    assert len(document["packs"]) == 2


def _at(store: MemoryStore, key: str) -> Any:
    """Return an object as if it had been written in the window of `AGGREGATE`."""
    found = store._objects[key]
    file = msgspec.structs.replace(found.info.file, last_modified=moment(13, 58))
    return msgspec.structs.replace(found, info=msgspec.structs.replace(found.info, file=file))


async def test_a_file_is_overwritten_between_fetch_and_delete() -> None:
    """The pack keeps the bytes that were counted; the next run counts the new version."""
    inner = fill_memory(prepared().store)
    old = inner._objects["runs/c01.json"]

    async def overwrite() -> None:
        await inner.put("runs/c01.json", run_data(41))
        inner._objects["runs/c01.json"] = _at(inner, "runs/c01.json")

    store = at_commit(inner, "before", overwrite)
    report = await run(store, PACKS, at=AT)
    assert report.total.changed == 1
    new = [each for each in originals_of(of_memory(inner)) if each.key == "runs/c01.json"]
    await run(inner, PACKS, at=AT)
    originals = [*prepared().originals, *new]
    check_after_clean_run(of_memory(inner), originals, at=AT, foreign=prepared().foreign)
    assert any(old.data in each.data for key, each in inner._objects.items() if ".zip" in key)


@pytest.mark.parametrize("first", FORMATS)
async def test_the_next_runner_uses_the_other_form(first: Any) -> None:
    """Counted by a run that stopped before it moved anything: the row says what is left to do."""
    inner = fill_memory(prepared().store)

    class Stop(Exception):  # noqa: N818 - it is no error
        """Ends the run."""

    async def hook(operation: str, _key: str, when: str) -> None:
        if operation == ("delete" if first == "packs" else "copy") and when == "before":
            raise Stop

    with pytest.raises(Stop):
        await run(HookedStore(inner, hook), Settings(archive_format=first, concurrency=1), at=AT)
    check_now(of_memory(inner))
    await run(inner, Settings(archive_format="files" if first == "packs" else "packs"), at=AT)
    check_done(of_memory(inner))


async def test_delivered_again_with_another_etag(tmp_path: Path) -> None:
    """A directory's etags change with each write: the bytes in the pack decide."""
    scenario = prepared_directory(tmp_path)
    root = fill_directory(scenario.root, tmp_path / "store")
    store = DirectoryStore(root)
    await run(store, PACKS, at=AT)
    source = next(each for each in scenario.originals if each.key == "runs/c01.json")
    path = root / source.key
    path.write_bytes(source.data)
    os.utime(path, (moment(13, 58).timestamp(),) * 2)
    for settings in (PACKS, Settings()):
        report = await run(store, settings, at=AT)
        assert report.total.counted == 0
    assert not path.exists()
    check_after_clean_run(of_directory(root), scenario.originals, at=AT, foreign=scenario.foreign)


@pytest.mark.parametrize("members", [1, 2])
async def test_a_chunk_may_need_several_packs(
    members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full pack is finished, and the next begins."""
    monkeypatch.setattr(packing_module, "PackWriter", partial(PackWriter, max_members=members))
    store = fill_memory(prepared().store)
    await run(store, PACKS, at=AT)
    seen = of_memory(store)
    check_done(seen)
    assert packs_in(seen) == named_in(seen)
    assert len(packs_in(seen)) > 4


@pytest.mark.parametrize("blocks", [1, 300])
async def test_fetching_waits_for_the_upload(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few bytes only, a run still ends, and the packs are the same."""
    monkeypatch.setattr(packing_module, "_BLOCK", blocks)
    monkeypatch.setattr(packing_module, "_MAX_PENDING", blocks)
    store = fill_memory(prepared().store)
    await run(store, PACKS, at=AT)
    check_done(of_memory(store))


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_files_deleted_in_several_batches_are_all_reported(
    archive_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are deleted at the same time, and each adds to the same numbers."""

    async def wait(_operation: str, _key: str, _when: str) -> None:
        await asyncio.sleep(0)

    async def archived() -> tuple[int, int, bool]:
        store = HookedStore(fill_memory(prepared().store), wait)
        report = await run(store, Settings(archive_format=archive_format), at=AT)
        return report.total.archived, report.total.left, report.complete

    in_one_batch = await archived()
    monkeypatch.setattr(archive_module, "DELETE_BATCH", 2)
    assert await archived() == in_one_batch
    assert in_one_batch[1:] == (0, True)


async def test_a_slow_upload_does_not_fill_the_memory() -> None:
    """While a part is sent, only as many bodies are fetched as may be in flight, and a few more."""
    clock = Clock(moment(14, 1))
    inner = MemoryStore(clock)
    for number in range(60):
        await inner.put(f"runs/n{number}.json", run_data(number, padding="x" * 100_000))
    clock.now = AT
    fetched = 0
    most: list[int] = []

    class Slow(HookedStore):
        """A store whose uploads take blocks slowly."""

        async def put(self, key: str, body: Any, **options: Any) -> str:
            if not key.endswith(".zip"):
                return await super().put(key, body, **options)
            taken = b""
            async for block in body:
                taken += block
                for _ in range(500):
                    await asyncio.sleep(0)
                most.append(fetched - len(taken))
            return await super().put(key, taken, **options)

    async def count(operation: str, key: str, when: str) -> None:
        nonlocal fetched
        fetched += 100_000 * (operation == "get" and key.startswith("runs/") and when == "before")

    settings = Settings(archive_format="packs", concurrency=32, max_inflight_bytes=800_000)
    report = await run(Slow(inner, count), settings, at=AT)
    assert report.total.archived == 60
    assert max(most) < packing_module._MAX_PENDING + 800_000 + packing_module._BLOCK


SMALL_PART = 200
"""Bytes of a part, so that the packs of the scenario are multipart uploads."""


@pytest.fixture(params=[SMALL_PART, s3_store.PART_BYTES], ids=["multipart", "one put"])
def completing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operation that completes the upload of a pack, in parts or at once."""
    part: int = request.param
    monkeypatch.setattr(s3_store, "PART_BYTES", part)
    monkeypatch.setattr(packing_module, "_BLOCK", min(part, packing_module._BLOCK))
    return "CompleteMultipartUpload" if part == SMALL_PART else "PutObject"


async def run_on_server(
    plane: str, faults: Faults, on_request: Callable[[Request], None]
) -> tuple[RunReport, Snapshot]:
    """Run on a server with the scenario; return the report and what is there then."""
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults, on_request=on_request) as server:
        fill_server(server, prepared().store)
        async with open_s3(server, plane, archive_format="packs") as (store, settings):
            report = await run(store, settings, at=AT)
        return report, of_server(server)


@pytest.mark.parametrize("plane", PLANES)
async def test_the_answer_of_an_upload_is_lost(plane: str, completing: str) -> None:
    """A pack whose upload was executed is recognised when its retry is refused."""
    faults = Faults(allow_small_parts=True)
    lost: list[str] = []

    def lose(request: Request) -> None:
        mine = request.operation == completing and request.key.endswith(".zip")
        faults.lose_response = 1.0 if mine and request.key not in lost else 0.0
        if mine:
            lost.append(request.key)

    report, seen = await run_on_server(plane, faults, lose)
    assert len(lost) > len(set(lost))
    assert report.total.deferred == 0
    check_done(seen)
    assert packs_in(seen) == named_in(seen)


@pytest.mark.parametrize("plane", PLANES)
async def test_an_upload_is_refused_by_a_conflict(plane: str, completing: str) -> None:
    """S3 answers 409 while something else happens to the key: the next pack has another one."""
    faults = Faults(allow_small_parts=True)
    refused: list[str] = []

    def refuse(request: Request) -> None:
        mine = request.operation == completing and request.key.endswith(".zip")
        faults.conflict = 1.0 if mine and len(refused) < 3 else 0.0
        if faults.conflict:
            refused.append(request.key)

    report, seen = await run_on_server(plane, faults, refuse)
    assert report.total.deferred == 0
    check_done(seen)
    assert packs_in(seen) == named_in(seen)
    assert len(refused) == 3
    assert not packs_in(seen) & set(refused)


async def test_an_object_of_others_at_the_key_of_a_pack_is_kept() -> None:
    """An upload that is refused although it never succeeded fails; the next id is another one."""
    inner = fill_memory(prepared().store)
    foreign: dict[str, bytes] = {}

    async def hook(operation: str, key: str, when: str) -> None:
        if operation == "put" and key.endswith(".zip") and when == "before" and not foreign:
            foreign[key] = b"PK not ours"
            await inner.put(key, foreign[key])

    await run(HookedStore(inner, hook), PACKS, at=AT)
    seen = of_memory(inner)
    check_done(seen)
    (key,) = foreign
    assert seen[key].data == foreign[key]


@pytest.mark.parametrize("chunk_files", [1, 2, 20_000])
async def test_a_backfill_archives_into_packs(chunk_files: int) -> None:
    """Whole windows or windows in parts: the same bytes, and no pack that nobody names."""
    store = fill_memory(prepared().store)
    settings = Settings(archive_format="packs", chunk_files=chunk_files)
    context = JobContext(store, settings)
    await backfill(LocalEngine(context), settings, Interval(moment(13, 50), AT))
    seen = of_memory(store)
    check_done(seen)
    assert packs_in(seen) == named_in(seen)


async def test_what_is_not_read_whole_is_archived_as_a_file() -> None:
    """Files above ``stream_bytes`` and files put back from quarantine become objects."""
    store = fill_memory(prepared().store)
    large = run_data(50, padding="x" * 3000)
    for key in ("runs/large.json", "runs/a.putback-0123456789abcdef.json"):
        await store.put(key, large if "large" in key else run_data(51))
        store._objects[key] = _at(store, key)
    settings = Settings(archive_format="packs", stream_bytes=1024)
    await run(store, settings, at=AT)
    assert "archive/large.json" in store._objects
    assert "archive/a.putback-0123456789abcdef.json" in store._objects
    document = json.loads(store._objects[AGGREGATE].data)
    assert "runs/c01.json" in {row["key"] for row in document["source_files"] if "pack" in row}


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("seed", range(2))
async def test_totals_are_exact_despite_faults(seed: int, plane: str) -> None:
    """Errors, lost answers and refused conditions: every total is exact."""
    faults = Faults(
        slow_down=0.1, reset=0.05, lose_response=0.1, conflict=0.02, random=random.Random(seed)
    )
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill_server(server, prepared().store)
        async with open_s3(server, plane, archive_format="packs", retry_attempts=40) as opened:
            report = await run(*opened, at=AT)
        seen = of_server(server)
    assert not report.failures
    assert report.total.deferred == 0
    check_done(seen)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("archive_format", FORMATS)
async def test_the_storage_class_is_that_of_the_archive(archive_format: str, plane: str) -> None:
    """Archived files and packs get it, in one request or in parts; nothing else does."""
    classes: dict[str, str] = {}

    def look(request: Request) -> None:
        if request.operation in {"PutObject", "CopyObject", "CreateMultipartUpload"}:
            classes[request.key] = request.header("x-amz-storage-class") or ""

    async with S3Server([BUCKET], clock=lambda: AT, on_request=look) as server:
        fill_server(server, prepared().store)
        more: dict[str, Any] = {"archive_storage_class": "GLACIER_IR"}
        more["archive_format"] = archive_format
        async with open_s3(server, plane, **more) as (store, settings):
            await run(store, settings, at=AT)
        check_done(of_server(server))
    ending = ".zip" if archive_format == "packs" else "c01.json"
    assert any(key.endswith(ending) for key in classes)
    for key, given in classes.items():
        archived = key.startswith("archive/") and key.endswith((".json", ".gz", ".zip"))
        assert given == ("GLACIER_IR" if archived else ""), key
