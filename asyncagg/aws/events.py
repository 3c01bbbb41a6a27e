"""What a Lambda event asks for: the scheduled work, or what somebody asks for directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncagg.errors import UsageError
from asyncagg.model import Window
from asyncagg.windows import check_interval, parse_time, parse_window

__all__ = ("RunRequest", "request_of")

_OWN = ("time", "window", "since", "until", "dry_run")
_ENVELOPE = (
    "version",
    "id",
    "detail-type",
    "source",
    "account",
    "region",
    "resources",
    "detail",
)
_SOURCES = ("aws.scheduler", "aws.events")
_ACCEPTED = (
    "expected an EventBridge Scheduler or rule event, {}, "
    '{"window": "20251021t1400Z"}, {"since": TIME, "until": TIME}, '
    'each also with "time": TIME or "dry_run": true'
)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What is to be done.

    Attributes:
        at: Windows that ended by then are settled.
        only: Which of them, where not all.
        dry_run: Whether to only look.
        correlation_id: The event's own id, or empty.
    """

    at: datetime
    only: Callable[[Window], bool] | None = None
    dry_run: bool = False
    correlation_id: str = ""


def request_of(event: Any, minutes: int, *, now: datetime) -> RunRequest:
    """Return what an event asks for.

    The event's ``time`` decides which windows have ended, not the clock: so a retried event does
    the same work. ``window`` takes one window, ``since`` and ``until`` those that lie between them.

    Args:
        event: As Lambda hands it over.
        minutes: The length of a window.
        now: The time of an event that names none.

    Raises:
        UsageError: It is none of the events that are accepted; the message names them.
    """
    if not isinstance(event, Mapping):
        raise UsageError(f"event {event!r}: expected an object; {_ACCEPTED}")
    _check_fields(event)
    at = _time(event, "time") or now
    return RunRequest(
        at=at,
        only=_selection(event, minutes, at),
        dry_run=_flag(event, "dry_run"),
        correlation_id=str(event.get("id") or ""),
    )


def _check_fields(event: Mapping[str, Any]) -> None:
    unknown = sorted(str(name) for name in event if name not in _OWN + _ENVELOPE)
    if unknown:
        raise UsageError(f"event with {', '.join(map(repr, unknown))}: {_ACCEPTED}")
    source = event.get("source", _SOURCES[0])
    if source not in _SOURCES:
        raise UsageError(f"event source {source!r}: {_ACCEPTED}")


def _selection(
    event: Mapping[str, Any], minutes: int, at: datetime
) -> Callable[[Window], bool] | None:
    since, until = _time(event, "since"), _time(event, "until")
    name = _text(event, "window")
    if name is not None and (since or until):
        raise UsageError(f"event window {name!r} with since or until: {_ACCEPTED}")
    if name is not None:
        return _one(parse_window(name, minutes), at)
    if since or until:
        return check_interval(since, until).holds
    return None


def _one(asked: Window, at: datetime) -> Callable[[Window], bool]:
    if asked.end > at:
        told = f"{at:%Y-%m-%dT%H:%M:%SZ}"
        raise UsageError(f"event window {asked.name!r}: expected one that ended by {told}")
    return lambda window: window == asked


def _time(event: Mapping[str, Any], name: str) -> datetime | None:
    text = _text(event, name)
    return None if text is None else parse_time(text, f"event {name}")


def _text(event: Mapping[str, Any], name: str) -> str | None:
    value = event.get(name)
    if value is None or isinstance(value, str):
        return value
    raise UsageError(f"event {name} {value!r}: expected a text such as 20251021t1400Z")


def _flag(event: Mapping[str, Any], name: str) -> bool:
    value = event.get(name, False)
    if isinstance(value, bool):
        return value
    raise UsageError(f"event {name} {value!r}: expected true or false")
