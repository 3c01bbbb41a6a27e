"""Lambda events: of a schedule, or of a direct invocation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from asyncagg.errors import UsageError
from asyncagg.model import Window
from asyncagg.windows import check_interval, parse_time, parse_window

_FIELDS = {"time", "window", "since", "until", "dry_run"}
_EVENTBRIDGE_FIELDS = {
    "version",
    "id",
    "detail-type",
    "source",
    "account",
    "region",
    "resources",
    "detail",
    "replay-name",  # an archive replay adds it
}
_SOURCES = ("aws.scheduler", "aws.events")
_ACCEPTED = (
    "expected an EventBridge Scheduler or rule event, {}, "
    '{"window": "20251021t1400Z"}, {"since": TIME, "until": TIME}, '
    'each also with "time": TIME or "dry_run": true'
)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A request to settle windows.

    Attributes:
        at: Windows that ended by then are settled.
        only: Selects some of them; None selects all.
        dry_run: Whether to change nothing.
        correlation_id: The event's id, or empty.
    """

    at: datetime
    only: Callable[[Window], bool] | None = None
    dry_run: bool = False
    correlation_id: str = ""


def parse_event(event: Any, *, now: datetime) -> RunRequest:
    """Return the request of an event.

    Its ``time``, not the clock, decides which windows have ended, so a retried event does the same
    work. ``window`` selects one window, ``since`` and ``until`` the windows between them.

    Args:
        event: As Lambda passes it.
        now: The time of an event that has none.

    Raises:
        UsageError: The event is not accepted; the message lists the accepted ones.
    """
    if not isinstance(event, Mapping):
        raise UsageError(f"event {event!r}: expected an object; {_ACCEPTED}")
    unknown = sorted(str(name) for name in event if name not in _FIELDS | _EVENTBRIDGE_FIELDS)
    if unknown:
        raise UsageError(f"event with {', '.join(map(repr, unknown))}: {_ACCEPTED}")
    source = event.get("source", _SOURCES[0])
    if source not in _SOURCES:
        raise UsageError(f"event source {source!r}: {_ACCEPTED}")
    at = _time(event, "time") or now
    dry_run = event.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise UsageError(f"event dry_run {dry_run!r}: expected true or false")
    return RunRequest(at, _selection(event, at), dry_run, str(event.get("id") or ""))


def _selection(event: Mapping[str, Any], at: datetime) -> Callable[[Window], bool] | None:
    since, until = _time(event, "since"), _time(event, "until")
    name = _text(event, "window")
    if name is None:
        return check_interval(since, until).holds if since or until else None
    if since or until:
        raise UsageError(f"event window {name!r} with since or until: {_ACCEPTED}")
    if parse_window(name, 1).end > at:
        raise UsageError(
            f"event window {name!r}: expected one that ended by {at:%Y-%m-%dT%H:%M:%SZ}"
        )

    @cache
    def wanted(minutes: int) -> Window:  # the store's record has the length of a window
        return parse_window(name, minutes)

    return lambda window: window == wanted(window.minutes)


def _time(event: Mapping[str, Any], name: str) -> datetime | None:
    text = _text(event, name)
    return None if text is None else parse_time(text, f"event {name}")


def _text(event: Mapping[str, Any], name: str) -> str | None:
    value = event.get(name)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"event {name} {value!r}: expected text such as 20251021t1400Z")
