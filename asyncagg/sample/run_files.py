"""Realistic run files, generated from a seed, for trying things out, tests and benchmarks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import orjson

from asyncagg.errors import UsageError
from asyncagg.model import Window
from asyncagg.runtime.tasks import for_each
from asyncagg.store import Store
from asyncagg.windows import window_of

_AGENCIES = ("DARPA", "NASA", "NIH", "DOE", "NSF", "NOAA", "USDA", "DOT")
_SUBJECTS = ("Autonomous", "Resilient", "Distributed", "Quantum", "Adaptive", "Secure")
_OBJECTS = ("Sensing", "Logistics", "Propulsion", "Diagnostics", "Networks", "Materials")
_BAD = (b"{not json", b"[1, 2, 3]", b'{"errors": "none"}', b'{"total_opportunities": -1}', b"")


class SampleFile(msgspec.Struct, frozen=True):
    """A file to write.

    Attributes:
        key: Its key.
        data: Its content.
        good: Whether it can be counted.
    """

    key: str
    data: bytes
    good: bool


class SampleTotals(msgspec.Struct):
    """The totals of the written files.

    Attributes:
        files: The number of files.
        bad: The number of files that can never be counted.
        bytes: Their total size.
    """

    files: int = 0
    bad: int = 0
    bytes: int = 0


def samples(
    *, files: int, windows: list[Window], prefix: str, bad_fraction: float = 0.0, seed: int = 0
) -> Iterator[SampleFile]:
    """Yield files whose names and contents depend on the arguments alone.

    Args:
        files: How many files.
        windows: The windows that their names are spread over, evenly.
        prefix: What their keys start with.
        bad_fraction: The share of files that can never be counted, from 0 to 1.
        seed: The same seed gives the same files.

    Raises:
        UsageError: A number is out of range.
    """
    if files < 0 or not windows:
        raise UsageError(f"{files} files over {len(windows)} windows: expected at least 0 and 1")
    if not 0 <= bad_fraction <= 1:
        raise UsageError(
            f"bad_fraction {bad_fraction!r}: expected a number from 0 to 1", setting="bad_fraction"
        )
    dice = random.Random(seed)  # noqa: S311 - repeatable on purpose, not secret
    for number in range(files):
        window = windows[number * len(windows) // files]
        seconds = dice.uniform(0, window.minutes * 60 - 1)
        moment = window.start + timedelta(seconds=seconds)
        topic = f"{dice.choice(_AGENCIES)}-PS-{dice.randint(20, 26)}-{number:06d}"
        key = f"{prefix}{moment:%Y%m%dt%H%MZ}_{topic}.json"
        good = dice.random() >= bad_fraction
        data = _run(dice, topic, moment) if good else dice.choice(_BAD)
        yield SampleFile(key, data, good)


def _run(dice: random.Random, topic: str, moment: datetime) -> bytes:
    matches = dice.randint(0, 6)
    no_matches = dice.randint(0, 20)
    errors = int(dice.random() < 0.05)
    run = {
        "run_id": f"{moment:%Y%m%dt%H%MZ}_{topic}",
        "timestamp": moment.isoformat(timespec="milliseconds"),
        "total_opportunities": matches + no_matches + errors,
        "matches_found": matches,
        "no_matches": no_matches,
        "errors": errors,
        "processing_time_seconds": round(dice.lognormvariate(0.5, 0.8), 3),
        "top_matches": [_match(dice, topic, number) for number in range(matches)],
    }
    return orjson.dumps(run)


def _match(dice: random.Random, topic: str, number: int) -> dict[str, object]:
    subject = f"{dice.choice(_SUBJECTS)} {dice.choice(_OBJECTS)}"
    return {
        "solicitation_id": f"{topic}-{number}",
        "title": subject,
        "match_score": round(dice.betavariate(5, 2), 4),
        "rationale": f"{subject} fits the company's work on {dice.choice(_OBJECTS).lower()}. " * 3,
        "skills": dice.sample(_OBJECTS, 3),
    }


def last_windows(count: int, minutes: int, at: datetime | None = None) -> list[Window]:
    """Return the ``count`` windows that ended last, the oldest first."""
    end = window_of(at or datetime.now(UTC), minutes).start
    length = timedelta(minutes=minutes)
    return [Window(end - length * back, minutes) for back in reversed(range(count))]


async def write_samples(
    store: Store,
    files: Iterable[SampleFile],
    *,
    workers: int = 16,
    progress: Callable[[SampleTotals], object] = lambda _: None,
) -> SampleTotals:
    """Write sample files to a store, and return their totals.

    Args:
        store: The store.
        files: The files.
        workers: How many are written at a time.
        progress: Called with the totals so far after each file.
    """
    totals = SampleTotals()

    async def write(file: SampleFile) -> None:
        await store.put(file.key, file.data)
        totals.files += 1
        totals.bad += not file.good
        totals.bytes += len(file.data)
        progress(totals)

    await for_each(files, write, workers=workers)
    return totals
