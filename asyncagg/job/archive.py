"""Copy, then delete: how a file leaves the inbox, for the archive or for quarantine.

No step destroys: a copy never overwrites, a delete takes only the version that was copied.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from asyncagg.errors import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import Tally
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import DELETE_BATCH, Store

__all__ = ("Mover", "same_bytes", "same_content")

_log = logging.getLogger(__name__)


class Mover:
    """Moves the files of one window, and tallies what became of them.

    Args:
        store: Where they are.
        workers: Copies in flight.
        tally: Where the outcome is added.
    """

    def __init__(self, store: Store, workers: int, tally: Tally) -> None:
        self._store = store
        self._workers = workers
        self._tally = tally

    async def archive(self, files: Iterable[RunFile], target_of: Callable[[str], str]) -> None:
        """Move counted files to the archive.

        Args:
            files: Those that a commit has counted.
            target_of: Gives a key's place in the archive.
        """

        def tell(moved: int) -> None:
            self._tally.archived += moved

        await self._move(files, target_of, tell)

    async def move_to_quarantine(
        self, files: Iterable[RunFile], target_of: Callable[[str], str]
    ) -> None:
        """Move refused files, most of which stand in quarantine already, out of the inbox.

        Args:
            files: Those that an aggregate names as quarantined.
            target_of: Gives a key's place in quarantine.
        """

        def tell(moved: int) -> None:
            self._tally.quarantined += moved

        await self._move(files, target_of, tell)

    async def _move(
        self,
        files: Iterable[RunFile],
        target_of: Callable[[str], str],
        tell: Callable[[int], None],
    ) -> None:
        copied: list[RunFile] = []

        async def copy(file: RunFile) -> None:
            target = target_of(file.key)
            try:
                await self._store.copy(file.key, target, if_match=file.etag)
            except StoreError as error:
                if await self._place_despite(error, file, target) is None:
                    return
            copied.append(file)
            if len(copied) >= DELETE_BATCH:
                batch = copied[:]
                copied.clear()
                tell(await self.delete(batch))

        await for_each(files, copy, workers=self._workers)
        if copied:
            tell(await self.delete(copied))

    async def ensure_copied(
        self, file: RunFile, target: str, metadata: Mapping[str, str] | None = None
    ) -> str | None:
        """Make sure that a file's content stands at ``target``, or beside it.

        Returns:
            The key where it stands, or None where the file is to stay in the inbox for now: the
            tally says why.
        """
        try:
            await self._store.copy(file.key, target, if_match=file.etag, metadata=metadata)
        except StoreError as error:
            return await self._place_despite(error, file, target, metadata)
        return target

    async def _place_despite(
        self,
        error: StoreError,
        file: RunFile,
        target: str,
        metadata: Mapping[str, str] | None = None,
    ) -> str | None:
        """Place a file whose copy has failed, or tally why it stays."""
        try:
            if isinstance(error, PreconditionFailedError):
                return await self._place_refused(file, target, metadata)
            raise error
        except NotFoundError:
            self._tally.gone += 1
        except PreconditionFailedError:
            self._tally.changed += 1
        except ConfigurationError:
            raise
        except StoreError as trouble:
            self._defer(file, trouble)
        return None

    async def _place_refused(
        self, file: RunFile, target: str, metadata: Mapping[str, str] | None
    ) -> str:
        """Place a file whose copy was refused: it has changed, or the target is taken."""
        if await self._stands(file, target):
            return target
        beside = Layout.conflict_key(target, file.etag)
        try:
            await self._store.copy(file.key, beside, if_match=file.etag, metadata=metadata)
        except PreconditionFailedError:
            if await self._stands(file, beside):
                return beside
        else:
            return beside
        raise StoreError(
            f"{target!r} and {beside!r} are both taken by other content than that of {file.key!r}",
            operation="copy",
            key=file.key,
        )

    async def _stands(self, file: RunFile, target: str) -> bool:
        """Say whether a file's content stands at the target, where a copy was refused."""
        found = (await self._store.head(file.key)).file.etag
        if found != file.etag:
            raise PreconditionFailedError(
                f"{file.key!r} has etag {found!r}: expected {file.etag!r}",
                operation="copy",
                key=file.key,
            )
        return await same_content(self._store, file, target)

    async def delete(self, files: list[RunFile]) -> int:
        """Delete originals whose content stands elsewhere.

        Returns:
            How many are out of the inbox now.
        """
        failures: Mapping[str, StoreError]
        try:
            failures = await self._store.delete(files)
        except TransientError as trouble:
            failures = dict.fromkeys((file.key for file in files), trouble)
        by_key = {file.key: file for file in files}
        for key, failure in failures.items():
            if isinstance(failure, ConfigurationError):
                raise failure
            if isinstance(failure, PreconditionFailedError):
                self._tally.changed += 1
            else:
                self._defer(by_key[key], failure)
        return len(files) - len(failures)

    def _defer(self, file: RunFile, error: StoreError) -> None:
        self._tally.deferred += 1
        _log.warning(
            "deferred", extra={"key": file.key, "operation": error.operation, "reason": str(error)}
        )


async def same_content(store: Store, file: RunFile, other: str) -> bool:
    """Say whether an object stands under another key that has a file's content."""
    try:
        there = (await store.head(other)).file
    except NotFoundError:
        return False
    if there.size != file.size:
        return False
    # An etag of an encrypted or multipart object says nothing of another's content.
    return there.etag == file.etag or await same_bytes(store, file, store, there)


async def same_bytes(store: Store, file: RunFile, elsewhere: Store, other: RunFile) -> bool:
    """Say whether two objects, of one store or of two, have the same content, by reading both."""
    async with (
        store.stream(file.key, if_match=file.etag) as left,
        elsewhere.stream(other.key, if_match=other.etag) as right,
    ):
        return await _digest(left.chunks) == await _digest(right.chunks)


async def _digest(chunks: AsyncIterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.digest()
