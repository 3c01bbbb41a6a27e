"""The event loop: uvloop if it is installed, else asyncio's own; and one that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from contextvars import copy_context
from typing import Any, Generic, TypeVar

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
        self.run(self.resource)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run async work in the loop; it gets the resource from `resource`."""
        # By default a runner keeps the context variables of its first call.
        return self._runner.run(work(), context=copy_context())

    async def resource(self) -> R:
        """Return the resource, after opening it if necessary."""
        if self._resource is None:
            self._resource = await self._stack.enter_async_context(self._opening())
        return self._resource

    def close(self) -> None:
        """Close the resource and the loop."""
        self._runner.run(self._stack.aclose())
        self._runner.close()
