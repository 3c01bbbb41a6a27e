"""``asyncagg watch`` on the command line; a watch that goes on is a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from testkit.command import COMMAND, asyncagg, sampled, watched
from testkit.moto_server import moto_endpoint
from testkit.promises import (
    check_after_clean_run,
    check_at_any_moment,
    final_bytes,
    of_memory,
    of_server,
)
from testkit.s3server import Request, S3Server, ThreadedS3Server
from testkit.scenario import AT, BUCKET, fill_memory, fill_server, in_thread, memory_of, prepared

from asyncagg.job.pipeline import run
from asyncagg.settings import Settings
from asyncagg.store.s3.boto import open_control


@pytest.fixture(params=["directory", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The arguments that name a directory, or a bucket on moto's server."""
    if request.param == "directory":
        return [str(tmp_path)]
    bucket, endpoint = f"watch-{tmp_path.name.replace('_', '-')}", moto_endpoint()

    async def create() -> None:
        async with open_control(endpoint_url=endpoint, connections=1) as control:
            await control.client.create_bucket(Bucket=bucket)

    in_thread(create)
    words = [f"s3://{bucket}", "--endpoint-url", endpoint]
    return [*words, "--conditional-writes", "off"]  # moto ignores some conditions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_settles_serves_and_ends_on_a_signal(store: list[str], number: signal.Signals) -> None:
    """It runs at the start, serves /healthz and /metrics, and exits with 0 on a signal."""
    done = asyncagg("sample", *store, "--files", "40", "--windows", "2", "--json")
    assert done.returncode == 0, done.stderr
    with watched(*store, "--window-by", "name", "--delay", "0") as watch:
        report = watch.next_run()
        assert (report["event"], report["missed"]) == ("run", 0)
        assert report["duration_seconds"] > 0
        assert report["total"]["counted"] == report["total"]["archived"] == 40
        status, body = watch.get("/healthz")
        assert (status, json.loads(body)["healthy"]) == (200, True)
        status, body = watch.get("/metrics")
        assert status == 200
        assert "asyncagg_files_counted_total 40.0" in body
        assert "asyncagg_backlog_files 0.0" in body
        assert ('asyncagg_requests_total{operation="list"}' in body) is store[0].startswith("s3:")
        watch.process.send_signal(number)
        code, errors = watch.ended()
        (line,) = map(json.loads, errors.splitlines())
        assert (code, line["message"], line["signal"]) == (0, "stopping", number.name)
    again = asyncagg("run", *store, "--window-by", "name", "--json")
    assert json.loads(again.stdout)["total"]["counted"] == 0


@pytest.mark.parametrize("at", [5, 20, 40])
@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGINT)])
def test_a_signal_in_the_middle_of_a_run_keeps_the_promises(
    signals: tuple[signal.Signals, ...], at: int
) -> None:
    """One signal lets the run end, two cut it short; the promises hold in both cases."""
    scenario = prepared()
    now = datetime.now(UTC)  # after the end of the last window of the scenario
    undisturbed = fill_memory(scenario.store)
    in_thread(partial(run, undisturbed, Settings(), at=now))
    with ThreadedS3Server(S3Server([BUCKET], clock=lambda: AT)) as threaded:
        server = threaded.server
        threaded.call(fill_server, server, scenario.store)
        seen_requests = 0
        with watched(f"s3://{BUCKET}", "--endpoint-url", threaded.url) as watch:

            def interrupt(_: Request) -> None:
                nonlocal seen_requests
                seen_requests += 1
                if seen_requests == at:
                    for number in signals:
                        watch.process.send_signal(number)

            server.on_request = interrupt
            code, errors = watch.ended()
            assert code == 0, errors
            assert "Traceback" not in errors
        server.on_request = None
        seen = threaded.call(of_server, server)
    seen = {key: each for key, each in seen.items() if "-probe-" not in key}
    check_at_any_moment(seen, scenario.originals, foreign=scenario.foreign)
    left = memory_of(seen)
    if len(signals) > 1:
        in_thread(partial(run, left, Settings(), at=now))
    check_after_clean_run(of_memory(left), scenario.originals, at=now, foreign=scenario.foreign)
    assert final_bytes(of_memory(left)) == final_bytes(of_memory(undisturbed))


def test_for_people_each_run_is_one_line(tmp_path: Path) -> None:
    """Without --json, each run is one line."""
    sampled(tmp_path, "--files", "10", "--bad-fraction", "0.2")
    with subprocess.Popen(
        [COMMAND, "watch", str(tmp_path), "--window-by", "name"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "counted, 0 late," in line
    assert line.endswith(" s\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["/no/such/folder"], 1, "/no/such/folder"),
        ([".", "--delay", "300"], 2, "delay 300.0: expected a number of seconds from 0 to below"),
        ([".", "--listen", "nonsense"], 2, "listen 'nonsense': expected PORT or HOST:PORT"),
        ([".", "--listen", "192.0.2.1:9464"], 1, "listen 192.0.2.1:9464: "),
    ],
)
def test_an_error_at_the_start_is_one_sentence(words: list[str], code: int, message: str) -> None:
    """A missing folder or an unavailable address exits with 1, wrong usage with 2."""
    done = asyncagg("watch", *words)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert message in done.stderr


def test_without_the_extra_it_says_how_to_get_it(tmp_path: Path) -> None:
    """--listen needs prometheus_client; the rest does not."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None; from asyncagg.cli import main; "
        f"sys.argv = ['asyncagg', 'watch', {str(tmp_path)!r}, '--listen', '0']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "expected the extra 'watch' of asyncagg" in done.stderr
    assert done.stderr.count("\n") == 1
