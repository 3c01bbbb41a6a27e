"""A prefix on a real S3 server, with run files to settle."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from asyncagg.runtime.tasks import for_each
from asyncagg.settings import Settings
from asyncagg.store import Store
from asyncagg.store.guards import GuardedStore
from asyncagg.store.opening import open_store
from testkit.promises import RECORD, Original, Seen, Snapshot, originals_of
from testkit.scenario import run_data
from testkit.servers import BUCKET

__all__ = ("Place", "fill", "seen_in", "soon")

_BAD = {"runs/bad.json": b"{not json", "runs/empty.json": b""}


@dataclass(frozen=True)
class Place:
    """A prefix of a server's bucket that nobody else uses.

    Attributes:
        url: The server's address.
        name: The prefix.
    """

    url: str
    name: str = field(default_factory=lambda: uuid4().hex)

    @property
    def store(self) -> str:
        """The store's URL."""
        return f"s3://{BUCKET}/{self.name}"

    @asynccontextmanager
    async def open(self, **more: Any) -> AsyncIterator[tuple[GuardedStore, Settings]]:
        """Open the store; the window of a file is that of the server's time."""
        given: dict[str, Any] = {"store": self.store, "endpoint_url": self.url} | more
        settings = Settings(window_by="last_modified", **given)
        async with open_store(settings) as store:
            assert isinstance(store, GuardedStore)
            yield store, settings


def soon() -> datetime:
    """Return a time after the end of the window of a file that is written now."""
    return datetime.now(UTC) + timedelta(minutes=10)


async def fill(store: Store, files: int) -> list[Original]:
    """Put good, zipped and bad run files into the inbox, and return them."""
    bodies = {
        f"runs/{number % 3}/run-{number:03}.json": run_data(number) for number in range(files)
    }
    bodies |= _BAD | {"runs/zipped.json.gz": gzip.compress(run_data(999), mtime=0)}
    await for_each(bodies.items(), lambda item: store.put(*item), workers=8)
    return originals_of(await seen_in(store), bad=_BAD)


async def seen_in(store: Store) -> Snapshot:
    """Return all objects of a store that no run works on."""
    listed = [file async for page in store.list_pages("") for file in page]
    found: Snapshot = {}

    async def read(key: str) -> None:
        info, body = await store.head(key), await store.get(key)
        found[key] = Seen(body.data, body.etag, info.file.last_modified, info.metadata)

    keys = [file.key for file in listed if not file.key.endswith(RECORD)]
    await for_each(keys, read, workers=8)
    return found
