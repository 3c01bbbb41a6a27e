"""The log: its lines cannot be forged, and contain no secrets."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from testkit.invocations import BUCKET, EVENT, Context, put, run_file
from testkit.s3server import S3Server, ThreadedS3Server

from asyncagg import handler
from asyncagg.errors import AsyncaggError
from asyncagg.runtime import logs

HOSTILE = 'runs/a\n{"level":"ERROR","message":"forged"}\r\u2028.json'
SECRET = "wJalrXUtnFEMI-very-secret"
TOKEN = "a-session-token-that-nobody-sees"
CONTENT = "content-of-a-run-file"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedS3Server]:
    """A server, the environment that names it, and secret credentials."""
    with ThreadedS3Server(S3Server([BUCKET])) as threaded:
        monkeypatch.setenv("SAM_MATCHING_OUT_RUNS_BUCKET", BUCKET)
        monkeypatch.setenv("ASYNCAGG_ENDPOINT_URL", threaded.url)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
        monkeypatch.setattr(handler, "_kept", None)
        yield threaded
        handler.close()


def invoke(capsys: pytest.CaptureFixture[str], **context: Any) -> list[dict[str, Any]]:
    """Invoke the handler; return its log, in which each line must be an object."""
    handler.lambda_handler(EVENT, Context(**context))
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("form", "value"), [("text", repr(HOSTILE)), ("json", json.dumps(HOSTILE))]
)
def test_a_hostile_key_stays_on_its_own_line(form: str, value: str) -> None:
    """Line breaks, quotes and Unicode separators are escaped in both formats."""
    stream = io.StringIO()
    logs.configure("info", json=form == "json", stream=stream)
    logging.getLogger("asyncagg.test").info("deferred", extra={"key": HOSTILE})
    (line,) = stream.getvalue().splitlines()
    assert value in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_name_of_the_task_is_not_logged(form: str) -> None:
    """Python 3.12 adds it to each record; it is a number that nobody knows."""
    stream = io.StringIO()
    logs.configure("info", json=form == "json", stream=stream)
    record = logging.makeLogRecord({"name": "asyncagg.test", "levelno": 20, "msg": "run"})
    record.taskName = "Task-17"
    logging.getLogger("asyncagg.test").handle(record)
    assert "Task" not in stream.getvalue()


def test_a_program_without_a_log_sees_no_messages() -> None:
    """As for every library: warnings do not go to standard error by themselves."""
    program = "import logging, asyncagg; logging.getLogger('asyncagg.job').warning('a bare word')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""


def test_a_hostile_key_cannot_forge_a_line_of_the_lambda(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad file with such a name is logged on one line, with its exact key."""
    put(server, HOSTILE, b"not JSON")
    lines = invoke(capsys)
    (logged,) = [line for line in lines if line["message"] == "quarantined"]
    assert (logged["level"], logged["key"]) == ("WARNING", HOSTILE)
    assert not [line for line in lines if line["message"] == "forged"]


def test_each_line_names_the_invocation(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line has level, time, service, ids, cold start and trace, as Powertools names them."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1")
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "stack")
    put(server, "runs/1.json", run_file(1))
    for request_id, cold in (("first", True), ("second", False)):
        for line in invoke(capsys, aws_request_id=request_id):
            assert line["level"] == "INFO"
            assert datetime.fromisoformat(line["timestamp"]).tzinfo == UTC
            assert line["service"] == "stack"
            assert line["function_request_id"] == line["correlation_id"] == request_id
            assert line["cold_start"] is cold
            assert line["xray_trace_id"] == "1-5759e988-bd862e3fe1be46a994272793"


def test_the_id_of_the_event_correlates(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """An event that is delivered twice has one correlation id and two request ids."""
    put(server, "runs/1.json", run_file(1))
    answer = handler.lambda_handler(EVENT | {"id": "the-event"}, Context())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert answer["correlation_id"] == "the-event"
    assert {line["correlation_id"] for line in lines} == {"the-event"}
    assert {line["function_request_id"] for line in lines} == {"5a1c7b4e"}


def test_nothing_secret_is_logged(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No credentials are logged, even on failures; of a content only the value at fault."""
    monkeypatch.setenv("ASYNCAGG_LOG_LEVEL", "debug")
    put(server, "runs/bad.json", b'{"run_id": "%s", "errors": "1"}' % CONTENT.encode())
    put(server, "runs/worse.json", b'{"run_id": "%s", ' % CONTENT.encode())
    put(server, "runs/good.json", b'{"run_id": "%s"}' % CONTENT.encode())
    server.call(lambda: server.server.faults.update({"internal_error": 0.2}))
    handler.lambda_handler(EVENT, Context())
    output = "".join(capsys.readouterr())
    assert '"DEBUG"' in output
    for secret in (SECRET, TOKEN, CONTENT, "AWS4-HMAC", "X-Amz-Signature"):
        assert secret not in output


@pytest.mark.usefixtures("server")
def test_a_failure_is_one_structured_line_and_is_raised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Lambda reports the error; its line in the log has the type and the reason."""
    with pytest.raises(Exception, match="noon"):
        handler.lambda_handler({"time": "noon"}, Context())
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["level"], line["message"], line["error"]) == ("ERROR", "failed", "UsageError")
    assert "event time 'noon'" in line["reason"]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("ASYNCAGG_WINDOW_MINUTES", "7", "window_minutes 7: expected"),
        ("ASYNCAGG_CONCURRENCY", "many", "it comes from ASYNCAGG_CONCURRENCY"),
        ("ASYNCAGG_STORE", "ftp://x", "store 'ftp://x': expected"),
        ("ASYNCAGG_ENDPOINT_URL", "nonsense", "endpoint_url 'nonsense'"),
        ("AWS_PROFILE", "nobodys", "AWS_PROFILE: "),
    ],
)
def test_a_wrong_setting_is_a_line_of_the_invocation(
    variable: str,
    value: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each invocation fails and logs why, as JSON, with what any line says."""
    monkeypatch.setenv(variable, value)
    for request_id in ("first", "second"):
        with pytest.raises(AsyncaggError) as raised:
            handler.lambda_handler(EVENT, Context(aws_request_id=request_id))
        (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert (line["level"], line["message"]) == ("ERROR", "failed")
        assert line["error"] == raised.type.__name__
        assert line["function_request_id"] == line["correlation_id"] == request_id
        assert reason in line["reason"]


@pytest.mark.usefixtures("server")
def test_a_variable_that_is_not_a_setting_is_logged_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelled variable is not silently ignored."""
    monkeypatch.setenv("ASYNCAGG_WINDOWBY", "name")
    lines = [each for _ in range(2) for each in invoke(capsys)]
    (line,) = [each for each in lines if each["message"] == "not a setting"]
    assert (line["level"], line["variable"]) == ("WARNING", "ASYNCAGG_WINDOWBY")


def test_unknown_fields_are_counted_at_debug(
    server: ThreadedS3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line per window has the names of the fields that are not read."""
    monkeypatch.setenv("ASYNCAGG_LOG_LEVEL", "debug")
    put(server, "runs/a.json", b'{"run_id": "a", "matchesFound": 1, "x": [1]}')
    put(server, "runs/b.json", b'{"errors": 1, "x": 1, "y": 1, "x": 2}')
    handler.lambda_handler(EVENT, Context())
    lines = map(json.loads, filter(None, "".join(capsys.readouterr()).splitlines()))
    found = [each["names"] for each in lines if each.get("message") == "unknown fields"]
    assert found == [{"x": 3, "matchesFound": 1, "y": 1}]
