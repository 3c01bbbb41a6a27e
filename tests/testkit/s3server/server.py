"""The server: listens, applies the faults on the way, and answers to its control requests."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar

from testkit.s3server.audit import Audit, LogEntry
from testkit.s3server.backend import Backend
from testkit.s3server.connection import Connection
from testkit.s3server.faults import DropError, Faults, OnRequest
from testkit.s3server.objects import Bucket, State
from testkit.s3server.operations import execute
from testkit.s3server.run_files import fill
from testkit.s3server.wire import (
    CONTROL,
    Request,
    Response,
    S3Error,
    error_response,
    parse_request,
    render,
)

P = ParamSpec("P")
T = TypeVar("T")


class S3Server:
    """The server on the running event loop: ``async with S3Server(buckets=["b"]) as server``.

    State changes happen synchronously in the event loop, so each request is atomic. Leaving raises
    the first error of an `on_request` hook or of the server itself, so that assertions made inside
    hooks are not lost.

    Args:
        buckets: names to create at once.
        host: to listen on.
        port: to listen on; 0 takes a free one.
        credentials: secrets by access key; if given, requests must be signed with one of them.
        faults: initial switches.
        on_request: called before each request is executed, with that request. It may look, wait,
            change switches, or raise: S3Error answers with that error, DropError drops the
            connection, and anything else is raised when the server is left.
        clock: returns the time, aware; S3 keeps whole seconds of it.
        region: of the buckets.
        log_size: how many requests the audit's log keeps; 0 turns it off.
        ssl_context: to serve HTTPS.
    """

    def __init__(
        self,
        buckets: Iterable[str] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: Mapping[str, str] | None = None,
        faults: Faults | None = None,
        on_request: OnRequest | None = None,
        clock: Callable[[], datetime] | None = None,
        region: str = "us-east-1",
        log_size: int = 10_000,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.state = State(buckets, clock=clock, region=region, log_size=log_size)
        self.backend = Backend(self.state, faults or Faults(), credentials)
        self.failures: list[BaseException] = []
        self.host = host
        self.port = port
        self.on_request = on_request
        self.connections: set[Connection] = set()
        self._logs = log_size > 0
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        # The objects, for tests: directly, without a request.
        self.put = self.state.put
        self.get = self.state.get
        self.has = self.state.has
        self.keys = self.state.keys
        self.delete = self.state.delete
        self.clear = self.state.clear
        self.fill = partial(fill, self.state)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http{'s' if self._ssl_context else ''}://{self.host}:{self.port}"

    @property
    def buckets(self) -> dict[str, Bucket]:
        """The buckets, by name."""
        return self.state.buckets

    @property
    def audit(self) -> Audit:
        """What the server saw."""
        return self.state.audit

    @property
    def ordinal(self) -> int:
        """The number of the latest request."""
        return self.state.ordinal

    @property
    def clock(self) -> Callable[[], datetime]:
        """Returns the server's time; may be replaced."""
        return self.state.clock

    @clock.setter
    def clock(self, clock: Callable[[], datetime]) -> None:
        self.state.clock = clock

    @property
    def faults(self) -> Faults:
        """The switches; may be replaced."""
        return self.backend.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self.backend.faults = faults

    @property
    def credentials(self) -> Mapping[str, str] | None:
        """Secrets by access key, if signatures are verified; may be replaced."""
        return self.backend.credentials

    @credentials.setter
    def credentials(self, credentials: Mapping[str, str] | None) -> None:
        self.backend.credentials = credentials

    # -- lifetime

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self), self.host, self.port, ssl=self._ssl_context
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening; drop every connection and every request that is still being answered."""
        if self._listener is not None:
            self._listener.close()
        self.drop_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the dropped connections report their end

    def drop_connections(self) -> None:
        """Close every connection at once, as a server does with those that were idle for long."""
        for connection in list(self.connections):
            connection.drop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self.stop()
        if kind is None and self.failures:
            raise self.failures[0]

    def reset(self) -> None:
        """Forget objects, audit, faults and the hook."""
        self.clear()
        self.faults = Faults()
        self.on_request = None
        self.failures.clear()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a connection's work as a task that `stop` ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- one request

    def read(self, method: str, target: bytes, headers: dict[bytes, bytes], body: bytes) -> Request:
        """Parse a request and number it."""
        state = self.state
        request = parse_request(method, target, headers, body, state.buckets)
        if request.operation != "control":
            state.ordinal += 1
            request.ordinal = state.ordinal
            state.audit.counts[request.operation or "unknown"] += 1
        return request

    def waits(self, request: Request) -> bool:
        """Return whether a request cannot be answered at once."""
        return (
            self.on_request is not None
            or self.backend.faults.delays()
            or request.operation == "control"
        )

    def answer(self, request: Request) -> bytes:
        """Execute a request at once, and log it."""
        self.state.operation = request.operation
        try:
            response = execute(self.backend, request)
        except S3Error as error:
            response = error_response(request, error)
        except Exception as failure:  # noqa: BLE001 (raised when the server is left)
            self.failures.append(failure)
            response = error_response(request, S3Error("InternalError", repr(failure)))
        return self._logged(request, response)

    def _logged(self, request: Request, response: Response) -> bytes:
        self._log(request, response.status)
        return render(request, response, self.state.now())

    def _log(self, request: Request, status: int) -> None:
        """Log a request; status 0 means no response."""
        if self._logs:
            entry = LogEntry(
                request.ordinal, request.operation, request.bucket, request.key, status
            )
            self.state.audit.log.append(entry)

    async def answer_in_time(self, request: Request) -> tuple[bytes, bool]:
        """Answer with all that can go wrong on the way.

        Returns:
            What to send, and whether the connection may stay open.

        Raises:
            DropError: if nothing is to be sent.
        """
        if request.operation == "control":
            return self.control(request), True
        self.audit.enter(request.operation)
        try:
            return await self._answer_in_time(request)
        except DropError:
            self._log(request, 0)
            raise
        finally:
            self.audit.leave(request.operation)

    async def _answer_in_time(self, request: Request) -> tuple[bytes, bool]:
        faults = self.faults
        self._die(request)
        await self._delay(request)
        self._die(request)
        if faults.strikes(request, faults.reset):
            raise DropError(reset=True)
        for code, probability in (
            ("SlowDown", faults.slow_down),
            ("InternalError", faults.internal_error),
        ):
            if faults.strikes(request, probability):
                return self._logged(request, error_response(request, S3Error(code))), True
        error = await self._call_hook(request)
        if error is not None:
            return self._logged(request, error_response(request, error)), True
        response = self.answer(request)
        if faults.pause_at is not None:
            await faults.pause_at.wait(request, executed=True)
        if faults.strikes(request, faults.lose_response):
            raise DropError(reset=True)
        if faults.strikes(request, faults.truncate):
            body_at = response.index(b"\r\n\r\n") + 4
            return response[: (body_at + len(response)) // 2], body_at == len(response)
        return response, True

    def _die(self, request: Request) -> None:
        faults = self.faults
        if faults.dies_at is not None and request.ordinal >= faults.dies_at:
            if faults.dies_executing and request.ordinal == faults.dies_at:
                self.answer(request)
            raise DropError(reset=False)

    async def _delay(self, request: Request) -> None:
        faults = self.faults
        if faults.latency:
            await asyncio.sleep(faults.latency)
        if request.key in faults.slow_keys:
            seconds = faults.slow_keys[request.key]
            await (asyncio.Event().wait() if seconds is None else asyncio.sleep(seconds))
        if faults.pause_at is not None:
            await faults.pause_at.wait(request, executed=False)

    async def _call_hook(self, request: Request) -> S3Error | None:
        """Call the hook; return the S3Error that it raises, keep other errors for the end."""
        if self.on_request is None:
            return None
        try:
            outcome = self.on_request(request)
            if inspect.isawaitable(outcome):
                await outcome
        except S3Error as error:
            return error
        except DropError:
            raise
        except Exception as failure:  # noqa: BLE001 (raised when the server is left)
            self.failures.append(failure)
        return None

    # -- control over HTTP

    def control(self, request: Request) -> bytes:
        """Answer a request under ``/_control/``: JSON in, JSON out."""
        try:
            given = json.loads(request.body) if request.body else {}
            answer = self._control(request.key.removeprefix(CONTROL), given)
            status = 200
        except (LookupError, TypeError, ValueError) as error:
            answer, status = {"error": repr(error)}, 400
        headers = b"content-type: application/json\r\n"
        response = Response(status, headers, json.dumps(answer).encode())
        return render(request, response, self.state.now())

    def _control(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        match name:
            case "audit":
                return {
                    "counts": self.audit.counts,
                    "lost": [loss._asdict() for loss in self.audit.lost[:1000]],
                    "lost_count": len(self.audit.lost),
                    "peak": self.audit.peak,
                    "buckets": self.state.summary(),
                }
            case "faults":
                self.faults.update(given)
                return {}
            case "fill":
                return self.fill(**given)
            case "reset":
                self.reset()
                return {}
            case _:
                raise ValueError(f"unknown control {name!r}")


class ThreadedS3Server:
    """The server in a thread with its own loop, for synchronous code and child processes.

    Args:
        server: not yet started; a new one without buckets if None.
    """

    def __init__(self, server: S3Server | None = None) -> None:
        self.server = server or S3Server()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._loop: asyncio.AbstractEventLoop
        self._done: asyncio.Event

    @property
    def url(self) -> str:
        """The endpoint."""
        return self.server.url

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the server's loop, between requests, and return its result."""

        async def run() -> T:
            return function(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join()
        if kind is None and self.server.failures:
            raise self.server.failures[0]

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done = asyncio.Event()
        try:
            await self.server.start()
        except OSError as error:
            self._error = error
            return
        finally:
            self._ready.set()
        await self._done.wait()
        await self.server.stop()
