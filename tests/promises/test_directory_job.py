"""The whole job on a plain directory, with ten thousand files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import orjson
import pytest
from anyio import to_thread
from testkit.promises import check_after_clean_run, of_directory, originals_of

from asyncagg.aggregate.format import schema
from asyncagg.job.pipeline import run
from asyncagg.sample import last_windows, samples
from asyncagg.settings import settings_from
from asyncagg.store.opening import open_store

FILES = 10_000
SCHEMA = schema()


def write(root: Path) -> list[str]:
    """Write sample files as their producer does; return the keys of the bad ones."""
    bad = []
    for each in samples(
        files=FILES, windows=last_windows(3, 5), prefix="runs/", bad_fraction=0.002, seed=11
    ):
        path = root / each.key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(each.data)
        if not each.good:
            bad.append(each.key)
    return bad


@pytest.mark.slow
async def test_ten_thousand_files_settle_with_every_promise_kept(tmp_path: Path) -> None:
    """Each is counted once in its own window and archived, or quarantined with its reason."""
    bad = await to_thread.run_sync(write, tmp_path)
    originals = originals_of(await to_thread.run_sync(of_directory, tmp_path), bad=bad)
    assert len(originals) == FILES
    at = datetime.now(UTC) + timedelta(minutes=10)
    settings = settings_from(
        {"store": str(tmp_path), "window_by": "last_modified", "chunk_files": 4000}
    )
    async with open_store(settings) as store:
        report = await run(store, settings, at=at)
    seen = await to_thread.run_sync(of_directory, tmp_path)
    check_after_clean_run(seen, originals, at=at)
    assert (report.total.counted, report.total.quarantined) == (FILES - len(bad), len(bad))
    for key, each in seen.items():
        if key.startswith("aggregates/"):
            jsonschema.validate(orjson.loads(each.data), SCHEMA)
