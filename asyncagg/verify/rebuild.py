"""Which files a damaged aggregate is rebuilt from, and whether that is exact.

A file leaves the inbox only after an aggregate names it. So if no intact aggregate names a file in
the archive or in quarantine, a damaged one did. With ``window_by=name``, the file's name determines
which. With ``last_modified`` that is unknown: the copy has a different time.
"""

from __future__ import annotations

import msgspec

from asyncagg.errors import NotFoundError, StoreError
from asyncagg.job.archive import REASON
from asyncagg.job.context import JobContext
from asyncagg.model import RunFile, Window
from asyncagg.verify.damaged import DamagedAggregate
from asyncagg.verify.database import QuarantinedEntry
from asyncagg.verify.inventory import Inventory
from asyncagg.verify.packs import assign_packed_files
from asyncagg.windows import time_in_name


async def assign_unnamed_files(context: JobContext, inventory: Inventory) -> int:
    """Assign each file that no aggregate names to the damaged aggregate of its window.

    Returns:
        How many files could not be assigned, because their window is unknown.
    """
    if not inventory.damaged or not inventory.all_windows:
        return 0
    await assign_packed_files(context, inventory)
    counted = await _assign(context, inventory, quarantined=False)
    return counted + await _assign(context, inventory, quarantined=True)


async def _assign(context: JobContext, inventory: Inventory, *, quarantined: bool) -> int:
    database, layout = inventory.database, context.layout
    pages = database.without_entry() if quarantined else database.uncounted()
    place_of = layout.quarantine_key if quarantined else layout.archive_key
    unknown = 0
    async for page in pages:
        for file in page:
            key = layout.arrival_key(file, place_of)
            arrived = msgspec.structs.replace(file, key=key or file.key)
            window = _window_by_name(context, arrived) if key else None
            if window is None:
                unknown += 1
            elif window not in inventory.damaged:
                continue
            elif quarantined:
                try:
                    reason = await _reason(context, file.key)
                except StoreError:
                    unknown += 1
                    continue
                entry = QuarantinedEntry(arrived.key, arrived.etag, window.name, file.key, reason)
                await database.add_quarantined([entry], assigned=True)
            else:
                await database.add_counted(window.name, [arrived], assigned=True)
    return unknown


def _window_by_name(context: JobContext, file: RunFile) -> Window | None:
    """Return the window that a file's name determines, or None if the name does not decide."""
    stamp = time_in_name(file.key, context.settings.window_by)
    if stamp is None:
        return None
    window = context.window_of(file)
    # A stamp too far ahead of the file is ignored: the window is then of another time.
    return window if window.start <= stamp < window.end else None


async def _reason(context: JobContext, key: str) -> str:
    try:
        metadata = (await context.store.head(key)).metadata
    except NotFoundError:
        metadata = {}
    return metadata.get(REASON, "not known any more")


async def rebuild_blocker(inventory: Inventory, aggregate: DamagedAggregate, unknown: int) -> str:
    """Return why a damaged aggregate cannot be rebuilt exactly; empty if it can.

    Args:
        inventory: The inventory, with the unnamed files assigned.
        aggregate: The damaged aggregate.
        unknown: How many files could not be assigned.
    """
    if not aggregate.replaceable:
        return "nothing shows that asyncagg wrote it: move it away"
    if not inventory.all_windows:
        return "that needs all aggregates: verify without an interval"
    if inventory.unread or inventory.misnamed:
        return "that needs all other aggregates, and some could not be read"
    elsewhere = await inventory.database.counted_elsewhere(aggregate.window.name)
    if elsewhere:
        return f"other aggregates count {elsewhere} of its files too"
    return await _incomplete(inventory, aggregate, unknown)


async def _incomplete(inventory: Inventory, aggregate: DamagedAggregate, unknown: int) -> str:
    """Return why the known files are not all files of the aggregate; empty if they are."""
    name, database = aggregate.window.name, inventory.database
    known = {
        "counted": sum([len(page) async for page in database.salvaged(name)]),
        "quarantined": sum([len(page) async for page in database.salvaged_quarantined(name)]),
    }
    for kind, number in known.items():
        if aggregate.counts_known and aggregate.files[kind] != number:
            return f"it had {aggregate.files[kind]} {kind} files, of which {number} are known"
    if not aggregate.counts_known and unknown:
        return f"no aggregate names {unknown} files, and their window is unknown"
    return "" if any(known.values()) else "none of its files is known"
