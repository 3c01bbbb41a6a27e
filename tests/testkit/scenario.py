"""The inbox that the tests of the promises start from, on every kind of store.

It has all that a crash or a race could get wrong in one place: four windows that have ended and one
that has not, late files, bad files, an aggregate that stands and counts a file that is still in the
inbox, two files of equal content, a zipped one, and targets that other content has taken already.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from asyncagg.errors import StoreError
from asyncagg.job.deadline import Deadline
from asyncagg.job.pipeline import run
from asyncagg.model import RunFile
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.guards import GuardedStore
from asyncagg.store.memory import MemoryStore, _Object
from asyncagg.store.opening import open_store
from asyncagg.store.protocol import Absent, Body, Condition, ObjectInfo, StreamedBody
from asyncagg.store.retry import Retry, RetryPolicy
from testkit.promises import Original, Snapshot, final_bytes, of_directory, of_memory, originals_of
from testkit.s3server import S3Server
from testkit.s3server import Store as ServerState

__all__ = (
    "AT",
    "BUCKET",
    "PLANES",
    "Clock",
    "File",
    "HookedStore",
    "Leaps",
    "Prepared",
    "Stopped",
    "deadline",
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
"""What sends the requests per file in the tests over HTTP: add a data plane here."""

BUCKET = "b"


def moment(hours: int, minutes: int, seconds: int = 0) -> datetime:
    """Return a moment of the day on which all of this takes place."""
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
    """Return the content of a run file, each number another one."""
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
"""What an earlier run has counted and refused."""

_STILL_THERE = ("runs/left-over.json", "runs/refused.json")
"""Those of them that it did not come to move."""

_NEW = (
    File("runs/again.json", run_data(4), _W1405),  # its archive key is taken
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
    """A clock that stands until it is set."""

    def __init__(self, now: datetime = AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Tell the time."""
        return self.now


@dataclass(frozen=True)
class Prepared:
    """The scenario, ready to be put into a store of one kind.

    Attributes:
        store: What stands, as a store in memory.
        originals: Every version of every run file, the archived ones included.
        foreign: What is no business of ours.
        expected: The final aggregates of an undisturbed run, without their history.
    """

    store: MemoryStore
    originals: tuple[Original, ...]
    foreign: Mapping[str, bytes]
    expected: Mapping[str, bytes]


_FOREIGN = {file.key: file.data for file in _OTHERS}


def in_thread(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run async work on a loop of its own, wherever the caller is."""

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
    for key in _STILL_THERE[:1]:  # it was counted, but its copy was never made
        del store._objects[key.replace("runs/", "archive/")]
    await _write(store, clock, [file for file in _FIRST if file.key in _STILL_THERE])
    await _write(store, clock, (*_NEW, *_OTHERS))
    new = originals_of(of_memory(store), bad=bad)
    undisturbed = fill_memory(store)
    await run(undisturbed, Settings(), at=AT)
    return Prepared(store, tuple({*first, *new}), _FOREIGN, final_bytes(of_memory(undisturbed)))


@lru_cache
def prepared() -> Prepared:
    """Return the scenario for stores whose etag is the content's MD5."""
    found: Prepared = in_thread(_prepare)
    return found


def fill_memory(template: MemoryStore) -> MemoryStore:
    """Return a store of its own with all that the template has."""
    store = MemoryStore(Clock())
    store._objects.update(template._objects)
    return store


def memory_of(seen: Snapshot) -> MemoryStore:
    """Return a store in memory with what was seen in another store."""
    store = MemoryStore(Clock())
    for key, each in seen.items():
        file = RunFile(key, len(each.data), each.etag, each.last_modified)
        info = ObjectInfo(file, "application/json", "", each.metadata)
        store._objects[key] = _Object(each.data, info)
    return store


def fill_server(server: ServerState, template: MemoryStore, bucket: str = BUCKET) -> None:
    """Put all that the template has into a bucket of the test server."""
    for key, each in template._objects.items():
        headers = {"content-type": each.info.content_type or "application/json"}
        headers |= {f"x-amz-meta-{name}": value for name, value in each.info.metadata.items()}
        server.put(
            bucket, key, each.data, last_modified=each.info.file.last_modified, headers=headers
        )


class PreparedDirectory(NamedTuple):
    """The scenario in a directory; see `Prepared`."""

    root: Path
    originals: tuple[Original, ...]
    foreign: Mapping[str, bytes]
    expected: Mapping[str, bytes]


def prepared_directory(folder: Path, *, only: tuple[str, ...] = ("",)) -> PreparedDirectory:
    """Make the scenario in ``folder``/template, to be copied from there, times and all.

    Args:
        folder: An empty directory.
        only: Of the new run files take those whose names begin so.
    """
    template = folder / "template"
    (template / "runs").mkdir(parents=True)
    write_files(template, _FIRST)
    bad = {file.key for file in (*_FIRST, *_NEW) if not file.good}
    first = originals_of(of_directory(template), bad=bad)
    in_thread(lambda: run(DirectoryStore(template), Settings(), at=_BEFORE))
    (template / "archive/left-over.json").unlink()
    write_files(template, [file for file in _FIRST if file.key in _STILL_THERE])
    new_files = [file for file in _NEW if file.key.rpartition("/")[2].startswith(only)]
    write_files(template, (*new_files, *_OTHERS))
    new = originals_of(of_directory(template), bad=bad)
    undisturbed = fill_directory(template, folder / "undisturbed")
    in_thread(lambda: run(DirectoryStore(undisturbed), Settings(), at=AT))
    expected = final_bytes(of_directory(undisturbed))
    return PreparedDirectory(template, tuple({*first, *new}), _FOREIGN, expected)


def write_files(root: Path, files: Iterable[File]) -> None:
    """Write files below a directory, each with its own time."""
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
    """Open the store that the package itself opens, with pauses that take no time.

    Args:
        server: The test server.
        plane: What sends the requests per file.
        policy: How often a request is tried.
        sleep: The pause before the next try.
        uniform: Chooses how long it is.
        more: Settings.
    """
    settings = s3_settings(server.url, plane, **more)
    async with open_store(settings) as store:
        assert isinstance(store, GuardedStore)
        inner: Any = store._store
        policy = policy or RetryPolicy(settings.retry_attempts, base_seconds=1e-6)
        inner.retry = Retry(policy, sleep=sleep, uniform=uniform)
        yield store, settings


Hook = Callable[[str, str, str], Awaitable[None]]


@dataclass
class HookedStore:
    """A store whose requests are announced before they are executed, and again after.

    Attributes:
        inner: The store itself.
        hook: Called with the operation, the key, and "before" or "after" it is executed. What it
            raises, the caller gets, in place of the answer.
        calls: How many requests there were, by operation.
    """

    inner: Store
    hook: Hook
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its name for messages."""
        return self.inner.url

    @asynccontextmanager
    async def _announced(self, operation: str, key: str) -> AsyncIterator[None]:
        self.calls[operation] = self.calls.get(operation, 0) + 1
        await self.hook(operation, key, "before")
        yield
        await self.hook(operation, key, "after")

    async def list_pages(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[Sequence[RunFile]]:
        """See `asyncagg.store.Store.list_pages`."""
        pages = self.inner.list_pages(prefix, start_after=start_after)
        while True:
            await self.hook("list", prefix, "before")
            page = await anext(pages, None)
            await self.hook("list", prefix, "after")
            if page is None:
                return
            yield page

    async def head(self, key: str) -> ObjectInfo:
        """See `asyncagg.store.Store.head`."""
        async with self._announced("head", key):
            return await self.inner.head(key)

    async def get(self, key: str, *, if_match: str | None = None) -> Body:
        """See `asyncagg.store.Store.get`."""
        async with self._announced("get", key):
            return await self.inner.get(key, if_match=if_match)

    @asynccontextmanager
    async def stream(self, key: str, *, if_match: str | None = None) -> AsyncIterator[StreamedBody]:
        """See `asyncagg.store.Store.stream`."""
        async with self._announced("stream", key):
            pass
        async with self.inner.stream(key, if_match=if_match) as body:
            yield body

    async def put(
        self,
        key: str,
        body: bytes | AsyncIterable[bytes],
        *,
        condition: Condition | None = None,
        content_type: str = "application/json",
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """See `asyncagg.store.Store.put`."""
        async with self._announced("put", key):
            return await self.inner.put(
                key,
                body,
                condition=condition,
                content_type=content_type,
                metadata=metadata,
            )

    async def copy(
        self,
        source: str,
        target: str,
        *,
        if_match: str,
        condition: Absent | None = Absent(),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """See `asyncagg.store.Store.copy`."""
        async with self._announced("copy", source):
            await self.inner.copy(
                source, target, if_match=if_match, condition=condition, metadata=metadata
            )

    async def delete(self, files: Sequence[RunFile]) -> Mapping[str, StoreError]:
        """See `asyncagg.store.Store.delete`."""
        async with self._announced("delete", files[0].key):
            return await self.inner.delete(files)


class Stopped:
    """Cancels a task at a request to its store, before it is executed or in place of its answer."""

    def __init__(self, store: MemoryStore, at: int, when: str) -> None:
        self.store = HookedStore(store, self._hook)
        self.task: asyncio.Task[object] | None = None
        self.step = ""
        self._at = at
        self._when = when
        self._seen = 0

    async def _hook(self, operation: str, key: str, when: str) -> None:
        self._seen += when == self._when
        if when == self._when and self._seen == self._at:
            self.step = f"request {self._at}, {operation} {key!r}, {when} it was executed"
            assert self.task is not None
            self.task.cancel()
            await asyncio.Event().wait()


# ------------------------------------------------------------------------------ time


class Leaps:
    """Lets the event loop's clock leap ahead, so that no test waits for a deadline."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        really = loop.time
        self._ahead = 0.0
        monkeypatch.setattr(loop, "time", lambda: really() + self._ahead)

    def leap(self, seconds: float) -> None:
        """Leap ahead; the loop looks at its clock at its next turn."""
        self._ahead += seconds
        asyncio.get_running_loop().call_soon(int)


def deadline(seconds: float = 100.0) -> Deadline:
    """Return a deadline that is reached only by leaps."""
    return Deadline(asyncio.get_running_loop().time() + seconds, reserve=seconds / 20)
