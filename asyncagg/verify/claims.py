"""Which files a damaged aggregate named: what its rows still say, and what else can only be its.

A file leaves the inbox only after an aggregate has named it. So one that is archived, or in
quarantine, and that no sound aggregate names, was named by a damaged one. By which, its name says,
where names decide (``window_by=name``); where the store's clock does, nobody can tell any more: the
time of an archived file may be that of its copy.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from asyncagg.bench import Bench
from asyncagg.errors import NotFoundError
from asyncagg.model import RunFile, Window
from asyncagg.verify.salvage import Remains
from asyncagg.verify.stock import Stock
from asyncagg.windows import membership, stamp_of

__all__ = ("claim", "obstacle")


async def claim(bench: Bench, stock: Stock) -> int:
    """Give the files that no aggregate names to the damaged aggregates that must have named them.

    Returns:
        The number of files of which nobody can tell whose they were.
    """
    layout, unknown = stock.layout, 0
    window_of = _window_of(bench)
    async for page in stock.ledger.uncounted():
        for file in page:
            arrived = _arrived(file, layout.arrival_key(file, layout.archive_key))
            window = arrived and window_of(arrived)
            unknown += window is None
            if arrived and window in stock.damaged:
                await stock.claim(window, arrived, "", "")
    async for page in stock.ledger.unentered():
        for file in page:
            arrived = _arrived(file, layout.arrival_key(file, layout.quarantine_key))
            window = arrived and window_of(arrived)
            unknown += window is None
            if arrived and window in stock.damaged:
                await stock.claim(window, arrived, file.key, await _reason(bench, file.key))
    return unknown


def _window_of(bench: Bench) -> Callable[[RunFile], Window | None]:
    settings = bench.settings
    member = membership(settings.window_by, settings.window_minutes)
    by_name = settings.window_by == "name"

    def window_of(file: RunFile) -> Window | None:
        stamp, window = stamp_of(file.key), member(file)
        # One that is too far ahead does not decide.
        told = by_name and stamp is not None and window.start <= stamp < window.end
        return window if told else None

    return window_of


def _arrived(file: RunFile, key: str | None) -> RunFile | None:
    return None if key is None else msgspec.structs.replace(file, key=key)


async def _reason(bench: Bench, key: str) -> str:
    try:
        metadata = (await bench.store.head(key)).metadata
    except NotFoundError:
        metadata = {}
    return metadata.get("asyncagg-reason", "not known any more")


async def obstacle(stock: Stock, remains: Remains, unknown: int) -> str:
    """Say why a damaged aggregate cannot be made anew exactly; empty where it can.

    Args:
        stock: What was noted, and claimed.
        remains: What is left of the aggregate.
        unknown: The number of files of which nobody can tell whose they were.
    """
    if not remains.recognised:
        return "nothing shows that it is ours: move it away"
    if not stock.whole:
        return "for that, all aggregates have to be read: leave out --since and --until"
    if stock.unread or stock.misnamed:
        return "for that, all other aggregates have to be read"
    elsewhere = await stock.ledger.counted_elsewhere(remains.window.name)
    if elsewhere:
        return f"others count {elsewhere} of its files too"
    return await _shortfall(stock, remains, unknown)


async def _shortfall(stock: Stock, remains: Remains, unknown: int) -> str:
    """Say whether files are missing from what is known of a damaged aggregate, or too many."""
    name = remains.window.name
    counted = [len(page) async for page in stock.ledger.salvaged(name)]
    refused = [len(page) async for page in stock.ledger.salvaged_refused(name)]
    known = {"counted": sum(counted), "quarantined": sum(refused)}
    for kind, number in known.items():
        if remains.counts_known and remains.files[kind] != number:
            return f"it had {remains.files[kind]} files {kind}, of which {number} are known"
    if not remains.counts_known and unknown:
        return f"{unknown} files are named nowhere, and nobody can tell whether they were its own"
    return "" if any(known.values()) else "not one of its files is known"
