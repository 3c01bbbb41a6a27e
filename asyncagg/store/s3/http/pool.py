"""The connections to one server: bounded, reused, and with timeouts enforced by one timer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from asyncagg.errors import (
    ConfigurationError,
    ConnectionLostError,
    TimedOutError,
    TransientError,
)
from asyncagg.store.s3.http.connection import Connection, Expected, Response

_RECEIVE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """The value of the ``Host`` header, with the port unless it is the default one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a pool. Times are in seconds.

    Attributes:
        max_connections: The most connections; further requests wait, in order.
        connect: The timeout for opening a connection, TLS included.
        read: The longest silence of the server within an exchange.
        total: The longest exchange whose body is read whole.
        idle: How long an unused connection is kept: shorter than servers do, so that a request
            seldom meets a connection that was just closed.
        max_body_bytes: The most bytes of a body that is read whole.
    """

    max_connections: int = 64
    connect: float = 10.0
    read: float = 30.0
    total: float = 120.0
    idle: float = 10.0
    max_body_bytes: int = 64 * 1024 * 1024


def tls_context(ca_bundle: str | None = None) -> ssl.SSLContext:
    """Return a TLS context that verifies the host and its certificate.

    It reads files, so call it in a thread rather than on the event loop. ``ca_bundle`` is a file or
    directory of the authorities to trust instead of the system's.

    Raises:
        ConfigurationError: The file does not exist, or has no certificate.
    """
    directory = ca_bundle is not None and Path(ca_bundle).is_dir()
    try:
        context = ssl.create_default_context(
            cafile=None if directory else ca_bundle, capath=ca_bundle if directory else None
        )
    except OSError as error:
        raise ConfigurationError(f"CA bundle {ca_bundle!r}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


class HttpPool:
    """Sends requests to one server.

    A connection carries one exchange at a time. Of the idle connections, the last used is used
    first. Every failure is a `TransientError`: the pool never sends a request twice. The TLS
    context is one of `tls_context`, the default one if it is needed and missing.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self._limits = limits or Limits()
        self._tls = (tls or tls_context()) if endpoint.tls else None
        self._clock = clock
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._slots = self._limits.max_connections
        self._closed: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def request(
        self, head: bytes, body: bytes = b"", expected: Expected = "body"
    ) -> Awaitable[Response]:
        """Send a request and return its response, body included.

        If a connection is idle, the request is sent at once, and the result is the connection's own
        future: this saves a coroutine per request. After a cancellation, the next sweep closes the
        connection, unless the response is complete by then.

        ``head`` is the request line and the headers, with the empty line that ends them.

        Raises:
            TransientError: The network or the server failed; a retry may succeed.
            ConfigurationError: The server's certificate is not trusted.
        """
        now = self._clock()
        connection = self._idle_connection(now)
        if connection is None:
            return self._request_later(head, body, expected)
        return connection.send(head, body, now, expected)

    async def _request_later(self, head: bytes, body: bytes, expected: Expected) -> Response:
        connection = await self._free_connection()
        return await connection.send(head, body, self._clock(), expected)

    @asynccontextmanager
    async def stream(self, head: bytes) -> AsyncIterator[Response]:
        """Send a request without a body, and stream the body of its response; raises as `request`.

        If the body is not read to its end, the connection is closed.
        """
        connection = self._idle_connection(self._clock()) or await self._free_connection()
        waiter = connection.send(head, b"", self._clock(), "stream")
        try:
            yield await waiter
        finally:
            connection.drop(waiter)

    async def aclose(self) -> None:
        """Fail all requests, close all connections, and wait until the sockets are closed."""
        if self._closed is None:
            self._closed = asyncio.Event()
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(ConnectionLostError("the connection pool is closed"))
            for connection in tuple(self._connections):
                connection.fail(ConnectionLostError("the connection pool is closed"))
        if not self._connections:
            self._closed.set()
        await self._closed.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Acquiring a connection

    def _idle_connection(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            # After a Lambda was frozen, a dead connection looks alive: only its age shows it.
            if not connection.closing and now - connection.last_received <= self._limits.idle:
                return connection
            connection.abort()
        return None

    async def _free_connection(self) -> Connection:
        if self._closed is not None:
            raise ConnectionLostError("the connection pool is closed")
        if self._slots:
            self._slots -= 1
            return await self._open()
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            connection = await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())  # it got a connection just before the cancellation
            raise
        return await self._open() if connection is None else connection

    async def _open(self) -> Connection:
        try:
            connection = await self._connect()
        except BaseException:
            self._pass_on(None)
            raise
        self._connections.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)
        return connection

    async def _connect(self) -> Connection:
        endpoint, limits = self.endpoint, self._limits
        try:
            async with asyncio.timeout(limits.connect):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(
                        self,
                        self._clock,
                        buffer=self._buffer,
                        max_body_bytes=limits.max_body_bytes,
                    ),
                    endpoint.host,
                    endpoint.port,
                    ssl=self._tls,
                    server_hostname=endpoint.host if self._tls else None,
                )
        except ssl.SSLCertVerificationError as error:
            raise ConfigurationError(f"{endpoint}: {error.verify_message}") from error
        except TimeoutError as error:
            detail = f"no connection in {limits.connect:g} seconds"
            raise TimedOutError(f"{endpoint}: {detail}") from error
        except socket.gaierror as error:
            advice = "check AWS_DEFAULT_REGION, the endpoint_url and the DNS"
            raise TransientError(f"{endpoint}: {error.strerror}; {advice}") from error
        except OSError as error:
            raise ConnectionLostError(f"{endpoint}: {error}") from error
        if connection.closing or self._closed is not None:
            connection.abort()
            detail = "the connection was closed as soon as it was open"
            raise ConnectionLostError(f"{endpoint}: {detail}")
        return connection

    # Releasing a connection

    def released(self, connection: Connection) -> None:
        """Pass a connection on to the longest waiting request, or keep it idle."""
        if self._waiters:
            self._pass_on(connection)
        else:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """Remove a closed connection, and let the longest waiting request open one."""
        if connection not in self._connections:
            return  # it was never handed out: `_open` frees its slot
        self._connections.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._pass_on(None)
        if self._closed is not None and not self._connections:
            self._closed.set()

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a connection, or with ``None`` the right to open one, to the next request."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._slots += 1
        else:
            self._idle.append(connection)

    # Timeouts: one timer for all connections, so that a request costs none

    @property
    def _period(self) -> float:
        return min(1.0, self._limits.read / 4, self._limits.total / 4)

    def _tick(self) -> None:
        self.sweep()
        self._timer = None
        if self._connections:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)

    def sweep(self) -> None:
        """Fail the exchanges that take too long, and close the connections that idle too long."""
        now, limits = self._clock(), self._limits
        for connection in tuple(self._connections):
            if reason := connection.overdue(now, read=limits.read, total=limits.total):
                connection.fail(TimedOutError(reason))
        for connection in tuple(self._idle):
            if now - connection.last_received > limits.idle:
                connection.abort()
