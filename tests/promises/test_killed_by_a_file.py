"""A file that kills every run that reads it is found and deferred; all others are settled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
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
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.deadline import Deadline
from asyncagg.job.listing import KeyRange
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run, run_pipeline
from asyncagg.job.refusals import Refusals
from asyncagg.runtime.process import Process
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store import memory as memory_store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore

AT = datetime(2025, 10, 21, 14, 10, tzinfo=UTC)
JOURNAL = "aggregates/asyncagg.run"
POISON = b'{"matches_found": 1, "run_id": "poison"}'

PROGRAM = """
import os, signal
import asyncagg.job.fetch as fetching

parse = fetching.parse

def killing_parse(data, *words, **more):
    if b"poison" in data:
        os.kill(os.getpid(), signal.SIGKILL)
    return parse(data, *words, **more)

fetching.parse = killing_parse

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


async def test_the_file_is_found_in_a_few_runs(tmp_path: Path) -> None:
    """Each death narrows it down; then it is deferred, with its reason, and exit code 3."""
    fill(tmp_path, {3}, 9)
    bad = {f"runs/{path.name}" for path in (tmp_path / "runs").iterdir()
           if path.read_bytes() == POISON}  # fmt: skip
    originals = [each for each in originals_of(of_directory(tmp_path)) if each.key not in bad]
    codes: list[int] = []
    while not codes or codes[-1] == -signal.SIGKILL:
        done = killable("run", str(tmp_path), "--at", AT.isoformat(), "--json")
        codes.append(done.returncode)
        assert len(codes) <= 5, codes
    assert codes[-1] == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["total"]["deferred"] == report["backlog"] == len(bad)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["key"] for line in lines if line["message"] == "deferred"} == bad
    assert all("runs died" in line["reason"] for line in lines if line["message"] == "deferred")
    seen = {key: each for key, each in of_directory(tmp_path).items() if key not in bad}
    check_after_clean_run(seen, originals, at=AT)
    assert (await run(DirectoryStore(tmp_path), Settings(), at=AT)).total.deferred == len(bad)
    for key in bad:
        (tmp_path / key).write_bytes(run_data(99))
    assert (await run(DirectoryStore(tmp_path), Settings())).exit_code == 0
    assert json.loads((tmp_path / JOURNAL).read_bytes()) == {}


def proc_of(
    folder: Path,
    *,
    pid: int = 10,
    started: int = 500,
    boot: str = "boot-1",
    namespace: str = "pid:[1]",
    others: Sequence[tuple[int, int, str]] = (),
) -> Path:
    """Make a folder like /proc, as one process sees it; the others have an ID, a start, a state."""
    (folder / "sys/kernel/random").mkdir(parents=True)
    (folder / "sys/kernel/random/boot_id").write_text(f"{boot}\n")
    for number, start, state in ((pid, started, "R"), *others):
        (folder / f"{number}/ns").mkdir(parents=True)
        (folder / f"{number}/ns/pid").symlink_to(namespace)
        numbers = " ".join(map(str, range(4, 22)))
        command = b"a) S (\xff"
        stat = b"%d (%s) %s %s %d 23 24\n" % (
            *(number, command),
            *(state.encode(), numbers.encode(), start),
        )
        (folder / f"{number}/stat").write_bytes(stat)
    (folder / "self").symlink_to(str(pid))
    return folder


@pytest.fixture(scope="module")
def procs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What two processes see, one after the other: neither is there when the other one is."""
    folder = tmp_path_factory.mktemp("procs")
    return proc_of(folder / "1", pid=10), proc_of(folder / "2", pid=11)


async def run_in(
    proc: Path,
    store: Store,
    settings: Settings | None = None,
    *,
    at: datetime = AT,
    now: Callable[[], datetime] = lambda: AT,
    **more: Any,
) -> RunReport:
    """Run in a process that sees what is in a folder like /proc."""
    committer = Committer()
    return await run_pipeline(
        JobContext(store, settings or Settings(), now=now, proc=proc),
        committer.count,
        Refusals(),
        keeps_journal=True,
        committed=committer.committed,
        at=at,
        **more,
    )


async def inbox_of(count: int) -> MemoryStore:
    """Return a store with good run files: 00.json, 01.json, ..."""
    store = MemoryStore(lambda: AT - timedelta(minutes=12))
    for number in range(count):
        await store.put(f"runs/{number:02}.json", run_data(number))
    return store


def etag_of(store: MemoryStore, number: int) -> dict[str, str]:
    """Return the entry of one of its run files in the journal."""
    key = f"runs/{number:02}.json"
    return {key: store._objects[key].etag}


def journal_of(store: MemoryStore) -> Any:
    """Return what the journal says."""
    return json.loads(store._objects[JOURNAL].data)


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
    procs: tuple[Path, Path], poisonous: set[int], count: int, page: int, concurrency: int
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
    with patch.object(memory_store, "_PAGE", page):
        while report is None:
            try:
                store_of_a_process = HookedStore(store, killer(fatal))
                chosen = Settings(concurrency=concurrency, chunk_files=20)
                report = await run_in(procs[deaths % 2], store_of_a_process, chosen)
            except BaseException as error:
                if not isinstance(error, Killed | BaseExceptionGroup):
                    raise
                deaths += 1
                assert deaths <= 7 * len(fatal)
    assert report.total.deferred == report.backlog == len(fatal)
    seen = {key: each for key, each in of_memory(store).items() if key not in fatal}
    check_after_clean_run(seen, originals, at=AT)


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


def killer_at(number: int) -> Callable[[str, str, str], Awaitable[None]]:
    """Return a hook that ends the process at its n-th request, whatever that is."""
    requests = 0

    async def hook(_operation: str, _key: str, when: str) -> None:
        nonlocal requests
        requests += when == "before"
        if requests >= number:
            raise Killed
        await anyio.lowlevel.checkpoint()

    return hook


@pytest.mark.parametrize("page", [1, 3])
async def test_deaths_of_another_cause_defer_no_file(procs: tuple[Path, Path], page: int) -> None:
    """After one run was killed, a second one is, at any request: the next settles every file."""
    number, died = 0, True
    while died:
        number, died = number + 1, False
        store = await inbox_of(3)
        await store.put(JOURNAL, b'{"running": true}')
        with patch.object(memory_store, "_PAGE", page):
            try:
                await run_in(procs[0], HookedStore(store, killer_at(number)))
            except (Killed, BaseExceptionGroup):
                died = True
            report = await run_in(procs[1], store)
        assert report.exit_code == 0, number
        assert journal_of(store) == {}, number
        assert not [key for key in store._objects if key.startswith("runs/")], number
    assert number > 10


@pytest.mark.parametrize(
    "some", [{"dry_run": True}, {"only": lambda _: False, "keys": [KeyRange("runs/a")]}]
)
async def test_a_run_that_tries_nothing_leaves_the_death_to_the_next(
    procs: tuple[Path, Path], some: dict[str, Any]
) -> None:
    """A dry run, for example. Once all files are gone, a run without work closes the journal."""
    store = await inbox_of(1)
    await store.put(JOURNAL, b'{"running":true}')
    await run_in(procs[0], store, **some)
    assert journal_of(store) == {"running": True}
    del store._objects["runs/00.json"]
    await run_in(procs[0], store)
    assert journal_of(store) == {}


@pytest.mark.parametrize("is_fatal", [False, True])
async def test_a_file_is_deferred_after_two_deaths_alone(
    procs: tuple[Path, Path], *, is_fatal: bool
) -> None:
    """After the first one it is tried alone, once more; a run that ends well clears it."""
    store = await inbox_of(5)
    bad = etag_of(store, 3)
    death = {"running": True, "working": bad}
    await store.put(JOURNAL, msgspec.json.encode(death))
    try:
        await run_in(procs[0], HookedStore(store, killer(set(bad) if is_fatal else set())))
    except (Killed, BaseExceptionGroup):
        left = journal_of(store)
        assert (left["working"], left["struck"], "poison" in left) == (bad, bad, False)
        report = await run_in(procs[1], store)
        assert (report.total.deferred, report.backlog) == (1, 1)
        assert journal_of(store) == {"poison": bad}
    else:
        assert journal_of(store) == {}
    assert [key for key in store._objects if key.startswith("runs/")] == [*bad] * is_fatal


OLD = {"host": "machine", "process": 10, "unknown": [1]}
"""What an older version wrote, and what a newer one may write."""


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize(
    ("last", "here", "was_killed"),
    [
        pytest.param({}, {}, True, id="its process is gone"),
        pytest.param({}, {"others": [(10, 500, "S")]}, False, id="its process is alive"),
        pytest.param({}, {"others": [(10, 501, "S")]}, True, id="another process has its ID"),
        pytest.param({}, {"others": [(10, 500, "Z")]}, True, id="its process is a zombie"),
        pytest.param({}, {"pid": 10, "started": 501}, True, id="this process has its ID"),
        pytest.param({}, {"pid": 10}, None, id="an earlier run of this process"),
        pytest.param({"boot": "boot-2"}, {}, None, id="another machine, or a reboot"),
        pytest.param({"namespace": "pid:[2]"}, {}, None, id="another container"),
        pytest.param(
            {"namespace": "pid:[2]", "pid": 1}, {"pid": 1}, None, id="PID 1 of another container"
        ),
        pytest.param({}, None, None, id="no processes can be seen here"),
        pytest.param(None, {}, None, id="no processes could be seen there"),
    ],
)
async def test_a_dead_run_is_told_from_a_live_one(
    tmp_path: Path,
    last: dict[str, Any] | None,
    here: dict[str, Any] | None,
    *,
    was_killed: bool | None,
    is_over: bool,
) -> None:
    """By its process where that can be seen, else by the time until which it said it lives.

    The journal of a live run stays as it is.
    """
    store = await inbox_of(1)
    seen_there = tmp_path if last is None else proc_of(tmp_path / "there", **last)
    seen_here = tmp_path if here is None else proc_of(tmp_path / "here", **{"pid": 11} | here)
    until = AT + timedelta(minutes=-1 if is_over else 1)
    entry = OLD | {"running": True, "runner": Process.current(seen_there), "until": until}
    await store.put(JOURNAL, msgspec.json.encode(entry))
    before = journal_of(store)
    report = await run_in(seen_here, store)
    assert (report.total.counted, report.exit_code) == (1, 0)
    assert journal_of(store) == ({} if (is_over if was_killed is None else was_killed) else before)


@pytest.mark.skipif(not Path("/proc/sys").exists(), reason="only Linux shows processes there")
def test_a_killed_process_is_seen(tmp_path: Path) -> None:
    """Also before its parent has noticed."""
    (tmp_path / "sys").symlink_to("/proc/sys")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        (tmp_path / "self").symlink_to(f"/proc/{child.pid}")
        process = Process.current(tmp_path)
        assert process is not None
        assert process.has_ended() is False
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.has_ended() is True
    assert process.has_ended() is True


@pytest.mark.parametrize("seconds", [None, 1e15])
async def test_a_long_run_says_that_it_lives(
    procs: tuple[Path, Path], seconds: float | None
) -> None:
    """Another runner, which cannot see its process, believes it at each moment. It costs little."""
    store = await inbox_of(40)
    clock, written = Clock(), []

    async def hook(operation: str, key: str, when: str) -> None:
        if (operation, when) == ("list", "after"):
            clock.now += timedelta(minutes=1)
            if JOURNAL in store._objects:
                assert datetime.fromisoformat(journal_of(store)["until"]) > clock.now
        elif (operation, key, when) == ("put", JOURNAL, "before"):
            written.append(clock.now)

    with patch.object(memory_store, "_PAGE", 1):
        report = await run_in(
            procs[0],
            HookedStore(store, hook),
            Settings(chunk_files=1),
            now=clock,
            deadline=Deadline.after(seconds),
        )
    assert report.total.archived == 40
    *begun, _ = written
    assert len(begun) > 5
    pauses = [after - before for before, after in pairwise(begun)]
    assert min(pauses) >= timedelta(minutes=5)


def cut_off(store: MemoryStore) -> HookedStore:
    """Let the listing fail after the first page, once its files are settled."""
    pages = 0

    async def hook(operation: str, key: str, when: str) -> None:
        nonlocal pages
        pages += (operation, key, when) == ("list", "runs/", "before")
        if pages == 2 and operation == "list":
            while "runs/00.json" in store._objects:
                await anyio.lowlevel.checkpoint()
            raise TransientError("the listing is cut off")
        await anyio.lowlevel.checkpoint()

    return HookedStore(store, hook)


@pytest.mark.parametrize(
    "some",
    [
        pytest.param({"only": lambda window: window.end < AT - timedelta(minutes=11)}, id="only"),
        pytest.param({"keys": (KeyRange("", "runs/00.json"),)}, id="keys"),
        pytest.param({"at": AT - timedelta(minutes=12)}, id="an earlier event"),
        pytest.param({}, id="the listing was cut off"),
    ],
)
async def test_what_earlier_runs_learned_is_kept_until_it_is_gone(
    procs: tuple[Path, Path], some: dict[str, Any]
) -> None:
    """A run that does not come to the suspects forgets none; one that lists all, what is gone."""
    clock = Clock(AT - timedelta(minutes=22))
    store = MemoryStore(clock)
    await store.put("runs/00.json", run_data(0))
    clock.now = AT - timedelta(minutes=11)
    for number in range(1, 4):
        await store.put(f"runs/{number:02}.json", run_data(number))
    first, second, poison = (etag_of(store, number) for number in (1, 2, 3))
    there: dict[str, Any] = {"suspects": [first, second], "struck": second, "poison": poison}
    gone = {"runs/gone.json": "e"}
    known = there | {"suspects": [first | gone, second], "poison": poison | gone}
    await store.put(JOURNAL, msgspec.json.encode(known))
    with patch.object(memory_store, "_PAGE", 1):
        try:
            inbox = store if some else cut_off(store)
            await run_in(procs[0], inbox, Settings(chunk_files=1), **some)
        except TransientError:
            assert not some
    assert [key for key in store._objects if key.startswith("runs/")] == [*first, *second, *poison]
    assert journal_of(store) == (there if {"only", "at"} & set(some) else known)
    report = await run_in(procs[0], store)
    assert (report.total.archived, report.total.deferred) == (2, 1)
    assert journal_of(store) == {"poison": poison}
    del store._objects["runs/03.json"]
    await store.put("runs/04.json", run_data(4))
    assert (await run_in(procs[0], store)).exit_code == 0
    assert journal_of(store) == {}


async def test_a_suspect_is_kept_if_the_run_is_cut_off_while_it_tries_it(
    procs: tuple[Path, Path],
) -> None:
    """It is tried alone again, not with the others."""
    store = await inbox_of(2)
    suspect = etag_of(store, 1)
    known = {"suspects": [suspect], "struck": suspect}
    await store.put(JOURNAL, msgspec.json.encode(known))

    async def cut(operation: str, key: str, _when: str) -> None:
        if (operation, key) == ("get", "runs/01.json"):
            scope.cancel()
        await anyio.lowlevel.checkpoint()

    with anyio.CancelScope() as scope:
        await run_in(procs[0], HookedStore(store, cut))
    assert scope.cancelled_caught
    assert journal_of(store) == known
    assert (await run_in(procs[0], store)).total.archived == 1
    assert journal_of(store) == {}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_a_lost_request_of_the_journal_defers_no_file(
    procs: tuple[Path, Path], number: int, when: str
) -> None:
    """Whether the store executed it or not, at the end of the run, too: all are settled next."""
    store = await inbox_of(4)
    working = {key: etag for place in range(4) for key, etag in etag_of(store, place).items()}
    await store.put(JOURNAL, msgspec.json.encode({"running": True, "working": working}))
    puts = 0

    async def lose(operation: str, key: str, moment: str) -> None:
        nonlocal puts
        if (operation, key, moment) == ("put", JOURNAL, when):
            puts += 1
            if puts == number:
                raise TransientError("reset")
        elif (operation, key) == ("get", "runs/03.json"):
            raise TransientError("reset")

    report = await run_in(procs[0], HookedStore(store, lose))
    assert (report.total.archived, report.total.deferred, puts) == (3, 1, 5)
    is_left = (number, when) == (5, "before")
    assert journal_of(store).get("working", {}) == (etag_of(store, 3) if is_left else {})
    report = await run_in(procs[1], store)
    assert (report.total.archived, report.exit_code) == (1, 0)
    assert journal_of(store) == {}


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


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no json", b'{"running": "perhaps"}', b'{"running": true}'),
        b'{"running": true, "until": "2025-10-21T14:00:00"}',
        b'{"running": true, "until": "2025-10-21T14:00:00Z", "runner": {"host": "h"}}',
    ],
)
async def test_a_damaged_journal_is_replaced(content: bytes) -> None:
    """It is a help, not a promise."""
    store = MemoryStore(lambda: AT - timedelta(minutes=12))
    await store.put("runs/a.json", run_data(1))
    await store.put(JOURNAL, content)
    report = await run(store, Settings(), at=AT)
    assert report.exit_code == 0
    assert json.loads(store._objects[JOURNAL].data) == {}
