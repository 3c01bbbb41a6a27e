"""A bound on the bytes of bodies in flight."""

from __future__ import annotations

from collections import OrderedDict

import anyio

__all__ = ("ByteLimiter",)


class _Held:
    """The context of `ByteLimiter.hold`; as a generator it would cost thrice as much per file."""

    __slots__ = ("_limiter", "_weight")

    def __init__(self, limiter: ByteLimiter, weight: int) -> None:
        self._limiter = limiter
        self._weight = weight

    async def __aenter__(self) -> None:
        if not self._limiter.take(self._weight):
            await self._limiter.acquire(self._weight)

    async def __aexit__(self, *_: object) -> None:
        self._limiter.release(self._weight)


class ByteLimiter:
    """Bounds the bytes of bodies in flight: first come, first served.

    A weight above the capacity counts as the capacity, so one large body passes alone.

    Args:
        capacity: The most bytes in flight.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity!r}: at least 1 byte")
        self.capacity = capacity
        self.in_flight = 0
        self._waiting: OrderedDict[anyio.Event, int] = OrderedDict()

    def hold(self, weight: int) -> _Held:
        """Hold ``weight`` bytes of the capacity for as long as the context lasts."""
        return _Held(self, weight)

    # What `hold` does, for who holds once per file and has no room for its frames

    def take(self, weight: int) -> bool:
        """Take ``weight`` bytes and say True, if nobody has to wait for them."""
        weight = min(weight, self.capacity)
        if self._waiting or self.in_flight + weight > self.capacity:
            return False
        self.in_flight += weight
        return True

    async def acquire(self, weight: int) -> None:
        """Wait for ``weight`` bytes that could not be taken, and take them."""
        weight = min(weight, self.capacity)
        turn = anyio.Event()
        self._waiting[turn] = weight
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # it was granted in the moment of the cancellation
                self.release(weight)
            else:
                del self._waiting[turn]
                self._grant()
            raise

    def release(self, weight: int) -> None:
        """Give back ``weight`` bytes that were taken."""
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
