"""The self-proving report: do the aggregates say what the files say, and do the promises hold?

Each aggregate is computed again from the files that it names, and what stands in the store is held
against what the aggregates name; `asyncagg.verify.inventory` says how this works while runs are at
work. What is suspected is looked at once more before it is told. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from asyncagg.aggregate.reading import StoredAggregate
from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.job.archive import same_content
from asyncagg.job.context import JobContext
from asyncagg.job.layout import Layout
from asyncagg.model import RunFile, Window
from asyncagg.runtime.tasks import for_each
from asyncagg.verify.claims import claim, rebuild_blocker
from asyncagg.verify.findings import FindingKind, VerifyReport
from asyncagg.verify.inventory import AT_ONCE, Inventory
from asyncagg.verify.ledger import Clash, OrphanEntry, open_ledger
from asyncagg.verify.recompute import Recomputed, examine

__all__ = ("verify",)

T = TypeVar("T")

_WHOLE = (FindingKind.UNCOUNTED, FindingKind.CONFLICT, FindingKind.UNENTERED, FindingKind.VANISHED)
"""Kinds that can be judged only where every row of every aggregate was read."""


async def verify(
    context: JobContext,
    *,
    wanted: Callable[[Window], bool] | None = None,
    progress: Callable[[VerifyReport], object] | None = None,
) -> VerifyReport:
    """Compute aggregates again from the files that they name, and audit the promises.

    Args:
        context: What it is done with.
        wanted: Says of which windows; default: all. What needs all of them is not judged then.
        progress: Called after each aggregate; the report has the counts so far.

    Raises:
        ConfigurationError: The store's set-up is at fault, or the disk for temporary files is full.
        TransientError: The listings stayed in trouble.
    """
    report = VerifyReport()
    with anyio.move_on_after(context.settings.max_seconds) as scope:
        async with open_ledger() as ledger:
            inventory = Inventory(context, ledger, wanted)
            await _Audit(context, inventory, report, progress).work()
    report.complete = not scope.cancelled_caught
    return report


class _Trouble(NamedTuple):
    """What is wrong with one aggregate, in a few words: there may be many."""

    lost: int
    missing: list[str]
    differences: str
    mendable: bool
    failure: str


class _Audit:
    def __init__(
        self,
        context: JobContext,
        inventory: Inventory,
        report: VerifyReport,
        progress: Callable[[VerifyReport], object] | None,
    ) -> None:
        # Several aggregates at a time share what one may have in flight.
        shared = msgspec.structs.replace(
            context.settings,
            concurrency=max(1, context.settings.concurrency // AT_ONCE),
            max_inflight_bytes=max(1024, context.settings.max_inflight_bytes // AT_ONCE),
        )
        self._context = context
        self._each = JobContext(context.store, shared, context.temporary, context.now)
        self._inventory = inventory
        self._report = report
        self._progress = progress
        self._troubles: dict[Window, _Trouble] = {}

    async def work(self) -> None:
        await self._inventory.take(self._examine)
        self._report.counts = await self._inventory.ledger.counts()
        await self._judge_aggregates()
        await self._judge_damaged()
        await self._judge_twice()
        await self._judge_unfinished()
        if self._inventory.complete:
            await self._judge_places()
        else:
            self._report.not_judged |= dict.fromkeys(_WHOLE, self._why())

    def _why(self) -> str:
        if self._inventory.whole:
            return "not every aggregate could be read"
        return "only with all aggregates: leave out since and until"

    async def _examine(self, window: Window) -> None:
        """Read an aggregate, and compute it again."""
        self._troubles.pop(window, None)

        async def seen(existing: StoredAggregate) -> None:
            await self._inventory.note(window, existing)

        outcome = await examine(self._each, window, seen=seen)
        if outcome.failure or outcome.differences:
            self._troubles[window] = _Trouble(
                lost=outcome.lost,
                missing=outcome.missing,
                differences=_told(outcome),
                mendable=not outcome.failure and not outcome.unproven,
                failure="" if outcome.lost or outcome.refused else outcome.failure,
            )
        counts = self._report.counts
        self._report.counts = counts._replace(
            aggregates=counts.aggregates + 1, files=counts.files + outcome.files
        )
        if self._progress is not None:
            self._progress(self._report)

    async def _judge_aggregates(self) -> None:
        report, layout = self._report, self._inventory.layout
        for window, trouble in sorted(self._troubles.items()):
            key = layout.aggregate_key(window)
            if await self._there(key) is None:
                continue  # it was moved away meanwhile
            if trouble.lost:
                shown = trouble.missing[: trouble.lost]
                for missing in shown:
                    report.add(FindingKind.MISSING, missing, f"counted in {key}")
                report.findings[FindingKind.MISSING].count += trouble.lost - len(shown)
            if trouble.failure:
                report.add(FindingKind.UNREAD, key, trouble.failure)
            if trouble.differences:
                report.add(FindingKind.DIFFERENT, key, trouble.differences)
                if trouble.mendable:
                    report.plan.rewrite.append(window.name)
        for window, failure in sorted(self._inventory.unread.items()):
            report.add(FindingKind.UNREAD, layout.aggregate_key(window), failure)

    async def _judge_damaged(self) -> None:
        inventory, report = self._inventory, self._report
        for key in inventory.misnamed:
            minutes = self._context.settings.window_minutes
            report.add(FindingKind.DAMAGED, key, f"no window of {minutes} minutes has this name")
        if not inventory.damaged:
            return
        unknown = await claim(self._context, inventory) if inventory.whole else 0
        for window, remains in sorted(inventory.damaged.items()):
            why = await rebuild_blocker(inventory, remains, unknown)
            if not why:
                report.plan.rebuild.append(window.name)
            told = f"; it cannot be made anew: {why}" if why else ""
            report.add(
                FindingKind.DAMAGED, inventory.layout.aggregate_key(window), remains.reason + told
            )

    async def _judge_twice(self) -> None:
        async for page in self._inventory.ledger.twice():
            for each in page:
                self._report.add(
                    FindingKind.COUNTED_TWICE, each.key, f"in {each.windows.replace(',', ' and ')}"
                )

    async def _judge_unfinished(self) -> None:
        for counted in (True, False):
            pages = self._inventory.ledger.unfinished(counted=counted)
            word = "counted" if counted else "refused"
            async for each in self._confirmed(pages, lambda each: self._stands(each.file)):
                self._report.add(FindingKind.UNFINISHED, each.file.key, f"{word} in {each.window}")
                self._report.plan.moves += 1

    async def _judge_places(self) -> None:
        ledger, report = self._inventory.ledger, self._report
        async for file in self._confirmed(ledger.uncounted(), self._stands):
            report.add(FindingKind.UNCOUNTED, file.key, f"{file.size} bytes")
        async for clash in self._confirmed(ledger.clashes(), self._clashes):
            report.add(
                FindingKind.CONFLICT, clash.waiting.key, f"other content than {clash.archived.key}"
            )
        async for file in self._confirmed(ledger.unentered(), self._stands):
            report.add(FindingKind.UNENTERED, file.key, f"{file.size} bytes")
        async for entry in self._confirmed(ledger.missed(), self._missed):
            report.add(FindingKind.VANISHED, entry.key, f"not at {entry.moved_to}")

    async def _confirmed(
        self, pages: AsyncIterator[list[T]], holds: Callable[[T], Awaitable[bool]]
    ) -> AsyncIterator[T]:
        """Yield what is still as it was suspected to be, in the same order."""
        async for page in pages:
            still = await self._all(page, holds)
            for item, holding in zip(page, still, strict=True):
                if holding:
                    yield item

    async def _all(self, page: Sequence[T], holds: Callable[[T], Awaitable[bool]]) -> list[bool]:
        still = [False] * len(page)

        async def look(item: tuple[int, T]) -> None:
            still[item[0]] = await holds(item[1])

        await for_each(enumerate(page), look, workers=self._context.settings.concurrency)
        return still

    async def _stands(self, file: RunFile) -> bool:
        there = await self._there(file.key)
        return there is not None and there.etag == file.etag

    async def _there(self, key: str) -> RunFile | None:
        try:
            return (await self._context.store.head(key)).file
        except NotFoundError:
            return None

    async def _clashes(self, clash: Clash) -> bool:
        try:
            if not await self._stands(clash.waiting) or not await self._stands(clash.archived):
                return False
            return not await same_content(self._context.store, clash.waiting, clash.archived.key)
        except (NotFoundError, PreconditionFailedError):
            return False  # one of them was moved, or overwritten, this very moment

    async def _missed(self, entry: OrphanEntry) -> bool:
        inbox, held = await self._there(entry.key), await self._there(entry.moved_to)
        return inbox is None and held is None and not await self._was_put_back(entry.moved_to)

    async def _was_put_back(self, moved_to: str) -> bool:
        for start in Layout(self._context.settings).put_back_keys(moved_to):
            async for page in self._context.store.list_pages(start):
                if page:
                    return True
        return False


def _told(outcome: Recomputed) -> str:
    """Say in a few words what differs."""
    parts = []
    for name, (stands, true) in outcome.differences.items():
        numbers = isinstance(true, int | float)
        parts.append(f"{name} is {stands}, should be {true}" if numbers else f"{name} differs")
    if outcome.refused:
        parts.append(f"{outcome.refused} of its files are no run files any more")
    elif parts and outcome.unproven:
        parts.append(f"{outcome.unproven} of its files are known by their size alone")
    return "; ".join(parts)
