"""Rollups: the aggregates of an hour, a day or a month, merged into one document.

An hour is merged from its windows, a day from its hours, a month from its days, always by the same
accumulator: sums are exact, the top 10 is that of all the files, quantiles are those of one sketch
over all the runs. A rollup keeps what each of its inputs said, under the input's etag, so that
only inputs that have changed are read again. It has no row per file: its size is bounded.

An input that is gone is left out of its rollup; where all of them are gone, the rollup stays as it
is: it is what is left of them. Who lets aggregates expire and wants to keep whole periods leaves
the old ones alone with ``since``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import accumulator_of, top_matches, totals
from asyncagg.aggregate.reading import read_head
from asyncagg.errors import AggregateError, NotFoundError, PreconditionFailedError, UsageError
from asyncagg.job.layout import Layout
from asyncagg.job.settle import MAX_COMMIT_ATTEMPTS
from asyncagg.model import RunFile
from asyncagg.runtime.tasks import for_each
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import check_interval

__all__ = ("SCHEMA_VERSION", "Period", "RolledUp", "RollupReport", "Span", "rollup", "schema")

SCHEMA_VERSION = 1

_AT_ONCE = 4
"""Spans merged side by side."""

_HEAD = (
    "total_opportunities",
    "total_matches",
    "total_no_matches",
    "total_errors",
    "processing_time_seconds",
    "processing_time",
    "files",
    "top_matches",
)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a rollup."""
    text = resources.files("asyncagg.rollup").joinpath("rollup.schema.json").read_text("utf-8")
    return dict(json.loads(text))


class Period(StrEnum):
    """What a rollup covers, in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


_NAMES = {Period.HOUR: "%Y%m%dt%H", Period.DAY: "%Y%m%d", Period.MONTH: "%Y%m"}


class Span(NamedTuple):
    """One hour, day or month.

    Attributes:
        start: Its first moment, in UTC.
        period: Which of the three it is.
    """

    start: datetime
    period: Period

    @classmethod
    def around(cls, moment: datetime, period: Period) -> Span:
        """Return the one that holds a moment."""
        start = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if period is not Period.HOUR:
            start = start.replace(hour=0, day=start.day if period is Period.DAY else 1)
        return cls(start, period)

    @property
    def end(self) -> datetime:
        """The first moment after it."""
        if self.period is Period.MONTH:
            return (self.start + timedelta(days=31)).replace(day=1)
        return self.start + timedelta(hours=1 if self.period is Period.HOUR else 24)

    @property
    def name(self) -> str:
        """Its name: ``20251021t13``, ``20251021`` or ``202510``."""
        return f"{self.start:{_NAMES[self.period]}}"

    def member(self) -> dict[str, str]:
        """Return what a rollup says of it."""
        times = {"start": self.start.isoformat(), "end": self.end.isoformat()}
        return {"kind": self.period.value, "name": self.name, **times}


@dataclass(frozen=True, slots=True)
class RolledUp:
    """One rollup that was written.

    Attributes:
        key: Where it stands.
        revision: How often it was written.
        inputs: How many documents are merged in it.
        read: How many of them were read; the others had not changed.
        counted: Files counted in it.
    """

    key: str
    revision: int
    inputs: int
    read: int
    counted: int


@dataclass(slots=True)
class RollupReport:
    """What was done.

    Attributes:
        written: The rollups that were new or had changed, in the order of time.
        unchanged: How many had not.
        failures: The rollups left alone, by key, and why.
    """

    written: list[RolledUp] = field(default_factory=list)
    unchanged: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 done, 1 a rollup failed."""
        return 1 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"exit_code": self.exit_code}


def _now() -> datetime:
    return datetime.now(UTC)


async def rollup(
    store: Store,
    settings: Settings,
    period: Period,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    now: Callable[[], datetime] = _now,
    progress: Callable[[RollupReport], object] | None = None,
) -> RollupReport:
    """Bring the rollups of a period up to date, and those that they are merged from.

    Args:
        store: Where the aggregates are.
        settings: The prefixes and the window.
        period: The period; days are merged from hours, months from days.
        since: Leave alone what ends by then.
        until: Leave alone what starts from then on.
        now: The clock of ``aggregation_timestamp``.
        progress: Called after each rollup.

    Raises:
        UsageError: A window does not fit into the period, or nothing into the interval.
    """
    check_interval(since, until)
    job = _Job(store, settings, now)
    levels = _levels(period, settings.window_minutes)
    first = None if since is None else Span.around(since, period).start
    last = None if until is None else Span.around(until - timedelta.resolution, period).end
    for source, level in levels:
        spans: dict[Span, list[RunFile]] = {}
        async for moment, file in job.inputs(source, first):
            if last is not None and moment >= last:
                break
            spans.setdefault(Span.around(moment, level), []).append(file)

        async def one(item: tuple[Span, list[RunFile]], *, source: Period | None = source) -> None:
            await job.roll_up(*item, source)
            if progress is not None:
                progress(job.report)

        await for_each(spans.items(), one, workers=_AT_ONCE)
    job.report.written.sort(key=lambda each: each.key)
    return job.report


def _levels(period: Period, minutes: int) -> list[tuple[Period | None, Period]]:
    """Return what is merged from what, in order; None are the aggregates."""
    fits = 60 % minutes == 0
    if period is Period.HOUR and not fits:
        raise UsageError(
            f"period 'hour' with window_minutes {minutes}: expected a window that divides an hour, "
            "or the period 'day'",
            setting="period",
        )
    chain: list[Period | None] = [None, Period.HOUR, Period.DAY, Period.MONTH]
    if not fits:
        chain.remove(Period.HOUR)
    wanted = chain[: chain.index(period) + 1]
    return [(source, level) for source, level in pairwise(wanted) if level is not None]


class _Job:
    def __init__(self, store: Store, settings: Settings, now: Callable[[], datetime]) -> None:
        self.report = RollupReport()
        self._store = store
        self._settings = settings
        self._layout = Layout(settings)
        self._now = now

    async def inputs(
        self, source: Period | None, first: datetime | None
    ) -> AsyncIterator[tuple[datetime, RunFile]]:
        """Yield the aggregates, or the rollups of a period, with their start, in their order."""
        prefix = self._layout.aggregate_prefix if source is None else self._folder(source)
        format_ = "%Y%m%dt%H%MZ" if source is None else _NAMES[source]
        after = "" if first is None else f"{prefix}{first:{format_}}"
        async for page in self._store.list_pages(prefix, start_after=after):
            for file in page:
                start = self._start_of(file.key, source)
                if start is not None and (first is None or start >= first):
                    yield start, file

    def _start_of(self, key: str, source: Period | None) -> datetime | None:
        if source is None:
            window = self._layout.aggregate_window(key, self._settings.window_minutes)
            return None if window is None else window.start
        name = key.removeprefix(self._folder(source)).removesuffix(".json")
        try:
            start = datetime.strptime(name, _NAMES[source]).replace(tzinfo=UTC)
        except ValueError:
            return None
        return start if key == self._key(Span(start, source)) else None

    def _folder(self, period: Period) -> str:
        return f"{self._layout.rollup_prefix}{period.value}/"

    def _key(self, span: Span) -> str:
        return f"{self._folder(span.period)}{span.name}.json"

    async def roll_up(self, span: Span, files: Sequence[RunFile], source: Period | None) -> None:
        """Bring one rollup up to date with the files that were listed, of a kind."""
        key = self._key(span)
        for _ in range(MAX_COMMIT_ATTEMPTS):
            try:
                await self._roll_up(key, span, files)
            except PreconditionFailedError:
                # Who wrote it meanwhile may have listed what was not there before.
                files = await self._listed(span, source)
                continue
            except AggregateError as error:
                self.report.failures[key] = str(error)
            return
        self.report.failures[key] = f"others wrote it {MAX_COMMIT_ATTEMPTS} times meanwhile"

    async def _listed(self, span: Span, source: Period | None) -> list[RunFile]:
        files: list[RunFile] = []
        async for moment, file in self.inputs(source, span.start):
            if moment >= span.end:
                break
            files.append(file)
        return files

    async def _roll_up(self, key: str, span: Span, files: Sequence[RunFile]) -> None:
        old, etag = await self._old(key, span)
        known = {(each["key"], each["etag"]): each for each in old.get("inputs", ())}
        if [*known] == [(file.key, file.etag) for file in files]:
            self.report.unchanged += 1
            return
        changed = [file for file in files if (file.key, file.etag) not in known]
        read = await self._read(changed)
        found = (read.get(file.key) or known.get((file.key, file.etag)) for file in files)
        inputs = [entry for entry in found if entry is not None]
        revision = 1 + old.get("revision", 0)
        document = self._document(span, revision, inputs)
        await self._store.put(key, _dumps(document), if_match=etag, if_absent=etag is None)
        counted = document["files"]["counted"]
        self.report.written.append(RolledUp(key, revision, len(inputs), len(changed), counted))

    async def _old(self, key: str, span: Span) -> tuple[dict[str, Any], str | None]:
        try:
            body = await self._store.get(key)
        except NotFoundError:
            return {}, None
        return _loads(key, body.data, span), body.etag

    async def _read(self, files: Sequence[RunFile]) -> dict[str, dict[str, Any]]:
        """Read inputs; those that are gone meanwhile are left out."""
        found: dict[str, dict[str, Any]] = {}

        async def one(file: RunFile) -> None:
            try:
                found[file.key] = await self._entry(file.key)
            except NotFoundError:
                return

        await for_each(files, one, workers=max(1, self._settings.concurrency // _AT_ONCE))
        return found

    async def _entry(self, key: str) -> dict[str, Any]:
        window = self._layout.aggregate_window(key, self._settings.window_minutes)
        if window is not None:
            async with self._store.stream(key) as body:
                head = await read_head(key, window, body.chunks)
                return _entry(key, body.etag, head)
        whole = await self._store.get(key)
        return _entry(key, whole.etag, _loads(key, whole.data))

    def _document(
        self, span: Span, revision: int, inputs: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        total = Accumulator()
        for each in inputs:
            total.merge(accumulator_of(each))
        return {
            "schema_version": SCHEMA_VERSION,
            "period": span.member(),
            "revision": revision,
            "aggregation_timestamp": self._now().astimezone(UTC).isoformat(),
            **totals(total, sum(each["files"]["late"] for each in inputs)),
            "top_matches": top_matches(total),
            "inputs": inputs,
        }


def _entry(key: str, etag: str, head: dict[str, Any]) -> dict[str, Any]:
    """Return what a rollup keeps of an input."""
    try:
        accumulator_of(head)
        told = {name: head[name] for name in ("revision", *_HEAD)}
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise _damaged(key, f"it lacks or garbles {error}") from None
    return {"key": key, "etag": etag, **told}


def _loads(key: str, data: bytes, span: Span | None = None) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(data)
        sound = document["schema_version"] == SCHEMA_VERSION
        own = span is None or document["period"] == span.member()
        inputs = [_entry(each["key"], each["etag"], each) for each in document["inputs"]]
    except (LookupError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound or not own or inputs != document["inputs"]:
        raise _damaged(key, "it does not read as one of ours")
    return document


def _dumps(document: dict[str, Any]) -> bytes:
    # Not orjson: sums may exceed 64 bits. One input a line, for those who look.
    inputs = document.pop("inputs")
    lines = ",\n".join(json.dumps(each, separators=(",", ":"), allow_nan=False) for each in inputs)
    head = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return f'{head[:-1]},"inputs":[\n{lines}\n]}}\n'.encode()


def _damaged(key: str, what: str) -> AggregateError:
    return AggregateError(
        f"rollup input {key!r}: {what}; expected a document that asyncagg wrote. Move it away and "
        "the next rollup makes it anew"
    )
