"""The runs of a watch as Prometheus metrics. Needs the extra ``watch``.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncagg.store.retry import Retry
from asyncagg.watch.watcher import WatchedRun

_NAMESPACE = "asyncagg"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_TALLIED = {
    "counted": ("files_counted", "Run files counted into an aggregate."),
    "archived": ("files_archived", "Run files moved to the archive."),
    "quarantined": ("files_quarantined", "Run files that can never be counted."),
    "deferred": ("files_deferred", "Run files left to the next run after a temporary failure."),
    "late": ("files_late", "Run files counted into an aggregate that already existed."),
    "bytes": ("bytes_counted", "Bytes of the counted run files."),
    "opportunities": ("opportunities", "Opportunities of the counted run files."),
    "matches": ("matches", "Matches of the counted run files."),
    "errors": ("run_errors", "Errors that the counted run files report."),
}
"""Name and help of the counter for each of these fields of `asyncagg.job.outcome.Tally`."""


class _Requests(Collector):
    """The requests to the store, read from the retry layer that counts them."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            f"{_NAMESPACE}_requests", "Requests sent, retries included.", labels=["operation"]
        )
        for operation, count in sorted(self._retry.requests.items()):
            requests.add_metric([operation], count)
        yield requests
        retries = CounterMetricFamily(
            f"{_NAMESPACE}_retries", "Requests that were retries.", labels=["operation", "reason"]
        )
        for labels, count in sorted(self._retry.retries.items()):
            retries.add_metric(labels, count)
        yield retries


class Exporter:
    """The metrics of one watch and of its process.

    Args:
        retry: The retry layer of the store, which counts the requests.
        clock: The time in seconds since the epoch.

    Attributes:
        registry: The metrics, for the endpoint.
    """

    def __init__(self, retry: Retry, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(_Requests(retry))
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, namespace=_NAMESPACE, registry=self.registry)
        gauge = partial(Gauge, namespace=_NAMESPACE, registry=self.registry)
        histogram = partial(Histogram, namespace=_NAMESPACE, registry=self.registry)
        self._tallied = {field: counter(*each) for field, each in _TALLIED.items()}
        self._runs = counter("runs", "Runs, by outcome.", ["outcome"])
        self._missed = counter("runs_missed", "Runs that were due and not made.")
        self._failed = counter("windows_failed", "Windows that failed in a run.")
        self._steps = counter("step_seconds", "Time in each step, of all tasks.", ["step"])
        self._duration = histogram("run_duration_seconds", "Time of a run.", buckets=_SECONDS)
        self._backlog = gauge("backlog_files", "Run files that the last run left.")
        self._waiting = gauge("files_waiting", "Run files whose window had not ended.")
        self._oldest = gauge("oldest_file_age_seconds", "Age of the oldest run file then.")
        self._last_run = gauge("last_run_timestamp_seconds", "End of the last run.")
        self._last_success = gauge("last_success_timestamp_seconds", "End of the last success.")
        for outcome in ("succeeded", "failed"):
            self._runs.labels(outcome)

    def note(self, done: WatchedRun) -> None:
        """Record a run."""
        self._runs.labels("failed" if done.trouble else "succeeded").inc()
        self._missed.inc(done.missed)
        self._duration.observe(done.seconds)
        self._last_run.set(self._clock())
        if not done.trouble:
            self._last_success.set(self._clock())
        report = done.report
        if report is None:
            return
        total = report.total
        for field, counter in self._tallied.items():
            counter.inc(getattr(total, field))
        for step, seconds in report.seconds.items():
            self._steps.labels(step).inc(seconds)
        self._failed.inc(len(report.failures))
        self._backlog.set(report.backlog)
        self._waiting.set(report.waiting)
        self._oldest.set(report.oldest_seconds)
