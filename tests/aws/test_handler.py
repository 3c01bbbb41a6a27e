"""The Lambda handler on a real S3 server, as Lambda calls it: synchronously, again and again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from testkit.invocations import BUCKET, EVENT, Context, put, run_file
from testkit.promises import RECORD
from testkit.s3server import Request, S3Error, S3Server, ThreadedS3Server

from asyncagg import handler
from asyncagg.errors import AsyncaggError, ConfigurationError, UsageError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedS3Server]:
    """A server with three run files of one window, and the environment that names it."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        monkeypatch.setenv("SAM_MATCHING_OUT_RUNS_BUCKET", BUCKET)
        monkeypatch.setenv("ASYNCAGG_ENDPOINT_URL", threaded.url)
        monkeypatch.setattr(handler, "_kept", None)
        for number in (1, 2, 3):
            put(threaded, f"runs/{number}.json", run_file(number))
        yield threaded
        handler.close()


def keys(server: ThreadedS3Server) -> list[str]:
    """Return every key in the bucket, but for the store's record."""
    found = server.call(lambda: server.server.keys(BUCKET))
    return [key for key in found if not key.endswith(RECORD)]


def test_the_answer_has_the_documented_shape(server: ThreadedS3Server) -> None:
    """The answer has a status code, a JSON body and the correlation id."""
    answer = handler.lambda_handler(EVENT, Context())
    body = json.loads(answer["body"])
    assert (answer["statusCode"], answer["correlation_id"]) == (200, "5a1c7b4e")
    results = body["results"]
    assert body["message"] == "settled 3 files into 1 aggregates"
    assert results["processed_files"] == results["archived_files"] == 3
    assert results["aggregate_file_key"] == "aggregates/20251021t1400Z.json"
    assert results["aggregate_file_keys"] == ["aggregates/20251021t1400Z.json"]
    assert results["total_opportunities"] == 6
    assert results["total_matches"] == 3
    assert results["processing_time_seconds"] == 1.5
    assert keys(server) == [
        "aggregates/20251021t1400Z.json",
        *(f"archive/{number}.json" for number in (1, 2, 3)),
    ]


def test_a_warm_invocation_uses_the_same_loop_and_client(server: ThreadedS3Server) -> None:
    """A second invocation works, and merges a late file."""
    handler.lambda_handler(EVENT, Context())
    put(server, "runs/4.json", run_file(4))
    answer = handler.lambda_handler(EVENT, Context(aws_request_id="second"))
    results = json.loads(answer["body"])["results"]
    assert (results["processed_files"], results["late_files"]) == (1, 1)
    document = json.loads(
        server.call(lambda: server.server.get(BUCKET, "aggregates/20251021t1400Z.json").body)
    )
    assert (document["revision"], document["total_opportunities"]) == (2, 10)


@pytest.mark.parametrize("method", ["HEAD", "GET", "PUT"])
def test_a_warm_environment_heals(
    method: str, server: ThreadedS3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer that calls the credentials expired fails its invocation, and not the next."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    answers = 0

    def expire(request: Request) -> None:
        nonlocal answers
        if request.method == method and not answers:
            answers += 1
            raise S3Error("ExpiredToken")

    server.server.on_request = expire
    with pytest.raises(ConfigurationError, match="credentials: expired"):
        handler.lambda_handler(EVENT, Context())
    assert answers == 1
    answer = handler.lambda_handler(EVENT, Context(aws_request_id="second"))
    assert json.loads(answer["body"])["results"]["processed_files"] == 3


def test_the_same_event_twice_does_the_work_once(server: ThreadedS3Server) -> None:
    """EventBridge may deliver an event twice; the second finds nothing to do."""
    handler.lambda_handler(EVENT, Context())
    before = server.call(lambda: server.server.get(BUCKET, "aggregates/20251021t1400Z.json").body)
    answer = handler.lambda_handler(EVENT, Context())
    assert json.loads(answer["body"])["results"]["processed_files"] == 0
    after = server.call(lambda: server.server.get(BUCKET, "aggregates/20251021t1400Z.json").body)
    assert after == before


def test_the_time_of_the_event_decides_not_the_clock(server: ThreadedS3Server) -> None:
    """A window that has not ended at the event's time waits for the next event."""
    early = EVENT | {"time": "2025-10-21T13:59:59Z"}
    answer = handler.lambda_handler(early, Context())
    assert json.loads(answer["body"])["results"]["processed_files"] == 0
    assert len(keys(server)) == 3


def test_a_direct_invocation_selects_windows(server: ThreadedS3Server) -> None:
    """A direct invocation settles one window, or an interval, and no others."""
    answer = handler.lambda_handler({"window": "20251021t1355Z"}, Context())
    assert json.loads(answer["body"])["results"]["processed_files"] == 0
    assert len(keys(server)) == 3
    span = {"since": "2025-10-21T13:55:00Z", "until": "2025-10-21T14:00:00Z"}
    answer = handler.lambda_handler(span, Context())
    assert json.loads(answer["body"])["results"]["processed_files"] == 3


def test_a_dry_run_changes_nothing_and_publishes_nothing(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """It answers what there is to do, and publishes no metrics, which would trigger alarms."""
    answer = handler.lambda_handler(EVENT | {"dry_run": True}, Context())
    body = json.loads(answer["body"])
    assert body["message"] == "dry run: 3 files of 1 windows to settle"
    assert (body["results"]["dry_run"], body["results"]["left_files"]) == (True, 3)
    assert len(keys(server)) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("server")
def test_each_invocation_publishes_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    """Each invocation publishes one line with its own numbers."""
    counted = []
    for event in (EVENT, EVENT):
        handler.lambda_handler(event, Context())
        (line,) = capsys.readouterr().out.splitlines()
        values = json.loads(line)
        counted.append([values[name][0] for name in ("FilesCounted", "CopyRequests")])
        assert values["OldestFileAge"] == ([180.0] if len(counted) == 1 else [0.0])
        assert values["PeakMemory"][0] > 0
        assert values["ListRequests"] == [3.0 - len(counted)]  # the first one looks for a record
    assert counted[0][0] == 3
    assert counted[0][1] > 3  # the probe of the conditions copies too
    assert counted[1] == [0, 0]


def test_sigterm_ends_the_work_and_says_so(server: ThreadedS3Server) -> None:
    """The work is cancelled, nothing is lost, and the same process can continue."""

    async def never_answer(request: Request) -> None:
        if request.operation == "CopyObject" and request.key.startswith("archive/2"):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    server.server.on_request = never_answer
    with pytest.raises(AsyncaggError, match="ended by SIGTERM: nothing is lost"):
        handler.lambda_handler(EVENT, Context())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    server.server.on_request = None
    answer = handler.lambda_handler(EVENT, Context())
    results = json.loads(answer["body"])["results"]
    assert (results["processed_files"], results["archived_files"]) == (0, 3)


def test_connections_that_died_in_a_freeze_are_replaced(server: ThreadedS3Server) -> None:
    """A request on a connection that the server has closed is retried on a new one."""
    handler.lambda_handler(EVENT, Context())
    put(server, "runs/4.json", run_file(4))
    server.call(server.server.drop_connections)
    answer = handler.lambda_handler(EVENT, Context())
    assert json.loads(answer["body"])["results"]["processed_files"] == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"time": 5}, "event time 5: expected text"),
        ({"time": "noon"}, "event time 'noon': expected a time"),
        ([], r"event \[\]: expected an object"),
        (None, "event None: expected an object"),
    ],
)
def test_a_malformed_event_is_an_error_and_changes_nothing(
    server: ThreadedS3Server, event: Any, message: str
) -> None:
    """The error names the value and what is accepted."""
    with pytest.raises(UsageError, match=message):
        handler.lambda_handler(event, Context())
    assert len(keys(server)) == 3


def test_a_missing_bucket_fails_loudly(
    server: ThreadedS3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lambda sees an error, not an empty success."""
    monkeypatch.setenv("SAM_MATCHING_OUT_RUNS_BUCKET", "no-such-bucket")
    with pytest.raises(ConfigurationError, match="no-such-bucket"):
        handler.lambda_handler(EVENT, Context())
    assert len(keys(server)) == 3


def test_a_short_time_left_leaves_the_rest_for_the_next_event(server: ThreadedS3Server) -> None:
    """If one file never answers and the time is short, the others are settled."""
    server.call(lambda: server.server.faults.slow_keys.update({"runs/2.json": None}))
    answer = handler.lambda_handler(EVENT, Context(milliseconds=2_000))
    results = json.loads(answer["body"])["results"]
    assert (results["processed_files"], results["left_files"]) == (2, 1)
    assert "runs/2.json" in keys(server)
