"""List the counted files: the aggregates name them, and the packs that some are in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.errors import NotFoundError
from asyncagg.job.aggregates import load_aggregate
from asyncagg.job.context import JobContext
from asyncagg.job.listing import list_aggregate_windows
from asyncagg.model import CountedFile, Interval, Pack, RunFile, Window
from asyncagg.packs.reader import files_of


class Wanted(NamedTuple):
    """Which counted files are wanted.

    Attributes:
        interval: Those of windows in it.
        keys: Those with these keys; all if empty.
    """

    interval: Interval
    keys: frozenset[str] = frozenset()


class ArchivedFile(NamedTuple):
    """An archived file.

    Attributes:
        file: The file as it was in the inbox.
        window: Its window.
        pack: Its pack, if it is in one.
        counted: Whether an aggregate counts it.
    """

    file: CountedFile
    window: Window
    pack: Pack | None
    counted: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        file, pack = self.file, self.pack
        return {
            "key": file.key,
            "window": self.window.name,
            "form": "pack" if file.pack else "object",
            "pack": pack.key if pack else file.pack,
            "offset": file.offset if file.pack else None,
            "size": file.size,
            "etag": file.etag,
            "last_modified": file.last_modified,
            "counted": self.counted,
        }


async def list_archived(
    context: JobContext, wanted: Wanted
) -> AsyncIterator[Sequence[ArchivedFile]]:
    """Yield the wanted files window by window, in key order, many at a time.

    Files of windows without an aggregate come last, as their packs name them.

    Raises:
        AggregateError: An aggregate is damaged, or is not an aggregate.
        DamagedPackError: A pack of a window without an aggregate is damaged.
        StoreError: The store failed.
    """
    async for windows in list_aggregate_windows(context.store, context.settings, wanted.interval):
        for window in windows:
            async with context.open_spool() as spool:
                stored = await load_aggregate(context, window, spool)
                if stored is None:
                    continue  # it was moved away meanwhile
                async for page in _list_one(stored, window, wanted):
                    yield page
    async for pack, window in _packs_without_aggregate(context, wanted.interval):
        found, files = await files_of(context.store, pack)
        page = [
            ArchivedFile(file, window, found, counted=False)
            for file in files
            if not wanted.keys or file.key in wanted.keys
        ]
        if page:
            yield page


async def _list_one(
    stored: StoredAggregate, window: Window, wanted: Wanted
) -> AsyncIterator[Sequence[ArchivedFile]]:
    packs = {pack.id: pack for pack in stored.packs}
    async for files in stored.files():
        page = [
            ArchivedFile(file, window, packs.get(file.pack))
            for file in files
            if not wanted.keys or file.key in wanted.keys
        ]
        if page:
            yield page


async def _packs_without_aggregate(
    context: JobContext, interval: Interval
) -> AsyncIterator[tuple[RunFile, Window]]:
    """Yield the packs of the windows that have no aggregate."""
    layout = context.layout
    has_aggregate: dict[Window, bool] = {}
    async for page in context.store.list_pages(layout.pack_prefix):
        for pack in page:
            window = layout.pack_window(pack.key)
            if window is None or not interval.holds(window):
                continue
            if window not in has_aggregate:
                has_aggregate = {window: await _exists(context, layout.aggregate_key(window))}
            if not has_aggregate[window]:
                yield pack, window


async def _exists(context: JobContext, key: str) -> bool:
    try:
        await context.store.head(key)
    except NotFoundError:
        return False
    return True
