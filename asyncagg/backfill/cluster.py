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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import dask.config
from anyio import to_thread
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.client import FutureCancelledError
from distributed.security import Security
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

_EXPECTED = "expected the same version of asyncagg on the scheduler and on every worker"

_CONNECT_SECONDS = 30
_CLOSE_SECONDS = 15

_CHECK_SECONDS = 15.0
"""A cluster without a worker at two checks in a row is given up."""


class ClusterEngine:
    """Runs tasks on the workers of a Dask cluster; see `asyncagg.backfill.Engine`.

    Args:
        client: An asynchronous client of the scheduler.
        settings: The prefixes, the window and the bounds.
        workers: The number of threads of each worker, by its address.
    """

    def __init__(self, client: Client, settings: Settings, workers: Mapping[str, int]) -> None:
        self.workers = sum(workers.values())
        self._addresses = frozenset(workers)
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
            ConfigurationError: The scheduler or the last worker is gone, or one lacks a package.
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
                result: T = await self._result(self._client.submit(bound, key=name, pure=False))
            except KilledWorker as error:
                raise TransientError(
                    f"the workers that ran {name} died one after the other: {error}"
                ) from error
            except ImportError as error:
                raise ConfigurationError(
                    f"a worker lacks a package: {error}; {_EXPECTED}"
                ) from error
            except FutureCancelledError:
                continue  # the scheduler was restarted
            return result
        raise TransientError(f"the scheduler lost {name} {_SUBMISSIONS} times")

    async def workers_lost(self) -> int:
        """Return how many workers died or left, perhaps in the middle of a task."""
        with anyio.move_on_after(_CONNECT_SECONDS):
            return len(self._addresses.difference(await self._client.nthreads()))
        return len(self._addresses)  # the scheduler is gone, too

    async def _result(self, future: Future) -> Any:
        """Wait for a task, which has no end if there is no worker to run it."""
        had_workers = True
        while True:
            with anyio.move_on_after(_CHECK_SECONDS):
                return await future
            has_workers = bool(self._client.scheduler_info()["workers"])
            if not (has_workers or had_workers):
                raise ConfigurationError(
                    "the cluster has no worker any more: expected at least one. Nothing is lost: "
                    "start workers, and run the same command again to continue"
                )
            had_workers = has_workers


@asynccontextmanager
async def start_cluster(settings: Settings, workers: int) -> AsyncIterator[ClusterEngine]:
    """Start a cluster of processes on this machine, for as long as the context lasts.

    A scheduler and its workers run any code that reaches their ports. Their connections need a
    certificate that only these processes have, so that no other user of the machine can do that.

    Args:
        settings: The prefixes, the window and the bounds.
        workers: How many processes.
    """
    security = await to_thread.run_sync(Security.temporary)
    # Its profiler looks at every thread a hundred times a second.
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            security=security,
            memory_limit=0,  # a task's memory is bounded by the settings
            silence_logs=logging.CRITICAL,  # a failed task raises its error here
            preload=[__name__],
            asynchronous=True,
        )
        async with _closing(cluster), _connected(cluster) as client:
            # The warnings of workers are logged here.
            logger = logging.getLogger("asyncagg")
            await client.forward_logging(logger.name, level=logger.getEffectiveLevel())
            yield ClusterEngine(client, settings, await client.nthreads())


@asynccontextmanager
async def join_cluster(settings: Settings, address: str) -> AsyncIterator[ClusterEngine]:
    """Join a running cluster, whose workers have this package and can reach the store.

    Args:
        settings: The prefixes, the window and the bounds.
        address: Its scheduler's, such as ``tcp://10.0.0.1:8786``.

    Raises:
        ConfigurationError: No scheduler answers there, it has no workers, or they lack the package.
    """
    try:
        with silence_logging_cmgr(logging.CRITICAL):  # errors are raised
            async with _connected(address) as client:
                await client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
                await _check_package(client)
                yield ClusterEngine(client, settings, await client.nthreads())
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigurationError(
            f"scheduler {address!r}: {error}; expected the address of a Dask scheduler with "
            "workers, such as tcp://10.0.0.1:8786"
        ) from error


async def _check_package(client: Client) -> None:
    """Raise `ConfigurationError` if the scheduler or a worker cannot import this package."""
    with anyio.fail_after(_CONNECT_SECONDS):
        found = await client.run(find_spec, "asyncagg")
        found["the scheduler"] = await client.run_on_scheduler(find_spec, "asyncagg")
    without = sorted(name for name, spec in found.items() if spec is None)
    if without:
        raise ConfigurationError(f"{', '.join(without)} cannot import asyncagg: {_EXPECTED}")


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
