"""Prefixes that nest or overlap: what is ours is never taken for a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from promises import (
    Original,
    Places,
    Snapshot,
    check_after_clean_run,
    final_bytes,
    of_directory,
    of_memory,
    of_server,
    originals_of,
)
from s3server import S3Server
from scenario import AT, BUCKET, PLANES, Clock, File, moment, open_s3, run_data, write_files

from asyncagg.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore

LAYOUTS = {
    "as they come": Places(),
    "runs/raw, runs/archive, runs": Places(
        "runs/raw/", "runs/", "runs/archive/", "runs/quarantine/"
    ),
    "aggregates beside run files": Places(aggregates="runs/"),
    "all in the inbox": Places("runs/", "runs/aggregates/", "runs/archive/", "runs/bad/"),
    "one in the other": Places("a/", "a/b/", "a/b/c/", "a/b/d/"),
    "the whole store": Places(""),
    "the whole store, aggregates too": Places("", ""),
    "archive among aggregates": Places("in/", "out/", "out/archive/", "out/bad/"),
    "names that begin alike": Places("runs/", "runs-out/", "runs-old/", "runs-bad/"),
    "archive beside aggregates in the inbox": Places("runs/", "runs/", "runs/x/", "runs/y/"),
}
BAD = ("bad.json", "f/bad.json")
FILES = {
    "a.json": (run_data(1), moment(14, 1)),
    "b.json": (run_data(2), moment(14, 8)),
    "bad.json": (b"[]", moment(14, 1)),
    "f/a.json": (run_data(3), moment(14, 1)),
    "f/bad.json": (b"{", moment(14, 8)),
    "f/g/20251021t1405Z.json": (run_data(4), moment(14, 2)),  # named like an aggregate
    "20251021t1402Z_like-a-window.json": (run_data(5), moment(14, 3)),
    "waits.json": (run_data(6), moment(14, 11)),
}
LATE = {"z.json": (run_data(7), moment(14, 1)), "a.json": (run_data(8), moment(14, 4))}


def settings_of(places: Places, **more: Any) -> Settings:
    """Return the settings of a layout."""
    return Settings(
        runs_prefix=places.runs,
        aggregate_prefix=places.aggregates,
        archive_prefix=places.archive,
        quarantine_prefix=places.quarantine,
        **more,
    )


def bad_of(places: Places) -> set[str]:
    """Return the keys of the bad files in a layout."""
    return {places.runs + name for name in BAD}


def check(seen: Snapshot, originals: list[Original], places: Places, **more: Any) -> None:
    """Check every promise in a layout."""
    check_after_clean_run(seen, originals, places, **({"at": AT} | more))


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
async def test_layouts_in_memory(places: Places) -> None:
    """In every layout a second run changes nothing, a later one takes what is late or due."""
    clock = Clock()
    store = MemoryStore(clock)
    settings = settings_of(places)

    async def write(files: dict[str, tuple[bytes, Any]]) -> list[Original]:
        for name, (data, when) in files.items():
            clock.now = when
            await store.put(places.runs + name, data)
        clock.now = AT
        return originals_of(of_memory(store), places, bad_of(places))

    originals = await write(FILES)
    assert len(originals) == len(FILES)
    report = await run(store, settings, at=AT)
    assert report.total.counted == 5
    first = of_memory(store)
    check(first, originals, places)
    assert len(final_bytes(first, places)) == 2
    report = await run(store, settings, at=AT)
    assert (report.total.counted, report.total.quarantined, report.ignored) == (0, 0, 0)
    assert of_memory(store) == first
    originals += [each for each in await write(LATE) if each not in originals]
    at = moment(14, 15)
    report = await run(store, settings, at=at)
    assert (report.total.counted, report.total.late) == (3, 2)
    check(of_memory(store), originals, places, at=at)


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
async def test_layouts_in_a_directory(places: Places, tmp_path: Path) -> None:
    """The same in a directory, whose own work files are nobody's run files either."""
    store = DirectoryStore(tmp_path)
    write_files(tmp_path, [File(places.runs + name, *each) for name, each in FILES.items()])
    originals = originals_of(of_directory(tmp_path), places, bad_of(places))
    assert len(originals) == len(FILES)
    await run(store, settings_of(places), at=AT)
    first = of_directory(tmp_path)
    check(first, originals, places)
    report = await run(store, settings_of(places), at=AT)
    assert (report.total.counted, report.total.quarantined, report.ignored) == (0, 0, 0)
    assert of_directory(tmp_path) == first


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
async def test_layouts_below_a_prefix_of_a_bucket(places: Places, plane: str) -> None:
    """The same in a part of a bucket, whose other parts are not looked at."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        for name, (data, when) in FILES.items():
            server.put(BUCKET, f"team/{places.runs}{name}", data, last_modified=when)
        server.put(BUCKET, "runs/of-others.json", b"{", last_modified=moment(14, 1))
        server.put(BUCKET, "team-b.json", b"{", last_modified=moment(14, 1))

        def see() -> Snapshot:
            below = of_server(server)
            return {
                key.removeprefix("team/"): each
                for key, each in below.items()
                if key.startswith("team/")
            }

        originals = originals_of(see(), places, bad_of(places))
        asked = settings_of(places, store=f"s3://{BUCKET}/team")
        given = {name: getattr(asked, name) for name in (
            "store", "runs_prefix", "aggregate_prefix", "archive_prefix", "quarantine_prefix"
        )}  # fmt: skip
        async with open_s3(server, plane, **given) as (store, settings):
            await run(store, settings, at=AT)
            first = see()
            check(first, originals, places)
            await run(store, settings, at=AT)
        assert see() == first
        assert server.has(BUCKET, "runs/of-others.json")
        assert server.has(BUCKET, "team-b.json")
