"""Files that were delivered again with another etag: the archive decides whether they count.

A producer may deliver the same bytes again under the same key. Their etag differs in a directory,
for encrypted objects and for multipart uploads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.layout import Layout
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Store


async def find_counted(
    store: Store, layout: Layout, files: Mapping[RunFile, Sequence[str]], *, workers: int
) -> set[str]:
    """Return the keys of files whose content is in the archive already, under their key.

    Args:
        store: Where they are.
        layout: The keys.
        files: Files in the inbox, and the other etags that their aggregate has for their keys.
        workers: Requests in flight.
    """
    counted: set[str] = set()

    async def check(file: RunFile) -> None:
        archived = layout.archive_key(file.key)
        conflicts = [layout.conflict_key(archived, etag) for etag in (file.etag, *files[file])]
        try:
            for place in (archived, *conflicts):
                if await same_content(store, file, place):
                    counted.add(file.key)
                    return
        except (NotFoundError, PreconditionFailedError):
            return  # moved or overwritten; the fetch will notice this

    await for_each(files, check, workers=min(workers, len(files)))  # usually there are none
    return counted
