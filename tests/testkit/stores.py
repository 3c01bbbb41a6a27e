"""The stores that the conformance suite runs on, and the capabilities of each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from anyio import to_thread
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from asyncagg.runtime.tasks import for_each
from asyncagg.settings import settings_from
from asyncagg.store import Store
from asyncagg.store.directory import DirectoryStore
from asyncagg.store.memory import MemoryStore
from asyncagg.store.opening import open_store
from asyncagg.store.s3.boto import open_control
from testkit.moto_server import moto_endpoint
from testkit.s3server import S3Server
from testkit.servers import BUCKET as REAL_BUCKET
from testkit.servers import endpoint

BUCKET = "conformance"
PREFIX = "a prefix"
"""The store's part of a bucket on moto."""


class Capabilities(NamedTuple):
    """What a store can do beyond the contract.

    Attributes:
        holds_any_key: It stores keys with empty, ``.`` and ``..`` parts, and a key below another.
        holds_control_characters: It stores keys with a newline or a tab.
        guards_copies: It honours the conditions of a copy: of several copies at once, one succeeds.
        is_a_tree: Its keys are paths on its own file system: of names up to 255 bytes, without
            empty or ``..`` parts, and listed folder by folder.
    """

    holds_any_key: bool = True
    holds_control_characters: bool = True
    guards_copies: bool = True
    is_a_tree: bool = False


@asynccontextmanager
async def _memory(_root: Path) -> AsyncIterator[Store]:
    yield MemoryStore()


@asynccontextmanager
async def _directory(root: Path) -> AsyncIterator[Store]:
    yield DirectoryStore(root)


async def _opened(stack: AsyncExitStack, plane: str, endpoint: str, bucket: str) -> Store:
    settings = settings_from(
        {
            "store": f"s3://{bucket}",
            "endpoint_url": endpoint,
            "data_plane": plane,
            "retry_attempts": 1,
            "conditional_writes": "off",
        }
    )
    return await stack.enter_async_context(open_store(settings))


_direct: dict[str, Callable[[str, bytes], object]] = {}
"""For a store on a server, by its URL: puts an object without a request."""


async def put_all(store: Store, keys: Sequence[str], body: bytes) -> None:
    """Put many equal objects, without requests where possible, because those take long."""
    put = _direct.get(store.url)
    if put is None:
        await for_each(keys, lambda key: store.put(key, body), workers=16)
    else:
        for key in keys:
            put(key, body)


def _s3(plane: str) -> Callable[[Path], AbstractAsyncContextManager[Store]]:
    @asynccontextmanager
    async def own(_root: Path) -> AsyncIterator[Store]:
        async with S3Server([BUCKET]) as server, AsyncExitStack() as stack:
            store = await _opened(stack, plane, server.url, BUCKET)
            _direct[store.url] = partial(server.put, BUCKET)
            yield store
            del _direct[store.url]

    return own


def _moto(plane: str) -> Callable[[Path], AbstractAsyncContextManager[Store]]:
    @asynccontextmanager
    async def moto(_root: Path) -> AsyncIterator[Store]:
        endpoint = await to_thread.run_sync(moto_endpoint)
        bucket = f"{BUCKET}-{uuid4().hex}"
        async with AsyncExitStack() as stack:
            async with open_control(endpoint_url=endpoint, connections=1) as control:
                await control.client.create_bucket(Bucket=bucket)
            store = await _opened(stack, plane, endpoint, f"{bucket}/{PREFIX}")
            backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
            _direct[store.url] = lambda key, body: backend.put_object(
                bucket, f"{PREFIX}/{key}", body
            )
            yield store
            del _direct[store.url]

    return moto


def _real(plane: str) -> Callable[[Path], AbstractAsyncContextManager[Store]]:
    """SeaweedFS, each time with another prefix of its bucket."""

    @asynccontextmanager
    async def real(_root: Path) -> AsyncIterator[Store]:
        url = await to_thread.run_sync(endpoint, "SeaweedFS")
        async with AsyncExitStack() as stack:
            yield await _opened(stack, plane, url, f"{REAL_BUCKET}/{uuid4().hex}")

    return real


STORES: dict[str, Callable[[Path], AbstractAsyncContextManager[Store]]] = {
    "memory": _memory,
    "directory": _directory,
    "s3-own-boto": _s3("boto"),
    "s3-moto-boto": _moto("boto"),
    "s3-own-lean": _s3("lean"),
    "s3-moto-lean": _moto("lean"),
    "s3-seaweedfs-boto": _real("boto"),
    "s3-seaweedfs-lean": _real("lean"),
}

CAPABILITIES: dict[str, Capabilities] = {
    "memory": Capabilities(),
    "directory": Capabilities(holds_any_key=False),
    "s3-own-boto": Capabilities(),
    "s3-own-lean": Capabilities(),
    "s3-moto-lean": Capabilities(holds_control_characters=False, guards_copies=False),
    "s3-moto-boto": Capabilities(holds_control_characters=False, guards_copies=False),
    "s3-seaweedfs-boto": Capabilities(is_a_tree=True),
    "s3-seaweedfs-lean": Capabilities(is_a_tree=True),
}
