"""The line that shows how far a command is: honest, always moving, and only on a terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from harness import environment
from rich.console import Console
from testkit.s3server import Pause, S3Server, ThreadedS3Server
from testkit.scenario import AT, BUCKET, moment, run_data

from asyncagg.cli import _exit_code, base
from asyncagg.cli.progress import Bar, CountedStore, shown
from asyncagg.ingest.parsing import is_run_file
from asyncagg.job.pipeline import run
from asyncagg.runtime import logs
from asyncagg.settings import settings_from
from asyncagg.store.memory import MemoryStore


class Clock:
    """A clock that is set."""

    now = 100.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


def test_the_time_left_is_estimated_from_files_once_the_listing_has_ended() -> None:
    """Before, only the time that has passed is shown; it moves while nothing else does."""
    clock = Clock()
    bar = Bar("files", clock=clock)
    assert (bar.counts(), bar.details()) == ("0 files", "0:00:00")
    clock.now += 60  # listing
    assert bar.details() == "0:01:00"
    bar.total = 1_000
    assert (bar.counts(), bar.details()) == ("0/1,000+ files", "0:01:00")
    clock.now += 10
    bar.done, bar.total, bar.is_final, bar.note = 1_000, 100_000, True, "199/200 windows"
    assert bar.counts() == "1,000/100,000 files"
    assert bar.details() == "0:16:30 left, 100/s, 199/200 windows"
    clock.now += 10  # nothing is done
    assert bar.details().startswith("0:33:00 left, 50/s")
    bar.done = 100_000
    assert bar.details().startswith("0:01:20, 5,000/s")


@pytest.mark.parametrize("archive_format", ["files", "packs"])
async def test_every_file_of_a_run_is_on_the_bar(archive_format: str) -> None:
    """The total has the files of ended windows; the bar comes to its end, also the second time."""
    store = MemoryStore(lambda: moment(13, 52))
    for number in range(30):
        await store.put(f"runs/{number:02}.json", run_data(number) if number else b"{")
    await store.put("runs/readme.txt", b"")
    settings = settings_from({"archive_format": archive_format, "window_by": "last_modified"})
    bar = Bar("files")
    counted = CountedStore(store, "runs/", bar, lambda file: is_run_file(file.key))
    dones: list[float] = []
    await run(counted, settings, at=AT, progress=lambda _: dones.append(bar.done))
    assert (bar.total, bar.is_final, bar.done) == (30, True, 30)
    assert dones


@pytest.mark.parametrize(("is_terminal", "json"), [(False, False), (True, True)])
async def test_a_pipe_and_json_get_nothing(is_terminal: bool, json: bool) -> None:  # noqa: FBT001
    """Nothing is written, and the log is whole."""
    written = io.StringIO()
    bar = Bar("files")
    async with shown(bar, Console(file=written, force_terminal=is_terminal), json=json):
        bar.done = 3
        await anyio.lowlevel.checkpoint()
    assert (written.getvalue(), bar.is_shown) == ("", False)


async def test_the_first_ten_quarantined_files_are_named_and_all_are_counted() -> None:
    """On a terminal, thousands of bad files do not push everything else away."""
    log, written = io.StringIO(), io.StringIO()
    logs.configure("warning", stream=log)
    bar = Bar("files")
    logger = logging.getLogger("asyncagg.job")
    async with shown(bar, Console(file=written, force_terminal=True, width=80), json=False):
        for number in range(15):
            logger.warning("quarantined", extra={"key": f"runs/{number}.json"})
        logger.warning("deferred")
        assert bar.quarantined == 15
        assert "15 quarantined" in bar.details()
    assert log.getvalue().count(" quarantined key=") == 10
    assert "deferred" in log.getvalue()
    logger.warning("quarantined")
    assert log.getvalue().count(" quarantined") == 11


def test_it_moves_in_the_middle_of_a_window(tmp_path: Path) -> None:
    """While one of four files hangs, the terminal shows that three are read."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        server = threaded.server
        for number in range(4):
            server.put(BUCKET, f"runs/20251021t1352Z_{number}.json", run_data(number))
        pause = server.faults.pause_at = Pause(lambda request: request.key.endswith("_3.json"))
        main, other = pty.openpty()
        words = ["run", f"s3://{BUCKET}", "--endpoint-url", threaded.url]
        with subprocess.Popen(
            [sys.executable, "-m", "asyncagg", *words],
            env=environment() | {"TERM": "xterm", "COLUMNS": "80"},
            stdout=subprocess.DEVNULL,
            stderr=other,
            cwd=tmp_path,
        ) as process:
            os.close(other)
            screen = b""
            while b" 2/4 files" not in screen:  # three are read, which is half of the work
                screen += os.read(main, 1000)
            threaded.call(pause.release.set)
            while True:
                try:
                    if not os.read(main, 1000):
                        break
                except OSError:  # so Linux says that the other end is closed
                    break
            assert process.wait(60) == 0
        os.close(main)


LONG_COMMANDS = {
    "sample {store} --files 20 --windows 2": "0 files",
    "backfill {store} --since 20200101 --dry-run": "0 files",
    "run {store}": "0 files",
    "verify {store}": "0 files read",
    "report {store} --out {store}/report.html": "0 aggregates",
    "rollup {store} --period day": "0 rollups",
    "archive extract {store} --since 20200101 --to {store}/restored": "0 files",
    "archive pack {store}": "0 files",
    "export {store} --to {store}/tables --format csv": "0 files",
    "demo --on directory --files 10": "0:00:00",
}


@pytest.mark.parametrize("json", [False, True])
def test_every_long_command_has_the_line(
    json: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is on a terminal from the start of the work, and not there with --json."""
    for command, beginning in LONG_COMMANDS.items():
        written = io.StringIO()
        terminal = Console(file=written, force_terminal=True, width=80)
        monkeypatch.setattr(base, "err", terminal)
        words = [each.format(store=tmp_path) for each in command.split()]
        assert _exit_code([*words, *(["--json"] if json else [])], debug=False) in {0, 3}
        assert (beginning in written.getvalue()) != json, command
