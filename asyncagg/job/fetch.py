"""Fetch, parse and fold the run files of one window, concurrently and in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.rows import QuarantinedRow, RowSpool, counted_row, quarantined_row
from asyncagg.errors import (
    ConfigurationError,
    InvalidRunFileError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
)
from asyncagg.job.archive import Mover
from asyncagg.job.layout import Layout
from asyncagg.job.outcome import Tally
from asyncagg.job.reader import Reader
from asyncagg.model import RunFile, RunResult
from asyncagg.runtime.tasks import for_each

__all__ = ("MODIFIED", "REASON", "Fetcher")

REASON = "asyncagg-reason"
"""The metadata of a quarantined object that says why it was refused."""

MODIFIED = "asyncagg-last-modified"
"""The metadata of a quarantined object that says when its run file came, which tells its window."""

_log = logging.getLogger(__name__)
_REASON_LIMIT = 500


class Fetcher:
    """Folds the files of one window and keeps their rows, in the order of the files.

    Attributes:
        accumulator: What was folded.
        counted: The files folded.
        refused: The files that now stand in quarantine as well as in the inbox.

    Args:
        reader: Reads a file.
        mover: Puts a refused file into quarantine.
        layout: Says where that is.
        rows: Where the rows go.
        tally: Where the outcome is added.
    """

    def __init__(
        self, reader: Reader, mover: Mover, layout: Layout, rows: RowSpool, tally: Tally
    ) -> None:
        self.accumulator = Accumulator()
        self.counted: list[RunFile] = []
        self.refused: list[RunFile] = []
        self._reader = reader
        self._mover = mover
        self._layout = layout
        self._rows = rows
        self._tally = tally
        self._done: dict[int, bytes | QuarantinedRow | None] = {}
        self._next = 0

    async def fetch(self, files: Sequence[RunFile], *, workers: int, until: float) -> None:
        """Fetch the files until a moment of the event loop's clock; the rest is left."""
        finished = 0

        async def one(item: tuple[int, RunFile]) -> None:
            nonlocal finished
            index, file = item
            row: bytes | QuarantinedRow | None
            try:
                result = await self._reader.read(file, top_cutoff=self.accumulator.top_cutoff)
            except (InvalidRunFileError, StoreError) as error:
                row = await self._unread(file, error)
            else:
                row = self._fold(file, result)
            finished += 1  # whatever cancels from here on, the row is kept
            # Downloads finish in any order, rows are kept in that of the files.
            self._done[index] = row
            if index == self._next:
                await self._keep(index + 1)

        with anyio.CancelScope(deadline=until):
            await for_each(enumerate(files), one, workers=workers)
        self._tally.left += len(files) - finished
        await self._keep(len(files))

    def _fold(self, file: RunFile, result: RunResult) -> bytes:
        self.accumulator.fold(file.key, file.size, result)
        self.counted.append(file)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("counted", extra={"key": file.key, "size": file.size})
        return counted_row(file, result)

    async def _unread(
        self, file: RunFile, error: InvalidRunFileError | StoreError
    ) -> QuarantinedRow | None:
        match error:
            case InvalidRunFileError():
                return await self._refuse(file, error.reason[:_REASON_LIMIT])
            case NotFoundError():
                self._tally.gone += 1
            case PreconditionFailedError():
                self._tally.changed += 1
            case ConfigurationError():
                raise error
            case _:
                self._tally.deferred += 1
                _log.warning("deferred", extra={"key": file.key, "reason": str(error)})
        return None

    async def _refuse(self, file: RunFile, reason: str) -> QuarantinedRow | None:
        told = reason.encode("ascii", "backslashreplace").decode("ascii")
        metadata = {REASON: " ".join(told.split()), MODIFIED: file.last_modified.isoformat()}
        target = self._layout.quarantine_key(file.key)
        # Before the commit, so that the aggregate can say where it stands.
        moved_to = await self._mover.ensure_copied(file, target, metadata)
        if moved_to is None:
            return None
        self.accumulator.quarantined += 1
        self.refused.append(file)
        _log.warning("quarantined", extra={"key": file.key, "reason": reason, "target": moved_to})
        return quarantined_row(file, reason, moved_to)

    async def _keep(self, end: int) -> None:
        """Keep the rows up to ``end``, and those behind it that are done already."""
        done, rows = self._done, self._rows
        while self._next in done or self._next < end:
            row = done.pop(self._next, None)
            self._next += 1
            if row is not None and rows.add(row):
                await rows.flush()
