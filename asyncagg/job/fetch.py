"""Fetch, parse and fold the run files of one window, concurrently and in bounded memory.

Files are fetched one by one, but parsed and folded in batches: all that arrive in the same turn of
the event loop. Code that runs many times in a row takes less CPU than the same code between
requests, because it stays in the processor's caches.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.rows import QuarantinedRow, RowSpool, counted_row, quarantined_row
from asyncagg.errors import InvalidRunFileError, StoreError
from asyncagg.ingest.parsing import parse
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.outcome import Tally
from asyncagg.job.run_files import Loaded
from asyncagg.job.slots import Slots
from asyncagg.model import Place, RunFile, RunResult
from asyncagg.runtime.tasks import task_group

_log = logging.getLogger(__name__)
_REASON_LIMIT = 500

_BATCH_BYTES = 256 * 1024
"""So many bytes are parsed without waiting for more."""

Load = Callable[[RunFile], Awaitable[Loaded]]
"""Loads a run file.

It raises an `InvalidRunFileError` if the file can never be counted, and a `StoreError` if it could
not be fetched in the version that was listed.
"""

Quarantine = Callable[[RunFile, str], Awaitable[str | None]]
"""Copies a file to quarantine for a reason; returns its key there, or None if that failed."""


class Packs(Protocol):
    """Knows the packs that files are in; `asyncagg.job.packing.Packer` writes them."""

    def add(self, file: RunFile, data: bytes | None) -> Place | None:
        """Return the place of a file with these bytes; None if it is in no pack."""
        ...


_Arrived: TypeAlias = tuple[int, RunFile, Loaded]
"""A file that is loaded: its index, its reference, and what `Load` has returned."""

_Refused: TypeAlias = tuple[int, RunFile, str]
"""A file that can never be counted: its index, its reference, and why."""


class Fetcher:
    """Folds files of one window, once, and keeps their rows, in the order of the files.

    Attributes:
        accumulator: What was folded.
        counted: The files folded.
        packed: The keys of those that are in a pack.
        quarantined: The files that have a copy in quarantine now.

    Args:
        load: Loads a file.
        quarantine: Puts a copy of an invalid file into quarantine.
        rows: Where the rows go.
        tally: Where the outcome of the other files is added.
        deferrals: Decides what becomes of the files that could not be loaded.
        packs: Where counted files go; None if they become objects of the archive.
        unknown: Counts the names of fields that are not read; this takes more time.
    """

    def __init__(
        self,
        load: Load,
        quarantine: Quarantine,
        rows: RowSpool,
        tally: Tally,
        deferrals: Deferrals,
        *,
        packs: Packs | None = None,
        unknown: Counter[str] | None = None,
    ) -> None:
        self.accumulator = Accumulator()
        self.counted: list[RunFile] = []
        self.packed: set[str] = set()
        self.quarantined: list[RunFile] = []
        self._load = load
        self._quarantine = quarantine
        self._rows = rows
        self._tally = tally
        self._deferrals = deferrals
        self._packs = packs
        self._unknown = unknown
        self._arrived: list[_Arrived] = []
        self._arrived_bytes = 0
        self._done: dict[int, bytes | QuarantinedRow | None] = {}
        self._next = 0

    async def fetch(self, files: Sequence[RunFile], *, slots: Slots, until: float) -> None:
        """Fetch files until a time of the event loop; the others are added to ``tally.left``."""
        with anyio.CancelScope(deadline=until):
            async with task_group() as group:
                fetch_one = partial(self._fetch_one, files, slots, group)
                await slots.for_each(range(len(files)), fetch_one)
        self._tally.left += len(files) - self._next - len(self._done)
        if self.counted:
            self._deferrals.refusals.accept("get")
        await self._keep(len(files))

    async def _fetch_one(
        self, files: Sequence[RunFile], slots: Slots, group: TaskGroup, index: int
    ) -> None:
        file = files[index]
        try:
            loaded = await self._load(file)
        except InvalidRunFileError as error:
            await self._refuse((index, file, error.reason))
            return
        except StoreError as error:
            if self.counted:
                self._deferrals.refusals.accept("get")
            await self._deferrals.add(file, error, self._tally)
            await self._finish(index, None)
            return
        self._arrived.append((index, file, loaded))
        content, _ = loaded
        if isinstance(content, bytes):
            self._arrived_bytes += len(content)
        if self._arrived_bytes < _BATCH_BYTES:
            if len(self._arrived) > 1:
                return  # the first file of a turn counts the others, too
            await checkpoint()
        refused = self._count_arrived()
        if refused:
            # Each takes requests of its own, for which this task has no slot.
            group.start_soon(partial(slots.for_each, refused, self._refuse, urgent=True))
        await self._keep()

    def _count_arrived(self) -> list[_Refused]:
        """Parse and fold the files that have arrived; return those that can never be counted."""
        arrived, self._arrived = self._arrived, []
        self._arrived_bytes = 0
        refused: list[_Refused] = []
        top_cutoff = self.accumulator.top_cutoff
        for index, file, (content, data) in arrived:
            if isinstance(content, bytes):
                try:
                    result = parse(content, file, top_cutoff, self._unknown)
                except InvalidRunFileError as error:
                    refused.append((index, file, error.reason))
                    continue
            else:
                result = content
            self.accumulator.fold(file.key, file.size, result)
            self.counted.append(file)
            self._done[index] = self._row(file, result, data)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("counted", extra={"key": file.key, "size": file.size})
        return refused

    def _row(self, file: RunFile, result: RunResult, data: bytes | None) -> bytes:
        if self._packs is None:
            return counted_row(file, result)
        place = self._packs.add(file, data)
        if place is not None:
            self.packed.add(file.key)
        return counted_row(file, result, place)

    async def _refuse(self, refused: _Refused) -> None:
        """Copy a file to quarantine; it stays in the inbox if that fails."""
        # Copied before the commit, because the aggregate records the key in quarantine.
        index, file, reason = refused
        reason = reason[:_REASON_LIMIT]
        moved_to = await self._quarantine(file, reason)
        row = None
        if moved_to is not None:
            self.accumulator.quarantined += 1
            self.quarantined.append(file)
            fields = {"key": file.key, "reason": reason, "target": moved_to}
            _log.warning("quarantined", extra=fields)
            row = quarantined_row(file, reason, moved_to)
        await self._finish(index, row)

    async def _finish(self, index: int, row: QuarantinedRow | None) -> None:
        self._done[index] = row
        await self._keep()

    async def _keep(self, end: int = 0) -> None:
        """Write the rows before index ``end``, then later rows that follow without a gap.

        Downloads finish in any order; rows are kept in the order of the files.
        """
        done, rows = self._done, self._rows
        while self._next in done or self._next < end:
            row = done.pop(self._next, None)
            self._next += 1
            if row is not None and rows.add(row):
                await rows.flush()
