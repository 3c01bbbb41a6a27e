"""Packs that no aggregate names: the files in them, and whether they may be removed."""

from __future__ import annotations

from collections.abc import AsyncIterator

from asyncagg.aggregate.head import packs_of
from asyncagg.aggregate.reader import read_head
from asyncagg.errors import AggregateError, NotFoundError
from asyncagg.job.context import JobContext
from asyncagg.model import CountedFile, Pack, RunFile, Window
from asyncagg.packs.format import DamagedPackError
from asyncagg.packs.reader import files_of, read_entries
from asyncagg.verify.inventory import Inventory


async def unnamed_packs(context: JobContext, inventory: Inventory) -> AsyncIterator[list[RunFile]]:
    """Yield packs older than a day that neither an aggregate nor a backfill names.

    Raises:
        StoreError: The store failed.
    """
    named: set[str] | None = None
    async for page in inventory.database.unnamed_packs(inventory.day_ago):
        if named is None:
            named = await _packs_of_backfills(context)
        yield [pack for pack in page if not pack.key.startswith(tuple(named))]


async def _packs_of_backfills(context: JobContext) -> set[str]:
    """Return the keys of packs that partial aggregates name: a backfill will commit them.

    Of a partial aggregate that is damaged, it is the prefix of all packs of its window.
    """
    store, layout = context.store, context.layout
    named: set[str] = set()
    async for page in store.list_pages(layout.work_prefix):
        for part in page:
            window = layout.work_window(part.key)
            if window is None:
                continue
            try:
                async with store.stream(part.key) as body:
                    packs = packs_of(await read_head(part.key, window, body.chunks))
            except NotFoundError:
                continue  # it was committed and removed meanwhile
            except AggregateError:
                named.add(f"{layout.pack_prefix}{window.name}/")
            else:
                named.update(pack.key for pack in packs)
    return named


async def removal_blocker(context: JobContext, inventory: Inventory, pack: RunFile) -> str:
    """Return why an unnamed pack must stay; empty if all its files are counted elsewhere.

    A stopped run leaves such a pack, and another run counts its files. But if an aggregate was
    moved away, its packs may have the only copies.

    Raises:
        StoreError: The store failed.
    """
    window = context.layout.pack_window(pack.key)
    if window is None or await inventory.database.etag(window.name) is None:
        return "its window has no aggregate"
    if window in inventory.damaged:
        return "the aggregate of its window is damaged"
    try:
        entries = await read_entries(context.store, pack.key, pack.size, pack.etag)
    except DamagedPackError as error:
        return f"its files are unknown: {error}"
    files = [(each.comment.key, each.comment.etag) for each in entries if each.comment]
    name = pack.key.rpartition("/")[2].removesuffix(".zip")
    counted = await inventory.database.all_counted_outside(name, files)
    if len(files) == len(entries) and counted:
        return ""
    return "not all of its files are counted: it may have the only copy"


async def packs_of_window(
    context: JobContext, window: Window
) -> AsyncIterator[tuple[Pack, list[CountedFile]]]:
    """Yield the packs of a window, named or not, and their files; damaged ones are left out.

    Raises:
        StoreError: The store failed.
    """
    async for page in context.store.list_pages(f"{context.layout.pack_prefix}{window.name}/"):
        for listed in page:
            try:
                yield await files_of(context.store, listed)
            except DamagedPackError:
                continue


async def assign_packed_files(context: JobContext, inventory: Inventory) -> None:
    """Assign each file in packs of a damaged aggregate's window to it, unless one names the file.

    Raises:
        StoreError: The store failed.
    """
    for window in inventory.damaged:
        seen: set[tuple[str, str]] = set()
        async for _, files in packs_of_window(context, window):
            identities = [(each.key, each.etag) for each in files]
            counted = await inventory.database.named(identities)
            fresh = [e for e in files if (e.key, e.etag) not in counted | seen]
            seen.update(identities)
            await inventory.database.add_counted(window.name, fresh, assigned=True)
