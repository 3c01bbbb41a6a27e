"""The S3 store: multipart uploads, resumed streams and large copies, on the test server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from testkit.s3server import Faults, Request, S3Error, S3Server

from asyncagg.errors import PreconditionFailedError
from asyncagg.store import Absent, Matches
from asyncagg.store.retry import Retry, RetryPolicy
from asyncagg.store.s3.boto import BotoBucket, BotoMultipart, BotoPlane, open_control
from asyncagg.store.s3.store import PART_BYTES, S3Store

BUCKET = "s3-store"
LARGE = bytes(range(256)) * (PART_BYTES // 256 * 5 // 2)


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    """Yield the test server."""
    async with S3Server([BUCKET], faults=Faults(allow_small_parts=True)) as running:
        yield running


@pytest.fixture
async def store(server: S3Server) -> AsyncIterator[S3Store]:
    """Yield a store that retries at once, and copies objects above 1,000 bytes in parts."""
    async with open_control(endpoint_url=server.url, connections=4) as control:
        bucket = BotoBucket(control.client, BUCKET)
        retry = Retry(RetryPolicy(base_seconds=0.0))
        plane, multipart = BotoPlane(bucket), BotoMultipart(bucket)
        yield S3Store("s3://test", plane, multipart, retry, copy_bytes=1000)


async def blocks(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """Yield data in blocks."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def refuses_large_copies(request: Request) -> None:
    """Reject every copy, as S3 does for an object above 5 GB."""
    if request.operation == "CopyObject":
        raise S3Error("InvalidRequest")


async def test_what_is_longer_than_a_part_goes_up_in_parts(
    server: S3Server, store: S3Store
) -> None:
    """A long document is stored whole, by a multipart upload with parts that S3 accepts."""
    server.faults.allow_small_parts = False
    await store.put("long.json", blocks(LARGE), condition=Absent())
    assert server.get(BUCKET, "long.json").body == LARGE
    assert server.audit.counts["UploadPart"] == 3


async def test_the_conditions_hold_for_parts_too(server: S3Server, store: S3Store) -> None:
    """A multipart upload whose condition fails leaves no parts."""
    await store.put("long.json", b"{}")
    for condition in (Absent(), Matches("0" * 32)):
        with pytest.raises(PreconditionFailedError):
            await store.put("long.json", blocks(LARGE), condition=condition)
    assert server.get(BUCKET, "long.json").body == b"{}"
    assert server.audit.counts["AbortMultipartUpload"] == 2


async def test_a_body_that_breaks_is_resumed_where_it_broke(
    server: S3Server, store: S3Store
) -> None:
    """A stream whose connection breaks repeatedly is read whole, each byte once."""
    server.put(BUCKET, "long.json", LARGE)
    server.faults.truncate = 1.0

    def relent(_: Request) -> None:
        if server.audit.counts["GetObject"] == 4:
            server.faults.truncate = 0.0

    server.on_request = relent
    async with store.stream("long.json") as body:
        read = b"".join([chunk async for chunk in body.chunks])
    assert read == LARGE
    assert server.audit.counts["GetObject"] >= 4


async def test_a_body_that_changes_while_it_is_resumed_is_not_mixed(
    server: S3Server, store: S3Store
) -> None:
    """The rest of an overwritten object is not appended to the start of the first one."""
    server.put(BUCKET, "long.json", LARGE)
    server.faults.truncate = 1.0

    def overwrite(request: Request) -> None:
        if request.header("range"):
            server.put(BUCKET, "long.json", LARGE[::-1])
            server.faults.truncate = 0.0

    server.on_request = overwrite
    async with store.stream("long.json") as body:
        with pytest.raises(PreconditionFailedError):
            [chunk async for chunk in body.chunks]


async def test_an_object_too_large_for_one_copy_is_copied_in_parts(
    server: S3Server, store: S3Store
) -> None:
    """An object too large for CopyObject is copied with its metadata and conditions."""
    server.put(BUCKET, "large.json", LARGE[:4567])
    server.on_request = refuses_large_copies
    etag = server.get(BUCKET, "large.json").etag.strip('"')
    await store.copy("large.json", "there.json", if_match=etag, metadata={"reason": "too large"})
    assert server.get(BUCKET, "there.json").body == LARGE[:4567]
    assert (await store.head("there.json")).metadata == {"reason": "too large"}
    assert server.audit.counts["UploadPartCopy"] > 1
    with pytest.raises(PreconditionFailedError):
        await store.copy("large.json", "there.json", if_match=etag)
    with pytest.raises(PreconditionFailedError):
        await store.copy("large.json", "elsewhere.json", if_match="0" * 32)
