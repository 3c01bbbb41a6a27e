"""Restore files from quarantine: move those that would be accepted now back into the inbox.

A file gets a new key: the old one with a mark and a digest of the key in quarantine and the etag.

* With the old key, runs would move it back unread: an aggregate names that key and etag as
  quarantined. And a run that deletes a file from the inbox, because quarantine has a copy, could do
  so just when the copy is deleted here. A file with another key has another place in quarantine.
* The new key depends on the content, so a retry finds a restored file in the inbox or the archive.
* After a lost response, a retry cannot tell whether the file was already restored, and a run may
  have counted it since. So runs check the archive before they count a file with the mark
  (`asyncagg.job.restored`).

The order is: check, copy, delete. After each step the content is in one of the places or in both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from msgspec import structs

from asyncagg.errors import ConfigurationError, NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.archive import producer_metadata, same_bytes, same_content
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind
from asyncagg.job.restored import is_archived
from asyncagg.job.run_files import RunFileReader
from asyncagg.model import RunFile
from asyncagg.quarantine.details import quarantine_reason
from asyncagg.quarantine.listing import check_key
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Matches, Store

_OVERWRITTEN = "it was overwritten meanwhile: try again"


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What happened to a file.

    Attributes:
        key: Its key in quarantine.
        status: ``put_back``: it was moved to the inbox. ``counted``: it was counted before, and is
            deleted from quarantine. ``left``: it is still in quarantine.
        inbox_key: Its key in the inbox, if it is there.
        reason: Why it is left.
    """

    key: str
    status: Literal["put_back", "counted", "left"]
    inbox_key: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


class Restorer:
    """Restores files from quarantine; jobs and other restorers may run at the same time.

    Args:
        context: Where the files are.
        force: Whether to restore even files that would be quarantined again.
    """

    def __init__(self, context: JobContext, *, force: bool = False) -> None:
        self._store = context.store
        self._settings = context.settings
        self._layout = context.layout
        self._reader = RunFileReader(context.store, context.settings)
        self._force = force

    async def restore_all(self, report: Callable[[RestoreResult], None]) -> None:
        """Restore every file that would be accepted now; ``report`` is called with each result."""

        async def one(file: RunFile) -> None:
            report(await self.restore(file.key))

        async for page in self._store.list_pages(self._settings.quarantine_prefix):
            await for_each(filter(self._is_run_file, page), one, workers=self._settings.concurrency)

    def _is_run_file(self, file: RunFile) -> bool:
        return self._layout.kind(self._layout.restored_key(file)) is KeyKind.RUN_FILE

    async def restore(self, key: str) -> RestoreResult:
        """Restore the file with a key in quarantine.

        Raises:
            UsageError: The key is not in quarantine.
            ConfigurationError: A permission is missing.
        """
        check_key(self._settings, key)
        try:
            return await self._restore((await self._store.head(key)).file)
        except NotFoundError:
            reason = "no object has this key"
        except PreconditionFailedError:
            reason = _OVERWRITTEN
        except ConfigurationError:
            raise
        except StoreError as error:
            reason = str(error)
        return RestoreResult(key, "left", reason=reason)

    async def replace(self, key: str, source: Store, name: str) -> RestoreResult:
        """Overwrite a file with fixed content, and restore it.

        Args:
            key: Its key in quarantine.
            source: Where the fixed content is.
            name: Its key there. The content is gzip if the key in quarantine ends in ``.gz``.

        Raises:
            UsageError: The key is not in quarantine.
            NotFoundError: There is no fixed content, or no file to replace.
            ConfigurationError: A permission is missing.
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
            content, condition = _Content(source, fixed), Matches(present.file.etag)
            try:
                await self._store.put(key, content, condition=condition, metadata=present.metadata)
            except PreconditionFailedError:
                return RestoreResult(key, "left", reason=_OVERWRITTEN)
        return await self.restore(key)

    async def _restore(self, file: RunFile) -> RestoreResult:
        target = self._layout.restored_key(file)
        blocker = await self._blocker(file)
        if blocker:
            return RestoreResult(file.key, "left", reason=blocker)
        counted = await self._is_counted_or_copied(file, target)
        failure = (await self._store.delete([file])).get(file.key)
        if isinstance(failure, ConfigurationError):
            raise failure
        if failure is not None:
            reason = f"it was copied to the inbox, but is still in quarantine: {failure}"
            return RestoreResult(file.key, "left", target, reason)
        if counted:
            return RestoreResult(file.key, "counted")
        return RestoreResult(file.key, "put_back", target)

    async def _blocker(self, file: RunFile) -> str:
        """Return why a file must not be restored; empty if it may be."""
        if not self._is_run_file(file):
            return f"{self._layout.restored_key(file)!r} is not the key of a run file"
        reason = "" if self._force else await quarantine_reason(self._reader, file)
        if reason:
            return f"it would be quarantined again: {reason}"
        for original in self._original_keys(file):
            if await same_content(self._store, file, original):
                return f"it is still in the inbox, as {original!r}: the next run settles it"
        return ""

    def _original_keys(self, file: RunFile) -> set[str]:
        """Return the keys that a file may have had in the inbox: its name may have a suffix."""
        key = self._layout.inbox_key(file.key)
        return {key, self._layout.arrival_key(file, self._layout.quarantine_key) or key}

    async def _is_counted_or_copied(self, file: RunFile, target: str) -> bool:
        """Copy a file into the inbox, unless it is there; or return True if it is counted already.

        It may have been restored before, or copied to quarantine by a run that stopped before its
        commit and counted by a later one with other settings. The inbox is checked first, because
        a file is in the archive before it is deleted from the inbox.
        """
        if await same_content(self._store, file, target):
            return False
        for key in (*self._original_keys(file), target):
            if await is_archived(self._store, self._layout, file, key):
                return True
        try:
            found = (await self._store.head(file.key)).metadata
            metadata = producer_metadata(found)
            await self._store.copy(file.key, target, if_match=file.etag, metadata=metadata)
        except PreconditionFailedError:  # the response of a first attempt was lost, or it changed
            if not await same_content(self._store, file, target):
                raise
        return False


@dataclass(frozen=True, slots=True)
class _Content:
    """An object's content; each iteration reads it from the start."""

    store: Store
    file: RunFile

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self.store.stream(self.file.key, if_match=self.file.etag) as body:
            async for block in body.chunks:
                yield block
