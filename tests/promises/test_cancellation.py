"""Cancelled while any request hangs, the job leaves a clean state, no task and no file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from testkit.promises import check_after_clean_run, check_at_any_moment, final_bytes, of_server
from testkit.s3server import Pause, Request, S3Server
from testkit.scenario import AT, BUCKET, PLANES, fill_server, open_s3, prepared

from asyncagg.job.pipeline import run
from asyncagg.store.guards import GuardedStore

STAGES: dict[str, Callable[[Request], bool]] = {
    "list": lambda request: request.operation == "ListObjectsV2",
    "load": lambda request: request.key == "aggregates/20251021t1355Z.json",
    "get": lambda request: request.key == "runs/c05-equal.json",
    "commit": lambda request: (
        request.operation == "PutObject" and request.key == "aggregates/20251021t1400Z.json"
    ),
    "copy": lambda request: request.key == "archive/c05-equal.json",
    "pack": lambda request: request.operation == "PutObject" and request.key.endswith(".zip"),
    "quarantine": lambda request: request.key == "quarantine/d09-bad.json",
    "delete": lambda request: request.operation == "DeleteObjects",
    "probe": lambda request: request.operation == "PutObject" and "asyncagg-probe-" in request.key,
}
"""The requests to hang at."""


async def by_scope(job: Callable[[], Awaitable[object]], reached: asyncio.Event) -> None:
    """Cancel through a cancel scope, as a timeout does."""
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await reached.wait()
            group.cancel_scope.cancel()

        group.start_soon(cancel)
        await job()


async def by_task(job: Callable[[], Awaitable[object]], reached: asyncio.Event) -> None:
    """Cancel the task, as Ctrl-C does."""

    async def main() -> None:
        await job()

    task = asyncio.create_task(main())
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def left_behind(folder: Path) -> list[str]:
    """Return the files in a folder, and those without a name that this process has open there."""
    found = [str(path) for path in folder.iterdir()]
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue  # the descriptor of this listing
        if target.startswith(str(folder)):
            found.append(target)
    return found


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("cancel", [by_scope, by_task])
@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_while_a_request_hangs(
    stage: str,
    cancel: Callable[[Callable[[], Awaitable[object]], asyncio.Event], Awaitable[None]],
    when: str,
    plane: str,
    tmp_path: Path,
) -> None:
    """The promises hold, no task or file is left, and the same store still works."""
    scenario = prepared()
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, scenario.store)
        archive_format = "packs" if stage == "pack" else "files"
        opened = open_s3(server, plane, spool_bytes=0, archive_format=archive_format)
        async with opened as (store, settings):
            if stage != "probe":
                await store.guards()
            pause = Pause(STAGES[stage], executed=when == "after")
            server.faults.pause_at = pause
            tasks = asyncio.all_tasks()
            files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths

            async def job(store: GuardedStore = store) -> None:
                await run(store, settings, at=AT, temporary=tmp_path)

            await cancel(job, pause.reached)
            orphans = asyncio.all_tasks() - tasks - server._tasks
            assert not orphans, f"still running: {orphans}"
            assert left_behind(tmp_path) == []
            # Each connection has two ends in this process; their number may vary, but not grow.
            assert len(os.listdir("/proc/self/fd")) <= files + 2 * settings.concurrency  # noqa: PTH208
            pause.release.set()
            server.faults.pause_at = None
            check_at_any_moment(of_server(server), scenario.originals, foreign=scenario.foreign)
            report = await run(store, settings, at=AT, temporary=tmp_path)
            assert not report.failures
        seen = {key: each for key, each in of_server(server).items() if "-probe-" not in key}
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        assert final_bytes(seen) == scenario.expected
