"""The Lambda entry point: ``asyncagg.handler.lambda_handler``."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import orjson
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

from asyncagg.aws import metrics
from asyncagg.aws.events import RunRequest, request_of
from asyncagg.errors import AsyncaggError
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.runtime import logs
from asyncagg.runtime.loops import loop_factory
from asyncagg.settings import Settings, from_environment
from asyncagg.store import Store
from asyncagg.store.opening import open_store
from asyncagg.store.retry import Retry, RetryPolicy

__all__ = ("close", "lambda_handler")

_log = logging.getLogger(__name__)

_KEPT_SECONDS = 2.0
"""Kept for the answer, the metrics and the freeze of the runtime, so that Lambda never kills it."""


class _Warm:
    """What outlives an invocation: one event loop, and one store that never outlives the loop."""

    def __init__(self) -> None:
        self.settings: Settings = from_environment(os.environ)
        self.service = os.environ.get("POWERTOOLS_SERVICE_NAME", "asyncagg")
        self.retry = Retry(RetryPolicy(attempts=self.settings.retry_attempts))
        self.cold = True
        self.formatter = LambdaPowertoolsFormatter(
            # ASCII: no line separator of a hostile key reaches a viewer.
            json_serializer=partial(json.dumps, default=str, separators=(",", ":")),
            use_rfc3339=True,
            utc=True,
            service=self.service,
        )
        logs.configure(self.settings.log_level, formatter=self.formatter)
        self._runner = asyncio.Runner(loop_factory=loop_factory())
        self._stack = AsyncExitStack()
        self._store: Store | None = None

    def open(self) -> None:
        """Open the store, ahead of the first invocation."""
        self._runner.run(self._opened())

    def invoke(self, request: RunRequest, seconds: float | None) -> RunReport:
        # The runner's own context is a copy from its first run, with that one's correlation id.
        return self._runner.run(self._invoke(request, seconds), context=copy_context())

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    async def _opened(self) -> Store:
        if self._store is None:
            opening = open_store(self.settings, retry=self.retry)
            self._store = await self._stack.enter_async_context(opening)
            # What is loaded by now stays for good: the collector need not look at it again, nor
            # look around after every 700 objects, which costs 6 % of the work. Nothing here makes
            # cycles but failures.
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
        return self._store

    async def _invoke(self, request: RunRequest, seconds: float | None) -> RunReport:
        deadline = Deadline.after(seconds)
        with _ended_by_sigterm():
            return await run(
                await self._opened(),
                self.settings,
                at=request.at,
                deadline=deadline,
                dry_run=request.dry_run,
                only=request.only,
            )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Cancel what runs inside when the process is told to end, and say so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        loop.add_signal_handler(signal.SIGTERM, scope.cancel)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
    if scope.cancelled_caught:
        raise AsyncaggError("ended by SIGTERM: nothing is lost, the next invocation goes on")


_warm: _Warm | None = None


def _warmed() -> _Warm:
    global _warm  # noqa: PLW0603 - what a warm Lambda keeps has to live somewhere
    if _warm is None:
        _warm = _Warm()
    return _warm


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Settle the windows that ended by the event's time, or those that the event names.

    Args:
        event: See `asyncagg.aws.events.request_of` for what is accepted.
        context: Lambda's context: gives the request's id and the time that is left.

    Returns:
        ``statusCode``, ``body`` (JSON: ``message``, ``results``) and ``correlation_id``.

    Raises:
        AsyncaggError: The event, a setting or the store's set-up is at fault, or the process was
            told to end; Lambda reports it.
    """
    warm = _warmed()
    told = _told_of(context) | {"cold_start": warm.cold}
    warm.formatter.append_keys(**told)
    logs.correlation_id.set(told["function_request_id"])
    meter = metrics.Meter(warm.retry, cold=warm.cold)
    warm.cold = False
    try:
        request = request_of(event, warm.settings.window_minutes, now=datetime.now(UTC))
        correlation = request.correlation_id or told["function_request_id"]
        logs.correlation_id.set(correlation)
        report = warm.invoke(request, _seconds_left(context, warm.settings))
    except Exception as error:
        _log.error("failed", extra={"error": type(error).__name__, "reason": str(error)})
        raise
    if not report.dry_run:  # it has counted nothing
        metrics.emit(report, meter.read(), service=warm.service, properties=told)
    return _answer(report, correlation)


def close() -> None:
    """Close what warm invocations keep; Lambda itself never asks for it."""
    global _warm  # noqa: PLW0603 - see _warmed
    if _warm is not None:
        _warm.close()
        _warm = None


def _told_of(context: Any) -> dict[str, Any]:
    """Return what each line of the log says of the invocation, in the words of Powertools."""
    told = {
        "function_name": getattr(context, "function_name", None),
        "function_memory_size": getattr(context, "memory_limit_in_mb", None),
        "function_arn": getattr(context, "invoked_function_arn", None),
        "function_request_id": getattr(context, "aws_request_id", None) or uuid.uuid4().hex,
    }
    return {name: value for name, value in told.items() if value is not None}


def _seconds_left(context: Any, settings: Settings) -> float | None:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    limits = [settings.max_seconds]
    if remaining is not None:
        seconds = remaining() / 1000
        limits.append(seconds - min(_KEPT_SECONDS, seconds / 4))
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
        "dry_run": report.dry_run,
        "aggregate_file_key": keys[-1] if keys else None,
        "aggregate_file_keys": keys,
        "failed_windows": dict(report.failures),
        "total_opportunities": total.opportunities,
        "total_matches": total.matches,
        "total_no_matches": total.no_matches,
        "total_errors": total.errors,
        "processing_time_seconds": total.processing_seconds,
    }
    return {
        "statusCode": 500 if report.failures else 200,
        "body": orjson.dumps({"message": _message(report, len(keys)), "results": results}).decode(),
        "correlation_id": correlation,
    }


def _message(report: RunReport, aggregates: int) -> str:
    total = report.total
    if report.dry_run:
        return f"dry run: {total.left} files of {len(report.windows)} windows to settle"
    message = f"settled {total.counted} files into {aggregates} aggregates"
    if report.failures:
        message += f"; {len(report.failures)} windows failed and are left as they are"
    return message


def _prepare() -> None:
    """Do ahead, while Lambda lends a whole CPU, what the first invocation would do on a fraction.

    Credentials are in the environment by now, and nothing here asks the network.
    """
    with suppress(AsyncaggError):  # the invocation meets it again, and Lambda reports it
        _warmed().open()


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    _prepare()
