"""Restoring files while runs and other retries work: each file counts once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from testkit.hooked import HookedStore
from testkit.promises import Snapshot, of_memory
from testkit.quarantined import BAD, BY_NAME, SMALL, counted, holders, settled
from testkit.scenario import AT, Clock, memory_of, moment, run_data

from asyncagg.backfill import LocalEngine, backfill
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.quarantine.restore import Restorer
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.verify.repair import repair

KEY = f"quarantine/{BAD}"
BY_CLOCK = Settings()
OLD = Settings(max_file_bytes=SMALL.max_file_bytes)
DAY = Interval(moment(0, 0), moment(23, 55))


class Died(Exception):  # noqa: N818 - not an error: the process ends here
    """A process ends."""


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

    async def die(operation: str, key: str, when: str) -> None:
        if (operation, when) == ("put", "before") and key.endswith("Z.json"):
            raise Died

    with pytest.raises(Died):
        await run(HookedStore(store, die), OLD, at=AT)
    copied = next(key for key in holders(of_memory(store), run_data(1)) if key != f"runs/{BAD}")
    outcome = await Restorer(JobContext(store, BY_CLOCK)).restore(copied)
    assert "still in the inbox" in outcome.reason
    await run(store, BY_CLOCK, at=AT)
    assert (await Restorer(JobContext(store, BY_CLOCK)).restore(copied)).status == "counted"
    await run(store, BY_CLOCK, at=moment(15, 0))
    assert counted(of_memory(store)) == {run_data(1): 1}


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
