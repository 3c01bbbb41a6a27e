"""The environment as boto reads it, and boto's errors: each is translated, honoured or refused."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as boto_errors
from botocore.parsers import ResponseParserError
from testkit.s3server import S3Server

from asyncagg.errors import (
    AsyncaggError,
    ConfigurationError,
    StoreError,
    TransientError,
    UsageError,
)
from asyncagg.model import RunFile
from asyncagg.settings import settings_from
from asyncagg.store import Absent, Store
from asyncagg.store.opening import open_store, parse_bucket
from asyncagg.store.s3.boto import BotoBucket, BotoPlane, control, open_control
from asyncagg.store.s3.plane import delete_failures, s3_error
from asyncagg.store.s3.text import content_encoding, printable
from asyncagg.store.s3.xml import parse_error, parse_listing

NOON = datetime(2025, 10, 21, 12, tzinfo=UTC)


def _made(kind: Any) -> Exception:
    made: Exception
    if issubclass(kind, boto_errors.ClientError):
        made = kind({"Error": {"Code": "AccessDenied"}}, "GetObject")
    elif kind is boto_errors.WaiterError:
        made = kind(name="w", reason="r", last_response={})
    else:
        names = re.findall(r"{(\w+)", getattr(kind, "fmt", ""))
        made = kind(**{name: name for name in names})
    return made


RAISED = [
    kind
    for _, kind in inspect.getmembers(boto_errors, inspect.isclass)
    if issubclass(kind, Exception)
    and kind.__module__ == boto_errors.__name__
    and not issubclass(kind, (Warning, boto_errors.StubResponseError))
    and kind is not boto_errors.UndefinedModelAttributeError
    and kind is not boto_errors.MissingServiceIdError
]


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_every_error_of_botocore_is_translated(kind: type[Exception]) -> None:
    """What a client raises is an error of this package, with the reason."""
    with (
        pytest.raises(AsyncaggError) as caught,
        BotoBucket(None, "b").translating("get", "k"),
    ):
        raise _made(kind)
    assert isinstance(caught.value, (ConfigurationError, StoreError))
    assert str(caught.value)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            boto_errors.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
            ConfigurationError,
            "missing: AWS_SECRET_ACCESS_KEY; expected .* AWS_ACCESS_KEY_ID and AWS_SECRET_",
        ),
        (boto_errors.UnauthorizedSSOTokenError(), ConfigurationError, "SSO session"),
        (
            boto_errors.CredentialRetrievalError(provider="custom-process", error_msg="it fails"),
            ConfigurationError,
            "credentials: .*it fails",
        ),
        (
            boto_errors.CredentialRetrievalError(provider="container-role", error_msg="busy"),
            TransientError,
            "busy",
        ),
        (FileNotFoundError(2, "No such file", "/token"), ConfigurationError, "/token"),
        (ResponseParserError("not XML"), TransientError, "not XML"),
        (
            boto_errors.InvalidRegionError(region_name="us east"),
            ConfigurationError,
            "AWS_DEFAULT_REGION",
        ),
        (
            boto_errors.ClientError(
                {"Error": {"Code": "AccessDenied", "Message": "not this role"}},
                "AssumeRoleWithWebIdentity",
            ),
            ConfigurationError,
            "credentials: .*not this role",
        ),
        (
            boto_errors.ClientError(
                {
                    "Error": {"Code": "Throttling"},
                    "ResponseMetadata": {"HTTPStatusCode": 400},
                },
                "AssumeRole",
            ),
            TransientError,
            "Throttling",
        ),
    ],
)
def test_the_fault_is_found_where_it_is(
    error: Exception, kind: type[Exception], words: str
) -> None:
    """Credentials are the environment's fault, a service that blinks is nobody's."""
    with pytest.raises(kind, match=words), BotoBucket(None, "b").translating("get", "k"):
        raise error


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_DEFAULT_REGION": "us east 1"}, "AWS_DEFAULT_REGION.*us east 1"),
        ({"AWS_PROFILE": "none"}, "AWS_PROFILE.*none"),
        ({"AWS_ACCESS_KEY_ID": "AKIA\n"}, "AWS_ACCESS_KEY_ID has white space"),
        ({"AWS_SESSION_TOKEN": " token"}, "AWS_SESSION_TOKEN has white space"),
        ({"AWS_CONFIG_FILE": "{folder}/config"}, "the AWS environment .*config"),
        ({"AWS_RETRY_MODE": "nonsense"}, "the AWS environment .*nonsense"),
    ],
)
async def test_a_broken_environment_is_named_at_the_start(
    variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable and its value, not the endpoint."""
    (tmp_path / "config").write_text("no section = at all\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    with pytest.raises(ConfigurationError, match=words):
        async with open_control(endpoint_url="http://127.0.0.1:1", connections=1):
            pass


@pytest.mark.parametrize(
    "store",
    [
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/name",
        "s3://arn:aws:s3::123456789012:accesspoint/name.mrap/prefix",
        "s3://name--use1-az4--x-s3",
        "s3://name-1234--op-s3/prefix",
    ],
)
def test_a_bucket_of_another_kind_is_refused(store: str) -> None:
    """Neither an ARN nor a directory bucket is taken for the name of a bucket."""
    with pytest.raises(UsageError, match="expected a"):
        parse_bucket(store)
    assert parse_bucket("s3://name-abc-s3alias/p") == ("name-abc-s3alias", "p/")


async def test_the_path_of_an_endpoint_is_part_of_every_request() -> None:
    """Some servers serve S3 below a path."""
    async with open_control(
        endpoint_url="https://host.test/storage/v1/s3", connections=1
    ) as opened_control:
        target = await opened_control.locate("b")
        assert (target.root, target.server.host) == ("/storage/v1/s3/b", "host.test")
    async with open_control(endpoint_url="", connections=1) as opened_control:
        assert (await opened_control.locate("bucket")).root == ""
        assert (await opened_control.locate("with.dots")).root == "/with.dots"


# ------------------------------------------------------------------ proxies and plain HTTP


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Run a proxy that refuses, and yield its URL and the request lines that it received."""
    lines: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", lines
    server.close()


async def test_a_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The plane of aioboto3 takes over, and the log says so; NO_PROXY is honoured."""
    caplog.set_level(logging.INFO)
    settings = settings_from(
        {"store": "s3://b", "endpoint_url": "http://s3.test", "retry_attempts": 1}
    )
    async with proxied() as (url, lines):
        monkeypatch.setenv("HTTP_PROXY", url)
        async with open_store(settings) as store:
            with pytest.raises(AsyncaggError):
                await store.get("k")
        assert lines == [b"GET http://s3.test/b/k HTTP/1.1\r\n"]
        assert "requests go through aioboto3" in caplog.messages
        monkeypatch.setenv("NO_PROXY", "s3.test")
        async with open_control(endpoint_url="http://s3.test", connections=1) as direct:
            assert direct.proxy == ""


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://minio.test:9000", True),
        ("http://10.0.0.1", True),
        ("https://minio.test", False),
        ("http://localhost:9000", False),
        ("http://127.0.0.2:9000", False),
        ("http://[::1]:9000", False),
    ],
)
async def test_credentials_over_plain_http_are_warned_of_once(
    url: str, *, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A server elsewhere over http is named at warning, once per process."""
    control._warn_of_plain_http.cache_clear()
    for _ in range(2):
        async with open_control(endpoint_url=url, connections=1):
            pass
    assert caplog.messages == ["credentials are used over http"] * warned


# ------------------------------------------------------------------ what a server says


def test_a_server_s_text_forges_no_line_and_shows_no_token() -> None:
    """Control characters of both sets are removed, and echoed headers too."""
    token = "FwoGZXIvYXdzE" * 12
    echoed = (
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/x/s3/aws4_request, SignedHeaders=host, "
        f"Signature=0123abcd X-Amz-Security-Token: short-token, {token} "
        "{'x-amz-security-token': 'quoted'} authorization=Bearer bearer-token"
    )
    for code, message in (
        (echoed, ""),
        ("", echoed),
        ("Bad\r\nCode\x85\x9b\u2028", "m\x1b[2Jn\x00"),
    ):
        error = str(s3_error("get", "k", bucket="b", status=400, code=code, message=message))
        assert error.isprintable()
        assert not re.search("0123abcd|short-token|FwoG|quoted|bearer-token", error)
    assert printable("The role arn:aws:iam::123456789012:role/r may not") == (
        "The role arn:aws:iam::123456789012:role/r may not"
    )


def test_a_reason_to_refuse_is_shown() -> None:
    """What S3 says about a key of KMS, a class of storage or a legal hold is in the message."""
    for code, message in (
        ("KMS.DisabledException", "arn:aws:kms:eu-west-1:123456789012:key/1234 is disabled."),
        ("InvalidObjectState", "The operation is not valid for the object's storage class"),
        ("AccessDenied", "Access Denied because object protected by object lock."),
    ):
        error = s3_error("get", "k", bucket="b", status=403, code=code, message=message)
        assert f"403 {code} {message}" in str(error)


def test_a_bucket_in_another_region_is_named_with_the_setting() -> None:
    """A 301 says where the bucket is and what to set."""
    error = s3_error(
        "list", "", bucket="b", status=301, code="PermanentRedirect", message="", region="eu-west-1"
    )
    assert isinstance(error, ConfigurationError)
    assert "set AWS_DEFAULT_REGION=eu-west-1" in str(error)


@pytest.mark.parametrize(
    "entries",
    [
        [("", "InternalError", "")],
        [("root/other", "AccessDenied", "")],
        [("a", "NoSuchKey", "")],
        [("root/a", "InternalError", ""), ("", "", "")],
    ],
)
def test_what_is_not_confirmed_deleted_is_not(entries: list[tuple[str, str, str]]) -> None:
    """An error without a key, or with a foreign one, leaves open which object is deleted."""
    files = [RunFile(key, 1, "e", NOON) for key in "ab"]
    failures = delete_failures(entries, files, prefix="root/", bucket="b")
    assert set(failures) == {"a", "b"}


def test_an_unknown_code_of_a_delete_is_a_failure() -> None:
    """Only NoSuchKey means that there is nothing to delete."""
    files = [RunFile(key, 1, "e", NOON) for key in "abc"]
    entries = [("a", "Novel", ""), ("b", "", ""), ("c", "NoSuchKey", "")]
    assert set(delete_failures(entries, files, prefix="", bucket="b")) == {"a", "b"}


def test_a_time_without_a_zone_is_utc() -> None:
    """Some servers write none."""
    body = (
        b"<ListBucketResult><Contents><Key>k</Key><LastModified>2025-10-21T12:00:00</LastModified>"
        b'<ETag>"e"</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>'
        b"<IsTruncated>false</IsTruncated></ListBucketResult>"
    )
    assert parse_listing(body, "").files[0].last_modified == NOON


@pytest.mark.parametrize(
    ("header", "codings"),
    [
        ("aws-chunked", ""),
        ("gzip,aws-chunked", "gzip"),
        ("AWS-Chunked, GZIP", "gzip"),
        ("gzip, br", "gzip,br"),
        ("", ""),
    ],
)
def test_a_content_encoding_is_a_list(header: str, codings: str) -> None:
    """The coding of an upload's transfer is none of the object's."""
    assert content_encoding(header) == codings


def test_an_error_page_of_a_gateway_is_no_error_of_s3() -> None:
    """HTML has neither a code nor a message."""
    assert parse_error(b"<html>Authorization: x</html>").code == ""


# ------------------------------------------------------------------ the plane of aioboto3


@asynccontextmanager
async def opened(server: S3Server, **more: Any) -> AsyncIterator[Store]:
    """Open a store on a server."""
    settings = {"store": "s3://b", "endpoint_url": server.url, "retry_attempts": 1, **more}
    async with open_store(settings_from(settings)) as store:
        yield store


async def test_a_key_that_xml_cannot_hold_does_not_fail_its_batch() -> None:
    """DeleteObjects is for the others; such a key is deleted by a request of its own."""
    async with (
        S3Server(["b"]) as server,
        open_control(endpoint_url=server.url, connections=1) as opened_control,
    ):
        plane = BotoPlane(BotoBucket(opened_control.client, "b"))
        files = []
        for key in ("a", "bell\x07", "\x01", "z"):
            etag = server.put("b", key, b"x").etag.strip('"')
            files.append(RunFile(key, 1, "0" * 32 if key == "\x01" else etag, NOON))
        assert set(await plane.delete(files)) == {"\x01"}
        assert list(server.keys("b")) == ["\x01"]


@pytest.mark.parametrize("plane", ["lean", "boto"])
async def test_every_write_has_a_checksum(plane: str) -> None:
    """A bucket with Object Lock accepts no other; parts have one, too."""
    names = ("content-md5", "x-amz-checksum-crc32")
    async with S3Server(["b"]) as server, opened(server, data_plane=plane) as store:
        with_body: dict[str, bool] = {}
        server.on_request = lambda request: with_body.update(
            {request.operation: any(request.header(name) for name in names)}
        )
        await store.put("small", b"x", condition=Absent())
        await store.put("large", bytes(6_000_000), condition=Absent())
        await store.delete([(await store.head("small")).file])
    for operation in ("PutObject", "UploadPart", "DeleteObjects"):
        assert with_body[operation], operation


@pytest.mark.parametrize("guard", ["ignore", "refuse", "always_fail"])
async def test_a_store_that_ignores_the_conditions_of_an_upload_is_refused(guard: Any) -> None:
    """The conditions of CompleteMultipartUpload are probed before the first one counts."""
    async with S3Server(["b"]) as server:
        server.faults.guards.complete = guard
        server.faults.allow_small_parts = True
        async with opened(server) as store:
            with pytest.raises(ConfigurationError, match="conditions of multipart uploads"):
                await store.put("large", bytes(6_000_000), condition=Absent())
        assert list(server.keys("b")) == []
        if guard == "ignore":
            async with opened(server, conditional_writes="off") as store:
                await store.put("large", bytes(6_000_000), condition=Absent())
            assert list(server.keys("b")) == ["large"]


async def test_the_conditions_of_uploads_are_probed_once_and_only_if_needed() -> None:
    """A run without a large aggregate sends no request for this."""
    async with S3Server(["b"]) as server, opened(server) as store:
        await store.put("small", b"x", condition=Absent())
        assert "CreateMultipartUpload" not in server.audit.counts
        for at in range(2):
            await store.put(f"{at}", bytes(6_000_000), condition=Absent())
        assert server.audit.counts["CreateMultipartUpload"] == 4 + 2
        assert sorted(server.keys("b")) == ["0", "1", "small"]
