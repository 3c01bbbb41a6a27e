"""The tasks of a backfill, which run here or on other machines.

A task is a function of a module and its arguments, so that it can be pickled. It may run twice,
or half and then again: what it does is idempotent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncagg.backfill.partial import (
    Part,
    PartialCounter,
)
from asyncagg.backfill.survey import Piece, Surveyed, survey
from asyncagg.job.context import JobContext
from asyncagg.job.listing import KeyRange, list_aggregate_windows
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run, run_pipeline
from asyncagg.model import Interval, Window
from asyncagg.runtime.tasks import for_each

LISTINGS = 8
"""Ranges that one survey lists at the same time."""


@dataclass(frozen=True, slots=True)
class Folded:
    """The result of `fold_windows`: the report, and the partial aggregates."""

    report: RunReport
    parts: list[Part]


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


async def settle_windows(context: JobContext, piece: Piece, until: datetime) -> RunReport:
    """Settle the windows that have all their files in a piece."""
    return await run(
        context.store,
        context.settings,
        at=until,
        only=piece.whole.__contains__,
        keys=piece.keys,
        now=context.now,
        temporary=context.temporary,
    )


async def fold_windows(
    context: JobContext, ranges: Sequence[KeyRange], windows: Collection[Window], until: datetime
) -> Folded:
    """Count the files of windows in some ranges into partial aggregates."""
    counter = PartialCounter()
    report = await run_pipeline(
        context, counter.count, at=until, only=windows.__contains__, keys=ranges
    )
    return Folded(report, counter.parts)


async def list_windows(context: JobContext, interval: Interval) -> list[Window]:
    """List the windows of an interval that have an aggregate."""
    pages = list_aggregate_windows(context.store, context.settings, interval)
    return [window async for windows in pages for window in windows]
