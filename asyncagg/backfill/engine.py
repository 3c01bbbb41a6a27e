"""Where the tasks of a backfill run: here, or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import anyio

from asyncagg.job.context import JobContext

P = ParamSpec("P")
T = TypeVar("T")


class Engine(Protocol):
    """Runs tasks: functions of a module, so that they can be sent to another machine.

    A task may run twice, or half and then again: tasks are idempotent.
    """

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        ...

    async def run(
        self,
        task: Callable[Concatenate[JobContext, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a task with these arguments, and return what it returns.

        Raises:
            AsyncaggError: The error of the task.
        """
        ...

    async def workers_lost(self) -> int:
        """Return how many workers died or left, perhaps in the middle of a task."""
        ...


class LocalEngine:
    """Runs tasks on this event loop, one at a time; each uses all requests.

    Args:
        context: The dependencies of the tasks.
    """

    workers = 1

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._lock = anyio.Lock()

    async def run(
        self,
        task: Callable[Concatenate[JobContext, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a task; see `Engine.run`."""
        async with self._lock:
            return await task(self._context, *args, **kwargs)

    async def workers_lost(self) -> int:
        """Return 0: there is only this process."""
        return 0
