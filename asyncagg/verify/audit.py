"""Verification: are the aggregates what their files add up to, and do the promises hold?

Each aggregate is computed again from the files that it names, and the objects in the store are
compared with what the aggregates name. Runs may go on meanwhile, so each suspect is checked once
more before it is reported. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from asyncagg.errors import NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.archive import same_content
from asyncagg.job.context import JobContext
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import map_each
from asyncagg.verify.database import NamedPack, QuarantinedEntry, open_database
from asyncagg.verify.findings import FindingKind, VerifyReport
from asyncagg.verify.inventory import AGGREGATES_AT_ONCE, Inventory
from asyncagg.verify.packs import removal_blocker, unnamed_packs
from asyncagg.verify.rebuild import assign_unnamed_files, rebuild_blocker
from asyncagg.verify.recompute import Recomputed, recompute_or_raise

T = TypeVar("T")

_LOSSES = frozenset({FindingKind.MISSING, FindingKind.BROKEN_PACK, FindingKind.UNREAD})
"""While these are found, an unnamed pack may have the only copy of a file."""

_NEED_ALL_AGGREGATES = (
    FindingKind.UNNAMED_PACK,
    FindingKind.UNCOUNTED,
    FindingKind.CONFLICT,
    FindingKind.WITHOUT_ENTRY,
    FindingKind.ORPHAN_ENTRY,
)


async def verify(
    context: JobContext,
    *,
    wanted: Callable[[Window], bool] | None = None,
    progress: Callable[[VerifyReport], object] | None = None,
) -> VerifyReport:
    """Compute aggregates again from the files that they name, and check the promises.

    Args:
        context: The store, the settings and the clock.
        wanted: Returns whether to verify a window; default: all. With a part of the windows, the
            checks that need all aggregates are left out.
        progress: Called after each aggregate with the report, which has the counts so far.

    Raises:
        ConfigurationError: The store is set up wrong, or the disk for temporary files is full.
        StoreError: A listing failed after all retries, or the store refuses every aggregate.
    """
    report = VerifyReport()
    with anyio.move_on_after(context.settings.max_seconds) as scope:
        async with open_database(context.layout) as database:
            inventory = Inventory(context, database, wanted)
            await _Audit(context, inventory, report, progress).work()
    report.complete = not scope.cancelled_caught
    return report


class _Discrepancy(NamedTuple):
    """What is wrong with one aggregate; small, because there may be many."""

    lost: int
    missing: list[str]
    differences: str
    repairable: bool
    failure: str


class _Audit:
    def __init__(
        self,
        context: JobContext,
        inventory: Inventory,
        report: VerifyReport,
        progress: Callable[[VerifyReport], object] | None,
    ) -> None:
        settings = context.settings
        # The aggregates that are read concurrently share the limits.
        shared = msgspec.structs.replace(
            settings,
            concurrency=max(1, settings.concurrency // AGGREGATES_AT_ONCE),
            max_inflight_bytes=max(1024, settings.max_inflight_bytes // AGGREGATES_AT_ONCE),
        )
        self._shared_context = replace(context, settings=shared)
        self._context = context
        self._inventory = inventory
        self._report = report
        self._progress = progress
        self._discrepancies: dict[Window, _Discrepancy] = {}

    async def work(self) -> None:
        await self._inventory.collect(self._recompute)
        self._report.counts = await self._inventory.database.counts()
        self._report.ignored = self._inventory.ignored
        await self._report_aggregates()
        await self._report_damaged()
        self._report_misplaced()
        await self._report_counted_twice()
        await self._report_unfinished()
        await self._report_waiting()
        await self._report_broken_packs()
        if self._inventory.complete:
            await self._report_files()
        else:
            why = "not every aggregate could be read"
            if not self._inventory.all_windows:
                why = "needs all aggregates: verify without an interval"
            self._report.not_judged |= dict.fromkeys(_NEED_ALL_AGGREGATES, why)

    async def _recompute(self, window: Window) -> None:
        """Read an aggregate, and compute it again."""
        self._discrepancies.pop(window, None)
        add = partial(self._inventory.add, window)
        outcome = await recompute_or_raise(self._shared_context, window, on_loaded=add)
        if outcome.failure or outcome.differences:
            self._discrepancies[window] = _Discrepancy(
                lost=outcome.lost,
                missing=outcome.missing,
                differences=_describe(outcome),
                repairable=not outcome.failure and not outcome.unproven,
                failure=_unread(outcome),
            )
        counts = self._report.counts
        self._report.counts = counts._replace(
            aggregates=counts.aggregates + 1, files=counts.files + outcome.files
        )
        if self._progress is not None:
            self._progress(self._report)

    async def _report_aggregates(self) -> None:
        report, layout = self._report, self._context.layout
        for window, found in sorted(self._discrepancies.items()):
            key = layout.aggregate_key(window)
            if await self._is_gone(key):
                continue  # it was moved away meanwhile
            if found.lost:
                examples = found.missing[: found.lost]
                for missing in examples:
                    report.add(FindingKind.MISSING, missing, f"counted in {key}")
                report.findings[FindingKind.MISSING].count += found.lost - len(examples)
            if found.failure:
                report.add(FindingKind.UNREAD, key, found.failure)
            if found.differences:
                report.add(FindingKind.DIFFERENT, key, found.differences)
                if found.repairable:
                    report.plan.rewrite.append(window.name)
        for window, failure in sorted(self._inventory.unread.items()):
            report.add(FindingKind.UNREAD, layout.aggregate_key(window), failure)

    async def _report_damaged(self) -> None:
        inventory, report = self._inventory, self._report
        for key in sorted(inventory.misnamed):
            minutes = self._context.settings.window_minutes
            report.add(FindingKind.DAMAGED, key, f"not the name of a window of {minutes} minutes")
        unknown = await assign_unnamed_files(self._context, inventory)
        for window, aggregate in sorted(inventory.damaged.items()):
            blocker = await rebuild_blocker(inventory, aggregate, unknown)
            detail = aggregate.reason
            if blocker:
                detail += f"; it cannot be rebuilt: {blocker}"
            else:
                report.plan.rebuild.append(window.name)
            report.add(FindingKind.DAMAGED, self._context.layout.aggregate_key(window), detail)

    def _report_misplaced(self) -> None:
        for _, found in sorted(self._inventory.misplaced.items()):
            for each in found.examples:
                self._report.add(FindingKind.MISPLACED, *each)
            more = found.count - len(found.examples)
            self._report.findings[FindingKind.MISPLACED].count += more

    async def _report_counted_twice(self) -> None:
        async for page in self._inventory.database.counted_twice():
            for key, windows in page:
                detail = f"in {windows.replace(',', ' and ')}"
                self._report.add(FindingKind.COUNTED_TWICE, key, detail)

    async def _report_unfinished(self) -> None:
        for counted, outcome in ((True, "counted"), (False, "quarantined")):
            pages = self._inventory.database.unfinished(counted=counted)
            async for each in self._confirmed(pages, lambda each: self._unchanged(each.file)):
                detail = f"{outcome} in {each.window}"
                self._report.add(FindingKind.UNFINISHED, each.file.key, detail)
                self._report.plan.moves += 1

    async def _report_waiting(self) -> None:
        inventory = self._inventory
        if inventory.last_settled is None:
            return
        pages = inventory.database.waiting(inventory.last_settled.name, inventory.long_ago)
        async for file in self._confirmed(pages, self._unchanged):
            window = self._context.window_of(file)
            since = f"{file.last_modified:%Y-%m-%dT%H:%M:%SZ}"
            detail = f"of window {window.name}, arrived {since}: the log of a run says why"
            self._report.add(FindingKind.WAITING, file.key, detail)

    async def _report_broken_packs(self) -> None:
        if not self._inventory.all_windows:
            why = "needs the list of packs: verify without an interval"
            self._report.not_judged[FindingKind.BROKEN_PACK] = why
            return
        pages = self._inventory.database.broken_packs()
        async for pack in self._confirmed(pages, self._is_broken):
            detail = f"not there with {pack.size} bytes, as the aggregate of {pack.window} says"
            self._report.add(FindingKind.BROKEN_PACK, pack.key, detail)

    async def _is_broken(self, pack: NamedPack) -> bool:
        found = await self._head(pack.key)
        return found is None or found.size != pack.size

    async def _report_unnamed_packs(self) -> None:
        inventory = self._inventory
        lost = ", ".join(sorted(_LOSSES & self._report.findings.keys()))
        pages = unnamed_packs(self._context, inventory)
        async for file in self._confirmed(pages, self._unchanged):
            blocker = lost and f"it may have the only copy of a file: found are also: {lost}"
            blocker = blocker or await removal_blocker(self._context, inventory, file)
            detail = blocker or "all its files are counted elsewhere"
            self._report.add(FindingKind.UNNAMED_PACK, file.key, detail)
            self._report.plan.packs += not blocker

    async def _report_files(self) -> None:
        try:
            await self._report_unnamed_packs()
        except StoreError as error:
            self._report.add(FindingKind.UNREAD, error.key, str(error))
        database, report = self._inventory.database, self._report
        async for file in self._confirmed(database.uncounted(), self._unchanged):
            report.add(FindingKind.UNCOUNTED, file.key, f"{file.size} bytes")
        async for waiting, archived in self._confirmed(database.conflicts(), self._conflict):
            report.add(FindingKind.CONFLICT, waiting.key, f"other content than {archived.key}")
        async for file in self._confirmed(database.without_entry(), self._unchanged):
            report.add(FindingKind.WITHOUT_ENTRY, file.key, f"{file.size} bytes")
        async for entry in self._confirmed(database.orphan_entries(), self._is_orphan):
            report.add(FindingKind.ORPHAN_ENTRY, entry.key, f"not at {entry.moved_to}")

    async def _confirmed(
        self, pages: AsyncIterator[list[T]], check: Callable[[T], Awaitable[bool]]
    ) -> AsyncIterator[T]:
        """Yield the suspects for which a check of the store still holds, in order."""
        async for page in pages:
            workers = self._context.settings.concurrency
            confirmed = await map_each(page, partial(self._check, check), workers=workers)
            for item, holds in zip(page, confirmed, strict=True):
                if holds:
                    yield item

    async def _check(self, check: Callable[[T], Awaitable[bool]], item: T) -> bool:
        try:
            return await check(item)
        except StoreError as error:
            self._report.add(FindingKind.UNREAD, error.key, str(error))
            return False

    async def _is_gone(self, key: str) -> bool:
        try:
            return await self._head(key) is None
        except StoreError:
            return False

    async def _head(self, key: str) -> RunFile | None:
        try:
            return (await self._context.store.head(key)).file
        except NotFoundError:
            return None

    async def _unchanged(self, file: RunFile) -> bool:
        found = await self._head(file.key)
        return found is not None and found.etag == file.etag

    async def _conflict(self, pair: tuple[RunFile, RunFile]) -> bool:
        waiting, archived = pair
        try:
            if not await self._unchanged(waiting) or not await self._unchanged(archived):
                return False
            return not await same_content(self._context.store, waiting, archived.key)
        except (NotFoundError, PreconditionFailedError):
            return False  # one of them was moved or overwritten just now

    async def _is_orphan(self, entry: QuarantinedEntry) -> bool:
        if await self._head(entry.key) or await self._head(entry.moved_to):
            return False
        layout = self._context.layout
        # If its metadata is lost, its key in quarantine determines that of a restored file.
        for key in {entry.key, layout.inbox_key(entry.moved_to)}:
            for prefix in layout.restored_prefixes(key):
                async for page in self._context.store.list_pages(prefix):
                    if page:
                        return False  # it was restored from quarantine
        return True


def _unread(outcome: Recomputed) -> str:
    """Return why files of an aggregate could not be read; empty if they are lost or invalid."""
    return outcome.failure if outcome.unread or not (outcome.lost or outcome.refused) else ""


def _describe(outcome: Recomputed) -> str:
    """Describe the differences in a few words."""
    parts = []
    for name, (stored, expected) in outcome.differences.items():
        is_number = isinstance(expected, int | float)
        parts.append(
            f"{name} is {stored}, should be {expected}" if is_number else f"{name} differs"
        )
    if outcome.refused:
        parts.append(f"{outcome.refused} of its files are no longer valid run files")
    elif parts and outcome.unproven:
        parts.append(f"only the size of {outcome.unproven} of its files could be compared")
    return "; ".join(parts)
