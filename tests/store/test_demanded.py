"""The headers that a bucket may demand are sent with every request that they belong to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from anyio import to_thread
from testkit.moto_server import moto_endpoint
from testkit.promises import check_after_clean_run, of_server
from testkit.s3server import Request, S3Error, S3Server
from testkit.scenario import (
    AT,
    BUCKET,
    FORMATS,
    PLANES,
    fill_server,
    open_s3,
    prepared,
    s3_settings,
)

import asyncagg.store.s3.store as s3_module
from asyncagg.doctor import diagnose
from asyncagg.errors import AccessDeniedError, UsageError
from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.s3.boto import open_control
from asyncagg.store.s3.demanded import demanded_headers, demanded_parameters

KEY = "arn:aws:kms:us-east-1:123456789012:key/mrk-1234"
OWNER = "123456789012"
EVERY = {"x-amz-expected-bucket-owner": OWNER, "x-amz-request-payer": "requester"}
ENCRYPTION = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": KEY,
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
}
SOURCE = {"x-amz-source-expected-bucket-owner": OWNER}
EXPECTED = {
    "PutObject": EVERY | ENCRYPTION,
    "CreateMultipartUpload": EVERY | ENCRYPTION,
    "CopyObject": EVERY | ENCRYPTION | SOURCE,
    "UploadPartCopy": EVERY | SOURCE,
}
GIVEN: dict[str, Any] = {
    "sse": "aws:kms",
    "sse_kms_key_id": KEY,
    "sse_bucket_key": "on",
    "expected_bucket_owner": OWNER,
    "request_payer": "requester",
}


class Bucket:
    """Refuses each request that has other headers than the API's reference says."""

    def __init__(self) -> None:
        self.operations: set[str] = set()

    def __call__(self, request: Request) -> None:
        names = {*EVERY, *ENCRYPTION, *SOURCE}
        found = {name: each for name in names if (each := request.header(name)) is not None}
        if found != EXPECTED.get(request.operation, EVERY):
            raise S3Error("AccessDenied", f"{request.operation} has {found}")
        self.operations.add(request.operation)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("archive_format", FORMATS)
async def test_each_request_has_its_headers(
    archive_format: str, plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that demands them accepts a whole run, and the promises hold with KMS's ETags."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 1000)
    bucket = Bucket()
    async with S3Server([BUCKET], clock=lambda: AT, on_request=bucket) as server:
        server.faults.allow_small_parts = True
        scenario = prepared()
        fill_server(server, scenario.store)
        async with open_s3(server, plane, archive_format=archive_format, **GIVEN) as (store, more):
            report = await run(store, more, at=AT)
        assert (report.failures, report.total.deferred) == ({}, 0)
        check_after_clean_run(
            of_server(server), scenario.originals, at=AT, foreign=scenario.foreign
        )
    assert bucket.operations >= {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}


async def test_a_copy_in_parts_has_them_too() -> None:
    """UploadPartCopy names the owner of its source."""
    bucket = Bucket()

    def too_large(request: Request) -> None:
        bucket(request)
        if request.operation == "CopyObject":
            raise S3Error("InvalidRequest")

    async with S3Server([BUCKET]) as server, open_s3(server, **GIVEN) as (guarded, _):
        server.faults.allow_small_parts = True
        store: Any = guarded.unguarded
        store._copy_bytes = 10
        etag = await store.put("a", bytes(20))
        server.on_request = too_large
        await store.copy("a", "b", if_match=etag)
        assert server.get(BUCKET, "b").body == bytes(20)
    assert "UploadPartCopy" in bucket.operations


@pytest.mark.parametrize("plane", PLANES)
async def test_archived_copies_are_recognised_by_content(plane: str) -> None:
    """With KMS a copy has another ETag than its source: a run that goes on compares the bytes."""
    async with S3Server([BUCKET], clock=lambda: AT) as server:
        scenario = prepared()
        fill_server(server, scenario.store)

        def interrupt(request: Request) -> None:
            if request.operation == "DeleteObjects" and b"probe" not in request.body:
                raise S3Error("AccessDenied")

        async with open_s3(server, plane, **GIVEN) as (store, settings):
            await store.guards()
            server.on_request = interrupt
            with pytest.raises(AccessDeniedError):
                await run(store, settings, at=AT)
            server.on_request = None
            await run(store, settings, at=AT)
        seen = of_server(server)
        check_after_clean_run(seen, scenario.originals, at=AT, foreign=scenario.foreign)
        copies = [key for key in seen if key.startswith("archive/c0")]
        assert len(copies) == len({key.split(".")[0] for key in copies})  # none is there twice


@pytest.mark.parametrize("plane", PLANES)
async def test_moto_sees_the_encryption(plane: str) -> None:
    """Another server stores what was asked for."""
    url, name = await to_thread.run_sync(moto_endpoint), f"sse-{uuid4().hex}"
    moto: Any = SimpleNamespace(url=url)
    more = {"store": f"s3://{name}", "conditional_writes": "off", **GIVEN}
    async with open_control(endpoint_url=url, connections=1) as control:
        await control.client.create_bucket(Bucket=name)
        async with open_s3(moto, plane, **more) as (store, _):
            etag = await store.put("a", b"1")
            await store.copy("a", "b", if_match=etag)
        for key in ("a", "b"):
            head = await control.client.head_object(Bucket=name, Key=key)
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", KEY)
            assert head["BucketKeyEnabled"] is True


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("not authorized to perform: kms:GenerateDataKey on resource: k", "grant kms:Decrypt"),
        ("Bucket is requester pays bucket but no x-amz-request-payer header provided.", "payer="),
        ("User: me is not authorized ... an explicit deny in a resource-based policy", "set sse"),
    ],
)
async def test_doctor_names_what_a_denial_asks_for(message: str, advice: str) -> None:
    """As far as S3's message says it."""

    def deny(request: Request) -> None:
        if request.operation == "PutObject":
            raise S3Error("AccessDenied", message)

    async with S3Server([BUCKET], on_request=deny) as server:
        diagnosis = await diagnose(s3_settings(server.url))
    assert advice in diagnosis.results["s3:PutObject archive/"].advice


def test_nothing_is_sent_that_is_not_set() -> None:
    """By default no request has more headers, or parameters, than before."""
    assert demanded_parameters(Settings()) == {}
    assert not any(demanded_headers(Settings()))


@pytest.mark.parametrize(
    "given",
    [
        {"sse_kms_key_id": KEY},
        {"sse": "AES256", "sse_kms_key_id": KEY},
        {"sse": "aws:kms:dsse", "sse_bucket_key": "on"},
        {"expected_bucket_owner": "me"},
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any]) -> None:
    """The message names the setting that is of no use."""
    with pytest.raises(UsageError, match=next(reversed(given))):
        Settings(**given)
