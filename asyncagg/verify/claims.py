"""Which files a damaged aggregate named: what its rows still say, and what else can only be its.

A file leaves the inbox only after an aggregate has named it. So one that is archived, or in
quarantine, and that no sound aggregate names, was named by a damaged one. By which, its name says,
where names decide (``window_by=name``); where the store's clock does, nobody can tell any more: the
time of an archived file may be that of its copy.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from asyncagg.errors import NotFoundError
from asyncagg.job.context import JobContext
from asyncagg.model import RunFile, Window
from asyncagg.verify.inventory import Inventory
from asyncagg.verify.salvage import Remains
from asyncagg.windows import stamp_of, window_selector

__all__ = ("claim", "rebuild_blocker")


async def claim(context: JobContext, inventory: Inventory) -> int:
    """Give the files that no aggregate names to the damaged aggregates that must have named them.

    Returns:
        The number of files of which nobody can tell whose they were.
    """
    layout, unknown = inventory.layout, 0
    window_of = _window_of(context)
    async for page in inventory.ledger.uncounted():
        for file in page:
            arrived = _arrived(file, layout.arrival_key(file, layout.archive_key))
            window = arrived and window_of(arrived)
            unknown += window is None
            if arrived and window in inventory.damaged:
                await inventory.claim(window, arrived, "", "")
    async for page in inventory.ledger.unentered():
        for file in page:
            arrived = _arrived(file, layout.arrival_key(file, layout.quarantine_key))
            window = arrived and window_of(arrived)
            unknown += window is None
            if arrived and window in inventory.damaged:
                await inventory.claim(window, arrived, file.key, await _reason(context, file.key))
    return unknown


def _window_of(context: JobContext) -> Callable[[RunFile], Window | None]:
    settings = context.settings
    member = window_selector(settings.window_by, settings.window_minutes)
    by_name = settings.window_by == "name"

    def window_of(file: RunFile) -> Window | None:
        stamp, window = stamp_of(file.key), member(file)
        # One that is too far ahead does not decide.
        told = by_name and stamp is not None and window.start <= stamp < window.end
        return window if told else None

    return window_of


def _arrived(file: RunFile, key: str | None) -> RunFile | None:
    return None if key is None else msgspec.structs.replace(file, key=key)


async def _reason(context: JobContext, key: str) -> str:
    try:
        metadata = (await context.store.head(key)).metadata
    except NotFoundError:
        metadata = {}
    return metadata.get("asyncagg-reason", "not known any more")


async def rebuild_blocker(inventory: Inventory, remains: Remains, unknown: int) -> str:
    """Say why a damaged aggregate cannot be made anew exactly; empty where it can.

    Args:
        inventory: What was noted, and claimed.
        remains: What is left of the aggregate.
        unknown: The number of files of which nobody can tell whose they were.
    """
    if not remains.recognised:
        return "nothing shows that it is ours: move it away"
    if not inventory.whole:
        return "for that, all aggregates have to be read: leave out since and until"
    if inventory.unread or inventory.misnamed:
        return "for that, all other aggregates have to be read"
    elsewhere = await inventory.ledger.counted_elsewhere(remains.window.name)
    if elsewhere:
        return f"others count {elsewhere} of its files too"
    return await _shortfall(inventory, remains, unknown)


async def _shortfall(inventory: Inventory, remains: Remains, unknown: int) -> str:
    """Say whether files are missing from what is known of a damaged aggregate, or too many."""
    name = remains.window.name
    counted = [len(page) async for page in inventory.ledger.salvaged(name)]
    refused = [len(page) async for page in inventory.ledger.salvaged_refused(name)]
    known = {"counted": sum(counted), "quarantined": sum(refused)}
    for kind, number in known.items():
        if remains.counts_known and remains.files[kind] != number:
            return f"it had {remains.files[kind]} files {kind}, of which {number} are known"
    if not remains.counts_known and unknown:
        return f"{unknown} files are named nowhere, and nobody can tell whether they were its own"
    return "" if any(known.values()) else "not one of its files is known"
