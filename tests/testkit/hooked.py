"""A store that calls a hook at each request, and a way to cancel a task at one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from asyncagg.errors import StoreError
from asyncagg.model import RunFile
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody

__all__ = ("Hook", "HookedStore", "Stopped")

Hook = Callable[[str, str, str], Awaitable[None]]


@dataclass
class HookedStore:
    """A store that calls a hook before and after it executes a request.

    Attributes:
        inner: The store itself.
        hook: Called with the operation, the key, and "before" or "after". Its exceptions go to the
            caller of the store.
        calls: The number of requests, by operation.
    """

    inner: Store
    hook: Hook
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The URL of the inner store."""
        return self.inner.url

    @asynccontextmanager
    async def _hooked(self, operation: str, key: str) -> AsyncIterator[None]:
        self.calls[operation] = self.calls.get(operation, 0) + 1
        await self.hook(operation, key, "before")
        yield
        await self.hook(operation, key, "after")

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """As `Store.list_pages`."""
        pages = self.inner.list_pages(prefix, start_after=start_after)
        while True:
            await self.hook("list", prefix, "before")
            page = await anext(pages, None)
            await self.hook("list", prefix, "after")
            if page is None:
                return
            yield page

    async def head(self, key: str) -> ObjectInfo:
        """As `Store.head`."""
        async with self._hooked("head", key):
            return await self.inner.head(key)

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """As `Store.get`."""
        async with self._hooked("get", key):
            return await self.inner.get(key, if_match=if_match)

    async def get_range(
        self, key: str, start: int, length: int, *, if_match: str | None = None
    ) -> Body:
        """As `Store.get_range`."""
        async with self._hooked("get", key):
            return await self.inner.get_range(key, start, length, if_match=if_match)

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """As `Store.stream`."""
        async with self._hooked("stream", key):
            pass
        async with self.inner.stream(key, if_match=if_match) as body:
            yield body

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
        async with self._hooked("put", key):
            return await self.inner.put(
                key,
                body,
                condition=condition,
                content_type=content_type,
                metadata=metadata,
            )

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """As `Store.copy`."""
        async with self._hooked("copy", source):
            await self.inner.copy(
                source, target, if_match=if_match, condition=condition, metadata=metadata
            )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """As `Store.delete`."""
        async with self._hooked("delete", files[0].key):
            return await self.inner.delete(files)


class Stopped:
    """Cancels a task at its n-th request to a store, before or after the request is executed."""

    def __init__(self, store: MemoryStore, at: int, when: str) -> None:
        self.store = HookedStore(store, self._hook)
        self.task: asyncio.Task[object] | None = None
        self.step = ""
        self._at = at
        self._when = when
        self._seen = 0

    async def _hook(self, operation: str, key: str, when: str) -> None:
        self._seen += when == self._when
        if when == self._when and self._seen == self._at:
            self.step = f"request {self._at}, {operation} {key!r}, {when} it was executed"
            assert self.task is not None
            self.task.cancel()
            await asyncio.Event().wait()
