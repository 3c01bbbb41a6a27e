"""Fetch, parse and fold the run files of one window, concurrently and in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.rows import QuarantinedRow, RowSpool, counted_row, quarantined_row
from asyncagg.errors import InvalidRunFileError, StoreError
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.outcome import Tally
from asyncagg.job.slots import Slots
from asyncagg.model import Place, RunFile, RunResult

_log = logging.getLogger(__name__)
_REASON_LIMIT = 500

Quarantine = Callable[[RunFile, str], Awaitable[str | None]]
"""Copies a file to quarantine for a reason; returns its key there, or None if that failed."""


class Read(Protocol):
    """Reads a run file; matches that score below ``top_cutoff`` may be left out."""

    async def __call__(self, file: RunFile, *, top_cutoff: float) -> tuple[RunResult, bytes | None]:
        """Return the content of the file, and its bytes if they were read whole.

        Raises:
            InvalidRunFileError: It can never be counted.
            StoreError: It could not be fetched in the version that was listed.
        """
        ...


class Packs(Protocol):
    """Knows the packs that files are in; `asyncagg.job.packing.Packer` writes them."""

    def add(self, file: RunFile, data: bytes | None) -> Place | None:
        """Return the place of a file with these bytes; None if it is in no pack."""
        ...


class Fetcher:
    """Folds the files of one window and keeps their rows, in the order of the files.

    Attributes:
        accumulator: What was folded.
        counted: The files folded.
        packed: The keys of those that are in a pack.
        quarantined: The files that have a copy in quarantine now.

    Args:
        read: Reads a file.
        quarantine: Puts a copy of an invalid file into quarantine.
        rows: Where the rows go.
        tally: Where the outcome of the other files is added.
        deferrals: Decides what becomes of the files that could not be read.
        packs: Where counted files go; None if they become objects of the archive.
    """

    def __init__(
        self,
        read: Read,
        quarantine: Quarantine,
        rows: RowSpool,
        tally: Tally,
        deferrals: Deferrals,
        *,
        packs: Packs | None = None,
    ) -> None:
        self.accumulator = Accumulator()
        self.counted: list[RunFile] = []
        self.packed: set[str] = set()
        self.quarantined: list[RunFile] = []
        self._read = read
        self._quarantine = quarantine
        self._rows = rows
        self._tally = tally
        self._deferrals = deferrals
        self._packs = packs
        self._done: dict[int, bytes | QuarantinedRow | None] = {}
        self._next = 0

    async def fetch(self, files: Sequence[RunFile], *, slots: Slots, until: float) -> None:
        """Fetch files until a time of the event loop; the others are added to ``tally.left``."""
        finished = 0

        async def fetch_one(index: int) -> None:
            nonlocal finished
            row = await self._fetch_one(files[index])
            finished += 1  # from here on, a cancellation does not lose the row
            # Downloads finish in any order; rows are kept in the order of the files.
            self._done[index] = row
            if index == self._next:
                await self._keep(index + 1)

        with anyio.CancelScope(deadline=until):
            await slots.for_each(range(len(files)), fetch_one)
        self._tally.left += len(files) - finished
        if self.counted:
            self._deferrals.refusals.accept("get")
        await self._keep(len(files))

    async def _fetch_one(self, file: RunFile) -> bytes | QuarantinedRow | None:
        """Read a file and fold it; return its row, or None if it stays in the inbox."""
        try:
            result, data = await self._read(file, top_cutoff=self.accumulator.top_cutoff)
        except (InvalidRunFileError, StoreError) as error:
            return await self._handle(file, error)
        return self._fold(file, result, data)

    def _fold(self, file: RunFile, result: RunResult, data: bytes | None) -> bytes:
        self.accumulator.fold(file.key, file.size, result)
        self.counted.append(file)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("counted", extra={"key": file.key, "size": file.size})
        if self._packs is None:
            return counted_row(file, result)
        place = self._packs.add(file, data)
        if place is not None:
            self.packed.add(file.key)
        return counted_row(file, result, place)

    async def _handle(
        self, file: RunFile, error: InvalidRunFileError | StoreError
    ) -> QuarantinedRow | None:
        """Decide what becomes of a file that could not be read."""
        if isinstance(error, InvalidRunFileError):
            return await self._copy_to_quarantine(file, error.reason[:_REASON_LIMIT])
        if self.counted:
            self._deferrals.refusals.accept("get")
        await self._deferrals.add(file, error, self._tally)
        return None

    async def _copy_to_quarantine(self, file: RunFile, reason: str) -> QuarantinedRow | None:
        # Copied before the commit, because the aggregate records the key in quarantine.
        moved_to = await self._quarantine(file, reason)
        if moved_to is None:
            return None
        self.accumulator.quarantined += 1
        self.quarantined.append(file)
        _log.warning("quarantined", extra={"key": file.key, "reason": reason, "target": moved_to})
        return quarantined_row(file, reason, moved_to)

    async def _keep(self, end: int) -> None:
        """Write the rows before index ``end``, then later rows that follow without a gap."""
        done, rows = self._done, self._rows
        while self._next in done or self._next < end:
            row = done.pop(self._next, None)
            self._next += 1
            if row is not None and rows.add(row):
                await rows.flush()
