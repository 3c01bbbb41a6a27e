"""Files restored from quarantine: whether they were counted before.

After a lost response, an operator cannot tell whether a file was already restored, and a run may
have counted it since. That run put its content into the archive before it deleted the file from
the inbox. So the archive is checked before a restored file is counted.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.layout import Layout
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Store

__all__ = ("find_counted", "is_archived")


async def is_archived(store: Store, layout: Layout, file: RunFile, key: str) -> bool:
    """Return whether the archive has a file's content where it keeps a key of the inbox.

    Args:
        store: Where the file is.
        layout: The keys.
        file: The file, wherever it is now.
        key: A key in the inbox.
    """
    archived = layout.archive_key(key)
    conflict = layout.conflict_key(archived, file.etag)
    return await same_content(store, file, archived) or await same_content(store, file, conflict)


async def find_counted(
    store: Store, layout: Layout, files: Iterable[RunFile], *, workers: int
) -> set[str]:
    """Return the keys of restored files that were counted before.

    Args:
        store: Where they are.
        layout: The keys.
        files: Files in the inbox, restored or not.
        workers: Requests in flight.
    """
    counted: set[str] = set()

    async def check(file: RunFile) -> None:
        try:
            if await is_archived(store, layout, file, file.key):
                counted.add(file.key)
        except (NotFoundError, PreconditionFailedError):
            return  # moved or overwritten; the fetch sees that too

    restored = [file for file in files if layout.was_restored(file.key)]
    await for_each(restored, check, workers=min(workers, len(restored)))  # mostly none
    return counted
