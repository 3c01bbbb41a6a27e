"""The guards that counting once rests on: found out by a probe, never assumed.

S3-compatible servers differ. Some refuse a condition, some accept it and do not look at it, some
compare etags wrongly so that a right one fails too. The probe sends conditions that must fail and
conditions that must hold, on objects of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, fields
from typing import Any

import anyio
import msgspec

from asyncagg.errors import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    UnsupportedConditionError,
)
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store.protocol import (
    Absent,
    Body,
    Condition,
    Matches,
    ObjectInfo,
    Store,
    StreamedBody,
)

__all__ = ("PROBE", "GuardedStore", "Guards", "probe", "remove")

PROBE = "asyncagg-probe-"
"""What the names of a probe's objects start with."""

_WRONG = "0" * 32
_LOOKS_AT_ONCE = 16
_PROBES = 3


@dataclass(frozen=True, slots=True)
class Guards:
    """Which conditions a store honours.

    Attributes:
        put_if_absent: ``If-None-Match: *`` of a write.
        put_if_match: ``If-Match`` of a write.
        copy_if_match: ``x-amz-copy-source-if-match``.
        copy_if_absent: ``If-None-Match: *`` of a copy; the one that may be missing.
        delete_if_match: The ETag of a deleted object.
    """

    put_if_absent: bool
    put_if_match: bool
    copy_if_match: bool
    copy_if_absent: bool
    delete_if_match: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of those that are not honoured."""
        return tuple(each.name for each in fields(self) if not getattr(self, each.name))

    @property
    def lacking(self) -> tuple[str, ...]:
        """The names of those that are not honoured and may not be missing."""
        return tuple(name for name in self.missing if name != "copy_if_absent")

    def of_put(self, condition: Condition) -> bool:
        """Whether this condition of a write is honoured."""
        return self.put_if_absent if isinstance(condition, Absent) else self.put_if_match

    def union(self, other: Guards) -> Guards:
        """Return what is honoured in either: a condition does not hold and fail by chance."""
        names = [each.name for each in fields(self)]
        return Guards(**{name: getattr(self, name) or getattr(other, name) for name in names})


async def probe(store: Store, prefix: str) -> Guards:
    """Find out which conditions a store honours, on two objects that are removed again.

    Args:
        store: The store.
        prefix: Where to put the objects: one that nobody lists for run files or aggregates.
    """
    token = uuid.uuid4().hex
    first, second = f"{prefix}{PROBE}{token}", f"{prefix}{PROBE}{token}-copy"
    try:
        return await _probe(store, first, second)
    finally:
        with anyio.move_on_after(5, shield=True):
            await remove(store, first)
            await remove(store, second)


async def _probe(store: Store, first: str, second: str) -> Guards:
    def put(body: bytes, condition: Condition) -> Callable[[], Awaitable[object]]:
        return lambda: store.put(first, body, condition=condition)

    absent_holds = await _honoured(put(b"1", Absent()), must_hold=True)
    if not absent_holds:
        await store.put(first, b"1")
    absent_fails = await _honoured(put(b"2", Absent()), must_hold=False)
    match_fails = await _honoured(put(b"3", Matches(_WRONG)), must_hold=False)
    etag = (await store.head(first)).file.etag
    match_holds = await _honoured(put(b"4", Matches(etag)), must_hold=True)
    etag = (await store.head(first)).file.etag

    def copy(if_match: str, condition: Absent | None) -> Callable[[], Awaitable[object]]:
        return lambda: store.copy(first, second, if_match=if_match, condition=condition)

    source_fails = await _honoured(copy(_WRONG, None), must_hold=False)
    source_holds = await _honoured(copy(etag, None), must_hold=True)
    await remove(store, second)
    target_holds = await _honoured(copy(etag, Absent()), must_hold=True)
    target_fails = await _honoured(copy(etag, Absent()), must_hold=False)
    return Guards(
        put_if_absent=absent_holds and absent_fails,
        put_if_match=match_holds and match_fails,
        copy_if_match=source_holds and source_fails,
        copy_if_absent=target_holds and target_fails,
        delete_if_match=await _delete_honoured(store, first),
    )


async def _honoured(request: Callable[[], Awaitable[object]], *, must_hold: bool) -> bool:
    try:
        await request()
    except (PreconditionFailedError, NotFoundError):
        return not must_hold
    except UnsupportedConditionError:
        return False
    return must_hold


async def _delete_honoured(store: Store, key: str) -> bool:
    file = (await store.head(key)).file
    wrong = RunFile(key, file.size, _WRONG, file.last_modified)
    try:
        refused = await store.delete([wrong])
        failure = refused.get(key)
        if isinstance(failure, ConfigurationError):
            raise failure  # a permission is missing, not a guard
        if not isinstance(failure, PreconditionFailedError):
            return False
        return not await store.delete([file])
    except UnsupportedConditionError:
        return False


async def remove(store: Store, key: str) -> None:
    """Remove an object of a probe, if it is there, without a condition where the store has none.

    Nobody else writes to it.
    """
    try:
        file = (await store.head(key)).file
        with suppress(UnsupportedConditionError):
            if not await store.delete([file]):
                return
        await store.delete([msgspec.structs.replace(file, etag="")])
    except StoreError:
        return  # gone, or a small object stays under a name that says whose it is


class GuardedStore:
    """A store whose guards are probed before it is first written to.

    Where one is missing, that is an error, unless ``required`` is off: then the object is looked at
    just before the request instead, which leaves a gap that a second runner can fall into. A store
    that only lacks the guard of a copy's target (older than October 2025) is never an error: the
    archive is looked at first.

    Args:
        store: The store itself.
        prefix: Where to probe.
        required: Whether a missing guard is an error.
    """

    def __init__(self, store: Store, *, prefix: str, required: bool) -> None:
        self._store = store
        self._prefix = prefix
        self._required = required
        self._guards: Guards | None = None
        self._all_there = False  # as far as is known
        self._probing = anyio.Lock()

    @property
    def url(self) -> str:
        """Its name for messages."""
        return self._store.url

    @property
    def unguarded(self) -> Store:
        """The store itself, for who wants to find out what it does by itself."""
        return self._store

    async def guards(self) -> Guards:
        """Return which conditions the store honours.

        Raises:
            ConfigurationError: One is missing that is required.
        """
        if self._guards is None:
            async with self._probing:
                if self._guards is None:
                    self._guards = self._checked(await self._probe())
                    self._all_there = not self._guards.missing
        return self._guards

    async def _probe(self) -> Guards:
        """Probe until nothing is lacking, a few times: a lost answer looks like a missing guard."""
        guards = await probe(self._store, self._prefix)
        for _ in range(_PROBES - 1):
            if not guards.lacking:
                break
            guards = guards.union(await probe(self._store, self._prefix))
        return guards

    def _checked(self, guards: Guards) -> Guards:
        lacking = guards.lacking
        if lacking and self._required:
            raise ConfigurationError(
                f"store {self.url!r} does not honour {', '.join(lacking)}: expected a store with "
                "conditional writes, copies and deletes, such as Amazon S3; or set "
                "conditional_writes=off and see docs/explanation/guarantees.md for what that costs"
            )
        return guards

    def list_pages(self, prefix: str, *, start_after: str = "") -> AsyncIterator[Sequence[RunFile]]:
        """See `asyncagg.store.Store.list_pages`."""
        return self._store.list_pages(prefix, start_after=start_after)

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.Store.head`."""
        return await self._store.head(key)

    def get(self, key: str, *, if_match: str | None = None) -> Coroutine[Any, Any, Body]:
        """See `asyncagg.store.Store.get`; no frame of its own, for once per file."""
        return self._store.get(key, if_match=if_match)

    def stream(
        self, key: str, *, if_match: str | None = None
    ) -> AbstractAsyncContextManager[StreamedBody]:
        """See `asyncagg.store.Store.stream`."""
        return self._store.stream(key, if_match=if_match)

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
        guards = await self.guards()
        if condition is not None and not guards.of_put(condition):
            await self._expect(key, condition)
            condition = None
        return await self._store.put(
            key,
            body,
            condition=condition,
            content_type=content_type,
            metadata=metadata,
        )

    def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """See `asyncagg.store.Store.copy`; no frame of its own where every guard is there."""
        copy = self._store.copy if self._all_there else self._copy
        return copy(source, target, if_match=if_match, condition=condition, metadata=metadata)

    async def _copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None,
        metadata: Mapping[str, str] | None,
    ) -> None:
        guards = await self.guards()
        if not guards.copy_if_match:
            await self._expect(source, Matches(if_match))
            if_match = ""
        if condition is not None and not guards.copy_if_absent:
            await self._expect(target, condition)
            condition = None
        await self._store.copy(
            source, target, if_match=if_match, condition=condition, metadata=metadata
        )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.Store.delete`."""
        if (await self.guards()).delete_if_match:
            return await self._store.delete(files)
        failures: dict[str, StoreError] = {}
        safe: list[RunFile] = []

        async def look(file: RunFile) -> None:
            try:
                await self._expect(file.key, Matches(file.etag))
            except NotFoundError:
                return
            except PreconditionFailedError as error:
                failures[file.key] = error
            else:
                safe.append(msgspec.structs.replace(file, etag=""))

        await for_each(files, look, workers=_LOOKS_AT_ONCE)
        return failures | dict(await self._store.delete(safe) if safe else {})

    async def _expect(self, key: str, condition: Condition) -> None:
        """Look at an object instead of sending the condition."""
        etag = condition.etag if isinstance(condition, Matches) else None
        try:
            found = (await self._store.head(key)).file.etag
        except NotFoundError:
            if etag is None:
                return
            raise
        if found != etag:
            raise PreconditionFailedError(
                f"{key!r} has etag {found!r}: expected {etag!r}", operation="head", key=key
            )
