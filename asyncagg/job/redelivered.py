"""Files that were delivered again with another etag: the archive decides whether they count.

A producer may deliver the same bytes again under the same key. Their etag differs in a directory,
for encrypted objects and for multipart uploads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.layout import Layout
from asyncagg.job.slots import Slots
from asyncagg.model import CountedFile, Pack, RunFile
from asyncagg.store import Store


async def find_counted(
    store: Store,
    layout: Layout,
    files: Mapping[RunFile, Sequence[CountedFile]],
    packs: Iterable[Pack],
    *,
    slots: Slots,
) -> tuple[set[str], set[str]]:
    """Return the keys of files whose content is in the archive already, under their key.

    Args:
        store: Where they are.
        layout: The keys.
        files: Files in the inbox, and the other versions of them that their aggregate counts.
        packs: The packs of the aggregate.
        slots: The slots of the requests.

    Returns:
        Those that have an archived object, and those that are in a pack.
    """
    by_id = {pack.id: pack for pack in packs}
    counted: set[str] = set()
    packed: set[str] = set()

    async def check(file: RunFile) -> None:
        versions = files[file]
        archived = layout.archive_key(file.key)
        etags = (file.etag, *(version.etag for version in versions))
        try:
            if await _is_packed(store, file, versions, by_id):
                packed.add(file.key)
                return
            for place in (archived, *[layout.conflict_key(archived, etag) for etag in etags]):
                if await same_content(store, file, place):
                    counted.add(file.key)
                    return
        except (NotFoundError, PreconditionFailedError):
            return  # moved or overwritten; the fetch will notice this

    await slots.for_each(files, check)  # usually there are none
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
