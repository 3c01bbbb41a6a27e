"""A real S3 client for the tests of the S3 server, and raw requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aioboto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from testkit.s3server import S3Server

__all__ = (
    "KEYS",
    "NOON",
    "WEIRD_KEYS",
    "begin_upload",
    "body_of",
    "complete_upload",
    "connect",
    "refusal",
    "send_raw",
)

KEYS: dict[str, Any] = {"aws_access_key_id": "AK", "aws_secret_access_key": "SK"}
NOON = datetime(2025, 10, 21, 12, 0, 0, tzinfo=UTC)
WEIRD_KEYS = [
    "plain.json",
    "with space.json",
    "a+b",
    "100%25/%zz",
    "ünï/日本/🙂",
    "x/../../y/./z",
    "double//slash/",
    "new\nline",
    "tab\tand\x01control",
    "<&>\"'",
    "?query=1#fragment",
    "k" * 1024,
]

_SESSION = aioboto3.Session(**KEYS, region_name="us-east-1")


@asynccontextmanager
async def connect(url: str, *, read_timeout: float = 5, **options: Any) -> AsyncIterator[Any]:
    """Open a client with its retries off; options are those of the session's ``client``."""
    config = Config(
        retries={"total_max_attempts": 1},
        read_timeout=read_timeout,
        s3={"addressing_style": "path"},
    )
    async with _SESSION.client("s3", endpoint_url=url, config=config, **options) as client:
        yield client


async def refusal(call: Awaitable[Any]) -> tuple[int, str]:
    """Return the status and code of a call that fails."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


async def body_of(client: Any, key: str, **options: Any) -> bytes:
    """Read an object of bucket b."""
    response = await client.get_object(Bucket="b", Key=key, **options)
    body: bytes = await response["Body"].read()
    return body


async def begin_upload(client: Any, *bodies: bytes) -> tuple[str, list[dict[str, Any]]]:
    """Begin an upload of key k and send its parts."""
    upload = await client.create_multipart_upload(Bucket="b", Key="k", Metadata={"m": "1"})
    parts = []
    for number, body in enumerate(bodies, 1):
        part = await client.upload_part(
            Bucket="b", Key="k", UploadId=upload["UploadId"], PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    return upload["UploadId"], parts


def complete_upload(
    client: Any, upload_id: str, parts: list[Any], **conditions: str
) -> Awaitable[Any]:
    """Complete an upload of key k."""
    call: Awaitable[Any] = client.complete_multipart_upload(
        Bucket="b", Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts}, **conditions
    )
    return call


async def send_raw(server: S3Server, *pieces: bytes) -> bytes:
    """Send raw bytes, piece by piece, and return everything that the server sends."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
