"""The tasks of a backfill, which run here or on other machines.

A task is a function of a module and its arguments, so that it can be pickled. It may run twice,
or half and then again: what it does is idempotent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from asyncagg.backfill.partial import Part, PartialCounter
from asyncagg.backfill.survey import Piece, Surveyed, survey
from asyncagg.job.committer import Committer
from asyncagg.job.context import JobContext
from asyncagg.job.listing import KeyRange, list_aggregate_windows
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run_pipeline
from asyncagg.job.refusals import Refusals
from asyncagg.job.settle import Count
from asyncagg.model import Interval, Window
from asyncagg.runtime.tasks import for_each

LISTINGS = 8
"""Ranges that one survey lists at the same time."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of the files of a task.

    Attributes:
        report: The outcome by window.
        refusals: What the store refused: one task cannot tell whether it refuses everything.
        parts: The partial aggregates, if the files were folded into those.
    """

    report: RunReport
    refusals: Refusals
    parts: list[Part] = field(default_factory=list)


async def survey_ranges(
    context: JobContext, ranges: Sequence[KeyRange], interval: Interval, pages: float
) -> Surveyed:
    """List ranges of the inbox, or the first pages of each."""
    found = Surveyed([], [])

    async def survey_one(keys: KeyRange) -> None:
        segments, rest = await survey(context, keys, interval, pages=pages)
        found.segments.extend(segments)
        found.rest.extend(rest)

    await for_each(ranges, survey_one, workers=LISTINGS)
    return found


async def settle_windows(context: JobContext, piece: Piece, until: datetime) -> Settled:
    """Settle the windows that have all their files in a piece."""
    committer = Committer()
    return await _run(
        context, committer.count, piece.keys, piece.whole, until, committed=committer.committed
    )


async def fold_windows(
    context: JobContext, ranges: Sequence[KeyRange], windows: Collection[Window], until: datetime
) -> Settled:
    """Count the files of windows in some ranges into partial aggregates."""
    counter = PartialCounter()
    settled = await _run(context, counter.count, ranges, windows, until)
    settled.parts.extend(counter.parts)
    return settled


async def _run(
    context: JobContext,
    count: Count,
    ranges: Sequence[KeyRange],
    windows: Collection[Window],
    until: datetime,
    *,
    committed: Callable[[Window], int] = lambda _: 0,
) -> Settled:
    refusals = Refusals(most=math.inf)
    report = await run_pipeline(
        context,
        count,
        refusals,
        committed=committed,
        at=until,
        only=windows.__contains__,
        keys=ranges,
    )
    return Settled(report, refusals)


async def list_windows(context: JobContext, interval: Interval) -> list[Window]:
    """List the windows of an interval that have an aggregate."""
    pages = list_aggregate_windows(context.store, context.settings, interval)
    return [window async for windows in pages for window in windows]
