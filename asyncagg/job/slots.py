"""The request slots that all windows of a run share: while there is work, no slot is idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from asyncagg.runtime.tasks import task_group

T = TypeVar("T")


class _Job:
    """Items that wait for slots.

    Attributes:
        work: Works on an item.
        group: Where its workers run.
        is_urgent: Whether it takes over slots of other jobs.
        unclaimed: How many items no worker has claimed yet.
        claimed: Set once all items are claimed.
    """

    def __init__(
        self,
        items: Collection[Any],
        work: Callable[[Any], Awaitable[object]],
        group: TaskGroup,
        queue: deque[_Job],
        *,
        is_urgent: bool,
    ) -> None:
        self.work = work
        self.group = group
        self.is_urgent = is_urgent
        self.unclaimed = len(items)
        self.claimed = anyio.Event()
        self._items: Iterator[Any] = iter(items)
        self._queue = queue
        queue.append(self)

    def claim(self) -> Any:
        """Return the next item, which the caller's worker must work on."""
        self.unclaimed -= 1
        if not self.unclaimed:
            self.withdraw()
            self.claimed.set()
        return next(self._items)

    def withdraw(self) -> None:
        """Ask for no more slots."""
        if self in self._queue:
            self._queue.remove(self)


class Slots:
    """Slots for requests, which go to the work that waits longest; urgent work comes first.

    A worker keeps its slot from item to item: no task, event or queue entry per item.

    Args:
        count: How many slots there are.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._urgent: deque[_Job] = deque()
        self._normal: deque[_Job] = deque()

    @property
    def are_free(self) -> bool:
        """Whether there is a free slot, so that more work could begin."""
        return self._free > 0

    async def for_each(
        self,
        items: Collection[T],
        work: Callable[[T], Awaitable[object]],
        *,
        urgent: bool = False,
    ) -> None:
        """Call ``work`` on every item, in a slot each.

        Args:
            items: The items; they are taken in their order.
            work: Must not call this method itself: it would wait for a slot while it holds one.
            urgent: Whether it takes over the slots of work that is not, item by item.

        Raises:
            Exception: The first failure of ``work``, after the other workers are cancelled.
        """
        if not items:
            return
        async with task_group() as group:
            queue = self._urgent if urgent else self._normal
            job = _Job(items, work, group, queue, is_urgent=urgent)
            try:
                self._grant()
                await job.claimed.wait()
            finally:
                job.withdraw()

    def _grant(self) -> None:
        """Start workers while there are slots and items."""
        while self._free and (queue := self._urgent or self._normal):
            job = queue[0]
            self._free -= 1
            job.group.start_soon(self._work, job, job.claim())

    async def _work(self, job: _Job, item: Any) -> None:
        try:
            await job.work(item)
            while job.unclaimed and (job.is_urgent or not self._urgent):
                await job.work(job.claim())
        finally:
            self._free += 1
            self._grant()
