"""Multipart uploads behave as on S3."""

from __future__ import annotations

import hashlib
from typing import Any

from testkit.boto_client import (
    begin_upload,
    complete_upload,
    refusal,
)
from testkit.s3server import (
    S3Server,
)
from testkit.s3server.multipart import MIN_PART_BYTES


async def test_multipart(server: S3Server, client: Any) -> None:
    """Parts join in order, with the ETag of their ETags and the metadata given at the start."""
    big = bytes(MIN_PART_BYTES)
    upload_id, parts = await begin_upload(client, big, b"end")
    listed = await client.list_multipart_uploads(Bucket="b")
    assert [(u["Key"], u["UploadId"]) for u in listed["Uploads"]] == [("k", upload_id)]
    done = await complete_upload(client, upload_id, parts)
    digests = hashlib.md5(big).digest() + hashlib.md5(b"end").digest()
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
    assert server.get("b", "k").body == big + b"end"
    assert server.get("b", "k").headers["x-amz-meta-m"] == "1"
    assert await refusal(complete_upload(client, upload_id, parts)) == (404, "NoSuchUpload")


async def test_multipart_refusals(server: S3Server, client: Any) -> None:
    """Small, wrong, unordered and aborted parts are refused."""
    upload_id, parts = await begin_upload(client, b"one", b"two")
    assert await refusal(complete_upload(client, upload_id, parts)) == (400, "EntityTooSmall")
    server.faults.allow_small_parts = True
    turned = complete_upload(client, upload_id, parts[::-1])
    assert await refusal(turned) == (400, "InvalidPartOrder")
    wrong = complete_upload(client, upload_id, [{"PartNumber": 1, "ETag": '"0"'}])
    assert await refusal(wrong) == (400, "InvalidPart")
    missing = complete_upload(client, upload_id, [*parts, {"PartNumber": 3, "ETag": '"0"'}])
    assert await refusal(missing) == (400, "InvalidPart")
    await client.abort_multipart_upload(Bucket="b", Key="k", UploadId=upload_id)
    assert await refusal(complete_upload(client, upload_id, parts)) == (404, "NoSuchUpload")


async def test_multipart_conditions(server: S3Server, client: Any) -> None:
    """Completing honours If-None-Match and If-Match."""
    upload_id, parts = await begin_upload(client, b"one")
    etag = server.put("b", "k", b"taken").etag
    taken = complete_upload(client, upload_id, parts, IfNoneMatch="*")
    assert await refusal(taken) == (412, "PreconditionFailed")
    stale = complete_upload(client, upload_id, parts, IfMatch='"old"')
    assert await refusal(stale) == (412, "PreconditionFailed")
    await complete_upload(client, upload_id, parts, IfMatch=etag)
    assert server.get("b", "k").body == b"one"


async def test_checksums_of_parts(client: Any) -> None:
    """An upload with an algorithm wants the checksum of each part, twice; the object has one."""
    upload = await client.create_multipart_upload(Bucket="b", Key="k", ChecksumAlgorithm="CRC32")
    part = {"Bucket": "b", "Key": "k", "UploadId": upload["UploadId"], "PartNumber": 1}
    other = client.upload_part(**part, Body=b"one", ChecksumAlgorithm="SHA256")
    assert await refusal(other) == (400, "InvalidRequest")
    sent = await client.upload_part(**part, Body=b"one")
    listed = {"PartNumber": 1, "ETag": sent["ETag"]}
    without = complete_upload(client, upload["UploadId"], [listed])
    assert await refusal(without) == (400, "InvalidRequest")
    wrong = complete_upload(client, upload["UploadId"], [{**listed, "ChecksumCRC32": "AAAAAA=="}])
    assert await refusal(wrong) == (400, "InvalidPart")
    right = {**listed, "ChecksumCRC32": sent["ChecksumCRC32"]}
    await complete_upload(client, upload["UploadId"], [right])
    head = await client.head_object(Bucket="b", Key="k", ChecksumMode="ENABLED")
    assert (head["ChecksumType"], head["ChecksumCRC32"][-2:]) == ("COMPOSITE", "-1")


async def test_part_copies(server: S3Server, client: Any) -> None:
    """A part may be a range of another object, under a condition."""
    etag = server.put("b", "source", b"0123456789").etag
    upload_id, _ = await begin_upload(client)
    where = {"Bucket": "b", "Key": "k", "UploadId": upload_id, "PartNumber": 1}
    where["CopySource"] = "b/source"
    stale = client.upload_part_copy(**where, CopySourceIfMatch='"old"')
    assert await refusal(stale) == (412, "PreconditionFailed")
    part = await client.upload_part_copy(
        **where, CopySourceIfMatch=etag, CopySourceRange="bytes=2-5"
    )
    parts = [{"PartNumber": 1, "ETag": part["CopyPartResult"]["ETag"]}]
    await complete_upload(client, upload_id, parts)
    assert server.get("b", "k").body == b"2345"
