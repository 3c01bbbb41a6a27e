"""Runners of both forms, kills, faults and a producer, all at once, for as many seeds as wanted.

    PYTHONPATH=tests python -m testkit.soak 200        # seeds 0 to 199
    PYTHONPATH=tests python -m testkit.soak 200 400    # seeds 200 to 399

Everything is in one process and in memory, so a seed takes a second or two and repeats exactly.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

import asyncagg.store.memory as memory_store
from asyncagg.archive.packing import pack_archive
from asyncagg.errors import AsyncaggError, StoreError, TransientError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore, whole
from asyncagg.store.protocol import Condition
from asyncagg.verify.audit import verify
from asyncagg.verify.repair import repair
from asyncagg.windows import check_interval
from testkit.hooked import HookedStore
from testkit.producer import Producer, producer_of
from testkit.promises import check_after_clean_run, check_at_any_moment, of_memory
from testkit.scenario import AT, FORMATS, fill_memory, prepared

__all__ = ("soak",)

_program: ContextVar[asyncio.Task[Any]] = ContextVar("_program")
"""The program that sends a request: a kill cancels all its tasks."""

_FAULT = 0.02
_KILL = 0.01
_LATE = 0.06
_CHECK = 0.05


class _Unreliable(HookedStore):
    """A store whose writes may be executed late, after their sender has given up."""

    def __init__(self, inner: MemoryStore, dice: random.Random, producer: Producer) -> None:
        super().__init__(inner, self._disturb)
        self.late: list[Callable[[], Awaitable[object]]] = []
        self._memory = inner
        self._dice = dice
        self._producer = producer

    async def _disturb(self, operation: str, key: str, when: str) -> None:
        self._producer.perhaps()
        for _ in range(self._dice.choice((0, 0, 1, 3, 10))):
            await asyncio.sleep(0)
        if self._dice.random() < _LATE:
            await self.deliver()
        if when == "after" and self._dice.random() < _CHECK:
            check_now(self._memory, self._producer)
        if self._dice.random() < _KILL:
            _program.get().cancel()
        if self._dice.random() < _FAULT:
            raise TransientError("no answer", operation=operation, key=key)

    async def deliver(self) -> None:
        """Execute a write that is late."""
        if self.late:
            with suppress(StoreError):
                await self.late.pop(self._dice.randrange(len(self.late)))()

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """As `Store.put`."""
        data = await whole(body)
        options: dict[str, Any] = {"condition": condition, "metadata": metadata}
        options["content_type"] = content_type
        self._perhaps_later(key, partial(self.inner.put, key, data, **options))
        return await super().put(key, data, **options)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """As `Store.delete`."""
        self._perhaps_later(files[0].key, partial(self.inner.delete, files))
        return await super().delete(files)

    def _perhaps_later(self, key: str, write: Callable[[], Awaitable[object]]) -> None:
        if self._dice.random() < _LATE:
            self.late.append(write)
            raise TransientError("no answer", key=key)


def check_now(store: MemoryStore, producer: Producer) -> None:
    """Check promises 1 to 3."""
    check_at_any_moment(
        of_memory(store),
        producer.versions.values(),
        foreign=prepared().foreign,
        overwritten=producer.overwritten,
    )


async def soak(seed: int) -> None:
    """Let everything happen at once; then clean runs must leave every promise kept."""
    dice = random.Random(seed)
    inner = fill_memory(prepared().store)
    producer = producer_of(inner, seed, likely=0.03)
    store = _Unreliable(inner, dice, producer)

    async def runner() -> None:
        await run(store, _settings(dice), at=AT)

    async def archiver() -> None:
        await pack_archive(JobContext(store, _settings(dice)), check_interval(None, None))

    async def repairer() -> None:
        context = JobContext(store, _settings(dice))
        await repair(context, await verify(context))

    for _ in range(3):
        chosen = dice.choices((runner, archiver, repairer), (6, 2, 1), k=dice.randint(2, 6))
        results = await asyncio.gather(*map(_killable, chosen), return_exceptions=True)
        for result in results:
            expected = asyncio.CancelledError | AsyncaggError
            if isinstance(result, BaseException) and not isinstance(result, expected):
                raise result
        check_now(inner, producer)
    while store.late:
        await store.deliver()
        check_now(inner, producer)
    for _ in range(2):
        await run(inner, _settings(dice), at=AT)
    check_after_clean_run(
        of_memory(inner),
        producer.versions.values(),
        at=AT,
        foreign=prepared().foreign,
        overwritten=producer.overwritten,
    )


async def _killable(work: Callable[[], Awaitable[object]]) -> None:
    task = asyncio.current_task()
    assert task is not None
    _program.set(task)
    await work()


def _settings(dice: random.Random) -> Settings:
    form: Any = dice.choice(FORMATS)
    return Settings(
        archive_format=form,
        chunk_files=dice.choice((1, 3, 20_000)),
        concurrency=dice.randint(1, 6),
    )


def main(first: int, last: int) -> None:
    """Run the seeds of a range."""
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(first, last):
            patch.setattr(memory_store, "_PAGE", 6 if seed % 2 else 1000)
            try:
                asyncio.run(soak(seed))
            except BaseException as failure:
                failure.add_note(f"seed {seed}")
                raise
    sys.stdout.write(f"{last - first} seeds: nothing is lost, and nothing is counted twice\n")


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]] or [200]
    main(*([0, *given] if len(given) == 1 else given))
