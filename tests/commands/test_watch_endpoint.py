"""/healthz and /metrics: the state and the metrics of the runs, and the server."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any

import aiohttp
import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from testkit.s3server import S3Server
from testkit.scenario import BUCKET, moment, open_s3

from asyncagg.errors import AccessDeniedError, ConfigurationError, TransientError, UsageError
from asyncagg.job.outcome import RunReport, Tally, WindowReport
from asyncagg.store.retry import Retry
from asyncagg.watch import WatchedRun, Watcher, endpoint
from asyncagg.watch.endpoint import address_of, serve
from asyncagg.watch.exporter import Exporter
from asyncagg.watch.health import Health

END = moment(14, 0)


def report(failure: str = "", /, **tally: int) -> RunReport:
    """Return the report of a run with one window."""
    made = RunReport(at=END.isoformat(), waiting=7, oldest_seconds=42.0)
    made.windows["w"] = WindowReport("w", "aggregates/w.json", 1, Tally(**tally), failure)
    made.seconds["fetch"] = 1.5
    return made


def succeeded(**tally: int) -> WatchedRun:
    """Return a run that completed."""
    return WatchedRun(END, 2.0, 0, report=report(**tally))


def failed(error: TransientError | ConfigurationError) -> WatchedRun:
    """Return a run that failed."""
    return WatchedRun(END, 0.5, 1, error=error)


RESET, DENIED = failed(TransientError("reset")), failed(AccessDeniedError("no s3:PutObject"))
HUNG = WatchedRun(END, 295.0, 0, report=RunReport(at=END.isoformat(), complete=False))
BUSY = WatchedRun(END, 295.0, 0, report=replace(report(counted=9), complete=False))
DAMAGED = WatchedRun(END, 2.0, 0, report=report("damaged"))


class Clock:
    """A clock in seconds that only changes when it is set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.seconds


def state(*happened: WatchedRun | float) -> Health:
    """Return the health after some runs and pauses."""
    clock = Clock()
    health = Health(5, 5.0, clock=clock)
    for each in happened:
        if isinstance(each, float):
            clock.seconds += each
        else:
            health.note(each)
    return health


@pytest.mark.parametrize(
    ("happened", "reason"),
    [
        ([], "no run has completed yet"),
        ([succeeded()], ""),
        ([succeeded(deferred=9, quarantined=9)], ""),
        ([succeeded(), 605.0], ""),
        ([succeeded(), 606.0], "the last success was 606 seconds ago"),
        ([RESET], "reset"),
        ([succeeded(), 300.0, RESET], ""),
        (
            [succeeded(), 300.0, RESET, 300.0, RESET, 300.0],
            "the last success was 900 seconds ago: reset",
        ),
        ([succeeded(), 300.0, DENIED], "no s3:PutObject"),
        ([succeeded(), 300.0, DENIED, 300.0, succeeded()], ""),
        ([RESET, 300.0, succeeded()], ""),
        ([HUNG], "its time ran out before anything was done"),
        ([succeeded(), 300.0, HUNG], ""),
        (
            [succeeded(), 300.0, HUNG, 310.0, HUNG],
            "the last success was 610 seconds ago: its time ran out before anything was done",
        ),
        ([BUSY], ""),
        ([DAMAGED], "window w: damaged"),
        ([succeeded(), 300.0, DAMAGED], ""),
        (
            [succeeded(), 300.0, DAMAGED, 400.0],
            "the last success was 700 seconds ago: window w: damaged",
        ),
    ],
)
def test_health_turns_red_and_recovers(happened: list[WatchedRun | float], reason: str) -> None:
    """One temporary failure is healthy; no run, a missing permission and more failures are not."""
    health = state(*happened)
    assert health.reason == reason
    assert health.as_dict()["healthy"] is not bool(reason)


def numbers(text: str) -> dict[str, float]:
    """Parse the metrics as Prometheus does; return the package's samples by name and labels."""
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("asyncagg_")
    }


async def ask(url: str, path: str, **headers: str) -> tuple[int, str, Any]:
    """Return the status, the content type and the body of an answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(url + path, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.text()


async def test_metrics_add_up_over_runs() -> None:
    """Counters grow with each run, gauges show the last one, each under its own name."""
    retry = Retry()
    retry.requests.update(get=7, put=1)
    retry.retries.update({("get", "reset"): 2})
    exporter = Exporter(retry, clock=lambda: 1e9)
    tally = {
        "counted": 101,
        "archived": 102,
        "quarantined": 103,
        "deferred": 104,
        "left": 105,
        "late": 106,
        "bytes": 107,
        "opportunities": 108,
        "matches": 109,
        "errors": 110,
    }
    for done in (succeeded(**tally), RESET, DAMAGED, succeeded(counted=1, left=2, deferred=3)):
        exporter.note(done)
    async with serve(("127.0.0.1", 0), Health(5, 5.0), exporter) as url:
        status, kind, text = await ask(url, "/metrics")
        _, open_kind, _ = await ask(url, "/metrics", accept="application/openmetrics-text")
    assert (status, kind, open_kind) == (200, "text/plain", "application/openmetrics-text")
    assert "process_resident_memory_bytes" in text
    seen = {name: value for name, value in numbers(text).items() if "_created" not in name}
    buckets = {name for name in seen if "_bucket" in name}
    assert {name: value for name, value in seen.items() if name not in buckets} == {
        "asyncagg_requests_total{operation=get}": 7,
        "asyncagg_requests_total{operation=put}": 1,
        "asyncagg_retries_total{operation=get}{reason=reset}": 2,
        "asyncagg_files_counted_total": 102,
        "asyncagg_files_archived_total": 102,
        "asyncagg_files_quarantined_total": 103,
        "asyncagg_files_deferred_total": 107,
        "asyncagg_files_late_total": 106,
        "asyncagg_bytes_counted_total": 107,
        "asyncagg_opportunities_total": 108,
        "asyncagg_matches_total": 109,
        "asyncagg_run_errors_total": 110,
        "asyncagg_runs_total{outcome=succeeded}": 2,
        "asyncagg_runs_total{outcome=failed}": 2,
        "asyncagg_runs_missed_total": 1,
        "asyncagg_windows_failed_total": 1,
        "asyncagg_step_seconds_total{step=fetch}": 4.5,
        **{f"asyncagg_step_seconds_total{{step={step}}}": 0 for step in ("list", "load")},
        **{f"asyncagg_step_seconds_total{{step={step}}}": 0 for step in ("commit", "archive")},
        "asyncagg_run_duration_seconds_count": 4,
        "asyncagg_run_duration_seconds_sum": 6.5,
        "asyncagg_backlog_files": 5,
        "asyncagg_files_waiting": 7,
        "asyncagg_oldest_file_age_seconds": 42,
        "asyncagg_last_run_timestamp_seconds": 1e9,
        "asyncagg_last_success_timestamp_seconds": 1e9,
    }


async def test_healthz_answers_with_the_state() -> None:
    """200 or 503, and the reason as JSON; other paths are 404."""
    clock = Clock()
    health = Health(5, 5.0, clock=clock)
    async with serve(("127.0.0.1", 0), health, Exporter(Retry())) as url:
        assert (await ask(url, "/healthz"))[0] == 503
        health.note(succeeded())
        status, kind, text = await ask(url, "/healthz")
        assert (status, kind) == (200, "application/json")
        assert '"healthy":true' in text
        health.note(DENIED)
        status, _, text = await ask(url, "/healthz")
        assert status == 503
        assert '"reason":"no s3:PutObject"' in text
        assert (await ask(url, "/"))[0] == 404


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
async def test_idle_and_half_sent_connections_are_closed(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a bounded time."""
    monkeypatch.setattr(endpoint, "CONNECTION_SECONDS", 0.05)
    async with serve(("127.0.0.1", 0), Health(5, 5.0), Exporter(Retry())) as url:
        address = address_of(url.removeprefix("http://"))
        async with await anyio.connect_tcp(*address) as stream:
            if sent:
                await stream.send(sent)
            with (
                anyio.fail_after(10),
                pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)),
            ):
                await stream.receive()


async def test_the_number_of_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is closed at once, and the others are served."""
    monkeypatch.setattr(endpoint, "MAX_CONNECTIONS", 2)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serve(("127.0.0.1", 0), Health(5, 5.0), Exporter(Retry())) as url:
        address = address_of(url.removeprefix("http://"))
        async with (
            await anyio.connect_tcp(*address) as first,
            await anyio.connect_tcp(*address),
            await anyio.connect_tcp(*address) as third,
        ):
            with anyio.fail_after(10):
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await third.receive()
                await first.send(request)
                assert (await first.receive()).startswith(b"HTTP/1.1 503")


async def test_an_address_in_use_is_an_error() -> None:
    """An address in use is a configuration error."""
    async with serve(("127.0.0.1", 0), Health(5, 5.0), Exporter(Retry())) as url:
        address = address_of(url.removeprefix("http://"))
        with pytest.raises(ConfigurationError, match=rf"listen 127.0.0.1:{address[1]}: "):
            async with serve(address, Health(5, 5.0), Exporter(Retry())):
                pass


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:9464", ("localhost", 9464)),
    ],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    """Without a host, only this machine can connect."""
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:70000", "::1", "a:b:1", "1:²", "1:-1"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    """The error has the value and what is accepted."""
    with pytest.raises(UsageError, match="expected PORT or HOST:PORT"):
        address_of(text)


async def test_a_permission_lost_and_granted_again_shows_in_the_health() -> None:
    """On a real server: healthy, unhealthy when access is denied, healthy after the next run."""
    now, seen = END, list[str]()
    async with (
        S3Server([BUCKET], clock=lambda: now) as server,
        open_s3(server) as (store, settings),
    ):
        health = Health(5, 5.0)

        async def sleep(seconds: float) -> None:
            nonlocal now
            now += timedelta(seconds=seconds)
            denied = len(seen) == 1
            server.faults.denied = (lambda *_: True) if denied else None
            if len(seen) == 3:
                watching.stop()
            await anyio.lowlevel.checkpoint()

        def on_run(done: WatchedRun) -> None:
            health.note(done)
            seen.append(health.reason)

        watching = Watcher(settings, on_run=on_run, now=lambda: now, sleep=sleep)
        await watching.run(lambda: nullcontext(store))
    first, second, third = seen
    assert (first, third) == ("", "")
    assert "AccessDenied" in second
