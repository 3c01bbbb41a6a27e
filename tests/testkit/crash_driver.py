"""Runs the real job in processes that can be killed: one warm process forks for each job.

It reads jobs from standard input, one JSON object per line. For each it writes two lines to
standard output: the id of the job's process, and, when that has ended, its exit status (negative
for a signal). Between them it waits for a line, which starts the job.

A job has ``settings`` (those of the package), ``at``, ``page`` (objects per listing page) and
``kill_at``: if given, the process kills itself just before its n-th change to the file system. So a
job on a directory can be stopped at every step.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from typing import Any

import aioboto3
import msgspec

import asyncagg.store.directory.store as directory_store
import asyncagg.store.s3.http_plane
import asyncagg.store.s3.store  # noqa: F401
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store
from asyncagg.store.s3.boto import control
from asyncagg.store.s3.boto.session import Session

CHANGES = ("link", "mkdir", "rename", "rmdir", "unlink")
"""The calls that change the file system; ``open`` does too, when it creates a file.

The mode and the times are set on temporary files, which nobody reads after a crash.
"""


def main() -> None:
    """Fork one process for each job, until the input ends."""
    session = Session()
    opened = aioboto3.Session(botocore_session=session)
    # Each process would read the service's model again.
    control.__dict__["Session"] = lambda: session
    aioboto3.Session = lambda **_: opened
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
        reply(pid)
        sys.stdin.readline()
        os.write(writer, b"!")
        os.close(writer)
        reply(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def reply(number: int) -> None:
    """Write a number to standard output."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def warm_up() -> None:
    """Import everything that is imported on first use."""
    async with control.open_control(endpoint_url="http://127.0.0.1:1", connections=1):
        pass


def work(job: dict[str, Any]) -> int:
    """Run a job, and return the process's exit status."""
    # A SIGKILL does not lose writes: the system keeps running.
    os.fsync = lambda fd: None  # noqa: ARG005 - the signature of os.fsync
    tempfile.tempdir = tempfile.gettempdir()  # finding it writes a file, which is not the job's
    if job.get("page"):
        directory_store._PAGE = job["page"]
    if job.get("kill_at"):
        kill_at_change(job["kill_at"])
    return asyncio.run(settle(job))


async def settle(job: dict[str, Any]) -> int:
    """Run the real job."""
    settings = msgspec.convert(job["settings"], Settings)
    async with open_store(settings) as store:
        report = await run(store, settings, at=datetime.fromisoformat(job["at"]))
    return report.exit_code


def kill_at_change(number: int) -> None:
    """Make the process kill itself just before its n-th change to the file system.

    A call that fails does not count: it changes nothing.
    """
    changes = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal changes
            if changes + 1 >= number:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()
            result = function(*args, **options)
            changes += 1
            return result

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    real_open = os.open
    create = counted(real_open)

    def opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        function = create if flags & os.O_CREAT else real_open
        return int(function(path, flags, *args, **options))

    os.open = opened


if __name__ == "__main__":
    main()
