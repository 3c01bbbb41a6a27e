"""Count files by a commit to the aggregate of their window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.reader import StoredAggregate
from asyncagg.aggregate.rows import RowSpool
from asyncagg.errors import PreconditionFailedError
from asyncagg.job.aggregates import add_to_aggregate
from asyncagg.job.packing import LostPack, Packer
from asyncagg.job.settle import Outcomes, Settlement
from asyncagg.model import Pack, Window


class _Committed(NamedTuple):
    etag: str
    files: int


_NEVER = _Committed("", 0)


@dataclass(slots=True)
class Committer:
    """Counts files by a commit to the aggregate of their window.

    The committer remembers which aggregates this run committed: files added to those are not late.
    """

    _committed: dict[Window, _Committed] = field(default_factory=dict)

    def committed(self, window: Window) -> int:
        """Return the number of files in the aggregate if this run committed it, else 0."""
        return self._committed.get(window, _NEVER).files

    async def count(self, settlement: Settlement) -> Outcomes:
        """Fetch the files that are not counted yet, and commit them.

        Raises:
            PreconditionFailedError: Another runner committed the window first.
            AggregateError: The aggregate is damaged, or is not an aggregate.
            TransientError: The store failed.
        """
        async with AsyncExitStack() as stack:
            stored = await settlement.load(stack)
            rows = await settlement.open_rows(stack)
            async with settlement.open_packer() as packer:
                fresh, outcomes = await self._fold(settlement, stored, rows, packer)
                packs = await settlement.complete(packer)
            if fresh.counted or fresh.quarantined:
                with settlement.run_report.timed("commit"):
                    await self._commit(settlement, stored, fresh, rows, packs)
                settlement.deferrals.refusals.accept("put")
        return outcomes

    async def _fold(
        self,
        settlement: Settlement,
        stored: StoredAggregate | None,
        rows: RowSpool,
        packer: Packer | None,
    ) -> tuple[Accumulator, Outcomes]:
        """Fetch and fold the files that the aggregate does not have."""
        fresh_total, outcomes = Accumulator(), Outcomes()
        if stored is not None and self._is_own(settlement.window, stored):
            # Nothing to look up if all keys come after the last committed key.
            stored = stored if settlement.files.first_key <= stored.last_key else None
        until = math.inf
        async for files in settlement.files.batches():
            if anyio.current_time() >= until:
                outcomes.add_left(files)
                continue
            known = await settlement.find_known(files, stored)
            settled = known.counted | known.quarantined
            fresh = [file for file in files if file.key not in settled]
            # From the first batch on: the time to load must not shorten the time to fetch.
            until = min(until, settlement.deadline.intake_ends())
            fetcher = await settlement.fetch(fresh, rows, packer, outcomes.tally, until=until)
            fresh_total.merge(fetcher.accumulator)
            known.counted.update(file.key for file in fetcher.counted)
            known.packed.update(fetcher.packed)
            known.quarantined.update(file.key for file in fetcher.quarantined)
            outcomes.add(files, known)
        return fresh_total, outcomes

    async def _commit(
        self,
        settlement: Settlement,
        stored: StoredAggregate | None,
        fresh: Accumulator,
        rows: RowSpool,
        packs: Sequence[Pack],
    ) -> None:
        window = settlement.window
        try:
            etag = await add_to_aggregate(
                settlement.context,
                window,
                stored,
                fresh,
                [rows],
                packs=packs,
                report=settlement.report,
                late=stored is not None and not self._is_own(window, stored),
            )
        except PreconditionFailedError:
            base = stored.etag if stored else ""
            settlement.lost_packs.extend(LostPack(pack, base) for pack in packs)
            raise
        totals = [fresh, stored.accumulator] if stored else [fresh]
        files = sum(each.counted + each.quarantined for each in totals)
        self._committed[window] = _Committed(etag, files)

    def _is_own(self, window: Window, stored: StoredAggregate) -> bool:
        return self._committed.get(window, _NEVER).etag == stored.etag
