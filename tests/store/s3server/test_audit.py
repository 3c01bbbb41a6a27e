"""The hook sees every request; the audit counts, logs and finds every loss."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.exceptions import HTTPClientError
from testkit.boto_client import (
    NOON,
    connect,
    refusal,
)
from testkit.s3server import (
    DropError,
    Request,
    S3Error,
    S3Server,
)


async def test_hook_sees_requests_in_order(server: S3Server, client: Any) -> None:
    """The hook sees each request before it is executed, and may be asynchronous."""
    seen: list[tuple[int, str, str, str, bool]] = []

    async def look(request: Request) -> None:
        await asyncio.sleep(0)
        there = server.has(request.bucket, request.key)
        seen.append((request.ordinal, request.operation, request.bucket, request.key, there))
        assert request.header("Host")

    server.on_request = look
    await client.put_object(Bucket="b", Key="k", Body=b"")
    await client.delete_object(Bucket="b", Key="k")
    assert seen == [(1, "PutObject", "b", "k", False), (2, "DeleteObject", "b", "k", True)]


async def test_hook_may_answer() -> None:
    """A hook can raise errors and drop connections; its own failure is raised on leaving."""

    def interfere(request: Request) -> None:
        if request.key == "busy":
            raise S3Error("SlowDown")
        if request.key == "drop":
            raise DropError(reset=True)
        assert request.key != "wrong", "a promise is broken"

    async def use() -> None:
        async with S3Server(["b"], on_request=interfere) as server, connect(server.url) as client:
            busy = client.get_object(Bucket="b", Key="busy")
            assert await refusal(busy) == (503, "SlowDown")
            with pytest.raises((BotoConnectionError, HTTPClientError)):
                await client.get_object(Bucket="b", Key="drop")
            await client.put_object(Bucket="b", Key="wrong", Body=b"")
            assert server.keys("b") == ["wrong"]

    with pytest.raises(AssertionError, match="a promise is broken"):
        await use()


async def test_audit_counts_and_logs(server: S3Server, client: Any) -> None:
    """Requests are counted by operation and logged with their status."""
    await client.put_object(Bucket="b", Key="k", Body=b"")
    await refusal(client.get_object(Bucket="b", Key="no"))
    assert server.audit.counts == {"PutObject": 1, "GetObject": 1}
    assert [tuple(entry) for entry in server.audit.log] == [
        (1, "PutObject", "b", "k", 200),
        (2, "GetObject", "b", "no", 404),
    ]


async def test_audit_of_losses(server: S3Server, client: Any) -> None:
    """Only a request that removes the last copy of some content is a loss."""
    server.put("b", "runs/1", b"same")
    await client.copy_object(Bucket="b", Key="archive/1", CopySource="b/runs/1")
    await client.delete_object(Bucket="b", Key="runs/1")
    await client.put_object(Bucket="b", Key="archive/1", Body=b"same")
    assert server.audit.lost == []
    await client.put_object(Bucket="b", Key="archive/1", Body=b"other")
    await client.delete_objects(Bucket="b", Delete={"Objects": [{"Key": "archive/1"}]})
    assert [(loss.operation, loss.key) for loss in server.audit.lost] == [
        ("PutObject", "archive/1"),
        ("DeleteObjects", "archive/1"),
    ]


async def test_direct_access(server: S3Server, client: Any) -> None:
    """Objects put directly keep the time, ETag and headers they are given."""
    before = NOON - timedelta(hours=3, microseconds=-7)
    server.put(
        "b", "k", b"x", last_modified=before, etag='"mine"', headers={"Content-Type": "text/plain"}
    )
    got = await client.head_object(Bucket="b", Key="k")
    assert got["LastModified"] == before.replace(microsecond=0)
    assert (got["ETag"], got["ContentType"]) == ('"mine"', "text/plain")
    assert server.keys("b", "k") == ["k"]
    with pytest.raises(KeyError):
        server.get("b", "absent")
