"""Files that may have been counted before under another etag or key: the archive decides.

A producer may deliver the same bytes again under the same key. Their etag differs in a directory,
for encrypted objects and for multipart uploads.

If the response to a restore is lost, an operator may restore a file twice, and a run may already
have counted the first copy. If so, the content is in the archive. So the archive is checked before
such a file is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.layout import Layout
from asyncagg.model import CountedFile, Pack, RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Store


async def is_archived(
    store: Store, layout: Layout, file: RunFile, key: str, etags: Iterable[str] = ()
) -> bool:
    """Return whether a file's content is in the archive, under the archive key of an inbox key.

    Args:
        store: Where the file is.
        layout: The keys.
        file: The file, wherever it is now.
        key: A key in the inbox.
        etags: Other etags under which it may have been archived.
    """
    archived = layout.archive_key(key)
    conflicts = [layout.conflict_key(archived, etag) for etag in (file.etag, *etags)]
    for place in (archived, *conflicts):
        if await same_content(store, file, place):
            return True
    return False


async def find_counted(
    store: Store,
    layout: Layout,
    files: Mapping[RunFile, Sequence[CountedFile]],
    packs: Iterable[Pack],
    *,
    workers: int,
) -> tuple[set[str], set[str]]:
    """Return the keys of files whose content is in the archive already, under their key.

    Args:
        store: Where they are.
        layout: The keys.
        files: Files in the inbox, and the other versions of them that their aggregate counts.
        packs: The packs of the aggregate.
        workers: Requests in flight.

    Returns:
        Those that have an archived object, and those that are in a pack.
    """
    by_id = {pack.id: pack for pack in packs}
    counted: set[str] = set()
    packed: set[str] = set()

    async def check(file: RunFile) -> None:
        versions = files[file]
        try:
            if await _is_packed(store, file, versions, by_id):
                packed.add(file.key)
            elif await is_archived(store, layout, file, file.key, [v.etag for v in versions]):
                counted.add(file.key)
        except (NotFoundError, PreconditionFailedError):
            return  # moved or overwritten; the fetch will notice this

    await for_each(files, check, workers=min(workers, len(files)))  # usually there are none
    return counted, packed


async def _is_packed(
    store: Store, file: RunFile, versions: Iterable[CountedFile], packs: Mapping[str, Pack]
) -> bool:
    """Return whether one of these versions is in a pack and has the content of a file."""
    for version in versions:
        pack = packs.get(version.pack)
        if pack is not None and version.size == file.size:
            place, size = version.offset, version.size
            kept = await store.get_range(pack.key, place, size, if_match=pack.etag)
            if kept.data == (await store.get(file.key, if_match=file.etag)).data:
                return True
    return False
