"""What the runs of a watch did, as Prometheus metrics. Needs the extra ``watch``.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncagg.job.outcome import RunReport
from asyncagg.store.retry import Retry
from asyncagg.watch import WatchedRun

__all__ = ("Exporter",)

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

_TALLIED = {
    "counted": ("files_counted", "Run files counted into an aggregate."),
    "archived": ("files_archived", "Run files moved to the archive."),
    "quarantined": ("files_quarantined", "Run files that can never be counted."),
    "deferred": ("files_deferred", "Run files left to the next run after trouble that passes."),
    "late": ("files_late", "Run files counted into an aggregate that already stood."),
    "bytes": ("bytes_counted", "Bytes of the run files counted."),
    "opportunities": ("opportunities", "Opportunities of the run files counted."),
    "matches": ("matches", "Matches of the run files counted."),
    "errors": ("run_errors", "Errors that the run files counted tell of."),
}
"""Name and help of the counter for each of these fields of `asyncagg.job.outcome.Tally`."""


class _Requests(Collector):
    """The requests to the store, read where they are counted."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry

    def collect(self) -> Iterator[Metric]:
        yield self._family("requests", "Requests sent, tries included.", self._retry.requests)
        yield self._family("retries", "Requests that were tried again.", self._retry.retries)

    @staticmethod
    def _family(name: str, told: str, counts: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"asyncagg_{name}", told, labels=["operation"])
        for operation, count in sorted(counts.items()):
            family.add_metric([operation], count)
        return family


class Exporter:
    """Keeps the metrics of one watch, and those of its process.

    Args:
        retry: What counts the requests of the store.
        clock: The time in seconds since the epoch.

    Attributes:
        registry: The metrics, for whoever exposes them.
    """

    def __init__(self, retry: Retry, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self.registry.register(_Requests(retry))
        ProcessCollector(registry=self.registry)
        self._tallied = {field: self._counter(*told) for field, told in _TALLIED.items()}
        self._runs = self._counter("runs", "Runs, by what became of them.", "outcome")
        self._missed = self._counter("runs_missed", "Runs that were due and not made.")
        self._failed = self._counter("windows_failed", "Windows that a run left alone.")
        self._steps = self._counter(
            "step_seconds", "Time in each step, summed over what ran side by side.", "step"
        )
        self._duration = Histogram(
            "asyncagg_run_duration_seconds",
            "How long a run took.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._backlog = self._gauge("backlog_files", "Run files that the last run left.")
        self._waiting = self._gauge("files_waiting", "Run files whose window had not ended.")
        self._oldest = self._gauge(
            "oldest_file_age_seconds", "Age of the oldest run file that the last run saw."
        )
        self._last_run = self._gauge("last_run_timestamp_seconds", "End of the last run.")
        self._last_success = self._gauge(
            "last_success_timestamp_seconds", "End of the last run without failure."
        )
        for outcome in ("succeeded", "failed"):
            self._runs.labels(outcome)

    def note(self, done: WatchedRun) -> None:
        """Take notice of a run."""
        self._runs.labels("failed" if done.trouble else "succeeded").inc()
        self._missed.inc(done.missed)
        self._duration.observe(done.seconds)
        self._last_run.set(self._clock())
        if not done.trouble:
            self._last_success.set(self._clock())
        if done.report is not None:
            self._note_report(done.report)

    def _note_report(self, report: RunReport) -> None:
        total = report.total
        for field, counter in self._tallied.items():
            counter.inc(getattr(total, field))
        for step, seconds in report.seconds.items():
            self._steps.labels(step).inc(seconds)
        self._failed.inc(len(report.failures))
        self._backlog.set(total.left + total.deferred)
        self._waiting.set(report.waiting)
        self._oldest.set(report.oldest_seconds)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"asyncagg_{name}", told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(f"asyncagg_{name}", told, registry=self.registry)
