"""Each switch of `Faults` does what it says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError, ReadTimeoutError
from botocore.exceptions import ConnectionError as BotoConnectionError
from testkit.boto_client import (
    begin_upload,
    body_of,
    complete_upload,
    connect,
    refusal,
)
from testkit.s3server import (
    Faults,
    Guard,
    Pause,
    S3Server,
)


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
    """A connection is reset before the request is executed, or after it: a lost response."""
    server.faults.reset = 1
    with pytest.raises((BotoConnectionError, HTTPClientError)):
        await client.put_object(Bucket="b", Key="k", Body=b"")
    assert server.keys("b") == []
    server.faults = Faults(lose_response=1)
    with pytest.raises((BotoConnectionError, HTTPClientError)):
        await client.put_object(Bucket="b", Key="k", Body=b"")
    assert server.keys("b") == ["k"]
    # aiohttp repeats a PUT once by itself when its connection breaks, whatever botocore says.
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
    """Requests for one key can hang for ever while others are answered."""
    server.put("b", "slow", b"")
    server.put("b", "fast", b"")
    server.faults.slow_keys = {"slow": None}
    async with connect(server.url, read_timeout=0.2) as client:
        hanging = asyncio.create_task(client.get_object(Bucket="b", Key="slow"))
        assert await body_of(client, "fast") == b""
        with pytest.raises(ReadTimeoutError):
            await hanging


async def test_latency_overlaps(server: S3Server, client: Any) -> None:
    """Requests wait at the same time, and the audit counts how many."""
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
    """A bucket of another region answers with a redirect that names the region."""
    server.faults.redirect_region = "eu-west-1"
    with pytest.raises(ClientError) as caught:
        await client.put_object(Bucket="b", Key="k", Body=b"")
    error = caught.value.response["Error"]
    assert (error["Code"], error["Endpoint"]) == (
        "PermanentRedirect",
        "b.s3.eu-west-1.amazonaws.com",
    )


async def test_denied(server: S3Server, client: Any) -> None:
    """Denied keys are refused, also inside a batch and as the source of a copy."""
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
    upload_id, parts = await begin_upload(client, b"one")
    server.put("b", "k", b"taken")
    server.faults.guards.complete = "ignore"
    await complete_upload(client, upload_id, parts, IfNoneMatch="*")
    assert [loss.operation for loss in server.audit.lost] == ["CompleteMultipartUpload"]
