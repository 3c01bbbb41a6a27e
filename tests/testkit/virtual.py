"""An event loop with a virtual clock: sleeping takes no time, and a deadlock is an error."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

__all__ = ("run_virtually",)

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the files that are ready; if none is, advance the clock by the timeout."""
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
        """Return the virtual seconds since the loop was created."""
        return self._jumping.now

    def run_in_executor(  # type: ignore[override]  # its arguments have no types here
        self,
        executor: object,  # noqa: ARG002 - the clock would jump while a thread works
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        """Call a function at once."""
        future = self.create_future()
        future.set_result(func(*args))
        return future


def run_virtually(work: Callable[[], Awaitable[T]]) -> T:
    """Run async work on a new loop whose clock starts at 0 and skips every wait."""

    async def main() -> T:
        return await work()

    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main())
