"""The rollup job: bring the rollups of a period up to date.

An hour is merged from its windows, a day from its hours, a month from its days. A rollup keeps the
totals and the etag of each input, so only changed inputs are read again. It has no row per file, so
its size is bounded.

An input that is gone is left out of its rollup. If all are gone, the rollup stays as it is. To keep
complete rollups while aggregates expire, leave out the old periods with ``since``.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from asyncagg.aggregate.reader import read_head
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, StoreError
from asyncagg.job.aggregates import retry_commit
from asyncagg.job.context import JobContext
from asyncagg.job.refusals import Refusals
from asyncagg.model import RunFile
from asyncagg.rollup.document import build, dump, load, to_input
from asyncagg.rollup.periods import Period, Span, levels, moment_of, name_of
from asyncagg.runtime.clock import utc_now
from asyncagg.runtime.tasks import for_each, map_each
from asyncagg.settings import Settings
from asyncagg.store import Absent, Matches, Store
from asyncagg.windows import check_interval

_ROLLUPS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class RolledUp:
    """One rollup that was written; ``read`` of its ``inputs`` had changed and were read."""

    key: str
    revision: int
    inputs: int
    read: int
    counted: int


@dataclass(slots=True)
class RollupReport:
    """What a rollup job did.

    Attributes:
        written: The rollups that were new or had changed, sorted by key.
        unchanged: How many had not changed.
        failures: The aggregates that could not be read and the rollups that could not be written,
            by key, and why.
    """

    written: list[RolledUp] = field(default_factory=list)
    unchanged: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if all are up to date, 3 if an aggregate or a rollup could not be read or written."""
        return 3 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


async def rollup(
    store: Store,
    settings: Settings,
    period: Period,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    now: Callable[[], datetime] = utc_now,
    progress: Callable[[RollupReport], object] | None = None,
) -> RollupReport:
    """Bring the rollups of a period up to date, and those that they are merged from.

    Args:
        store: Where the aggregates are.
        settings: The prefixes and the window.
        period: The period; days are merged from hours, months from days.
        since: Leave out periods that end by then.
        until: Leave out periods that start then or later.
        now: The clock of ``aggregation_timestamp``.
        progress: Called after each rollup.

    Raises:
        UsageError: Windows do not fit into the period, or the interval is empty.
        StoreError: A listing failed, or the store refuses to read or to write every object.
    """
    check_interval(since, until)
    job = _Job(JobContext(store, settings, now=now), progress)
    first = None if since is None else Span.around(since, period).start
    last = None if until is None else Span.around(until - datetime.resolution, period).end
    for source, target in levels(period, settings.window_minutes):
        await job.roll_up_all(source, target, first, last)
    job.refusals.check()
    job.report.written.sort(key=lambda each: each.key)
    return job.report


class _Job:
    def __init__(
        self, context: JobContext, progress: Callable[[RollupReport], object] | None
    ) -> None:
        self.report = RollupReport()
        self.refusals = Refusals(most=math.inf)
        self._context = context
        self._store = context.store
        self._layout = context.layout
        self._progress = progress

    async def roll_up_all(
        self, source: Period | None, target: Period, first: datetime | None, last: datetime | None
    ) -> None:
        """Merge aggregates, or the rollups of a period, into the rollups of a longer one."""
        spans: dict[Span, list[RunFile]] = {}
        async for moment, file in self._inputs(source, first, last):
            spans.setdefault(Span.around(moment, target), []).append(file)

        async def one(item: tuple[Span, list[RunFile]]) -> None:
            await self._roll_up(*item, source)
            if self._progress is not None:
                self._progress(self.report)

        await for_each(spans.items(), one, workers=_ROLLUPS_AT_ONCE)

    async def _inputs(
        self, source: Period | None, first: datetime | None, last: datetime | None
    ) -> AsyncIterator[tuple[datetime, RunFile]]:
        """Yield the aggregates, or the rollups of a period, with their start, in order."""
        prefix = self._prefix(source)
        after = "" if first is None else f"{prefix}{name_of(first, source)}"
        async for page in self._store.list_pages(prefix, start_after=after):
            for file in page:
                start = self._start_of(file.key, source)
                if start is None or (first is not None and start < first):
                    continue
                if last is not None and start >= last:
                    return
                yield start, file

    def _start_of(self, key: str, source: Period | None) -> datetime | None:
        """Return the start of what an input covers, or None if the key is not that of an input."""
        if source is None:
            window = self._layout.aggregate_window(key)
            return window.start if window else None
        prefix = self._prefix(source)
        if not (key.startswith(prefix) and key.endswith(".json")):
            return None
        return moment_of(key[len(prefix) : -len(".json")], source)

    def _prefix(self, source: Period | None) -> str:
        layout = self._layout
        return f"{layout.rollup_prefix}{source.value}/" if source else layout.aggregate_prefix

    def _key(self, span: Span) -> str:
        return f"{self._prefix(span.period)}{span.name}.json"

    async def _roll_up(self, span: Span, files: list[RunFile], source: Period | None) -> None:
        """Bring one rollup up to date with the inputs that were listed."""
        key = self._key(span)

        async def attempt() -> None:
            try:
                await self._commit(key, span, files)
            except PreconditionFailedError:
                # The other job may have listed an input that did not exist before.
                files[:] = [file async for _, file in self._inputs(source, span.start, span.end)]
                raise

        try:
            await retry_commit(attempt)
        except (AggregateError, StoreError) as error:
            self._note_failure(key, error)

    def _note_failure(self, key: str, error: AggregateError | StoreError) -> None:
        self.report.failures[key] = str(error)
        if isinstance(error, StoreError):
            self.refusals.add(error)

    async def _commit(self, key: str, span: Span, files: Sequence[RunFile]) -> None:
        old: dict[str, Any] = {}
        etag = None
        with suppress(NotFoundError):
            body = await self._store.get(key)
            old, etag = load(key, body.data, span), body.etag
        known = {(each["key"], each["etag"]): each for each in old.get("inputs", ())}
        if [*known] == [(file.key, file.etag) for file in files]:
            self.report.unchanged += 1
            return
        changed = [file for file in files if (file.key, file.etag) not in known]
        workers = max(1, self._context.settings.concurrency // _ROLLUPS_AT_ONCE)
        before = {each["key"]: each for each in old.get("inputs", ())}
        read = await map_each(
            changed, lambda file: self._read_or_keep(file, before), workers=workers
        )
        by_key = {each["key"]: each for each in read if each is not None}
        found = [by_key.get(file.key) or known.get((file.key, file.etag)) for file in files]
        inputs = [each for each in found if each is not None]
        if inputs == old.get("inputs", []):
            return  # what has changed could not be read
        revision = 1 + old.get("revision", 0)
        document = build(span, revision, self._context.now(), inputs)
        condition = Absent() if etag is None else Matches(etag)
        await self._store.put(key, dump(document), condition=condition)
        self.refusals.accept("put")
        counted = document["files"]["counted"]
        self.report.written.append(RolledUp(key, revision, len(inputs), len(changed), counted))

    async def _read_or_keep(
        self, file: RunFile, before: dict[str, dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Read an input; if that fails, return what the rollup has of it, if anything."""
        try:
            read = await self._read(file)
        except (AggregateError, StoreError) as error:
            self._note_failure(file.key, error)
            return before.get(file.key)
        self.refusals.accept("get")
        return read

    async def _read(self, file: RunFile) -> dict[str, Any] | None:
        """Read an input; return None if it is gone meanwhile."""
        key = file.key
        window = self._layout.aggregate_window(key)
        with suppress(NotFoundError):
            if window is None:
                body = await self._store.get(key)
                return to_input(key, body.etag, load(key, body.data))
            async with self._store.stream(key) as stream:
                head = await read_head(key, window, stream.chunks)
                return to_input(key, stream.etag, head)
        return None
