"""A file that kills every run that reads it is found and deferred; all others are settled."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.hooked import HookedStore
from testkit.promises import check_after_clean_run, of_directory, of_memory, originals_of
from testkit.scenario import Clock, run_data

from asyncagg.errors import AccessDeniedError, StoreError, TransientError
from asyncagg.job import journal
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store import memory as memory_store
from asyncagg.store.memory import MemoryStore

AT = datetime(2025, 10, 21, 14, 10, tzinfo=UTC)
JOURNAL = "aggregates/asyncagg.run"
POISON = b'{"matches_found": 1, "run_id": "poison"}'

PROGRAM = """
import os, signal
import asyncagg.job.run_files as reading

parse = reading.parse

def killing_parse(data, *words, **more):
    if b"poison" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    return parse(data, *words, **more)

reading.parse = killing_parse

from asyncagg.cli import main
main()
"""
"""The command line, with a parser that some files kill."""


def killable(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def fill(root: Path, poisonous: set[int], count: int) -> None:
    """Write run files of three windows; some kill who reads them."""
    (root / "runs").mkdir(parents=True)
    for number in range(count):
        stamp = AT - timedelta(minutes=14 - number % 12, seconds=number % 50)
        path = root / "runs" / f"{stamp:%Y%m%dt%H%M%SZ}_{number:03}.json"
        path.write_bytes(POISON if number in poisonous else run_data(number))
        os.utime(path, (stamp.timestamp(), stamp.timestamp()))


def test_the_file_is_found_in_a_few_runs(tmp_path: Path) -> None:
    """Each death narrows it down; then it is deferred, with its reason, and exit code 3."""
    fill(tmp_path, {3}, 9)
    bad = {f"runs/{path.name}" for path in (tmp_path / "runs").iterdir()
           if path.read_bytes() == POISON}  # fmt: skip
    originals = [each for each in originals_of(of_directory(tmp_path)) if each.key not in bad]
    codes: list[int] = []
    while not codes or codes[-1] == -signal.SIGKILL:
        done = killable("run", str(tmp_path), "--at", AT.isoformat(), "--json")
        codes.append(done.returncode)
        assert len(codes) <= 4, codes
    assert codes[-1] == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["total"]["deferred"] == report["backlog"] == len(bad)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["key"] for line in lines if line["message"] == "deferred"} == bad
    assert all("runs died" in line["reason"] for line in lines if line["message"] == "deferred")
    seen = {key: each for key, each in of_directory(tmp_path).items() if key not in bad}
    check_after_clean_run(seen, originals, at=AT)
    again = killable("run", str(tmp_path), "--at", AT.isoformat(), "--json")
    assert again.returncode == 3
    for key in bad:
        (tmp_path / key).write_bytes(run_data(99))
    later = killable("run", str(tmp_path), "--json")
    assert later.returncode == 0, later.stderr


class Killed(BaseException):
    """The process is gone."""


@given(
    poisonous=st.sets(st.integers(0, 59), max_size=3),
    count=st.integers(1, 60),
    page=st.integers(1, 70),
    concurrency=st.integers(1, 8),
)
@settings(max_examples=25)
async def test_runs_end_and_settle_all_others(
    poisonous: set[int], count: int, page: int, concurrency: int
) -> None:
    """However many such files there are: the runs die a few times for each, and never for ever."""
    clock = Clock()
    store = MemoryStore(clock)
    for number in range(count):
        clock.now = AT - timedelta(minutes=14 - number % 12)
        await store.put(f"runs/{number:02}.json", run_data(number))
    clock.now = AT
    fatal = {f"runs/{number:02}.json" for number in poisonous if number < count}
    originals = [each for each in originals_of(of_memory(store)) if each.key not in fatal]
    deaths, report = 0, None
    with patch.object(memory_store, "_PAGE", page), patch.object(journal, "_is_gone", gone):
        while report is None:
            try:
                store_of_a_process = HookedStore(store, killer(fatal))
                chosen = Settings(concurrency=concurrency, chunk_files=20)
                report = await run(store_of_a_process, chosen, at=AT)
            except BaseException as error:
                if not isinstance(error, Killed | BaseExceptionGroup):
                    raise
                deaths += 1
                assert deaths <= 6 * len(fatal)
    assert report.total.deferred == report.backlog == len(fatal)
    seen = {key: each for key, each in of_memory(store).items() if key not in fatal}
    check_after_clean_run(seen, originals, at=AT)


async def gone(_process: int) -> bool:
    """Say that a process has ended."""
    return True


def killer(fatal: set[str]) -> Callable[[str, str, str], Awaitable[None]]:
    """Return a hook that ends the process at the first GET of some files."""
    is_dead = False

    async def hook(operation: str, key: str, when: str) -> None:
        nonlocal is_dead
        is_dead = is_dead or ((operation, when) == ("get", "before") and key in fatal)
        if is_dead:
            raise Killed
        await anyio.lowlevel.checkpoint()

    return hook


async def test_a_run_that_is_alive_is_not_taken_for_dead() -> None:
    """Neither its journal nor the pace of this run changes."""
    store = MemoryStore(lambda: AT - timedelta(minutes=12))
    await store.put("runs/a.json", run_data(1))
    alive = {
        "running": True,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "until": (datetime.now(UTC) + timedelta(minutes=5)).isoformat(),
    }
    await store.put(JOURNAL, msgspec.json.encode(alive))
    report = await run(store, Settings(), at=AT)
    assert report.total.counted == 1
    assert json.loads(store._objects[JOURNAL].data) == alive


@pytest.mark.parametrize("error", [AccessDeniedError("denied"), TransientError("reset")])
async def test_a_journal_that_cannot_be_used_stops_no_run(error: StoreError) -> None:
    """Every file is settled all the same."""
    store = MemoryStore(lambda: AT - timedelta(minutes=12))
    await store.put("runs/a.json", run_data(1))

    async def refuse(_operation: str, key: str, when: str) -> None:
        if (key, when) == (JOURNAL, "before"):
            raise error

    report = await run(HookedStore(store, refuse), Settings(), at=AT)
    assert (report.total.archived, report.exit_code) == (1, 0)


async def test_a_journal_that_cannot_be_read_once_is_kept() -> None:
    """What earlier runs have learned is not overwritten by a run that does not know it."""
    store = MemoryStore(Clock(AT - timedelta(hours=1)))
    await store.put("runs/20251021t1350Z-a.json", run_data(1))
    known = b'{"poison":{"runs/20251021t1350Z-b.json":"etag"}}'
    await store.put(JOURNAL, known)

    async def fail(operation: str, key: str, when: str) -> None:
        if (operation, key, when) == ("get", JOURNAL, "before"):
            raise TransientError("the store is away", operation="get", key=key)

    report = await run(HookedStore(store, fail), Settings(), at=AT)
    assert report.total.archived == 1
    assert (await store.get(JOURNAL)).data == known


@pytest.mark.parametrize("content", [b"", b"no json", b'{"running": "perhaps"}'])
async def test_a_damaged_journal_is_replaced(content: bytes) -> None:
    """It is a help, not a promise."""
    store = MemoryStore(lambda: AT - timedelta(minutes=12))
    await store.put("runs/a.json", run_data(1))
    await store.put(JOURNAL, content)
    report = await run(store, Settings(), at=AT)
    assert report.exit_code == 0
    assert json.loads(store._objects[JOURNAL].data) == {}
