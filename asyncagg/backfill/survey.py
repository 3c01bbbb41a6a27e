"""Survey the run files of an interval, and plan how to divide the work.

A survey lists the keys but keeps no references: for each segment of about a thousand keys it notes
how many files of which window are in it. From that follows a plan, whose pieces are key ranges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from asyncagg.backfill.ranges import remainder
from asyncagg.errors import ConfigurationError
from asyncagg.job.context import JobContext
from asyncagg.job.layout import KeyKind
from asyncagg.job.listing import KeyRange, find_disorder, list_range
from asyncagg.model import Interval, RunFile, Window

SEGMENT = 1000
"""The most files of a segment, and the most other keys that it skips: one page of S3."""

MIN_PART = 2 * SEGMENT
"""Parts of a window are not made smaller than this for balance: each part is an object."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent keys of the inbox.

    Attributes:
        keys: The range.
        files: How many files of each wanted window it holds.
        bytes: Their size together.
    """

    keys: KeyRange
    files: Mapping[Window, int]
    bytes: int

    @property
    def count(self) -> int:
        """How many wanted files it holds."""
        return sum(self.files.values())


class Surveyed(NamedTuple):
    """The result of a survey of one range.

    Attributes:
        segments: Its segments, in key order.
        rest: The ranges that were not listed.
    """

    segments: list[Segment]
    rest: list[KeyRange]


async def survey(
    context: JobContext, keys: KeyRange, interval: Interval, *, pages: float = math.inf
) -> Surveyed:
    """List a range of the inbox and return its segments.

    Args:
        context: Where the inbox is.
        keys: The range.
        interval: The wanted windows.
        pages: How many pages to list; the rest is returned as ranges.

    Raises:
        ConfigurationError: The listing is not in key order, so ranges of keys mean nothing.
    """
    layout = context.layout
    cutter = _Cutter(keys.after, min(SEGMENT, context.settings.chunk_files))
    async for page in list_range(context.store, layout.runs_prefix, keys):
        if disorder := find_disorder(cutter.last_listed, page):
            key, before = disorder
            raise ConfigurationError(
                f"listing of {layout.runs_prefix!r} in {context.store.url!r}: {key!r} comes after "
                f"{before!r}; a backfill expects each key once, in key order, as Amazon S3 lists "
                "general purpose buckets. A run needs no order"
            )
        for file in page:
            is_run_file = layout.kind(file.key) is KeyKind.RUN_FILE
            window = context.window_of(file) if is_run_file else None
            if window is None or not interval.holds(window):
                cutter.skip(file)
            else:
                cutter.add(file, window)
        pages -= 1
        if pages <= 0 and page:
            return Surveyed(cutter.finish(), remainder(page[0].key, page[-1].key, keys))
    return Surveyed(cutter.finish(), [])


class _Cutter:
    """Cuts a listing into segments; a new window starts a new segment, so that plans can follow."""

    def __init__(self, after: str, most: int) -> None:
        self._most = most
        self._segments: list[Segment] = []
        self._seen: set[Window] = set()
        self._before = after  # the key before the segment's first
        self.last_listed = after
        self._last = after  # the last wanted key
        self._files = Counter[Window]()
        self._bytes = 0
        self._skipped = 0

    def add(self, file: RunFile, window: Window) -> None:
        """Add a wanted file."""
        full = self._files.total() >= self._most or self._skipped >= SEGMENT
        if full or window not in self._seen:
            self._cut()
            self._seen.add(window)
        if not self._files:
            self._before = self.last_listed
        self._files[window] += 1
        self._bytes += file.size
        self._skipped = 0
        self.last_listed = self._last = file.key

    def skip(self, file: RunFile) -> None:
        """Skip any other key."""
        self.last_listed = file.key
        self._skipped += 1

    def finish(self) -> list[Segment]:
        """Return the segments."""
        self._cut()
        return self._segments

    def _cut(self) -> None:
        if self._files:
            keys = KeyRange(self._before, self._last)
            self._segments.append(Segment(keys, dict(self._files), self._bytes))
        self._files.clear()
        self._bytes = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """The work of one task.

    Attributes:
        keys: The ranges of its files.
        files: How many files of each window there are.
        bytes: Their size together.
        shared: Its windows that have files in other pieces too.
    """

    keys: tuple[KeyRange, ...]
    files: Mapping[Window, int]
    bytes: int
    shared: frozenset[Window]

    @property
    def whole(self) -> frozenset[Window]:
        """The windows that have all their files in it."""
        return frozenset(self.files) - self.shared


def plan(segments: Sequence[Segment], *, most: int, shares: int) -> list[Piece]:
    """Divide segments into pieces, with as few windows as possible in more than one piece.

    Args:
        segments: The result of a survey, in key order.
        most: The most files of a piece. A window with more files is in several pieces.
        shares: The least number of pieces, as far as the number of windows allows, and of the
            pieces of each window that is in several.
    """
    fair = min(most, math.ceil(_count(segments) / max(1, shares)))
    groups: list[list[Segment]] = []
    for large, clusters in groupby(_clusters(segments), key=lambda each: _count(each) > most):
        if not large:
            groups += _pack(clusters, fair)
            continue
        for cluster in clusters:
            # In groups of its own, so that it is cut at the same keys whatever comes before it.
            limit = min(most, max(MIN_PART, math.ceil(_count(cluster) / max(1, shares))))
            groups += _pack(([segment] for segment in cluster), limit)
    spread = Counter(window for group in groups for window in _windows(group))
    return [_piece(group, spread) for group in groups]


def _pack(parts: Iterable[Sequence[Segment]], limit: int) -> Iterator[list[Segment]]:
    """Yield groups of neighbours with at most ``limit`` files, unless one part has more."""
    group: list[Segment] = []
    size = 0
    for part in parts:
        count = _count(part)
        if group and size + count > limit:
            yield group
            group, size = [], 0
        group += part
        size += count
    if group:
        yield group


def _clusters(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Yield runs of segments whose neighbours share windows."""
    cluster = list(segments[:1])
    for left, right in pairwise(segments):
        if left.files.keys().isdisjoint(right.files):
            yield cluster
            cluster = []
        cluster.append(right)
    if cluster:
        yield cluster


def _piece(group: Sequence[Segment], spread: Mapping[Window, int]) -> Piece:
    files = Counter[Window]()
    for segment in group:
        files.update(segment.files)
    return Piece(
        keys=tuple(_join(segment.keys for segment in group)),
        files=dict(files),
        bytes=sum(segment.bytes for segment in group),
        shared=frozenset(window for window in files if spread[window] > 1),
    )


def _join(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """Join ranges that follow each other without a gap."""
    joined: list[KeyRange] = []
    for keys in ranges:
        if joined and keys.after == joined[-1].last:
            joined[-1] = KeyRange(joined[-1].after, keys.last)
        else:
            joined.append(keys)
    return joined


def _windows(group: Iterable[Segment]) -> set[Window]:
    return {window for segment in group for window in segment.files}


def _count(group: Iterable[Segment]) -> int:
    return sum(segment.count for segment in group)
