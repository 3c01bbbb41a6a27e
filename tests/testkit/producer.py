"""A producer that writes run files while jobs work on the scenario."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime

from asyncagg.store.memory import MemoryStore, _Object
from asyncagg.store.protocol import ObjectInfo
from testkit.promises import Original, Places, Snapshot, of_memory, unpacked
from testkit.scenario import moment, prepared, run_data

__all__ = ("Producer", "producer_of")


class Producer:
    """Overwrites and adds run files while the job runs, and records every version it wrote."""

    def __init__(
        self,
        seed: int,
        write: Callable[[str, bytes, datetime], Original],
        see: Callable[[], Snapshot],
        *,
        likely: float = 0.2,
    ) -> None:
        self.versions = {each.identity: each for each in prepared().originals}
        self.overwritten: set[tuple[str, str]] = set()
        self._dice = random.Random(seed)
        self._write = write
        self._see = see
        self._number = 100
        self._likely = likely

    def perhaps(self) -> None:
        """Perhaps write a new file, or a new version of an old one."""
        if self._dice.random() > self._likely:
            return
        self._number += 1
        when = self._dice.choice((moment(14, 3), moment(14, 9, 30), moment(14, 11)))
        key = f"runs/new-{self._number}.json"
        if self._dice.random() < 0.7:
            key = self._dice.choice(["runs/c01.json", "runs/c02.json", "runs/d09-bad.json"])
        seen = self._see()
        if key in seen and not _is_saved(seen, key):
            self.overwritten.add((key, seen[key].etag))
        written = self._write(key, run_data(self._number), when)
        self.versions[written.identity] = written


def _is_saved(seen: Snapshot, key: str) -> bool:
    """Return whether a file of the inbox is archived, or in quarantine and named there."""
    places, file = Places(), seen[key]
    named = any(
        places.is_aggregate(name) and file.etag.encode() in each.data for name, each in seen.items()
    )
    saved = (places.archive, places.quarantine) if named else (places.archive,)
    archive = unpacked(seen, places, prepared().foreign)
    return any(each.data == file.data and name.startswith(saved) for name, each in archive.items())


def producer_of(store: MemoryStore, seed: int, *, likely: float = 0.2) -> Producer:
    """Return a producer that writes into a store in memory, at times of its own."""

    def write(key: str, data: bytes, when: datetime) -> Original:
        found = store._reference(key, data)
        file = type(found)(key, found.size, found.etag, when)
        store._objects[key] = _Object(data, ObjectInfo(file, "application/json"))
        return Original(key, data, file.etag, when)

    return Producer(seed, write, lambda: of_memory(store), likely=likely)
