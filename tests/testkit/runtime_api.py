"""Lambda's Runtime API for one function, and the function's process with AWS's own client.

The API: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any, Self

__all__ = ("Answer", "Function", "RuntimeApi", "run_function")

_PREFIX = "/2018-06-01/runtime/"
_ARN = "arn:aws:lambda:us-east-1:123456789012:function:asyncagg"


@dataclass(frozen=True)
class Answer:
    """The runtime's answer to an invocation.

    Attributes:
        ok: Whether it is a response rather than an error.
        body: Its content, from JSON.
        seconds: How long the function took.
    """

    ok: bool
    body: Any
    seconds: float


@dataclass(frozen=True)
class Invocation:
    """An event that waits for the runtime, and a queue for its answer."""

    event: Any
    seconds: float
    request_id: str
    answer: Queue[Answer] = field(default_factory=lambda: Queue(1))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore a function that was killed while it waited."""


class RuntimeApi:
    """The API of one function: ``with RuntimeApi() as api: ... api.invoke({})``."""

    def __init__(self) -> None:
        self.init_errors: Queue[Any] = Queue()
        self.waiting: Queue[Invocation] = Queue()
        self.running: dict[str, tuple[Invocation, float]] = {}
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """The value of ``AWS_LAMBDA_RUNTIME_API``."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def invoke(self, event: Any, *, seconds: float = 300, request_id: str = "") -> Answer:
        """Invoke the function and wait for its answer.

        Args:
            event: The event.
            seconds: The timeout of the function.
            request_id: The id of the invocation; a new one if empty.
        """
        invocation = Invocation(event, seconds, request_id or str(uuid.uuid4()))
        self.waiting.put(invocation)
        return invocation.answer.get(timeout=seconds + 30)


def _handler_of(api: RuntimeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == f"{_PREFIX}invocation/next"
            invocation = api.waiting.get()
            api.running[invocation.request_id] = (invocation, time.monotonic())
            deadline = int((time.time() + invocation.seconds) * 1000)
            headers = {
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(deadline),
                "Lambda-Runtime-Invoked-Function-Arn": _ARN,
                "Lambda-Runtime-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1",
            }
            self._answer(200, json.dumps(invocation.event).encode(), headers)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(202, b"{}", {})
            words = self.path.removeprefix(_PREFIX).split("/")
            if words == ["init", "error"]:
                api.init_errors.put(body)
                return
            _, request_id, kind = words
            invocation, started = api.running.pop(request_id)
            seconds = time.monotonic() - started
            invocation.answer.put(Answer(kind == "response", body, seconds))

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@dataclass
class Function:
    """A function's process, waiting for events.

    Attributes:
        api: Its Runtime API.
        process: The process.
        output: The file with its standard output and error.
    """

    api: RuntimeApi
    process: subprocess.Popen[bytes]
    output: Path

    def end(self) -> None:
        """Send SIGTERM, as Lambda does when it shuts down an environment."""
        self.process.send_signal(signal.SIGTERM)

    def peak_bytes(self) -> int:
        """Return the high-water mark of the process's resident set."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024

    def log(self) -> list[dict[str, Any]]:
        """Return the JSON lines of the output, metrics included."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of each invocation."""
        return [line for line in self.log() if "_aws" in line]


@contextmanager
def run_function(
    command: Sequence[str],
    *,
    folder: Path,
    output: Path,
    environment: Mapping[str, str],
    joins: Sequence[Path] = (),
) -> Iterator[Function]:
    """Run a function's process until the context ends.

    Args:
        command: Starts AWS's runtime client.
        folder: The folder with the function's code.
        output: The file for its output.
        environment: Its whole environment, except the API's address.
        joins: ``cgroup.procs`` files of the cgroups to join.
    """

    def enter() -> None:
        for procs in joins:
            procs.write_text(str(os.getpid()))

    with RuntimeApi() as api, output.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "AWS_LAMBDA_RUNTIME_API": api.address},
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=enter,  # noqa: PLW1509 - the limits must hold from the start
        )
        try:
            yield Function(api, process, output)
        finally:
            process.kill()
            process.wait()
