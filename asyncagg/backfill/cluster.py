"""Run the tasks of a backfill on Dask workers: of a local cluster, or of one that is running.

The only module that imports Dask. Dask schedules the tasks, balances the load, and moves the tasks
of dead workers. A task may run twice, since settling is idempotent. Each thread of a worker keeps
an event loop and an open store for all its tasks.
"""

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import anyio
import dask.config
from distributed import Client, KilledWorker, LocalCluster
from distributed.client import FutureCancelledError
from distributed.utils import silence_logging_cmgr

from asyncagg.errors import AsyncaggError, ConfigurationError, TransientError
from asyncagg.job.context import JobContext
from asyncagg.runtime.loops import KeptLoop
from asyncagg.settings import Settings
from asyncagg.store.opening import open_store

P = ParamSpec("P")
T = TypeVar("T")

_SUBMISSIONS = 5
"""How often a task is submitted when its scheduler is restarted."""

_CONNECT_SECONDS = 30
_CLOSE_SECONDS = 15


class ClusterEngine:
    """Runs tasks on the workers of a Dask cluster; see `asyncagg.backfill.Engine`.

    Args:
        client: An asynchronous client of the scheduler.
        settings: The prefixes, the window and the bounds.
        workers: How many tasks the cluster runs at a time.
    """

    def __init__(self, client: Client, settings: Settings, workers: int) -> None:
        self.workers = workers
        self._client = client
        self._settings = settings

    async def run(
        self,
        task: Callable[Concatenate[JobContext, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a task, and run it again if its scheduler is restarted.

        Raises:
            AsyncaggError: The error of the task.
            TransientError: Too many workers died while they ran it.
            ConfigurationError: The scheduler is gone.
        """
        name = f"{task.__name__}-{uuid.uuid4().hex}"
        bound = partial(perform, self._settings, task, *args, **kwargs)
        for _ in range(_SUBMISSIONS):
            if self._client.status in {"closing", "closed"}:
                raise ConfigurationError(
                    "the scheduler is gone: expected a running scheduler. Nothing is lost: run the "
                    "same command again to continue"
                )
            try:
                result: T = await self._client.submit(bound, key=name, pure=False)
            except KilledWorker as error:
                raise TransientError(
                    f"the workers that ran {name} died one after the other: {error}"
                ) from error
            except FutureCancelledError:
                continue  # the scheduler was restarted
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
            silence_logs=logging.CRITICAL,  # a failed task raises its error here
            preload=[__name__],
            asynchronous=True,
        )
        async with _closing(cluster), _connected(cluster) as client:
            # The warnings of workers are logged here.
            logger = logging.getLogger("asyncagg")
            await client.forward_logging(logger.name, level=logger.getEffectiveLevel())
            yield ClusterEngine(client, settings, workers)


@asynccontextmanager
async def join_cluster(settings: Settings, address: str) -> AsyncIterator[ClusterEngine]:
    """Join a running cluster, whose workers have this package and can reach the store.

    Args:
        settings: The prefixes, the window and the bounds.
        address: Its scheduler's, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ConfigurationError: No scheduler answers there, or it has no workers.
    """
    try:
        with silence_logging_cmgr(logging.CRITICAL):  # errors are raised
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
    """Start a part of Dask, and close it in bounded time, even after a cancellation."""
    try:
        await what
        yield
    finally:
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await what.close()


def dask_setup(_worker: object) -> None:
    """Ignore Ctrl-C in a worker that was started here: the main process ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_thread = threading.local()


@asynccontextmanager
async def _open_context(settings: Settings) -> AsyncIterator[JobContext]:
    async with open_store(settings) as store:
        yield JobContext(store, settings)


def _kept_loop(settings: Settings) -> KeptLoop[JobContext]:
    """Return the loop that this thread of a worker keeps, with a store of these settings."""
    before, loop = getattr(_thread, "kept", (None, None))
    if loop is None or before != settings:
        if loop is not None:
            loop.close()
        loop = KeptLoop(partial(_open_context, settings))
        _thread.kept = settings, loop
    return loop


def perform(
    settings: Settings,
    task: Callable[Concatenate[JobContext, P], Awaitable[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run a task in this thread of a worker."""
    loop = _kept_loop(settings)

    async def work() -> T:
        return await task(await loop.resource(), *args, **kwargs)

    try:
        return loop.run(work)
    except AsyncaggError as error:
        # The class of the cause may not be picklable.
        error.__cause__ = error.__context__ = None
        raise
