"""The saved queries of the stack find what they promise in the log of real invocations."""

from __future__ import annotations

import re

import pytest
from testkit.insights import Row, events, query
from testkit.invocations import BUCKET, EVENT, Context, put, run_file
from testkit.s3server import DropError, Request, S3Error, S3Server, ThreadedS3Server
from testkit.template import ROOT, resources

from asyncagg import handler

QUERIES = {name: each["QueryString"] for name, each in resources("AWS::Logs::QueryDefinition")}
STORY = "runs/bad-2.json"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[Row]:
    """Return the events of two invocations, with bad files, throttling and a reset."""
    left: dict[tuple[str, str], Exception] = {
        ("GetObject", "runs/1.json"): S3Error("SlowDown"),
        ("GetObject", "runs/2.json"): DropError(reset=True),
        ("CopyObject", "archive/3.json"): S3Error("SlowDown"),
    }

    def trouble(request: Request) -> None:
        if failure := left.pop((request.operation, request.key), None):
            raise failure

    with ThreadedS3Server(S3Server([BUCKET], on_request=trouble)) as server:
        monkeypatch.setenv("SAM_MATCHING_OUT_RUNS_BUCKET", BUCKET)
        monkeypatch.setenv("ASYNCAGG_ENDPOINT_URL", server.url)
        monkeypatch.setenv("ASYNCAGG_LOG_LEVEL", "debug")
        monkeypatch.setattr(handler, "_kept", None)
        for number in range(1, 5):
            put(server, f"runs/{number}.json", run_file(number))
        put(server, "runs/20251021t1301Z_a.json", run_file(5))
        put(server, "runs/bad-1.json", b'{"errors": "many"}')
        put(server, STORY, b'{"run_id": "a", "errors": "few"}')
        put(server, "runs/bad-3.json", b'{"run_id')
        for request_id in ("first", "second"):
            handler.lambda_handler(EVENT, Context(aws_request_id=request_id))
        handler.close()
    assert not left
    lines = "".join(capsys.readouterr()).splitlines()  # metrics are in the log, too
    return events(["START RequestId: first Version: $LATEST", *lines, "REPORT RequestId: second"])


def test_the_slow_windows_come_first(log: list[Row]) -> None:
    """Each line has the window, its time, and how much work it was."""
    rows = query(QUERIES["SlowWindowsQuery"], log)
    assert {row["window"] for row in rows} == {"20251021t1400Z", "20251021t1305Z"}
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds, reverse=True)
    assert {row["counted"] for row in rows} == {4, 1}
    assert {row["function_request_id"] for row in rows} == {"first"}


def test_quarantined_files_are_counted_by_reason(log: list[Row]) -> None:
    """Values and places do not split a reason."""
    first, second = query(QUERIES["QuarantinedQuery"], log)
    assert first["why"].startswith("errors: expected a whole number from 0")
    assert (first["files"], first["last_key"] in {"runs/bad-1.json", STORY}) == (2, True)
    assert (second["why"], second["files"]) == ("not JSON: it is cut short", 1)


def test_throttling_is_summed_by_hour(log: list[Row]) -> None:
    """Requests that were sent again, by reason."""
    rows = query(QUERIES["ThrottlingQuery"], log)
    for name, count in {"throttled": 2, "resets": 1, "timed_out": 0, "others": 0}.items():
        assert sum(row[name] for row in rows) == count
    assert {row["files_left"] for row in rows} == {0}


def test_the_story_of_a_file_is_found_by_its_key(log: list[Row]) -> None:
    """All that was logged about it."""

    def story(key: str) -> list[Row]:
        return query(QUERIES["StoryQuery"].replace("runs/REPLACE.json", key), log)

    (row,) = story(STORY)
    assert (row["level"], row["message"]) == ("WARNING", "quarantined")
    assert row["target"] == "quarantine/bad-2.json"
    assert [row["message"] for row in story("runs/2.json")] == ["counted"]
    assert story("runs/x.json") == []


def test_the_page_has_the_saved_queries() -> None:
    """docs/how-to/deploy.md shows each query as the stack saves it."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text("utf-8")
    shown = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown == list(QUERIES.values())
    assert all(query(text, []) == [] for text in shown)
