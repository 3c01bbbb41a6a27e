"""The event loop: uvloop if it is installed, else asyncio's own; and one that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import copy_context
from typing import Generic, TypeVar

R = TypeVar("R")
T = TypeVar("T")


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the function that makes a uvloop, or None if it is not installed."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class KeptLoop(Generic[R]):
    """An event loop and a resource that is open in it, kept from one call to the next.

    Args:
        opening: Returns the context manager that opens the resource; entered at its first use.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[R]]) -> None:
        self._opening = opening
        self._runner = asyncio.Runner(loop_factory=loop_factory())
        self._stack = AsyncExitStack()
        self._resource: R | None = None

    def open(self) -> None:
        """Open the resource, ahead of the first call."""
        self._runner.run(self._opened())

    def run(self, work: Callable[[R], Awaitable[T]]) -> T:
        """Run ``work`` with the resource, and return its result."""

        async def call() -> T:
            return await work(await self._opened())

        # By default a runner keeps the context variables of its first call.
        return self._runner.run(call(), context=copy_context())

    def close(self) -> None:
        """Close the resource and the loop."""
        self._runner.run(self._stack.aclose())
        self._runner.close()

    async def _opened(self) -> R:
        if self._resource is None:
            self._resource = await self._stack.enter_async_context(self._opening())
        return self._resource
