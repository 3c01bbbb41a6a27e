"""The self-proving report: do the aggregates say what the files say, and do the promises hold?

Each aggregate is computed again from the files that it names, and what stands in the store is held
against what the aggregates name; see `asyncagg.verify.stock` for how this can be done while runs
are at work. What is suspected is looked at once more before it is told. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from asyncagg.archive import same_content
from asyncagg.bench import Bench
from asyncagg.document import Existing
from asyncagg.errors import NotFoundError, PreconditionFailedError
from asyncagg.layout import Layout
from asyncagg.limits import for_each
from asyncagg.model import RunFile, Window
from asyncagg.recompute import Recomputed, examine
from asyncagg.verify.claims import claim, obstacle
from asyncagg.verify.findings import Kind, VerifyReport
from asyncagg.verify.ledger import Clash, Missed, open_ledger
from asyncagg.verify.stock import AT_ONCE, Stock

__all__ = ("verify",)

T = TypeVar("T")

_WHOLE = (Kind.UNCOUNTED, Kind.CONFLICT, Kind.UNENTERED, Kind.VANISHED)
"""Kinds that can be judged only where every row of every aggregate was read."""


async def verify(
    bench: Bench,
    *,
    wanted: Callable[[Window], bool] | None = None,
    progress: Callable[[VerifyReport], object] | None = None,
) -> VerifyReport:
    """Compute aggregates again from the files that they name, and audit the promises.

    Args:
        bench: What it is done with.
        wanted: Says of which windows; default: all. What needs all of them is not judged then.
        progress: Called after each aggregate; the report has the counts so far.

    Raises:
        ConfigurationError: The store's set-up is at fault, or the disk for temporary files is full.
        TransientError: The listings stayed in trouble.
    """
    report = VerifyReport()
    with anyio.move_on_after(bench.settings.max_seconds) as scope:
        async with open_ledger() as ledger:
            stock = Stock(bench, ledger, wanted)
            await _Audit(bench, stock, report, progress).work()
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
        bench: Bench,
        stock: Stock,
        report: VerifyReport,
        progress: Callable[[VerifyReport], object] | None,
    ) -> None:
        # Several aggregates at a time share what one may have in flight.
        shared = msgspec.structs.replace(
            bench.settings,
            concurrency=max(1, bench.settings.concurrency // AT_ONCE),
            max_inflight_bytes=max(1024, bench.settings.max_inflight_bytes // AT_ONCE),
        )
        self._bench = bench
        self._each = Bench(bench.store, shared, bench.temporary, bench.now)
        self._stock = stock
        self._report = report
        self._progress = progress
        self._troubles: dict[Window, _Trouble] = {}

    async def work(self) -> None:
        await self._stock.take(self._examine)
        self._report.counts = await self._stock.ledger.counts()
        await self._judge_aggregates()
        await self._judge_damaged()
        await self._judge_twice()
        await self._judge_unfinished()
        if self._stock.complete:
            await self._judge_places()
        else:
            self._report.not_judged |= dict.fromkeys(_WHOLE, self._why())

    def _why(self) -> str:
        if self._stock.whole:
            return "not every aggregate could be read"
        return "only with all aggregates: leave out --since and --until"

    async def _examine(self, window: Window) -> None:
        """Read an aggregate, and compute it again."""
        self._troubles.pop(window, None)

        async def seen(existing: Existing) -> None:
            await self._stock.note(window, existing)

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
        report, layout = self._report, self._stock.layout
        for window, trouble in sorted(self._troubles.items()):
            key = layout.aggregate_key(window)
            if await self._there(key) is None:
                continue  # it was moved away meanwhile
            if trouble.lost:
                shown = trouble.missing[: trouble.lost]
                for missing in shown:
                    report.add(Kind.MISSING, missing, f"counted in {key}")
                report.findings[Kind.MISSING].count += trouble.lost - len(shown)
            if trouble.failure:
                report.add(Kind.UNREAD, key, trouble.failure)
            if trouble.differences:
                report.add(Kind.DIFFERENT, key, trouble.differences)
                if trouble.mendable:
                    report.plan.rewrite.append(window.name)
        for window, failure in sorted(self._stock.unread.items()):
            report.add(Kind.UNREAD, layout.aggregate_key(window), failure)

    async def _judge_damaged(self) -> None:
        stock, report = self._stock, self._report
        for key in stock.misnamed:
            minutes = self._bench.settings.window_minutes
            report.add(Kind.DAMAGED, key, f"no window of {minutes} minutes has this name")
        if not stock.damaged:
            return
        unknown = await claim(self._bench, stock) if stock.whole else 0
        for window, remains in sorted(stock.damaged.items()):
            why = await obstacle(stock, remains, unknown)
            if not why:
                report.plan.rebuild.append(window.name)
            told = f"; it cannot be made anew: {why}" if why else ""
            report.add(Kind.DAMAGED, stock.layout.aggregate_key(window), remains.reason + told)

    async def _judge_twice(self) -> None:
        async for page in self._stock.ledger.twice():
            for each in page:
                self._report.add(
                    Kind.COUNTED_TWICE, each.key, f"in {each.windows.replace(',', ' and ')}"
                )

    async def _judge_unfinished(self) -> None:
        for counted in (True, False):
            pages = self._stock.ledger.unfinished(counted=counted)
            word = "counted" if counted else "refused"
            async for each in self._confirmed(pages, lambda each: self._stands(each.file)):
                self._report.add(Kind.UNFINISHED, each.file.key, f"{word} in {each.window}")
                self._report.plan.moves += 1

    async def _judge_places(self) -> None:
        ledger, report = self._stock.ledger, self._report
        async for file in self._confirmed(ledger.uncounted(), self._stands):
            report.add(Kind.UNCOUNTED, file.key, f"{file.size} bytes")
        async for clash in self._confirmed(ledger.clashes(), self._clashes):
            report.add(Kind.CONFLICT, clash.waiting.key, f"other content than {clash.archived.key}")
        async for file in self._confirmed(ledger.unentered(), self._stands):
            report.add(Kind.UNENTERED, file.key, f"{file.size} bytes")
        async for entry in self._confirmed(ledger.missed(), self._missed):
            report.add(Kind.VANISHED, entry.key, f"not at {entry.moved_to}")

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

        await for_each(enumerate(page), look, workers=self._bench.settings.concurrency)
        return still

    async def _stands(self, file: RunFile) -> bool:
        there = await self._there(file.key)
        return there is not None and there.etag == file.etag

    async def _there(self, key: str) -> RunFile | None:
        try:
            return (await self._bench.store.head(key)).file
        except NotFoundError:
            return None

    async def _clashes(self, clash: Clash) -> bool:
        try:
            if not await self._stands(clash.waiting) or not await self._stands(clash.archived):
                return False
            return not await same_content(self._bench.store, clash.waiting, clash.archived.key)
        except (NotFoundError, PreconditionFailedError):
            return False  # one of them was moved, or overwritten, this very moment

    async def _missed(self, entry: Missed) -> bool:
        inbox, held = await self._there(entry.key), await self._there(entry.moved_to)
        return inbox is None and held is None and not await self._was_put_back(entry.moved_to)

    async def _was_put_back(self, moved_to: str) -> bool:
        for start in Layout(self._bench.settings).put_back_keys(moved_to):
            async for page in self._bench.store.list_pages(start):
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
