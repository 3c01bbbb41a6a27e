"""The Lambda entry point: ``asyncagg.handler.lambda_handler``."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import orjson

from asyncagg import logs
from asyncagg.errors import UsageError
from asyncagg.limits import Deadline
from asyncagg.outcome import RunReport
from asyncagg.pipeline import run
from asyncagg.settings import Settings, from_environment
from asyncagg.store import Store
from asyncagg.store.opening import open_store
from asyncagg.windows import parse_time

__all__ = ("close", "lambda_handler")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - an extra, that the Lambda package includes
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _Warm:
    """What outlives an invocation: one event loop, and one store that never outlives the loop."""

    def __init__(self) -> None:
        self.settings: Settings = from_environment(os.environ)
        self._runner = asyncio.Runner(loop_factory=_loop_factory())
        self._stack = AsyncExitStack()
        self._store: Store | None = None

    def invoke(self, event: Mapping[str, Any], seconds: float | None) -> RunReport:
        return self._runner.run(self._invoke(event, seconds))

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    async def _invoke(self, event: Mapping[str, Any], seconds: float | None) -> RunReport:
        if self._store is None:
            self._store = await self._stack.enter_async_context(open_store(self.settings))
        return await run(
            self._store,
            self.settings,
            at=_event_time(event),
            deadline=Deadline.after(seconds),
        )


_warm: _Warm | None = None


def lambda_handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Settle every window that ended by the event's time.

    Args:
        event: An EventBridge event; its ``time`` decides, so that a retried event does the same
            work. Without one, now decides.
        context: Lambda's context: gives the request's id and the time that is left.

    Returns:
        ``statusCode``, ``body`` (JSON: ``message``, ``results``) and ``correlation_id``.

    Raises:
        AsyncaggError: The event, a setting or the store's set-up is at fault; Lambda reports it.
    """
    global _warm  # noqa: PLW0603 - what a warm Lambda keeps has to live somewhere
    correlation = getattr(context, "aws_request_id", "") or uuid.uuid4().hex
    logs.correlation_id.set(correlation)
    if _warm is None:
        warm = _Warm()
        logs.configure(warm.settings.log_level, json=True)
        _warm = warm
    report = _warm.invoke(_checked(event), _seconds_left(context, _warm.settings))
    return _answer(report, correlation)


def close() -> None:
    """Close what warm invocations keep; Lambda itself never asks for it."""
    global _warm  # noqa: PLW0603 - see lambda_handler
    if _warm is not None:
        _warm.close()
        _warm = None


def _checked(event: Any) -> Mapping[str, Any]:
    if not isinstance(event, Mapping):
        raise UsageError(f"event {event!r}: expected an object, such as {{}} or one with a time")
    return event


def _event_time(event: Mapping[str, Any]) -> datetime:
    time = event.get("time")
    if time is None:
        return datetime.now(UTC)
    if not isinstance(time, str):
        raise UsageError(f"event time {time!r}: expected a text such as 2025-10-21T14:00:00Z")
    return parse_time(time, "event time")


def _seconds_left(context: Any, settings: Settings) -> float | None:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    limits = [settings.max_seconds, remaining() / 1000 if remaining else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _answer(report: RunReport, correlation: str) -> dict[str, Any]:
    total = report.total
    keys = [each.aggregate_key for each in report.windows.values() if each.revision]
    results = {
        "processed_files": total.counted,
        "archived_files": total.archived,
        "quarantined_files": total.quarantined,
        "deferred_files": total.deferred,
        "late_files": total.late,
        "left_files": total.left,
        "ignored_files": report.ignored,
        "complete": report.complete,
        "aggregate_file_key": keys[-1] if keys else None,
        "aggregate_file_keys": keys,
        "failed_windows": dict(report.failures),
        "total_opportunities": total.opportunities,
        "total_matches": total.matches,
        "total_no_matches": total.no_matches,
        "total_errors": total.errors,
        "processing_time_seconds": total.processing_seconds,
    }
    failed = len(report.failures)
    message = f"settled {total.counted} files into {len(keys)} aggregates"
    if failed:
        message += f"; {failed} windows failed and are left as they are"
    return {
        "statusCode": 500 if failed else 200,
        "body": orjson.dumps({"message": message, "results": results}).decode(),
        "correlation_id": correlation,
    }
