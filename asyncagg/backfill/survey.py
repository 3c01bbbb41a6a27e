"""Where the run files of an interval lie, and how to share them out.

A survey lists keys and keeps no reference: of each stretch of about a thousand keys it notes how
many files of which window are in it. From that a plan follows whose pieces are ranges of keys.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from asyncagg.backfill.ranges import remainder
from asyncagg.job.layout import KeyKind, Layout
from asyncagg.job.listing import KeyRange, listed
from asyncagg.model import Interval, RunFile, Window
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.windows import window_selector

__all__ = ("SEGMENT", "Piece", "Segment", "Surveyed", "plan", "survey")

SEGMENT = 1000
"""The most files of a segment, and the most other keys that it passes over: a page of S3's."""

LEAST = 2 * SEGMENT
"""A window in parts is not cut into smaller ones for the sake of balance: each is an object."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of keys.

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
    """What came of a survey of one range.

    Attributes:
        segments: Its segments, in key order.
        rest: The ranges that were not listed any more.
    """

    segments: list[Segment]
    rest: list[KeyRange]


async def survey(
    store: Store, settings: Settings, keys: KeyRange, interval: Interval, *, pages: float = math.inf
) -> Surveyed:
    """List a range of the inbox and return its segments.

    Args:
        store: Where the inbox is.
        settings: The prefixes, and which window a file belongs to.
        keys: The range.
        interval: The wanted windows.
        pages: How many pages to list; the rest is left to be listed side by side.
    """
    layout = Layout(settings)
    window_of = window_selector(settings.window_by, settings.window_minutes)
    cutter = _Cutter(keys.after, min(SEGMENT, settings.chunk_files))
    async for page in listed(store, layout.runs_prefix, keys):
        for file in page:
            window = window_of(file) if layout.kind(file.key) is KeyKind.RUN_FILE else None
            if window is None or not interval.holds(window):
                cutter.skip(file)
            else:
                cutter.take(file, window)
        pages -= 1
        if pages <= 0 and page:
            return Surveyed(cutter.finish(), remainder(page[0].key, page[-1].key, keys))
    return Surveyed(cutter.finish(), [])


class _Cutter:
    """Cuts a listing into segments; one starts where a window begins, so that plans can follow."""

    def __init__(self, after: str, most: int) -> None:
        self._most = most
        self._segments: list[Segment] = []
        self._seen: set[Window] = set()
        self._before = after  # the key before the segment's first
        self._at = after  # the key listed last
        self._last = after  # the last wanted key
        self._files = Counter[Window]()
        self._bytes = 0
        self._skipped = 0

    def take(self, file: RunFile, window: Window) -> None:
        """Take a wanted file."""
        full = self._files.total() >= self._most or self._skipped >= SEGMENT
        if full or window not in self._seen:
            self._cut()
            self._seen.add(window)
        if not self._files:
            self._before = self._at
        self._files[window] += 1
        self._bytes += file.size
        self._skipped = 0
        self._at = self._last = file.key

    def skip(self, file: RunFile) -> None:
        """Pass over any other key."""
        self._at = file.key
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
    """A part of the work that one worker does at a time.

    Attributes:
        keys: Where its files are.
        files: How many files of each window there are.
        bytes: Their size together.
        shared: Those of its windows that have files in other pieces too.
    """

    keys: tuple[KeyRange, ...]
    files: Mapping[Window, int]
    bytes: int
    shared: frozenset[Window]

    @property
    def whole(self) -> frozenset[Window]:
        """The windows all of whose files are in it."""
        return frozenset(self.files) - self.shared


def plan(segments: Sequence[Segment], *, most: int, shares: int) -> list[Piece]:
    """Share out segments so that as few windows as possible are in more than one piece.

    Args:
        segments: What a survey found, in key order.
        most: The most files of a piece. A window with more is in several.
        shares: Into how many pieces to divide the whole at the least, if that many windows allow,
            and each window that is in several pieces.
    """
    groups = list(_packed(segments, most=most, shares=max(1, shares)))
    spread = Counter(window for group in groups for window in _windows(group))
    return [_piece(group, spread) for group in groups]


def _packed(segments: Sequence[Segment], *, most: int, shares: int) -> Iterator[list[Segment]]:
    """Yield groups of neighbours: a cluster that is not too large stays together."""
    fair = math.ceil(_count(segments) / shares)
    group: list[Segment] = []
    size = 0
    for cluster in _clusters(segments):
        count = _count(cluster)
        whole = count <= most
        limit = min(most, fair if whole else max(LEAST, math.ceil(count / shares)))
        for part in (cluster,) if whole else ([segment] for segment in cluster):
            more = _count(part)
            # A large cluster is cut at the same keys every time, whatever lies before it.
            if group and (size + more > limit or (part[0] is cluster[0] and not whole)):
                yield group
                group, size = [], 0
            group += part
            size += more
        if not whole:
            yield group
            group, size = [], 0
    if group:
        yield group


def _clusters(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Yield neighbours that share windows."""
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
        keys=tuple(_joined(segment.keys for segment in group)),
        files=dict(files),
        bytes=sum(segment.bytes for segment in group),
        shared=frozenset(window for window in files if spread[window] > 1),
    )


def _joined(parts: Iterable[KeyRange]) -> Iterator[KeyRange]:
    """Make one range of those that follow each other without a gap."""
    current: KeyRange | None = None
    for part in parts:
        if current is not None and part.after == current.last:
            current = KeyRange(current.after, part.last)
            continue
        if current is not None:
            yield current
        current = part
    if current is not None:
        yield current


def _windows(group: Iterable[Segment]) -> set[Window]:
    return {window for segment in group for window in segment.files}


def _count(group: Iterable[Segment]) -> int:
    return sum(segment.count for segment in group)
