"""The request slots of a run: all in use while there is work, whichever window it is of."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Literal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.hooked import HookedStore
from testkit.scenario import AT, run_data
from testkit.virtual import run_virtually

from asyncagg.errors import NotFoundError
from asyncagg.job.pipeline import run
from asyncagg.job.slots import Slots
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore

JOBS = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 4), max_size=8)),
    max_size=6,
)
"""When each begins, whether it is urgent, and how long each of its items takes."""


@given(st.integers(1, 5), JOBS)
def test_no_slot_is_free_while_an_item_waits(
    count: int, jobs: list[tuple[int, bool, list[int]]]
) -> None:
    """Each item of each job is worked on once, and as many at a time as there are slots."""
    waiting = running = 0
    done: list[tuple[int, int]] = []

    async def work() -> None:
        slots = Slots(count)

        async def one(number: int) -> None:
            nonlocal waiting
            begins, urgent, pauses = jobs[number]

            async def item(index: int) -> None:
                nonlocal waiting, running
                waiting, running = waiting - 1, running + 1
                assert running <= count
                await anyio.sleep(pauses[index])
                running -= 1
                done.append((number, index))

            await anyio.sleep(begins)
            waiting += len(pauses)
            await slots.for_each(range(len(pauses)), item, urgent=urgent)
            assert len([each for each in done if each[0] == number]) == len(pauses)

        async with anyio.create_task_group() as group:
            for number in range(len(jobs)):
                group.start_soon(one, number)
            await anyio.sleep(0.5)
            while running or waiting:
                assert running == count or not waiting
                await anyio.sleep(1)
        assert slots.are_free

    run_virtually(work)
    assert len(set(done)) == len(done) == sum(len(pauses) for _, _, pauses in jobs)


def test_work_is_done_when_its_last_item_is() -> None:
    """It does not wait until other work, which is urgent, is done too."""
    ended: dict[str, float] = {}

    async def work() -> None:
        slots = Slots(2)

        async def job(name: str, begins: float, items: int, *, urgent: bool) -> None:
            await anyio.sleep(begins)
            await slots.for_each(range(items), lambda _: anyio.sleep(1), urgent=urgent)
            ended[name] = anyio.current_time()

        async with anyio.create_task_group() as group:
            group.start_soon(partial(job, "normal", 0, 2, urgent=False))
            group.start_soon(partial(job, "urgent", 0.5, 200, urgent=True))

    run_virtually(work)
    assert ended == {"normal": 1, "urgent": 101}


def test_urgent_work_takes_over_slot_by_slot() -> None:
    """What is not urgent finishes the items that it has begun, then waits."""
    finished: list[str] = []

    async def item(name: str) -> None:
        await anyio.sleep(1)
        finished.append(name)

    async def work() -> None:
        slots = Slots(2)
        async with anyio.create_task_group() as group:
            group.start_soon(slots.for_each, ["f1", "f2", "f3", "f4"], item)
            await anyio.sleep(0.5)
            await slots.for_each(["a1", "a2", "a3"], item, urgent=True)

    run_virtually(work)
    assert finished == ["f1", "f2", "a1", "a2", "a3", "f3", "f4"]


@pytest.mark.parametrize("ending", ["error", "cancelled"])
def test_a_job_that_ends_early_returns_its_slots(ending: str) -> None:
    """Its items that wait are dropped, and the others continue with all slots."""

    async def item(seconds: int) -> None:
        await anyio.sleep(seconds)
        if ending == "error":
            raise NotFoundError(f"item {seconds}")

    async def work() -> None:
        slots = Slots(2)
        others: list[float] = []

        async def other(_: int) -> None:
            await anyio.sleep(1)
            others.append(anyio.current_time())

        async def ends_early() -> None:
            if ending == "error":
                with pytest.raises(NotFoundError, match="item 2"):
                    await slots.for_each([2, 9, 9], item)
            else:
                with anyio.move_on_after(2):
                    await slots.for_each([9, 9, 9], item)

        async with anyio.create_task_group() as group:
            group.start_soon(ends_early)
            await anyio.sleep(0.5)
            await slots.for_each([1, 2, 3, 4], other)
        assert others == [3, 3, 4, 4]
        assert slots.are_free

    run_virtually(work)


@pytest.mark.parametrize("archive_format", ["files", "packs"])
@pytest.mark.parametrize("concurrency", [8, 32])
@pytest.mark.parametrize("windows", [1, 5, 20])
def test_a_run_keeps_its_slots_busy(
    windows: int, concurrency: int, archive_format: Literal["files", "packs"]
) -> None:
    """A run takes as long as its requests in full slots, and 20 more one after the other."""
    files, latency = 100, 0.02
    now = AT - timedelta(hours=3)
    store = MemoryStore(lambda: now)

    async def respond(operation: str, key: str, when: str) -> None:  # noqa: ARG001
        if when == "before":
            await anyio.sleep(latency)

    async def work() -> tuple[float, int]:
        for window in range(windows):
            for number in range(files):
                stamp = now + timedelta(minutes=5 * window)
                await store.put(f"runs/{stamp:%Y%m%dt%H%MZ}-{number:03}.json", run_data(number))
        settings = Settings(concurrency=concurrency, archive_format=archive_format)
        started = anyio.current_time()
        report = await run(HookedStore(store, respond), settings, at=AT)
        return anyio.current_time() - started, report.total.archived

    seconds, archived = run_virtually(work)
    assert archived == windows * files
    requests = archived * (1 if archive_format == "packs" else 2)
    start_and_end = 20 * latency
    assert seconds <= 1.02 * requests * latency / concurrency + start_and_end
