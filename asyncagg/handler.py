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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import anyio
import orjson
from aws_lambda_powertools.logging.formatter import LambdaPowertoolsFormatter

from asyncagg.aws import metrics
from asyncagg.aws.events import RunRequest, parse_event
from asyncagg.errors import AsyncaggError
from asyncagg.job.deadline import Deadline
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.runtime import logs
from asyncagg.runtime.loops import KeptLoop
from asyncagg.settings import Settings, from_environment, unknown_variables
from asyncagg.store import Store
from asyncagg.store.opening import open_store
from asyncagg.store.retry import Retry, RetryPolicy

_log = logging.getLogger(__name__)

_RESERVED_SECONDS = 2.0
"""Reserved for the answer and the metrics, so that Lambda never ends the invocation itself."""


class _Instance:
    """What a Lambda instance keeps from one invocation to the next."""

    def __init__(self) -> None:
        self.service = os.environ.get("POWERTOOLS_SERVICE_NAME", "asyncagg")
        self.cold = True
        self.formatter = LambdaPowertoolsFormatter(
            # ASCII only: a line separator in a hostile key is escaped.
            json_serializer=partial(json.dumps, default=str, separators=(",", ":")),
            use_rfc3339=True,
            utc=True,
            service=self.service,
        )
        logs.configure("info", formatter=self.formatter)  # for a setting that is not accepted
        self.loop = KeptLoop(self._store)

    @cached_property
    def settings(self) -> Settings:
        settings = from_environment(os.environ)
        logs.configure(settings.log_level, formatter=self.formatter)
        for variable in unknown_variables(os.environ):
            _log.warning("not a setting", extra={"variable": variable})
        return settings

    @cached_property
    def retry(self) -> Retry:
        return Retry(RetryPolicy(attempts=self.settings.retry_attempts))

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[Store]:
        async with open_store(self.settings, retry=self.retry) as store:
            # Everything loaded so far stays loaded, so exclude it from garbage collection, and
            # collect less often than every 700 objects, which takes 6 % of the time. Only failures
            # leave reference cycles.
            gc.freeze()
            gc.set_threshold(20_000, 20, 20)
            yield store

    def invoke(self, request: RunRequest, seconds: float | None) -> RunReport:
        async def work() -> RunReport:
            deadline = Deadline.after(seconds)
            with _cancelled_by_sigterm():
                return await run(
                    await self.loop.resource(),
                    self.settings,
                    at=request.at,
                    deadline=deadline,
                    dry_run=request.dry_run,
                    only=request.only,
                )

        return self.loop.run(work)


@contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Cancel the work inside on SIGTERM, and raise an error that says so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        loop.add_signal_handler(signal.SIGTERM, scope.cancel)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
    if scope.cancelled_caught:
        raise AsyncaggError("ended by SIGTERM: nothing is lost, the next invocation continues")


_kept: _Instance | None = None


def _instance() -> _Instance:
    global _kept  # noqa: PLW0603 - it outlives the invocation
    if _kept is None:
        _kept = _Instance()
    return _kept


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Settle the windows that ended by the event's time, or those that the event names.

    Args:
        event: An event that `asyncagg.aws.events.parse_event` accepts.
        context: Lambda's context: the request's id and the time that is left.

    Returns:
        ``statusCode``, ``body`` (JSON: ``message``, ``results``) and ``correlation_id``.

    Raises:
        AsyncaggError: The event, a setting or the environment is at fault, or SIGTERM ended the
            invocation; Lambda reports it.
    """
    instance = _instance()
    properties = _log_properties(context) | {"cold_start": instance.cold}
    instance.formatter.append_keys(**properties)
    logs.correlation_id.set(properties["function_request_id"])
    cold, instance.cold = instance.cold, False
    try:
        meter = metrics.Meter(instance.retry, cold=cold)
        request = parse_event(event, now=datetime.now(UTC))
        correlation = request.correlation_id or properties["function_request_id"]
        logs.correlation_id.set(correlation)
        report = instance.invoke(request, _seconds_left(context, instance.settings))
    except Exception as error:
        _log.error("failed", extra={"error": type(error).__name__, "reason": str(error)})
        raise
    if not report.dry_run:  # a dry run counts nothing
        metrics.emit(report, meter.read(), service=instance.service, properties=properties)
    return _answer(report, correlation)


def close() -> None:
    """Close the store and the event loop that invocations keep. Lambda never calls it."""
    global _kept  # noqa: PLW0603 - as above
    if _kept is not None:
        _kept.loop.close()
        _kept = None


def _log_properties(context: Any) -> dict[str, Any]:
    """Return what each log line says about the invocation, under Powertools' names."""
    properties = {
        "function_name": getattr(context, "function_name", None),
        "function_memory_size": getattr(context, "memory_limit_in_mb", None),
        "function_arn": getattr(context, "invoked_function_arn", None),
        "function_request_id": getattr(context, "aws_request_id", None) or uuid.uuid4().hex,
    }
    return {name: value for name, value in properties.items() if value is not None}


def _seconds_left(context: Any, settings: Settings) -> float | None:
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    limits = [settings.max_seconds]
    if remaining is not None:
        seconds = remaining() / 1000
        limits.append(seconds - min(_RESERVED_SECONDS, seconds / 4))
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
        "left_files": total.left + report.untaken,
        "failed_files": total.failed,
        "backlog_files": report.backlog,
        "listed": report.listed,
        "ignored_files": report.ignored,
        "complete": report.complete,
        "retries": report.retries,
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
        message += f"; {len(report.failures)} windows failed and are unchanged"
    return message


def _prepare() -> None:
    """Open the store during the start, when Lambda gives a whole CPU and not a fraction of one.

    It sends no request, and finds the credentials in the environment.
    """
    with suppress(Exception):  # the invocation raises it again, logs it, and Lambda reports it
        _instance().loop.open()


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    _prepare()
