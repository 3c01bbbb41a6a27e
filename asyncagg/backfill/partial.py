"""A window too large for one worker: counted in parts, which are merged and committed once.

A partial aggregate is an aggregate document of some of a window's files. Its key is below the work
prefix, outside the inbox, and follows from the files in it: made twice it is the same, and one that
a killed worker left is found and used. Its files are not counted yet. `commit_parts` merges the
parts into the aggregate of the window, in one conditional write that fails if another runner has
counted one of the files in the meantime.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import packs_of
from asyncagg.aggregate.merge import RowSource
from asyncagg.aggregate.reader import StoredAggregate, read_head
from asyncagg.aggregate.rows import QuarantinedRow
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError
from asyncagg.job.aggregates import (
    add_to_aggregate,
    commit_aggregate,
    load_aggregate,
    merge_accumulators,
    merge_packs,
)
from asyncagg.job.archive import Mover
from asyncagg.job.context import JobContext
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.outcome import WindowReport
from asyncagg.job.packing import find_missing
from asyncagg.job.refusals import Refusals
from asyncagg.job.settle import Outcomes, Settlement
from asyncagg.model import Interval, Pack, RunFile, Window
from asyncagg.store import DELETE_BATCH, Absent, Store

FAN_IN = 32
"""Partial aggregates merged at a time: each needs a temporary file during the merge."""


class Part(NamedTuple):
    """A partial aggregate in the store.

    Attributes:
        first: The first key in it, which determines the order of parts.
        key: Its own key.
        window: Its window.
    """

    first: str
    key: str
    window: Window


@dataclass(slots=True)
class PartialCounter:
    """Counts the files of windows into partial aggregates, which are collected in `parts`.

    Files that the window's aggregate has already are archived.
    """

    parts: list[Part] = field(default_factory=list)

    async def count(self, settlement: Settlement) -> Outcomes:
        """Fold the files that are not counted yet into partial aggregates."""
        outcomes = Outcomes()
        async with AsyncExitStack() as stack:
            stored = await settlement.load(stack)
            async for files in settlement.files.batches():
                known = await settlement.find_known(files, stored)
                outcomes.add(files, known)
                settled = known.counted | known.quarantined
                fresh = [file for file in files if file.key not in settled]
                if fresh and not await self._find_part(settlement, fresh):
                    await self._make_part(settlement, fresh, outcomes)
        return outcomes

    async def _find_part(self, settlement: Settlement, files: Sequence[RunFile]) -> bool:
        """Return whether the part of these files was made before, and its packs are still there."""
        context, window = settlement.context, settlement.window
        key = context.layout.partial_key(window, _name(files))
        try:
            async with context.store.stream(key) as body:
                packs = packs_of(await read_head(key, window, body.chunks))
                etag = body.etag
        except NotFoundError:
            return False
        if await find_missing(context.store, packs) is not None:
            await context.store.delete([RunFile(key, 0, etag, context.now())])
            return False
        self.parts.append(Part(files[0].key, key, window))
        return True

    async def _make_part(
        self, settlement: Settlement, files: Sequence[RunFile], outcomes: Outcomes
    ) -> None:
        async with AsyncExitStack() as stack:
            rows = await settlement.open_rows(stack)
            until = settlement.deadline.intake_ends()
            async with settlement.open_packer() as packer:
                tally = outcomes.tally
                fetcher = await settlement.fetch(files, rows, packer, tally, until=until)
                packs = await settlement.complete(packer)
            folded = [*fetcher.counted, *fetcher.quarantined]
            if not folded:
                return
            context, window = settlement.context, settlement.window
            key = context.layout.partial_key(window, _name(folded))
            with settlement.run_report.timed("commit"):
                await _write_part(context, window, key, fetcher.accumulator, [rows], packs=packs)
        settlement.deferrals.refusals.accept("put")
        self.parts.append(Part(min(file.key for file in folded), key, window))


def _name(files: Iterable[RunFile]) -> str:
    identities = sorted(f"{file.key}\0{file.etag}\n" for file in files)
    return hashlib.sha256("".join(identities).encode(errors="surrogatepass")).hexdigest()[:32]


async def _write_part(
    context: JobContext,
    window: Window,
    key: str,
    total: Accumulator,
    sources: Sequence[RowSource],
    *,
    packs: Sequence[Pack],
) -> None:
    try:
        await commit_aggregate(
            context, window, total, sources, packs=packs, condition=Absent(), key=key
        )
    except PreconditionFailedError:
        return  # the same content: the key follows from it


async def merge_parts(context: JobContext, window: Window, keys: Sequence[str]) -> str:
    """Merge partial aggregates into one, and return its key.

    Raises:
        PreconditionFailedError: One of them is gone.
        OverlapError: Two of them have the same file.
    """
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
    key = context.layout.partial_key(window, name)
    async with _load_parts(context, window, keys) as parts:
        total = merge_accumulators(part.accumulator for part in parts)
        await _write_part(context, window, key, total, parts, packs=_packs(parts))
    return key


async def commit_parts(context: JobContext, window: Window, keys: Sequence[str]) -> WindowReport:
    """Merge partial aggregates into the aggregate of their window: their files become counted.

    Raises:
        PreconditionFailedError: One of them is gone, or another runner committed the window first.
        OverlapError: Another runner has counted one of the files.
    """
    report = WindowReport(window.name, context.layout.aggregate_key(window))
    try:
        async with _load_parts(context, window, keys) as parts, context.open_spool() as spool:
            stored = await load_aggregate(context, window, spool)
            fresh = merge_accumulators(part.accumulator for part in parts)
            packs = _packs(parts)
            missing = await find_missing(context.store, packs)
            if missing is not None:
                raise PreconditionFailedError(
                    f"pack {missing.key!r} of a partial aggregate is gone", key=missing.key
                )
            late = stored is not None
            await add_to_aggregate(
                context, window, stored, fresh, parts, packs=packs, report=report, late=late
            )
    except AggregateError as error:
        report.failure = str(error)
    return report


def _packs(parts: Iterable[StoredAggregate]) -> list[Pack]:
    return merge_packs(part.packs for part in parts)


async def archive_part(
    context: JobContext, window: Window, key: str
) -> tuple[WindowReport, Refusals]:
    """Move the files of a partial aggregate out of the inbox, after the commit."""
    report = WindowReport(window.name, context.layout.aggregate_key(window))
    refusals = Refusals(most=math.inf)
    mover = Mover(context, report.tally, deferrals=Deferrals(context, refusals))
    async with context.open_spool() as spool:
        part = await load_aggregate(context, window, spool, key=key)
        if part is None:
            # Another backfill removed it; the next run archives what is left.
            return report, refusals
        files = [file async for files in part.files() for file in files]
        await mover.archive([file for file in files if not file.pack])
        await mover.remove_packed([file for file in files if file.pack])
        rows = [row async for row in part.quarantined_rows()]
        await mover.move_to_quarantine(await _in_inbox(context.store, rows))
    return report, refusals


async def _in_inbox(store: Store, rows: Iterable[QuarantinedRow]) -> list[RunFile]:
    """Return the quarantined files that are still in the inbox, in the same version."""
    found = []
    for row in rows:
        try:
            file = (await store.head(row.key)).file
        except NotFoundError:
            continue
        if file.etag == row.etag:
            found.append(file)
    return found


async def remove_parts(
    context: JobContext, prefix: str, interval: Interval, keep: Collection[Window] = ()
) -> None:
    """Remove partial aggregates that are not needed any more, of this backfill or an earlier one.

    Args:
        context: Where they are.
        prefix: The work prefix, or the part of it for one window.
        interval: Only those of windows in it.
        keep: Not those of these windows.
    """
    async for page in context.store.list_pages(prefix):
        unused = [
            file
            for file in page
            if (window := context.layout.work_window(file.key)) is not None
            and interval.holds(window)
            and window not in keep
        ]
        for start in range(0, len(unused), DELETE_BATCH):
            await context.store.delete(unused[start : start + DELETE_BATCH])


@asynccontextmanager
async def _load_parts(
    context: JobContext, window: Window, keys: Sequence[str]
) -> AsyncIterator[list[StoredAggregate]]:
    """Read partial aggregates.

    Raises:
        PreconditionFailedError: One of them is gone.
    """
    async with AsyncExitStack() as stack:
        parts = []
        for key in keys:
            spool = await stack.enter_async_context(context.open_spool(share=len(keys)))
            part = await load_aggregate(context, window, spool, key=key)
            if part is None:
                raise PreconditionFailedError(
                    f"partial aggregate {key!r} is gone: another backfill has used it", key=key
                )
            parts.append(part)
        yield parts
