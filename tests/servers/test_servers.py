"""The promises on S3 servers that people run; in strict mode on the one that has all the guards."""

from __future__ import annotations

import asyncio
import sys

import pytest
from anyio import to_thread
from testkit.killing_proxy import KillingProxy
from testkit.places import Place, fill, seen_in, soon
from testkit.promises import check_after_clean_run, check_at_any_moment
from testkit.scenario import FORMATS
from testkit.servers import SERVERS, NotInstalledError, credentials, endpoint

import asyncagg.store.s3.store as s3_module
from asyncagg.errors import PreconditionFailedError
from asyncagg.job.pipeline import run
from asyncagg.store import Absent, Matches
from asyncagg.store.guards import WRONG_ETAG
from asyncagg.store.protocol import Body

STRICT = "SeaweedFS"


@pytest.fixture(params=[STRICT])
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An empty part of a server's bucket."""
    for name, value in credentials(request.param).items():
        monkeypatch.setenv(name, value)
    try:
        return Place(await to_thread.run_sync(endpoint, request.param))
    except NotInstalledError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("place", SERVERS, indirect=True)
@pytest.mark.parametrize(("plane", "archive_format"), [("lean", "files"), ("boto", "packs")])
async def test_one_runner(place: Place, plane: str, archive_format: str) -> None:
    """One runner keeps the promises on every server; without all guards, it has to be said."""
    more = {"data_plane": plane, "archive_format": archive_format, "conditional_writes": "off"}
    async with place.open(**more) as (store, settings):
        originals = await fill(store, 12)
        at = soon()
        report = await run(store, settings, at=at)
        assert (report.total.counted, report.total.quarantined) == (13, 2)
        assert report.total.deferred == 0
        check_after_clean_run(await seen_in(store), originals, at=at)


async def test_all_guards_are_honoured(place: Place) -> None:
    """Strict mode is what the tests below run in."""
    async with place.open() as (store, _):
        guards = await store.guards()
        assert guards.missing == ()
        assert await store.unguarded.parts_guard.honoured()  # type: ignore[attr-defined]


@pytest.mark.parametrize("archive_format", FORMATS)
async def test_three_runners_at_once(place: Place, archive_format: str) -> None:
    """Three runners on one window, in many chunks: each file is counted once, and archived."""
    more = {"archive_format": archive_format, "chunk_files": 5, "concurrency": 8}
    async with (
        place.open(**more, data_plane="lean") as (first, settings),
        place.open(**more, data_plane="boto") as (second, _),
        place.open(**more, data_plane="lean") as (third, _),
    ):
        originals = await fill(first, 40)
        at = soon()
        reports = await asyncio.gather(
            *(run(store, settings, at=at) for store in (first, second, third))
        )
        check_at_any_moment(await seen_in(first), originals)
        assert sum(report.total.counted for report in reports) == 41
        while any(report.total.deferred for report in reports):  # one gave up: the next continues
            reports = [await run(first, settings, at=at)]
        check_after_clean_run(await seen_in(first), originals, at=at)


@pytest.mark.parametrize(
    ("archive_format", "request_", "passed_on"),
    [
        ("files", rb"PUT \S+/archive/0/run-", True),
        ("packs", rb"PUT \S+/aggregates/2\S+Z\.json ", False),
    ],
    ids=["after a copy", "before a commit"],
)
async def test_killed(
    place: Place, archive_format: str, request_: bytes, *, passed_on: bool
) -> None:
    """A command that is killed at a request to the server loses nothing; the next finishes it."""
    async with place.open(archive_format=archive_format) as (store, settings):
        originals = await fill(store, 12)
        at = soon()
        async with KillingProxy(place.url, request_, passed_on=passed_on) as proxy:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "asyncagg", "run", place.store, "--at", at.isoformat()),
                *("--endpoint-url", proxy.url, "--archive-format", archive_format),
                *("--window-by", "last_modified"),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            proxy.victim = process.pid
            await process.wait()
        assert proxy.killed
        check_at_any_moment(await seen_in(store), originals)
        await run(store, settings, at=at)
        check_after_clean_run(await seen_in(store), originals, at=at)


async def test_a_large_object_in_parts(place: Place) -> None:
    """An object of several parts, as a large aggregate, is created and replaced on conditions."""
    large = bytes(s3_module.PART_BYTES + 1)
    async with place.open() as (store, _):
        for condition in (Absent(), Matches(WRONG_ETAG)):
            await store.put("aggregates/a", b"first")
            with pytest.raises(PreconditionFailedError):
                await store.put("aggregates/a", large, condition=condition)
            assert (await store.get("aggregates/a")).data == b"first"
        etag = (await store.head("aggregates/a")).file.etag
        await store.put("aggregates/a", large, condition=Matches(etag))
        etag = await store.put("aggregates/b", large, condition=Absent())
        assert etag.endswith("-2")  # of two parts
        for key in ("aggregates/a", "aggregates/b"):
            assert await store.get(key) == Body(large, etag)
