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
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import anyio
from msgspec import structs

from asyncagg.errors import (
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
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

OPTIONAL = ("get_if_match", "copy_if_absent")
"""The guards that the job replaces without a loss."""

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
        get_if_match: ``If-Match`` of a read; optional, because each response's ETag is compared.
        copy_if_match: ``x-amz-copy-source-if-match``.
        copy_if_absent: ``If-None-Match: *`` of a copy; optional.
        delete_if_match: The ETag of a deleted object.
    """

    put_if_absent: bool
    put_if_match: bool
    get_if_match: bool
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
        return tuple(name for name in self.missing if name not in OPTIONAL)

    def supports_put(self, condition: Condition) -> bool:
        """Whether this condition of a write is honoured."""
        return self.put_if_absent if isinstance(condition, Absent) else self.put_if_match

    def __or__(self, other: Guards) -> Guards:
        """Return the guards that either probe found: a probe never finds one by chance."""
        names = [each.name for each in fields(self)]
        return Guards(**{name: getattr(self, name) or getattr(other, name) for name in names})


async def probe(store: Store, prefix: str) -> Guards:
    """Find out which conditions a store honours, with three objects that are removed afterwards.

    No run files or aggregates must be listed below the prefix for these objects.

    Raises:
        ConfigurationError: The store lacks a request without which no run can work.
    """
    name = f"{prefix}{PROBE}{uuid.uuid4().hex}"
    keys = (name, f"{name}-copy", f"{name}-second-copy")
    # Before there is an object: one that cannot be deleted would stay.
    takes_etags = await _takes_etags_in_deletes(store, name)
    removed = False
    try:
        guards = await _probe(store, *keys)
        removed = takes_etags and await _delete_honoured(store, *keys)
        return replace(guards, delete_if_match=removed)
    finally:
        if not removed:
            with anyio.move_on_after(_CLEANUP_SECONDS, shield=True):
                for key in keys:
                    await remove_probe(store, key)


async def _takes_etags_in_deletes(store: Store, key: str) -> bool:
    """Return whether a store takes deletes with an ETag, of an object that does not exist.

    Raises:
        ConfigurationError: It takes none without an ETag either.
    """
    failure = await _delete(store, _reference(key, WRONG_ETAG))
    if failure is None or isinstance(failure, PreconditionFailedError):
        return True
    failure = await _delete(store, _reference(key))
    if failure is not None:
        raise ConfigurationError(
            f"store {store.url!r} refuses DeleteObjects ({failure}): expected a server that "
            "deletes many objects by one request, as Amazon S3 does"
        ) from failure
    return False


async def _probe(store: Store, first: str, second: str, third: str) -> Guards:
    """Find out all but how objects are deleted."""

    def put(body: bytes, condition: Condition) -> Callable[[], Awaitable[object]]:
        return lambda: store.put(first, body, condition=condition)

    def copy(
        target: str, if_match: str, condition: Absent | None
    ) -> Callable[[], Awaitable[object]]:
        return lambda: store.copy(first, target, if_match=if_match, condition=condition)

    absent_holds = await _honoured(put(b"1", Absent()), must_hold=True)
    if not absent_holds:
        await store.put(first, b"1")
    absent_fails = await _honoured(put(b"2", Absent()), must_hold=False)
    match_fails = await _honoured(put(b"3", Matches(WRONG_ETAG)), must_hold=False)
    etag = (await store.head(first)).file.etag
    match_holds = await _honoured(put(b"4", Matches(etag)), must_hold=True)
    etag = (await store.head(first)).file.etag
    reads_fail = await _reads_honoured(store, first, etag)

    source_fails = await _honoured(copy(second, WRONG_ETAG, None), must_hold=False)
    source_holds = await _honoured(copy(second, etag, None), must_hold=True)
    if not source_holds:
        await store.copy(first, second, if_match="", condition=None)
    if_match = etag if source_holds else ""
    target_holds = await _honoured(copy(third, if_match, Absent()), must_hold=True)
    target_fails = await _honoured(copy(third, if_match, Absent()), must_hold=False)
    return Guards(
        put_if_absent=absent_holds and absent_fails,
        put_if_match=match_holds and match_fails,
        get_if_match=reads_fail,
        copy_if_match=source_holds and source_fails,
        copy_if_absent=target_holds and target_fails,
        delete_if_match=False,
    )


async def _honoured(request: Callable[[], Awaitable[object]], *, must_hold: bool) -> bool:
    try:
        await request()
    except (PreconditionFailedError, NotFoundError):
        return not must_hold
    except StoreError as error:
        if not _is_refusal(error):
            raise
        return False
    return must_hold


def _is_refusal(error: StoreError) -> bool:
    """Whether an error says that the store does not know a kind of request or condition.

    A missing permission or a network that fails says nothing about that.
    """
    return not isinstance(error, (ConfigurationError, TransientError))


async def _reads_honoured(store: Store, key: str, etag: str) -> bool:
    """Return whether a condition of a read that must fail does; one that must hold always has to.

    Raises:
        ConfigurationError: A read with the object's own ETag fails.
    """
    try:
        await store.get(key, if_match=etag)
    except StoreError as error:
        if not _is_refusal(error):
            raise
        raise ConfigurationError(
            f"store {store.url!r}: a GET with the object's own ETag in If-Match fails ({error}): "
            "expected a server that compares ETags as Amazon S3 does"
        ) from error
    try:
        await store.get(key, if_match=WRONG_ETAG)
    except PreconditionFailedError as error:
        return not error.ignored
    return False


async def _delete_honoured(store: Store, key: str, *others: str) -> bool:
    """Return whether the ETag of a deleted object is compared; if it is, all keys are deleted."""
    if not isinstance(await _delete(store, _reference(key, WRONG_ETAG)), PreconditionFailedError):
        return False
    etag = (await store.head(key)).file.etag
    return await _delete(store, _reference(key, etag), *map(_reference, others)) is None


async def _delete(store: Store, *files: RunFile) -> StoreError | None:
    """Delete objects, and return the refusal of one of them, or of the whole request."""
    try:
        failures: Iterable[StoreError] = (await store.delete(files)).values()
    except StoreError as error:
        failures = [error]
    for failure in failures:
        if not _is_refusal(failure):
            raise failure
        return failure
    return None


def _reference(key: str, etag: str = "") -> RunFile:
    return RunFile(key, 0, etag, datetime.fromtimestamp(0, UTC))


async def remove_probe(store: Store, key: str) -> None:
    """Remove a probe's object, if it exists.

    No condition is needed, because no other program writes to the key.
    """
    try:
        await store.head(key)  # a delete of nothing would leave a marker in a versioned bucket
        await store.delete([_reference(key)])
    except AsyncaggError:
        return  # it does not exist, or a small object stays whose name shows its origin


class GuardedStore:
    """A store that is probed before the first write.

    A missing guard is an error if ``required``. Otherwise a HEAD checks the object just before the
    request, which leaves a race with other runners. A missing ``copy_if_absent`` (S3 has it since
    October 2025) is never an error: the archive is checked before each copy instead. Nor is a
    missing ``get_if_match``: the ETag of each response is compared. The probe's objects are below
    ``prefix``.
    """

    def __init__(self, store: Store, *, prefix: str, required: bool) -> None:
        self._store = store
        self._prefix = prefix
        self._required = required
        self._guards: Guards | None = None
        self._copies_are_guarded = False  # until the probe has shown it
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
                    found = self._guards
                    self._copies_are_guarded = found.copy_if_match and found.copy_if_absent
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
        copy = self._store.copy if self._copies_are_guarded else self._copy
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
