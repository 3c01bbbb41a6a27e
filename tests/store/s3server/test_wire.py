"""The server speaks HTTP: pipelining, hosts, request ids, invalid requests."""

from __future__ import annotations

import re
from typing import Any

import pytest
from botocore.exceptions import ClientError
from testkit.boto_client import (
    send_raw,
)
from testkit.s3server import (
    S3Server,
)


async def test_virtual_host_style(server: S3Server) -> None:
    """A Host that starts with a bucket's name addresses that bucket."""
    server.put("b", "b/k", b"found")
    request = b"GET /b/k HTTP/1.1\r\nHost: b.s3.example.com\r\nConnection: close\r\n\r\n"
    assert (await send_raw(server, request)).endswith(b"found")


async def test_every_response_has_a_request_id(client: Any) -> None:
    """Successes and errors carry an x-amz-request-id."""
    with pytest.raises(ClientError) as caught:
        await client.get_object(Bucket="b", Key="absent")
    meta = caught.value.response["ResponseMetadata"]
    assert meta["HTTPHeaders"]["x-amz-request-id"] == meta["RequestId"] != ""
    assert (await client.head_bucket(Bucket="b"))["ResponseMetadata"]["RequestId"]


async def test_pipelined_requests_are_answered_in_order(server: S3Server) -> None:
    """Pipelined requests, in pieces of any size, are answered in order, also behind a slow one."""
    for number in range(10):
        server.put("b", str(number), b"<%d>" % number)
    lines = b"".join(b"GET /b/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % n for n in range(9))
    lines += b"GET /b/9 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    pieces = [lines[at : at + 37] for at in range(0, len(lines), 37)]
    expected = [b"<%d>" % number for number in range(10)]
    assert re.findall(rb"<\d>", await send_raw(server, lines)) == expected
    server.faults.slow_keys = {"0": 0.02, "5": 0.02}
    assert re.findall(rb"<\d>", await send_raw(server, *pieces)) == expected


async def test_bad_requests(server: S3Server) -> None:
    """A request that is not HTTP, not UTF-8 or not an operation gets an error response."""
    assert b"<Code>BadRequest<" in await send_raw(server, b"NONSENSE\r\n\r\n")
    line = b"%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"<Code>InvalidURI<" in await send_raw(server, line % b"GET /b/%FF")
    for unknown in (b"GET /b?acl", b"PUT /b/k?tagging", b"GET /b", b"PATCH /b/k"):
        assert b"<Code>NotImplemented<" in await send_raw(server, line % unknown)
    assert server.keys("b") == []


async def test_expect_continue(server: S3Server) -> None:
    """A client that waits for 100 Continue gets it."""
    request = (
        b"PUT /b/k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\n"
    )
    answer = await send_raw(server, request, b"ok")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert server.get("b", "k").body == b"ok"
