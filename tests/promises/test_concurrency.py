"""Several runners at once on one inbox: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
from testkit.hooked import HookedStore
from testkit.promises import (
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
)
from testkit.s3server import Request, S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    PLANES,
    fill_directory,
    fill_memory,
    fill_server,
    open_s3,
    prepared,
    prepared_directory,
)

import asyncagg.store.memory as memory_store
from asyncagg.job.aggregates import MAX_COMMIT_ATTEMPTS
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore

SEEDS = range(40)


def pauses(seed: int) -> HookedStore:
    """Return the scenario's store; each request waits for a random number of loop iterations."""
    dice = random.Random(seed)

    async def pause(_operation: str, _key: str, _when: str) -> None:
        for _ in range(dice.choice((0, 0, 1, 2, 3, 12))):
            await anyio.lowlevel.checkpoint()

    return HookedStore(fill_memory(prepared().store), pause)


async def run_together(store: HookedStore, runners: int, *settings: Settings) -> list[RunReport]:
    """Run several jobs at once on one store, with these settings in turn."""
    jobs = [run(store, settings[n % len(settings)], at=AT) for n in range(runners)]
    return await asyncio.gather(*jobs)


def check_reports(reports: list[RunReport]) -> None:
    """Check that the runners together counted each good file once."""
    good = [each for each in prepared().originals if each.good]
    waiting_or_counted_before = 4  # one waits, three were counted by the earlier run
    counted = sum(report.total.counted for report in reports)
    assert counted == len(good) - waiting_or_counted_before


@pytest.mark.parametrize("runners", [2, 4, 8])
@pytest.mark.parametrize("decade", range(0, len(SEEDS), 10))
async def test_runners_at_once(runners: int, decade: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2, 4 and 8 runners with random pauses: totals are exact, no file is in two aggregates."""
    scenario = prepared()
    for seed in SEEDS[decade : decade + 10]:
        chunk = 5 if seed % 2 else 20_000
        monkeypatch.setattr(memory_store, "_PAGE", 6 if seed % 2 else 1000)
        store = pauses(seed)
        reports = await run_together(
            store, runners, Settings(chunk_files=chunk, concurrency=2 + seed % 5)
        )
        seen = of_memory(store.inner)  # type: ignore[arg-type] # see `pauses`
        check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)
        check_reports(reports)
        if any(report.total.deferred for report in reports):  # one gave up: the next run continues
            await run(store, Settings(), at=AT)
            seen = of_memory(store.inner)  # type: ignore[arg-type]
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        assert final_bytes(seen) == scenario.expected, f"{seed=}"
        # The limit of commits of a runner: for each chunk, each of its 4 windows.
        chunks = 4 if seed % 2 else 1
        assert store.calls["put"] <= runners * 4 * chunks * MAX_COMMIT_ATTEMPTS, f"{seed=}"


@pytest.mark.parametrize("decade", range(0, 30, 10))
async def test_runners_of_both_forms_at_once(decade: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners on packs beside runners on files: totals are exact, and each file is archived."""
    scenario = prepared()
    for seed in range(decade, decade + 10):
        monkeypatch.setattr(memory_store, "_PAGE", 6 if seed % 2 else 1000)
        store = pauses(seed)
        chunk = 5 if seed % 2 else 20_000
        more: dict[str, Any] = {"chunk_files": chunk, "concurrency": 2 + seed % 5}
        packs = Settings(archive_format="packs", **more)
        reports = await run_together(store, 2 + seed % 3, packs, Settings(**more))
        seen = of_memory(store.inner)  # type: ignore[arg-type] # see `pauses`
        check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)
        check_reports(reports)
        if any(report.total.deferred for report in reports):  # one gave up: the next run continues
            await run(store, packs, at=AT)
            seen = of_memory(store.inner)  # type: ignore[arg-type]
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        assert final_bytes(seen) == scenario.expected, f"{seed=}"


async def test_resettling_is_bounded() -> None:
    """If others always commit first, a runner gives up after a limit and reports it."""
    store = pauses(0)
    pause = store.hook
    inner = store.inner
    assert isinstance(inner, memory_store.MemoryStore)
    window = next(iter(prepared().expected))
    assert window.startswith("aggregates/20251021t13")

    async def change(operation: str, key: str, when: str) -> None:
        # Another runner's commit: the same aggregate at a higher revision.
        if operation == "put" and key == window and when == "before":
            text = inner._objects[key].data
            head, _, rest = text.partition(b'"revision":')
            number, _, rest = rest.partition(b",")
            await inner.put(key, b'%b"revision":%d,%b' % (head, int(number) + 1, rest))

    store.hook = change
    report = await run(store, Settings(), at=AT)
    outcome = report.windows["20251021t1355Z"]
    assert outcome.tally.deferred == 4  # the files of this window that were in the inbox
    assert outcome.revision == 0
    assert store.calls["put"] == MAX_COMMIT_ATTEMPTS + 3 + 2  # the others, and the journal
    check_at_any_moment(of_memory(inner), prepared().originals, foreign=prepared().foreign)
    store.hook = pause
    await run(store, Settings(), at=AT)
    assert final_bytes(of_memory(inner)) == prepared().expected


async def test_promises_hold_between_racing_requests() -> None:
    """While eight runners race, promises 1 to 3 hold after every single request."""
    scenario = prepared()
    store = pauses(7)
    pause = store.hook

    async def look(operation: str, key: str, when: str) -> None:
        if when == "after" and operation in {"put", "copy", "delete"}:
            seen = of_memory(store.inner)  # type: ignore[arg-type] # see `pauses`
            check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)
        await pause(operation, key, when)

    store.hook = look
    check_reports(await run_together(store, 8, Settings(concurrency=3)))


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("runners", [2, 4, 8])
async def test_runners_at_once_over_http(plane: str, runners: int) -> None:
    """The same over HTTP, with a client for each runner and delayed responses."""
    scenario = prepared()
    for seed in range(2 if runners < 8 else 1):
        dice = random.Random(seed)

        async def linger(_request: Request, dice: random.Random = dice) -> None:
            for _ in range(dice.choice((0, 1, 5, 20))):
                await asyncio.sleep(0)

        async with S3Server([BUCKET], clock=lambda: AT, on_request=linger) as server:
            fill_server(server, scenario.store)

            async def one(server: S3Server = server) -> RunReport:
                async with open_s3(server, plane) as (store, settings):
                    return await run(store, settings, at=AT)

            reports = await asyncio.gather(*(one() for _ in range(runners)))
            seen = of_server(server)
        assert not any(report.failures for report in reports)
        check_reports(list(reports))
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        assert final_bytes(seen) == scenario.expected


@pytest.mark.parametrize("runners", [2, 4, 8])
async def test_runners_at_once_on_a_directory(runners: int, tmp_path: Path) -> None:
    """The same on a directory; each runner opens the store itself."""
    scenario = prepared_directory(tmp_path)
    root = fill_directory(scenario.root, tmp_path / "store")
    settings = Settings(concurrency=3)
    reports = await asyncio.gather(
        *(run(DirectoryStore(root), settings, at=AT) for _ in range(runners))
    )
    assert not any(report.failures for report in reports)
    check_reports(list(reports))
    seen = of_directory(root)
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected
