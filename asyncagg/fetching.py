"""Fetch, parse and fold the run files of one window, concurrently and in bounded memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import anyio

from asyncagg.accumulator import Accumulator
from asyncagg.archive import Mover
from asyncagg.errors import (
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    RefusedError,
    StoreError,
)
from asyncagg.layout import Layout
from asyncagg.limits import ByteLimiter, for_each
from asyncagg.model import RunFile, RunResult
from asyncagg.outcome import Tally
from asyncagg.parsing import inflate, is_gzipped, parse
from asyncagg.rows import Quarantined, RowSpool, counted_row, quarantined_row
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.streaming import parse_stream

__all__ = ("MODIFIED", "REASON", "Fetcher", "Reader")

REASON = "asyncagg-reason"
"""The metadata of a quarantined object that says why it was refused."""

MODIFIED = "asyncagg-last-modified"
"""The metadata of a quarantined object that says when its run file came, which tells its window."""

_log = logging.getLogger(__name__)
_REASON_LIMIT = 500


class Reader:
    """Reads one run file, whichever way its size and encoding ask for.

    Args:
        store: Where it is.
        settings: The bounds.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._stream_bytes = settings.stream_bytes
        self._max_bytes = settings.max_file_bytes
        self._limiter = ByteLimiter(settings.max_inflight_bytes)

    async def read(self, file: RunFile, *, at: str = "", least: float = -math.inf) -> RunResult:
        """Return what a run file says.

        Args:
            file: Its reference.
            at: The key where it stands now, if not its own.
            least: Matches with a lower score may be left out.

        Raises:
            RefusedError: It can never be counted.
            StoreError: It could not be fetched in the version that was listed.
        """
        if file.size > self._max_bytes:
            raise RefusedError(f"too large: {file.size} bytes, expected at most {self._max_bytes}")
        if file.size > self._stream_bytes:
            return await self._read_stream(file, at)
        if not self._limiter.take(file.size):
            await self._limiter.turn(file.size)
        try:
            body = await self._store.get(at or file.key, if_match=file.etag)
            if not is_gzipped(file.key, body.content_encoding):
                return parse(body.data, file, least)
            unzipped = self._unzip(body.data)
            if unzipped is not None:
                return parse(unzipped, file, least)
        finally:
            self._limiter.release(file.size)
        return await self._read_stream(file, at)

    def _unzip(self, data: bytes) -> bytes | None:
        """Return the unzipped content, or None where it is too much to hold."""
        blocks = []
        size = 0
        for block in inflate(data, self._max_bytes):
            size += len(block)
            if size > self._stream_bytes:
                return None
            blocks.append(block)
        return b"".join(blocks)

    async def _read_stream(self, file: RunFile, at: str) -> RunResult:
        async with (
            self._limiter.hold(self._stream_bytes),
            self._store.stream(at or file.key, if_match=file.etag) as body,
        ):
            gzipped = is_gzipped(file.key, body.content_encoding)
            return await parse_stream(body.chunks, file, gzipped=gzipped, max_bytes=self._max_bytes)


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
        self._done: dict[int, bytes | Quarantined | None] = {}
        self._next = 0

    async def fetch(self, files: Sequence[RunFile], *, workers: int, until: float) -> None:
        """Fetch the files until a moment of the event loop's clock; the rest is left."""
        finished = 0

        async def one(item: tuple[int, RunFile]) -> None:
            nonlocal finished
            index, file = item
            row: bytes | Quarantined | None
            try:
                result = await self._reader.read(file, least=self.accumulator.least)
            except (RefusedError, StoreError) as error:
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

    async def _unread(self, file: RunFile, error: RefusedError | StoreError) -> Quarantined | None:
        match error:
            case RefusedError():
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

    async def _refuse(self, file: RunFile, reason: str) -> Quarantined | None:
        told = reason.encode("ascii", "backslashreplace").decode("ascii")
        metadata = {REASON: " ".join(told.split()), MODIFIED: file.last_modified.isoformat()}
        target = self._layout.quarantine_key(file.key)
        # Before the commit, so that the aggregate can say where it stands.
        moved_to = await self._mover.place(file, target, metadata)
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
