"""The inbox that the tests of the promises start from, on every kind of store.

It has everything that a crash or a race could get wrong: four windows that have ended and one that
has not, late files, bad files, an aggregate that counts a file which is still in the inbox, files
of equal content, a gzipped one, and archive and quarantine keys that hold other content.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from asyncagg.job.pipeline import run
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.guards import GuardedStore
from asyncagg.store.memory import MemoryStore, _Object
from asyncagg.store.opening import open_store
from asyncagg.store.protocol import ObjectInfo
from asyncagg.store.retry import Retry, RetryPolicy
from testkit.promises import Original, Snapshot, final_bytes, of_directory, of_memory, originals_of
from testkit.s3server import S3Server

__all__ = (
    "AT",
    "BUCKET",
    "FORMATS",
    "PLANES",
    "Clock",
    "File",
    "Prepared",
    "fill_directory",
    "fill_memory",
    "fill_server",
    "in_thread",
    "memory_of",
    "moment",
    "open_s3",
    "prepared",
    "prepared_directory",
    "run_data",
    "s3_settings",
    "write_files",
)

PLANES = ("boto", "lean")
"""The data planes that the tests over HTTP run with."""

FORMATS = ("files", "packs")
"""The forms of the archive that the tests of the promises run with."""

BUCKET = "b"


def moment(hours: int, minutes: int, seconds: int = 0) -> datetime:
    """Return a moment on the day of the scenario."""
    return datetime(2025, 10, 21, hours, minutes, seconds, tzinfo=UTC)


AT = moment(14, 10)
"""The moment of the run: the windows that end at 13:55, 14:00, 14:05 and 14:10 are settled."""

_BEFORE = moment(13, 56)
_W1355, _W1400, _W1405, _W1410 = (
    moment(13, 52),
    moment(13, 57),
    moment(14, 2),
    moment(14, 7, 59),
)
_WAITING = moment(14, 12)


class File(NamedTuple):
    """A file as its producer writes it."""

    key: str
    data: bytes
    moment: datetime
    good: bool = True


def run_data(number: int, **more: Any) -> bytes:
    """Return the content of a run file; it differs for each number."""
    run = {
        "run_id": f"run-{number}",
        "timestamp": f"2025-10-21T13:{number % 60:02d}:00+00:00",
        "total_opportunities": 10 + 7 * number,
        "matches_found": number % 5,
        "no_matches": 10 + 6 * number,
        "errors": number % 3,
        "processing_time_seconds": round(0.1 + number * 0.37, 2),
        "top_matches": [
            {"match_score": (number * 37 + place) % 20 / 20, "title": f"Match {number}/{place}"}
            for place in range(number % 4)
        ],
    }
    return json.dumps(run | more).encode()


_FIRST = (
    File("runs/again.json", run_data(1), _W1355),
    File("runs/counted.json", run_data(2), _W1355),
    File("runs/left-over.json", run_data(3), _W1355),
    File("runs/refused.json", b"{not json", _W1355, good=False),
)
"""Files that an earlier run counted or quarantined."""

_NOT_MOVED = ("runs/left-over.json", "runs/refused.json")
"""Those of them that the earlier run did not move."""

_NEW = (
    File("runs/again.json", run_data(4), _W1405),  # its archive key holds other content
    File("runs/c01.json", run_data(5), _W1400),
    File("runs/c02.json", run_data(6), _W1405),
    File("runs/c03.json", run_data(7), _W1410),
    File("runs/c04-late.json", run_data(8), _W1355),
    File("runs/c05-equal.json", run_data(9), _W1400),
    File("runs/c06-equal.json", run_data(9), _W1400),
    File("runs/c07-equal.json", run_data(9), _W1410),
    File("runs/c08.json.gz", gzip.compress(run_data(10), mtime=0), _W1405),
    File("runs/d09-bad.json", b'{"errors": "none"}', _W1405, good=False),
    File("runs/d10-taken.json", b'{"total_opportunities": -1}', _W1400, good=False),
    File("runs/d11-taken.json", run_data(11), _W1410),
    File("runs/d12-empty.json", b"", _W1410, good=False),
    File("runs/e13 ünï+%.json", run_data(12), _W1400),
    File("runs/f/e14.json", run_data(13), _W1405),
    File("runs/f/e15-late.json", run_data(14), _W1355),
    File("runs/g16.json", run_data(15, processing_time_seconds=None), _W1410),
    File("runs/g17-waits.json", run_data(16), _WAITING),
)

_OTHERS = (
    File("archive/d11-taken.json", b"something else", _W1400),
    File("quarantine/d10-taken.json", b"something else again", _W1400),
    File("runs/notes.txt", b"no run file", _W1400),
    File("aggregates/README.md", b"no aggregate", _W1400),
)


class Clock:
    """A clock that moves only when it is set."""

    def __init__(self, now: datetime = AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


@dataclass(frozen=True)
class Prepared:
    """The scenario, ready to be put into a store of one kind.

    Attributes:
        store: The inbox and all other objects, in memory.
        originals: Every version of every run file, the archived ones included.
        foreign: Objects of others, which must not change.
        expected: The final aggregates of an undisturbed run, without their history.
    """

    store: MemoryStore
    originals: tuple[Original, ...]
    foreign: Mapping[str, bytes]
    expected: Mapping[str, bytes]


_FOREIGN = {file.key: file.data for file in _OTHERS}


def in_thread(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run async work on a new event loop in a thread, from synchronous or async code."""

    async def main() -> Any:
        return await work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, main()).result()


async def _write(store: MemoryStore, clock: Clock, files: Iterable[File]) -> None:
    for file in files:
        clock.now = file.moment
        await store.put(file.key, file.data)
    clock.now = AT


async def _prepare() -> Prepared:
    clock = Clock()
    store = MemoryStore(clock)
    await _write(store, clock, _FIRST)
    bad = {file.key for file in (*_FIRST, *_NEW) if not file.good}
    first = originals_of(of_memory(store), bad=bad)
    await run(store, Settings(), at=_BEFORE)
    for key in _NOT_MOVED[:1]:  # counted, but not yet copied
        del store._objects[key.replace("runs/", "archive/")]
    await _write(store, clock, [file for file in _FIRST if file.key in _NOT_MOVED])
    await _write(store, clock, (*_NEW, *_OTHERS))
    new = originals_of(of_memory(store), bad=bad)
    undisturbed = fill_memory(store)
    await run(undisturbed, Settings(), at=AT)
    return Prepared(store, tuple({*first, *new}), _FOREIGN, final_bytes(of_memory(undisturbed)))


@lru_cache
def prepared() -> Prepared:
    """Return the scenario for a store whose etags are MD5 sums."""
    found: Prepared = in_thread(_prepare)
    return found


def fill_memory(template: MemoryStore) -> MemoryStore:
    """Return a new store with all objects of a template."""
    store = MemoryStore(Clock())
    store._objects.update(template._objects)
    return store


def memory_of(seen: Snapshot) -> MemoryStore:
    """Return a store in memory with the objects of a snapshot."""
    store = MemoryStore(Clock())
    for key, each in seen.items():
        file = RunFile(key, len(each.data), each.etag, each.last_modified)
        info = ObjectInfo(file, "application/json", "", each.metadata)
        store._objects[key] = _Object(each.data, info)
    return store


def fill_server(server: S3Server, template: MemoryStore, bucket: str = BUCKET) -> None:
    """Put all objects of a template into a bucket of the test server."""
    for key, each in template._objects.items():
        headers = {"content-type": each.info.content_type or "application/json"}
        headers |= {f"x-amz-meta-{name}": value for name, value in each.info.metadata.items()}
        server.put(
            bucket, key, each.data, last_modified=each.info.file.last_modified, headers=headers
        )


class PreparedDirectory(NamedTuple):
    """The scenario in a directory, with the attributes of `Prepared`."""

    root: Path
    originals: tuple[Original, ...]
    foreign: Mapping[str, bytes]
    expected: Mapping[str, bytes]


def prepared_directory(folder: Path, *, only: tuple[str, ...] = ("",)) -> PreparedDirectory:
    """Make the scenario in ``folder``/template, for copies with `fill_directory`.

    Args:
        folder: An empty directory.
        only: Take only the new run files whose names begin with one of these.
    """
    template = folder / "template"
    (template / "runs").mkdir(parents=True)
    write_files(template, _FIRST)
    bad = {file.key for file in (*_FIRST, *_NEW) if not file.good}
    first = originals_of(of_directory(template), bad=bad)
    in_thread(lambda: run(DirectoryStore(template), Settings(), at=_BEFORE))
    (template / "archive/left-over.json").unlink()
    write_files(template, [file for file in _FIRST if file.key in _NOT_MOVED])
    new_files = [file for file in _NEW if file.key.rpartition("/")[2].startswith(only)]
    write_files(template, (*new_files, *_OTHERS))
    new = originals_of(of_directory(template), bad=bad)
    undisturbed = fill_directory(template, folder / "undisturbed")
    in_thread(lambda: run(DirectoryStore(undisturbed), Settings(), at=AT))
    expected = final_bytes(of_directory(undisturbed))
    return PreparedDirectory(template, tuple({*first, *new}), _FOREIGN, expected)


def write_files(root: Path, files: Iterable[File]) -> None:
    """Write files below a directory, with their times."""
    for file in files:
        path = root / file.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        seconds = file.moment.timestamp()
        os.utime(path, (seconds, seconds))


def fill_directory(template: Path, root: Path) -> Path:
    """Copy a directory with the exact times of its files, and return the copy."""
    for path in template.rglob("*"):
        target = root / path.relative_to(template)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            status = path.stat()
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return root


# ------------------------------------------------------------------------------ stores


def s3_settings(url: str, plane: str = PLANES[0], **more: Any) -> Settings:
    """Return the settings for a bucket of the test server."""
    store = {"store": f"s3://{BUCKET}", "endpoint_url": url, "data_plane": plane}
    return Settings(**(store | {"concurrency": 8} | more))


async def _no_pause(_seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def open_s3(
    server: S3Server,
    plane: str = PLANES[0],
    *,
    policy: RetryPolicy | None = None,
    sleep: Callable[[float], Awaitable[object]] = _no_pause,
    uniform: Callable[[float, float], float] = max,
    **more: Any,
) -> AsyncIterator[tuple[GuardedStore, Settings]]:
    """Open the store as the package does, but with retries that do not wait.

    Args:
        server: The test server.
        plane: The data plane.
        policy: The limits of retries.
        sleep: Waits before a retry.
        uniform: Chooses the time to wait.
        more: Settings.
    """
    settings = s3_settings(server.url, plane, **more)
    async with open_store(settings) as store:
        assert isinstance(store, GuardedStore)
        inner: Any = store._store
        policy = policy or RetryPolicy(settings.retry_attempts, base_seconds=1e-6)
        inner.retry = Retry(policy, sleep=sleep, uniform=uniform)
        yield store, settings
