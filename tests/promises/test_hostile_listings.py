"""Listings that repeat keys, are out of order, or name objects that do not exist: counted once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.hooked import HookedStore
from testkit.promises import Places, check_after_clean_run, of_memory, of_server, originals_of
from testkit.s3server import Faults, Request, S3Server
from testkit.scenario import BUCKET, PLANES, open_s3, run_data

from asyncagg.backfill import LocalEngine, backfill
from asyncagg.doctor.diagnose import check_order
from asyncagg.errors import ConfigurationError, StoreError
from asyncagg.job.context import JobContext
from asyncagg.job.pipeline import run
from asyncagg.model import Interval, RunFile
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore
from asyncagg.verify import verify
from asyncagg.verify.repair import repair

START = datetime(2025, 10, 21, 13, 50, tzinfo=UTC)
AT = START + timedelta(minutes=15)
SETTINGS = Settings(store="s3://bucket", window_by="last_modified", chunk_files=4)

Listing = list[RunFile]


class HostileStore(MemoryStore):
    """A store whose listing of the inbox is what a test says, in pages of some size."""

    def __init__(self, page: int = 1000) -> None:
        self.now = AT
        super().__init__(lambda: self.now)
        self.page = page
        self.listing: Listing | None = None

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """Yield the listing, as far as it still exists."""
        if self.listing is None or not prefix.startswith("runs/"):
            async for page in super().list_pages(prefix, start_after=start_after):
                yield page
            return
        found = [file for file in self.listing if file.key.startswith(prefix)]
        for start in range(0, len(found), self.page):
            yield found[start : start + self.page]


async def filled(count: int, page: int) -> HostileStore:
    """Return a store with run files of three windows, and a listing of them in order."""
    store = HostileStore(page)
    for number in range(count):
        stamp = START + timedelta(minutes=number * 15 // count, seconds=number)
        store.now = stamp
        await store.put(f"runs/{stamp:%Y%m%dt%H%M%SZ}_{number}.json", run_data(number))
    store.now = AT
    store.listing = [
        file async for files in MemoryStore.list_pages(store, "runs/") for file in files
    ]
    return store


def ghost(file: RunFile) -> RunFile:
    """Return a file that does not exist."""
    return msgspec.structs.replace(file, key=file.key.replace(".json", "-ghost.json"))


def foreign(file: RunFile) -> RunFile:
    """Return a file with an etag that it does not have."""
    return msgspec.structs.replace(file, etag="0" * 32)


@st.composite
def hostile(draw: st.DrawFn, honest: Listing) -> Listing:
    """Draw a listing that names each file at least once, among other things."""
    listing = list(honest)
    for file in draw(st.lists(st.sampled_from(honest), max_size=12)):
        change = draw(st.sampled_from([lambda file: file, ghost, foreign]))
        listing.insert(draw(st.integers(0, len(listing))), change(file))
    if draw(st.booleans()):
        listing = draw(st.permutations(listing))
    return listing


async def check_counted_once(store: HostileStore, originals: Sequence[Any]) -> None:
    """Check all promises, and that the aggregates are accepted by our own reader."""
    check_after_clean_run(of_memory(store), originals, at=AT)
    report = await verify(JobContext(store, SETTINGS))
    assert report.found == {}


async def run_all(store: HostileStore) -> None:
    """Settle every window."""
    await run(store, SETTINGS, at=AT)


async def backfill_all(store: HostileStore) -> None:
    """Settle every window by a backfill, which refuses a listing without order."""
    with suppress(ConfigurationError):
        await backfill(LocalEngine(JobContext(store, SETTINGS)), SETTINGS, Interval(START, AT))


async def verify_all(store: HostileStore) -> None:
    """Verify, and repair what is found."""
    context = JobContext(store, SETTINGS)
    await repair(context, await verify(context))


COMMANDS = (run_all, backfill_all, verify_all)


@given(st.data(), st.integers(1, 9), st.integers(1, 5))
async def test_each_file_is_counted_once(data: st.DataObject, count: int, page: int) -> None:
    """Whatever a listing repeats, misorders or invents, and which commands believe it."""
    store = await filled(count, page)
    originals = originals_of(of_memory(store))
    honest = list(store.listing or ())
    for _ in range(3):
        store.listing = data.draw(hostile(honest))
        await data.draw(st.sampled_from(COMMANDS))(store)
    store.listing = None
    await run(store, SETTINGS, at=AT)
    await check_counted_once(store, originals)


def _adjacent(files: Listing) -> Listing:
    return [file for file in files for _ in range(2)]


def _page_again(files: Listing) -> Listing:
    return [*files[:3], *files[:3], *files[3:]]


def _last_key_again(files: Listing) -> Listing:
    return [*files[:3], files[2], *files[3:]]


@pytest.mark.parametrize("repeated", [_adjacent, _page_again, _last_key_again, lambda f: f[::-1]])
@pytest.mark.parametrize("chunk_files", [2, 1000])
async def test_nine_files_are_nine(repeated: Any, chunk_files: int) -> None:
    """Three windows of three files: neither 10 nor 18."""
    store = await filled(9, 3)
    originals = originals_of(of_memory(store))
    store.listing = repeated(store.listing)
    settings = msgspec.structs.replace(SETTINGS, chunk_files=chunk_files)
    report = await run(store, settings, at=AT)
    assert report.total.counted == 9
    await check_counted_once(store, originals)


@pytest.mark.parametrize("change", [ghost, foreign])
async def test_a_file_that_is_listed_but_cannot_be_read_is_deferred(
    change: Callable[[RunFile], RunFile], caplog: pytest.LogCaptureFixture
) -> None:
    """Every run would miss it in the same way, so it is named, and the exit code is 3."""
    store = await filled(4, 1000)
    files = list(store.listing or ())
    store.listing = [change(files[0]), *files[1:]]
    report = await run(store, SETTINGS, at=AT)
    assert (report.total.archived, report.total.deferred) == (3, 1)
    assert (report.total.gone, report.total.changed, report.exit_code) == (0, 0, 3)
    assert report.oldest_deferred_seconds == (AT - files[0].last_modified).total_seconds()
    (record,) = [each for each in caplog.records if each.message == "deferred"]
    assert vars(record)["key"] == change(files[0]).key
    assert "it is still listed with etag" in vars(record)["reason"]


async def test_a_file_that_changes_before_its_copy_is_named_as_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The 412 of the copy is not taken for an archive key with other content."""
    store = await filled(1, 1000)
    (file,) = [] if store.listing is None else store.listing

    async def overwrite(operation: str, key: str, when: str) -> None:
        if (operation, key, when) == ("copy", file.key, "before"):
            await store.put(file.key, b"{}")

    report = await run(HookedStore(store, overwrite), SETTINGS, at=AT)
    assert (report.total.counted, report.total.deferred) == (1, 1)
    (record,) = [each for each in caplog.records if each.message == "deferred"]
    changed = (await store.head(file.key)).file.etag
    assert vars(record)["reason"] == (
        f"it is still listed with etag {file.etag!r}, but: {file.key!r} has etag {changed!r}: "
        f"expected {file.etag!r}"
    )


async def test_what_is_deferred_for_long_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Earlier runs deferred it as well: the log's level rises, and its age is reported."""
    store = await filled(1, 1000)
    store.listing = [ghost(file) for file in store.listing or ()]
    levels = []
    for minutes in (5, 60):
        caplog.clear()
        report = await run(store, SETTINGS, at=START + timedelta(minutes=minutes))
        assert report.oldest_deferred_seconds == minutes * 60
        levels += [each.levelname for each in caplog.records if each.message == "deferred"]
    assert levels == ["WARNING", "ERROR"]


@pytest.mark.parametrize("left", [True, False], ids=["replaced", "moved"])
async def test_a_file_that_changes_during_a_run_is_not_deferred(*, left: bool) -> None:
    """Its producer replaced it, or another runner moved it: the next run takes what there is."""
    store = await filled(4, 1000)
    (first, *_), store.listing = list(store.listing or ()), None
    changed = False

    async def change(operation: str, key: str, when: str) -> None:
        nonlocal changed
        if (operation, key, when) == ("get", first.key, "before") and not changed:
            changed = True
            await store.delete([first])
            if left:
                await store.put(first.key, run_data(99))

    report = await run(HookedStore(store, change), SETTINGS, at=AT)
    assert (report.total.deferred, report.exit_code) == (0, 0)
    assert (report.total.changed, report.total.gone) == (int(left), int(not left))


def fill(server: S3Server) -> None:
    """Put three run files of one window into the inbox of a test server."""
    for number in range(3):
        stamp = START + timedelta(minutes=number)
        key = f"runs/{stamp:%Y%m%dt%H%M%SZ}_{number}.json"
        server.put(BUCKET, key, run_data(number), last_modified=stamp)


@pytest.mark.parametrize("plane", PLANES)
async def test_a_token_on_the_last_page_is_ignored(plane: str) -> None:
    """`IsTruncated` says whether there is another page; the files are counted once."""
    faults = Faults(endless_listing="last page has a token")
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill(server)
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
    assert (report.total.counted, report.exit_code) == (3, 0)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize(
    ("endless", "message"),
    [("same token", "the same continuation token again"), ("empty pages", "1000 empty pages")],
)
async def test_a_listing_without_end_is_an_error(endless: Any, message: str, plane: str) -> None:
    """The error names the prefix and the store, and no file is counted twice."""
    faults = Faults(endless_listing=endless)
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill(server)
        originals = originals_of(of_server(server))
        async with open_s3(server, plane) as (store, settings):
            with pytest.raises(StoreError, match=f"list '.*/' in 's3://.*{message}"):
                await run(store, settings, at=AT)
            faults.endless_listing = ""
            await run(store, settings, at=AT)
        check_after_clean_run(of_server(server), originals, at=AT)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("stream_bytes", [1024, 4 * 1024 * 1024])
async def test_the_etag_of_each_response_is_checked(plane: str, stream_bytes: int) -> None:
    """A server that ignores `If-Match`: a file overwritten after the listing is not counted."""
    faults = Faults()
    faults.guards.get_if_match = "ignore"
    async with S3Server([BUCKET], clock=lambda: AT, faults=faults) as server:
        fill(server)
        key = "runs/20251021t135100Z_1.json"
        body = json.dumps({"matches_found": 50, "run_id": "x" * 900, "padding": "x" * 2000})

        def overwrite(request: Request) -> None:
            if request.operation == "GetObject" and request.key == key and not written:
                written.append(server.put(BUCKET, key, body.encode(), last_modified=AT))

        written: list[object] = []
        server.on_request = overwrite
        async with open_s3(server, plane, stream_bytes=stream_bytes) as (store, settings):
            report = await run(store, settings, at=AT)
            assert (report.total.counted, report.total.changed) == (2, 1)
            await run(store, settings, at=AT + timedelta(minutes=5))


async def test_a_window_that_grew_on_disk_is_sorted_from_there() -> None:
    """Disorder that appears after references went to disk ends the chunk; no file is lost."""
    store = await filled(40, 3)
    one = msgspec.structs.replace(SETTINGS, window_minutes=60, chunk_files=3)
    originals = originals_of(of_memory(store))
    files = list(store.listing or ())
    store.listing = [*files[:30], *files[10:20], *files[30:][::-1]]
    report = await run(store, one, at=AT + timedelta(hours=1))
    assert report.total.counted == 40
    places = Places(minutes=60)
    check_after_clean_run(of_memory(store), originals, places, at=AT + timedelta(hours=1))


@pytest.mark.parametrize("repeated", [lambda files: files, _adjacent, lambda files: files[::-1]])
async def test_doctor_names_a_listing_without_order(repeated: Any) -> None:
    """It says which key is out of place, and what that costs."""
    store = await filled(9, 3)
    store.listing = repeated(store.listing)
    in_order = store.listing == sorted(set(store.listing or ()), key=lambda file: file.key)
    result = await check_order(store, SETTINGS)
    assert result.status == ("ok" if in_order else "warn")
    assert ("is listed after" in result.detail) != in_order


async def test_a_backfill_refuses_a_listing_without_order() -> None:
    """Ranges of keys mean nothing there; nothing is written."""
    store = await filled(9, 3)
    store.listing = (store.listing or [])[::-1]
    before = of_memory(store)
    with pytest.raises(ConfigurationError, match="expects each key once, in key order"):
        await backfill(LocalEngine(JobContext(store, SETTINGS)), SETTINGS, Interval(START, AT))
    assert of_memory(store) == before
