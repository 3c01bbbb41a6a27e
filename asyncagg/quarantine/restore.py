"""Restore files from quarantine: move those that would be accepted now back into the inbox.

A file gets a new key: the old one with a mark, its window, and a digest of the old key and the
content. Each file counts once, because

* it is claimed first (`asyncagg.quarantine.claim`): with the old key, no run counts it any more. If
  a run has counted it before, it goes to the archive instead.
* with the new key, it always belongs to the same window, whenever and however often it is copied.
  So the aggregate of that window knows whether it is counted, or quarantined once more.

The order is: check, claim, copy, delete. After each step the content is in one of the places or in
both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from msgspec import structs

from asyncagg.errors import (
    AccessDeniedError,
    AggregateError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.archive import digest, producer_metadata, same_bytes, same_content
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind
from asyncagg.job.refusals import Refusals
from asyncagg.job.run_files import RunFileReader
from asyncagg.model import RunFile, Window
from asyncagg.quarantine.claim import Claim, claim_files
from asyncagg.quarantine.details import quarantine_reason
from asyncagg.quarantine.listing import QuarantinedFile, check_key, look_up
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Matches, Store

_WINDOWS_AT_ONCE = 4
"""How many aggregates are read concurrently."""

_OVERWRITTEN = "it was overwritten meanwhile: try again"


RestoreStatus = Literal["put_back", "counted", "left"]

_ACCEPTED: dict[RestoreStatus, tuple[str, ...]] = {
    "left": ("head", "get"),
    "counted": ("head", "get", "copy", "delete"),
    "put_back": ("head", "get", "copy", "delete"),
}
"""The operations that the store has accepted when a file has this status."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What happened to a file.

    Attributes:
        key: Its key in quarantine.
        status: ``put_back``: it was moved to the inbox. ``counted``: it was counted before, and is
            moved to the archive. ``left``: it is still in quarantine.
        inbox_key: Its key in the inbox, if it is there.
        reason: Why it is left.
    """

    key: str
    status: RestoreStatus
    inbox_key: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


Report: TypeAlias = Callable[[RestoreResult], object]
"""Called with what happened to each file."""


class Restorer:
    """Restores files from quarantine; jobs and other restorers may run at the same time.

    Args:
        context: Where the files are.
        force: Whether to restore even files that would be quarantined again.

    Attributes:
        refusals: What the store has refused; to be checked at the end.
    """

    def __init__(self, context: JobContext, *, force: bool = False) -> None:
        self.refusals = Refusals(most=math.inf)
        self._context = context
        self._store = context.store
        self._settings = context.settings
        self._layout = context.layout
        self._reader = RunFileReader(context.store, context.settings)
        self._force = force

    async def restore_all(self, report: Report) -> None:
        """Restore every file that would be accepted now; ``report`` is called with each result."""
        async for page in self._store.list_pages(self._settings.quarantine_prefix):
            await self._restore([file.key for file in page if self._is_run_file(file.key)], report)

    async def restore(self, key: str) -> RestoreResult:
        """Restore the file with a key in quarantine.

        Raises:
            UsageError: The key is not in quarantine.
            ConfigurationError: The store cannot be used.
        """
        check_key(self._settings, key)
        results: list[RestoreResult] = []
        await self._restore([key], results.append)
        return results[0]

    async def replace(self, key: str, source: Store, name: str) -> RestoreResult:
        """Overwrite a file with fixed content, and restore it.

        Args:
            key: Its key in quarantine.
            source: Where the fixed content is.
            name: Its key there. The content is gzip if the key in quarantine ends in ``.gz``.

        Raises:
            UsageError: The key is not in quarantine.
            NotFoundError: There is no fixed content, or no file to replace.
            ConfigurationError: The store cannot be used.
        """
        check_key(self._settings, key)
        fixed = (await source.head(name)).file
        present = await self._store.head(key)
        reader = RunFileReader(source, self._settings)
        reason = await quarantine_reason(reader, structs.replace(fixed, key=key), key=name)
        if reason and not self._force:
            return RestoreResult(key, "left", reason=f"{name!r} would be quarantined: {reason}")
        # A second write could change the etag, and a restored file would be restored again.
        same_size = present.file.size == fixed.size
        if not (same_size and await same_bytes(self._store, present.file, source, fixed)):
            window, claim = await self._prepare(key)
            if await claim_files(self._context, window, [claim]):
                return RestoreResult(
                    key, "left", reason="it is counted: restore it without a replacement"
                )
            content, condition = _Content(source, fixed), Matches(present.file.etag)
            try:
                await self._store.put(key, content, condition=condition, metadata=present.metadata)
            except PreconditionFailedError:
                return RestoreResult(key, "left", reason=_OVERWRITTEN)
        return await self.restore(key)

    async def _restore(self, keys: Iterable[str], report: Report) -> None:
        """Restore files; those of one window are claimed together."""
        claims: defaultdict[Window, list[Claim]] = defaultdict(list)
        workers = self._settings.concurrency

        async def prepare(key: str) -> None:
            with self._reporting(report, [key]):
                window, claim = await self._prepare(key)
                blocker = await self._blocker(claim)
                if blocker:
                    self._report(RestoreResult(key, "left", reason=blocker), report)
                else:
                    claims[window].append(claim)

        async def restore_window(item: tuple[Window, list[Claim]]) -> None:
            window, group = item
            with self._reporting(report, [claim.file.key for claim in group]):
                counted = await claim_files(self._context, window, group)
                await self._move_each(group, counted, report)

        await for_each(keys, prepare, workers=workers)
        await for_each(claims.items(), restore_window, workers=min(_WINDOWS_AT_ONCE, workers))

    async def _prepare(self, key: str) -> tuple[Window, Claim]:
        """Return the window of a file, and the claim to it."""
        found = await look_up(self._context, key)
        file = found.file
        arrived = self._arrived(found)
        unmoved = arrived or structs.replace(file, key=self._layout.inbox_key(key))
        window = found.window or self._context.window_of(unmoved)
        async with self._store.stream(key, if_match=file.etag) as body:
            content = await digest(body.chunks)
        restored_key = self._layout.restored_key(unmoved.key, content, window)
        return window, Claim(file, arrived, restored_key, found.reason or "not known any more")

    def _arrived(self, found: QuarantinedFile) -> RunFile | None:
        """Return a file in quarantine as it was in the inbox, or None if that is unknown."""
        if not found.etag:
            return None  # no run has put it there
        file = structs.replace(found.file, etag=found.etag)
        key = self._layout.arrival_key(file, self._layout.quarantine_key)
        return structs.replace(file, key=key) if key else None

    async def _blocker(self, claim: Claim) -> str:
        """Return why a file must not be restored; empty if it may be."""
        file = claim.file
        if not self._is_run_file(file.key):
            return f"{self._layout.inbox_key(file.key)!r} is not the key of a run file"
        reason = "" if self._force else await quarantine_reason(self._reader, file)
        if reason:
            return f"it would be quarantined again: {reason}"
        original = claim.arrived.key if claim.arrived else self._layout.inbox_key(file.key)
        if await same_content(self._store, file, original):
            return f"it is still in the inbox, as {original!r}: the next run settles it"
        return ""

    def _is_run_file(self, key: str) -> bool:
        return self._layout.kind(self._layout.inbox_key(key)) is KeyKind.RUN_FILE

    async def _move_each(
        self, claims: Iterable[Claim], counted: Mapping[str, RunFile], report: Report
    ) -> None:
        async def move(claim: Claim) -> None:
            with self._reporting(report, [claim.file.key]):
                self._report(await self._move(claim, counted.get(claim.file.key)), report)

        await for_each(claims, move, workers=self._settings.concurrency)

    async def _move(self, claim: Claim, counted: RunFile | None) -> RestoreResult:
        """Move a file to the inbox, or to the archive if it is counted."""
        file = claim.file
        if counted is None:
            await self._copy(file, claim.restored_key)
        else:
            archived = self._layout.archive_key(counted.key)
            await self._copy(file, archived, self._layout.conflict_key(archived, counted.etag))
        target = "" if counted else claim.restored_key
        failure = (await self._store.delete([file])).get(file.key)
        if failure is not None:
            self._note(failure)
            reason = f"it was copied to the inbox, but is still in quarantine: {failure}"
            if counted:
                reason = f"it is counted, but is still in quarantine: {failure}"
            return RestoreResult(file.key, "left", target, reason)
        return RestoreResult(file.key, "counted" if counted else "put_back", target)

    async def _copy(self, file: RunFile, *targets: str) -> None:
        """Copy a file to the first of some keys that no other content has.

        Raises:
            PreconditionFailedError: All have, or the file has changed.
        """
        for target in targets:
            if await self._is_copied(file, target):
                return
        raise PreconditionFailedError(f"cannot copy {file.key!r}: {targets} have other content")

    async def _is_copied(self, file: RunFile, target: str) -> bool:
        try:
            metadata = producer_metadata((await self._store.head(file.key)).metadata)
            await self._store.copy(file.key, target, if_match=file.etag, metadata=metadata)
        except PreconditionFailedError:
            return await same_content(self._store, file, target)
        return True

    @contextmanager
    def _reporting(self, report: Report, keys: Sequence[str]) -> Iterator[None]:
        """Report files as left if an error prevents that they are restored."""
        try:
            yield
        except NotFoundError:
            reason = "no object has this key"
        except PreconditionFailedError:
            reason = _OVERWRITTEN
        except (AggregateError, StoreError) as error:
            reason = str(error)
            self._note(error)
        else:
            return
        for key in keys:
            report(RestoreResult(key, "left", reason=reason))

    def _note(self, error: AsyncaggError) -> None:
        """Note a refusal; raise an error that concerns all files."""
        if isinstance(error, AccessDeniedError):
            self.refusals.add(error)
        elif isinstance(error, ConfigurationError):
            raise error

    def _report(self, result: RestoreResult, report: Report) -> None:
        for operation in _ACCEPTED[result.status]:
            self.refusals.accept(operation)
        report(result)


@dataclass(frozen=True, slots=True)
class _Content:
    """An object's content; each iteration reads it from the start."""

    store: Store
    file: RunFile

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self.store.stream(self.file.key, if_match=self.file.etag) as body:
            async for block in body.chunks:
                yield block
