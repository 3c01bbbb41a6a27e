"""What a backfill has done, task by task, here or on other machines.

A task is a small value that can be pickled. It may be done twice, or half and then again: what it
does is idempotent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from asyncagg.backfill.partial import Folder, Part, clear, commit, merge, sweep
from asyncagg.backfill.survey import Piece, Surveyed, survey
from asyncagg.job.context import JobContext
from asyncagg.job.listing import KeyRange, list_aggregate_windows
from asyncagg.job.outcome import RunReport, WindowReport
from asyncagg.job.pipeline import run
from asyncagg.model import Interval, Window
from asyncagg.runtime.tasks import for_each
from asyncagg.verify.recompute import Recomputed, recompute

__all__ = (
    "LISTINGS",
    "Aggregated",
    "Clear",
    "Commit",
    "Fold",
    "Folded",
    "Merge",
    "Recompute",
    "Settle",
    "Survey",
    "Sweep",
    "Task",
)

T_co = TypeVar("T_co", covariant=True)

LISTINGS = 8
"""Ranges that one survey lists side by side."""


class Task(Protocol[T_co]):
    """Something to be done, here or on another machine; it can be pickled."""

    async def perform(self, context: JobContext) -> T_co:
        """Do it."""
        ...


@dataclass(frozen=True, slots=True)
class Survey:
    """List ranges of the inbox, or the first pages of each."""

    keys: tuple[KeyRange, ...]
    interval: Interval
    pages: float

    async def perform(self, context: JobContext) -> Surveyed:
        """See `Task.perform`."""
        found = Surveyed([], [])

        async def one(keys: KeyRange) -> None:
            segments, rest = await survey(
                context.store, context.settings, keys, self.interval, pages=self.pages
            )
            found.segments.extend(segments)
            found.rest.extend(rest)

        await for_each(self.keys, one, workers=LISTINGS)
        return found


@dataclass(frozen=True, slots=True)
class Settle:
    """Settle the windows that are whole in a piece."""

    piece: Piece
    until: datetime

    async def perform(self, context: JobContext) -> RunReport:
        """See `Task.perform`."""
        return await run(
            context.store,
            context.settings,
            at=self.until,
            only=self.piece.whole.__contains__,
            keys=self.piece.keys,
            now=context.now,
            temporary=context.temporary,
        )


@dataclass(frozen=True, slots=True)
class Folded:
    """What became of a piece's share of windows: the report, and its partial aggregates."""

    report: RunReport
    made: list[Part]


@dataclass(frozen=True, slots=True)
class Fold:
    """Count the files of windows into partial aggregates."""

    keys: tuple[KeyRange, ...]
    windows: frozenset[Window]
    until: datetime

    async def perform(self, context: JobContext) -> Folded:
        """See `Task.perform`."""
        made: list[Part] = []

        def folder(*args: object, **more: object) -> Folder:
            return Folder(*args, made=made, **more)  # type: ignore[arg-type]

        report = await run(
            context.store,
            context.settings,
            at=self.until,
            only=self.windows.__contains__,
            keys=self.keys,
            settler=folder,
            now=context.now,
            temporary=context.temporary,
        )
        return Folded(report, made)


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge partial aggregates into one; return its key, or None: see `partial.merge`."""

    window: Window
    keys: tuple[str, ...]

    async def perform(self, context: JobContext) -> str | None:
        """See `Task.perform`."""
        return await merge(context, self.window, self.keys)


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit partial aggregates; see `asyncagg.backfill.partial.commit`."""

    window: Window
    keys: tuple[str, ...]

    async def perform(self, context: JobContext) -> WindowReport | None:
        """See `Task.perform`."""
        return await commit(context, self.window, self.keys)


@dataclass(frozen=True, slots=True)
class Clear:
    """Archive what a partial aggregate names."""

    window: Window
    key: str

    async def perform(self, context: JobContext) -> WindowReport:
        """See `Task.perform`."""
        return await clear(context, self.window, self.key)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove partial aggregates that nobody needs any more."""

    folder: str
    interval: Interval
    keep: frozenset[Window] = frozenset()

    async def perform(self, context: JobContext) -> None:
        """See `Task.perform`."""
        await sweep(context, self.folder, self._wanted)

    def _wanted(self, window: Window) -> bool:
        return self.interval.holds(window) and window not in self.keep


@dataclass(frozen=True, slots=True)
class Aggregated:
    """List the windows that have an aggregate."""

    interval: Interval

    async def perform(self, context: JobContext) -> list[Window]:
        """See `Task.perform`."""
        pages = list_aggregate_windows(context.store, context.settings, self.interval)
        return [window async for windows in pages for window in windows]


@dataclass(frozen=True, slots=True)
class Recompute:
    """Compute an aggregate again; see `asyncagg.verify.recompute.recompute`."""

    window: Window
    write: bool

    async def perform(self, context: JobContext) -> Recomputed:
        """See `Task.perform`."""
        return await recompute(context, self.window, write=self.write)
