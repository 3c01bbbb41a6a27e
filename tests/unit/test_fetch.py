"""Fetching: files arrive in any order, are folded in batches, and each has one outcome."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.virtual import run_virtually

import asyncagg.job.fetch as fetch_module
from asyncagg.aggregate.accumulator import Accumulator
from asyncagg.aggregate.rows import RowSpool
from asyncagg.errors import InvalidRunFileError, NotFoundError, TransientError
from asyncagg.ingest.parsing import parse
from asyncagg.job.context import JobContext
from asyncagg.job.deferrals import Deferrals
from asyncagg.job.fetch import Fetcher, Load
from asyncagg.job.outcome import Tally
from asyncagg.job.refusals import Refusals
from asyncagg.job.run_files import Loaded
from asyncagg.job.slots import Slots
from asyncagg.model import RunFile, RunResult
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore

NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)
VALID = b'{"run_id": "r", "matches_found": 3, "processing_time_seconds": 0.1}'
INVALID = b'{"matches_found": "many"}'

Kind = Literal["valid", "streamed", "invalid", "too large", "gone", "unread"]


class Sent(NamedTuple):
    """A file as the store sends it: what becomes of it, and after how many seconds."""

    kind: Kind
    seconds: int


class Done(NamedTuple):
    """What a fetcher has done: its result, the keys of the rows in their order, and its tally."""

    fetcher: Fetcher
    counted_rows: list[str]
    quarantined_rows: list[str]
    tally: Tally
    ended: float


SENT = st.builds(
    Sent,
    st.sampled_from(["valid", "streamed", "invalid", "too large", "gone", "unread"]),
    st.integers(0, 3),
)


def references(count: int) -> list[RunFile]:
    """Return references in key order."""
    return [RunFile(f"runs/{number:04}.json", len(VALID), "e", NOON) for number in range(count)]


async def fetched(
    load: Load, count: int, slots: int, *, until: float = math.inf, quarantine_seconds: float = 0
) -> Done:
    """Fetch files with a loader."""

    async def quarantine(file: RunFile, _reason: str) -> str:
        await anyio.sleep(quarantine_seconds)
        return f"quarantine/{file.key}"

    context = JobContext(MemoryStore(), Settings())
    tally = Tally()
    async with AsyncExitStack() as stack:
        spools = [await stack.enter_async_context(context.open_spool()) for _ in range(2)]
        rows = RowSpool(*spools)
        deferrals = Deferrals(context, Refusals(most=math.inf), NOON)
        fetcher = Fetcher(load, quarantine, rows, tally, deferrals)
        await fetcher.fetch(references(count), slots=Slots(slots), until=until)
        return Done(
            fetcher,
            [row.key async for row in rows.counted_rows()],
            [row.key async for row in rows.quarantined_rows()],
            tally,
            anyio.current_time(),
        )


def loading(sent: dict[str, Sent]) -> Load:
    """Return a loader of these files."""

    async def load(file: RunFile) -> Loaded:
        kind, seconds = sent[file.key]
        await anyio.sleep(seconds)
        match kind:
            case "too large":
                raise InvalidRunFileError("too large")
            case "gone":
                raise NotFoundError("gone", key=file.key)
            case "unread":
                raise TransientError("unread")
            case "streamed":
                return parse(VALID, file), None
        body = VALID if kind == "valid" else INVALID
        return body, body

    return load


@given(st.lists(SENT, max_size=30), st.integers(1, 6), st.sampled_from([1, 1.5, 2, 4.5, math.inf]))
def test_each_file_has_one_outcome_and_rows_keep_the_order(
    sent: list[Sent], slots: int, until: float
) -> None:
    """Whatever arrives together, whenever the time is over: what is counted is in the sums once."""
    files = {file.key: each for file, each in zip(references(len(sent)), sent, strict=True)}

    done = run_virtually(lambda: fetched(loading(files), len(sent), slots, until=until))

    counted = sorted(file.key for file in done.fetcher.counted)
    quarantined = sorted(file.key for file in done.fetcher.quarantined)
    assert done.counted_rows == counted
    assert done.quarantined_rows == quarantined
    assert {files[key].kind for key in counted} <= {"valid", "streamed"}
    assert {files[key].kind for key in quarantined} <= {"invalid", "too large"}
    tally = done.tally
    others = tally.gone + tally.deferred + tally.left
    assert len(counted) + len(quarantined) + others == len(sent)
    if until == math.inf:
        kinds = [each.kind for each in sent]
        assert len(counted) == kinds.count("valid") + kinds.count("streamed")
        assert (tally.gone, tally.deferred) == (kinds.count("gone"), kinds.count("unread"))
        assert not tally.left
    sums, expected = done.fetcher.accumulator, Accumulator()
    for file in done.fetcher.counted:
        expected.fold(file.key, file.size, parse(VALID, file))
    expected.quarantined = len(quarantined)
    assert (sums.counted, sums.quarantined) == (expected.counted, expected.quarantined)
    assert (sums.matches, sums.bytes) == (expected.matches, expected.bytes)
    assert sums.seconds == expected.seconds


def test_what_waits_to_be_parsed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaders that never wait would otherwise fill the memory before the first file is parsed."""
    body = VALID.ljust(100_000)
    loaded = parsed = most = 0

    async def load(_: RunFile) -> Loaded:
        nonlocal loaded, most
        loaded += 1
        most = max(most, loaded - parsed)
        return body, body

    def counting(data: bytes, file: RunFile, top_cutoff: float, _unknown: None) -> RunResult:
        nonlocal parsed
        parsed += 1
        return parse(data, file, top_cutoff)

    monkeypatch.setattr(fetch_module, "parse", counting)
    done = run_virtually(lambda: fetched(load, 500, 8))
    assert len(done.counted_rows) == parsed == 500
    assert most == 3  # the third body is the first beyond 256 KB


@pytest.mark.parametrize("slots", [1, 8, 64])
def test_invalid_files_that_arrive_together_are_quarantined_side_by_side(slots: int) -> None:
    """Their requests take all slots, as those of other files do."""

    async def load(_: RunFile) -> Loaded:
        await anyio.sleep(1)
        return INVALID, INVALID

    done = run_virtually(lambda: fetched(load, 64, slots, quarantine_seconds=1))
    assert len(done.quarantined_rows) == 64
    assert done.ended <= 2 * 64 / slots
