"""Out of quarantine: files that would be accepted now go back into the inbox.

They go back under a key of their own, with a mark and a digest of the old key and the etag, never
under the old one:

* A runner takes the object in quarantine for the stand-in of the file under the *old* key, and may
  drop that file from the inbox in the very moment in which the object is removed here. A file under
  another key has another place in quarantine, so nobody relies on the one that is removed.
* An aggregate that names the old key and etag as quarantined would have it dropped unread, for
  ever, where its bytes are the same and only the settings have changed.
* The key follows from the content, so that one who comes back after a crash finds what was done:
  in the inbox, or in the archive where it is counted already.
* By the mark a runner knows that it has to look into the archive, too, before it counts the file:
  it may have been put back twice, by two at once or by a request whose answer was lost, with a run
  between that has counted it (`asyncagg.job.restored`).

The order is: judge, copy, delete. Each step leaves the bytes where they were or in two places.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from msgspec import structs

from asyncagg.errors import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.archive import same_bytes, same_content
from asyncagg.job.layout import KeyKind, Layout
from asyncagg.job.reader import Reader
from asyncagg.job.restored import in_archive
from asyncagg.model import RunFile
from asyncagg.quarantine import check_key, refusal
from asyncagg.runtime.tasks import for_each
from asyncagg.settings import Settings
from asyncagg.store import Matches, Store

__all__ = ("Outcome", "PutBack")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file.

    Attributes:
        key: Its key in quarantine.
        status: ``put_back``: it is in the inbox, and out of quarantine. ``counted``: it was counted
            already, under its old key or since it was put back before; it is out of quarantine.
            ``left``: it is in quarantine still.
        inbox_key: Its key in the inbox, where it was put back.
        reason: Why it is left.
    """

    key: str
    status: Literal["put_back", "counted", "left"]
    inbox_key: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


class PutBack:
    """Puts files back into the inbox.

    It may run while the job runs, and several of it may run at once.

    Args:
        store: Where the files are.
        settings: The prefixes, and the bounds that a file is judged by.
        force: Whether to put back what would be refused again.
    """

    def __init__(self, store: Store, settings: Settings, *, force: bool = False) -> None:
        self._store = store
        self._settings = settings
        self._layout = Layout(settings)
        self._reader = Reader(store, settings)
        self._force = force

    async def all(self, told: Callable[[Outcome], None]) -> None:
        """Put back every file in quarantine that would be accepted now.

        Args:
            told: Called with what became of each, as it goes.
        """

        async def one(file: RunFile) -> None:
            told(await self.one(file.key))

        async for page in self._store.list_pages(self._settings.quarantine_prefix):
            files = [
                file for file in page if self._layout.kind(self._target(file)) is KeyKind.RUN_FILE
            ]
            await for_each(files, one, workers=self._settings.concurrency)

    async def one(self, key: str) -> Outcome:
        """Put back one file.

        Args:
            key: Its key in quarantine.

        Raises:
            UsageError: The key is not one in quarantine.
            ConfigurationError: A permission is missing.
        """
        check_key(self._settings, key)
        try:
            return await self._put_back((await self._store.head(key)).file)
        except NotFoundError:
            return Outcome(key, "left", reason="no object has this key (any more)")
        except PreconditionFailedError:
            return Outcome(key, "left", reason="it was overwritten meanwhile: try again")
        except ConfigurationError:
            raise
        except StoreError as error:
            return Outcome(key, "left", reason=str(error))

    async def replace(self, key: str, source: Store, name: str) -> Outcome:
        """Overwrite one file with mended content, and put it back.

        Args:
            key: Its key in quarantine.
            source: Where the mended content is.
            name: Its key there. It is read as the quarantined file is: zipped, if that one's key
                ends with ``.gz``.

        Raises:
            UsageError: The key is not one in quarantine.
            NotFoundError: There is no mended content, or nothing to replace.
            ConfigurationError: A permission is missing.
        """
        check_key(self._settings, key)
        mended = (await source.head(name)).file
        present = await self._store.head(key)
        reader = Reader(source, self._settings)
        refused = await refusal(reader, structs.replace(mended, key=key), at=name)
        if refused and not self._force:
            return Outcome(key, "left", reason=f"{name!r} would be refused: {refused}")
        # Written twice it might get another etag, and a file that was put back would be so again.
        same = present.file.size == mended.size
        if not (same and await same_bytes(self._store, present.file, source, mended)):
            try:
                await self._store.put(
                    key,
                    _Content(source, mended),
                    condition=Matches(present.file.etag),
                    metadata=present.metadata,
                )
            except PreconditionFailedError:
                return Outcome(key, "left", reason="it was overwritten meanwhile: try again")
        return await self.one(key)

    def _target(self, file: RunFile) -> str:
        return self._layout.put_back_key(file)

    async def _put_back(self, file: RunFile) -> Outcome:
        target = self._target(file)
        reason = await self._hindrance(file, target)
        if reason:
            return Outcome(file.key, "left", reason=reason)
        counted = await self._stand_in_inbox(file, target)
        failure = (await self._store.delete([file])).get(file.key)
        if isinstance(failure, ConfigurationError):
            raise failure
        if failure is not None:
            reason = f"it was put back, but is in quarantine still: {failure}"
            return Outcome(file.key, "left", target, reason)
        return Outcome(file.key, "counted") if counted else Outcome(file.key, "put_back", target)

    async def _hindrance(self, file: RunFile, target: str) -> str:
        """Return why a file must not be put back, or nothing."""
        if self._layout.kind(target) is not KeyKind.RUN_FILE:
            return f"it would be {target!r}, which is no run file's key"
        refused = "" if self._force else await refusal(self._reader, file)
        if refused:
            return f"it would be refused again: {refused}"
        for original in self._originals(file):
            if await same_content(self._store, file, original):
                return f"it stands in the inbox still, as {original!r}: the next run settles it"
        return ""

    def _originals(self, file: RunFile) -> set[str]:
        """Return the keys in the inbox that a file may have come from: its place may be beside."""
        arrived = self._layout.arrival_key(file, self._layout.quarantine_key)
        return {self._layout.inbox_key(file.key), arrived or self._layout.inbox_key(file.key)}

    async def _stand_in_inbox(self, file: RunFile, target: str) -> bool:
        """See to it that a file's content is in the inbox; or return True: it is counted already.

        Who put it back before may have come no further. Or a run has come to copy it to quarantine
        only, and the next, with other settings, has counted it. The inbox is looked at first: from
        there a file goes to the archive, and nowhere before it is there.
        """
        if await same_content(self._store, file, target):
            return False
        for key in (*self._originals(file), target):
            if await in_archive(self._store, self._layout, file, key):
                return True
        try:
            await self._store.copy(file.key, target, if_match=file.etag, metadata={})
        except PreconditionFailedError:  # a lost answer, or the file has changed
            if not await same_content(self._store, file, target):
                raise
        return False


@dataclass(frozen=True, slots=True)
class _Content:
    """An object's content, to be read as often as needed."""

    store: Store
    file: RunFile

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self.store.stream(self.file.key, if_match=self.file.etag) as body:
            async for block in body.chunks:
                yield block
