"""Finds out by a probe which conditional requests a store honours: counting once needs them.

S3-compatible servers differ. Some reject a condition, some ignore it, and some compare etags
wrongly, so that a correct one fails. The probe sends conditions that must fail and conditions that
must hold, on objects that it creates and removes.
"""

from __future__ import annotations

import uuid
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import anyio
from msgspec import structs

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
    Condition,
    Matches,
    Store,
)

PROBE = "asyncagg-probe-"
"""The start of the names of a probe's objects."""

WRONG_ETAG = "0" * 32
"""An etag that no object has."""

WITHOUT_GUARDS = (
    "pass --conditional-writes off (or set ASYNCAGG_CONDITIONAL_WRITES=off), which is safe only if "
    "one runner at a time works on the store: see docs/explanation/guarantees.md"
)
"""How to use a store that lacks guards."""

_CLEANUP_SECONDS = 5.0
_CONCURRENT_HEADS = 16
_PROBES = 3


@dataclass(frozen=True, slots=True)
class Guards:
    """The conditional requests that a store honours.

    Attributes:
        put_if_absent: ``If-None-Match: *`` of a write.
        put_if_match: ``If-Match`` of a write.
        copy_if_match: ``x-amz-copy-source-if-match``.
        copy_if_absent: ``If-None-Match: *`` of a copy; the only optional one.
        delete_if_match: The ETag of a deleted object.
    """

    put_if_absent: bool
    put_if_match: bool
    copy_if_match: bool
    copy_if_absent: bool
    delete_if_match: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the guards that the store does not honour."""
        return tuple(each.name for each in fields(self) if not getattr(self, each.name))

    @property
    def missing_required(self) -> tuple[str, ...]:
        """The names of the required guards that the store does not honour."""
        return tuple(name for name in self.missing if name != "copy_if_absent")

    def supports_put(self, condition: Condition) -> bool:
        """Whether this condition of a write is honoured."""
        return self.put_if_absent if isinstance(condition, Absent) else self.put_if_match

    def __or__(self, other: Guards) -> Guards:
        """Return the guards that either probe found: a probe never finds one by chance."""
        names = [each.name for each in fields(self)]
        return Guards(**{name: getattr(self, name) or getattr(other, name) for name in names})


async def probe(store: Store, prefix: str) -> Guards:
    """Find out which conditions a store honours, with two objects that are removed afterwards.

    No run files or aggregates must be listed below the prefix for these objects.
    """
    token = uuid.uuid4().hex
    first, second = f"{prefix}{PROBE}{token}", f"{prefix}{PROBE}{token}-copy"
    try:
        return await _probe(store, first, second)
    finally:
        with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
            await remove_probe(store, first)
            await remove_probe(store, second)


async def _probe(store: Store, first: str, second: str) -> Guards:
    def put(body: bytes, condition: Condition) -> Callable[[], Awaitable[object]]:
        return lambda: store.put(first, body, condition=condition)

    def copy(if_match: str, condition: Absent | None) -> Callable[[], Awaitable[object]]:
        return lambda: store.copy(first, second, if_match=if_match, condition=condition)

    absent_holds = await _honoured(put(b"1", Absent()), must_hold=True)
    if not absent_holds:
        await store.put(first, b"1")
    absent_fails = await _honoured(put(b"2", Absent()), must_hold=False)
    match_fails = await _honoured(put(b"3", Matches(WRONG_ETAG)), must_hold=False)
    etag = (await store.head(first)).file.etag
    match_holds = await _honoured(put(b"4", Matches(etag)), must_hold=True)
    etag = (await store.head(first)).file.etag

    source_fails = await _honoured(copy(WRONG_ETAG, None), must_hold=False)
    source_holds = await _honoured(copy(etag, None), must_hold=True)
    await remove_probe(store, second)
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
    try:
        failures = await store.delete([structs.replace(file, etag=WRONG_ETAG)])
        failure = failures.get(key)
        if isinstance(failure, ConfigurationError):
            raise failure  # a missing permission says nothing about the guard
        if not isinstance(failure, PreconditionFailedError):
            return False
        return not await store.delete([file])
    except UnsupportedConditionError:
        return False


async def remove_probe(store: Store, key: str) -> None:
    """Remove a probe's object, if it exists; unconditionally if the store rejects conditions.

    This is safe because no other program writes to the key.
    """
    try:
        file = (await store.head(key)).file
        with suppress(UnsupportedConditionError):
            if not await store.delete([file]):
                return
        await store.delete([structs.replace(file, etag="")])
    except StoreError:
        return  # it does not exist, or a small object stays whose name shows its origin


class GuardedStore:
    """A store that is probed before the first write.

    A missing guard is an error if ``required``. Otherwise a HEAD checks the object just before the
    request, which leaves a race with other runners. A missing ``copy_if_absent`` (S3 has it since
    October 2025) is never an error: the archive is checked before each copy instead. The probe's
    objects are below ``prefix``.
    """

    def __init__(self, store: Store, *, prefix: str, required: bool) -> None:
        self._store = store
        self._prefix = prefix
        self._required = required
        self._guards: Guards | None = None
        self._has_all = False  # until the probe has shown it
        self._probing = anyio.Lock()
        # Reading needs no guards. A method of this class would cost one more call for each file.
        self.list_pages = store.list_pages
        self.head = store.head
        self.get = store.get
        self.get_range = store.get_range
        self.stream = store.stream

    @property
    def url(self) -> str:
        """The store's name for messages."""
        return self._store.url

    @property
    def unguarded(self) -> Store:
        """The store without guards, for callers that test its own behaviour."""
        return self._store

    async def guards(self) -> Guards:
        """Return the guards, from a probe at the first call; a missing required one is an error."""
        if self._guards is None:
            async with self._probing:
                if self._guards is None:
                    self._guards = await self._probe()
                    self._has_all = not self._guards.missing
        return self._guards

    async def _probe(self) -> Guards:
        """Probe again if guards are missing: a lost response looks like a missing guard."""
        guards = await probe(self._store, self._prefix)
        for _ in range(_PROBES - 1):
            if not guards.missing_required:
                break
            guards |= await probe(self._store, self._prefix)
        missing = guards.missing_required
        if missing and self._required:
            raise _missing_guards(self.url, missing)
        return guards

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Write an object in one atomic step and return its etag."""
        guards = await self.guards()
        if condition is not None and not guards.supports_put(condition):
            await check_condition(self._store, key, condition)
            condition = None
        return await self._store.put(
            key, body, condition=condition, content_type=content_type, metadata=metadata
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
        """Copy an object whose etag is ``if_match``."""
        # Not a coroutine function either, for the same reason.
        copy = self._store.copy if self._has_all else self._copy
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
            await check_condition(self._store, source, Matches(if_match))
            if_match = ""
        if condition is not None and not guards.copy_if_absent:
            await check_condition(self._store, target, condition)
            condition = None
        await self._store.copy(
            source, target, if_match=if_match, condition=condition, metadata=metadata
        )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """Delete objects whose etag is unchanged; return the failures by key."""
        if (await self.guards()).delete_if_match:
            return await self._store.delete(files)
        failures: dict[str, StoreError] = {}
        unchanged: list[RunFile] = []

        async def check(file: RunFile) -> None:
            try:
                await check_condition(self._store, file.key, Matches(file.etag))
            except NotFoundError:
                return
            except PreconditionFailedError as error:
                failures[file.key] = error
            else:
                unchanged.append(structs.replace(file, etag=""))

        await for_each(files, check, workers=_CONCURRENT_HEADS)
        return failures | dict(await self._store.delete(unchanged) if unchanged else {})


class PartsGuard:
    """The conditions of multipart uploads, which are probed before the first one is completed.

    It is called with the key and the condition of an upload, and returns the condition to send, or
    ``None`` after a check by a HEAD as in `GuardedStore`. ``put_in_parts`` writes a key's content
    by a multipart upload.
    """

    def __init__(
        self,
        store: Store,
        put_in_parts: Callable[[str, bytes, Condition], Awaitable[object]],
        *,
        prefix: str,
        required: bool,
    ) -> None:
        self._store = store
        self._put = put_in_parts
        self._prefix = prefix
        self._required = required
        self._honoured: bool | None = None
        self._probing = anyio.Lock()

    async def __call__(self, key: str, condition: Condition) -> Condition | None:
        """Return the condition that completes an upload to a key."""
        if await self.honoured():
            return condition
        if self._required:
            raise _missing_guards(self._store.url, ["conditions of multipart uploads"])
        await check_condition(self._store, key, condition)
        return None

    async def honoured(self) -> bool:
        """Return whether the store honours them, from a probe at the first call."""
        async with self._probing:
            for _ in range(_PROBES):
                if not self._honoured:
                    self._honoured = await self._probe()
        return bool(self._honoured)

    async def _probe(self) -> bool:
        key = f"{self._prefix}{PROBE}{uuid.uuid4().hex}-parts"

        def put(condition: Condition) -> Callable[[], Awaitable[object]]:
            return lambda: self._put(key, b"1", condition)

        try:
            holds = await _honoured(put(Absent()), must_hold=True)
            fails = await _honoured(put(Absent()), must_hold=False)
            if not (holds and fails and await _honoured(put(Matches(WRONG_ETAG)), must_hold=False)):
                return False
            etag = (await self._store.head(key)).file.etag
            return await _honoured(put(Matches(etag)), must_hold=True)
        finally:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                await remove_probe(self._store, key)


def _missing_guards(url: str, missing: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"store {url!r} does not honour {', '.join(missing)}: expected a store with "
        f"conditional writes, copies and deletes, such as Amazon S3; or {WITHOUT_GUARDS}"
    )


async def check_condition(store: Store, key: str, condition: Condition) -> None:
    """Check a condition by a HEAD, for a store that does not honour it."""
    expected = condition.etag if isinstance(condition, Matches) else None
    try:
        found = (await store.head(key)).file.etag
    except NotFoundError:
        if expected is None:
            return
        raise
    if found != expected:
        wanted = "no object" if expected is None else repr(expected)
        raise PreconditionFailedError(
            f"{key!r} has etag {found!r}, expected {wanted}",
            operation="head",
            key=key,
        )
