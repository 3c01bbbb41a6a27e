"""A producer delivers the same bytes again under the same key: they count once, whatever the etag.

In a directory, for encrypted objects and for multipart uploads, the same bytes get another etag.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from testkit.opaque import OpaqueStore
from testkit.scenario import run_data

from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.verify import verify

AT = datetime(2025, 10, 21, 14, 10, tzinfo=UTC)
KEY = "runs/20251021t135700Z_a.json"
DELIVERED = AT - timedelta(minutes=12)
BY_NAME = Settings(window_by="name")


@pytest.fixture(params=["opaque etags", "directory"])
def store(request: pytest.FixtureRequest, inbox: Path) -> Store:
    """A store in which the same bytes get another etag when they are written again."""
    return (
        OpaqueStore(lambda: DELIVERED) if request.param == "opaque etags" else DirectoryStore(inbox)
    )


async def matches(store: Store) -> int:
    """Return the matches in the aggregate of the window."""
    body = await store.get("aggregates/20251021t1400Z.json")
    return int(msgspec.json.decode(body.data)["total_matches"])


async def test_the_same_bytes_again_are_only_archived(store: Store) -> None:
    """They are recognised by their content in the archive, and verification finds nothing."""
    data = run_data(3)
    await store.put(KEY, data)
    await run(store, BY_NAME, at=AT)
    before = await matches(store)
    for _ in range(2):
        await store.put(KEY, data)
        report = await run(store, BY_NAME, at=AT)
        assert (report.total.counted, report.total.archived) == (0, 1)
    assert await matches(store) == before
    assert (await verify(JobContext(store, BY_NAME))).found == {}


async def test_other_bytes_under_the_same_key_are_another_file(store: Store) -> None:
    """An overwritten file counts again; then each of the two versions is recognised."""
    versions = [run_data(3), run_data(4)]
    for data in versions:
        await store.put(KEY, data)
        report = await run(store, BY_NAME, at=AT)
        assert report.total.counted == 1
    for data in versions:
        await store.put(KEY, data)
        report = await run(store, BY_NAME, at=AT)
        assert (report.total.counted, report.total.archived) == (0, 1)
