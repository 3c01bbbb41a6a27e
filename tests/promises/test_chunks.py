"""Chunks grow with their window: few commits for many files, and every promise holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count, pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.hooked import HookedStore, Stopped
from testkit.leaps import Leaps, deadline
from testkit.promises import (
    RECORD,
    Original,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_memory,
    originals_of,
)
from testkit.scenario import AT, Clock, fill_memory, in_thread, moment, run_data
from testkit.strategies import run_files

import asyncagg.aggregate.spool as spool_module
import asyncagg.store.memory as memory_store
from asyncagg.aggregate.spool import open_spool
from asyncagg.job import intake
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.intake import CHUNK_GROWTH, MAX_CHUNK_GROWTH
from asyncagg.job.listing import KeyRange
from asyncagg.job.pipeline import run
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore

AGGREGATE = "aggregates/20251021t1400Z.json"
BAD = {"runs/05.json", "runs/11.json"}
SETTINGS = Settings(chunk_files=1, concurrency=3)

FEW, MANY = 14, 60
"""Files in a window whose chunks grow fast (see `fast_growth`), and in one with real growth."""


class Inbox(NamedTuple):
    """Files of one window in a store, and the aggregate that a single chunk gives."""

    store: MemoryStore
    originals: Sequence[Original]
    expected: Mapping[str, bytes]

    def check_now(self, store: MemoryStore) -> None:
        """Check promises 1 to 3."""
        check_at_any_moment(of_memory(store), self.originals)

    def check_done(self, store: MemoryStore) -> None:
        """Check every promise, and that the aggregate is that of one chunk."""
        check_after_clean_run(of_memory(store), self.originals, at=AT)
        assert final_bytes(of_memory(store)) == self.expected


@lru_cache
def inbox(files: int) -> Inbox:
    """Return an inbox with this number of files, two of them bad."""

    async def prepare() -> Inbox:
        clock = Clock(moment(13, 57))
        store = MemoryStore(clock)
        for number in range(files):
            key = f"runs/{number:02}.json"
            await store.put(key, b"{not json" if key in BAD else run_data(number))
        undisturbed = fill_memory(store)
        await run(undisturbed, Settings(), at=AT)
        originals = originals_of(of_memory(store), bad=BAD)
        return Inbox(store, originals, final_bytes(of_memory(undisturbed)))

    prepared: Inbox = in_thread(prepare)
    return prepared


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set one key per listing page, and about two references per block of a temporary file."""
    monkeypatch.setattr(memory_store, "_PAGE", 1)
    monkeypatch.setattr(spool_module, "BLOCK", 256)


@pytest.fixture
def fast_growth(small_pages: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """Make each chunk as large as what is committed: 1, 1, 2, 4 and 6 of `FEW` files."""
    monkeypatch.setattr(intake, "CHUNK_GROWTH", 1)


# ------------------------------------------------------------------------------ a batch


@given(st.lists(st.lists(run_files, min_size=1, max_size=4), min_size=1), st.data())
async def test_a_group_gives_its_files_as_often_as_needed(
    parts: list[list[RunFile]], data: st.DataObject
) -> None:
    """A batch gives its files in order, on every pass, whether they are in memory or on disk."""
    batch = data.draw(st.integers(1, 5))
    everything = [file for part in parts for file in part]
    async with open_spool(100) as spool:
        group = WindowBatch(batch)
        move_to = False
        for part in parts:
            group.held.extend(part)
            if data.draw(st.booleans()):
                move_to = True
                await group.move_to(spool)
        assert len(group) == len(everything)
        assert group.first_key == everything[0].key
        for _ in range(2):
            batches = [list(each) async for each in group.batches()]
            assert [file for each in batches for file in each] == everything
            assert all(batches)
            if not move_to:
                assert len(batches) == 1


# ------------------------------------------------------------------------------ growth


@pytest.mark.usefixtures("small_pages")
async def test_chunks_grow_with_their_window() -> None:
    """Each adds a third of what was counted two commits before, but at most ten chunks."""
    large = inbox(MANY)
    store = fill_memory(large.store)
    named = [0]

    async def look(operation: str, key: str, when: str) -> None:
        if (operation, key, when) == ("put", AGGREGATE, "after"):
            files = json.loads(store._objects[AGGREGATE].data)["files"]
            named.append(files["counted"] + files["quarantined"])
            large.check_now(store)

    report = await run(HookedStore(store, look), SETTINGS, at=AT)
    steps = [after - before for before, after in pairwise(named)]
    # A chunk is filled while the one before it is settled.
    most = [min(max(1, before // CHUNK_GROWTH), MAX_CHUNK_GROWTH) for before in named[:-1]]
    fewest = [1, *most[:-1]]
    in_bounds = [low <= step <= high for low, step, high in zip(fewest, steps, most, strict=True)]
    assert all(in_bounds[:-1])
    assert 0 < steps[-1] <= most[-1] == MAX_CHUNK_GROWTH
    assert named[-1] == MANY
    assert report.total.counted == MANY - len(BAD)
    assert report.total.late == 0
    large.check_done(store)


@pytest.mark.usefixtures("small_pages")
async def test_chunks_of_several_windows_do_not_grow() -> None:
    """If the files of two windows alternate, at most one chunk of references is held."""
    store = fill_memory(inbox(MANY).store)
    clock = store._clock
    assert isinstance(clock, Clock)
    clock.now = moment(13, 52)
    for number in range(0, MANY, 2):
        await store.put(f"runs/{number:02}-other.json", run_data(number))
    clock.now = AT
    commits = 0

    async def look(operation: str, _key: str, when: str) -> None:
        nonlocal commits
        commits += (operation, when) == ("put", "after")

    await run(HookedStore(store, look), Settings(chunk_files=3, concurrency=3), at=AT)
    assert commits >= MANY // 2  # chunks of three, of two windows each
    assert not [key for key in of_memory(store) if key.startswith("runs/")]


# ------------------------------------------------------------------------------ failures


@pytest.mark.usefixtures("fast_growth")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_cancelled_at_every_request_of_a_large_window(when: str) -> None:
    """Cancelled at any request, the promises hold; the next run gives the undisturbed result."""
    large = inbox(FEW)
    for number in count(1):
        store = fill_memory(large.store)
        stopped = Stopped(store, number, when)
        stopped.task = asyncio.create_task(run(stopped.store, SETTINGS, at=AT))
        await asyncio.wait([stopped.task])
        if not stopped.step:
            await stopped.task
            break
        large.check_now(store)
        await run(store, SETTINGS, at=AT)
        large.check_done(store)
    assert number > 3 * FEW
    large.check_done(store)


@pytest.mark.usefixtures("fast_growth")
@pytest.mark.parametrize("commit", range(1, 6))
async def test_another_runner_commits_while_a_chunk_is_fetched(commit: int) -> None:
    """Files that both runners fetched are counted once, also those that were spilled to disk."""
    large = inbox(FEW)
    store = fill_memory(large.store)
    commits = 0

    async def overtake(operation: str, key: str, when: str) -> None:
        nonlocal commits
        if (operation, key, when) == ("put", AGGREGATE, "before"):
            commits += 1
            if commits == commit:
                await run(store, Settings(chunk_files=9), at=AT)

    report = await run(HookedStore(store, overtake), SETTINGS, at=AT)
    assert commits >= commit
    assert not report.failures
    large.check_done(store)


@pytest.mark.usefixtures("fast_growth")
@pytest.mark.parametrize(("stage", "leap"), [("get", 60), ("get", 1000), ("copy", 1000)])
async def test_time_runs_out_in_a_large_chunk(
    stage: str, leap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched files are committed, the rest is reported exactly, and the next run continues."""
    large = inbox(FEW)
    clock = Leaps(monkeypatch)
    for number in range(1, FEW - len(BAD)):
        store = fill_memory(large.store)
        seen = 0

        async def late(operation: str, key: str, when: str, number: int = number) -> None:
            nonlocal seen
            due = operation == stage and when == "before" and not key.endswith(RECORD)
            seen += due
            if due and seen == number:
                clock.leap(leap)
                await asyncio.Event().wait()
            if when == "before":  # an answer lost to the cancellation could not be reported
                await asyncio.sleep(0)

        report = await run(HookedStore(store, late), SETTINGS, at=AT, deadline=deadline())
        large.check_now(store)
        waiting = {key for key in of_memory(store) if key.startswith("runs/")}
        assert not report.complete
        assert 0 < report.total.left <= len(waiting)
        if leap < 100:
            assert report.total.left == len(waiting)
        await run(store, SETTINGS, at=AT)
        large.check_done(store)


@pytest.mark.usefixtures("fast_growth")
async def test_time_that_goes_by_before_the_first_file_does_not_stall_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If reading the aggregate takes most of the time, files are fetched in the rest of it."""
    large = inbox(FEW)
    store = fill_memory(large.store)
    await run(store, Settings(), at=AT, keys=[KeyRange(last="runs/02.json")])
    clock = Leaps(monkeypatch)

    async def slow(operation: str, _key: str, when: str) -> None:
        if (operation, when) == ("stream", "before"):
            clock.leap(60)
            await asyncio.sleep(0)

    report = await run(HookedStore(store, slow), Settings(), at=AT, deadline=deadline())
    assert report.total.counted > 0
    large.check_now(store)
