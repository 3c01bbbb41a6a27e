"""Buckets, objects, conditions, copies and deletes behave as on S3."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable
from typing import Any

import pytest
from testkit.boto_client import (
    NOON,
    WEIRD_KEYS,
    body_of,
    refusal,
    send_raw,
)
from testkit.s3server import (
    S3Server,
)


async def test_bucket_lifecycle(server: S3Server, client: Any) -> None:
    """Buckets are created, found and named by region; only an empty one is deleted."""
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
    """A read returns an object's bytes, type, encoding, metadata, ETag and time."""
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
    """A range is answered with 206 and the bytes of the range."""
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
    """A body that does not match its MD5 or checksum is refused."""
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
    """Render a put as recent clients stream it: chunks, then a trailing checksum."""
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
    assert (await send_raw(server, streaming_put(b"DUoRhQ=="))).startswith(b"HTTP/1.1 200")
    assert server.get("b", "k").body == b"hello world"
    assert server.get("b", "k").headers["content-encoding"] == "gzip"
    assert b"<Code>BadDigest<" in await send_raw(server, streaming_put(b"AAAAAA=="))


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
    """A batch of more than 1,000 keys is malformed."""
    wanted = [{"Key": str(number)} for number in range(1001)]
    call = client.delete_objects(Bucket="b", Delete={"Objects": wanted})
    assert await refusal(call) == (400, "MalformedXML")
