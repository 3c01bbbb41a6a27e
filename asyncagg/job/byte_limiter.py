"""A bound on the bytes of bodies in flight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class ByteLimiter:
    """Bounds the bytes of bodies in flight: first come, first served.

    A weight above the capacity counts as the capacity, so a larger body is held alone.

    Args:
        capacity: The most bytes in flight.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity!r}: expected at least 1 byte")
        self.capacity = capacity
        self.in_flight = 0
        self._waiting: OrderedDict[anyio.Event, int] = OrderedDict()

    @asynccontextmanager
    async def hold(self, weight: int) -> AsyncIterator[None]:
        """Hold ``weight`` bytes of the capacity while the context is open."""
        if not self.take(weight):
            await self.acquire(weight)
        try:
            yield
        finally:
            self.release(weight)

    # The steps of `hold`, for callers that cannot afford a context manager for each file.

    def take(self, weight: int) -> bool:
        """Take ``weight`` bytes and return True, if that needs no waiting."""
        weight = min(weight, self.capacity)
        if self._waiting or self.in_flight + weight > self.capacity:
            return False
        self.in_flight += weight
        return True

    async def acquire(self, weight: int) -> None:
        """Wait for ``weight`` bytes, and take them."""
        weight = min(weight, self.capacity)
        turn = anyio.Event()
        self._waiting[turn] = weight
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # granted just as the task was cancelled
                self.release(weight)
            else:
                del self._waiting[turn]
                self._grant()
            raise

    def release(self, weight: int) -> None:
        """Return ``weight`` bytes that were taken."""
        self.in_flight -= min(weight, self.capacity)
        if self._waiting:
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            turn, weight = next(iter(self._waiting.items()))
            if self.in_flight + weight > self.capacity:
                return
            del self._waiting[turn]
            self.in_flight += weight
            turn.set()
