"""What an invocation did and cost, as CloudWatch metrics: one line of embedded metric format.

The format: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any, TypeVar

from aws_lambda_powertools.metrics import EphemeralMetrics

from asyncagg.job.outcome import RunReport
from asyncagg.store.retry import Retry

PRICES = {
    "list": 0.005 / 1000,
    "put": 0.005 / 1000,
    "copy": 0.005 / 1000,
    "get": 0.0004 / 1000,
    "head": 0.0004 / 1000,
    "delete": 0.0,
}
"""US dollars per request (S3 Standard, us-east-1; https://aws.amazon.com/s3/pricing/)."""

OPERATIONS = tuple(PRICES)

_STATUS = Path("/proc/self/status")

Measurement = tuple[str, str, float]
K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that an invocation used.

    Attributes:
        cpu_seconds: User and system time; of a cold start with the imports.
        peak_bytes: The largest resident set of the process so far.
        requests: The number of requests by operation, retries included.
        retries: The number of retries by operation and reason.
    """

    cpu_seconds: float
    peak_bytes: int
    requests: Mapping[str, int]
    retries: Mapping[tuple[str, str], int]

    @property
    def request_cost(self) -> float:
        """The price of the requests in US dollars, by `PRICES`."""
        return sum(PRICES[name] * count for name, count in self.requests.items())


class Meter:
    """Measures the usage of one invocation, from its start.

    Args:
        retry: The retry layer, which counts the requests.
        cold: Whether to include the start of the process.
    """

    def __init__(self, retry: Retry, *, cold: bool) -> None:
        self._retry = retry
        self._cpu = 0.0 if cold else process_time()
        self._requests = dict(retry.requests)
        self._retries = dict(retry.retries)

    def read(self) -> Usage:
        """Return the usage since the start."""
        return Usage(
            cpu_seconds=process_time() - self._cpu,
            peak_bytes=_peak_bytes(),
            requests=_since(self._requests, self._retry.requests),
            retries=_since(self._retries, self._retry.retries),
        )


def _since(before: Mapping[K, int], now: Mapping[K, int]) -> dict[K, int]:
    return {name: count - before.get(name, 0) for name, count in now.items()}


def _peak_bytes() -> int:
    if _STATUS.exists():  # getrusage may report the size of the parent process
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measurements(report: RunReport, usage: Usage) -> Iterator[Measurement]:
    """Yield the name, unit and value of every metric."""
    total = report.total
    yield "FilesCounted", "Count", total.counted
    yield "FilesArchived", "Count", total.archived
    yield "FilesQuarantined", "Count", total.quarantined
    yield "FilesDeferred", "Count", total.deferred
    yield "FilesLate", "Count", total.late
    yield "FilesLeft", "Count", total.left + report.untaken
    yield "FilesFailed", "Count", total.failed
    yield "Backlog", "Count", report.backlog
    yield "Complete", "Count", int(report.complete)
    yield "WindowsFailed", "Count", len(report.failures)
    yield "OldestFileAge", "Seconds", report.oldest_seconds
    yield "OldestDeferred", "Seconds", report.oldest_deferred_seconds
    yield "BytesCounted", "Bytes", total.bytes
    yield "Opportunities", "Count", total.opportunities
    yield "Matches", "Count", total.matches
    yield "RunErrors", "Count", total.errors
    for step, seconds in report.seconds.items():
        yield f"{step.capitalize()}Seconds", "Seconds", seconds
    yield "PeakMemory", "Bytes", usage.peak_bytes
    yield "CpuSeconds", "Seconds", usage.cpu_seconds
    for operation in OPERATIONS:
        yield f"{operation.capitalize()}Requests", "Count", usage.requests.get(operation, 0)
    yield "RequestCost", "None", usage.request_cost
    yield from _retries(usage)


def _retries(usage: Usage) -> Iterator[Measurement]:
    """Yield the retries by operation, and by reason, without those that there were none of.

    CloudWatch charges for each metric that has data, and most of these never have.
    """
    counts: Counter[str] = Counter()
    for (operation, reason), count in usage.retries.items():
        counts[operation.capitalize()] += count
        counts[reason.title().replace("_", "")] += count
    for name, count in counts.items():
        if count:
            yield f"{name}Retries", "Count", count


def emit(report: RunReport, usage: Usage, *, service: str, properties: Mapping[str, Any]) -> None:
    """Print the metrics on standard output, from where Lambda sends them to CloudWatch.

    Args:
        report: What the run did.
        usage: What it used.
        service: The value of the only dimension.
        properties: Other values to log on the same line.
    """
    namespace = os.environ.get("POWERTOOLS_METRICS_NAMESPACE", "asyncagg")
    metrics = EphemeralMetrics(namespace=namespace, service=service)
    for name, unit, value in measurements(report, usage):
        metrics.add_metric(name=name, unit=unit, value=value)
    for name, value in properties.items():
        metrics.add_metadata(key=name, value=value)
    metrics.flush_metrics()
