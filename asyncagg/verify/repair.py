"""Safe repairs of the findings of a verification: no step removes the only copy of a file.

The inventory is taken again, so that repairs start from the present state. Files are moved as
`asyncagg.job.archive` does it; aggregates are written only over the etag that was read.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

from asyncagg.aggregate.rows import RowSpool, quarantined_row
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.aggregates import commit_aggregate
from asyncagg.job.archive import Mover
from asyncagg.job.context import JobContext
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.outcome import Tally
from asyncagg.job.refusals import Refusals
from asyncagg.model import CountedFile, RunFile, Window
from asyncagg.packs.format import DamagedPackError
from asyncagg.packs.reader import PackReader
from asyncagg.runtime.tasks import map_each
from asyncagg.store import Matches
from asyncagg.verify.audit import verify
from asyncagg.verify.damaged import DamagedAggregate
from asyncagg.verify.database import open_database
from asyncagg.verify.findings import RepairReport, VerifyReport
from asyncagg.verify.inventory import Inventory
from asyncagg.verify.packs import packs_of_window, removal_blocker, unnamed_packs
from asyncagg.verify.rebuild import assign_unnamed_files, rebuild_blocker
from asyncagg.verify.recompute import Recomputed, fold_archived, recompute_or_raise
from asyncagg.windows import parse_window

_OVERTAKEN = "another runner committed it in the meantime: verify again"


async def repair(
    context: JobContext,
    found: VerifyReport,
    *,
    wanted: Callable[[Window], bool] | None = None,
    progress: Callable[[VerifyReport], object] | None = None,
) -> RepairReport:
    """Do the repairs that a verification has planned, and verify the result.

    Args:
        context: The dependencies.
        found: The report of `asyncagg.verify.verify`.
        wanted: The windows that it verified.
        progress: Called after each aggregate of the second verification.

    Raises:
        ConfigurationError: The store cannot be used, or the disk for temporary files is full.
        TransientError: The listings failed after all retries.
    """
    job = _Repair(context, RepairReport(found))
    if found.plan.moves or found.plan.rebuild or found.plan.packs:
        async with open_database(context.layout) as database:
            inventory = Inventory(context, database, wanted)
            await inventory.collect()
            await job.finish_moves(inventory)
            await job.remove_packs(inventory)
            await job.rebuild(inventory)
    await job.rewrite()
    # A rebuilt aggregate is verified together with all others.
    again = wanted if found.plan.rebuild else job.touched
    job.report.after = await verify(context, wanted=again, progress=progress)
    return job.report


class _Repair:
    def __init__(self, context: JobContext, report: RepairReport) -> None:
        self.report = report
        self._context = context
        self._plan = report.before.plan
        self._windows = {*self._plan.rewrite, *self._plan.rebuild}

    def touched(self, window: Window) -> bool:
        """Return whether anything of a window was repaired."""
        return window.name in self._windows

    async def finish_moves(self, inventory: Inventory) -> None:
        """Move counted files to the archive, and quarantined files out of the inbox."""
        tally = Tally()
        deferrals = Deferrals(self._context, Refusals(most=math.inf))
        mover = Mover(self._context, tally, deferrals=deferrals)
        for counted, move in ((True, mover.archive), (False, mover.move_to_quarantine)):
            async for page in inventory.database.unfinished(counted=counted):
                self._windows.update(each.window for each in page)
                files = [each.file for each in page]
                packed = await self._in_packs(inventory, files)
                await mover.remove_packed([each for each in files if each in packed])
                await move([each for each in files if each not in packed])
        self.report.moved = tally.archived + tally.quarantined
        if tally.deferred:
            prefix = self._context.layout.runs_prefix
            self.report.failures[prefix] = f"{tally.deferred} files could not be moved"

    async def _in_packs(
        self, inventory: Inventory, files: Sequence[CountedFile]
    ) -> set[CountedFile]:
        """Return the files that can be read from the packs that aggregates name."""
        packed = [file for file in files if file.pack]
        packs = await inventory.database.packs({file.pack for file in packed})
        reader = PackReader(self._context.store, packs)

        async def is_sound(file: CountedFile) -> bool:
            try:
                await reader.read(file)
            except (DamagedPackError, StoreError):
                return False  # it gets a single copy
            return True

        workers = self._context.settings.concurrency
        sound = await map_each(packed, is_sound, workers=workers)
        return {file for file, is_there in zip(packed, sound, strict=True) if is_there}

    async def remove_packs(self, inventory: Inventory) -> None:
        """Remove packs that no aggregate names, if all their files are counted elsewhere."""
        if not self._plan.packs or not inventory.complete:
            return
        async for page in unnamed_packs(self._context, inventory):
            for pack in page:
                try:
                    if await removal_blocker(self._context, inventory, pack):
                        continue
                    failures = await self._context.store.delete([pack])
                except StoreError as error:
                    failures = {pack.key: error}
                self.report.removed += not failures
                self.report.failures |= {key: str(error) for key, error in failures.items()}

    async def rebuild(self, inventory: Inventory) -> None:
        """Rebuild damaged aggregates."""
        unknown = await assign_unnamed_files(self._context, inventory)
        for window, damaged in inventory.damaged.items():
            if window.name not in self._plan.rebuild:
                continue
            try:
                blocker = await rebuild_blocker(inventory, damaged, unknown)
                failure = blocker or await self._rebuild_one(inventory, damaged)
            except PreconditionFailedError:
                failure = _OVERTAKEN
            except StoreError as error:
                failure = str(error)
            if failure:
                self.report.failures[window.name] = failure
            else:
                self.report.rebuilt.append(window.name)

    async def _rebuild_one(self, inventory: Inventory, damaged: DamagedAggregate) -> str:
        """Rebuild a damaged aggregate; return why it cannot be done, or an empty string."""
        context, window, database = self._context, damaged.window, inventory.database
        result = Recomputed(window.name, context.layout.aggregate_key(window))
        async with AsyncExitStack() as stack:
            spools = [await stack.enter_async_context(context.open_spool()) for _ in range(2)]
            rows = RowSpool(*spools)
            packs = [pack async for pack, _ in packs_of_window(context, window)]
            used: set[str] = set()

            async def files() -> AsyncIterator[list[CountedFile]]:
                async for page in database.salvaged(window.name):
                    used.update(file.pack for file in page)
                    yield page

            total, why = await fold_archived(context, files(), rows, result, packs=packs)
            if result.missing or result.unproven:
                return (
                    f"{result.unproven} of its files are recognised by their size alone, and "
                    f"these could not be read: {result.missing} {why}".rstrip()
                )
            async for page in database.salvaged_quarantined(window.name):
                for row in page:
                    file = RunFile(row.key, 0, row.etag, context.now())
                    await rows.append(quarantined_row(file, row.reason, row.moved_to))
                    total.quarantined += 1
            await commit_aggregate(
                context,
                window,
                total,
                [rows],
                packs=[pack for pack in packs if pack.id in used],
                condition=Matches(damaged.etag),
                revision=damaged.revision + 1,
                late=min(damaged.files.get("late", 0), total.counted),
            )
        return ""

    async def rewrite(self) -> None:
        """Replace aggregates that differ from their files, if every file is proven."""
        for name in self._plan.rewrite:
            window = parse_window(name, self._context.settings.window_minutes)
            try:
                result = await recompute_or_raise(self._context, window, write=True, proven=True)
                failure = result.failure
            except PreconditionFailedError:
                failure = _OVERTAKEN
            except NotFoundError:
                failure = "its aggregate is gone"
            except (AggregateError, StoreError) as error:
                failure = str(error)
            else:
                if result.written:
                    self.report.rewritten.append(name)
            if failure:
                self.report.failures[name] = failure
