"""The metrics of an invocation: right numbers, in the format of CloudWatch."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from testkit.emf import RATES, UNITS, check_emf

from asyncagg.aws.metrics import Meter, Usage, emit, measurements
from asyncagg.errors import ConnectionLostError
from asyncagg.job.outcome import RunReport, Tally, WindowReport
from asyncagg.store.retry import Retry, RetryPolicy

UNITS += [f"{unit}/Second" for unit in RATES]


def usage(**given: Any) -> Usage:
    """Return a usage with the given numbers."""
    nothing: dict[str, Any] = {"cpu_seconds": 0.0, "peak_bytes": 0, "requests": {}, "retries": {}}
    return Usage(**nothing | given)


def report() -> RunReport:
    """Return a report in which all numbers differ."""
    tally = Tally(
        counted=101,
        archived=102,
        quarantined=103,
        deferred=104,
        left=105,
        late=106,
        bytes=107,
        opportunities=108,
        matches=109,
        errors=110,
        failed=112,
    )
    made = RunReport(
        at="2025-10-21T14:00:00+00:00",
        oldest_seconds=111.5,
        oldest_deferred_seconds=113.5,
        untaken=114,
        complete=False,
    )
    made.windows = {"w": WindowReport("w", "aggregates/w.json", tally=tally, failure="damaged")}
    made.seconds = {"list": 1.0, "load": 2.0, "fetch": 3.0, "commit": 4.0, "archive": 5.0}
    return made


def test_the_line_is_embedded_metric_format(capsys: pytest.CaptureFixture[str]) -> None:
    """The metrics are one valid line, with one dimension and the request id as a property."""
    used = usage(requests={"get": 7}, retries={("get", "reset"): 2}, peak_bytes=5)
    emit(report(), used, service="stack", properties={"function_request_id": "5a1c"})
    (line,) = capsys.readouterr().out.splitlines()
    values = check_emf(line)
    document = json.loads(line)
    assert document["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["service"]]
    assert document["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "asyncagg"
    assert (document["service"], document["function_request_id"]) == ("stack", "5a1c")
    assert values == {name: value for name, _, value in measurements(report(), used)}


def test_every_metric_has_its_own_number() -> None:
    """No two metrics are mixed up, and all documented ones exist."""
    used = usage(
        cpu_seconds=1.5,
        peak_bytes=99,
        requests={"list": 1, "head": 2, "get": 3, "put": 4, "copy": 5, "delete": 6},
        retries={
            ("get", "throttled"): 4,
            ("get", "reset"): 5,
            ("put", "throttled"): 6,
            ("put", "timed_out"): 7,
            ("list", "other"): 0,
        },
    )
    values = {name: value for name, _, value in measurements(report(), used)}
    assert values.pop("RequestCost") == pytest.approx((1 + 4 + 5) * 5e-6 + (2 + 3) * 4e-7)
    assert values == {
        "FilesCounted": 101,
        "FilesArchived": 102,
        "FilesQuarantined": 103,
        "FilesDeferred": 104,
        "FilesLeft": 105 + 114,
        "FilesFailed": 112,
        "Backlog": 104 + 105 + 112 + 114,
        "Complete": 0,
        "OldestDeferred": 113.5,
        "FilesLate": 106,
        "BytesCounted": 107,
        "Opportunities": 108,
        "Matches": 109,
        "RunErrors": 110,
        "OldestFileAge": 111.5,
        "WindowsFailed": 1,
        "ListSeconds": 1.0,
        "LoadSeconds": 2.0,
        "FetchSeconds": 3.0,
        "CommitSeconds": 4.0,
        "ArchiveSeconds": 5.0,
        "CpuSeconds": 1.5,
        "PeakMemory": 99,
        "ListRequests": 1,
        "HeadRequests": 2,
        "GetRequests": 3,
        "PutRequests": 4,
        "CopyRequests": 5,
        "DeleteRequests": 6,
        "GetRetries": 9,
        "PutRetries": 13,
        "ThrottledRetries": 10,
        "TimedOutRetries": 7,
        "ResetRetries": 5,
    }


def test_a_million_files_cost_what_the_documentation_says() -> None:
    """A file costs a GET, a COPY and a thousandth of a LIST; deletes are free."""
    million = 10**6
    requests = {"get": million, "copy": million, "list": 1000, "delete": 1000}
    assert usage(requests=requests).request_cost == pytest.approx(5.405)


def test_the_meter_counts_tries_from_the_start_of_the_invocation() -> None:
    """A retried request counts twice; requests of earlier invocations do not count."""

    async def no_sleep(_: float) -> None:
        """Do not wait."""

    async def work() -> Meter:
        answers = iter([True, False, True])

        async def request() -> None:
            if not next(answers):
                raise ConnectionLostError("reset")

        retry = Retry(RetryPolicy(attempts=2), sleep=no_sleep)
        await retry.call("get", request)
        meter = Meter(retry, cold=False)
        await retry.call("get", request)
        return meter

    used = anyio.run(work).read()
    assert (used.requests, used.retries) == ({"get": 2}, {("get", "reset"): 1})
    assert used.peak_bytes > 1024 * 1024


def test_a_cold_invocation_is_charged_its_start() -> None:
    """A cold invocation includes the CPU time of the imports."""
    retry = Retry()
    cold, warm = Meter(retry, cold=True).read(), Meter(retry, cold=False).read()
    assert cold.cpu_seconds > warm.cpu_seconds >= 0
