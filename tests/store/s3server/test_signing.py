"""Requests are accepted only with a valid signature, time and payload hash."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from testkit.boto_client import (
    KEYS,
    WEIRD_KEYS,
    connect,
    refusal,
    send_raw,
)
from testkit.s3server import (
    Request,
    S3Server,
)
from testkit.s3server.wire import http_time


async def test_signatures(server: S3Server) -> None:
    """A correctly signed request passes; a wrong key, secret or region does not."""
    server.credentials = {"AK": "SK"}
    server.clock = lambda: datetime.now(UTC)
    async with connect(server.url) as client:
        for key in WEIRD_KEYS:
            await client.put_object(Bucket="b", Key=key, Body=b"x", Metadata={"a": "b  c"})
            await client.head_object(Bucket="b", Key=key)
        await client.list_objects_v2(Bucket="b", Prefix="a+ b", Delimiter="/")
    for wrong, expected in (
        ({"aws_secret_access_key": "no"}, (403, "SignatureDoesNotMatch")),
        ({"aws_access_key_id": "no"}, (403, "InvalidAccessKeyId")),
    ):
        async with connect(server.url, **(KEYS | wrong)) as client:
            assert await refusal(client.get_object(Bucket="b", Key="a+b")) == expected
    async with connect(server.url, region_name="eu-west-1") as client:
        await client.get_object(Bucket="b", Key="a+b")  # it learns the region from the refusal
    assert 400 in [entry.status for entry in server.audit.log]
    anonymous = b"GET /b/a+b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"<Code>AccessDenied<" in await send_raw(server, anonymous)


async def test_skewed_clock(server: S3Server, client: Any) -> None:
    """More than 15 minutes of skew are refused, with a Date that shows the server's time."""
    server.credentials = {"AK": "SK"}
    ahead = datetime.now(UTC) + timedelta(minutes=16)
    server.clock = lambda: ahead
    with pytest.raises(ClientError) as caught:
        await client.get_object(Bucket="b", Key="k")
    assert caught.value.response["Error"]["Code"] == "RequestTimeTooSkewed"
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["date"] == http_time(ahead).decode()


async def test_payload_hash(server: S3Server, client: Any) -> None:
    """A signed body that was changed on the way is refused."""
    server.credentials = {"AK": "SK"}
    server.clock = lambda: datetime.now(UTC)

    def spoil(request: Request) -> None:
        request.body = b"changed"

    server.on_request = spoil
    call = client.put_object(Bucket="b", Key="k", Body=b"x")
    assert await refusal(call) == (400, "XAmzContentSHA256Mismatch")
