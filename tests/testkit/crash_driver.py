"""Runs the real job in processes that are killed: one warm process, which forks for each job.

It reads jobs from standard input, one JSON object a line, and answers on standard output: first the
job's process id, then, once that process has ended, its status (minus the signal that ended it).
The job starts when another line comes in between.

A job is ``settings`` (those of the package), ``at``, ``page`` (objects a listing page) and
``kill_at``: if given, the process kills itself just before its ``kill_at``-th change to the file
system, which is how a job on a directory is stopped at every step there is.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from typing import Any

import aioboto3

import asyncagg.store.directory.store as directory_store
import asyncagg.store.s3.http_plane
import asyncagg.store.s3.store  # noqa: F401
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.store.s3.boto import open_control

CHANGES = ("fchmod", "link", "mkdir", "rename", "rmdir", "unlink", "utime")
"""What changes the file system; and ``open``, where it creates."""


def main() -> None:
    """Fork one process for each job, until there are no more."""
    session = aioboto3.Session(region_name="us-east-1")
    aioboto3.Session = lambda: session  # it reads the service's model once
    asyncio.run(warm_up())
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(work(job))
        os.close(reader)
        tell(pid)
        sys.stdin.readline()
        os.write(writer, b"!")
        os.close(writer)
        tell(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def tell(number: int) -> None:
    """Answer with a number."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def warm_up() -> None:
    """Load all that is loaded late."""
    async with open_control(endpoint_url="http://127.0.0.1:1", connections=1):
        pass


def work(job: dict[str, Any]) -> int:
    """Run a job, and return the process's exit status."""
    # Durability is not what a SIGKILL puts to the test: the system itself lives on.
    os.fsync = lambda fd: None  # noqa: ARG005 - as it is called
    tempfile.tempdir = tempfile.gettempdir()  # found by writing to it: not a change of the job's
    if job.get("page"):
        directory_store._PAGE = job["page"]
    if job.get("kill_at"):
        kill_at_change(job["kill_at"])
    return asyncio.run(settle(job))


async def settle(job: dict[str, Any]) -> int:
    """Run the real job."""
    settings = Settings(**job["settings"])
    async with open_store(settings) as store:
        report = await run(store, settings, at=datetime.fromisoformat(job["at"]))
    return report.exit_code


def kill_at_change(number: int) -> None:
    """Make the process kill itself just before a change to the file system."""
    ordinals = itertools.count(1)

    def announce() -> None:
        if next(ordinals) >= number:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    def announced(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            announce()
            return function(*args, **options)

        return call

    for name in CHANGES:
        setattr(os, name, announced(getattr(os, name)))
    really_open = os.open

    def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            announce()
        return really_open(path, flags, *args, **options)

    os.open = opened


if __name__ == "__main__":
    main()
