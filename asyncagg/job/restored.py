"""Files that come back from quarantine: whether they were counted before.

Who puts a file back cannot know whether another, or an answer that was lost, has done so already,
and a run has counted it since. That run has left its content in the archive before it took it out
of the inbox. So whoever counts such a file looks there first.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.layout import Layout
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Store

__all__ = ("counted_before", "in_archive")


async def in_archive(store: Store, layout: Layout, file: RunFile, key: str) -> bool:
    """Say whether a file's content stands in the archive where that of a key in the inbox goes.

    Args:
        store: Where it is.
        layout: Which key is what.
        file: The file, where it stands.
        key: A key in the inbox.
    """
    place = layout.archive_key(key)
    beside = layout.conflict_key(place, file.etag)
    return await same_content(store, file, place) or await same_content(store, file, beside)


async def counted_before(
    store: Store, layout: Layout, files: Iterable[RunFile], *, workers: int
) -> set[str]:
    """Return the keys of the files that came back from quarantine though they had been counted.

    Args:
        store: Where they are.
        layout: Which key is what.
        files: Files in the inbox, of all kinds.
        workers: Requests in flight.
    """
    found: set[str] = set()

    async def look(file: RunFile) -> None:
        try:
            if await in_archive(store, layout, file, file.key):
                found.add(file.key)
        except (NotFoundError, PreconditionFailedError):
            return  # it was moved, or overwritten: who comes to fetch it sees that too

    back = [file for file in files if layout.was_put_back(file.key)]
    await for_each(back, look, workers=min(workers, len(back)))  # mostly none
    return found
