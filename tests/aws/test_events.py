"""The Lambda events that are accepted, and the errors for others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncagg.aws.events import RunRequest, parse_event
from asyncagg.errors import UsageError
from asyncagg.model import Window

NOW = datetime(2025, 10, 21, 15, 2, tzinfo=UTC)
TWO = datetime(2025, 10, 21, 14, 0, tzinfo=UTC)

SCHEDULER = {
    "version": "0",
    "id": "2d6d5b2c-0a0f-4f5e-8f2b-6f1f6c7a9b11",
    "detail-type": "Scheduled Event",
    "source": "aws.scheduler",
    "account": "123456789012",
    "time": "2025-10-21T14:00:00Z",
    "region": "us-east-1",
    "resources": ["arn:aws:scheduler:us-east-1:123456789012:schedule/default/asyncagg"],
    "detail": "{}",
}
RULE = SCHEDULER | {
    "source": "aws.events",
    "resources": ["arn:aws:events:us-east-1:123456789012:rule/asyncagg"],
    "detail": {},
}


def parsed(event: Any) -> RunRequest:
    """Return the request of an event."""
    return parse_event(event, now=NOW)


def windows(request: RunRequest) -> list[str]:
    """Return which of the windows that end from 13:50 to 14:10 are selected."""
    ends = [TWO + timedelta(minutes=minutes) for minutes in range(-10, 15, 5)]
    chosen = [Window(end, 5) for end in ends]
    return [each.name[9:13] for each in chosen if request.only is None or request.only(each)]


REPLAYED = RULE | {"replay-name": "last-week"}


@pytest.mark.parametrize(
    "event", [SCHEDULER, RULE, REPLAYED], ids=["scheduler", "rule", "replayed from an archive"]
)
def test_an_eventbridge_event_selects_what_ended_by_its_time(
    event: dict[str, Any],
) -> None:
    """Both kinds of schedule events are accepted; the id becomes the correlation id."""
    request = parsed(event)
    assert (request.at, request.only, request.dry_run) == (TWO, None, False)
    assert request.correlation_id == event["id"]


def test_an_empty_event_selects_what_ended_by_now() -> None:
    """A direct invocation needs no fields."""
    assert parsed({}) == RunRequest(NOW)


def test_a_null_field_is_a_missing_field() -> None:
    """A caller may send every field as null."""
    event = dict.fromkeys(("time", "window", "since", "until"))
    assert parsed(event) == RunRequest(NOW)


def test_an_event_selects_a_window_by_name() -> None:
    """Only that window is selected, and it must have ended by now."""
    request = parsed({"window": "20251021t1400Z"})
    assert (request.at, windows(request)) == (NOW, ["1400"])


@pytest.mark.parametrize(
    ("event", "chosen"),
    [
        ({"since": "2025-10-21T13:55:00Z", "until": "20251021t1405Z"}, ["1400", "1405"]),
        ({"since": "2025-10-21T13:55:01Z"}, ["1405", "1410"]),
        ({"until": "2025-10-21T13:59:59Z"}, ["1350", "1355"]),
    ],
)
def test_an_event_selects_the_windows_of_an_interval(
    event: dict[str, Any], chosen: list[str]
) -> None:
    """The windows must lie in the interval; either end may be left out."""
    assert windows(parsed(event)) == chosen


def test_a_dry_run_combines_with_any_selection() -> None:
    """A dry run selects the same windows."""
    request = parsed({"window": "20251021t1400Z", "dry_run": True})
    assert (request.dry_run, windows(request)) == (True, ["1400"])


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ([], r"event \[\]: expected an object"),
        ("{}", "event '{}': expected an object"),
        ({"Records": []}, "event with 'Records': expected an EventBridge Scheduler or rule event"),
        ({"windows": "20251021t1400Z", "x\n": 1}, r"event with 'windows', 'x\\n': expected an"),
        (RULE | {"source": "aws.s3"}, "event source 'aws.s3': expected an EventBridge"),
        (RULE | {"source": []}, r"event source \[\]: expected an EventBridge"),
        ({"time": 5}, "event time 5: expected text such as"),
        ({"time": "noon"}, "event time 'noon': expected a time"),
        ({"window": "1400"}, "window '1400': expected the end of a window of 1 minutes"),
        ({"window": "20251021t1401Z"}, "window '20251021t1401Z': expected the end of a window"),
        ({"window": "20251021t1505Z"}, "expected one that ended by 2025-10-21T15:02:00Z"),
        ({"window": "20251021t1400Z", "since": "20251021t1300Z"}, "with since or until"),
        ({"since": "20251021t1400Z", "until": "20251021t1300Z"}, "expected a time before until"),
        ({"dry_run": "yes"}, "event dry_run 'yes': expected true or false"),
    ],
)
def test_anything_else_is_an_error(event: Any, message: str) -> None:
    """The message has the field, the value and what is accepted."""
    with pytest.raises(UsageError, match=message):
        windows(parsed(event))
