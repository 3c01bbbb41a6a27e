"""Copy, then delete: how a file leaves the inbox, to the archive or to quarantine.

No step destroys content: a copy never overwrites, and a delete takes only the version that was
copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Literal

from asyncagg.errors import (
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientError,
)
from asyncagg.job.context import JobContext
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.outcome import Tally
from asyncagg.job.refusals import Refusals
from asyncagg.job.slots import Slots
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import DELETE_BATCH, Store

_DELETES_AT_ONCE = 4
"""A bucket accepts 3,500 deletions per second and prefix, and each request has up to 1,000."""

REASON = "asyncagg-reason"
"""Metadata of a quarantined object: why it is in quarantine."""

MODIFIED = "asyncagg-last-modified"
"""Metadata of a quarantined object: when its run file arrived, which determines its window."""

ETAG = "asyncagg-etag"
"""Metadata of a quarantined object: the etag of its run file; a copy may have another."""

_MAX_KEPT_METADATA = 1400
"""Bytes: S3 keeps 2 KB of metadata, of which a reason needs up to 600."""


class Mover:
    """Moves the files of one window, and counts the outcomes.

    Args:
        context: Where the files are.
        tally: Where the outcomes are added.
        slots: The slots of its requests; default: those of the context.
        deferrals: Decides what becomes of the files that could not be moved.
    """

    def __init__(
        self,
        context: JobContext,
        tally: Tally,
        slots: Slots | None = None,
        deferrals: Deferrals | None = None,
    ) -> None:
        self._store = context.store
        self._layout = context.layout
        self._slots = slots or context.slots
        self._tally = tally
        self._deferrals = deferrals or Deferrals(context, Refusals())

    async def archive(self, files: Collection[RunFile]) -> None:
        """Move files that a commit has counted to the archive."""
        await self._move(files, self._layout.archive_key, "archived")

    async def remove_packed(self, files: Sequence[RunFile]) -> None:
        """Delete files that a commit has counted and whose content is in a pack that it names."""

        async def delete(start: int) -> None:
            removed = await self._delete(files[start : start + DELETE_BATCH])
            self._tally.archived += removed

        batches = range(0, len(files), DELETE_BATCH)
        await for_each(batches, delete, workers=_DELETES_AT_ONCE)

    async def move_to_quarantine(self, files: Collection[RunFile]) -> None:
        """Move files that a commit has recorded as quarantined; most have a copy there already."""
        await self._move(files, self._layout.quarantine_key, "quarantined", _arrival)

    async def copy_to_quarantine(self, file: RunFile, reason: str) -> str | None:
        """Put a copy of a file into quarantine, with the reason in its metadata.

        Returns:
            Its key there, or None if the file stays in the inbox; the tally records the reason.
        """
        ascii_reason = reason.encode("ascii", "backslashreplace").decode("ascii")
        try:
            kept = producer_metadata((await self._store.head(file.key)).metadata)
        except StoreError as error:
            await self._deferrals.add(file, error, self._tally)
            return None
        if sum(map(len, (*kept, *kept.values()))) > _MAX_KEPT_METADATA:
            kept = {}
        metadata = kept | {REASON: " ".join(ascii_reason.split()), **_arrival(file)}
        return await self._ensure_copied(file, self._layout.quarantine_key(file.key), metadata)

    async def _move(
        self,
        files: Collection[RunFile],
        target_of: Callable[[str], str],
        outcome: Literal["archived", "quarantined"],
        metadata_of: Callable[[RunFile], Mapping[str, str] | None] = lambda _: None,
    ) -> None:
        copied: list[RunFile] = []

        async def delete() -> None:
            batch = copied[:]
            copied.clear()
            self._deferrals.refusals.accept("copy")
            removed = await self._delete(batch)
            setattr(self._tally, outcome, getattr(self._tally, outcome) + removed)

        async def copy(file: RunFile) -> None:
            target, metadata = target_of(file.key), metadata_of(file)
            if await self._ensure_copied(file, target, metadata) is not None:
                copied.append(file)
                if len(copied) >= DELETE_BATCH:
                    await delete()

        await self._slots.for_each(files, copy, urgent=True)
        if copied:
            await delete()

    async def _ensure_copied(
        self, file: RunFile, target: str, metadata: Mapping[str, str] | None = None
    ) -> str | None:
        """Make sure that a copy of a file is at ``target``, or at its conflict key.

        Returns:
            The key of the copy, or None if the file stays in the inbox; the tally records why.
        """
        try:
            try:
                await self._store.copy(file.key, target, if_match=file.etag, metadata=metadata)
            except PreconditionFailedError:
                return await self._resolve_conflict(file, target, metadata)
        except StoreError as error:
            await self._deferrals.add(file, error, self._tally)
            return None
        return target

    async def _resolve_conflict(
        self, file: RunFile, target: str, metadata: Mapping[str, str] | None
    ) -> str:
        """Handle a failed condition of a copy: the file has changed, or the target is taken."""
        if await self._is_copied(file, target):
            return target
        conflict = self._layout.conflict_key(target, file.etag)
        try:
            await self._store.copy(file.key, conflict, if_match=file.etag, metadata=metadata)
        except PreconditionFailedError:
            if await self._is_copied(file, conflict):
                return conflict
        else:
            return conflict
        raise StoreError(
            f"cannot copy {file.key!r} with etag {file.etag!r}: the store says that a condition "
            f"does not hold (412), but the file is unchanged; {target!r} and {conflict!r} may "
            "both exist with other content",
            operation="copy",
            key=file.key,
        )

    async def _is_copied(self, file: RunFile, target: str) -> bool:
        """Return whether the target already has the content of a file.

        Raises:
            PreconditionFailedError: The file itself has changed.
        """
        found = (await self._store.head(file.key)).file.etag
        if found != file.etag:
            raise PreconditionFailedError(
                f"{file.key!r} has etag {found!r}: expected {file.etag!r}",
                operation="copy",
                key=file.key,
            )
        return await same_content(self._store, file, target)

    async def _delete(self, files: Sequence[RunFile]) -> int:
        """Delete files that are archived; return how many left the inbox."""
        failures: Mapping[str, StoreError]
        try:
            failures = await self._store.delete(files)
        except TransientError as error:
            failures = dict.fromkeys((file.key for file in files), error)
        by_key = {file.key: file for file in files}
        for key, failure in failures.items():
            await self._deferrals.add(by_key[key], failure, self._tally)
        if len(failures) < len(files):
            self._deferrals.refusals.accept("delete")
        return len(files) - len(failures)


def _arrival(file: RunFile) -> dict[str, str]:
    """Return the metadata that identifies a run file by its copy in quarantine."""
    return {MODIFIED: file.last_modified.isoformat(), ETAG: file.etag}


def producer_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that a file had before it was quarantined."""
    return {name: metadata[name] for name in metadata if name not in {REASON, MODIFIED, ETAG}}


async def same_content(store: Store, file: RunFile, other: str) -> bool:
    """Return whether the object at another key exists and has the content of a file."""
    try:
        found = (await store.head(other)).file
    except NotFoundError:
        return False
    if found.size != file.size:
        return False
    # Etags of encrypted or multipart objects differ for the same content.
    return found.etag == file.etag or await same_bytes(store, file, store, found)


async def same_bytes(store: Store, file: RunFile, other_store: Store, other: RunFile) -> bool:
    """Return whether two objects, of one store or of two, have the same content: read both."""
    async with (
        store.stream(file.key, if_match=file.etag) as left,
        other_store.stream(other.key, if_match=other.etag) as right,
    ):
        return await digest(left.chunks) == await digest(right.chunks)


async def digest(chunks: AsyncIterator[bytes]) -> bytes:
    """Return the SHA-256 of a content."""
    found = hashlib.sha256()
    async for chunk in chunks:
        found.update(chunk)
    return found.digest()
