"""Backfill without a cluster: the same aggregates as the scheduled run's, to the byte."""

from __future__ import annotations

import anyio
import pytest
from promises import check_after_clean_run, final_bytes, of_memory
from scenario import AT, HookedStore, fill_memory, moment, prepared

from asyncagg.backfill import LocalEngine, Progress, backfill, interval_of
from asyncagg.outcome import RunReport
from asyncagg.partial import Bench
from asyncagg.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.memory import MemoryStore
from asyncagg.survey import Interval

SINCE = moment(13, 50)


async def backfilled(store: Store, *, chunk_files: int = 20_000) -> RunReport:
    """Backfill the scenario's windows."""
    settings = Settings(chunk_files=chunk_files)
    engine = LocalEngine(Bench(store, settings))
    return await backfill(engine, settings, Interval(SINCE, AT))


def check(store: MemoryStore) -> None:
    """Check every promise, and that the aggregates are those of an undisturbed run."""
    seen = of_memory(store)
    check_after_clean_run(seen, prepared().originals, at=AT, foreign=prepared().foreign)
    assert final_bytes(seen) == prepared().expected
    assert not [key for key in seen if key.startswith("work/")]


@pytest.mark.parametrize("chunk_files", [1, 2, 3, 5, 20_000])
async def test_a_backfill_gives_what_a_run_gives(chunk_files: int) -> None:
    """Whole windows or windows in parts: the same bytes, and nothing is left behind."""
    store = fill_memory(prepared().store)
    report = await backfilled(store, chunk_files=chunk_files)
    check(store)
    assert report.exit_code == 3  # some are quarantined
    assert report.total.archived + report.total.quarantined == 19
