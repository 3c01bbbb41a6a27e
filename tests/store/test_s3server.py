"""The in-memory S3 server answers as S3 does, fails as it is told to, and notices every loss."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aioboto3
import pytest
import testkit
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, ReadTimeoutError
from botocore.exceptions import ConnectionError as BotoConnectionError
from testkit import s3server
from testkit.s3server import (
    DropError,
    Faults,
    Guard,
    Pause,
    Request,
    S3Error,
    S3Server,
    SortedKeys,
    ThreadedS3Server,
)

KEYS = {"aws_access_key_id": "AK", "aws_secret_access_key": "SK"}
SESSION = aioboto3.Session(**KEYS, region_name="us-east-1")
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


@asynccontextmanager
async def connect(url: str, **options: Any) -> AsyncIterator[Any]:
    """Open a real client with its retries off."""
    style = options.pop("style", "path")
    config = Config(
        retries={"total_max_attempts": 1},
        read_timeout=options.pop("read_timeout", 5),
        s3={"addressing_style": style},
    )
    async with SESSION.client("s3", endpoint_url=url, config=config, **options) as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    """A server with one bucket and a clock at noon."""
    async with S3Server(["b"], clock=lambda: NOON) as server:
        yield server


@pytest.fixture
async def client(server: S3Server) -> AsyncIterator[Any]:
    """A client of that server."""
    async with connect(server.url) as client:
        yield client


async def refusal(call: Awaitable[Any]) -> tuple[int, str]:
    """Return the status and code of a call that fails."""
    with pytest.raises(ClientError) as caught:
        await call
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


async def body_of(client: Any, key: str, **options: Any) -> bytes:
    """Read an object."""
    response = await client.get_object(Bucket="b", Key=key, **options)
    body: bytes = await response["Body"].read()
    return body


async def speak(server: S3Server, *pieces: bytes) -> bytes:
    """Send raw bytes, piece by piece, and return all that comes back until the end."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


# ------------------------------------------------------------------------------ buckets


async def test_buckets_live_and_die(server: S3Server, client: Any) -> None:
    """Buckets are created, found, with_context, and deleted only when empty."""
    await client.create_bucket(Bucket="new")
    assert await refusal(client.create_bucket(Bucket="new")) == (409, "BucketAlreadyOwnedByYou")
    head = await client.head_bucket(Bucket="new")
    assert head["BucketRegion"] == "us-east-1"
    assert (await client.get_bucket_location(Bucket="new"))["LocationConstraint"] is None
    server.put("new", "k", b"")
    assert await refusal(client.delete_bucket(Bucket="new")) == (409, "BucketNotEmpty")
    server.delete("new", "k")
    await client.delete_bucket(Bucket="new")
    assert await refusal(client.head_bucket(Bucket="new")) == (404, "404")
    assert await refusal(client.get_object(Bucket="new", Key="k")) == (404, "NoSuchBucket")


async def test_virtual_host_style(server: S3Server) -> None:
    """A Host that starts with a bucket's name addresses that bucket."""
    server.put("b", "b/k", b"found")
    request = b"GET /b/k HTTP/1.1\r\nHost: b.s3.example.com\r\nConnection: close\r\n\r\n"
    assert (await speak(server, request)).endswith(b"found")


async def test_every_response_has_a_request_id(client: Any) -> None:
    """Successes and errors carry an x-amz-request-id."""
    with pytest.raises(ClientError) as caught:
        await client.get_object(Bucket="b", Key="absent")
    meta = caught.value.response["ResponseMetadata"]
    assert meta["HTTPHeaders"]["x-amz-request-id"] == meta["RequestId"] != ""
    assert (await client.head_bucket(Bucket="b"))["ResponseMetadata"]["RequestId"]


# ------------------------------------------------------------------------------ objects


@pytest.mark.parametrize("key", WEIRD_KEYS, ids=lambda key: ascii(key[:20]))
async def test_weird_keys(server: S3Server, client: Any, key: str) -> None:
    """Any key can be put, read, listed, copied, and deleted, and is never normalised."""
    await client.put_object(Bucket="b", Key=key, Body=b"body")
    assert server.keys("b") == [key]
    assert await body_of(client, key) == b"body"
    listed = await client.list_objects_v2(Bucket="b")
    assert [entry["Key"] for entry in listed["Contents"]] == [key]
    await client.copy_object(Bucket="b", Key="copy", CopySource={"Bucket": "b", "Key": key})
    await client.delete_object(Bucket="b", Key=key)
    assert server.keys("b") == ["copy"]
    assert server.audit.lost == []


async def test_key_too_long(client: Any) -> None:
    """A key of more than 1,024 bytes is refused."""
    call = client.put_object(Bucket="b", Key="é" * 513, Body=b"")
    assert await refusal(call) == (400, "KeyTooLongError")


async def test_put_and_get_keep_headers(server: S3Server, client: Any) -> None:
    """An object comes back with its bytes, type, encoding, metadata, ETag and time."""
    put = await client.put_object(
        Bucket="b",
        Key="k",
        Body=b"{}",
        ContentType="application/json",
        ContentEncoding="gzip",
        Metadata={"run": "7"},
    )
    for got in (
        await client.get_object(Bucket="b", Key="k"),
        await client.head_object(Bucket="b", Key="k"),
    ):
        assert got["ContentType"] == "application/json"
        assert got["ContentEncoding"] == "gzip"
        assert got["Metadata"] == {"run": "7"}
        assert got["ETag"] == put["ETag"] == f'"{hashlib.md5(b"{}").hexdigest()}"'
        assert got["LastModified"] == NOON
        assert got["ContentLength"] == 2
    assert server.get("b", "k").headers["x-amz-meta-run"] == "7"


async def test_get_conditions(server: S3Server, client: Any) -> None:
    """If-Match fails with 412, If-None-Match answers 304, an absent key 404."""
    etag = server.put("b", "k", b"body").etag
    assert await body_of(client, "k", IfMatch=etag) == b"body"
    assert await refusal(client.get_object(Bucket="b", Key="k", IfMatch='"other"')) == (
        412,
        "PreconditionFailed",
    )
    assert (await refusal(client.get_object(Bucket="b", Key="k", IfNoneMatch=etag)))[0] == 304
    assert await body_of(client, "k", IfNoneMatch='"other"') == b"body"
    assert await refusal(client.get_object(Bucket="b", Key="no")) == (404, "NoSuchKey")
    assert await refusal(client.head_object(Bucket="b", Key="no")) == (404, "404")


@pytest.mark.parametrize(
    ("wanted", "expected", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=5-500", b"56789", "bytes 5-9/10"),
        ("bytes=0-9", b"0123456789", "bytes 0-9/10"),
    ],
)
async def test_range(
    server: S3Server, client: Any, wanted: str, expected: bytes, content_range: str
) -> None:
    """A range is answered 206 with what it covers."""
    server.put("b", "k", b"0123456789")
    got = await client.get_object(Bucket="b", Key="k", Range=wanted)
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert await got["Body"].read() == expected
    assert got["ContentRange"] == content_range


async def test_range_outside(server: S3Server, client: Any) -> None:
    """A range beyond the end is refused."""
    server.put("b", "k", b"0123456789")
    call = client.get_object(Bucket="b", Key="k", Range="bytes=10-")
    assert await refusal(call) == (416, "InvalidRange")


async def test_put_conditions(server: S3Server, client: Any) -> None:
    """Put-if-absent and put-if-match hold, and an absent key with If-Match is 404."""
    first = await client.put_object(Bucket="b", Key="k", Body=b"1", IfNoneMatch="*")
    again = client.put_object(Bucket="b", Key="k", Body=b"2", IfNoneMatch="*")
    assert await refusal(again) == (412, "PreconditionFailed")
    await client.put_object(Bucket="b", Key="k", Body=b"3", IfMatch=first["ETag"])
    stale = client.put_object(Bucket="b", Key="k", Body=b"4", IfMatch=first["ETag"])
    assert await refusal(stale) == (412, "PreconditionFailed")
    absent = client.put_object(Bucket="b", Key="no", Body=b"5", IfMatch=first["ETag"])
    assert await refusal(absent) == (404, "NoSuchKey")
    assert server.get("b", "k").body == b"3"


async def test_digests_are_checked(server: S3Server, client: Any) -> None:
    """A body that does not have the MD5 or checksum it claims is refused."""
    wrong = "1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing
    call = client.put_object(Bucket="b", Key="k", Body=b"x", ContentMD5=wrong)
    assert await refusal(call) == (400, "BadDigest")
    call = client.put_object(Bucket="b", Key="k", Body=b"x", ChecksumCRC32="AAAAAA==")
    assert await refusal(call) == (400, "BadDigest")
    put = await client.put_object(Bucket="b", Key="k", Body=b"x", ChecksumAlgorithm="SHA256")
    got = await client.get_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
    assert got["ChecksumSHA256"] == put["ChecksumSHA256"]
    assert server.keys("b") == ["k"]


def streaming_put(crc32: bytes) -> bytes:
    """Render a put as a modern client streams it: chunks, then a trailing checksum."""
    body = b"5;chunk-signature=abc\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n"
    body %= crc32
    return (
        b"PUT /b/k HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: aws-chunked,gzip\r\n"
        b"x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER\r\n"
        b"x-amz-trailer: x-amz-checksum-crc32\r\nx-amz-decoded-content-length: 11\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


async def test_aws_chunked_body(server: S3Server) -> None:
    """A streamed body is decoded and its trailing checksum verified."""
    assert (await speak(server, streaming_put(b"DUoRhQ=="))).startswith(b"HTTP/1.1 200")
    assert server.get("b", "k").body == b"hello world"
    assert server.get("b", "k").headers["content-encoding"] == "gzip"
    assert b"<Code>BadDigest<" in await speak(server, streaming_put(b"AAAAAA=="))


# ------------------------------------------------------------------------------ copy


async def test_copy_keeps_or_replaces_metadata(server: S3Server, client: Any) -> None:
    """A copy has the same content and metadata, unless these are replaced."""
    source = server.put("b", "s", b"body", headers={"x-amz-meta-a": "1"})
    copied = await client.copy_object(Bucket="b", Key="c", CopySource="b/s")
    assert copied["CopyObjectResult"] == {"ETag": source.etag, "LastModified": NOON}
    assert server.get("b", "c").headers["x-amz-meta-a"] == "1"
    await client.copy_object(
        Bucket="b",
        Key="r",
        CopySource="b/s",
        MetadataDirective="REPLACE",
        Metadata={"z": "2"},
    )
    assert "x-amz-meta-a" not in server.get("b", "r").headers
    assert server.get("b", "r").headers["x-amz-meta-z"] == "2"
    itself = client.copy_object(Bucket="b", Key="s", CopySource="b/s")
    assert await refusal(itself) == (400, "InvalidRequest")


async def test_copy_conditions(server: S3Server, client: Any) -> None:
    """Conditions on the source and on the destination each fail with 412."""
    etag = server.put("b", "s", b"new").etag
    taken = server.put("b", "taken", b"precious").etag

    def copy(key: str, source: str = "b/s", **conditions: str) -> Awaitable[Any]:
        call: Awaitable[Any] = client.copy_object(
            Bucket="b", Key=key, CopySource=source, **conditions
        )
        return call

    failed = (412, "PreconditionFailed")
    assert await refusal(copy("c", CopySourceIfMatch='"old"')) == failed
    assert await refusal(copy("c", CopySourceIfNoneMatch=etag)) == failed
    assert await refusal(copy("taken", IfNoneMatch="*")) == failed
    assert await refusal(copy("taken", IfMatch='"other"')) == failed
    assert await refusal(copy("c", IfMatch='"other"')) == (404, "NoSuchKey")
    assert await refusal(copy("c", source="b/absent")) == (404, "NoSuchKey")
    assert await refusal(copy("c", source="nobody/s")) == (404, "NoSuchBucket")
    assert server.keys("b") == ["s", "taken"]
    await copy("c", CopySourceIfMatch=etag, CopySourceIfNoneMatch='"old"', IfNoneMatch="*")
    await copy("taken", IfMatch=taken)
    assert [loss.key for loss in server.audit.lost] == ["taken"]


# ------------------------------------------------------------------------------ delete


async def test_delete_object(server: S3Server, client: Any) -> None:
    """A delete of an absent key succeeds; If-Match guards it."""
    etag = server.put("b", "k", b"1").etag
    await client.delete_object(Bucket="b", Key="absent")
    stale = client.delete_object(Bucket="b", Key="k", IfMatch='"old"')
    assert await refusal(stale) == (412, "PreconditionFailed")
    absent = client.delete_object(Bucket="b", Key="absent", IfMatch=etag)
    assert await refusal(absent) == (404, "NoSuchKey")
    await client.delete_object(Bucket="b", Key="k", IfMatch=etag)
    assert server.keys("b") == []


@pytest.mark.parametrize("quiet", [False, True])
async def test_delete_objects(server: S3Server, client: Any, quiet: bool) -> None:  # noqa: FBT001
    """Each key of a batch has its own condition and its own result."""
    etag = server.put("b", "good & bad", b"1").etag
    server.put("b", "overwritten", b"2")
    wanted = [
        {"Key": "good & bad", "ETag": etag},
        {"Key": "overwritten", "ETag": '"old"'},
        {"Key": "absent"},
        {"Key": "gone", "ETag": etag},
    ]
    result = await client.delete_objects(Bucket="b", Delete={"Objects": wanted, "Quiet": quiet})
    assert {error["Key"]: error["Code"] for error in result["Errors"]} == {
        "overwritten": "PreconditionFailed",
        "gone": "NoSuchKey",
    }
    deleted = [entry["Key"] for entry in result.get("Deleted", [])]
    assert deleted == ([] if quiet else ["good & bad", "absent"])
    assert server.keys("b") == ["overwritten"]


async def test_delete_objects_refuses_bad_batches(client: Any) -> None:
    """More than 1,000 keys are malformed."""
    wanted = [{"Key": str(number)} for number in range(1001)]
    call = client.delete_objects(Bucket="b", Delete={"Objects": wanted})
    assert await refusal(call) == (400, "MalformedXML")


# ------------------------------------------------------------------------------ listing


async def test_listing_pages(server: S3Server, client: Any) -> None:
    """Pages are in order, complete, and tell whether there is more."""
    keys = [f"runs/{number:03d}" for number in range(25)]
    for key in reversed(keys):
        server.put("b", key, key.encode())
    server.put("b", "runs0", b"")
    paginator = client.get_paginator("list_objects_v2")
    pages = [
        page
        async for page in paginator.paginate(
            Bucket="b", Prefix="runs/", PaginationConfig={"PageSize": 10}
        )
    ]
    assert [page["KeyCount"] for page in pages] == [10, 10, 5]
    assert [page["IsTruncated"] for page in pages] == [True, True, False]
    entries = [entry for page in pages for entry in page["Contents"]]
    assert [entry["Key"] for entry in entries] == keys
    assert entries[0]["LastModified"] == NOON
    assert entries[0]["ETag"] == server.get("b", keys[0]).etag
    assert (entries[0]["Size"], entries[0]["StorageClass"]) == (8, "STANDARD")


async def test_listing_options(server: S3Server, client: Any) -> None:
    """Start-after, delimiter and max-keys work, alone and together."""
    for key in ("a/1", "a/2", "b", "c/1", "c/x y/2", "d"):
        server.put("b", key, b"")
    listed = await client.list_objects_v2(Bucket="b", StartAfter="a/2")
    assert [entry["Key"] for entry in listed["Contents"]] == ["b", "c/1", "c/x y/2", "d"]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await client.list_objects_v2(Bucket="b", Delimiter="/", MaxKeys=1, **token)
        seen += [entry["Key"] for entry in page.get("Contents", [])]
        seen += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        assert page["KeyCount"] == 1
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == ["a/", "b", "c/", "d"]
    inner = await client.list_objects_v2(Bucket="b", Delimiter="/", Prefix="c/")
    assert [entry["Prefix"] for entry in inner["CommonPrefixes"]] == ["c/x y/"]
    none = await client.list_objects_v2(Bucket="b", MaxKeys=0)
    assert (none["KeyCount"], none["IsTruncated"]) == (0, False)
    wrong = client.list_objects_v2(Bucket="b", ContinuationToken="é")
    assert await refusal(wrong) == (400, "InvalidArgument")


async def test_listing_survives_changes_between_pages(server: S3Server, client: Any) -> None:
    """Keys that stay are listed once, though others come and go between the pages."""
    for number in range(50):
        server.put("b", f"stay/{number:02d}", b"")
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await client.list_objects_v2(Bucket="b", Prefix="stay/", MaxKeys=7, **token)
        seen += [entry["Key"] for entry in page["Contents"]]
        server.delete("b", seen[-1])
        server.put("b", "archive/" + seen[-1], b"")
        if not page["IsTruncated"]:
            break
        token = {"ContinuationToken": page["NextContinuationToken"]}
    assert seen == [f"stay/{number:02d}" for number in range(50)]


async def test_url_encoded_listing(server: S3Server) -> None:
    """With encoding-type=url a space is a plus, and what XML cannot carry is a percent code."""
    server.put("b", "a b+c/\x01é", b"")
    request = b"GET /b?list-type=2%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"<Key>a+b%2Bc/%01%C3%A9</Key>" in await speak(server, request % b"&encoding-type=url")
    assert "<Key>a b+c/&#x1;é</Key>".encode() in await speak(server, request % b"")


def test_sorted_keys_stay_sorted() -> None:
    """Adding and removing in any order leaves the keys in order, across blocks."""
    keys = [f"{number * 7919 % 5000:04d}" for number in range(5000)]
    ordered = SortedKeys()
    for key in keys:
        ordered.add(key)
    assert list(ordered.since("")) == sorted(keys)
    for key in keys[::2]:
        ordered.remove(key)
    left = sorted(keys[1::2])
    assert list(ordered.since("2500")) == [key for key in left if key >= "2500"]
    for key in left:
        ordered.remove(key)
    assert list(ordered.since("")) == []


# ------------------------------------------------------------------------------ multipart


async def begin(client: Any, *bodies: bytes) -> tuple[str, list[dict[str, Any]]]:
    """Begin an upload of key k and send its parts."""
    upload = await client.create_multipart_upload(Bucket="b", Key="k", Metadata={"m": "1"})
    parts = []
    for number, body in enumerate(bodies, 1):
        part = await client.upload_part(
            Bucket="b", Key="k", UploadId=upload["UploadId"], PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": part["ETag"]})
    return upload["UploadId"], parts


def complete(client: Any, upload_id: str, parts: list[Any], **conditions: str) -> Awaitable[Any]:
    """Complete an upload of key k."""
    call: Awaitable[Any] = client.complete_multipart_upload(
        Bucket="b", Key="k", UploadId=upload_id, MultipartUpload={"Parts": parts}, **conditions
    )
    return call


async def test_multipart(server: S3Server, client: Any) -> None:
    """Parts join in order, with the ETag of their ETags and the metadata of the beginning."""
    big = bytes(s3server.MIN_PART_BYTES)
    upload_id, parts = await begin(client, big, b"end")
    listed = await client.list_multipart_uploads(Bucket="b")
    assert [(u["Key"], u["UploadId"]) for u in listed["Uploads"]] == [("k", upload_id)]
    done = await complete(client, upload_id, parts)
    digests = hashlib.md5(big).digest() + hashlib.md5(b"end").digest()
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    assert server.get("b", "k").body == big + b"end"
    assert server.get("b", "k").headers["x-amz-meta-m"] == "1"
    assert await refusal(complete(client, upload_id, parts)) == (404, "NoSuchUpload")


async def test_multipart_refusals(server: S3Server, client: Any) -> None:
    """Small, wrong, unordered and aborted parts are refused."""
    upload_id, parts = await begin(client, b"one", b"two")
    assert await refusal(complete(client, upload_id, parts)) == (400, "EntityTooSmall")
    server.faults.allow_small_parts = True
    turned = complete(client, upload_id, parts[::-1])
    assert await refusal(turned) == (400, "InvalidPartOrder")
    wrong = complete(client, upload_id, [{"PartNumber": 1, "ETag": '"0"'}])
    assert await refusal(wrong) == (400, "InvalidPart")
    missing = complete(client, upload_id, [*parts, {"PartNumber": 3, "ETag": '"0"'}])
    assert await refusal(missing) == (400, "InvalidPart")
    await client.abort_multipart_upload(Bucket="b", Key="k", UploadId=upload_id)
    assert await refusal(complete(client, upload_id, parts)) == (404, "NoSuchUpload")


async def test_multipart_conditions(server: S3Server, client: Any) -> None:
    """Completing honours If-None-Match and If-Match."""
    upload_id, parts = await begin(client, b"one")
    etag = server.put("b", "k", b"taken").etag
    taken = complete(client, upload_id, parts, IfNoneMatch="*")
    assert await refusal(taken) == (412, "PreconditionFailed")
    stale = complete(client, upload_id, parts, IfMatch='"old"')
    assert await refusal(stale) == (412, "PreconditionFailed")
    await complete(client, upload_id, parts, IfMatch=etag)
    assert server.get("b", "k").body == b"one"


async def test_part_copies(server: S3Server, client: Any) -> None:
    """A part may be a range of another object, under a condition."""
    etag = server.put("b", "source", b"0123456789").etag
    upload_id, _ = await begin(client)
    where = {"Bucket": "b", "Key": "k", "UploadId": upload_id, "PartNumber": 1}
    where["CopySource"] = "b/source"
    stale = client.upload_part_copy(**where, CopySourceIfMatch='"old"')
    assert await refusal(stale) == (412, "PreconditionFailed")
    part = await client.upload_part_copy(
        **where, CopySourceIfMatch=etag, CopySourceRange="bytes=2-5"
    )
    parts = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]
    await complete(client, upload_id, parts)
    assert server.get("b", "k").body == b"2345"


# ------------------------------------------------------------------------------ signatures


async def test_signatures(server: S3Server) -> None:
    """A rightly signed request passes; a wrong key, secret or region does not."""
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
    assert b"<Code>AccessDenied<" in await speak(server, anonymous)


async def test_skewed_clock(server: S3Server, client: Any) -> None:
    """More than 15 minutes of skew are refused, with a Date that shows the server's time."""
    server.credentials = {"AK": "SK"}
    ahead = datetime.now(UTC) + timedelta(minutes=16)
    server.clock = lambda: ahead
    with pytest.raises(ClientError) as caught:
        await client.get_object(Bucket="b", Key="k")
    assert caught.value.response["Error"]["Code"] == "RequestTimeTooSkewed"
    headers = caught.value.response["ResponseMetadata"]["HTTPHeaders"]
    assert headers["date"] == s3server.http_time(ahead).decode()


async def test_payload_hash(server: S3Server, client: Any) -> None:
    """A signed body that was changed on the way is refused."""
    server.credentials = {"AK": "SK"}
    server.clock = lambda: datetime.now(UTC)

    def spoil(request: Request) -> None:
        request.body = b"changed"

    server.on_request = spoil
    call = client.put_object(Bucket="b", Key="k", Body=b"x")
    assert await refusal(call) == (400, "XAmzContentSHA256Mismatch")


# ------------------------------------------------------------------------------ faults


async def test_error_probabilities(server: S3Server, client: Any) -> None:
    """503, 500 and 409 are drawn at their rates, for the operations given, before executing."""
    server.faults.slow_down = 1
    server.faults.operations = {"PutObject"}
    call = client.put_object(Bucket="b", Key="k", Body=b"")
    assert await refusal(call) == (503, "SlowDown")
    await client.list_objects_v2(Bucket="b")
    server.faults = Faults(internal_error=1)
    call = client.put_object(Bucket="b", Key="k", Body=b"")
    assert await refusal(call) == (500, "InternalError")
    server.faults = Faults(conflict=1)
    call = client.put_object(Bucket="b", Key="k", Body=b"", IfNoneMatch="*")
    assert await refusal(call) == (409, "ConditionalRequestConflict")
    assert server.keys("b") == []
    server.faults = Faults(slow_down=0.5)
    for _ in range(40):
        await asyncio.gather(client.head_bucket(Bucket="b"), return_exceptions=True)
    statuses = [entry.status for entry in server.audit.log][-40:]
    assert {200, 503} == set(statuses)
    assert 8 < statuses.count(503) < 32


async def test_reset_before_and_after(server: S3Server, client: Any) -> None:
    """A reset comes before executing, or after: the lost response."""
    server.faults.reset = 1
    with pytest.raises((BotoConnectionError, HTTPClientError)):
        await client.put_object(Bucket="b", Key="k", Body=b"")
    assert server.keys("b") == []
    server.faults = Faults(lose_response=1)
    with pytest.raises((BotoConnectionError, HTTPClientError)):
        await client.put_object(Bucket="b", Key="k", Body=b"")
    assert server.keys("b") == ["k"]
    # aiohttp repeats a PUT once by itself when its connection breaks, whatever botocore is told.
    statuses = [entry.status for entry in server.audit.log]
    assert statuses in ([0, 200, 0], [0, 0, 200, 0, 200, 0])


async def test_truncated_body(server: S3Server, client: Any) -> None:
    """A truncated body is shorter than its Content-Length."""
    server.put("b", "k", b"x" * 1000)
    server.faults.truncate = 1
    got = await client.get_object(Bucket="b", Key="k")
    assert got["ContentLength"] == 1000
    async with got["Body"] as body:
        with pytest.raises(Exception, match=r"not enough data|payload"):
            await body.read()


async def test_slow_keys(server: S3Server) -> None:
    """A key can hang for ever while others answer."""
    server.put("b", "slow", b"")
    server.put("b", "fast", b"")
    server.faults.slow_keys = {"slow": None}
    async with connect(server.url, read_timeout=0.2) as client:
        hanging = asyncio.create_task(client.get_object(Bucket="b", Key="slow"))
        assert await body_of(client, "fast") == b""
        with pytest.raises(ReadTimeoutError):
            await hanging


async def test_latency_overlaps(server: S3Server, client: Any) -> None:
    """Requests wait at the same time, and the audit knows how many."""
    server.faults.latency = 0.05
    await asyncio.gather(*(client.head_bucket(Bucket="b") for _ in range(5)))
    assert server.audit.peak == {"HeadBucket": 5}
    assert server.audit.peak_total == 5


async def test_errors_inside_success(server: S3Server, client: Any) -> None:
    """CopyObject and DeleteObjects fail inside a 200, and change nothing."""
    server.put("b", "k", b"")
    server.faults = Faults(copy_error=1, delete_error=1)
    with pytest.raises(ClientError) as caught:
        await client.copy_object(Bucket="b", Key="c", CopySource="b/k")
    assert caught.value.response["Error"]["Code"] == "InternalError"
    result = await client.delete_objects(Bucket="b", Delete={"Objects": [{"Key": "k"}]})
    assert [error["Code"] for error in result["Errors"]] == ["InternalError"]
    assert server.keys("b") == ["k"]


@pytest.mark.parametrize("executing", [False, True])
async def test_death(server: S3Server, client: Any, executing: bool) -> None:  # noqa: FBT001
    """From the request it dies at, nothing is answered; that one may still be executed."""
    server.faults = Faults(dies_at=2, dies_executing=executing)
    await client.put_object(Bucket="b", Key="1", Body=b"")
    for key in ("2", "3"):
        with pytest.raises((BotoConnectionError, HTTPClientError)):
            await client.put_object(Bucket="b", Key=key, Body=b"")
    assert server.keys("b") == (["1", "2"] if executing else ["1"])


@pytest.mark.parametrize("executed", [False, True])
async def test_pause(server: S3Server, client: Any, executed: bool) -> None:  # noqa: FBT001
    """A chosen request stops, before or after it is executed, until it is released."""
    pause = Pause(lambda request: request.key == "k", executed=executed)
    server.faults.pause_at = pause
    waiting = asyncio.create_task(client.put_object(Bucket="b", Key="k", Body=b""))
    await asyncio.wait_for(pause.reached.wait(), 5)
    assert server.has("b", "k") == executed
    await client.put_object(Bucket="b", Key="other", Body=b"")
    assert not waiting.done()
    pause.release.set()
    await waiting


async def test_redirect(server: S3Server, client: Any) -> None:
    """A bucket of another region answers with a redirect that names it."""
    server.faults.redirect_region = "eu-west-1"
    with pytest.raises(ClientError) as caught:
        await client.put_object(Bucket="b", Key="k", Body=b"")
    error = caught.value.response["Error"]
    assert (error["Code"], error["Endpoint"]) == (
        "PermanentRedirect",
        "b.s3.eu-west-1.amazonaws.com",
    )


async def test_denied(server: S3Server, client: Any) -> None:
    """What is denied is refused, also per key of a batch and for the source of a copy."""
    for key in ("open", "secret"):
        server.put("b", key, b"")
    server.faults.denied = lambda _, key: key == "secret"
    denied = (403, "AccessDenied")
    assert await refusal(client.get_object(Bucket="b", Key="secret")) == denied
    copy = client.copy_object(Bucket="b", Key="c", CopySource="b/secret")
    assert await refusal(copy) == denied
    wanted = {"Objects": [{"Key": "open"}, {"Key": "secret"}]}
    result = await client.delete_objects(Bucket="b", Delete=wanted)
    assert [error["Code"] for error in result["Errors"]] == ["AccessDenied"]
    assert server.keys("b") == ["secret"]


CONDITIONAL: dict[str, dict[str, Any]] = {
    "put_if_absent": {"call": "put_object", "Key": "old", "Body": b"", "IfNoneMatch": "*"},
    "put_if_match": {"call": "put_object", "Key": "old", "Body": b"", "IfMatch": '"x"'},
    "copy_source_if_match": {
        "call": "copy_object",
        "Key": "new",
        "CopySource": "b/source",
        "CopySourceIfMatch": '"x"',
    },
    "copy_if_absent": {
        "call": "copy_object",
        "Key": "old",
        "CopySource": "b/source",
        "IfNoneMatch": "*",
    },
    "copy_if_match": {
        "call": "copy_object",
        "Key": "old",
        "CopySource": "b/source",
        "IfMatch": '"x"',
    },
    "delete_etag": {"call": "delete_object", "Key": "old", "IfMatch": '"x"'},
}


@pytest.mark.parametrize("guard", CONDITIONAL)
async def test_guards(server: S3Server, client: Any, guard: str) -> None:
    """Each condition can be honoured, refused, failed or ignored on its own."""
    options = dict(CONDITIONAL[guard])
    call = getattr(client, options.pop("call"))
    modes: list[tuple[Guard, tuple[int, str]]] = [
        ("honour", (412, "PreconditionFailed")),
        ("refuse", (501, "NotImplemented")),
        ("always_fail", (412, "PreconditionFailed")),
    ]
    server.put("b", "old", b"old")
    server.put("b", "source", b"source")
    for mode, expected in modes:
        setattr(server.faults.guards, guard, mode)
        assert await refusal(call(Bucket="b", **options)) == expected
    assert server.keys("b") == ["old", "source"]
    setattr(server.faults.guards, guard, "ignore")
    await call(Bucket="b", **options)


async def test_guard_of_completion(server: S3Server, client: Any) -> None:
    """A store that ignores the condition of a completion overwrites."""
    upload_id, parts = await begin(client, b"one")
    server.put("b", "k", b"taken")
    server.faults.guards.complete = "ignore"
    await complete(client, upload_id, parts, IfNoneMatch="*")
    assert [loss.operation for loss in server.audit.lost] == ["CompleteMultipartUpload"]


# ------------------------------------------------------------------------------ hook and audit


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
    """A hook chooses errors and drops; its own failure is raised on leaving."""

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
    """Only what removes the last copy of some content is a loss."""
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


# ------------------------------------------------------------------------------ the wire


async def test_pipelined_requests_are_answered_in_order(server: S3Server) -> None:
    """Requests sent at once, in odd pieces, are answered in their order, also behind a slow one."""
    for number in range(10):
        server.put("b", str(number), b"<%d>" % number)
    lines = b"".join(b"GET /b/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % n for n in range(9))
    lines += b"GET /b/9 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    pieces = [lines[at : at + 37] for at in range(0, len(lines), 37)]
    expected = [b"<%d>" % number for number in range(10)]
    assert re.findall(rb"<\d>", await speak(server, lines)) == expected
    server.faults.slow_keys = {"0": 0.02, "5": 0.02}
    assert re.findall(rb"<\d>", await speak(server, *pieces)) == expected


async def test_bad_requests(server: S3Server) -> None:
    """What is not HTTP, not UTF-8 or not an operation is refused politely."""
    assert b"<Code>BadRequest<" in await speak(server, b"NONSENSE\r\n\r\n")
    line = b"%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b"<Code>InvalidURI<" in await speak(server, line % b"GET /b/%FF")
    for unknown in (b"GET /b?acl", b"PUT /b/k?tagging", b"GET /b", b"PATCH /b/k"):
        assert b"<Code>NotImplemented<" in await speak(server, line % unknown)
    assert server.keys("b") == []


async def test_expect_continue(server: S3Server) -> None:
    """A client that asks first is told to go on."""
    request = (
        b"PUT /b/k HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        b"Connection: close\r\nContent-Length: 2\r\n\r\n"
    )
    answer = await speak(server, request, b"ok")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert server.get("b", "k").body == b"ok"


# ------------------------------------------------------------------------------ as a process


def control(url: str, name: str, **given: Any) -> dict[str, Any]:
    """Use the control interface."""
    data = json.dumps(given).encode() if given else None
    with urllib.request.urlopen(f"{url}/_control/{name}", data, timeout=10) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def test_fill_is_exact() -> None:
    """Filled run files are valid, of the size and time asked for, and sum to the totals."""
    windows = ["2025-10-21T13:02:30Z", {"last_modified": "2025-10-21T13:07:00Z", "stamp": "S"}]
    with ThreadedS3Server(S3Server(["b"])) as threaded:
        given = {"bucket": "b", "prefix": "runs/", "count": 51, "windows": windows, "size": 2500}
        totals = control(threaded.url, "fill", **given)
        by_window = totals.pop("by_window")
        server = threaded.server
        assert server.keys("b")[0] == "runs/20251021t1302Z_DARPA-PS-25-32-000000.json"
        stored = [server.get("b", key) for key in server.keys("b")]
        runs = [json.loads(one.body) for one in stored]
        for name in ("total_opportunities", "matches_found", "no_matches", "errors"):
            assert sum(run[name] for run in runs) == totals[name] > 0
            assert sum(part[name] for part in by_window.values()) == totals[name]
        assert totals["files"] == len({run["run_id"] for run in runs}) == 51
        assert totals["bytes"] == sum(len(one.body) for one in stored)
        assert all(one.size == len(one.body) and 2450 < one.size < 2550 for one in stored)
        assert all(one.etag == f'"{hashlib.md5(one.body).hexdigest()}"' for one in stored)
        assert stored[0].last_modified == datetime(2025, 10, 21, 13, 2, 30, tzinfo=UTC)


def test_taken_port_is_told() -> None:
    """A threaded server that cannot listen says so."""
    with ThreadedS3Server() as first:
        second = ThreadedS3Server(S3Server(port=first.server.port))
        with pytest.raises(OSError, match=r"address"):
            second.__enter__()


def test_control() -> None:
    """Over HTTP one can audit, set faults and reset; nonsense is refused with its name."""
    with ThreadedS3Server(S3Server(["b"])) as threaded:
        server = threaded.server
        threaded.call(server.put, "b", "runs/k", b"x")
        before = control(threaded.url, "audit")["buckets"]["b"]["runs/"]
        threaded.call(server.put, "b", "archive/k", b"x")
        threaded.call(server.delete, "b", "runs/k")
        audit = control(threaded.url, "audit")
        after = audit["buckets"]["b"]["archive/"]
        assert (after["keys"], after["content"]) == (before["keys"], before["content"])
        assert after["digest"] != before["digest"]
        assert audit["lost"] == []
        switches = {"slow_down": 0.5, "seed": 7, "guards": {"delete_etag": "ignore"}}
        control(threaded.url, "faults", **switches)
        assert server.faults.slow_down == 0.5
        assert server.faults.guards.delete_etag == "ignore"
        with pytest.raises(urllib.error.HTTPError) as caught:
            control(threaded.url, "faults", slow_dwon=1)
        with caught.value as response:
            assert b"slow_dwon" in response.read()
        control(threaded.url, "reset")
        assert server.keys("b") == []
        assert server.faults.slow_down == 0


async def test_as_a_process(tmp_path: Path) -> None:
    """The module runs as a process, with a bucket, faults and TLS, until SIGTERM."""
    certificate, key = make_certificate(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testkit.s3server", "--bucket", "b"),
        *("--tls-cert", str(certificate), "--tls-key", str(key), "--credentials", "AK:SK"),
        *("--faults", '{"latency": 0.001}'),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(testkit.__path__[0]).parent,
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
    assert line.startswith("listening on https://127.0.0.1:")
    async with connect(line.split()[-1], verify=str(certificate)) as client:
        # Over TLS the client streams its body in chunks with a trailing checksum.
        await client.put_object(Bucket="b", Key="k", Body=b"x" * 300_000)
        assert await body_of(client, "k") == b"x" * 300_000
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for the loopback address, and its key."""
    from ipaddress import ip_address  # noqa: PLC0415 (with the optional library below)

    x509 = pytest.importorskip("cryptography.x509")
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(forms.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    )
    return certificate_path, key_path
