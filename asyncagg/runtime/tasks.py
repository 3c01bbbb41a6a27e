"""Task groups: many items with a bounded number of workers, one error instead of a tree."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

T = TypeVar("T")
R = TypeVar("R")


async def for_each(
    items: Iterable[T], work: Callable[[T], Awaitable[object]], *, workers: int
) -> None:
    """Call ``work`` on every item, at most ``workers`` at a time.

    The workers pull from one iterator: no task, stream or queue entry per item.

    Raises:
        Exception: The first failure of ``work``, after the other workers are cancelled.
    """
    iterator = iter(items)

    async def worker() -> None:
        for item in iterator:
            await work(item)

    async with task_group() as group:
        for _ in range(workers):
            group.start_soon(worker)


async def map_each(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], *, workers: int
) -> list[R]:
    """Return what ``work`` returns for each item, in the order of the items; see `for_each`."""
    results: dict[int, R] = {}

    async def one(item: tuple[int, T]) -> None:
        index, value = item
        results[index] = await work(value)

    await for_each(enumerate(items), one, workers=workers)
    return [results[index] for index in range(len(results))]


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Open a task group that raises its first error, with the other errors as notes on it."""
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as failures:
        first, *others = _leaves(failures)
        for other in others:
            first.add_note(f"another task failed too: {type(other).__name__}: {other}")
        raise first from None


def _leaves(failure: BaseException) -> Iterator[BaseException]:
    if isinstance(failure, BaseExceptionGroup):
        for each in failure.exceptions:
            yield from _leaves(each)
    else:
        yield failure
