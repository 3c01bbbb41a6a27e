"""Stores with files in quarantine."""

from __future__ import annotations

import json
from collections import Counter

from asyncagg.job.layout import Layout
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.memory import MemoryStore
from testkit.promises import Snapshot
from testkit.scenario import (
    AT,
    Clock,
    moment,
    run_data,
)

__all__ = (
    "BAD",
    "BY_NAME",
    "SMALL",
    "counted",
    "holders",
    "settled",
)


BY_NAME = Settings(window_by="name")


SMALL = Settings(window_by="name", max_file_bytes=len(run_data(1)) - 1)
"""Settings with which every run file is too large."""


BAD = "20251021t1302Z_bad.json"


async def settled(files: dict[str, bytes], settings: Settings = BY_NAME) -> MemoryStore:
    """Return a store in which a run has settled these files of the inbox."""
    store = MemoryStore(Clock(moment(13, 57)))
    for name, data in files.items():
        await store.put(f"runs/{name}", data)
    await run(store, settings, at=AT)
    return store


def counted(seen: Snapshot) -> Counter[bytes]:
    """Return how often each content is counted, by the archived files that aggregates name."""
    found = Counter[bytes]()
    for key, each in seen.items():
        if key.startswith("aggregates/"):
            for source in json.loads(each.data)["source_files"]:
                archived = Layout(BY_NAME).archive_key(source["key"])
                place = archived if archived in seen else source["key"]
                found[seen[place].data] += 1
    return found


def holders(seen: Snapshot, data: bytes) -> list[str]:
    """Return the keys that have a run file's content."""
    return [key for key, each in seen.items() if each.data == data]
