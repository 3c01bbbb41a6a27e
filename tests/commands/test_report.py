"""The data of a report is that of the aggregates, whatever and how many they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from importlib import resources
from typing import Any

import orjson
import pytest
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st
from testkit.documents import Entry, entry, written
from testkit.hooked import HookedStore
from testkit.reports import HOSTILE, NOW, START, block, gathered, nth, stored
from testkit.strategies import chunkings, run_results

from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.head import top_matches, totals
from asyncagg.aggregate.reader import read_quarantined
from asyncagg.errors import AccessDeniedError, AggregateError, NotFoundError, UsageError
from asyncagg.model import TOP, Match, RunFile, RunResult
from asyncagg.report import Report, build_page
from asyncagg.report.gathering import MAX_QUARANTINED
from asyncagg.report.matches import MAX_MATCHES
from asyncagg.report.summary import MAX_GAPS, MAX_POINTS, MAX_UNREADABLE, bucket_minutes
from asyncagg.store.memory import MemoryStore
from asyncagg.windows import MINUTES_A_DAY


async def built(report: Report) -> bytes:
    """Build the page in a thread, because its parts are read from files."""
    return await to_thread.run_sync(build_page, report.as_dict())


def exact(value: Any) -> Any:
    """Return a value of a page as it was before integers became strings for browsers."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{16,}", value):
        return int(value)
    if isinstance(value, dict):
        return {name: exact(each) for name, each in value.items()}
    return value


def folded(aggregates: Mapping[int, Iterable[Entry]]) -> Accumulator:
    """Fold all files of all windows into one accumulator, without aggregates."""
    total = Accumulator()
    for entries in aggregates.values():
        for file, outcome in entries:
            if isinstance(outcome, RunResult):
                total.fold(file.key, file.size, outcome)
            else:
                total.quarantined += 1
    return total


def _named(number: int, results: list[RunResult | str]) -> list[Entry]:
    return [
        Entry(RunFile(f"runs/{number}-{place}.json", 7 + place, "e", START), result)
        for place, result in enumerate(results)
    ]


outcomes = run_results | st.sampled_from(HOSTILE)
aggregate_sets = st.dictionaries(
    st.integers(0, 40), st.lists(outcomes, min_size=1, max_size=3), min_size=1, max_size=5
).map(lambda found: {number: _named(number, results) for number, results in found.items()})


@given(aggregate_sets, st.integers(0, 3))
async def test_the_page_equals_one_fold_of_all_files(
    aggregates: dict[int, list[Entry]], late: int
) -> None:
    """Exact sums, the same top 10, quantiles of one sketch, as in one aggregate."""
    report = await gathered(await stored(aggregates, late=late))
    data = block(await built(report))
    total = folded(aggregates)
    expected = totals(total, late * len(aggregates))
    del expected["processing_time"]["sketch"]
    assert exact(data["totals"]) == json.loads(json.dumps(expected))
    top = [(each["key"], each["position"]) for each in data["top_matches"]["shown"][:TOP]]
    assert top == [(each["source_key"], each["source_position"]) for each in top_matches(total)]
    assert data["windows"]["present"] == len(aggregates)
    assert len(data["quarantined"]["shown"]) == total.quarantined
    assert {each["reason"] for each in data["quarantined"]["shown"]} <= set(HOSTILE)


@given(aggregate_sets)
async def test_every_point_is_the_aggregate_of_its_window(
    aggregates: dict[int, list[Entry]],
) -> None:
    """With few windows, each point has the sums and quantiles of one."""
    points = (await gathered(await stored(aggregates))).as_dict()["points"]
    numbers = sorted(aggregates)
    assert points["start"] == [int(nth(number).start.timestamp()) for number in numbers]
    for place, number in enumerate(numbers):
        own = folded({number: aggregates[number]})
        time = own.processing_time()
        assert points["counted"][place] == own.counted
        assert exact(points["matches"][place]) in (own.matches, str(own.matches))
        assert [points[name][place] for name in ("p50", "p90", "p99")] == [
            time[name] for name in ("p50", "p90", "p99")
        ]


@pytest.mark.parametrize(
    ("present", "gaps"),
    [
        ([3], []),
        ([3, 4, 5], []),
        ([3, 5], [(4, 5, 1)]),
        ([0, 1, 7, 8, 20], [(2, 7, 5), (9, 20, 11)]),
    ],
)
async def test_gaps_are_the_windows_missing_in_between(
    present: list[int], gaps: list[tuple[int, int, int]]
) -> None:
    """From the end of a window to the start of the next, not before the first or after the last."""
    data = (await gathered(await stored({number: [entry("a")] for number in present}))).as_dict()
    assert data["gaps"]["shown"] == [
        {"start": nth(a).start.isoformat(), "end": nth(b).start.isoformat(), "windows": missing}
        for a, b, missing in gaps
    ]
    assert data["gaps"]["count"] == len(gaps)
    assert data["windows"]["missing"] == sum(missing for _, _, missing in gaps)


async def test_of_many_gaps_the_longest_are_shown_and_all_are_counted() -> None:
    """The list is bounded, the counts are exact."""
    present = [*range(0, 3 * MAX_GAPS, 2), 3 * MAX_GAPS + 10]
    data = (await gathered(await stored({number: [] for number in present}))).as_dict()
    assert data["gaps"]["count"] == len(present) - 1
    assert data["windows"]["missing"] == present[-1] + 1 - len(present)
    assert len(data["gaps"]["shown"]) == MAX_GAPS
    assert data["gaps"]["shown"][-1]["windows"] == 11


@given(
    st.sampled_from([n for n in range(1, MINUTES_A_DAY + 1) if not MINUTES_A_DAY % n]),
    st.integers(MAX_POINTS + 1, 10**6),
    st.integers(1, 50),
)
def test_a_chart_has_a_bounded_number_of_points(minutes: int, windows: int, sparse: int) -> None:
    """A point covers whole windows, and there are at most `MAX_POINTS` of them."""
    span = timedelta(minutes=minutes * windows * sparse)
    merged = bucket_minutes(windows, span, minutes)
    assert merged % minutes == 0
    assert span / timedelta(minutes=merged) + 1 <= MAX_POINTS


async def test_many_windows_are_merged_into_fewer_points() -> None:
    """Adjacent windows are one point: sums are added, quantiles cover all their runs."""
    count = 2 * MAX_POINTS
    aggregates = {
        number: [entry(f"runs/{number}.json", matches=number, processing_time=0.1 + number)]
        for number in range(count)
    }
    report = await gathered(await stored(aggregates))
    points = report.as_dict()["points"]
    assert points["minutes"] == 15
    assert points["windows"] == [3] * (count // 3)
    assert sum(points["matches"]) == sum(range(count))
    own = folded({number: aggregates[number] for number in (3, 4, 5)})
    assert points["p90"][1] == own.processing_time()["p90"]
    assert report.total.processing_time() == folded(aggregates).processing_time()


async def test_the_rows_of_an_aggregate_are_not_read() -> None:
    """The head is enough, whatever follows it; nothing is written."""
    store = await stored({0: [entry(f"runs/{number}.json") for number in range(500)]})
    [(key, whole)] = store._objects.items()
    cut = whole.data[: whole.data.index(b'"run_summaries"') + 100]
    store._objects[key] = type(whole)(cut, whole.info)

    async def allow(operation: str, _key: str, _when: str) -> None:
        assert operation in {"list", "stream"}

    assert (await gathered(HookedStore(store, allow))).total.counted == 500


def _quarantined(number: int, many: int) -> list[Entry]:
    return _named(number, [f"reason {place}" for place in range(many)])


async def test_quarantined_files_come_with_their_reason_and_place() -> None:
    """Each with its key in quarantine, and whether it still exists; the newest window first."""
    store = await stored({1: _quarantined(1, 1), 2: [entry("a"), *_quarantined(2, 2)]})
    await store.put("quarantine/runs/2-0.json", b"{")

    async def deny(operation: str, key: str, when: str) -> None:
        if operation == "head" and key.endswith("1-0.json") and when == "before":
            raise AccessDeniedError("no", operation=operation, key=key)

    shown = (await gathered(HookedStore(store, deny))).as_dict()["quarantined"]["shown"]
    assert [(each["window"], each["reason"], each["there"]) for each in shown] == [
        (nth(2).name, "reason 0", True),
        (nth(2).name, "reason 1", False),
        (nth(1).name, "reason 0", None),
    ]
    assert shown[0]["moved_to"] == "quarantine/runs/2-0.json"


async def test_of_many_quarantined_files_the_newest_are_shown_and_all_are_counted() -> None:
    """Windows whose files are not shown are read only once."""
    many = MAX_QUARANTINED - 10
    store = await stored({number: _quarantined(number, many) for number in range(4)})
    calls: list[str] = []

    async def note(operation: str, key: str, when: str) -> None:
        if operation == "stream" and when == "before":
            calls.append(key)

    data = (await gathered(HookedStore(store, note))).as_dict()["quarantined"]
    assert data["count"] == 4 * many
    assert [each["window"] for each in data["shown"]] == [nth(3).name] * many + [nth(2).name] * 10
    assert len(calls) == 4 + 2


async def test_an_aggregate_committed_meanwhile_hides_its_quarantined_files_only() -> None:
    """Its totals are those of the first read; its rows may have changed, so none are shown."""
    store = await stored({0: _quarantined(0, 2)})
    seen = 0

    async def commit(operation: str, key: str, when: str) -> None:
        nonlocal seen
        seen += operation == "stream" and when == "before"
        if operation == "stream" and when == "before" and seen == 2:
            await store.put(key, b"something else")

    report = await gathered(HookedStore(store, commit))
    data = report.as_dict()
    assert (data["quarantined"], report.exit_code) == ({"count": 2, "shown": []}, 0)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{\n"window":1,\n"run_summaries":[\n]\n}\n'])
async def test_an_unreadable_aggregate_is_reported_and_left_out(damage: bytes) -> None:
    """A bad aggregate does not block the others; the exit code is 3."""
    store = await stored({0: [entry("a")], 1: [], 2: [entry("b")]})
    await store.put(f"aggregates/{nth(1).name}.json", damage)
    report = await gathered(store)
    data = report.as_dict()
    assert (report.exit_code, data["totals"]["files"]["counted"]) == (3, 2)
    [unreadable] = data["unreadable"]["shown"]
    assert unreadable["key"] == f"aggregates/{nth(1).name}.json"
    assert data["gaps"]["count"] == 0


@pytest.mark.parametrize(
    ("member", "invalid"),
    [
        ('"exact_sum":"0.5"', '"exact_sum":"1E+5000"'),
        ('"exact_sum":"0.5"', '"exact_sum":"1E-5000"'),
        ('"exact_sum":"0.5"', '"exact_sum":"NaN"'),
        ('"max":0.5', '"max":Infinity'),
        ('"late":0', '"late":[]'),
        ('"counted":1', '"counted":"one"'),
        ('"match_score":0.25', '"match_score":"much"'),
    ],
)
async def test_an_invalid_head_is_left_out(member: str, invalid: str) -> None:
    """An invalid number, or one that cannot be added exactly, does not change the totals."""
    files = [entry("a", processing_time=0.5, top_matches=_matches([{"match_score": 0.25}]))]
    store = await stored({0: files, 1: files})
    key = f"aggregates/{nth(0).name}.json"
    text = store._objects[key].data.decode()
    assert member in text
    await store.put(key, text.replace(member, invalid).encode())
    report = await gathered(store)
    assert [each.key for each in report.unreadable] == [key]
    assert report.total.processing_time() == folded({1: files}).processing_time()


async def test_a_score_that_is_not_json_does_not_reach_the_page() -> None:
    """It is shown as missing."""
    files = [entry("a", processing_time=0.5, top_matches=_matches([{"match_score": 0.25}]))]
    store = await stored({0: files})
    [(key, whole)] = store._objects.items()
    odd = whole.data.decode().replace('"match_score":0.25', '"match_score":NaN')
    await store.put(key, odd.encode())
    data = block(await built(await gathered(store)))
    assert data["top_matches"]["shown"][0]["score"] is None


async def test_the_list_of_unreadable_aggregates_is_bounded() -> None:
    """All damaged aggregates are counted, and the first of them shown."""
    store = MemoryStore(lambda: NOW)
    for number in range(MAX_UNREADABLE + 50):
        await store.put(f"aggregates/{nth(number).name}.json", b"x" * 3000)
    data = (await gathered(store)).as_dict()["unreadable"]
    assert data["count"] == MAX_UNREADABLE + 50
    assert [each["key"] for each in data["shown"]] == [
        f"aggregates/{nth(number).name}.json" for number in range(MAX_UNREADABLE)
    ]


async def test_an_aggregate_that_is_deleted_meanwhile_is_reported() -> None:
    """It was listed, but does not exist when it is read."""
    store = await stored({0: [entry("a")], 1: [entry("b")]})

    async def lose(operation: str, key: str, when: str) -> None:
        if operation == "stream" and key.endswith(f"{nth(1).name}.json") and when == "before":
            raise NotFoundError("gone", operation=operation, key=key)

    report = await gathered(HookedStore(store, lose))
    assert ["was deleted" in each.reason for each in report.unreadable] == [True]


async def test_keys_that_are_not_of_windows_are_ignored() -> None:
    """Other keys with the prefix, and times at which no window ends."""
    store = await stored({0: [entry("a")]})
    for name in ("README.md", "asyncagg.json", "asyncagg.run", "20251021t0001Z.json"):
        await store.put(f"aggregates/{name}", b"{}")
    report = await gathered(store)
    assert (report.windows, report.exit_code) == (1, 0)


@pytest.mark.parametrize(
    ("since", "until", "windows"),
    [
        (None, None, [0, 1, 2, 3]),
        (nth(1).start, None, [1, 2, 3]),
        (nth(1).start + timedelta(seconds=1), None, [2, 3]),
        (None, nth(2).end, [0, 1, 2]),
        (None, nth(2).end - timedelta(seconds=1), [0, 1]),
        (nth(1).start, nth(1).end, [1]),
        (nth(9).start, None, []),
    ],
)
async def test_an_interval_selects_the_windows_inside_it(
    since: datetime | None, until: datetime | None, windows: list[int]
) -> None:
    """Those that start at its start or later, and end by its end."""
    store = await stored({number: [entry("a")] for number in range(4)})
    points = (await gathered(store, since=since, until=until)).as_dict()["points"]
    assert points["start"] == [int(nth(number).start.timestamp()) for number in windows]


async def test_an_interval_that_ends_before_it_starts_is_an_error() -> None:
    """The message has both values."""
    with pytest.raises(UsageError, match="expected a time before until"):
        await gathered(MemoryStore(), since=NOW, until=NOW)


async def test_an_empty_store_gives_a_page() -> None:
    """With no points and no windows."""
    data = block(await built(await gathered(MemoryStore())))
    assert (data["start"], data["windows"]["present"], data["points"]["start"]) == (None, 0, [])


async def test_progress_is_reported_for_each_aggregate() -> None:
    """How many were read, and how many there are."""
    store = await stored({number: [entry("a")] for number in range(3)})
    data: list[tuple[int, int]] = []
    await gathered(store, progress=lambda done, count: data.append((done, count)))
    assert data == [(1, 3), (2, 3), (3, 3)]


async def test_no_value_can_end_the_data_or_become_markup() -> None:
    """Hostile titles, keys, reasons and nested objects stay unchanged inside the JSON block."""
    matches = [
        {"match_score": 1, "title": text, text: {"deep": [text, {text: text}]}} for text in HOSTILE
    ]
    results = [entry(f"runs/{text}.json", top_matches=_matches(matches)) for text in HOSTILE]
    store = await stored({0: [*results, *_named(0, list(HOSTILE))]})
    page = await built(await gathered(store))
    data = page.partition(b'id="data">')[2].partition(b"</script>")[0]
    assert not re.search(rb"[<>&]|[^\x20-\x7e]", data)
    assert b"<img" not in page
    shown = block(page)["top_matches"]["shown"]
    assert {each["label"] for each in shown} == set(HOSTILE)
    # Only ten are kept: those of the first keys, in order.
    first = sorted(f"runs/{text}.json" for text in HOSTILE)[:2]
    assert [each["key"] for each in shown] == [first[0]] * 6 + [first[1]] * 4


def _matches(bodies: list[dict[str, Any]]) -> tuple[Match, ...]:
    return tuple(
        [Match(body["match_score"], place, orjson.dumps(body)) for place, body in enumerate(bodies)]
    )


async def test_long_matches_are_cut_and_many_are_bounded() -> None:
    """A page stays small, whatever the matches contain; it says how many fields are left out."""
    body = {"title": "x" * 10_000, "text": "y" * 100_000} | {f"f{n}": n for n in range(500)}
    aggregates = {
        number: [
            entry(f"runs/{number}.json", top_matches=_matches([body | {"match_score": 1}] * 8))
        ]
        for number in range(40)
    }
    report = await gathered(await stored(aggregates))
    shown = report.as_dict()["top_matches"]["shown"]
    assert len(shown) == MAX_MATCHES
    assert all(len(json.dumps(each)) < 10_000 for each in shown)
    assert shown[0]["more_fields"] == 503 - 40


@given(st.data())
async def test_quarantined_rows_are_found_in_any_chunks(data: st.DataObject) -> None:
    """Also if a chunk ends inside the mark or inside a row."""
    rows = data.draw(st.integers(0, 5))
    text = await written(
        [entry("a"), *_named(0, [f'"quarantined_files":[\n{n}' for n in range(rows)])]
    )
    most = data.draw(st.integers(1, 6))

    async def chunks() -> Any:
        for chunk in data.draw(chunkings(text)):
            yield chunk

    found = await read_quarantined("a", chunks(), most)
    assert [each["key"] for each in found] == [f"runs/0-{n}.json" for n in range(min(most, rows))]


@pytest.mark.parametrize("tail", [b"", b"x" * 100, b"{}\n", b'{"key":1}\n', b"[1]\n"])
async def test_damaged_quarantined_rows_are_an_error(tail: bytes) -> None:
    """A document that ends too early, or has an invalid row."""
    text = await written([entry("a")])
    mark = b'"quarantined_files":[\n'

    async def chunks() -> Any:
        yield text[: text.index(mark) + len(mark)] + tail

    with pytest.raises(AggregateError):
        await read_quarantined("aggregates/a.json", chunks(), 5)


def test_the_package_carries_the_page_and_the_licence_of_its_charts() -> None:
    """The installed package contains the parts of the page."""
    folder = resources.files("asyncagg.report").joinpath("page")
    for name in ("template.html", "style.css", "app.js", "uplot/uPlot.iife.min.js"):
        assert folder.joinpath(name).is_file()
    assert "MIT License" in folder.joinpath("uplot", "LICENSE").read_text("utf-8")
