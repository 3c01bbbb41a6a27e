"""The store of a program in an exploration: its requests wait for the explorer."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from asyncagg.errors import StoreError
from asyncagg.model import RunFile
from asyncagg.store.memory import MemoryStore, whole
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody

__all__ = ("Answer", "Request", "ScheduledStore")


Execute: TypeAlias = Callable[[MemoryStore], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """A request of a program to the store.

    Attributes:
        text: The operation and its keys.
        at: The time that written objects get.
        execute: Executes it on a store.
        writes: Whether it may change the store.
        producer: The key that a producer writes or deletes; empty for the package's requests.
    """

    text: str
    at: datetime
    execute: Execute
    writes: bool = False
    producer: str = ""


class Answer(NamedTuple):
    """The answer to a request: a value, or the error that it raises."""

    value: Any = None
    error: Exception | None = None


class ScheduledStore:
    """A store whose requests wait until `answer` is called for them.

    Args:
        loop: The loop of the program.
        at: The time that written objects get.

    Attributes:
        waiting: The requests that wait, by their number.
    """

    url = "memory://"

    def __init__(self, loop: asyncio.AbstractEventLoop, at: datetime) -> None:
        self.waiting: dict[int, Request] = {}
        self._futures: dict[int, asyncio.Future[Any]] = {}
        self._loop = loop
        self._at = at
        self._count = 0

    def answer(self, number: int, answer: Answer) -> None:
        """Answer the request with this number."""
        del self.waiting[number]
        future = self._futures.pop(number)
        if answer.error is None:
            future.set_result(answer.value)
        else:
            future.set_exception(answer.error.with_traceback(None))

    async def _request(
        self, text: str, execute: Execute, *, writes: bool = False, producer: str = ""
    ) -> Any:
        self._count += 1
        number = self._count
        self.waiting[number] = Request(text, self._at, execute, writes, producer)
        self._futures[number] = self._loop.create_future()
        try:
            return await self._futures[number]
        finally:
            self.waiting.pop(number, None)  # if the task was cancelled

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """See `asyncagg.store.Store.list_pages`; as in S3, a page says whether more follow."""
        more = True
        while more:
            after = start_after

            async def execute(store: MemoryStore, after: str = after) -> tuple[Any, bool]:
                pages = [page async for page in store.list_pages(prefix, start_after=after)]
                return pages[0] if pages else [], len(pages) > 1

            page, more = await self._request(f"list {prefix} after {after!r}", execute)
            if page:
                yield page
                start_after = page[-1].key

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.Store.head`."""
        found: ObjectInfo = await self._request(f"head {key}", lambda store: store.head(key))
        return found

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """See `asyncagg.store.Store.get`."""
        body: Body = await self._request(
            f"get {key}", lambda store: store.get(key, if_match=if_match)
        )
        return body

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """See `asyncagg.store.Store.get_range`."""
        body: Body = await self._request(
            f"get {length} bytes from {start} of {key}",
            lambda store: store.get_range(key, start, length, if_match=if_match),
        )
        return body

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.Store.stream`; the whole body is read at once."""
        body = await self.get(key, if_match=if_match)
        yield StreamedBody(_one_block(body.data), body.etag)

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """See `asyncagg.store.Store.put`."""
        data = await whole(body)

        def execute(store: MemoryStore) -> Coroutine[Any, Any, str]:
            return store.put(
                key, data, condition=condition, content_type=content_type, metadata=metadata
            )

        etag: str = await self._request(f"put {key}", execute, writes=True)
        return etag

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """See `asyncagg.store.Store.copy`."""

        def execute(store: MemoryStore) -> Coroutine[Any, Any, None]:
            return store.copy(
                source, target, if_match=if_match, condition=condition, metadata=metadata
            )

        await self._request(f"copy {source} to {target}", execute, writes=True)

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.Store.delete`; as in S3, only each key by itself is atomic."""
        failures: dict[str, StoreError] = {}
        for file in files:
            failures |= await self._delete(file)
        return failures

    async def _delete(self, file: RunFile) -> Mapping[str, StoreError]:
        failures: Mapping[str, StoreError] = await self._request(
            f"delete {file.key}", lambda store: store.delete([file]), writes=True
        )
        return failures

    async def deliver(self, key: str, data: bytes) -> None:
        """Write a run file as its producer does, whatever has its key."""
        await self._request(
            f"deliver {key}", lambda store: store.put(key, data), writes=True, producer=key
        )

    async def remove(self, key: str, *, producer: bool = False) -> None:
        """Delete an object without a condition."""

        async def execute(store: MemoryStore) -> None:
            store._objects.pop(key, None)

        await self._request(f"remove {key}", execute, writes=True, producer=key if producer else "")


async def _one_block(data: bytes) -> AsyncIterator[bytes]:
    yield data
