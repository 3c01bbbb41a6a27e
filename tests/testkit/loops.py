"""Runs an async test on asyncio's own event loop and on uvloop's."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

__all__ = ("on_both_loops", "until")

_LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test run once on each loop, and fail on an error that the loop reports."""

    @functools.wraps(test)
    def run(*args: Any, loop: str, **kwargs: Any) -> None:
        errors: list[dict[str, Any]] = []

        async def watched() -> None:
            running = asyncio.get_running_loop()
            running.set_exception_handler(lambda _, context: errors.append(context))
            await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=_LOOPS[loop]) as runner:
            runner.run(watched())
            gc.collect()  # an exception that was never retrieved is reported on collection
        assert not errors

    signature = inspect.signature(test)
    extra = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined] # pytest reads it
        parameters=[*signature.parameters.values(), extra]
    )
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", _LOOPS)(run)
    return parametrized


async def until(holds: Callable[[], object]) -> None:
    """Yield to the loop until a condition holds; the test's own timeout is the limit."""
    while not holds():  # noqa: ASYNC110 (no event is set for the condition)
        await asyncio.sleep(0)
