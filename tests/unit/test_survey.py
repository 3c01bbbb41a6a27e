"""Surveys and plans: every key in one range, every file in one piece, few windows torn apart."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.scenario import Clock, moment, run_data

from asyncagg.backfill.ranges import ranges, remainder
from asyncagg.backfill.survey import SEGMENT, Segment, plan, survey
from asyncagg.job.context import JobContext
from asyncagg.job.listing import KeyRange, list_range
from asyncagg.model import Interval, Window
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore

DAY = Interval(moment(0, 0), moment(0, 0) + timedelta(days=1))
ALL = Interval(moment(0, 0) - timedelta(days=400), moment(0, 0) + timedelta(days=400))


def holding(parts: list[KeyRange], key: str) -> list[KeyRange]:
    """Return the ranges that hold a key."""
    return [part for part in parts if part.after < key and (part.last is None or key <= part.last)]


@given(
    st.text(min_size=1, max_size=20).map(lambda name: f"runs/{name}"),
    st.integers(1, 24 * 500),
)
def test_every_key_is_in_exactly_one_range(key: str, hours: int) -> None:
    """Whatever it is called, and however long the interval is."""
    since = moment(3, 20)
    assert len(holding(ranges("runs/", since, since + timedelta(hours=hours)), key)) == 1


def test_names_that_begin_with_their_time_are_listed_by_the_hour() -> None:
    """The hours of the interval are ranges of their own; of a long one, the days."""
    (part,) = holding(ranges("runs/", *DAY), "runs/20251021t1302Z_x.json")
    assert part == KeyRange("runs/20251021t13", "runs/20251021t14")
    long = ranges("runs/", moment(0, 0), moment(0, 0) + timedelta(days=30))
    (part,) = holding(long, "runs/20251023t1302Z_x.json")
    assert part == KeyRange("runs/20251023", "runs/20251024")
    assert len(ranges("", moment(0, 0), moment(0, 0) + timedelta(days=4000))) < 300


async def test_a_range_is_listed_to_its_last_key() -> None:
    """The bounds are: behind one key, up to and including another."""
    store = MemoryStore()
    for letter in "abcdef":
        await store.put(f"runs/{letter}", b"")
    found = [
        file.key[-1]
        async for page in list_range(store, "runs/", KeyRange("runs/b", "runs/d"))
        for file in page
    ]
    assert found == ["c", "d"]


@given(
    st.lists(st.text("019aAz-/_", min_size=1, max_size=9), min_size=1, max_size=30, unique=True),
    st.integers(0, 29),
    st.booleans(),
)
def test_what_is_behind_a_page_is_in_exactly_one_range(
    names: list[str],
    cut: int,
    closed: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    """However keys count, each one behind the page is listed once, none before it again."""
    names.sort()
    page = names[: cut + 1]
    whole = KeyRange("", names[-1] if closed else None)
    rest = remainder(page[0], page[-1], whole)
    for name in names:
        assert len(holding(rest, name)) == (name not in page)


def test_names_that_count_are_split_where_they_count_up() -> None:
    """The tens and hundreds behind a page are ranges of their own."""
    rest = remainder("runs/x-0000.json", "runs/x-0099.json", KeyRange("runs/x", "runs/y"))
    assert KeyRange("runs/x-02", "runs/x-03") in rest
    assert KeyRange("runs/x-1", "runs/x-2") in rest
    assert rest[0].after == "runs/x-0099.json"
    assert rest[-1] == KeyRange("runs/x-9", "runs/y")


@pytest.mark.parametrize("pages", [1, 2])
async def test_a_survey_in_parts_finds_what_one_listing_finds(pages: int) -> None:
    """Page by page, and what is behind it side by side: every file once."""
    clock = Clock(moment(12, 0))
    store = MemoryStore(clock)
    for number in range(5_500):
        await store.put(f"runs/20251021t{number % 24:02}00Z_{number:05}.json", b"{}")
    waiting, found = [KeyRange()], []
    while waiting:
        segments, rest = await survey(
            JobContext(store, Settings()), waiting.pop(), DAY, pages=pages
        )
        found += segments
        waiting += rest
    assert sum(segment.count for segment in found) == 5_500
    bounds = sorted(segment.keys for segment in found)
    assert all(one.last <= two.after for one, two in pairwise(bounds) if one.last)


async def surveyed(count: int, windows: int, *, in_order: bool = True) -> list[Segment]:
    """Survey files whose names follow their windows, or do not."""
    clock = Clock()
    store = MemoryStore(clock)
    for number in range(count):
        window = number * windows // count if in_order else number % windows
        clock.now = moment(0, 1) + timedelta(minutes=5 * window)
        await store.put(f"runs/{number:06}.json", run_data(number))
    return (await survey(JobContext(store, Settings()), KeyRange(), ALL)).segments


async def test_a_segment_starts_where_a_window_begins() -> None:
    """Names in the order of time: no segment has files of two windows."""
    segments = await surveyed(2_600, 2)
    assert [segment.count for segment in segments] == [SEGMENT, 300, SEGMENT, 300]
    assert all(len(segment.files) == 1 for segment in segments)


async def test_names_without_order_give_full_segments() -> None:
    """Once every window has been seen, segments are as long as they may be."""
    segments = await surveyed(2_500, 3, in_order=False)
    assert [segment.count for segment in segments] == [1, 1, SEGMENT, SEGMENT, 498]


async def test_what_is_not_wanted_is_passed_over() -> None:
    """Long stretches of other keys are in no segment."""
    clock = Clock(moment(12, 0))
    store = MemoryStore(clock)
    await store.put("runs/a.json", b"{}")
    clock.now = moment(0, 0) - timedelta(days=1)
    for number in range(SEGMENT + 1):
        await store.put(f"runs/b{number:06}.json", b"{}")
    clock.now = moment(12, 1)
    await store.put("runs/c.json", b"{}")
    segments, _ = await survey(JobContext(store, Settings()), KeyRange(), DAY)
    assert [segment.keys for segment in segments] == [
        KeyRange("", "runs/a.json"),
        KeyRange(f"runs/b{SEGMENT:06}.json", "runs/c.json"),
    ]


def segment(first: int, files: dict[int, int]) -> Segment:
    """Return a segment of windows named by numbers."""
    named = {Window(moment(0, 0) + timedelta(minutes=5 * each), 5): n for each, n in files.items()}
    return Segment(KeyRange(f"{first:04}", f"{first + 1:04}"), named, sum(files.values()))


segments_ = st.lists(
    st.dictionaries(st.integers(0, 12), st.integers(1, 9), min_size=1, max_size=3), max_size=30
).map(lambda listed: [segment(number, files) for number, files in enumerate(listed)])


@given(segments_, st.integers(1, 40), st.integers(1, 10))
def test_a_plan_has_every_file_once(segments: list[Segment], most: int, shares: int) -> None:
    """Pieces have all the files, are not too large, and know which windows they share."""
    pieces = plan(segments, most=most, shares=shares)
    files = Counter[Window]()
    for each in segments:
        files.update(each.files)
    planned = Counter[Window]()
    for piece in pieces:
        planned.update(piece.files)
    assert planned == files
    largest = max((each.count for each in segments), default=0)
    assert all(sum(piece.files.values()) <= max(most, largest) for piece in pieces)
    for window in files:
        homes = [piece for piece in pieces if window in piece.files]
        assert all((window in piece.shared) == (len(homes) > 1) for piece in homes)
        assert all((window in piece.whole) == (len(homes) == 1) for piece in homes)


def test_windows_in_order_are_not_torn_apart() -> None:
    """Only one with more files than a piece may have is counted in parts."""
    segments = [
        segment(number, {window: 10}) for number, window in enumerate([0, 0, 1, 2, 3, 3, 3, 3, 4])
    ]
    pieces = plan(segments, most=30, shares=1)
    torn = {window for piece in pieces for window in piece.shared}
    assert torn == {Window(moment(0, 15), 5)}
    assert [piece.keys for piece in pieces] == [
        (KeyRange("0000", "0003"),),
        (KeyRange("0003", "0004"),),
        (KeyRange("0004", "0007"),),
        (KeyRange("0007", "0008"),),
        (KeyRange("0008", "0009"),),
    ]


@pytest.mark.parametrize(("shares", "pieces"), [(1, 1), (4, 4), (100, 8)])
def test_the_work_is_shared_out(shares: int, pieces: int) -> None:
    """As many pieces as asked for, as far as there are windows."""
    segments = [segment(number, {number: 10}) for number in range(8)]
    assert len(plan(segments, most=1000, shares=shares)) == pieces


@pytest.mark.parametrize(
    ("files", "shares", "sizes"),
    [
        (60_000, 16, {3_000}),
        (12_000, 16, {2_000}),
        (400_000, 16, {10_000}),
        (60_000, 1, {10_000}),
    ],
)
def test_a_large_window_is_shared_out_evenly(files: int, shares: int, sizes: set[int]) -> None:
    """Pieces are smaller where there are few of them, so that no worker is idle for long."""
    segments = [
        Segment(KeyRange(f"{n:06}", f"{n + 1:06}"), {Window(moment(0, 5), 5): 1000}, 0)
        for n in range(files // 1000)
    ]
    pieces = plan(segments, most=10_000, shares=shares)
    assert {sum(piece.files.values()) for piece in pieces} <= sizes
    # It is cut at the same keys when other windows beside it are done: its parts are found again.
    other = Segment(KeyRange("", "000000"), {Window(moment(0, 0), 5): 500}, 0)
    beside = plan([other, *segments], most=10_000, shares=shares)
    assert [piece.keys for piece in beside[1:]] == [piece.keys for piece in pieces]
