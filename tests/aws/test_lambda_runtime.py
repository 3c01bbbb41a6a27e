"""The deployable zip, unpacked, with AWS's own runtime client, in the memory of a Lambda.

The zip is built for this machine by `.lambda/lambda_zip.py`. If its wheels cannot be downloaded,
the tests are skipped with the reason.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lambda_zip
import pytest
from harness import BUCKET, MIB, Server, box, environment, server, writable
from memory import BUDGET, FIRST, LIMIT, windows
from testkit.emf import check_emf
from testkit.runtime_api import Answer, Function, run_function

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Lambda is Linux"),
]

AFTER = "2025-10-21T14:00:00Z"
EVENT = {"source": "aws.scheduler", "id": "the-event", "time": AFTER}


@dataclass(frozen=True)
class Build:
    """The unpacked zip and how to run it.

    Attributes:
        python: The interpreter.
        task: The folder of the unpacked zip, as Lambda's /var/task.
        runtime: The folder of AWS's runtime client, as Lambda's /var/runtime.
    """

    python: str
    task: Path
    runtime: Path

    def command(self) -> list[str]:
        """Return the command that Lambda starts, without site-packages, and writing no bytecode."""
        handler = "asyncagg.handler.lambda_handler"
        return [self.python, "-S", "-B", "-m", "awslambdaric", handler]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The zip, built and unpacked once for all test workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    python = lambda_zip.find_python(lambda_zip.PYTHON)
    version = lambda_zip.PYTHON if python else f"{sys.version_info[0]}.{sys.version_info[1]}"
    made = Build(python or sys.executable, shared / "task", shared / "runtime")
    with (shared / "lambda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.runtime.exists():
            try:
                _make(made, version)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"the zip cannot be built here: {error}")
    return made


def _make(made: Build, version: str) -> None:
    arch = {machine: arch for arch, machine in lambda_zip.MACHINES.items()}[platform.machine()]
    target = made.task.with_suffix(".zip")
    lambda_zip.build(arch, target, version)
    with zipfile.ZipFile(target) as archive:
        archive.extractall(made.task)
    lambda_zip.install(made.runtime, lambda_zip.HERE / "requirements-runtime.txt", arch, version)


@pytest.fixture
def store() -> Iterator[Server]:
    """An S3 server in its own process."""
    with server() as running:
        yield running


Start = Callable[..., AbstractContextManager[Function]]


@pytest.fixture
def start(build: Build, store: Server, tmp_path: Path) -> Start:
    """A function that starts the Lambda, limited to 128 MB where cgroups are writable."""

    @contextmanager
    def started(**settings: str) -> Iterator[Function]:
        given = {
            name: value for name, value in environment().items() if name.startswith("AWS_")
        } | {
            "PYTHONPATH": f"{build.task}:{build.runtime}",
            "AWS_LAMBDA_FUNCTION_NAME": "asyncagg",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
            "POWERTOOLS_SERVICE_NAME": "stack",
            "ASYNCAGG_STORE": f"s3://{BUCKET}",
            "ASYNCAGG_ENDPOINT_URL": store.url,
            **settings,
        }
        output = tmp_path / "output"
        with (
            box(memory_bytes=LIMIT) as joins,
            run_function(
                build.command(), folder=build.task, output=output, environment=given, joins=joins
            ) as function,
        ):
            yield function

    return started


def results(answer: Answer) -> dict[str, Any]:
    """Return the results of a successful answer."""
    assert answer.ok, answer.body
    assert answer.body["statusCode"] == 200
    found: dict[str, Any] = json.loads(answer.body["body"])["results"]
    return found


OWN = {"aggregates/": 2, "archive/": 1}
"""Keys that each run needs: the store's record and its copy, and the journal."""


def key_counts(store: Server) -> dict[str, int]:
    """Return the number of keys under each prefix, without the store's `OWN`."""
    found = store.control("audit")["buckets"][BUCKET]
    return {prefix: each["keys"] - OWN.get(prefix, 0) for prefix, each in found.items()}


def read(store: Server, path: str) -> bytes:
    """Read something from the bucket."""
    url = f"{store.url}/{BUCKET}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
        found: bytes = answer.read()
    return found


def totals(store: Server) -> tuple[int, int, int]:
    """Return the sums of the aggregates of the first two windows."""
    names = ("20251021t1400Z", "20251021t1405Z")
    documents = [json.loads(read(store, f"/aggregates/{name}.json")) for name in names]
    return (
        sum(each["files"]["counted"] for each in documents),
        sum(each["total_opportunities"] for each in documents),
        sum(each["total_matches"] for each in documents),
    )


def lost(store: Server) -> list[str]:
    """Return the run files whose content is lost."""
    keys = [each["key"] for each in store.control("audit")["lost"]]
    return [key for key in keys if "asyncagg-probe" not in key and "aggregates/" not in key]


def put_more(store: Server, name: str, count: int) -> None:
    """Put more files of the same window into the inbox."""
    stamps = [FIRST.isoformat()]
    store.control("fill", bucket=BUCKET, prefix=f"runs/{name}-", count=count, windows=stamps)


def test_the_box_is_a_lambdas(build: Build) -> None:
    """If something here differs from Lambda, the test summary shows it as a skip."""
    if lambda_zip.find_python(lambda_zip.PYTHON) is None:
        pytest.skip(f"no python{lambda_zip.PYTHON} here: the zip was tested on {build.python}")
    if not writable("memory"):
        pytest.skip("cgroups are not writable here: memory was measured, not limited")


def test_the_handler_is_imported_from_the_zip_alone(build: Build) -> None:
    """In an empty environment, every module is the zip's or the standard library's."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import asyncagg.handler\n"
        "import asyncagg.store.s3.boto, asyncagg.store.s3.http_plane\n"
        "print(*{m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)},"
        " sep='\\n')"
    )
    command = [build.python, "-I", "-S", "-B", "-c", script, str(build.task)]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True, cwd="/")
    library = str(Path(json.__file__).parent.parent) if build.python == sys.executable else "/lib/"
    files = done.stdout.split()
    assert len([file for file in files if file.startswith(str(build.task))]) > 100
    assert not [
        file for file in files if not file.startswith(str(build.task)) and library not in file
    ]
    assert not [file for file in files if "site-packages" in file]


def test_cold_and_warm_invocations_on_one_client(start: Start, store: Server) -> None:
    """The second reuses the connections of the first; log and metrics distinguish them."""
    exact = store.fill(50, windows(1))
    with start() as function:
        first = results(function.api.invoke(EVENT, request_id="first"))
        assert (first["processed_files"], first["archived_files"]) == (50, 50)
        assert first["total_opportunities"] == exact["total_opportunities"]
        put_more(store, "late", 7)
        second = results(function.api.invoke(EVENT, request_id="second"))
        assert (second["processed_files"], second["late_files"]) == (7, 7)
        assert results(function.api.invoke(EVENT))["processed_files"] == 0
        log = function.log()
        for request_id, cold in (("first", True), ("second", False)):
            lines = [line for line in log if line.get("function_request_id") == request_id]
            assert {line["cold_start"] for line in lines} == {cold}
            assert {line["function_memory_size"] for line in lines} == {"128"}
            logged = [line for line in lines if "_aws" not in line]
            assert {line["correlation_id"] for line in logged} == {"the-event"}
            assert {line["xray_trace_id"] for line in logged} == {
                "1-5759e988-bd862e3fe1be46a994272793"
            }
        metrics = [check_emf(json.dumps(line)) for line in function.metrics()]
        assert [each["FilesCounted"] for each in metrics] == [50, 7, 0]
        assert metrics[2]["ListRequests"] == 1
        assert metrics[2]["GetRequests"] == 2  # the store's record, and the journal
    assert key_counts(store) == {"aggregates/": 1, "archive/": 57}


def test_an_error_is_reported_as_lambda_expects(start: Start, store: Server) -> None:
    """It has type, message, stack and request id; the process handles the next event."""
    store.fill(3, windows(1))
    with start() as function:
        answer = function.api.invoke({"Records": []}, request_id="wrong")
        assert not answer.ok
        assert set(answer.body) == {"errorMessage", "errorType", "requestId", "stackTrace"}
        assert answer.body["errorType"] == "UsageError"
        assert "event with 'Records': expected an EventBridge" in answer.body["errorMessage"]
        assert answer.body["requestId"] == "wrong"
        assert results(function.api.invoke(EVENT))["processed_files"] == 3


def test_a_wrong_setting_is_the_invocations_error(start: Start) -> None:
    """Start-up succeeds; the error of the invocation names the setting."""
    with start(ASYNCAGG_WINDOW_MINUTES="7") as function:
        answer = function.api.invoke(EVENT)
        assert (answer.ok, answer.body["errorType"]) == (False, "UsageError")
        assert "window_minutes" in answer.body["errorMessage"]
        assert function.api.init_errors.empty()


def test_near_the_deadline_the_rest_is_left(start: Start, store: Server) -> None:
    """With a download that hangs, it answers before Lambda's timeout."""
    store.fill(20, windows(1))
    listing = read(store, "?list-type=2&prefix=runs/").decode()
    stuck = listing.partition("<Key>")[2].partition("</Key>")[0]
    store.control("faults", slow_keys={stuck: None})
    with start() as function:
        answer = function.api.invoke(EVENT, seconds=6)
        done = results(answer)
        assert (done["processed_files"], done["left_files"]) == (19, 1)
        assert answer.seconds < 6
        store.control("faults", slow_keys={})
        assert results(function.api.invoke(EVENT))["processed_files"] == 1
    assert key_counts(store) == {"aggregates/": 1, "archive/": 20}


@pytest.mark.parametrize("operation", ["GetObject", "CopyObject"])
def test_sigterm_during_work_loses_and_doubles_nothing(
    start: Start, store: Server, operation: str
) -> None:
    """Stopped in the middle, it reports that in time; the next process does exactly the rest."""
    exact = store.fill(400, windows(2))
    event = EVENT | {"time": "2025-10-21T15:00:00Z"}
    store.control("faults", latency=0.02)
    with start(ASYNCAGG_CONCURRENCY="8") as function:
        answers: list[Answer] = []
        asked = threading.Thread(target=lambda: answers.append(function.api.invoke(event)))
        asked.start()
        while store.control("audit")["counts"].get(operation, 0) < 40:
            time.sleep(0.01)
        ended = time.monotonic()
        function.end()
        asked.join()
        assert time.monotonic() - ended < 2
        (answer,) = answers
        assert not answer.ok
        assert "ended by SIGTERM: nothing is lost" in answer.body["errorMessage"]
    middle = key_counts(store)
    assert 0 < middle.get("runs/", 0) <= 400
    assert lost(store) == []
    store.control("faults", latency=0.0)
    with start() as function:
        results(function.api.invoke(event))
    assert key_counts(store) == {"aggregates/": 2, "archive/": 400}
    assert lost(store) == []
    assert totals(store) == (400, exact["total_opportunities"], exact["matches_found"])


def test_sigterm_between_invocations_ends_the_process(start: Start, store: Server) -> None:
    """With no invocation in progress the process ends at once."""
    store.fill(1, windows(1))
    with start() as function:
        results(function.api.invoke(EVENT))
        function.end()
        assert function.process.wait(timeout=5) != 0


def test_twenty_thousand_files_stay_inside_the_budget(start: Start, store: Server) -> None:
    """The whole process, AWS's client included, stays below 110 of its 128 MB."""
    exact = store.fill(20_000, windows(1))
    with start(ASYNCAGG_LOG_LEVEL="warning") as function:
        done = results(function.api.invoke(EVENT))
        peak = function.peak_bytes()
        (metrics,) = function.metrics()
    assert done["processed_files"] == done["archived_files"] == 20_000
    assert done["total_opportunities"] == exact["total_opportunities"]
    print(f"peak {peak / MIB:.1f} MiB, {metrics['CpuSeconds'][0]:.2f} CPU-seconds")  # noqa: T201 - with -s
    assert abs(metrics["PeakMemory"][0] - peak) < MIB
    assert peak <= BUDGET
