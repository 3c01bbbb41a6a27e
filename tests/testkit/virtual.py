"""An event loop whose clock jumps: a pause of an hour takes no time, and a deadlock is an error."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ("run_virtually",)

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Where the loop would wait, moves the clock to the moment it waits for."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the files that are ready now; let the time pass that they were waited for."""
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: every task waits for another")
            self.now += max(0.0, timeout)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the seconds that have passed since the loop was made."""
        return self._jumping.now


def run_virtually(work: Callable[[], Awaitable[T]]) -> T:
    """Run async work on a loop of its own whose clock starts at 0 and jumps over every pause."""

    async def main() -> T:
        return await work()

    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main())
