"""Safe repairs of what a verification found: no step takes away what does not stand elsewhere.

Inventory is taken anew, so that what is repaired is what stands now. Moves are those of
`asyncagg.job.archive`; aggregates are written under the etag with which they were read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from asyncagg.aggregate.rows import RowSpool, quarantined_row
from asyncagg.aggregate.spool import open_spool
from asyncagg.aggregate.writing import AggregateWriter
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, TransientError
from asyncagg.job.archive import Mover
from asyncagg.job.context import JobContext
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import Tally
from asyncagg.model import RunFile, Window
from asyncagg.verify.audit import verify
from asyncagg.verify.damaged import DamagedAggregate
from asyncagg.verify.database import open_database
from asyncagg.verify.findings import RepairReport, VerifyReport
from asyncagg.verify.inventory import Inventory
from asyncagg.verify.rebuild import assign_unnamed_files, rebuild_blocker
from asyncagg.verify.recompute import Recomputed, examine, fold_again
from asyncagg.windows import parse_window

__all__ = ("repair",)

_RACED = "somebody else committed it meanwhile: verify again"


async def repair(
    context: JobContext,
    found: VerifyReport,
    *,
    wanted: Callable[[Window], bool] | None = None,
    progress: Callable[[VerifyReport], object] | None = None,
) -> RepairReport:
    """Do what a verification has planned, and verify again what was repaired.

    Args:
        context: What it is done with.
        found: What `asyncagg.verify.verify` returned.
        wanted: What was given to it: the windows.
        progress: Called after each aggregate that is verified again.

    Raises:
        ConfigurationError: The store's set-up is at fault, or the disk for temporary files is full.
        TransientError: The listings stayed in trouble.
    """
    job = _Repair(context, RepairReport(found))
    if found.plan.moves or found.plan.rebuild:
        async with open_database(Layout(context.settings)) as database:
            inventory = Inventory(context, database, wanted)
            await inventory.collect()
            await job.finish_moves(inventory)
            await job.rebuild(inventory)
    await job.rewrite()
    # One that was made anew is judged among all the others.
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
        """Say whether anything of a window was repaired."""
        return window.name in self._windows

    async def finish_moves(self, inventory: Inventory) -> None:
        """Move what is counted to the archive, and drop what is quarantined from the inbox."""
        tally = Tally()
        mover = Mover(self._context.store, self._context.settings.concurrency, tally)
        layout = inventory.layout
        async for page in inventory.database.unfinished(counted=True):
            self._windows.update(each.window for each in page)
            await mover.archive([each.file for each in page], layout.archive_key)
        async for page in inventory.database.unfinished(counted=False):
            self._windows.update(each.window for each in page)
            await mover.move_to_quarantine([each.file for each in page], layout.quarantine_key)
        self.report.moved = tally.archived + tally.quarantined
        if tally.deferred:
            self.report.failures[layout.runs_prefix] = f"{tally.deferred} files could not be moved"

    async def rebuild(self, inventory: Inventory) -> None:
        """Make damaged aggregates anew."""
        unknown = await assign_unnamed_files(self._context, inventory) if self._plan.rebuild else 0
        for window, remains in inventory.damaged.items():
            if window.name not in self._plan.rebuild:
                continue
            try:
                why = await rebuild_blocker(inventory, remains, unknown) or await self._make(
                    inventory, remains
                )
            except PreconditionFailedError:
                why = _RACED
            except TransientError as error:
                why = str(error)
            if why:
                self.report.failures[window.name] = why
            else:
                self.report.rebuilt.append(window.name)

    async def _make(self, inventory: Inventory, remains: DamagedAggregate) -> str:
        """Write a damaged aggregate anew; return why not, or an empty text."""
        name, ledger = remains.window.name, inventory.database
        outcome = Recomputed(name, inventory.layout.aggregate_key(remains.window))
        async with AsyncExitStack() as stack:
            memory, folder = self._context.settings.spool_bytes, self._context.temporary
            spools = [await stack.enter_async_context(open_spool(memory, folder)) for _ in range(2)]
            rows = RowSpool(*spools)
            total = await fold_again(self._context, ledger.salvaged(name), rows, outcome)
            if outcome.missing or outcome.unproven:
                return (
                    f"{outcome.unproven} of its files are known by their size alone, and these "
                    f"could not be read: {outcome.missing}"
                )
            async for page in ledger.salvaged_quarantined(name):
                for row in page:
                    file = RunFile(row.key, 0, row.etag, self._context.now())
                    await rows.append(quarantined_row(file, row.reason, row.moved_to))
                    total.quarantined += 1
            document = AggregateWriter(
                window=remains.window,
                accumulator=total,
                revision=remains.revision + 1,
                late=min(remains.files.get("late", 0), total.counted),
                written_at=self._context.now(),
                rows=rows,
            )
            await self._context.store.put(outcome.aggregate_key, document, if_match=remains.etag)
        return ""

    async def rewrite(self) -> None:
        """Replace aggregates by what their files say, where every file is proven."""
        for name in self._plan.rewrite:
            window = parse_window(name, self._context.settings.window_minutes)
            try:
                outcome = await examine(self._context, window, write=True, proven=True)
                why = outcome.failure
            except PreconditionFailedError:
                why = _RACED
            except NotFoundError:
                why = "its aggregate is gone"
            except (AggregateError, TransientError) as error:
                why = str(error)
            else:
                if outcome.written:
                    self.report.rewritten.append(name)
            if why:
                self.report.failures[name] = why
