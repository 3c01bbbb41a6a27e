"""A backfill's tasks on the workers of Dask distributed: of a cluster of its own, or one that runs.

The only module that imports Dask. Scheduling, moving tasks away from dead workers and balancing
the load are Dask's; that a task may be done twice is what settling allows. Each thread of a worker
keeps an event loop and an open store from task to task.
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
import dask.config
from distributed import Client, KilledWorker, LocalCluster
from distributed.client import FutureCancelledError
from distributed.utils import silence_logging_cmgr

from asyncagg.backfill.tasks import Task
from asyncagg.errors import AsyncaggError, ConfigurationError, TransientError
from asyncagg.job.context import JobContext
from asyncagg.runtime.loops import KeptLoop
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

__all__ = ("ClusterEngine", "dask_setup", "join_cluster", "perform", "start_cluster")

T = TypeVar("T")

_SUBMISSIONS = 5
"""How often a task is submitted whose scheduler is restarted."""

_CONNECT_SECONDS = 30
_CLOSE_SECONDS = 15


class ClusterEngine:
    """Does the tasks on the workers of a Dask cluster; see `asyncagg.backfill.Engine`.

    Args:
        client: Connected to the scheduler, asynchronous.
        settings: The prefixes, the window and the bounds.
        workers: How many tasks the cluster does at a time.
    """

    def __init__(self, client: Client, settings: Settings, workers: int) -> None:
        self.workers = workers
        self._client = client
        self._settings = settings

    async def run(self, task: Task[T]) -> T:
        """Do a task, again if the scheduler that had it is gone.

        Raises:
            AsyncaggError: The task's failure.
            TransientError: Too many workers died while they did it.
            ConfigurationError: There is no scheduler any more.
        """
        name = f"{type(task).__name__.lower()}-{uuid.uuid4().hex}"
        for _ in range(_SUBMISSIONS):
            if self._client.status in {"closing", "closed"}:
                raise ConfigurationError(
                    "the scheduler is gone and has not come back: expected one that runs. Nothing "
                    "is lost: run it again to go on"
                )
            try:
                result: T = await self._client.submit(
                    perform, task, self._settings, key=name, pure=False
                )
            except KilledWorker as error:
                raise TransientError(
                    f"the workers that did {name} died, one after the other: {error}"
                ) from error
            except FutureCancelledError:
                continue  # the scheduler that had it is gone; there may be another one
            return result
        raise TransientError(f"the scheduler lost {name} {_SUBMISSIONS} times")


@asynccontextmanager
async def start_cluster(settings: Settings, workers: int) -> AsyncIterator[ClusterEngine]:
    """Start a cluster of processes on this machine, for as long as the context lasts.

    Args:
        settings: The prefixes, the window and the bounds.
        workers: How many processes.
    """
    # Its profiler looks at every thread a hundred times a second.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # a task's memory is bounded by the settings
            silence_logs=logging.CRITICAL,  # a task that fails is told by the task
            preload=[__name__],
            asynchronous=True,
        )
        async with _closing(cluster), _connected(cluster) as client:
            # What workers warn of is logged here, as if it had been done here.
            told = logging.getLogger("asyncagg")
            await client.forward_logging(told.name, level=told.getEffectiveLevel())
            yield ClusterEngine(client, settings, workers)


@asynccontextmanager
async def join_cluster(settings: Settings, address: str) -> AsyncIterator[ClusterEngine]:
    """Join a cluster that runs; its workers have this package and a way to the store.

    Args:
        settings: The prefixes, the window and the bounds.
        address: Its scheduler's, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ConfigurationError: No scheduler answers there, or it has no workers.
    """
    try:
        with silence_logging_cmgr(logging.CRITICAL):  # what goes wrong is told by the errors
            async with _connected(address) as client:
                await client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
                threads = sum((await client.nthreads()).values())
                yield ClusterEngine(client, settings, threads)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigurationError(
            f"scheduler {address!r}: {error}; expected the address of a Dask scheduler with "
            "workers, such as tcp://10.0.0.1:8786"
        ) from error


@asynccontextmanager
async def _connected(target: LocalCluster | str) -> AsyncIterator[Client]:
    client = Client(target, asynchronous=True, timeout=_CONNECT_SECONDS, set_as_default=False)
    async with _closing(client):
        yield client


@asynccontextmanager
async def _closing(what: LocalCluster | Client) -> AsyncIterator[None]:
    """Start a part of Dask, and close it in bounded time, also where the work is cancelled."""
    try:
        await what
        yield
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await what.close()


# ------------------------------------------------------------------------------ on a worker


def dask_setup(_worker: object) -> None:
    """Let a worker that was started here not end on Ctrl-C: who has started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_thread = threading.local()


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[JobContext]:
    async with open_store(settings) as store:
        yield JobContext(store, settings)


def _kept_loop(settings: Settings) -> KeptLoop[JobContext]:
    """Return the loop that this thread of a worker keeps, with a store of these settings."""
    before, loop = getattr(_thread, "kept", (None, None))
    if loop is None or before != settings:
        if loop is not None:
            loop.close()
        loop = KeptLoop(partial(_opened, settings))
        _thread.kept = settings, loop
    return loop


def perform(task: Task[T], settings: Settings) -> T:
    """Do a task in this thread of a worker."""
    loop = _kept_loop(settings)

    async def work() -> T:
        return await task.perform(await loop.resource())

    try:
        return loop.run(work)
    except AsyncaggError as error:
        # The cause may be of a class that cannot be pickled.
        error.__cause__ = error.__context__ = None
        raise
