"""Stopped at any request, in any way, the job loses nothing and counts nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testkit import crash_driver
from testkit.hooked import Stopped
from testkit.promises import (
    PROBE,
    Snapshot,
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
)
from testkit.s3server import DropError, Request, S3Server, ThreadedS3Server, operations
from testkit.scenario import (
    AT,
    BUCKET,
    FORMATS,
    PLANES,
    PreparedDirectory,
    fill_directory,
    fill_memory,
    fill_server,
    in_thread,
    memory_of,
    open_s3,
    prepared,
    prepared_directory,
    s3_settings,
)

import asyncagg.store.memory as memory_store
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore

PAGE = 6
"""Objects per page and files per chunk for tests that need several commits per window."""

FEW = ("again", "left-over", "refused", "c01", "c04", "c08", "d10", "d11", "e13", "g17")
"""Name prefixes of the files for tests in which every step is slow: one of each kind."""


class Driver:
    """A warm process that forks for each job; see `testkit.crash_driver`."""

    def __init__(self) -> None:
        script = Path(crash_driver.__file__)
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root},
        )

    def start(self, job: dict[str, Any]) -> int:
        """Fork a process that waits before it begins; return its id."""
        self._send(json.dumps(job))
        return self._receive()

    def finish(self) -> int:
        """Let it begin, and return its status once it has ended."""
        self._send("go")
        return self._receive()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _receive(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture
def driver(no_real_aws: None) -> Iterator[Driver]:  # noqa: ARG001 - the process inherits its environment
    """The process that forks, for one test."""
    driver = Driver()
    yield driver
    driver.close()


def check_crashed(seen: Snapshot, step: str) -> None:
    """Check promises 1 to 3 at the moment of a crash."""
    scenario = prepared()
    with noting(step):
        check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)


def check_done(seen: Snapshot, step: str) -> None:
    """Check every promise, and that the aggregates are those of an undisturbed run."""
    scenario = prepared()
    with noting(step):
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        assert final_bytes(seen) == scenario.expected


@contextmanager
def noting(step: str) -> Iterator[None]:
    """Add the step to the message of a check that fails."""
    try:
        yield
    except AssertionError as failure:
        failure.add_note(f"stopped at {step}")
        raise


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("chunk", [20_000, PAGE - 1], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("archive_format", FORMATS)
async def test_cancelled_at_every_request(
    archive_format: Any, chunk: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled at any request, the promises hold; the next run gives the undisturbed result."""
    if chunk <= PAGE:
        monkeypatch.setattr(memory_store, "_PAGE", PAGE)
    settings = Settings(chunk_files=chunk, concurrency=4, archive_format=archive_format)
    for number in count(1):
        store = fill_memory(prepared().store)
        stopped = Stopped(store, number, when)
        stopped.task = asyncio.create_task(run(stopped.store, settings, at=AT))
        await asyncio.wait([stopped.task])
        if not stopped.step:
            await stopped.task
            break
        assert stopped.task.cancelled(), stopped.step
        check_crashed(of_memory(store), stopped.step)
        await run(store, settings, at=AT)
        check_done(of_memory(store), stopped.step)
    assert number > 50
    check_done(of_memory(store), "no request")


@pytest.mark.parametrize("archive_format", FORMATS)
@pytest.mark.parametrize("plane", PLANES)
async def test_promises_hold_before_every_request(plane: str, archive_format: str) -> None:
    """In an undisturbed run, promises 1 to 3 hold at the arrival of each request."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        fill_server(server, prepared().store)
        server.on_request = lambda request: check_crashed(of_server(server), str(request))
        async with open_s3(server, plane, archive_format=archive_format) as (store, settings):
            report = await run(store, settings, at=AT)
        server.on_request = None
        check_done(of_server(server), "no request")
        assert report.exit_code == 3  # there are bad files
        # The server does not know that a pack has the content of a deleted file.
        kept = ("quarantine/", "archive/", *(("runs/",) if archive_format == "files" else ()))
        lost = [each for each in server.audit.lost if each.key.startswith(kept)]
        assert not [each for each in lost if PROBE not in each.key]


class Killer:
    """Kills a process at its n-th request that changes the bucket, which is then executed or not.

    A kill at a read would leave what the change before it left.
    """

    def __init__(self, pid: int, at: int, when: str) -> None:
        self.step = ""
        self._pid = pid
        self._at = at
        self._when = when
        self._seen = 0

    def __call__(self, request: Request) -> None:
        """Count a request that arrives."""
        if not self.step:
            self._seen += request.method not in {"GET", "HEAD"}
            if self._seen < self._at:
                return
            os.kill(self._pid, signal.SIGKILL)
            self.step = f"request {self._at}, {request.operation} {request.key!r}"
            if self._when == "after":
                return
        raise DropError(reset=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("archive_format", FORMATS)
def test_killed_at_every_request(
    plane: str, when: str, archive_format: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by SIGKILL at any request to S3, the promises hold; the next run finishes the work.

    One sweep stops after every change of the bucket. The others need only every third one: the
    planes send the same requests, and "before" one is "after" the one before it.
    """
    monkeypatch.setattr(operations, "MAX_KEYS", 2 * PAGE)
    with ThreadedS3Server(S3Server([BUCKET], clock=lambda: AT)) as threaded:
        server = threaded.server
        chunk = 2 * PAGE - 1
        settings = s3_settings(
            threaded.url, plane, chunk_files=chunk, archive_format=archive_format
        )
        job = {"settings": msgspec.to_builtins(settings), "at": AT.isoformat()}
        for number in count(1, 1 if (plane, when) == ("lean", "after") else 3):
            threaded.call(refill, server)
            killer = Killer(driver.start(job), number, when)
            server.on_request = killer
            status = driver.finish()
            while server.connections:  # the server still answers the dead process
                time.sleep(0.0001)
            seen = threaded.call(of_server, server)
            if not killer.step:
                break
            assert status == -signal.SIGKILL, killer.step
            check_crashed(seen, killer.step)
            left = memory_of(seen)
            # The next run finishes it in the other form.
            other = Settings(archive_format="files" if archive_format == "packs" else "packs")
            in_thread(partial(run, left, other, at=AT))
            check_done(of_memory(left), killer.step)
        assert status == 3  # there are bad files
        assert number > 40
        check_done(seen, "no request")


def refill(server: S3Server) -> None:
    """Put the server back to the scenario's start."""
    server.on_request = None
    server.clear()
    fill_server(server, prepared().store)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("archive_format", FORMATS)
def test_killed_at_every_change_of_a_directory(
    archive_format: str, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed by SIGKILL before any change to the file system, a directory keeps the promises."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # as in the driver
    scenario = prepared_directory(tmp_path, only=FEW)
    for number in count(1):
        root = fill_directory(scenario.root, tmp_path / "store")
        settings: dict[str, Any] = {
            "store": str(root),
            "chunk_files": PAGE - 1,
            "concurrency": 4,
            "archive_format": archive_format,
        }
        driver.start({"settings": settings, "at": AT.isoformat(), "page": PAGE, "kill_at": number})
        status = driver.finish()
        if status != -signal.SIGKILL:
            break
        with noting(f"change {number}"):
            seen = of_directory(root)
            check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)
            in_thread(partial(run, DirectoryStore(root), Settings(**settings), at=AT))
            check_directory(scenario, root)
        shutil.rmtree(root)
    assert status == 3
    assert number > 90
    check_directory(scenario, root)


def check_directory(scenario: PreparedDirectory, root: Path) -> None:
    """Check every promise, and that the aggregates are those of an undisturbed run."""
    seen = of_directory(root)
    check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
    assert final_bytes(seen) == scenario.expected
