"""The promises, checked on a world."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from testkit.explorer.worlds import World
from testkit.promises import Original, check_after_clean_run, check_at_any_moment
from testkit.scenario import AT, File

__all__ = (
    "check_end",
    "check_held",
    "check_now",
    "check_restored_end",
    "check_restored_now",
    "counted_rows",
    "original",
)


def original(file: File) -> Original:
    """Return a run file as the checks of the promises know it."""
    etag = hashlib.md5(file.data).hexdigest()
    return Original(file.key, file.data, etag, file.moment, file.good)


def check_now(world: World) -> None:
    """Check the promises that hold at any moment."""
    check_at_any_moment(world.seen, world.written, overwritten=world.lost)


def check_end(world: World) -> None:
    """Check every promise after a clean run."""
    check_after_clean_run(world.seen, world.written, at=AT, overwritten=world.lost)


def check_held(world: World) -> None:
    """Check what holds while an aggregate is damaged: nothing is lost."""
    held = {each.data for each in world.seen.values()}
    for each in world.written:
        assert each.data in held or each.identity in world.lost, f"promise 2: {each.key} is nowhere"


def check_restored_now(world: World) -> None:
    """Check promises 1 to 3 by content: a restored file has another key than the original."""
    check_held(world)
    data_of = {each.etag: each.data for each in world.written}
    counted = Counter(data_of[row["etag"]] for row in counted_rows(world))
    for each in world.written:
        assert counted[each.data] <= 1, f"promise 1: {each.key} is counted twice"
    for key, seen in world.seen.items():
        archived = key.startswith("archive/")
        assert not archived or seen.data in counted, f"promise 3: no aggregate counts {key}"


def check_restored_end(world: World) -> None:
    """Check every promise after clean runs where files are restored from quarantine."""
    check_restored_now(world)
    left = [key for key in world.seen if key.startswith(("runs/", "quarantine/"))]
    assert not left, f"promise 4: left are {left}"
    archived = {each.data for key, each in world.seen.items() if key.startswith("archive/")}
    for each in world.written:
        assert each.data in archived or each.identity in world.lost, f"{each.key} is not archived"


def counted_rows(world: World) -> list[dict[str, Any]]:
    """Return the rows of all counted files."""
    return [
        row
        for key, each in world.seen.items()
        if key.startswith("aggregates/")
        for row in json.loads(each.data)["source_files"]
    ]
