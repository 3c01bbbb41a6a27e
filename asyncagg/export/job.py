"""The export: bring the files of an interval up to date with its aggregates.

The runs of a window are a file of their own: a window that changes is written again, and no other.
The other tables have a few rows per window, so a file has a whole day of them.

A file's metadata names the etags of the aggregates that it was made from, as a digest. As long as
it is that of the aggregates in the store, the file is up to date and nothing is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from asyncagg.aggregate.reader import read_head
from asyncagg.aggregate.spool import Spool
from asyncagg.errors import AggregateError, NotFoundError, StoreError
from asyncagg.export.rows import ExportTable, head_lines, run_lines
from asyncagg.export.writing import ExportFormat, encoder
from asyncagg.job.aggregates import load_aggregate, retry_commit
from asyncagg.job.context import JobContext
from asyncagg.job.listing import list_aggregates
from asyncagg.job.refusals import Refusals
from asyncagg.model import Interval, RunFile, Window
from asyncagg.runtime.tasks import for_each, map_each
from asyncagg.settings import Settings
from asyncagg.store import Absent, Matches, ObjectInfo, Store
from asyncagg.windows import check_interval

_VERSION = 1
"""Raised when the columns change: all files are written again."""

_DIGEST = "asyncagg-aggregates"
"""The metadata of a file that says which aggregates it was made from."""

_AT_ONCE = 4
"""Files that are made at a time: more would take memory, and the processor is busy already."""


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written: its key in the target, its rows, and how many aggregates."""

    key: str
    rows: int
    aggregates: int


@dataclass(slots=True)
class ExportReport:
    """What an export did.

    Attributes:
        rows: How many rows were written.
        written: The files that were new or had changed, sorted by key.
        unchanged: How many files were up to date.
        failures: The aggregates that could not be read and the files that could not be written,
            by key, and why.
    """

    rows: int = 0
    written: list[Written] = field(default_factory=list)
    unchanged: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if all is up to date, 3 if an aggregate or a file could not be read or written."""
        return 3 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


async def export(
    store: Store,
    settings: Settings,
    target: Store,
    *,
    tables: Collection[ExportTable] = tuple(ExportTable),
    file_format: ExportFormat = ExportFormat.PARQUET,
    since: datetime | None = None,
    until: datetime | None = None,
    progress: Callable[[ExportReport], object] | None = None,
) -> ExportReport:
    """Write the aggregates of an interval to a store as tables, or bring those up to date.

    The store with the aggregates is only read, and runs may be at work in it.

    Args:
        store: Where the aggregates are.
        settings: The prefixes, the window and the bounds.
        target: Where the files are written.
        tables: Which tables.
        file_format: The format of the files. Parquet needs pyarrow.
        since: Only windows that start then or later; of `matches` and `windows` whole days.
        until: Only windows that end by then; of `matches` and `windows` whole days.
        progress: Called after each file.

    Raises:
        UsageError: The interval ends before it starts.
        ConfigurationError: pyarrow is needed and not installed.
        StoreError: A listing failed, or a store refuses to read or to write every object.
    """
    interval = check_interval(since, until)
    job = _Job(JobContext(store, settings), target, file_format, progress)
    async for day in job.days(interval):
        parts = [part for table in tables for part in job.parts(table, day, interval)]
        await for_each(parts, job.update, workers=_AT_ONCE)
    job.refusals.check()
    job.report.written.sort(key=lambda each: each.key)
    return job.report


class _Part(NamedTuple):
    """A file of an export: its key, its table, and the aggregates that it is made from."""

    key: str
    table: ExportTable
    aggregates: Mapping[Window, RunFile]


class _Job:
    def __init__(
        self,
        context: JobContext,
        target: Store,
        file_format: ExportFormat,
        progress: Callable[[ExportReport], object] | None,
    ) -> None:
        self.report = ExportReport()
        self.refusals = Refusals(most=math.inf)
        self._context = context
        self._target = target
        self._format = file_format
        self._encode = encoder(file_format)
        self._progress = progress

    async def days(self, interval: Interval) -> AsyncIterator[dict[Window, RunFile]]:
        """Yield the aggregates of each whole day that overlaps an interval."""
        day: dict[Window, RunFile] = {}
        pages = list_aggregates(self._context.store, self._context.settings, _whole_days(interval))
        async for page in pages:
            for window, file in page.items():
                if day and next(iter(day)).start.date() != window.start.date():
                    yield day
                    day = {}
                day[window] = file
        if day:
            yield day

    def parts(
        self, table: ExportTable, day: Mapping[Window, RunFile], interval: Interval
    ) -> list[_Part]:
        """Return the files of a table for the aggregates of a day."""
        date = next(iter(day)).start.date()
        folder = f"{table}/date={date.isoformat()}"
        if table is not ExportTable.RUNS:
            return [_Part(f"{folder}/{date.isoformat()}.{self._format}", table, day)]
        return [
            _Part(f"{folder}/{window.name}.{self._format}", table, {window: file})
            for window, file in day.items()
            if interval.holds(window)
        ]

    async def update(self, part: _Part) -> None:
        """Bring one file up to date."""
        try:
            await retry_commit(partial(self._update, part))
        except StoreError as error:
            self._note(part.key, error)
        if self._progress is not None:
            self._progress(self.report)

    async def _update(self, part: _Part) -> None:
        found = await self._find(part.key)
        recorded = found.metadata.get(_DIGEST) if found else None
        if recorded == _digest({file.key: file.etag for file in part.aggregates.values()}):
            self.report.unchanged += 1
            return
        async with self._context.open_spool() as spool:
            etags, rows = await self._read(part, spool)
            if recorded == _digest(etags):
                self.report.unchanged += 1
            elif etags:  # else the file stays as it is
                await self._target.put(
                    part.key,
                    self._encode(part.table, spool.lines(), etags),
                    condition=Matches(found.file.etag) if found else Absent(),
                    content_type=self._format.content_type,
                    metadata={_DIGEST: _digest(etags)},
                )
                self.refusals.accept("put")
                self.report.rows += rows
                self.report.written.append(Written(part.key, rows, len(etags)))

    async def _find(self, key: str) -> ObjectInfo | None:
        try:
            found = await self._target.head(key)
        except NotFoundError:
            found = None
        self.refusals.accept("head")
        return found

    async def _read(self, part: _Part, spool: Spool) -> tuple[dict[str, str], int]:
        """Append the rows of a file to a spool; return the etags of what was read, and how many."""
        etags: dict[str, str] = {}
        rows = 0
        at_once = self._context.settings.concurrency
        aggregates = iter(part.aggregates.items())
        while batch := list(islice(aggregates, at_once)):
            read = partial(self._read_one, part.table, spool)
            for result in await map_each(batch, read, workers=at_once):
                if result is not None:
                    etags[result.key] = result.etag
                    rows += result.rows
                    await spool.append(result.lines)
        return etags, rows

    async def _read_one(
        self, table: ExportTable, spool: Spool, aggregate: tuple[Window, RunFile]
    ) -> _Read | None:
        """Read an aggregate; return None if it is gone, or if it cannot be read."""
        window, file = aggregate
        try:
            if table is ExportTable.RUNS:
                read = await retry_commit(partial(self._read_runs, window, spool))
            else:
                read = await retry_commit(partial(self._read_head, table, window, file.key))
        except NotFoundError:
            return None
        except (AggregateError, StoreError) as error:
            self._note(file.key, error)
            return None
        self.refusals.accept("get")
        return read

    async def _read_runs(self, window: Window, spool: Spool) -> _Read | None:
        """Append the rows of an aggregate to a spool: they may be too many for the memory."""
        async with self._context.open_spool() as document:
            stored = await load_aggregate(self._context, window, document)
            if stored is None:
                return None
            async for lines in run_lines(window, stored):
                await spool.append(b"".join([line + b"\n" for line in lines]))
            return _Read(stored.key, stored.etag, stored.accumulator.counted)

    async def _read_head(self, table: ExportTable, window: Window, key: str) -> _Read:
        async with self._context.store.stream(key) as body:
            head = await read_head(key, window, body.chunks)
            lines = head_lines(table, window, key, body.etag, head)
            return _Read(key, body.etag, len(lines), b"".join([line + b"\n" for line in lines]))

    def _note(self, key: str, error: AggregateError | StoreError) -> None:
        self.report.failures[key] = str(error)
        if isinstance(error, StoreError):
            self.refusals.add(error)


class _Read(NamedTuple):
    """What was read of an aggregate; the lines are empty if they are in a spool."""

    key: str
    etag: str
    rows: int
    lines: bytes = b""


def _whole_days(interval: Interval) -> Interval:
    """Return the interval of whole days around one."""
    since = datetime.combine(interval.since, time(), UTC)
    until = datetime.combine(interval.until - datetime.resolution, time.max, UTC)
    with suppress(OverflowError):
        until += datetime.resolution
    return Interval(since, until)


def _digest(etags: Mapping[str, str]) -> str:
    """Return a digest of aggregates, by their keys and etags."""
    text = json.dumps([_VERSION, sorted(etags.items())])
    return hashlib.sha256(text.encode()).hexdigest()
