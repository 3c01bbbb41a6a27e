"""Restoring files while runs and other retries work: each file counts once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from testkit.hooked import HookedStore
from testkit.opaque import OpaqueStore
from testkit.promises import Snapshot, of_memory
from testkit.quarantined import BAD, BY_NAME, SMALL, counted, holders, settled
from testkit.scenario import AT, Clock, in_thread, memory_of, moment, run_data

from asyncagg.backfill import LocalEngine, backfill
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.quarantine.restore import Restorer
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.verify.repair import repair

KEY = f"quarantine/{BAD}"
BY_CLOCK = Settings()
OLD = Settings(max_file_bytes=SMALL.max_file_bytes)
DAY = Interval(moment(0, 0), moment(23, 55))


class Died(Exception):  # noqa: N818 - not an error: the process ends here
    """A process ends."""


async def stop_before_commit(operation: str, key: str, when: str) -> None:
    """Stop a run just before a commit."""
    if (operation, when) == ("put", "before") and key.endswith("Z.json"):
        raise Died


async def copy_only(store: Store, settings: Settings) -> None:
    """Restore the file, but stop before it is deleted from quarantine."""

    async def die(operation: str, _key: str, when: str) -> None:
        if (operation, when) == ("delete", "before"):
            raise Died

    with pytest.raises(Died):
        await Restorer(JobContext(HookedStore(store, die), settings)).restore(KEY)


async def raced_at_every_request(
    template: Snapshot, settings: Settings, race: Callable[[MemoryStore, Clock], Awaitable[object]]
) -> None:
    """Let something happen between any two requests of a retry; then check the result."""
    for number in count(1):
        clock = Clock(AT)
        store = memory_of(template)
        store._clock = clock
        steps = 0

        async def hook(
            _operation: str,
            _key: str,
            _when: str,
            now: int = number,
            store: MemoryStore = store,
            clock: Clock = clock,
        ) -> None:
            nonlocal steps
            steps += 1
            if steps == now:
                await race(store, clock)
            assert holders(of_memory(store), run_data(1))

        await Restorer(JobContext(HookedStore(store, hook), settings)).restore(KEY)
        for _ in range(2):
            clock.now += timedelta(minutes=10)
            await run(store, settings, at=clock.now)
            await Restorer(JobContext(store, settings)).restore_all(lambda _: None)
        seen = of_memory(store)
        assert counted(seen) == {run_data(1): 1}, f"raced at step {number}"
        assert not [key for key in seen if key.startswith(("quarantine/", "runs/"))]
        assert (await verify(JobContext(store, settings))).found == {}
        if steps < number:
            return


async def settle(store: Store, clock: Clock, settings: Settings) -> None:
    """End a window, and run the job."""
    clock.now += timedelta(minutes=10)
    await run(store, settings, at=clock.now)
    clock.now += timedelta(minutes=10)


async def settle_by_backfill(store: Store, clock: Clock, settings: Settings) -> None:
    """End a window, and backfill the day in parts."""
    clock.now += timedelta(minutes=10)
    await backfill(LocalEngine(JobContext(store, settings)), settings, DAY)
    clock.now += timedelta(minutes=10)


@pytest.mark.parametrize("settings", [BY_CLOCK, BY_NAME], ids=["last_modified", "name"])
@pytest.mark.parametrize("work", [settle, settle_by_backfill])
async def test_two_retries_with_a_full_run_between(settings: Settings, work: Any) -> None:
    """One copies, a run counts and archives the copy, and the other copies again."""
    template = await settled({BAD: run_data(1)}, OLD if settings is BY_CLOCK else SMALL)

    async def race(store: MemoryStore, clock: Clock) -> None:
        if KEY in store._objects:
            await copy_only(store, settings)
        await work(store, clock, settings)

    await raced_at_every_request(of_memory(template), settings, race)


async def test_a_copy_sent_again_after_a_run() -> None:
    """The response to the copy is lost, a run counts the file, and the request is repeated."""
    template = of_memory(await settled({BAD: run_data(1)}, OLD))
    clock = Clock(AT)
    store = memory_of(template)
    store._clock = clock
    await copy_only(store, BY_CLOCK)
    (restored,) = [key for key in of_memory(store) if key.startswith("runs/")]
    del store._objects[restored]

    async def again(operation: str, key: str, when: str) -> None:
        if (operation, when) == ("copy", "after"):
            await settle(store, clock, BY_CLOCK)
            await store.copy(key, restored, if_match=template[key].etag)

    await Restorer(JobContext(HookedStore(store, again), BY_CLOCK)).restore(KEY)
    await settle(store, clock, BY_CLOCK)
    assert counted(of_memory(store)) == {run_data(1): 1}
    assert not [key for key in of_memory(store) if key.startswith(("quarantine/", "runs/"))]


@pytest.mark.parametrize("taken", [False, True])
async def test_what_was_counted_after_it_was_copied_to_quarantine(*, taken: bool) -> None:
    """A run stops after the copy; the next has other settings, and counts the file."""
    store = MemoryStore(Clock(moment(13, 57)))
    if taken:
        await store.put(KEY, b"[")
    await store.put(f"runs/{BAD}", run_data(1))

    with pytest.raises(Died):
        await run(HookedStore(store, stop_before_commit), OLD, at=AT)
    copied = next(key for key in holders(of_memory(store), run_data(1)) if key != f"runs/{BAD}")
    outcome = await Restorer(JobContext(store, BY_CLOCK)).restore(copied)
    assert "still in the inbox" in outcome.reason
    await run(store, BY_CLOCK, at=AT)
    assert (await Restorer(JobContext(store, BY_CLOCK)).restore(copied)).status == "counted"
    await run(store, BY_CLOCK, at=moment(15, 0))
    assert counted(of_memory(store)) == {run_data(1): 1}


@pytest.fixture(params=["memory", "opaque etags", "directory"])
def store(request: pytest.FixtureRequest, inbox: Path) -> Store:
    """A store with a run file in the inbox; in the last two, a copy has another etag."""
    (inbox / "runs" / BAD).write_bytes(run_data(1))
    if request.param == "directory":
        return DirectoryStore(inbox)
    found = (MemoryStore if request.param == "memory" else OpaqueStore)(Clock(moment(13, 57)))
    in_thread(lambda: found.put(f"runs/{BAD}", run_data(1)))
    return found


async def quarantine_only(store: Store) -> None:
    """Run with small limits, but stop before the commit; then the producer deletes the file."""
    with pytest.raises(Died):
        await run(HookedStore(store, stop_before_commit), SMALL, at=AT)
    await store.delete([(await store.head(f"runs/{BAD}")).file])


async def before_commit(store: Store, race: Callable[[], Awaitable[object]]) -> None:
    """Run, and let something happen just before the first commit."""
    raced = False

    async def hook(operation: str, key: str, when: str) -> None:
        nonlocal raced
        if (operation, when, raced) == ("put", "before", False) and key.endswith("Z.json"):
            raced = True
            await race()

    await run(HookedStore(store, hook), BY_NAME, at=AT)


async def check_counted_once(store: Store) -> None:
    """Restore whatever is in quarantine and run, twice; then the file counts once, in one place."""
    context = JobContext(store, BY_NAME)
    for _ in range(2):
        await Restorer(context).restore_all(lambda _: None)
        await run(store, BY_NAME, at=AT)
    (aggregate,) = [key async for key in keys(store, "aggregates/") if key.endswith("Z.json")]
    assert json.loads((await store.get(aggregate)).data)["files"]["counted"] == 1
    assert not [key async for key in keys(store, "quarantine/")]
    assert not [key async for key in keys(store, "runs/")]
    (archived,) = [key async for key in keys(store, "archive/") if is_run_file(key)]
    assert (await store.get(archived)).data == run_data(1)
    assert (await verify(context)).found == {}


async def keys(store: Store, prefix: str) -> AsyncIterator[str]:
    """Yield the keys below a prefix."""
    async for page in store.list_pages(prefix):
        for file in page:
            yield file.key


async def test_counted_by_a_run_after_its_only_copy_went_to_quarantine(store: Store) -> None:
    """A run with small limits copies it there, the producer deletes it, another run counts it."""
    await before_commit(store, lambda: quarantine_only(store))
    (key,) = [key async for key in keys(store, "quarantine/")]
    restorer, fixed = Restorer(JobContext(store, BY_NAME)), MemoryStore()
    await fixed.put("fixed.json", run_data(2))
    outcome = await restorer.replace(key, fixed, "fixed.json")
    assert (outcome.status, "it is counted" in outcome.reason) == ("left", True)
    assert (await restorer.restore(key)).status == "counted"
    await check_counted_once(store)


async def test_restored_just_before_the_commit_of_a_run_that_had_fetched_it(store: Store) -> None:
    """The retry claims the file first: the commit fails, and the run does not count the old key."""

    async def race() -> None:
        await quarantine_only(store)
        await Restorer(JobContext(store, BY_NAME)).restore_all(lambda _: None)

    await before_commit(store, race)
    (key,) = [key async for key in keys(store, "runs/")]
    assert ".putback-20251021t1300Z-" in key
    await check_counted_once(store)


@pytest.mark.parametrize("settings", [BY_NAME, SMALL], ids=["accepting", "rejecting"])
async def test_copied_again_by_a_stalled_retry(store: Store, settings: Settings) -> None:
    """Another retry and a whole run come between the check and the copy of a retry."""
    await run(store, SMALL, at=AT)
    raced = False

    async def hook(operation: str, _key: str, when: str) -> None:
        nonlocal raced
        if (operation, when, raced) == ("copy", "before", False):
            raced = True
            await copy_only(store, BY_NAME)
            await run(store, settings, at=AT)
            for each in [key async for key in keys(store, "quarantine/")]:
                if each != KEY:  # what the run rejected again is restored and counted
                    await Restorer(JobContext(store, BY_NAME)).restore(each)
                    await run(store, BY_NAME, at=AT)

    await Restorer(JobContext(HookedStore(store, hook), BY_NAME)).restore(KEY)
    await check_counted_once(store)


async def test_files_of_one_window_are_claimed_together() -> None:
    """A retry of many files reads and writes the aggregate of their window once."""
    store = MemoryStore(Clock(moment(13, 57)))
    for number in range(20):
        await store.put(f"runs/20251021t1302Z_{number}.json", run_data(4 * number + 1))

    with pytest.raises(Died):
        await run(HookedStore(store, stop_before_commit), SMALL, at=AT)
    for key in [key for key in of_memory(store) if key.startswith("runs/")]:
        del store._objects[key]
    requests = Counter[str]()

    async def note(operation: str, key: str, when: str) -> None:
        requests[operation] += when == "before" and key.startswith("aggregates/")

    await Restorer(JobContext(HookedStore(store, note), BY_NAME)).restore_all(lambda _: None)
    assert (requests["stream"], requests["put"]) == (1, 1)
    await run(store, BY_NAME, at=AT)
    assert sum(counted(of_memory(store)).values()) == 20


async def test_long_names_that_start_alike_come_back_apart() -> None:
    """Two files with equal content, whose keys differ only where they are cut, count twice."""
    store = MemoryStore(Clock(moment(13, 57)))
    keys = [f"quarantine/{'x' * 245}{number}.json" for number in range(2)]
    for key in keys:
        await store.put(key, run_data(1))
    for key in keys:
        assert (await Restorer(JobContext(store, BY_CLOCK)).restore(key)).status == "put_back"
    await run(store, BY_CLOCK, at=AT)
    assert counted(of_memory(store)) == {run_data(1): 2}


async def test_a_damaged_aggregate_knows_a_file_that_was_put_back() -> None:
    """Its row is lost; its key in the archive determines the key under which it was counted."""
    store = await settled({BAD: b"["})
    await store.put(KEY, run_data(1))
    await Restorer(JobContext(store, BY_NAME)).restore(KEY)
    await run(store, BY_NAME, at=AT)
    (aggregate,) = [key for key in of_memory(store) if key.startswith("aggregates/")]
    (true,) = json.loads(of_memory(store)[aggregate].data)["source_files"]
    await store.put(aggregate, b"")
    context = JobContext(store, BY_NAME)
    done = await repair(context, await verify(context))
    assert len(done.rebuilt) == 1
    (found,) = json.loads(of_memory(store)[aggregate].data)["source_files"]
    assert (found["key"], found["etag"]) == (true["key"], true["etag"])
