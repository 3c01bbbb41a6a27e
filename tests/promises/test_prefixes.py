"""Prefixes may nest or overlap: an object that the job wrote is never taken for a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from testkit.layouts import FILES, LAYOUTS, settings_of
from testkit.promises import (
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
from testkit.s3server import S3Server
from testkit.scenario import AT, BUCKET, PLANES, Clock, File, moment, open_s3, run_data, write_files

from asyncagg.job.pipeline import run
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore

BAD = ("bad.json", "f/bad.json")
LATE = {"z.json": (run_data(7), moment(14, 1)), "a.json": (run_data(8), moment(14, 4))}


def bad_of(places: Places) -> set[str]:
    """Return the keys of the bad files in a layout."""
    return {places.runs + name for name in BAD}


def check(seen: Snapshot, originals: list[Original], places: Places, **more: Any) -> None:
    """Check every promise in a layout."""
    check_after_clean_run(seen, originals, places, **({"at": AT} | more))


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS)
async def test_layouts_in_memory(places: Places) -> None:
    """In every layout a second run changes nothing; a later one takes late and newly due files."""
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
    """The same in a directory; the store's own temporary files are not taken for run files."""
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
    """The same below a prefix of a bucket; the rest of the bucket is not touched."""
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
            "store", "window_by", "runs_prefix", "aggregate_prefix", "archive_prefix",
            "quarantine_prefix",
        )}  # fmt: skip
        async with open_s3(server, plane, **given) as (store, settings):
            await run(store, settings, at=AT)
            first = see()
            check(first, originals, places)
            await run(store, settings, at=AT)
        assert see() == first
        assert server.has(BUCKET, "runs/of-others.json")
        assert server.has(BUCKET, "team-b.json")
