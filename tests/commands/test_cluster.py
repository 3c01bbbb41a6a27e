"""Backfill on Dask: killed, stopped and restarted parts of a cluster change nothing in the end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness import environment
from testkit.promises import check_after_clean_run, final_bytes, of_server
from testkit.s3server import Pause, Request, S3Server
from testkit.scenario import AT, BUCKET, fill_server, moment, open_s3, prepared, s3_settings

import asyncagg.backfill.cluster
from asyncagg.backfill import BackfillReport, backfill
from asyncagg.backfill.cluster import join_cluster
from asyncagg.errors import ConfigurationError
from asyncagg.job.pipeline import run
from asyncagg.model import Interval
from asyncagg.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

EVERYTHING = Interval(moment(13, 50), AT)
TTL_SECONDS = 4


class Cluster:
    """A scheduler and two workers, each a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "dask.log").open("wb")
        self._file = folder / "scheduler.json"
        self.port = 0
        self.scheduler = self._start_scheduler()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.refill()

    @property
    def address(self) -> str:
        """The scheduler's."""
        return f"tcp://127.0.0.1:{self.port}"

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        extra = {
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{TTL_SECONDS}s",
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "10",
        }
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            env=environment() | extra,
            stdout=self._log,
            stderr=self._log,
        )

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        self._file.unlink(missing_ok=True)
        words = (
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dashboard-address",
            "127.0.0.1:0",
        )
        scheduler = self._start(
            "distributed.cli.dask_scheduler", *words, "--scheduler-file", str(self._file)
        )
        until(self._file.exists)
        until(lambda: b"}" in self._file.read_bytes())
        self.port = int(self._file.read_text().partition('"tcp://127.0.0.1:')[2].partition('"')[0])
        return scheduler

    def refill(self) -> None:
        """Start workers until two are alive."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        words = ("--nworkers", "1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        while len(self.workers) < 2:
            self.workers.append(
                self._start(
                    "distributed.cli.dask_worker", self.address, *words, "--memory-limit", "0"
                )
            )

    def kill(self, *workers: subprocess.Popen[bytes]) -> None:
        """Kill workers, and start others in their place."""
        for worker in workers:
            worker.kill()
            worker.wait()
        self.refill()

    def restart_scheduler(self) -> None:
        """Kill the scheduler and start another one at the same address, with new workers."""
        self.scheduler.kill()
        self.scheduler.wait()
        self.scheduler = self._start_scheduler()
        self.kill(*self.workers)

    def close(self) -> None:
        """Kill everything."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        self._log.close()


def until(holds: Callable[[], object]) -> None:
    """Wait for something outside of this process; the test's own timeout is the limit."""
    while not holds():
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests: to start one takes seconds."""
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"))
        stack.callback(cluster.close)
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The cluster, whole again."""
    shared.refill()
    return shared


async def backfilled(server: S3Server, cluster: Cluster, **more: Any) -> BackfillReport:
    """Backfill the scenario's windows on the cluster, most of them in parts."""
    settings = s3_settings(server.url, **({"chunk_files": 3} | more))
    async with join_cluster(settings, cluster.address) as engine:
        return await backfill(engine, settings, EVERYTHING)


def check(server: S3Server) -> None:
    """Check every promise, and that the aggregates are those of a single process."""
    seen = of_server(server)
    check_after_clean_run(seen, prepared().originals, at=AT, foreign=prepared().foreign)
    assert final_bytes(seen) == prepared().expected
    assert not [key for key in seen if key.startswith("work/")]


@pytest.mark.parametrize("chunk_files", [1, 20_000])
async def test_a_cluster_gives_what_one_process_gives(cluster: Cluster, chunk_files: int) -> None:
    """Windows in parts, or whole: the same bytes."""
    async with S3Server([BUCKET]) as server:
        fill_server(server, prepared().store)
        report = await backfilled(server, cluster, chunk_files=chunk_files)
        assert (report.total.counted, report.workers_lost) == (14, 0)
        check(server)


def putting(prefix: str) -> Callable[[Request], bool]:
    """Choose the requests that write below a prefix."""
    return lambda request: request.operation == "PutObject" and request.key.startswith(prefix)


MOMENTS: dict[str, Pause] = {
    "a file is fetched": Pause(lambda request: request.key == "runs/c02.json"),
    "a part was written": Pause(putting("work/"), executed=True),
    "before the commit": Pause(putting("aggregates/")),
    "behind the commit": Pause(putting("aggregates/"), executed=True),
    "in the middle of the archive": Pause(
        lambda request: request.operation == "CopyObject", executed=True
    ),
}


@pytest.mark.parametrize("moment_", MOMENTS)
async def test_workers_are_killed(cluster: Cluster, moment_: str) -> None:
    """SIGKILL of all the workers in the middle of their work; others take over."""
    where = MOMENTS[moment_]
    pause = Pause(where.at, where.executed)
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        server.faults.pause_at = pause

        async def kill() -> None:
            await pause.reached.wait()
            await anyio.to_thread.run_sync(cluster.kill, *cluster.workers)
            server.faults.pause_at = None
            pause.release.set()

        group.start_soon(kill)
        await backfilled(server, cluster)
        check(server)


async def test_one_of_two_workers_is_killed(cluster: Cluster) -> None:
    """The other one goes on, and does what the dead one has not finished."""
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        pause = Pause(lambda request: request.operation == "GetObject" and "/c" in request.key)
        server.faults.pause_at = pause

        async def kill() -> None:
            await pause.reached.wait()
            cluster.workers[0].kill()
            server.faults.pause_at = None
            pause.release.set()

        group.start_soon(kill)
        report = await backfilled(server, cluster)
        assert report.workers_lost == 1
        check(server)


async def test_the_scheduler_is_restarted(cluster: Cluster) -> None:
    """Its tasks are lost with it; they are submitted again to the new one."""
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        pause = Pause(putting("work/"))
        server.faults.pause_at = pause

        async def restart() -> None:
            await pause.reached.wait()
            await anyio.to_thread.run_sync(cluster.restart_scheduler)
            server.faults.pause_at = None
            pause.release.set()

        group.start_soon(restart)
        await backfilled(server, cluster)
        check(server)


async def test_a_scheduler_that_does_not_come_back_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to do; with another scheduler the same command goes on."""
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        pause = server.faults.pause_at = Pause(putting("work/"))

        async def kill() -> None:
            await pause.reached.wait()
            cluster.scheduler.kill()

        group.start_soon(kill)
        with monkeypatch.context() as patch:
            patch.setattr(asyncagg.backfill.cluster, "_CONNECT_SECONDS", 2)
            message = r"scheduler is gone: .* run the same command again"
            with pytest.raises(ConfigurationError, match=message):
                await backfilled(server, cluster)
        await anyio.to_thread.run_sync(cluster.restart_scheduler)
        server.faults.pause_at = None
        pause.release.set()
        await backfilled(server, cluster)
        check(server)


async def test_a_straggler_that_was_given_up_comes_back(cluster: Cluster) -> None:
    """Stopped on its way to a commit, it commits when all is done: it is told no, and gives in."""
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        pause = Pause(putting("aggregates/"))
        server.faults.pause_at = pause
        stopped: list[subprocess.Popen[bytes]] = []

        async def stop() -> None:
            await pause.reached.wait()
            stopped.extend(cluster.workers)
            for worker in stopped:
                worker.send_signal(signal.SIGSTOP)
            cluster.workers = []
            cluster.refill()
            server.faults.pause_at = None

        group.start_soon(stop)
        await backfilled(server, cluster)
        check(server)
        server.audit.log.clear()
        # It looks for its parts again, which are swept: there is nothing left to commit.
        looks = server.faults.pause_at = Pause(lambda request: request.key.startswith("work/"))
        pause.release.set()
        for worker in stopped:
            worker.send_signal(signal.SIGCONT)
        # Or its scheduler, which has forgotten it, ends it first.
        with anyio.move_on_after(20):
            await looks.reached.wait()
        looks.release.set()
        for worker in stopped:
            worker.kill()
            await anyio.to_thread.run_sync(worker.wait)
        assert (412, "PutObject") in {(entry.status, entry.operation) for entry in server.audit.log}
        await backfilled(server, cluster)  # sweeps what was put since by one stopped in a fold
        check(server)


async def test_a_store_that_throttles(cluster: Cluster) -> None:
    """A twentieth of all requests is answered 503: every worker backs off and goes on."""
    async with S3Server([BUCKET]) as server:
        fill_server(server, prepared().store)
        server.faults.slow_down = 0.05
        await backfilled(server, cluster)
        check(server)


async def test_the_scheduled_run_at_the_same_time(cluster: Cluster) -> None:
    """Runs, one after the other, while the cluster works on the same windows: counted once."""
    async with S3Server([BUCKET]) as server, open_s3(server) as (store, settings):
        fill_server(server, prepared().store)
        async with anyio.create_task_group() as group:

            async def scheduled() -> None:
                while True:
                    await run(store, settings, at=AT)

            group.start_soon(scheduled)
            await backfilled(server, cluster)
            group.cancel_scope.cancel()
        await run(store, settings, at=AT)
        check(server)


async def test_a_trouble_of_the_store_is_told_as_it_is(cluster: Cluster) -> None:
    """A worker's error is the same error here."""
    async with S3Server(["other"]) as server:
        with pytest.raises(ConfigurationError, match="bucket"):
            await backfilled(server, cluster)


async def test_no_scheduler_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address is told, and what is expected of it."""
    monkeypatch.setattr(asyncagg.backfill.cluster, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(ConfigurationError, match=r"scheduler 'tcp://127.0.0.1:1'.*expected"):
        async with join_cluster(Settings(), "tcp://127.0.0.1:1"):
            pass


async def test_a_cluster_without_a_worker_is_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not waited for in silence."""
    for worker in cluster.workers:
        worker.kill()
        await anyio.to_thread.run_sync(worker.wait)
    monkeypatch.setattr(asyncagg.backfill.cluster, "_CONNECT_SECONDS", 3)
    with pytest.raises(ConfigurationError, match=r"workers.*expected the address of a Dask"):
        async with join_cluster(Settings(), cluster.address):
            pass


async def test_a_cluster_whose_last_worker_dies_is_given_up(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to continue."""
    monkeypatch.setattr(asyncagg.backfill.cluster, "_CHECK_SECONDS", 3.0)
    async with S3Server([BUCKET]) as server, anyio.create_task_group() as group:
        fill_server(server, prepared().store)
        pause = server.faults.pause_at = Pause(putting("work/"))

        async def kill() -> None:
            await pause.reached.wait()
            for worker in cluster.workers:
                worker.kill()
            pause.release.set()

        group.start_soon(kill)
        with pytest.raises(ConfigurationError, match=r"no worker any more.*to continue"):
            await backfilled(server, cluster)


async def test_a_worker_without_the_package_is_named(cluster: Cluster) -> None:
    """Before any work is sent to it."""
    hide = (
        "import sys, importlib.machinery as m; find = m.PathFinder.find_spec; "
        "m.PathFinder.find_spec = lambda name, *a: None if name == 'asyncagg' else find(name, *a); "
        "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in str(each)]; "
        "from distributed.cli.dask_worker import main; main()"
    )
    words = [cluster.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    cluster.workers.append(
        await anyio.to_thread.run_sync(
            lambda: subprocess.Popen([sys.executable, "-c", hide, *words], env=environment())
        )
    )
    with pytest.raises(ConfigurationError, match="cannot import asyncagg: expected the same"):
        await _join_again_and_again(cluster.address)


async def _join_again_and_again(address: str) -> None:
    with anyio.fail_after(60):
        while True:
            async with join_cluster(Settings(), address):
                await anyio.sleep(0.2)


_TRESPASS = """
import anyio
from distributed import Client
from distributed.security import Security
from asyncagg.backfill.cluster import start_cluster
from asyncagg.settings import Settings

async def work():
    async with start_cluster(Settings(), 1) as engine:
        address = engine._client.scheduler.address
        for other in (address.replace("tls:", "tcp:"), address):
            try:
                security = Security.temporary() if other == address else None
                await Client(other, security=security, asynchronous=True, timeout=2)
            except OSError as error:
                print(address, "refused")

if __name__ == "__main__":
    anyio.run(work)
"""


def test_a_local_cluster_needs_its_certificate(tmp_path: Path) -> None:
    """Another user of this machine can send no code to its scheduler."""
    script = tmp_path / "trespass.py"
    script.write_text(_TRESPASS)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=environment()
    )
    assert re.findall("^tls://127.0.0.1:[0-9]+ (.*)$", done.stdout, re.MULTILINE) == ["refused"] * 2


def test_dask_is_imported_for_a_cluster_only() -> None:
    """Neither the library nor the command line imports it."""
    imports = "import sys, asyncagg.cli.application, asyncagg.backfill"
    script = f"{imports}; print('distributed' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "False\n"
