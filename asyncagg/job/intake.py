"""List the inbox one page ahead, and sort its run files into chunks of windows."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from time import perf_counter

import anyio

from asyncagg.aggregate.spool import Spool
from asyncagg.job.chunk import WindowBatch
from asyncagg.job.context import JobContext
from asyncagg.job.journal import Journal
from asyncagg.job.layout import KeyKind
from asyncagg.job.listing import KeyRange, find_disorder, list_range
from asyncagg.job.outcome import RunReport
from asyncagg.model import RunFile, Window

_log = logging.getLogger(__name__)

CHUNK_GROWTH = 3
"""A chunk with a single window may grow to a third of what this run has committed of it."""

MAX_CHUNK_GROWTH = 10
"""A chunk has at most ten times ``chunk_files``."""

Chunk = dict[Window, WindowBatch]


class Intake:
    """The run files of the inbox, chunk by chunk.

    Args:
        context: Where they are.
        report: The report of the run.
        at: Windows that ended by this moment are taken.
        journal: Says which files are not to be settled with the others.
        only: Which windows to take; default: all.
        committed: Returns how many files of a window are committed by now.
        keys: The ranges of the inbox to list.

    Attributes:
        in_order: Whether the listing was in key order so far, without repeated keys.
    """

    def __init__(
        self,
        context: JobContext,
        report: RunReport,
        at: datetime,
        journal: Journal,
        *,
        only: Callable[[Window], bool] | None,
        committed: Callable[[Window], int],
        keys: Sequence[KeyRange],
    ) -> None:
        self.in_order = True
        self._context = context
        self._layout = context.layout
        self._window_of = context.window_of
        self._chunk_files = context.settings.chunk_files
        self._report = report
        self._at = at
        self._journal = journal
        self._only = only
        self._committed = committed
        self._keys = keys
        self._oldest = datetime.max.replace(tzinfo=UTC)
        self._last_key = ""
        self._send, self._pages = anyio.create_memory_object_stream[Sequence[RunFile]](1)
        self._next: Chunk = {}
        self._latest: Window | None = None
        self._held: list[Sequence[RunFile]] = []

    async def list_pages(self) -> None:
        """Send the listing page by page, to `fill`."""
        async with self._send as pages:
            before = perf_counter()
            async for page in self._list():
                self._report.seconds["list"] += perf_counter() - before
                try:
                    await pages.send(page)
                except anyio.BrokenResourceError:
                    return  # the receiver was cancelled first
                before = perf_counter()
            self._report.listed = True
            has_all = tuple(self._keys) == (KeyRange(),)
            self._journal.may_forget = has_all and not self._report.dry_run

    async def _list(self) -> AsyncIterator[Sequence[RunFile]]:
        prefix = self._context.settings.runs_prefix
        for keys in self._keys:
            async for page in list_range(self._context.store, prefix, keys):
                yield page

    async def fill(self, chunk: Chunk, stack: AsyncExitStack) -> bool:
        """Fill a chunk from the listing; return whether there may be another.

        Args:
            chunk: An empty chunk.
            stack: What the chunk needs open until it is settled.
        """
        spool: Spool | None = None
        chunk.update(self._next)
        self._next = {}
        for page in self._held:
            self._add(page, chunk)
        self._held.clear()
        async for page in self._pages:
            self._check_order(page)
            if spool is not None and not self.in_order:
                self._held.append(page)  # only files in memory can be sorted
                return True
            self._add(page, chunk)
            size = count_files(chunk)
            if size >= self._chunk_size(chunk):
                return True
            if len(chunk) > 1 and self._context.slots.are_free:
                self._keep_latest(chunk)
                return True
            if size < self._chunk_files:
                continue
            if spool is None:
                spool = await stack.enter_async_context(self._context.open_spool())
            for batch in chunk.values():  # only one: see `_chunk_size`
                await batch.move_to(spool)
        return False

    async def count_rest(self) -> None:
        """Count the files that are too late for this run, in the time that is left."""
        async for page in self._pages:
            self._report.untaken += self._add(page, {})

    def __enter__(self) -> None:
        """Use the listing."""

    def __exit__(self, *_: object) -> None:
        """Count what was listed and not taken, and end the listing."""
        with suppress(anyio.EndOfStream, anyio.WouldBlock):
            while True:
                self._held.append(self._pages.receive_nowait())
        self._pages.close()
        self._report.untaken += count_files(self._next)
        self._report.untaken += sum(self._add(page, {}) for page in self._held)

    def _keep_latest(self, chunk: Chunk) -> None:
        """Keep the window that was listed last for the next chunk: the next page may have more."""
        if self._latest in chunk:
            self._next = {self._latest: chunk.pop(self._latest)}

    def _check_order(self, page: Sequence[RunFile]) -> None:
        if self.in_order and find_disorder(self._last_key, page):
            self.in_order = False
            _log.warning("listing out of order", extra={"after": self._last_key})
        if page:
            self._last_key = page[-1].key

    def _add(self, page: Sequence[RunFile], chunk: Chunk) -> int:
        """Add the run files of a page to a chunk; return how many are to be settled."""
        planned = 0
        held: list[RunFile] = []
        held_window: Window | None = None
        watched = self._journal.watched  # usually empty
        self._journal.note_listed(page)
        for file in page:
            kind = self._layout.kind(file.key)
            if kind is not KeyKind.RUN_FILE:
                if kind is KeyKind.IGNORED:
                    self._report.ignore(file.key)
                continue
            window = self._window_of(file)
            if window.end > self._at:
                self._report.waiting += 1
            elif self._only is None or self._only(window):
                if file.last_modified < self._oldest:
                    self._note_age(file)
                if watched and (file.key, file.etag) in watched:
                    self._journal.hold_back(file)
                    continue
                if window is not held_window:  # usually the same as for the previous file
                    if window not in chunk:
                        chunk[window] = WindowBatch(self._chunk_files)
                    self._latest = held_window = window
                    held = chunk[window].held
                held.append(file)
                planned += 1
        return planned

    def _chunk_size(self, chunk: Chunk) -> int:
        """Return how many files fill a chunk.

        Each commit writes the whole aggregate of its window again. So the chunks of a large window
        grow with what this run has committed of it, which keeps the cost per file constant.
        """
        if self._journal.is_careful:
            return 1
        if len(chunk) > 1 or not self.in_order:
            return self._chunk_files
        grown = sum(map(self._committed, chunk)) // CHUNK_GROWTH
        return min(max(self._chunk_files, grown), MAX_CHUNK_GROWTH * self._chunk_files)

    def _note_age(self, file: RunFile) -> None:
        self._oldest = file.last_modified
        age = (self._at - file.last_modified).total_seconds()
        self._report.oldest_seconds = max(self._report.oldest_seconds, age)


def count_files(chunk: Chunk) -> int:
    """Return how many files a chunk has."""
    return sum(map(len, chunk.values()))
