"""The HTTP data plane, against two S3 servers that verify signatures: the test server and moto."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import ssl
import string
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from moto import settings as moto_settings
from moto.server import ThreadedMotoServer
from testkit.certificates import Authority
from testkit.s3server import Faults, Request, S3Error, S3Server, wire

from asyncagg.errors import (
    AccessDeniedError,
    AsyncaggError,
    ConfigurationError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    ThrottledError,
    TransientError,
    UnsupportedConditionError,
    UsageError,
)
from asyncagg.model import RunFile
from asyncagg.store.protocol import Absent, Matches, ObjectInfo
from asyncagg.store.s3.http import Endpoint, Limits, tls_context
from asyncagg.store.s3.http_plane import HttpDataPlane
from asyncagg.store.s3.plane import DataPlane
from asyncagg.store.s3.requester import Requester
from asyncagg.store.s3.sigv4 import Credentials
from asyncagg.store.s3.target import Target, redirected
from asyncagg.store.s3.xml import fits_xml

KEYS = {"AKIATEST": "the-secret/key"}
GOOD = Credentials("AKIATEST", "the-secret/key", "the-session-token")
NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)
ODD_KEYS = [
    "plain.json",
    "with space+plus%20percent.json",
    "../dots/./..",
    "//slashes//",
    "é€😀.json",
    '<a&b>\'"quotes"]]>.json',
    "tab\tline\nfeed\rreturn",
    "bell\x07\x01\x7f\x85",
    "~!@#$^*()_=-{}[]|\\:;,?.json",
    "\ufffe\uffff",
]


async def credentials(_refused: Credentials | None) -> Credentials:
    """Return the credentials that the servers of these tests accept."""
    return GOOD


def http_plane(server: S3Server, **changes: Any) -> HttpDataPlane:
    """Return a plane for the bucket ``b`` of a server."""
    endpoint = changes.pop("endpoint", Endpoint(server.host, server.port, tls=False))
    bucket, path_style = changes.pop("bucket", "b"), changes.pop("path_style", True)
    target = Target(endpoint, "us-east-1", bucket, path_style=path_style)
    clock = changes.pop("clock", NOON.timestamp)
    source = changes.pop("source", credentials)
    return HttpDataPlane(Requester(target, source, clock=clock), "base/", **changes)


async def close(plane: HttpDataPlane) -> None:
    """Close the connections of a plane."""
    await plane._requester.aclose()


@asynccontextmanager
async def planed(
    *, region: str = "us-east-1", clock: Callable[[], datetime] = lambda: NOON, **changes: Any
) -> AsyncIterator[tuple[HttpDataPlane, S3Server]]:
    """Yield a plane and its server, which verifies signatures."""
    async with S3Server(["b"], credentials=KEYS, region=region, clock=clock) as server:
        plane = http_plane(server, **changes)
        try:
            yield plane, server
        finally:
            await close(plane)


async def put(plane: DataPlane, key: str, data: bytes = b"{}", **changes: Any) -> str:
    """Put an object with default arguments."""
    usual: dict[str, Any] = {
        "condition": None,
        "content_type": "application/json",
        "metadata": {},
    }
    return await plane.put(key, data, **usual | changes)


async def listed(plane: DataPlane, prefix: str = "", start_after: str = "") -> list[RunFile]:
    """Return every object below a prefix, page by page."""
    files: list[RunFile] = []
    token = None
    while True:
        page = await plane.list_page(prefix, start_after=start_after, token=token)
        files += page.files
        token = page.next_token
        if token is None:
            return files


def refuse_once(server: S3Server, error: S3Error) -> None:
    """Respond to the next request with an error."""

    def refuse(_request: Request) -> None:
        server.on_request = None
        raise error

    server.on_request = refuse


# ------------------------------------------------------------------ every operation


async def test_every_operation_takes_every_key() -> None:
    """Unusual keys are signed, sent, listed, copied and deleted unchanged."""
    async with planed() as (plane, server):
        etags = {key: await put(plane, key, key.encode()) for key in ODD_KEYS}
        for key, etag in etags.items():
            assert server.get("b", f"base/{key}").body == key.encode()
            body = await plane.get(key, if_match=etag)
            assert (body.data, body.etag) == (key.encode(), etag)
            info = await plane.head(key)
            assert info.file == RunFile(key, len(key.encode()), etag, NOON)
            await plane.copy(key, f"copy/{key}", if_match=etag, condition=Absent(), replacing=None)
        files = await listed(plane)
        assert {file.key: file.etag for file in files} == {
            prefix + key: etag for key, etag in etags.items() for prefix in ("", "copy/")
        }
        assert [file.key for file in files] == sorted((file.key for file in files), key=str.encode)
        assert await plane.delete(files) == {}
        assert await listed(plane) == []


async def test_the_bucket_may_stand_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """With virtual-hosted style, the bucket is in the host that is resolved, signed and sent."""
    resolved = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with planed() as (_, server):
        endpoint = Endpoint("s3.example.test", server.port, tls=False)
        plane = http_plane(server, endpoint=endpoint, path_style=False)
        etag = await put(plane, "k")
        await plane.copy("k", "k2", if_match=etag, condition=Absent(), replacing=None)
        files = await listed(plane)
        assert [file.key for file in files] == ["k", "k2"]
        assert await plane.delete(files) == {}
        assert set(resolved) == {"b.s3.example.test"}
        await close(plane)


async def test_a_listing_is_read_page_by_page() -> None:
    """Pages continue after the previous one, from start_after, and only below the prefix."""
    async with planed() as (plane, server):
        for at in range(2500):
            server.put("b", f"base/runs/{at:04}.json", b"{}")
        server.put("b", "elsewhere/x", b"")
        page = await plane.list_page("runs/", start_after="", token=None)
        assert len(page.files) == 1000
        assert page.next_token
        assert len(await listed(plane)) == 2500
        late = await listed(plane, "runs/", "runs/2489.json")
        assert [file.key for file in late] == [f"runs/{at}.json" for at in range(2490, 2500)]
        assert await listed(plane, "none/") == []


async def test_a_get_holds_its_condition() -> None:
    """Another etag and a missing object are different errors."""
    async with planed() as (plane, server):
        server.put("b", "base/k", b"x")
        with pytest.raises(PreconditionFailedError):
            await plane.get("k", if_match="0" * 32)
        with pytest.raises(
            NotFoundError, match=r"get 'gone' in bucket 'b': 404 NoSuchKey"
        ) as caught:
            await plane.get("gone", if_match=None)
        error = caught.value
        assert (error.operation, error.key, error.bucket) == ("get", "gone", "b")
        with pytest.raises(NotFoundError):
            await plane.head("gone")


async def test_a_put_holds_its_conditions() -> None:
    """If-None-Match and If-Match guard a write; metadata and media type are stored."""
    async with planed() as (plane, _):
        metadata = {"Reason": "a  b", "n": "1"}
        etag = await put(plane, "k", b"1", condition=Absent(), metadata=metadata)
        info = await plane.head("k")
        assert info == ObjectInfo(
            RunFile("k", 1, etag, NOON), "application/json", "", {"reason": "a  b", "n": "1"}
        )
        with pytest.raises(PreconditionFailedError):
            await put(plane, "k", b"2", condition=Absent())
        with pytest.raises(PreconditionFailedError):
            await put(plane, "k", b"2", condition=Matches("0" * 32))
        second = await put(plane, "k", b"2", condition=Matches(etag))
        assert (await plane.get("k", if_match=second)).data == b"2"


async def test_metadata_cannot_break_out_of_its_header() -> None:
    """A value with a line end is rejected before anything is sent."""
    async with planed() as (plane, server):
        with pytest.raises(UsageError):
            await put(plane, "k", metadata={"reason": "x\r\nx-amz-acl: public-read"})
        assert not server.audit.counts


async def test_a_copy_holds_its_conditions_and_may_replace_the_metadata() -> None:
    """The source's etag and the target's absence are guarded; headers can be replaced."""
    async with planed() as (plane, server):
        etag = await put(plane, "k", metadata={"old": "1"})
        await plane.copy("k", "kept", if_match=etag, condition=Absent(), replacing=None)
        assert (await plane.head("kept")).metadata == {"old": "1"}
        info = ObjectInfo(RunFile("k", 2, etag, NOON), "text/plain", "gzip", {"new": "2"})
        await plane.copy("k", "new", if_match=etag, condition=Absent(), replacing=info)
        copied = await plane.head("new")
        assert (copied.content_type, copied.content_encoding) == ("text/plain", "gzip")
        assert copied.metadata == {"new": "2"}
        for target, wanted in (("kept", etag), ("other", "0" * 32)):
            with pytest.raises(PreconditionFailedError):
                await plane.copy("k", target, if_match=wanted, condition=Absent(), replacing=None)
        with pytest.raises(NotFoundError):
            await plane.copy("gone", "x", if_match=etag, condition=Absent(), replacing=None)
        server.faults.guards.copy_if_absent = "refuse"
        with pytest.raises(UnsupportedConditionError):
            await plane.copy("k", "y", if_match=etag, condition=Absent(), replacing=None)


async def test_a_delete_says_what_it_could_not_do() -> None:
    """A changed object stays and is a failure; a missing one is not."""
    async with planed() as (plane, server):
        keys = (*ODD_KEYS, *string.ascii_lowercase)
        files = [RunFile(key, 2, await put(plane, key), NOON) for key in keys]
        gone = [RunFile(key, 2, "0" * 32, NOON) for key in ("gone", "gone\x01")]
        for key in ("tab\tline\nfeed\rreturn", "bell\x07\x01\x7f\x85", "c"):
            await put(plane, key, b"changed")
        failures = await plane.delete(files + gone)
        assert set(failures) == {"tab\tline\nfeed\rreturn", "bell\x07\x01\x7f\x85", "c"}
        assert all(type(error) is PreconditionFailedError for error in failures.values())
        assert {file.key for file in await listed(plane)} == set(failures)
        assert await plane.delete([]) == {}
        unsayable = sum(not fits_xml(file.key) for file in files + gone)
        assert server.audit.counts["DeleteObjects"] == 1
        assert server.audit.counts["DeleteObject"] == unsayable == 3


async def test_errors_inside_a_delete_are_told_by_key() -> None:
    """Errors of single keys are returned by key; the other objects are deleted."""
    async with planed() as (plane, server):
        files = [RunFile(key, 2, await put(plane, key), NOON) for key in "abc"]
        server.faults.denied = lambda operation, key: (operation, key) == ("DeleteObject", "base/b")
        failures = await plane.delete(files)
        assert {key: type(error) for key, error in failures.items()} == {"b": AccessDeniedError}
        server.faults.denied = None
        server.faults.delete_error = 1
        failures = await plane.delete(files[1:2])
        assert {key: type(error) for key, error in failures.items()} == {"b": TransientError}


async def test_an_error_inside_the_200_of_a_copy_is_an_error() -> None:
    """S3 may respond 200 and fail after that."""
    async with planed() as (plane, server):
        etag = await put(plane, "k")
        server.faults.copy_error = 1
        with pytest.raises(TransientError, match="InternalError"):
            await plane.copy("k", "copy", if_match=etag, condition=Absent(), replacing=None)
        server.faults.copy_error = 0
        await plane.copy("k", "copy", if_match=etag, condition=Absent(), replacing=None)


async def test_a_body_is_streamed_from_any_byte() -> None:
    """A stream starts at the given byte of the given etag, and ends with the object."""
    async with planed() as (plane, _):
        data = bytes(range(256)) * 4096
        etag = await put(plane, "k", data)
        for offset in (0, 1, len(data) // 2, len(data) - 1):
            async with plane.open("k", if_match=etag, offset=offset) as body:
                assert b"".join([block async for block in body.chunks]) == data[offset:]
                assert body.etag == etag
        with pytest.raises(PreconditionFailedError):
            async with plane.open("k", if_match="0" * 32, offset=5):
                pass
        with pytest.raises(NotFoundError):
            async with plane.open("gone", if_match=None, offset=0):
                pass
        with pytest.raises(StoreError, match="InvalidRange"):
            async with plane.open("k", if_match=etag, offset=len(data)):
                pass


# ------------------------------------------------------------------ trouble


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(slow_down=1), ThrottledError),
        (Faults(internal_error=1), TransientError),
        (Faults(reset=1), TransientError),
        (Faults(lose_response=1), TransientError),
        (Faults(truncate=1), TransientError),
        (Faults(dies_at=0), TransientError),
        (Faults(denied=lambda *_: True), AccessDeniedError),
    ],
    ids=["slow-down", "internal", "reset", "lost", "truncated", "dead", "denied"],
)
async def test_trouble_is_translated(faults: Faults, expected: type[AsyncaggError]) -> None:
    """Each operation distinguishes throttling, transient errors and denial, and names its key."""
    async with planed() as (plane, server):
        file = RunFile("k", 100, await put(plane, "k", bytes(100)), NOON)
        server.faults = faults
        requests: list[Callable[[], Any]] = [
            lambda: plane.get("k", if_match=None),
            lambda: plane.list_page("k", start_after="", token=None),
            lambda: plane.copy("k", "c", if_match=file.etag, condition=Absent(), replacing=None),
            lambda: plane.head("k"),
        ]
        for request in requests if not faults.truncate else requests[:3]:
            with pytest.raises(expected, match="'k'") as caught:
                await request()
            assert isinstance(caught.value, StoreError)
            assert caught.value.key == "k"
        server.faults = Faults()
        assert (await plane.get("k", if_match=file.etag)).data == bytes(100)


async def test_a_stream_that_breaks_says_so_behind_its_bytes() -> None:
    """The received bytes are yielded first; then the error is raised, with the key."""
    async with planed() as (plane, server):
        await put(plane, "k", bytes(100_000))
        server.faults.truncate = 1
        size = 0
        async with plane.open("k", if_match=None, offset=0) as body:
            with pytest.raises(TransientError, match=r"get 'k' in bucket 'b': .*cut short"):  # noqa: PT012 (bytes come first)
                async for block in body.chunks:
                    size += len(block)
        assert 0 < size < 100_000


async def test_a_body_that_is_not_its_etags_is_transient_trouble() -> None:
    """An altered body is detected if the ETag is an MD5, and only then."""
    async with planed() as (plane, server):
        false = f'"{"0" * 32}"'
        server.put("b", "base/altered", b"x", etag=false)
        server.put("b", "base/parts", b"x", etag=f'"{"0" * 32}-2"')
        kms = {"x-amz-server-side-encryption": "aws:kms"}
        server.put("b", "base/kms", b"x", etag=false, headers=kms)
        with pytest.raises(TransientError, match=r"'altered'.*ETag"):
            await plane.get("altered", if_match=None)
        for key in ("parts", "kms"):
            assert (await plane.get(key, if_match=None)).data == b"x"


async def test_etags_that_are_no_md5_are_learned_from_the_same_bytes_twice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A gateway's own ETags, or those of AWS Backup, do not defer files for ever."""
    async with planed() as (plane, server):
        for at in range(3):
            stored = server.put("b", f"base/{at}", b"x", etag=f'"{at}{"0" * 31}"')
            stored.checksums = b""
        for body in (b"y", b"x"):  # other bytes each time are a damaged connection
            server.put("b", "base/0", body, etag=f'"{"0" * 32}"')
            with pytest.raises(TransientError, match="ETag"):
                await plane.get("0", if_match=None)
        assert [(await plane.get(f"{at}", if_match=None)).data for at in range(3)] == [b"x"] * 3
        assert [record.message for record in caplog.records] == ["etags are not MD5"]


CRC32_OF_X = base64.b64encode(zlib.crc32(b"x").to_bytes(4, "big")).decode()


@pytest.mark.parametrize(
    ("checksum", "etag", "whole"),
    [
        pytest.param(CRC32_OF_X, "0" * 32, True, id="the checksum is enough"),
        pytest.param("AAAAAA==", hashlib.md5(b"x").hexdigest(), True, id="and so is the MD5"),
        pytest.param("AAAAAA==", "0" * 32, False, id="neither"),
        pytest.param("AAAAAA==", f"{'0' * 32}-2", False, id="a checksum alone that is wrong"),
        pytest.param("AAAAAA==-2", f"{'0' * 32}-2", True, id="one of the parts' checksums"),
    ],
)
async def test_a_body_is_verified_by_its_checksum_or_its_etag(
    checksum: str, etag: str, *, whole: bool
) -> None:
    """A body is accepted if its CRC32 or its MD5 matches, as far as the object has them."""
    async with planed() as (plane, server):
        stored = server.put("b", "base/k", b"x", etag=f'"{etag}"')
        stored.checksums = f"x-amz-checksum-crc32: {checksum}\r\n".encode()
        if whole:
            assert (await plane.get("k", if_match=None)).data == b"x"
        else:
            with pytest.raises(TransientError, match=r"'k'.*the body does not match its"):
                await plane.get("k", if_match=None)


async def test_configuration_trouble_is_not_transient() -> None:
    """A missing bucket and a wrong secret are errors of the configuration."""
    async with planed() as (_, server):
        missing = http_plane(server, bucket="missing")
        with pytest.raises(ConfigurationError, match=r"NoSuchBucket .*; create it, or"):
            await missing.list_page("", start_after="", token=None)

        async def wrong(_refused: Credentials | None) -> Credentials:
            return Credentials("AKIATEST", "wrong-secret")

        stranger = http_plane(server, source=wrong)
        with pytest.raises(ConfigurationError, match="SignatureDoesNotMatch") as caught:
            await stranger.get("k", if_match=None)
        assert "wrong-secret" not in str(caught.value)
        await close(missing)
        await close(stranger)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"OK",
        b"<ListBucketResult",
        b"<Other/>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents><Key>k</Key><Size>x</Size></Contents></ListBucketResult>",
    ],
)
async def test_an_answer_that_is_none_is_transient_trouble(body: bytes) -> None:
    """A 200 with an unexpected body is not a success."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length:(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = Endpoint("127.0.0.1", port, tls=False)
    target = Target(endpoint, "us-east-1", "b", path_style=True)
    plane = HttpDataPlane(Requester(target, credentials))
    with pytest.raises(TransientError, match="list"):
        await plane.list_page("", start_after="", token=None)
    with pytest.raises(TransientError, match="copy"):
        await plane.copy("k", "c", if_match="x", condition=Absent(), replacing=None)
    with pytest.raises(TransientError, match="delete"):
        await plane.delete([RunFile("k", 1, "x", NOON)])
    await close(plane)
    server.close()


# ------------------------------------------------------------------ what is learned


async def test_the_bucket_s_region_is_learned_once() -> None:
    """A wrong region is corrected from the error response, for this and all later requests."""
    async with planed(region="eu-west-1") as (plane, server):
        await put(plane, "k")
        assert server.ordinal == 2
        await plane.get("k", if_match=None)
        assert server.ordinal == 3


async def test_requests_under_way_learn_the_region_from_each_other() -> None:
    """Concurrent requests are all sent again, and all succeed."""
    async with planed(region="eu-west-1") as (plane, server):
        await asyncio.gather(*(put(plane, f"{at}") for at in range(20)))
        assert len(await listed(plane)) == 20
        assert server.ordinal <= 41


@pytest.mark.parametrize("operation", ["get", "head", "open"])
async def test_a_permanent_redirect_is_followed(operation: str) -> None:
    """A 301 has the region in a header; the request is signed and sent again."""
    async with planed(region="eu-west-1") as (plane, server):
        server.put("b", "base/k", b"x")
        header = b"x-amz-bucket-region: eu-west-1\r\n"
        refuse_once(server, S3Error("PermanentRedirect", headers=header))
        if operation == "get":
            assert (await plane.get("k", if_match=None)).data == b"x"
        elif operation == "head":
            assert (await plane.head("k")).file.size == 1
        else:
            async with plane.open("k", if_match=None, offset=0) as body:
                assert [block async for block in body.chunks] == [b"x"]
        assert server.ordinal == 2


async def test_a_redirect_that_leads_nowhere_new_is_told() -> None:
    """A redirect to the same place is an error of the configuration."""
    async with planed() as (plane, server):
        server.faults.redirect_region = "us-east-1"
        with pytest.raises(ConfigurationError, match="PermanentRedirect"):
            await plane.get("k", if_match=None)
        assert server.ordinal == 1
        with pytest.raises(ConfigurationError, match="AWS_DEFAULT_REGION=us-east-1"):
            await plane.head("k")


async def test_a_redirect_to_another_port_of_the_same_host_is_not_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the environment says which server of a host gets signed requests."""
    monkeypatch.setitem(wire.ERRORS, "TemporaryRedirect", (307, "Elsewhere."))
    monkeypatch.setitem(wire.STATUS_LINES, 307, b"307 Temporary Redirect")
    async with (
        planed() as (plane, first),
        S3Server(["b"], credentials=KEYS, clock=lambda: NOON) as second,
    ):
        location = f"location: {second.url}/b/base/k\r\n".encode()
        refuse_once(first, S3Error("TemporaryRedirect", headers=location))
        with pytest.raises(ConfigurationError, match="TemporaryRedirect"):
            await put(plane, "k", b"x")
        assert (first.ordinal, second.ordinal) == (1, 0)


AWS = Target(
    Endpoint("s3.us-east-1.amazonaws.com", 443, tls=True), "us-east-1", "b", path_style=False
)


@pytest.mark.parametrize(
    ("endpoint", "status", "headers", "host"),
    [
        (
            "s3.us-east-1.amazonaws.com",
            301,
            {b"x-amz-bucket-region": b"eu-west-1"},
            "s3.eu-west-1.amazonaws.com",
        ),
        (
            "s3.amazonaws.com",
            400,
            {b"x-amz-bucket-region": b"eu-west-1"},
            "s3.eu-west-1.amazonaws.com",
        ),
        (
            "s3-fips.dualstack.us-east-1.amazonaws.com",
            301,
            {b"x-amz-bucket-region": b"us-west-2"},
            "s3-fips.dualstack.us-west-2.amazonaws.com",
        ),
        (
            "s3.us-east-1.amazonaws.com",
            307,
            {b"location": b"https://b.s3.us-west-2.amazonaws.com/k"},
            "s3.us-west-2.amazonaws.com",
        ),
        (
            "s3.us-east-1.amazonaws.com",
            307,
            {b"location": b"https://b.s3-us-west-2.amazonaws.com/k"},
            "s3-us-west-2.amazonaws.com",
        ),
    ],
)
def test_redirects_within_s3_are_followed(
    endpoint: str, status: int, headers: dict[bytes, bytes], host: str
) -> None:
    """The region is replaced in the host name; a Location within S3 is followed."""
    target = replace(AWS, endpoint=Endpoint(endpoint, 443, tls=True))
    moved = redirected(target, status, headers, "")
    assert moved is not None
    assert (moved.endpoint.host, moved.endpoint.tls) == (host, True)
    assert moved.server.host == f"b.{host}"


@pytest.mark.parametrize(
    "location",
    [
        b"https://b.evil.test/k",
        b"https://b.s3.us-west-2.amazonaws.com.evil.test/k",
        b"https://b.s3.us-west-2.amazonaws.com.cn/k",
        b"https://b.s3-123456.us-east-1.elb.amazonaws.com/k",
        b"https://b.ec2-1-2-3-4.compute-1.amazonaws.com/k",
        b"https://s3.us-west-2.amazonaws.com/b/k",
        b"https://b.s3.us-west-2.amazonaws.com:99999/k",
        b"http://b.s3.us-west-2.amazonaws.com/k",
        b"https://[b",
        b"/k",
        b"",
    ],
)
def test_redirects_out_of_s3_are_not_followed(location: bytes) -> None:
    """Signed requests are only sent to S3 in the same partition, with the same use of TLS."""
    assert redirected(AWS, 307, {b"location": location}, "") is None


@pytest.mark.parametrize("hours", [-26, -1, 1, 26])
@pytest.mark.parametrize("operation", ["get", "head"])
async def test_a_skewed_clock_is_corrected(hours: int, operation: str) -> None:
    """The first error is transient; the next attempt is signed with the server's time."""
    async with planed(clock=lambda: NOON + timedelta(hours=hours)) as (plane, server):
        server.put("b", "base/k", b"x")

        async def ask() -> object:
            return await (plane.head("k") if operation == "head" else plane.get("k", if_match=None))

        with pytest.raises(TransientError, match=r"RequestTimeTooSkewed|403"):
            await ask()
        await ask()
        await put(plane, "k2")


async def test_a_denial_is_not_taken_for_a_skewed_clock() -> None:
    """If the clocks agree, a 403 is a denial."""
    async with planed() as (plane, server):
        server.faults.denied = lambda *_: True
        with pytest.raises(AccessDeniedError):
            await plane.head("k")


@pytest.mark.parametrize("operation", ["get", "head"])
async def test_expired_credentials_are_asked_for_anew(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source gets the rejected credentials; the next attempt has new ones."""
    monkeypatch.setitem(wire.ERRORS, "ExpiredToken", (400, "The provided token has expired."))
    refused: list[Credentials | None] = []

    async def source(old: Credentials | None) -> Credentials:
        refused.append(old)
        return Credentials("AKIATEST", "the-secret/key", f"token {len(refused)}")

    async with planed(source=source) as (plane, server):
        server.put("b", "base/k", b"x")
        refuse_once(server, S3Error("ExpiredToken"))
        request = plane.head("k") if operation == "head" else plane.get("k", if_match=None)
        with pytest.raises(TransientError) as caught:
            await request
        assert "token 1" not in str(caught.value)
        await asyncio.gather(*(plane.get("k", if_match=None) for _ in range(10)))
        assert [old and old.token for old in refused] == [None, "token 1"]


async def test_credentials_are_asked_for_now_and_then() -> None:
    """Requests close together share the credentials; later the source is called again."""
    asked = 0
    now = NOON

    async def source(_refused: Credentials | None) -> Credentials:
        nonlocal asked
        asked += 1
        return GOOD

    async with planed(source=source, clock=lambda: now) as (_, server):
        plane = http_plane(server, source=source, clock=lambda: now.timestamp())  # noqa: PLW0108 (the time moves)
        for _ in range(5):
            await put(plane, "k")
        assert asked == 1
        now += timedelta(minutes=1)
        await put(plane, "k")
        assert asked == 2
        await close(plane)


# ------------------------------------------------------------------ TLS


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server at ``localhost`` and of a client that trusts it."""
    authority = Authority(tmp_path)
    return authority.server_context("localhost"), tls_context(str(authority.bundle))


async def test_everything_works_over_tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Small and large bodies, whole and streamed; the payload of a large one is not signed."""
    payloads = []
    async with S3Server(["b"], credentials=KEYS, ssl_context=contexts[0]) as server:
        server.on_request = lambda request: payloads.append(
            (request.header("x-amz-content-sha256") or "")[:8]
        )
        endpoint = Endpoint("localhost", server.port, tls=True)
        target = Target(endpoint, "us-east-1", "b", path_style=True)
        plane = HttpDataPlane(Requester(target, credentials, tls=contexts[1]))
        large = bytes(3_000_000)
        await put(plane, "small", b"x")
        etag = await put(plane, "large", large)
        assert payloads == ["2d711642", "UNSIGNED"]
        assert (await plane.get("large", if_match=etag)).data == large
        async with plane.open("large", if_match=etag, offset=1) as body:
            assert sum([len(block) async for block in body.chunks]) == len(large) - 1
        assert await plane.delete(await listed(plane)) == {}
        await close(plane)


# ------------------------------------------------------------------ moto


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Credentials]]:
    """Yield the URL of moto's server with authentication, and the keys of a user with access."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"

    session = botocore.session.Session()
    s3, iam = (
        session.create_client(
            service,
            "us-east-1",
            endpoint_url=url,
            aws_access_key_id="root",
            aws_secret_access_key="root",
        )
        for service in ("s3", "iam")
    )
    s3.create_bucket(Bucket="bucket")
    iam.create_user(UserName="u")
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
    }
    iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="u")["AccessKey"]
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    yield url, Credentials(key["AccessKeyId"], key["SecretAccessKey"])
    monkeypatch.undo()
    server.stop()


async def test_moto_accepts_the_signatures(moto: tuple[str, Credentials]) -> None:
    """An independent server verifies the signature of every operation, and rejects a wrong one."""
    url, good = moto
    host, _, port = url.removeprefix("http://").partition(":")
    endpoint = Endpoint(host, int(port), tls=False)
    target = Target(endpoint, "us-east-1", "bucket", path_style=True)

    async def source(_refused: Credentials | None) -> Credentials:
        return good

    plane = HttpDataPlane(Requester(target, source))
    keys = ["plain.json", "with space+plus%20.json", "é€.json"]
    for key in keys:
        etag = await put(plane, key, key.encode(), metadata={"a": "b  c"})
        assert (await plane.get(key, if_match=etag)).data == key.encode()
        assert (await plane.head(key)).metadata == {"a": "b  c"}
        await plane.copy(key, f"copy/{key}", if_match=etag, condition=None, replacing=None)
    files = await listed(plane)
    assert {file.key for file in files} == {*keys, *(f"copy/{key}" for key in keys)}
    assert await plane.delete(files) == {}
    assert await listed(plane) == []
    await close(plane)

    async def wrong(_refused: Credentials | None) -> Credentials:
        return Credentials(good.access_key, "wrong")

    stranger = HttpDataPlane(Requester(target, wrong))
    with pytest.raises(ConfigurationError, match="SignatureDoesNotMatch"):
        await put(stranger, "k")
    await close(stranger)


def test_the_plane_is_a_data_plane() -> None:
    """The class implements the protocol."""
    plane: type[DataPlane] = HttpDataPlane
    assert plane is HttpDataPlane
    assert Limits().max_connections >= 32
